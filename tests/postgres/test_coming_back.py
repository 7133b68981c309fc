"""Workers that live through a start of their server, each under its own number: their calls stay theirs, and nobody is taken for dead.

A start of the server frees every lock at once, and so does whoever cuts all connections to it. Tests that say who is not adopted let nobody
adopt for ten minutes: on a busy machine the seconds of real life are soon over.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from tools.servers.postgres import PostgresServer

from groundstate import InDoubt
from groundstate.engine.operate.pending import build_pending_report
from groundstate.engine.operate.why import explain_record
from groundstate.engine.recover import adopt
from groundstate.engine.rows import incarnation as lives
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from groundstate.store.port import Liveness
from groundstate.store.postgres_liveness import INCARNATION
from groundstate.store.tables import worker as worker_table
from groundstate.values.errors import LifeTakenError
from tests.engine.charging import ASK, SAME_KEY, charging
from tests.engine.kit import HANG_S, Gateway, Life, Order, World, ms, until

LONG = timedelta(minutes=10)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(max_connections=60, settings={"wal_level": "minimal", "max_wal_senders": "0"}) as made:
        yield made
        made.kill()


@pytest.fixture
def world(server: PostgresServer) -> Iterator[World]:
    made = World(server.create_database())
    yield made
    server.start()
    made.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "RECONNECT", LONG)
    monkeypatch.setattr("groundstate.engine.operate.living_workers.RECONNECT", LONG)


def killed(server: PostgresServer) -> None:
    server.kill()
    server.start()


def stopped_at_once(server: PostgresServer) -> None:
    server.stop_at_once()
    server.start()


def one_backend_crashes(server: PostgresServer) -> None:
    """The server ends all sessions and recovers; its start stays the same."""
    world = World(server.create_database())
    before = _incarnation(world)
    connection = world.engine.connect()
    try:
        os.kill(int(connection.exec_driver_sql("select pg_backend_pid()").scalar_one()), signal.SIGKILL)
        with pytest.raises(OperationalError):
            until(lambda: connection.exec_driver_sql("select 1").scalar_one() == 2)
        connection.close()
        until(lambda: _incarnation(world) not in (None, before))  # it may answer before it has missed the one that was killed
    finally:
        world.close()


def all_are_cut(server: PostgresServer) -> None:
    """As by a pooler in session mode that is restarted: the server stays up."""
    with psycopg.connect(server.url("postgres").replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname like 'test%' and pid <> pg_backend_pid()")


def _incarnation(world: World) -> str | None:
    try:
        with world.engine.connect() as connection:
            return str(connection.exec_driver_sql(f"select {INCARNATION}").scalar_one())
    except OperationalError:
        return None


ANEW = pytest.mark.parametrize("starts_anew", [killed, stopped_at_once, one_backend_crashes, all_are_cut])


def in_the_air(world: World, policy: InDoubt, orders: int, workers: int, *, done: bool = False) -> tuple[Gateway, list[Life]]:
    """So many calls of so many workers, half of them (or all) done already; each worker has some. They end when the gate opens."""
    gateway = charging(world, policy, limit=orders)
    for number in range(1, orders + 1):
        gateway.plan(number, "done_hang" if done or number % 2 else "hang")
    made = [world.worker() for _ in range(workers)]
    each = orders // workers
    for number, life in enumerate(made):
        others = [one for one in made if one is not life]
        with asleep(*others):
            world.orders_from(number * each + 1, (number + 1) * each)
            until(lambda number=number: gateway.waiting == (number + 1) * each)  # type: ignore[misc]
    return gateway, made


@contextmanager
def asleep(*some: Life) -> Iterator[None]:
    """Their threads stand still at their next turn, as if their hosts were suspended."""
    awake, still = threading.Event(), [threading.Event() for _ in some]
    for life, stands in zip(some, still, strict=True):
        vars(life.worker.loop.iteration)["run_iteration"] = _standing(life, stands, awake)
        life.worker.components.signals.wake.set()
    assert all(stands.wait(HANG_S) for stands in still)
    try:
        yield
    finally:
        for life in some:
            del vars(life.worker.loop.iteration)["run_iteration"]
        awake.set()


def _standing(life: Life, stands: threading.Event, awake: threading.Event) -> Callable[[], None]:
    def turn() -> None:
        stands.set()
        awake.wait()

    return turn


def came_back(*some: Life, times: int = 2) -> None:
    until(lambda: all(life.worker.incarnation.taken == times and life.worker.incarnation.sound for life in some))


def ids(some: list[Life]) -> list[int]:
    return [life.worker.incarnation.id for life in some]


def ended(world: World) -> list[int]:
    """Liveness that somebody wrote down as ended."""
    with world.engine.connect() as connection:
        return list(connection.execute(select(worker_table.c.id).where(worker_table.c.ended_at.is_not(None))).scalars())


def events(caplog: pytest.LogCaptureFixture) -> set[Any]:
    return {vars(one).get("event") for one in caplog.records}


@ANEW
@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("policy", [SAME_KEY, ASK], ids=["same_key", "lookup"])
def test_no_call_goes_out_twice_and_no_worker_is_taken_for_dead_where_the_server_is_started_anew(
    server: PostgresServer,
    world: World,
    caplog: pytest.LogCaptureFixture,
    starts_anew: Callable[[PostgresServer], None],
    policy: InDoubt,
) -> None:
    caplog.set_level(logging.INFO, "groundstate")
    gateway, workers = in_the_air(world, policy, 30, 3)
    before = ids(workers)
    starts_anew(server)
    world.engine.dispose()
    came_back(*workers)
    gateway.gate.set()
    until(lambda: world.count(Order.status == "paid") == 30)
    for life in workers:
        life.quiet()
    assert [gateway.called(number) for number in range(1, 31)] == [1] * 30
    assert [gateway.done(number) for number in range(1, 31)] == [1] * 30
    assert gateway.asked == [], "nothing was in doubt"
    assert ids(workers) == before, "each goes on as who it was"
    assert ended(world) == []
    assert world.attempts() == []
    assert "worker_resumed" in events(caplog)
    assert not events(caplog) & {"adopted", "careful_mode", "call_in_doubt", "went_back"}


@ANEW
@pytest.mark.usefixtures("patient")
def test_a_worker_that_comes_back_later_than_others_still_has_its_calls(
    server: PostgresServer, world: World, starts_anew: Callable[[PostgresServer], None]
) -> None:
    gateway, (early, late) = in_the_air(world, SAME_KEY, 10, 2)
    first = late.worker.incarnation.id
    with asleep(late):
        starts_anew(server)
        world.engine.dispose()
        came_back(early)
        for _ in range(3):
            early.sweep()
        assert [one.state.value for one in world.attempts()] == ["begun"] * 10
        assert [one.worker for one in world.attempts()].count(first) == 5
        assert ended(world) == []
    came_back(late)
    gateway.gate.set()
    until(lambda: world.count(Order.status == "paid") == 10)
    assert late.worker.incarnation.id == first
    assert [gateway.called(number) for number in range(1, 11)] == [1] * 10


@ANEW
def test_who_does_not_come_back_is_adopted_after_some_seconds_and_is_another_life_when_it_does(
    server: PostgresServer, world: World, monkeypatch: pytest.MonkeyPatch, starts_anew: Callable[[PostgresServer], None]
) -> None:
    monkeypatch.setattr(lives, "RECONNECT", ms(300))
    gateway, (early, late) = in_the_air(world, ASK, 10, 2)
    first = late.worker.incarnation.id
    with asleep(late):
        starts_anew(server)
        world.engine.dispose()
        until(lambda: first in ended(world) or first not in [one.worker for one in world.attempts()])
    until(lambda: late.worker.incarnation.id != first and late.worker.incarnation.sound)
    gateway.gate.set()
    until(lambda: world.count(Order.status == "paid") == 10)
    assert [gateway.done(number) for number in range(1, 11)] == [1] * 10
    assert early.worker.incarnation.sound


def test_a_worker_that_died_with_its_server_is_adopted_by_the_next_start(
    server: PostgresServer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lives, "RECONNECT", ms(300))
    gateway, (dead,) = in_the_air(world, ASK, 4, 1, done=True)
    dead.kill()
    killed(server)
    world.engine.dispose()
    world.worker()
    gateway.gate.set()
    until(lambda: world.count(Order.status == "paid") == 4)
    assert [gateway.done(number) for number in range(1, 5)] == [1] * 4


@pytest.mark.usefixtures("patient")
def test_on_the_same_server_a_free_lock_is_a_death_at_once(world: World) -> None:
    gateway, (dead,) = in_the_air(world, ASK, 2, 1, done=True)
    dead.kill()
    world.worker()
    gateway.gate.set()
    until(lambda: world.count(Order.status == "paid") == 2)
    assert gateway.done(1) == gateway.done(2) == 1


@pytest.mark.usefixtures("patient")
def test_a_life_of_older_code_which_did_not_say_its_server_is_adopted_at_once(server: PostgresServer, world: World) -> None:
    gateway, (dead,) = in_the_air(world, ASK, 2, 1, done=True)
    world.run("update groundstate_worker set server = null, wrote = null")
    dead.kill()
    killed(server)
    world.engine.dispose()
    world.worker()
    gateway.gate.set()
    until(lambda: world.count(Order.status == "paid") == 2)
    assert gateway.done(1) == gateway.done(2) == 1


@pytest.mark.usefixtures("patient")
def test_a_worker_that_loses_its_connection_alone_goes_on_where_nobody_adopted_it_meanwhile(world: World) -> None:
    gateway, (life,) = in_the_air(world, InDoubt.hold(), 2, 1)
    first = life.worker.incarnation.id
    world.run("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'groundstate worker'")
    came_back(life)
    gateway.gate.set()
    until(lambda: world.count(Order.status == "paid") == 2)
    assert life.worker.incarnation.id == first
    assert world.attempts() == []


@pytest.mark.usefixtures("patient")
def test_and_is_another_life_where_somebody_whose_connection_stood_took_it_for_dead(world: World) -> None:
    gateway, (cut, other) = in_the_air(world, ASK, 4, 2, done=True)
    first = cut.worker.incarnation.id
    with asleep(cut):
        cut.lose_lock()
        until(lambda: first in ended(world))
    until(lambda: cut.worker.incarnation.id != first and cut.worker.incarnation.sound)
    gateway.gate.set()
    until(lambda: world.count(Order.status == "paid") == 4)
    assert [gateway.called(number) for number in range(1, 5)] == [1] * 4
    assert other.worker.incarnation.taken == 1


@pytest.mark.usefixtures("patient")
def test_who_lost_its_own_lock_takes_nobody_for_dead_and_who_did_not_does_at_once(world: World) -> None:
    gateway, (cut, dead) = in_the_air(world, ASK, 4, 2, done=True)
    cut.lose_lock()
    came_back(cut)
    gone = dead.worker.incarnation.id
    dead.kill()
    for _ in range(3):
        cut.sweep()
    assert ended(world) == []
    assert [one.worker for one in world.attempts()].count(gone) == 2
    world.worker()
    until(lambda: ended(world) == [gone])
    gateway.gate.set()
    until(lambda: world.count(Order.status == "paid") == 4)
    assert [gateway.done(number) for number in range(1, 5)] == [1] * 4


def test_a_life_waits_for_its_lock_while_its_own_last_session_still_has_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundstate.engine.recover.startup.RECONNECT", LONG)
    gateway, (life,) = in_the_air(world, InDoubt.hold(), 2, 1)
    first = life.worker.incarnation.id
    database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
    session = make_lives()
    with asleep(life):
        life.lose_lock()
        until(lambda: _took(session, first))
    until(lambda: "not free yet" in str(life.worker.current_trouble))
    assert life.worker.incarnation.id == first
    session.release()
    came_back(life)
    gateway.gate.set()
    until(lambda: world.count(Order.status == "paid") == 2)
    assert life.worker.incarnation.id == first
    database.close()


def test_and_begins_another_life_where_that_lasts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundstate.engine.recover.startup.RECONNECT", ms(300))
    gateway, (life,) = in_the_air(world, ASK, 2, 1, done=True)
    first = life.worker.incarnation.id
    database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
    session = make_lives()
    with asleep(life):
        life.lose_lock()
        until(lambda: _took(session, first))
    until(lambda: life.worker.incarnation.id != first and life.worker.incarnation.sound)
    session.release()
    gateway.gate.set()
    until(lambda: world.count(Order.status == "paid") == 2)
    assert [gateway.called(number) for number in (1, 2)] == [1, 1]
    database.close()


def _took(session: Liveness, life: int) -> bool:
    """Its last session ends a moment after it was closed."""
    try:
        session.take_lock(life)
    except LifeTakenError:
        return False
    return True


def test_an_adopter_that_loses_its_own_lock_meanwhile_takes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, (adopter, dead) = in_the_air(world, ASK, 4, 2, done=True)
    gone, seen = dead.worker.incarnation.id, list[list[str]]()
    real = adopt._record_end

    def cut(life: Any, tx: Any, of: int) -> bool:
        found = real(life, tx, of)
        if of == gone and not seen:
            seen.append([])
            adopter.worker.incarnation.liveness.release()  # so that who was dead may have its lock, and go on
        elif of == gone and len(seen) == 1:
            seen.append([one.state.value for one in world.attempts() if one.worker == gone])
        return found

    monkeypatch.setattr(adopt, "_record_end", cut)
    monkeypatch.setattr(lives, "RECONNECT", ms(300))
    dead.kill()
    until(lambda: ended(world) == [gone])
    assert seen == [[], ["begun", "begun"]], "the first time nothing was written"
    gateway.gate.set()
    until(lambda: world.count(Order.status == "paid") == 4)
    assert [gateway.done(number) for number in range(1, 5)] == [1] * 4


@pytest.mark.usefixtures("patient")
def test_a_begin_whose_commit_landed_without_an_answer_is_known_for_not_sent_after_the_restart(
    server: PostgresServer, world: World
) -> None:
    gateway = charging(world, InDoubt.hold())
    life = world.worker()
    life.sweep_no_more()
    restarted = threading.Event()
    real = life.worker.components.succession.check_lock

    def check(shift: Any) -> None:
        if life.lost:
            restarted.wait()
        real(shift)

    vars(life.worker.components.succession)["check_lock"] = check
    life.lose_word_of = "insert into groundstate_attempt"
    world.orders(3)
    until(lambda: life.lost == 1)
    killed(server)
    world.engine.dispose()
    restarted.set()
    until(lambda: world.count(Order.status == "paid") == 3)
    assert life.worker.incarnation.taken == 2
    assert [gateway.called(number) for number in (1, 2, 3)] == [1, 1, 1]
    assert world.attempts() == []


@pytest.mark.usefixtures("patient")
def test_calls_in_the_air_take_their_slots_again(server: PostgresServer, world: World) -> None:
    gateway = charging(world, SAME_KEY, limit=2)
    for number in range(1, 9):
        gateway.plan(number, "hang")
    first, second = world.worker(), world.worker()
    with asleep(second):
        world.orders(8)
        until(lambda: gateway.waiting == 2)
        killed(server)
        world.engine.dispose()
        came_back(first)
        first.turn()
    came_back(second)
    second.sweep()
    second.turn()
    assert gateway.waiting == 2
    gateway.gate.set()
    until(lambda: world.count(Order.status == "paid") == 8)
    assert [gateway.called(number) for number in range(1, 9)] == [1] * 8


@pytest.mark.usefixtures("patient")
def test_calls_of_a_worker_that_may_come_back_are_listed_all_the_while(server: PostgresServer, world: World) -> None:
    _, (life,) = in_the_air(world, ASK, 2, 1)
    with asleep(life):
        killed(server)
        world.engine.dispose()
        database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
        database.connect()
        questions = [ConditionQuery(spec, database) for spec in world.app.reactions.values()]
        try:
            report = build_pending_report("shop", database, questions, make_lives())
            told = explain_record("shop", database, questions, make_lives(), "orders", "1")
        finally:
            database.close()
    assert report.counts["alive or in doubt"] == 2
    assert report.left
    assert [one.standing.split("; known in ")[0] for one in report.in_doubt] == ["alive or in doubt: the server was started anew"] * 2
    assert (
        report.in_doubt[0].next
        == "its worker concludes it, if it lives; else by its lookup; Absent is believed when it is asked after the time given"
    )
    assert report.workers[0].alive is None
    assert "the server was started anew; known in" in report.in_flight
    assert "the server was started anew; known in" in report.last_end
    assert told.answers[0].attempts[0].standing.startswith("alive or in doubt: the server was started anew; known in")


def test_they_are_told_as_in_doubt_once_no_worker_can_come_back(
    server: PostgresServer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (dead,) = in_the_air(world, ASK, 2, 1, done=True)
    dead.kill()
    killed(server)
    world.engine.dispose()
    monkeypatch.setattr("groundstate.engine.operate.living_workers.RECONNECT", ms(0))
    database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
    database.connect()
    try:
        report = build_pending_report(
            "shop", database, [ConditionQuery(spec, database) for spec in world.app.reactions.values()], make_lives()
        )
    finally:
        database.close()
    assert report.counts["in doubt"] == 2
    assert report.workers[0].alive is False
