"""A reaction of which the database cannot be asked at all, since its statement cannot be made or its values not be given to the driver: it
waits with its reason, which all reports say, and the others are carried out. The declaration refuses most of these; here it was silent.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import BigInteger, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, undefer
from sqlalchemy.types import TypeDecorator

from groundstate import Due, ExternalService, InDoubt, InOrder, StateRefusedError, UtcDateTime
from groundstate.app import loader_options
from groundstate.cli.common import open_store_read_only
from groundstate.engine.operate.check import check_database
from groundstate.engine.operate.plan import build_plan
from groundstate.engine.recover.admission import Admission
from groundstate.engine.rows import reaction_registry
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch import missing_columns
from groundstate.rules import bound_values
from tests.engine.kit import CALL_LIMIT, Base, Order, until
from tests.others_go_on.conftest import ONCE, OTHERS, Beside, a_world
from tests.patience import HANG_S


class Picky(TypeDecorator[str]):
    """Takes no text while it is told so."""

    impl = String
    cache_ok = True
    takes = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002  # as SQLAlchemy calls it
        if not Picky.takes:
            raise AttributeError("it takes no text")
        return value


class Shelves(DeclarativeBase): ...


class Box(Shelves):
    __tablename__ = "boxes"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")
    label: Mapped[str | None] = mapped_column(Picky)
    count: Mapped[int] = mapped_column(BigInteger, default=1)
    due: Mapped[Any] = mapped_column(UtcDateTime, default=None, nullable=True)
    done: Mapped[str | None]


LIKE: Any = Box.label.like("x%")
NOT_TAKEN = "its condition cannot be asked: AttributeError: it takes no text: compare each column with a value that its type takes"


@pytest.fixture
def beside(database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Beside]:
    monkeypatch.setattr(bound_values, "reason_to_refuse_reaction", lambda *_: None)
    monkeypatch.setattr(loader_options, "check_options_fit_record", lambda *_: None)
    monkeypatch.setattr(loader_options, "check_options_compile", lambda *_: None)
    monkeypatch.setattr(loader_options, "check_options", lambda _what, given: tuple(given))
    monkeypatch.setattr(Picky, "takes", True)
    with a_world(database_url, caplog, Base, Shelves) as made:
        yield made


def shut_by(beside: Beside, *clauses: Any, load: Any = None, **options: Any) -> None:
    """The reaction that cannot be asked; with `load` it makes a call."""

    def shut(box: Box) -> None:
        box.status = "shut"

    def concluded(box: Box, _outcome: str) -> None:
        box.status = "shut"

    def ask(box: Box) -> str:
        raise AssertionError("it is not called")

    if load is None:
        beside.app.on(Box, Box.status == "open", *clauses, name="shut", **options)(shut)
    else:
        call = ExternalService("other").call(in_doubt=InDoubt.hold(), load=load)(ask)
        beside.app.on(Box, Box.status == "open", *clauses, name="shut", call=call, **options)(concluded)


def calling(beside: Beside) -> None:
    """Those beside it make a call, whose doubt would be held."""

    async def ask() -> str:
        return "receipt"

    beside.called(ask, in_doubt=InDoubt.hold(), retry=ONCE, timeout=CALL_LIMIT)


def reported(beside: Beside, words: str) -> None:
    """By each of the reports, which tell of the others as ever."""
    report = beside.pending()
    assert words in {**report.lacks, **report.unseen}["shut"]
    assert words in (beside.status("shut").lacks or "") + (beside.status("shut").unseen or "")
    assert (beside.status().lacks, beside.status().unseen) == (None, None)
    assert words in beside.why_of("boxes", "1").answers[0].next
    with open_store_read_only(beside.app.stores[0]) as (database, _lives):
        queries = [ConditionQuery(spec, database) for spec in beside.app.reactions.values()]
        planned = build_plan(beside.app.name, database, queries, [])
        found = check_database(database, queries, beside.app.stores[0].metadatas)
    assert {one.reaction: words in (one.lacks or "") for one in planned.reactions} == {"shut": True, "done": False}
    assert [one.subject for one in found if one.level == "problem" and words in one.words] == ["shut"]


def waits_while_the_others_go_on(beside: Beside, words: str) -> None:
    beside.placed()
    reported(beside, words)
    life = beside.worker()
    until(lambda: len(beside.done()) == OTHERS + 1, beside.attempts)
    until(lambda: beside.told("reaction_unfit"))
    until(lambda: life.worker.components.admission.recheck_lacking_reactions() is not None)
    (line,) = beside.told("reaction_unfit")
    assert line.startswith("ERROR shut is not carried out: ")
    assert words in line
    assert not life.ended
    assert [beside.told(event) for event in ("turn_failed", "worker_ended", "condition_unaskable")] == [[], [], []]
    assert life.worker.reasons_of_waiting_reactions["shut"].startswith(line.partition("carried out: ")[2][:20])
    assert beside.attempts() == []
    reported(beside, words)


KINDS: dict[str, Any] = {
    "of a handler": {},
    "of a call": {"load": []},
    "in order": {"in_order": InOrder(Box.status, Box.id)},
    "with a due time": {"due": Box.due},
    "with a done column": {"done_column": Box.done},
    "that may be too late": {"due": Due(Box.due, valid_for=CALL_LIMIT)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_its_type_does_not_take_keeps_its_own_reaction_waiting(beside: Beside, kind: str) -> None:
    shut_by(beside, LIKE, **KINDS[kind])
    if kind == "that may be too late":
        expires: Any = beside.app.reactions["shut"]
        expires.expired = expires.handler
    calling(beside)
    beside.there()
    beside.add(Box(id=1))
    Picky.takes = False
    waits_while_the_others_go_on(beside, NOT_TAKEN)


def test_it_goes_on_once_its_type_takes_the_value(beside: Beside) -> None:
    shut_by(beside, LIKE)
    calling(beside)
    beside.there()
    beside.add(Box(id=1, label="xy"))
    Picky.takes = False
    beside.worker()
    until(lambda: beside.told("reaction_unfit"))
    Picky.takes = True
    until(lambda: beside.get(Box, 1).status == "shut", beside.attempts)
    assert len(beside.told("reaction_fits")) == 1


@pytest.mark.parametrize("calls", [False, True], ids=["of a handler", "of a call"])
def test_a_type_that_takes_no_value_any_more_while_a_worker_runs_fails_no_record(beside: Beside, *, calls: bool) -> None:
    shut_by(beside, LIKE, load=[] if calls else None)
    calling(beside)
    beside.placed()
    life = beside.worker()
    until(lambda: len(beside.done()) == OTHERS + 1, beside.attempts)
    life.quiet()
    Picky.takes = False
    beside.run("INSERT INTO boxes (id, status, count, label) VALUES (1, 'open', 1, 'xy')")
    life.worker.components.worker_state.queue_named("shut").rows.note_keys([(1,)])
    life.turn()
    beside.add(Order(id=1000))
    until(lambda: beside.told("reaction_unfit"))
    until(lambda: 1000 in beside.done(), beside.attempts)
    assert [beside.told(event) for event in ("turn_failed", "record_unreadable", "batch_failed", "begin_failed")] == [[], [], [], []]
    assert beside.attempts() == []


def test_an_outcome_of_such_a_reaction_waits_in_hand_and_the_others_are_concluded(beside: Beside) -> None:
    came, gate = threading.Event(), threading.Event()

    @ExternalService("other").call(in_doubt=InDoubt.repeat(), timeout=CALL_LIMIT, stop_when_overtaken=True)
    async def ask(box: Box) -> str:
        came.set()
        while not gate.is_set():  # noqa: ASYNC110  # an event of threads
            await asyncio.sleep(0.01)
        return "receipt"

    @beside.app.on(Box, Box.status == "open", LIKE, name="shut", call=ask)
    def shut(box: Box, outcome: str) -> None:
        box.status = outcome

    calling(beside)
    beside.there()
    beside.add(Box(id=1, label="xy"))
    life = beside.worker()
    assert came.wait(HANG_S)
    Picky.takes = False
    life.worker.loop.iteration._next_call_check = 0.0  # it is looked whether the call was overtaken
    life.turn()
    beside.placed()
    until(lambda: len(beside.done()) == OTHERS + 1, beside.attempts)
    gate.set()
    until(lambda: beside.told("reaction_unfit"))
    beside.add(Order(id=1000))
    until(lambda: 1000 in beside.done(), beside.attempts)
    assert beside.states() == ["begun"]
    assert [beside.told(event) for event in ("turn_failed", "conclude_failed")] == [[], []]
    Picky.takes = True
    until(lambda: beside.get(Box, 1).status == "receipt", beside.attempts)
    assert beside.attempts() == []


def test_a_new_reaction_with_such_a_value_is_named_by_init_and_the_others_are_started(beside: Beside) -> None:
    shut_by(beside, LIKE)
    calling(beside)
    Picky.takes = False
    with pytest.raises(StateRefusedError, match=f"all else was done, but these reactions are not started: shut: {NOT_TAKEN}"):
        beside.there()
    beside._there = True
    beside.run("INSERT INTO boxes (id, status, count) VALUES (1, 'open', 1)")
    waits_while_the_others_go_on(beside, NOT_TAKEN)


def test_a_new_reaction_with_such_a_value_that_is_left_as_a_baseline_is_named_by_init(beside: Beside) -> None:
    shut_by(beside, LIKE)
    calling(beside)
    Picky.takes = False
    with pytest.raises(StateRefusedError, match=f"all else was done, but these reactions are not started: shut: {NOT_TAKEN}"):
        beside.app.init(tables=True, baseline=["shut", "done"])
    with beside.engine.connect() as connection:
        assert sorted(reaction_registry.read_known_reactions(connection, beside.app.name)) == ["done"]


def test_an_integer_that_sqlite_has_not_keeps_its_own_reaction_waiting(
    sqlite_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bound_values, "reason_to_refuse_reaction", lambda *_: None)
    words = "its condition cannot be asked: OverflowError: Python int too large to convert to SQLite INTEGER"
    with a_world(sqlite_url, caplog, Base, Shelves) as beside:
        shut_by(beside, Box.count < 2**64)
        calling(beside)
        with pytest.raises(StateRefusedError, match=f"these reactions are not started: shut: {words}"):
            beside.there()
        beside._there = True
        beside.add(Box(id=1))
        waits_while_the_others_go_on(beside, words)


@pytest.mark.parametrize("load", [["label"], [Box.label], [Box], [undefer(Order.note)]], ids=["text", "column", "class", "another root"])
def test_a_load_that_is_none_keeps_its_own_reaction_waiting(beside: Beside, load: Any) -> None:
    shut_by(beside, load=load)
    calling(beside)
    beside.there()
    beside.add(Box(id=1))
    waits_while_the_others_go_on(beside, "its record cannot be loaded: ArgumentError: ")


def test_rows_that_were_left_as_a_baseline_of_such_a_reaction_stay_and_the_others_are_carried_out(beside: Beside) -> None:
    shut_by(beside, LIKE)
    calling(beside)
    Shelves.metadata.create_all(beside.engine)
    beside.run("INSERT INTO boxes (id, status, count, label) VALUES (1, 'open', 1, 'xy')")
    beside.app.init(tables=True, baseline=["shut"], accept=True)
    beside._there = True
    Picky.takes = False
    beside.placed()
    life = beside.worker()
    until(lambda: len(beside.done()) == OTHERS + 1, beside.attempts)
    until(lambda: beside.told("reaction_unfit"))
    life.sweep()
    assert [(one.state.value, one.why) for one in beside.attempts()] == [("held", "baseline")]
    assert beside.told("turn_failed") == []


@pytest.mark.parametrize("what", ["warn", "look_over"])
def test_whatever_a_courtesy_of_the_start_raises_ends_no_worker(beside: Beside, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("enough")

    if what == "warn":
        monkeypatch.setattr(Admission, "log_start_warnings", fails)
    else:
        monkeypatch.setattr(missing_columns, "_find_misfit", fails)
    calling(beside)
    beside.placed()
    life = beside.worker()
    until(lambda: len(beside.done()) == OTHERS + 1, beside.attempts)
    life.turn()
    life.turn()
    assert not life.ended
    assert beside.told("worker_ended") == []
