"""Workers that die, lose their lock, drain, and share one database (hazards 25, 30, 35, 37 to 41). The locks: tests/store."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import time
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from groundstate import DeclarationError, ExternalService, InDoubt, StoppedError, StoreRefusedError
from groundstate.engine.recover import adopt, startup
from groundstate.engine.worker.shut_down import StopResult
from groundstate.store import tables
from tests.engine.charging import ASK, SAME_KEY, charging
from tests.engine.kit import HANG_S, QUICK, Killed, Order, World, until
from tests.patience import HANG
from tests.store.children import forked


def workers(world: World) -> int:
    with world.engine.connect() as connection:
        return len(connection.execute(tables.worker.select()).all())


def test_a_killed_worker_leaves_what_it_began_listed_at_once(world: World) -> None:
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    life.kill()
    attempt = world.attempt()
    assert (attempt.state, attempt.record) == ("begun", "1")
    world.settled()
    attempt = world.attempt()
    assert (attempt.state, attempt.unsure) == ("held", True)
    assert gateway.called(1) == 1


def test_several_workers_share_the_work_and_nothing_is_done_twice(world: World) -> None:
    gateway = charging(world, InDoubt.hold(), limit=10)
    world.orders(200)
    lives = [world.worker() for _ in range(3)]
    until(lambda: world.count(Order.status == "paid") == 200)
    for life in lives:
        life.quiet()
    assert len(gateway.ledger) == 200
    assert world.attempts() == []


def test_hazard_25_one_unclean_end_is_a_deploy_and_makes_nobody_careful(world: World) -> None:
    @world.app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"

    world.there()
    world.worker().kill()
    life = world.worker()
    life.quiet()
    assert not life.worker.incarnation.care.careful
    life.kill()
    third = world.worker()
    third.quiet()
    assert third.worker.incarnation.care.careful
    world.orders(3)
    third.quiet()
    assert world.count(Order.status == "packed") == 3
    assert world.attempts() == []
    world.forward(3600)
    until(lambda: not third.worker.incarnation.care.careful)
    until(lambda: workers(world) == 1)


def ends_adopted(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Of what was adopted: how loudly that was said, and how its life had ended."""
    said = [one for one in caplog.records if vars(one).get("event") == "adopted"]
    return [(one.levelname, vars(one)["end"]) for one in said]


def test_hazard_30_a_worker_that_lost_its_lock_begins_a_new_life_and_its_outcome_is_evidence(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "groundstate")
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    before = life.worker.incarnation.id
    life.lose_lock(for_good=True)
    until(lambda: life.worker.incarnation.id != before and life.worker.incarnation.sound)
    until(lambda: world.attempt().unsure)
    gateway.gate.set()
    until(lambda: world.order().status == "paid")
    assert gateway.called(1) == 1
    life.quiet()
    assert world.attempts() == []
    assert ends_adopted(caplog) == [("INFO", "lock_lost")], "it is its own last life"


def test_hazard_37_two_lives_of_one_process_are_told_apart(world: World) -> None:
    gateway = charging(world, InDoubt.hold())
    for number in (1, 2, 3):
        gateway.plan(number, "hang")
    world.orders(2)
    first = world.worker()
    until(lambda: gateway.waiting == 2)
    with first._gate:  # it begins no more
        second = world.worker()
        world.orders_from(3, 3)
        until(lambda: gateway.waiting == 3)
    first.kill()
    until(lambda: sorted(world.states()) == ["begun", "held", "held"])
    assert [one.worker for one in world.attempts() if one.state == "begun"] == [second.worker.incarnation.id]


def test_hazard_38_an_adopter_that_dies_while_adopting_counts_nothing_twice(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = charging(world, ASK, limit=10)
    for number in range(1, 11):
        gateway.plan(number, "hang")
    world.orders(10)
    first = world.worker()
    until(lambda: gateway.waiting == 10)
    monkeypatch.setattr(adopt, "AT_ONCE", 3)
    first.kill()
    adopter = world.worker(start=False)
    adopter.dies_at = 4  # its first transaction begins its life, two adopt
    with pytest.raises(Killed):
        adopter.worker.start()
    states = world.states()
    assert 0 < states.count("begun") < 10
    world.worker(wait_for_go=True)
    until(lambda: world.states() == ["doubt"] * 10)
    assert {one.failures for one in world.attempts()} == {1}
    assert ("WARNING", "unclean") in ends_adopted(caplog)
    (line,) = [one.getMessage() for one in caplog.records if vars(one).get("end") == "unclean"]
    assert f"(process {os.getpid()} on {socket.gethostname()}) ended while" in line
    assert re.search(r"attempts? (was|were) under way \(paid on orders \d+", line)


def test_a_worker_that_waits_for_a_slot_of_another_one_waits_for_it_no_longer_once_it_is_told_to_stop(world: World) -> None:
    gateway = charging(world, SAME_KEY, limit=1)
    gateway.plan(1, "hang")
    world.orders(1)
    busy = world.worker()
    until(lambda: gateway.waiting == 1)
    idle = world.worker()
    world.orders_from(2, 2)
    until(lambda: idle.worker.components.call_turns.limits.may_skipped_queue_go_on)
    told = time.monotonic()
    idle.stop(HANG_S / 2)
    assert time.monotonic() - told < HANG_S / 2  # by its own end, and by no limit
    assert gateway.waiting == 1
    gateway.gate.set()
    busy.quiet()
    assert world.count(Order.status == "paid") == 2


def test_hazard_39_a_drain_lets_calls_end_and_leaves_the_rest_in_doubt(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "groundstate")
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    assert life.worker.stop(0.05) == StopResult(in_doubt=1, clean=True)
    assert world.attempt().unsure
    assert workers(world) == 0, "a clean end leaves no row"
    world.orders_from(2, 3)
    life = world.worker()
    gateway.plan(4, "done_hang")
    world.orders_from(4, 4)
    until(lambda: gateway.waiting == 2)
    life.drain()
    world.orders_from(5, 5)
    gateway.gate.set()
    life.stop(20)
    assert world.order(4).status == "paid"
    assert gateway.called(5) == 0, "a call was begun while draining"
    assert ends_adopted(caplog) == [("INFO", "clean")], "a drain is no reason to ask why it ended"


def test_a_stop_while_it_comes_up_ends_each_life_that_it_began_and_a_start_after_a_stop_is_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    charging(world, ASK)
    tries: list[int] = []

    def cut(shift: Any, **_more: Any) -> None:
        tries.append(shift.incarnation.id)
        if len(tries) == 3:
            life.drain()
        raise OperationalError("adopting", None, RuntimeError("the connection was cut"), connection_invalidated=True)

    monkeypatch.setattr(startup, "take_over_from_dead_workers", cut)
    life = world.worker(start=False)
    with pytest.raises(StoppedError):
        life.worker.start()
    until(lambda: life.ended)
    assert len(set(tries)) == 3, "each try is a life of its own"
    assert workers(world) == 0
    with pytest.raises(StoppedError):
        life.worker.start()


def test_hazard_39_a_removed_reaction_with_open_attempts_is_refused(world: World) -> None:
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "raise")
    world.orders(1)
    world.settled()
    kept = world.app.reactions.pop("paid")
    with pytest.raises(StoreRefusedError, match="rename"):
        world.worker()
    assert world.attempt().reaction == "paid"
    world.app.reactions["paid"] = kept
    world.settled()


def test_hazard_40_an_idle_worker_writes_nothing(world: World) -> None:
    charging(world, InDoubt.hold())
    world.there()
    life = world.worker()
    life.quiet()
    life.sweep()
    before = life.transactions
    for _ in range(3):
        life.sweep()
    lanes = len(life.worker.queues)
    assert life.transactions - before <= 8 * lanes, "a sweep costs an idle worker more than a look at each reaction"
    assert world.attempts() == []


def test_hazard_41_a_call_that_blocks_its_loop_delays_neither_liveness_nor_other_work(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = world.gateway()
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.repeat(), retry=QUICK)
    async def blocking(order: Order) -> str:
        gateway.waiting += 1
        gateway.gate.wait(HANG_S)
        return "r"

    @world.app.on(Order, Order.status == "placed", call=blocking)
    def paid(order: Order, outcome: str) -> None:
        order.status = "paid"

    @world.app.on(Order, Order.status == "other")
    def done(order: Order) -> None:
        order.status = "done"

    caplog.set_level(logging.WARNING, "groundstate")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.add(Order(id=2, status="other"))
    until(lambda: world.order(2).status == "done")
    life.sweep()
    assert life.worker.incarnation.sound
    until(lambda: "blocking" in caplog.text)
    gateway.gate.set()
    life.quiet()
    assert world.order(1).status == "paid"


def test_hazard_32_the_connection_of_the_lock_does_nothing_else_while_its_worker_works(postgres_world: World) -> None:
    world = postgres_world
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "hang")
    world.orders(50)
    life = world.worker()
    until(lambda: gateway.waiting == 1 and world.count(Order.status == "paid") == 49)
    life.sweep()
    lock_of: Any = life.worker.incarnation.liveness
    with world.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:  # each look is a new one
        here = "(select oid from pg_database where datname = current_database())"
        holds = f"select pid from pg_locks where locktype = 'advisory' and granted and database = {here}"
        [holder] = connection.exec_driver_sql(holds).scalars().all()
        assert holder == lock_of._connection.info.backend_pid
        until(
            lambda: (
                connection.exec_driver_sql(f"select state, xact_start from pg_stat_activity where pid = {holder}").one() == ("idle", None)
            )
        )
        asked = connection.exec_driver_sql(f"select query from pg_stat_activity where pid = {holder}").scalar_one()
    assert "orders" not in asked
    assert "groundstate_" not in asked


def test_hazard_35_a_fork_of_a_running_program_does_not_keep_a_dead_worker_alive(world: World) -> None:
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    with forked(lambda: "up") as answer:
        assert answer == "up"
        life.kill()
        world.settled()
        assert world.attempt().state == "held"


def test_a_held_start_carries_out_nothing_until_it_is_told(world: World) -> None:
    gateway = charging(world, InDoubt.hold())
    world.orders(3)
    life = world.worker(wait_for_go=True)
    assert gateway.calls == []
    assert world.count(Order.status == "placed") == 3
    life.worker.begin_work()
    until(lambda: world.count(Order.status == "paid") == 3)


def test_an_app_runs_until_all_is_quiet_and_stops(world: World) -> None:
    charging(world, InDoubt.hold())
    world.orders(20)
    world.app.start()
    try:
        world.app.run_until_idle(HANG)
    finally:
        world.app.stop()
    assert world.count(Order.status == "paid") == 20
    assert workers(world) == 0


def test_a_time_that_is_no_timedelta_is_refused_and_stops_nothing(world: World) -> None:
    charging(world, InDoubt.hold())
    number: Any = 20
    world.orders(1)
    world.app.start()
    try:
        for asks in (world.app.run_until_idle, world.app.stop):
            with pytest.raises(DeclarationError, match=r"=20: give a timedelta, for example timedelta\(seconds=30\)"):
                asks(number)
        with pytest.raises(DeclarationError, match="timeout=20: give a timedelta"):
            asyncio.run(world.app.wait_for(Order, 1, Order.status == "paid", timeout=number))
        world.app.run_until_idle(HANG)
    finally:
        world.app.stop()
    assert world.count(Order.status == "paid") == 1


@pytest.mark.parametrize("beside", ["handlers", "schedule"])
def test_a_worker_waits_while_the_call_of_a_suspect_is_in_the_air(world: World, beside: str) -> None:
    gateway = charging(world, InDoubt.repeat())
    gateway.plan(1, "hang", "hang", "hang")
    if beside == "schedule":
        world.app.every(timedelta(seconds=1), name="ticks")(lambda: None)

    @world.app.on(Order, Order.status == "to pack")
    def packed(order: Order) -> None:
        order.status = "packed"

    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    for waiting in (2, 3):
        life.kill()
        life = world.worker()
        until(lambda: world.attempt().state == "doubt")
        world.forward(60)
        until(lambda: gateway.waiting == waiting)  # noqa: B023  # it is asked at once
    assert life.worker.incarnation.care.careful
    until(lambda: life.worker.components.call_turns.is_suspect_in_flight)
    world.forward(10)  # ticks are due
    world.add(*[Order(id=number, status="to pack") for number in range(2, 12)])
    until(lambda: any(queue.has_work for queue in life.worker.queues if queue.name == "packed"))
    waits: list[float] = []
    really = life.worker.loop.iteration.run_iteration

    def looks() -> None:
        really()
        waits.append(life.worker.loop.pause.seconds_to_wait())

    vars(life.worker.loop.iteration)["run_iteration"] = looks
    until(lambda: len(waits) >= 5)
    assert sum(wait > 0 for wait in waits) >= len(waits) - 2, "it spins"
    assert world.count(Order.status == "packed") == 0
    gateway.gate.set()
    until(lambda: world.count(Order.status == "packed") == 10)
    until(lambda: world.order().status == "paid")


def test_where_the_session_of_its_lock_has_ended_the_log_does_not_speak_of_another_server(
    postgres_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "groundstate")
    charging(postgres_world, InDoubt.repeat())
    life = postgres_world.worker()
    life.quiet()
    life.lose_lock(notices=False)  # its next transaction does
    postgres_world.orders(1)
    until(lambda: "worker_resumed" in [vars(one).get("event") for one in caplog.records])
    events = [vars(one).get("event") for one in caplog.records]
    assert "server_changed" not in events
    (line,) = [one for one in caplog.records if vars(one).get("event") == "lock_lost"]
    assert "the session that held it has ended, and the database is on the same server as before" in line.getMessage()
    until(lambda: postgres_world.order().status == "paid")
