"""Stored values that no driver, or no type, makes anything of: their records fail by themselves, and telling of them raises nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import JSON
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import Absent, ExternalService, InDoubt, InOrder, UtcDateTime
from groundstate.cli.check import _check_store as check
from groundstate.engine.call import call_turn
from groundstate.engine.operate import actions
from groundstate.engine.sql import unreadable_columns
from tests.engine.kit import CALL_LIMIT, HANG_S, Base, ms, until
from tests.others_go_on.conftest import MORE, ONCE, ONE, OTHERS, Beside, a_world

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


class Scanned(DeclarativeBase):
    pass


class Scan(Scanned):
    __tablename__ = "scans"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    name: Mapped[str | None] = mapped_column(default="Muller")
    data: Mapped[Any] = mapped_column(JSON, default=dict)


@pytest.fixture
def beside(database_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[Beside]:
    """Scans, on each store in turn."""
    with a_world(database_url, caplog, Scanned, kind=Scan) as made:
        yield made


@pytest.fixture
def on_sqlite(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[Beside]:
    """Scans, on SQLite, which keeps any bytes."""
    with a_world(sqlite_url, caplog, Scanned, kind=Scan) as made:
        yield made


def in_peace(_scan: Any) -> None:
    """The handler of a record that was never read."""


BYTES = {
    "text": ("name", "CAST(x'4dfc6c6c6572' AS TEXT)", r"scans.name holds b'M\xfcller'"),
    "json": ("data", "x'7b2261223a22ff227d'", r"""scans.data holds b'{"a":"\xff"}'"""),
    "json_text": ("data", "CAST(x'ff' AS TEXT)", r"scans.data holds b'\xff'"),
}


@pytest.mark.parametrize("calls", [False, True], ids=["by_a_handler", "by_a_call"])
@pytest.mark.parametrize(("column", "value", "said"), BYTES.values(), ids=BYTES)
def test_bytes_that_are_no_text_fail_their_record_alone(on_sqlite: Beside, column: str, value: str, said: str, calls: bool) -> None:
    if calls:
        on_sqlite.called(lambda: "receipt")
    else:
        on_sqlite.handled(in_peace)
    on_sqlite.placed()
    on_sqlite.run(f"UPDATE scans SET {column} = {value} WHERE id = {ONE}")
    on_sqlite.go_on(said, event="record_unreadable")
    assert len(on_sqlite.told("attempt_kept")) == 1
    assert "[SQL" not in on_sqlite.attempt().error  # type: ignore[operator]  # it failed
    assert on_sqlite.told("batch_failed") == on_sqlite.told("begin_failed") == on_sqlite.told("turn_failed") == []
    assert [line.getMessage() for line in on_sqlite.said.records if line.levelno > logging.ERROR] == []


def test_why_names_the_column_before_any_worker_met_it(on_sqlite: Beside) -> None:
    on_sqlite.app.on(Scan, Scan.status == "placed", name="done", retry=ONCE, occurrence=[Scan.name])(_named)
    on_sqlite.placed()
    on_sqlite.run(f"UPDATE scans SET name = CAST(x'ff' AS TEXT) WHERE id = {ONE}")
    assert r"scans.name holds b'\xff'" in on_sqlite.why().next
    on_sqlite.worker()
    until(lambda: on_sqlite.states() == ["held"], on_sqlite.attempts)
    assert r"scans.name holds b'\xff'" in str(on_sqlite.attempt().error)
    assert on_sqlite.pending().held[0].record == str(ONE)


def _named(scan: Scan) -> None:
    scan.status = "done"


def test_an_error_of_the_words_themselves_hides_no_error(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: object) -> Any:
        raise RuntimeError("no words")

    monkeypatch.setattr(unreadable_columns, "_stored_bytes", raises)
    beside.handled(in_peace)
    beside.placed()
    spoil(beside)
    beside.go_on("its record cannot be read", event="record_unreadable")


def spoil(beside: Beside) -> None:
    """The record cannot be loaded any more, as after an edit by hand."""
    digits = "9" * 5000  # of which Python makes no number
    beside.run("UPDATE scans SET data = :said WHERE id = :one", said=f'{{"n": {digits}}}', one=ONE)


# ---- while the call is in the air ------------------------------------------------------------------------------------------------
class Held:
    """A call that is held up, with an outcome or an exception."""

    def __init__(self) -> None:
        self.came, self.gate, self.made = threading.Event(), threading.Event(), 0

    def __call__(self) -> str:
        self.made += 1
        self.came.set()
        assert self.gate.wait(HANG_S)
        return "the receipt"


@pytest.mark.parametrize("in_doubt", [InDoubt.hold(), InDoubt.repeat()], ids=["hold", "repeat"])
def test_an_outcome_of_a_record_that_cannot_be_read_any_more_is_held_and_concluded_once_it_is_mended(
    beside: Beside, in_doubt: InDoubt
) -> None:
    call, taken = Held(), list[str]()
    beside.called(call, in_doubt=in_doubt, handler=taken.append)
    beside.placed()
    life = beside.worker()
    assert call.came.wait(HANG_S)
    spoil(beside)
    call.gate.set()
    until(lambda: beside.states() == ["held"], beside.attempts)
    beside.until_done()
    attempt = beside.attempt()
    assert "the receipt" in str(attempt.outcome)
    beside.listed("its record cannot be read", "held")
    assert """scans.data holds '{"n": 999""" in str(attempt.why)
    beside.told_once("its record cannot be read", "outcome_held")
    assert "a person" in beside.why().next
    assert life.worker.stop(5.0).in_doubt == 0
    beside.run(f"UPDATE scans SET data = '{{}}' WHERE id = {ONE}")
    with beside.person() as person:
        actions.retry(person, "done", str(ONE))
    assert (taken, call.made, beside.states()) == (["the receipt"], 1, [])


def test_a_call_that_ends_in_doubt_or_undone_needs_no_record_for_that(beside: Beside) -> None:
    call = Held()

    def ask() -> str:
        call()
        raise RuntimeError("the line went dead")

    beside.called(ask, in_doubt=InDoubt.hold())
    beside.placed()
    beside.worker()
    assert call.came.wait(HANG_S)
    spoil(beside)
    call.gate.set()
    until(lambda: beside.states() == ["held"], beside.attempts)
    beside.listed("the line went dead", "held")


def test_a_lookup_finds_the_outcome_of_a_record_that_cannot_be_read(beside: Beside) -> None:
    lookup, answers = Held(), list[Any]()
    service = ExternalService("desk")

    def ask(scan: Scan) -> str:
        if scan.id == ONE:
            raise RuntimeError("the line went dead")
        return "receipt"

    asked = service.call(in_doubt=InDoubt.lookup(settle_after=ms(1)), retry=MORE, timeout=CALL_LIMIT)(ask)

    @asked.lookup
    def found(scan: Scan) -> str | Absent:
        lookup()
        answers.append(scan.id)
        return "it was done"

    def done(scan: Scan, outcome: str) -> None:
        scan.status = "done"

    beside.app.on(Scan, Scan.status == "placed", name="done", call=asked)(done)
    beside.placed()
    beside.worker()
    assert lookup.came.wait(HANG_S)
    spoil(beside)
    lookup.gate.set()
    until(lambda: beside.states() == ["held"], beside.attempts)
    assert "it was done" in str(beside.attempt().outcome)
    beside.listed("its record cannot be read", "held")
    assert answers == [ONE]


def test_an_outcome_that_cannot_be_written_down_is_in_the_log_when_the_worker_ends_and_its_call_is_counted(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_turn, "LAST_WRITES_S", 0.1)
    call = Held()
    beside.called(call, in_doubt=InDoubt.hold())
    beside.placed()
    life = beside.worker()
    assert call.came.wait(HANG_S)
    beside.until_done()
    life.broken = True
    call.gate.set()
    until(lambda: life.worker.components.call_turns._results)
    assert life.worker.stop(0.1).in_doubt == 1
    (line,) = beside.told("outcome_unwritten")
    assert line.startswith(f"ERROR done on scans {ONE}: the outcome of its call could not be written before the worker ended")
    assert line.endswith('outcome: ["the receipt"]')
    assert beside.states() == ["begun"]  # which the next worker adopts


def test_lines_of_a_transaction_that_is_rolled_back_are_not_written(beside: Beside) -> None:
    beside.handled(in_peace)
    beside.placed()
    spoil(beside)
    refused = [2]
    life = beside.worker(start=False)
    write = life.worker.incarnation.open_transaction

    @contextmanager
    def refusing(**given: Any) -> Iterator[Any]:
        with write(**given) as tx:
            yield tx
            if refused[0] and life.worker.incarnation.after_commit._waiting:
                refused[0] -= 1
                raise OperationalError("commit", None, Exception("database is locked"))

    vars(life.worker.incarnation)["open_transaction"] = refusing
    life.worker.start()
    until(lambda: beside.states() == ["held"], beside.attempts)
    until(lambda: beside.told("attempt_kept"))
    assert refused == [0]
    assert len(beside.told("attempt_kept")) == len(beside.told("record_unreadable")) == 1


# ---- keys ------------------------------------------------------------------------------------------------------------------------
class Named(DeclarativeBase):
    pass


class Note(Named):
    __tablename__ = "notes"
    id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


KEYS = {
    "not_utf_8": ("CAST(x'4dfc6c6c6572' AS TEXT)", "4dfc6c6c6572", r"b'M\xfcller' is text that is not UTF-8"),
    "a_nul": ("CAST(x'630064' AS TEXT)", r"c\x00d", r"'c\x00d' has a NUL in it"),
    "a_nul_first": ("CAST(x'0062' AS TEXT)", r"\x00b", r"'\x00b' has a NUL in it"),
}


@pytest.mark.parametrize("calls", [False, True], ids=["by_a_handler", "by_a_call"])
@pytest.mark.parametrize(("key", "record", "said"), KEYS.values(), ids=KEYS)
def test_a_text_by_which_no_record_is_found_is_held_and_no_record_is_taken_for_it(
    sqlite_url: str, caplog: pytest.LogCaptureFixture, key: str, record: str, said: str, calls: bool
) -> None:
    with a_world(sqlite_url, caplog, Base, Named) as beside:
        called = list[str]()

        def ask(note: Note) -> str:
            called.append(note.id)
            return "done"

        def conclude(note: Note, outcome: str) -> None:
            note.status = outcome

        if calls:
            asked = ExternalService("desk").call(in_doubt=InDoubt.hold(), timeout=CALL_LIMIT)(ask)
            beside.app.on(Note, Note.status == "new", name="packed", call=asked)(conclude)
        else:
            beside.app.on(Note, Note.status == "new", name="packed")(_packed)
        beside.there()
        beside.add(*[Note(id=f"{letter}{number}") for letter in "acz" for number in range(OTHERS // 3)], Note(id="c", status="apart"))
        beside.run(f"INSERT INTO notes (id, status) VALUES ({key}, 'new')")
        assert [one.words for one in check(beside.app, beside.app.stores[0]) if said[:6] in one.words] != []
        life = beside.worker()
        until(lambda: beside.states() == ["held"], beside.attempts)
        life.quiet()
        with beside.engine.connect() as connection:
            left = connection.exec_driver_sql("SELECT hex(id), status FROM notes WHERE status <> 'done'").all()
        assert sorted(row[1] for row in left) == ["apart", "new"]
        assert beside.attempt().record == record
        assert beside.attempt().error == f"its key cannot be read: {said}" or said in str(beside.attempt().error)
        assert len(beside.told("record_unreadable")) == 1
        assert [one.record for one in beside.pending().held] == [record]
        assert beside.why_of("notes", record).answers[0].attempts[0].record == record
        assert set(called) <= {f"{letter}{number}" for letter in "acz" for number in range(OTHERS)}
        beside.run("DELETE FROM notes WHERE status = 'new'")
        with beside.person() as person:
            assert actions.forget(person, "packed", record).became == "deleted"


def _packed(note: Note) -> None:
    note.status = "done"


# ---- reports ---------------------------------------------------------------------------------------------------------------------
class Sheets(DeclarativeBase):
    pass


class Sheet(Sheets):
    __tablename__ = "sheets"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=LONG_AGO)
    line: Mapped[str | None] = mapped_column(default="a")
    round: Mapped[str | None] = mapped_column(default="r")


READ_BY: dict[str, dict[str, Any]] = {
    "status": {},
    "at": {"due": Sheet.at},
    "round": {"occurrence": [Sheet.round]},
    "line": {"in_order": InOrder(Sheet.line)},
}


@pytest.mark.parametrize("value", ["CAST(x'ff31' AS TEXT)", "x'ff31'", "CAST(x'3200' AS TEXT)"], ids=["no_text", "bytes", "a_nul"])
@pytest.mark.parametrize("column", READ_BY)
def test_the_others_go_on_and_every_report_answers_whatever_stands_in_a_column_that_the_reaction_reads(
    sqlite_url: str, caplog: pytest.LogCaptureFixture, column: str, value: str
) -> None:
    with a_world(sqlite_url, caplog, Sheets, kind=Sheet) as beside:

        def done(sheet: Sheet) -> None:
            sheet.status = "done"

        beside.app.on(Sheet, Sheet.status != "done", name="done", retry=ONCE, **READ_BY[column])(done)
        beside.add(*[Sheet(id=number) for number in range(1, 12)])
        beside.run(f"UPDATE sheets SET {column} = {value} WHERE id = {ONE}")

        def reports() -> None:
            for ask in (beside.pending, beside.status, beside.why, lambda: check(beside.app, beside.app.stores[0])):
                assert ask() is not None

        reports()
        beside.worker()
        until(lambda: beside.done() >= set(range(2, 12)), beside.attempts)
        reports()
        if value.startswith("CAST(x'ff"):
            said = [*beside.told("record_unreadable"), *beside.told("due_time_odd")]
            assert any(r"b'\xff1'" in line for line in said), said
