"""Locks of others on PostgreSQL: the reports show what can be seen and name who has locked the rest, and the others are carried out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import ExternalService, InDoubt
from groundstate.engine.operate import living_workers
from groundstate.engine.sql import lock_waits
from groundstate.engine.watch import handler_locks, locked_tables
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.store import postgres
from tests.engine.kit import Base, Order, until
from tests.others_go_on.conftest import ONE, OTHERS, Beside, a_world


class Others(DeclarativeBase): ...


class Box(Others):
    __tablename__ = "boxes"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")


class Audit(Others):
    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True)
    words: Mapped[str] = mapped_column(default="")


@pytest.fixture
def beside(postgres_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[Beside]:
    with a_world(postgres_url, caplog, Base, Others) as made:

        @made.app.on(Box, Box.status == "open")
        def shut(box: Box) -> None:
            box.status = "shut"

        made.handled(lambda _order: None)
        made.add(Box(id=1))
        yield made


@pytest.fixture
def audited(postgres_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Beside]:
    """Boxes, of which the handler of each writes to the table audit, which no condition reads: beside the orders, whose handler does not.

    A box whose status is 'open' updates the first row of audit, one that is 'plain' writes nothing there, and the others insert a row.
    """
    monkeypatch.setattr(postgres, "WAIT", timedelta(seconds=1))
    monkeypatch.setattr(lock_waits, "HELD_FOR", timedelta())
    monkeypatch.setattr(handler_locks, "LONGEST_S", 0.5)
    with a_world(postgres_url, caplog, Base, Others) as made:

        @made.app.on(Box, Box.status.in_(["open", "noted", "plain"]))
        def packed(box: Box, session: Session) -> None:
            if box.status == "open":
                session.get_one(Audit, 1).words = f"box {box.id}"
            elif box.status == "noted":
                session.add(Audit(words=f"box {box.id}"))
            box.status = "packed"

        @ExternalService("desk").call(in_doubt=InDoubt.repeat())
        async def ask(_box: Box) -> str:
            return "stamped"

        @made.app.on(Box, Box.status.in_(["to stamp", "to list"]), call=ask)
        def stamped(box: Box, outcome: str, session: Session) -> None:
            if box.status == "to stamp":
                session.get_one(Audit, 1).words = outcome
            else:
                session.add(Audit(words=outcome))
            box.status = "packed"

        made.handled(lambda _order: None)
        made.add(Audit())  # the row 1
        yield made


def packed_boxes(beside: Beside) -> set[int]:
    with beside.engine.connect() as connection:
        return set(connection.scalars(text("SELECT id FROM boxes WHERE status = 'packed'")))


@contextmanager
def waits_for_locks(waits: list[str]) -> Iterator[None]:
    """Notes each statement that waited for a lock in vain."""

    def met(context: Any) -> None:
        if getattr(context.original_exception, "sqlstate", None) == "55P03":
            waits.append(str(context.statement))

    event.listen(Engine, "handle_error", met)
    try:
        yield
    finally:
        event.remove(Engine, "handle_error", met)


@contextmanager
def somebody(beside: Beside, statement: str) -> Iterator[str]:
    """A transaction of somebody else that said this and idles; how he is named."""
    engine = create_engine(beside.engine.url, connect_args={"application_name": "console"})
    with engine.connect() as theirs, theirs.begin():
        theirs.execute(text(statement))
        yield f"pid {theirs.scalar(text('SELECT pg_backend_pid()'))} (console, idle in transaction)"
    engine.dispose()


def test_a_locked_table_hides_its_own_reactions_alone(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_waits, "SEEN_WITHIN", timedelta(milliseconds=50))
    with somebody(beside, "LOCK TABLE boxes IN ACCESS EXCLUSIVE MODE") as he:
        beside.placed()
        beside.worker()
        beside.until_done()
        until(lambda: beside.told("reaction_barred"))
        words = f"{he} has locked the table boxes"
        report = beside.pending()
        assert {name: words in said for name, said in report.unseen.items()} == {"shut": True}
        assert [one.reaction for one in report.to_do] == ["done"]
        assert words in (beside.status("shut").unseen or "")
        assert (beside.status().rows, beside.status().unseen) == (0, None)
        assert words in beside.why_of("boxes", "1").answers[0].next
        assert beside.why(2).next == "nothing: its condition does not hold"
    until(lambda: beside.pending().to_do[0].rows == 0 and not beside.pending().unseen)
    (told,) = beside.told("reaction_barred")
    assert told.startswith(f"WARNING shut waits: {words}")
    assert told.endswith("; the others go on")


@pytest.mark.parametrize("mode", ["ACCESS EXCLUSIVE", "SHARE"])
def test_a_locked_table_is_waited_for_once_and_not_by_each_reaction_on_it(
    beside: Beside, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """SHARE: as CREATE INDEX takes it, which lets readers in and no writer."""
    monkeypatch.setattr(locked_tables, "LONGEST_S", 0.05)
    monkeypatch.setattr(postgres, "WAIT", timedelta(milliseconds=500))
    for number in range(4):

        def _shut(box: Box) -> None:
            box.status = "shut"

        beside.app.on(Box, Box.status == f"open {number}", name=f"shut{number}")(_shut)
    beside.placed()
    waited: list[str] = []

    def met(context: Any) -> None:
        if getattr(context.original_exception, "sqlstate", None) == "55P03":
            waited.append(str(context.statement))

    life = beside.worker()
    beside.until_done()
    life.quiet()
    lane = next(queue for queue in life.worker.queues if queue.name == "shut")
    lane.postponement.wait_for_acceptance()  # until somebody has locked the table
    beside.add(Box(id=2))
    looked: list[int] = []
    really = locked_tables.recheck_barred_queues

    def look(worker_state: WorkerState) -> bool:
        looked.append(sum(part.postponement.barred is not None for part in worker_state.all_queues))
        return really(worker_state)

    with somebody(beside, f"LOCK TABLE boxes IN {mode} MODE"):
        event.listen(Engine, "handle_error", met)
        try:
            lane.postponement.admit()
            life.sweep()
            until(lambda: len(beside.told("reaction_barred")) == 5)
            monkeypatch.setattr(locked_tables, "recheck_barred_queues", look)
            waited.clear()
            until(lambda: looked.count(5) >= 10)
            beside.add(Order(id=500))
            until(lambda: 500 in beside.done())
        finally:
            event.remove(Engine, "handle_error", met)
    assert waited == [], "it is waited for again"
    until(lambda: len(beside.told("reaction_free")) == 5)
    until(lambda: not any(part.postponement.barred for part in life.worker.queues))


@pytest.mark.usefixtures("locks_told_at_once")
def test_an_idle_transaction_on_a_row_keeps_that_row_alone(beside: Beside) -> None:
    beside.placed()
    with somebody(beside, "SELECT id FROM orders WHERE id = 1 FOR UPDATE") as he:
        beside.worker()
        beside.until_done()
        (found,) = beside.pending().locked
        assert (found.reaction, found.record, f"pid {found.pid} ({found.who})", found.ours) == ("done", str(ONE), he, False)
        assert (beside.status().rows, beside.status().first) == (1, str(ONE))
        assert f"waits until {he} unlocks its row" in beside.why().next
        assert beside.attempts() == [], "it is tried, and that somebody has locked it is no failure of it"
    until(lambda: ONE in beside.done())


@pytest.mark.parametrize("table", ["groundstate_attempt", "groundstate_worker", "groundstate_reaction"])
def test_a_lock_on_a_table_of_ours_is_told_and_all_goes_on_when_it_is_released(
    beside: Beside, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "WAIT", timedelta(milliseconds=100))
    life = beside.worker()
    life.quiet()
    with somebody(beside, f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE") as he:
        beside.placed()
        until(lambda: f"{he} has locked the table {table}" in (life.worker.worker_health().trouble or ""), life.worker.worker_health)
        until(lambda: any(he in line for line in beside.told("database_trouble")))
    beside.until_done()
    until(lambda: life.worker.current_trouble is None)
    until(lambda: len(beside.told("database_back")) == 1)
    assert beside.told("turn_failed") == []


def test_a_locked_table_that_only_a_handler_writes_keeps_that_reaction_alone(audited: Beside) -> None:
    waits: list[str] = []
    with somebody(audited, "LOCK TABLE audit IN SHARE MODE") as he:
        audited.add(*[Box(id=number, status="noted") for number in range(1, 11)])
        with waits_for_locks(waits):
            audited.worker()
            until(lambda: audited.told("reaction_barred"))
            audited.placed()
            audited.until_done()
            words = f"{he} has locked the table audit"
            until(lambda: words in audited.why_of("boxes", "1").answers[0].next, lambda: audited.why_of("boxes", "1"))
        assert packed_boxes(audited) == set()
        assert len(waits) <= 1 + 3, "\n".join(one[:60] for one in waits)
        assert audited.why_of("boxes", "1").answers[0].next.endswith("it is tried again by itself")
    until(lambda: packed_boxes(audited) == set(range(1, 11)))
    (told,) = audited.told("reaction_barred")
    assert told.startswith(f"WARNING packed waits: {words}")
    assert told.endswith("; the others go on")
    assert len(audited.told("reaction_free")) == 1
    assert audited.told("handler_meets_lock") == audited.told("handler_failed") == audited.told("reaction_waits") == []
    assert audited.attempts() == []


def test_a_locked_row_that_one_handler_writes_keeps_that_record_alone(audited: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    with somebody(audited, "SELECT id FROM audit WHERE id = 1 FOR UPDATE") as he:
        audited.add(Box(id=1), *[Box(id=number, status="noted") for number in range(2, OTHERS + 2)])
        audited.worker()
        until(lambda: packed_boxes(audited) == set(range(2, OTHERS + 2)))
        monkeypatch.setattr(postgres, "WAIT", timedelta(seconds=50))  # nothing waits so long any more: only the record itself is tried
        audited.placed()
        audited.until_done()
        audited.add(Box(id=500, status="noted"))
        until(lambda: 500 in packed_boxes(audited))
        until(lambda: "tried again by itself" in audited.why_of("boxes", "1").answers[0].next, lambda: audited.why_of("boxes", "1"))
        words = f"locks on the table audit are held by {he}"
        next_ = audited.why_of("boxes", "1").answers[0].next
        assert next_.startswith("waits: its handler met a lock of another transaction: ")
        assert words in next_
        (told_,) = living_workers.handler_locks_in_words(audited.pending().workers)
        assert told_.startswith("packed on 1 waits: ")
        assert words in told_
        assert 1 not in packed_boxes(audited)
    until(lambda: 1 in packed_boxes(audited))
    (told,) = audited.told("handler_meets_lock")
    assert told.startswith("WARNING packed on boxes 1 waits: its handler met a lock of another transaction: ")
    assert words in told
    assert told.endswith("; it is tried again by itself, and the others go on")
    assert audited.attempts() == []
    assert audited.told("handler_failed") == audited.told("reaction_waits") == []


def test_when_every_handler_needs_a_locked_row_only_their_reaction_waits(audited: Beside) -> None:
    with somebody(audited, "SELECT id FROM audit WHERE id = 1 FOR UPDATE"):
        audited.add(*[Box(id=number) for number in range(1, 21)])
        audited.worker()
        until(lambda: audited.told("handler_meets_lock"))
        audited.placed()
        audited.until_done()
        assert packed_boxes(audited) == set()
    until(lambda: packed_boxes(audited) == set(range(1, 21)))
    assert audited.attempts() == []
    assert audited.told("handler_failed") == audited.told("reaction_waits") == []


def test_a_locked_table_that_few_handlers_write_keeps_their_records_alone(audited: Beside) -> None:
    with somebody(audited, "LOCK TABLE audit IN SHARE MODE") as he:
        audited.add(Box(id=1, status="noted"), *[Box(id=number, status="plain") for number in range(2, 21)])
        audited.worker()
        until(lambda: packed_boxes(audited) == set(range(2, 21)))
        waits: list[str] = []
        with waits_for_locks(waits):
            until(lambda: len(waits) >= 2)  # the first record was tried again
        audited.add(*[Box(id=number, status="plain") for number in range(21, 26)])
        until(lambda: packed_boxes(audited) == set(range(2, 26)))
    until(lambda: packed_boxes(audited) == set(range(1, 26)))
    (told,) = audited.told("handler_meets_lock")
    assert f"locks on the table audit are held by {he}" in told
    assert audited.told("reaction_barred") == audited.told("reaction_waits") == []


def test_the_outcome_of_a_call_whose_handler_meets_a_locked_row_waits_alone(audited: Beside) -> None:
    with somebody(audited, "SELECT id FROM audit WHERE id = 1 FOR UPDATE") as he:
        audited.add(Box(id=1, status="to stamp"), *[Box(id=number, status="to list") for number in range(2, 31)])
        audited.worker()
        until(lambda: packed_boxes(audited) == set(range(2, 31)), lambda: packed_boxes(audited))
        audited.placed()
        audited.until_done()
        audited.add(Box(id=500, status="to list"))
        until(lambda: 500 in packed_boxes(audited))
        assert 1 not in packed_boxes(audited)
    until(lambda: 1 in packed_boxes(audited))
    (told,) = audited.told("handler_meets_lock")
    assert told.startswith("WARNING stamped on boxes 1 waits: ")
    assert f"locks on the table audit are held by {he}" in told
    assert audited.attempts() == []
    assert audited.told("handler_failed") == audited.told("turn_failed") == audited.told("database_trouble") == []


def test_the_outcomes_of_calls_wait_while_a_table_is_locked_that_their_handler_writes(audited: Beside) -> None:
    with somebody(audited, "LOCK TABLE audit IN SHARE MODE") as he:
        audited.add(*[Box(id=number, status="to list") for number in range(1, 31)])
        audited.worker()
        until(lambda: audited.told("reaction_barred"))
        audited.placed()
        audited.until_done()
        assert packed_boxes(audited) == set()
    until(lambda: packed_boxes(audited) == set(range(1, 31)))
    (told,) = audited.told("reaction_barred")
    assert told.startswith(f"WARNING stamped waits: {he} has locked the table audit")
    assert audited.attempts() == []
    assert audited.told("handler_failed") == audited.told("turn_failed") == audited.told("database_trouble") == []
