"""Locks of others on PostgreSQL: the reports show what can be seen and name who has locked the rest, and the others are carried out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate.engine.sql import lock_waits
from groundstate.engine.watch import locked_tables
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.store import postgres
from tests.engine.kit import Base, Order, until
from tests.others_go_on.conftest import ONE, Beside, a_world


class Others(DeclarativeBase): ...


class Box(Others):
    __tablename__ = "boxes"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")


@pytest.fixture
def beside(postgres_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[Beside]:
    with a_world(postgres_url, caplog, Base, Others) as made:

        @made.app.on(Box, Box.status == "open")
        def shut(box: Box) -> None:
            box.status = "shut"

        made.handled(lambda _order: None)
        made.add(Box(id=1))
        yield made


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
