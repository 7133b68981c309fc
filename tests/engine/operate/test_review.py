"""Faults that a review of the engine found: each was shown by its test here before it was mended."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import ExternalService, InDoubt, Retry
from groundstate.clock import SYSTEM_CLOCK
from groundstate.engine.call import begin
from groundstate.engine.handle.run_batch import Feed
from groundstate.engine.recover import restore
from groundstate.engine.rows.in_flight import read_clocks
from groundstate.rules.attempt import State
from tests.engine.charging import ASK, charging
from tests.engine.kit import HANG_S, Base, Order, World, ms, until


class Others(DeclarativeBase):
    pass


class Parcel(Others):
    __tablename__ = "parcels"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")


@pytest.fixture
def parcels(database_url: str) -> Iterator[World]:
    made = World(database_url, Base, Others)
    yield made
    made.close()


@pytest.fixture
def lossless(database_url: str) -> Iterator[World]:
    made = World(database_url, failover="lossless")
    yield made
    made.close()


def _suspects(world: World) -> list[str]:
    with world.engine.connect() as connection:
        return list(connection.exec_driver_sql("select name from groundstate_reaction where suspect").scalars())


def _fails_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[str]:
    """The next use of it meets a database in trouble."""
    real: Any = getattr(owner, name)
    met: list[str] = []

    def fails(*arguments: Any, **named: Any) -> Any:
        if not met:
            met.append(name)
            raise OperationalError("select", None, Exception("the server went away"), connection_invalidated=True)
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, fails)
    return met


# ---- calls ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sync", [False, True])
def test_a_call_that_exits_is_in_doubt_and_the_other_calls_go_on(world: World, sync: bool) -> None:
    bank = ExternalService("bank")

    if sync:

        @bank.call(in_doubt=InDoubt.hold())
        def charge(order: Order) -> str:
            if order.id == 1:
                raise SystemExit(2)
            return "paid"
    else:

        @bank.call(in_doubt=InDoubt.hold())
        async def charge(order: Order) -> str:
            if order.id == 1:
                raise SystemExit(2)
            return "paid"

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status = outcome

    world.orders(1)
    life = world.worker()
    until(lambda: world.states() == ["held"])
    world.orders_from(2, 3)
    until(lambda: world.count(Order.status == "paid") == 2)
    life.quiet()


def test_threads_that_hang_do_not_keep_their_outside_from_being_probed(world: World) -> None:
    gateway = charging(world, InDoubt.hold(), sync=True, timeout=ms(50))
    for number in range(1, 6):
        gateway.plan(number, "hang")
    world.orders(5)
    life = world.worker()
    until(lambda: life.pauses)
    world.orders_from(6, 6)
    until(lambda: world.order(6).status == "paid")


def test_doubts_are_asked_one_after_the_other_as_slots_become_free_and_not_one_a_sweep(world: World) -> None:
    gateway = charging(world, ASK, limit=1)
    world.orders(30)
    first = world.worker(wait_for_go=True)
    life = first.worker.incarnation
    question = first.worker.queues[0].query
    with life.open_transaction() as tx:
        begun = begin.begin_calls(life, tx, question, Feed(keys=[(n,) for n in range(1, 31)], limit=30), read_clocks(SYSTEM_CLOCK))
    assert len(begun.in_flights) == 30
    first.kill()
    world.forward(120)
    for number in range(1, 31):
        gateway.finds[number] = ["found"]
    asked, goes_on = threading.Event(), threading.Event()
    real = gateway.find

    def find(record: int, key: str) -> Any:
        asked.set()
        assert goes_on.wait(HANG_S)
        return real(record, key)

    gateway.find = find  # type: ignore[method-assign]  # the first one waits
    second = world.worker()
    assert asked.wait(HANG_S)
    second.hints_alone()
    goes_on.set()
    until(lambda: world.count(Order.status == "paid") == 30)
    assert sorted(gateway.asked) == list(range(1, 31))


# ---- databases that went back ----------------------------------------------------------------------------------------------------
def test_calls_lost_while_the_lock_was_lost_as_well_are_seen_by_what_memory_counted(lossless: World) -> None:
    world = lossless
    gateway = charging(world, ASK)
    world.orders(1)
    life = world.worker()
    life.quiet()
    if life.worker.incarnation.witness is not None:
        life.worker.incarnation.witness.delete_count_of(life.worker.incarnation.id)  # as where the file lies on the disk that was put back
    world.run("update groundstate_worker set begins = 0")
    life.worker.incarnation.liveness.release()  # the server that was put back knows no session of ours
    world.set(1, status="placed", receipt=None)
    life.sweep()
    until(lambda: _suspects(world) == ["paid"])
    world.forward(60)
    until(lambda: world.order().receipt == "r1")
    assert gateway.called(1) == 1


def test_trouble_while_doubts_are_written_down_does_not_end_the_worker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = charging(world, ASK)
    world.orders(1)
    life = world.worker()
    life.quiet()
    met = _fails_once(monkeypatch, restore, "_insert_doubts_for_matches")
    world.run("update groundstate_worker set begins = 0")
    world.set(1, status="placed", receipt=None)
    life.sweep()
    until(lambda: bool(met) and world.states() == ["doubt"])
    assert not life.ended
    world.forward(60)
    until(lambda: world.order().receipt == "r1")
    assert gateway.called(1) == 1


def test_trouble_in_the_look_back_of_a_new_life_is_no_reason_to_call_without_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = charging(world, ASK)
    world.orders(1)
    life = world.worker()
    life.quiet()
    met = _fails_once(monkeypatch, restore, "find_sign_of_restore")
    life.lose_lock()
    until(lambda: bool(met))
    monkeypatch.setattr(restore, "find_sign_of_restore", lambda _life: None if _suspects(world) else "the store's identity changed")
    world.set(1, status="placed", receipt=None)
    until(lambda: _suspects(world) == ["paid"])
    world.forward(60)
    until(lambda: world.order().receipt == "r1")
    assert gateway.called(1) == 1


def test_after_restore_is_not_forgotten_where_the_start_meets_trouble(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    charging(world, ASK)
    world.orders(1, status="paid")
    met = _fails_once(monkeypatch, restore, "put_lost_calls_in_doubt")
    life = world.worker(start=False, after_restore=True)
    life.worker.start()
    assert met
    assert _suspects(world) == ["paid"]


def test_a_life_that_ends_cleanly_during_a_look_back_is_no_lost_life(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    if world.postgres:
        world = World(world.url, witness=tmp_path)
    charging(world, ASK)
    world.orders(1)
    ending, starting = world.worker(), world.worker(wait_for_go=True)
    ending.quiet()
    life = starting.worker.incarnation
    assert life.witness is not None
    real = life.witness.read
    read: list[int] = []

    def read_and_then_the_other_ends() -> dict[int, int]:
        found = real()
        if not read:
            read.append(1)
            ending.stop()
        return found

    monkeypatch.setattr(life.witness, "read", read_and_then_the_other_ends)
    assert restore.find_sign_of_restore(life) is None
    world.close()


def test_a_reaction_that_the_backup_does_not_know_is_suspect_as_well(world: World) -> None:
    charging(world, ASK)
    world.there()
    world.run("delete from groundstate_reaction where name = 'paid'")
    life = world.worker(after_restore=True)
    until(lambda: all(lane.is_enabled for lane in life.worker.queues))  # it matches nothing, so it is started
    world.orders(1)
    until(lambda: world.states() == ["doubt"])
    assert _suspects(world) == ["paid"]


def test_what_was_believed_absent_is_called_though_its_reaction_is_suspect(world: World) -> None:
    charging(world, ASK)
    world.orders(1)
    life = world.worker(wait_for_go=True)
    world.run("update groundstate_reaction set suspect = true")
    inner, question = life.worker.incarnation, life.worker.queues[0].query
    with inner.open_transaction() as tx:
        begin.begin_calls(inner, tx, question, Feed(keys=[(1,)]), read_clocks(SYSTEM_CLOCK))
    world.force("update groundstate_attempt set state = 'failed', unsure = false, next_at = since")  # as a believed Absent leaves it
    inner.suspects = {"paid"}
    with inner.open_transaction() as tx:
        begun = begin.begin_calls(inner, tx, question, Feed(keys=[(1,)]), read_clocks(SYSTEM_CLOCK))
    assert len(begun.in_flights) == 1
    assert world.attempt().state is State.BEGUN


def test_a_call_in_the_air_keeps_its_deadline_when_the_database_went_back(world: World) -> None:
    gateway = charging(world, ASK)
    gateway.plan(1, "hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    before = world.attempt().deadline
    inner = life.worker.incarnation
    restore.put_lost_calls_in_doubt(inner, [life.worker.queues[0].query], "a test says so")
    assert world.attempt().state is State.DOUBT
    assert world.attempt().deadline >= before


# ---- others go on ----------------------------------------------------------------------------------------------------------------
def _packs(world: World) -> None:
    @world.app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"


def test_a_new_reaction_that_cannot_be_asked_does_not_keep_the_others_from_being_started(parcels: World) -> None:
    world = parcels

    @world.app.on(Parcel, Parcel.status == "placed")
    def shipped(parcel: Parcel) -> None:
        parcel.status = "shipped"

    _packs(world)
    world.there()
    world.run("delete from groundstate_reaction where name <> ''")
    world.run("drop table parcels")
    life = world.worker()
    until(lambda: any(lane.is_enabled for lane in life.worker.queues))
    world.orders(3)
    until(lambda: world.count(Order.status == "packed") == 3)


def test_a_failed_attempt_whose_table_is_gone_does_not_stop_the_backlog_of_others(parcels: World) -> None:
    world = parcels

    @world.app.on(Parcel, Parcel.status == "placed", retry=Retry(first=ms(10), longest=ms(20)))
    def shipped(parcel: Parcel) -> None:
        raise ValueError(parcel.id)

    _packs(world)
    world.add(Parcel(id=1))
    first = world.worker()
    until(lambda: world.states() == ["failed"])
    first.stop()
    world.run("drop table parcels")
    world.worker()
    world.orders(3)
    until(lambda: world.count(Order.status == "packed") == 3)


def test_an_outcome_whose_table_is_gone_waits_and_the_others_go_on(parcels: World) -> None:
    world = parcels
    gateway = charging(world, InDoubt.hold())
    other = world.gateway()
    other.plan(1, "done_hang")

    @ExternalService("post").call(in_doubt=InDoubt.hold())
    async def ship(parcel: Parcel) -> str:
        return await other.act(parcel.id)

    @world.app.on(Parcel, Parcel.status == "placed", call=ship)
    def shipped(parcel: Parcel, outcome: str) -> None:
        parcel.status = outcome

    world.add(Parcel(id=1))
    life = world.worker()
    until(lambda: other.waiting == 1)
    world.run("alter table parcels rename to elsewhere")
    other.gate.set()
    until(lambda: bool(life.worker.components.call_turns._results))
    world.orders(3)
    until(lambda: world.count(Order.status == "paid") == 3)
    assert len(gateway.ledger) == 3
    world.run("alter table elsewhere rename to parcels")
    until(lambda: world.attempts() == [])
    assert world.get(Parcel, 1).status == "r1"


def test_a_doubt_of_a_reaction_that_makes_no_call_any_more_is_held_for_a_person(world: World) -> None:
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    life.kill()
    world.app.reactions.clear()

    @world.app.on(Order, Order.status == "placed", name="paid")
    def paid(order: Order) -> None:
        order.status = "paid"

    world.worker()
    until(lambda: world.states() == ["held"])
    assert world.attempt().unsure


def test_two_may_wait_until_all_is_quiet_and_one_that_gave_up_does_not_forget_the_other(world: World) -> None:
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    said: list[bool] = []
    patient = threading.Thread(target=lambda: said.append(life.worker.wait_until_idle(HANG_S)))
    patient.start()
    until(lambda: life.worker.idle_wait.is_requested)
    assert not life.worker.wait_until_idle(0.1)
    gateway.gate.set()
    patient.join(HANG_S)
    assert said == [True]
