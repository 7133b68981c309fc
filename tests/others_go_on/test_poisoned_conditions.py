"""One row on which a condition raises: it fails by itself, and the others go on."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import JSON, func, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import Due, ExternalService, InDoubt, InOrder, UtcDateTime
from groundstate.cli.common import open_store_read_only
from groundstate.engine.operate import actions
from groundstate.engine.operate.check import check_database
from groundstate.engine.operate.plan import build_plan
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch import raising_conditions
from tests.engine.kit import CALL_LIMIT, HANG_S, until
from tests.others_go_on.conftest import MORE, ONCE, ONE, OTHERS, Beside, a_world

OF_ONE = "its condition cannot be asked of this record"
GOOD = {"pages": 7}
MANY = range(3, 2000, 80)  # 25 of them


shelves = itertools.count()


class Papers(DeclarativeBase): ...


class Paper(Papers):
    __tablename__ = "papers"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    shelf: Mapped[str] = mapped_column(default=lambda: f"shelf {next(shelves) % 5}")
    size: Mapped[int | None] = mapped_column(default=7)
    data: Mapped[Any] = mapped_column(JSON, default=lambda: dict(GOOD))
    at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=lambda: datetime.now(UTC) - timedelta(hours=1))


class Sheet(Papers):
    __tablename__ = "sheets"
    book: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    data: Mapped[Any] = mapped_column(JSON, default=lambda: dict(GOOD))


LONG = Paper.data["pages"].as_integer() > 5


@pytest.fixture
def beside(database_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[Beside]:
    with a_world(database_url, caplog, Papers, kind=Paper) as made:
        yield made


def spoil(beside: Beside, *keys: int) -> None:
    """The condition raises for these from now on."""
    said = '{"pages": "unknown"}' if beside.postgres else "not json"
    with beside.engine.begin() as connection:
        connection.execute(text("UPDATE papers SET data = :said WHERE id = :key"), [{"said": said, "key": key} for key in keys])


def mend(beside: Beside, *keys: int, **values: Any) -> None:
    with beside.engine.begin() as connection:
        connection.execute(update(Paper).where(Paper.id.in_(keys)).values(data=GOOD, **values))


def words_of(beside: Beside) -> str:
    return "invalid input syntax for type integer" if beside.postgres else "malformed JSON"


def leave_in_peace(_paper: Any) -> None:
    """The handler of those that the condition raises for, once they are mended."""


def calling(beside: Beside, during: Callable[[Paper], None] = leave_in_peace, **options: Any) -> None:
    """A reaction with a call, which does this as well."""

    def ask(paper: Paper) -> str:
        during(paper)
        return "receipt"

    asked = ExternalService("office").call(in_doubt=InDoubt.repeat(), retry=ONCE, timeout=CALL_LIMIT)(ask)

    def done(paper: Paper, _outcome: str) -> None:
        paper.status = "done"

    beside.app.on(Paper, Paper.status == "placed", LONG, name="done", call=asked, **options)(done)


def spoiled(beside: Beside) -> None:
    beside.there()
    beside.placed()
    spoil(beside, *beside.ones)


def told_without_tracebacks(beside: Beside) -> None:
    assert [line.getMessage() for line in beside.said.records if line.exc_info] == []
    assert beside.told("condition_failed") == beside.told("batch_failed") == beside.told("begin_failed") == []
    assert len(beside.told("condition_raises")) == 1


def test_a_row_is_held_and_the_others_are_carried_out_by_a_handler(beside: Beside) -> None:
    beside.handled(leave_in_peace, LONG)
    spoiled(beside)
    beside.go_on(f"{OF_ONE}: {words_of(beside)}", event="record_unreadable")
    told_without_tracebacks(beside)
    report = beside.pending()
    assert (report.unseen, [one.rows for one in report.to_do]) == ({}, [0])
    assert (beside.status().rows, beside.status().unseen) == (0, None)
    assert f"{OF_ONE}: {words_of(beside)}" in beside.why().next
    beside.lives[0].quiet()


def test_a_row_with_which_a_function_or_an_operator_cannot_compute_is_held(beside: Beside) -> None:
    clause, bad, words = (100 / Paper.size > 5, 0, "division by zero") if beside.postgres else (func.floor(Paper.size) == 7, None, "raised")
    beside.handled(leave_in_peace, clause)
    beside.there()
    beside.placed()
    beside.run("UPDATE papers SET size = :bad WHERE id = :key", bad=bad, key=ONE)
    beside.go_on(words, event="record_unreadable")
    told_without_tracebacks(beside)


def test_a_row_is_held_and_the_others_are_carried_out_by_a_call(beside: Beside) -> None:
    calling(beside)
    spoiled(beside)
    beside.go_on(f"{OF_ONE}: {words_of(beside)}", event="record_unreadable")
    told_without_tracebacks(beside)


def test_a_row_is_held_and_the_others_are_carried_out_when_they_are_due(beside: Beside) -> None:
    beside.handled(leave_in_peace, LONG, due=Paper.at)
    spoiled(beside)
    beside.go_on(f"{OF_ONE}: {words_of(beside)}", event="record_unreadable")
    told_without_tracebacks(beside)


OF_LINES = {"in_order": InOrder(Paper.shelf, Paper.id)}


@pytest.mark.parametrize(
    ("calls", "options"),
    [(True, OF_LINES), (False, OF_LINES), (True, {"per": Paper.shelf})],
    ids=["a call in order", "a handler in order", "a call per shelf"],
)
def test_a_row_is_held_and_those_of_its_line_go_on(beside: Beside, options: dict[str, Any], *, calls: bool) -> None:
    if calls:
        calling(beside, **options)
    else:
        beside.handled(leave_in_peace, LONG, **options)
    spoiled(beside)
    beside.worker()
    beside.until_done()
    until(lambda: beside.states() == ["held"], beside.attempts)
    beside.listed(f"{OF_ONE}: {words_of(beside)}", "held")


def test_a_due_time_that_raises_for_a_row_is_told_and_the_others_are_carried_out(beside: Beside) -> None:
    pages = Paper.data["pages"].as_integer()
    at = func.to_timestamp(pages) if beside.postgres else func.datetime(pages, "unixepoch")
    beside.handled(leave_in_peace, due=at, occurrence=[Paper.at])
    spoiled(beside)
    beside.go_on(words_of(beside), event="record_unreadable")


def test_what_is_too_late_is_answered_beside_it(beside: Beside) -> None:
    @beside.app.on(Paper, Paper.status == "placed", LONG, due=Due(Paper.at, valid_for=timedelta(minutes=1)), retry=ONCE)
    def done(_paper: Paper) -> None:
        raise AssertionError("it is too late")

    @done.expired
    def late(paper: Paper) -> None:
        paper.status = "done"

    spoiled(beside)
    beside.worker()
    beside.until_done()
    until(lambda: beside.states() == ["held"], beside.attempts)


def test_an_outcome_of_a_row_that_was_spoiled_waits_and_the_others_are_concluded(beside: Beside) -> None:
    gate, came = threading.Event(), threading.Event()

    def during(paper: Paper) -> None:
        if paper.id == ONE:
            came.set()
            assert gate.wait(HANG_S)

    calling(beside, during)
    beside.placed()
    beside.worker()
    assert came.wait(HANG_S)
    beside.until_done()
    spoil(beside, ONE)
    beside.add(*[Paper(id=number) for number in range(1000, 1010)])
    gate.set()
    until(lambda: set(range(1000, 1010)) <= beside.done(), beside.attempts)
    assert beside.states() == ["begun"]
    until(lambda: beside.told("outcome_waits"))
    (line,) = beside.told("outcome_waits")
    assert line.startswith(f"WARNING done on papers {ONE}: the outcome of its call waits in memory until the record is mended")
    assert words_of(beside) in line
    assert "what its call says waits in memory until the record is mended" in beside.why().next
    mend(beside, ONE)
    until(lambda: ONE in beside.done(), beside.attempts)
    assert len(beside.told("outcome_waits")) == 1


def test_an_outcome_of_a_row_that_was_spoiled_is_held_when_the_worker_ends(beside: Beside) -> None:
    gate, came = threading.Event(), threading.Event()

    def during(paper: Paper) -> None:
        if paper.id == ONE:
            came.set()
            assert gate.wait(HANG_S)

    calling(beside, during)
    beside.placed()
    life = beside.worker()
    assert came.wait(HANG_S)
    beside.until_done()
    spoil(beside, ONE)
    gate.set()
    until(lambda: beside.told("outcome_waits"))
    assert life.worker.stop(HANG_S).in_doubt == 0
    attempt = beside.attempt()
    assert (attempt.state.value, attempt.unsure, "receipt" in str(attempt.outcome)) == ("held", False, True)
    beside.listed(OF_ONE, "held")
    beside.told_once(words_of(beside), "outcome_held")


def test_a_row_that_is_mended_is_carried_out_at_its_next_try(beside: Beside) -> None:
    beside.handled(leave_in_peace, LONG, retry=MORE)
    beside.worker()
    beside.placed()
    until(lambda: beside.done() >= {ONE})
    beside.add(Paper(id=OTHERS + 50, status="waits"))
    spoil(beside, OTHERS + 50)
    with beside.engine.begin() as connection:
        connection.execute(update(Paper).where(Paper.id == OTHERS + 50).values(status="placed"))
    until(lambda: beside.states() == ["held"], beside.attempts)
    mend(beside, OTHERS + 50)
    with beside.person() as person:
        assert actions.retry(person, "done", str(OTHERS + 50)).became == "failed"
    until(lambda: OTHERS + 50 in beside.done(), beside.attempts)
    assert beside.states() == []


def test_many_rows_among_thousands_are_held_and_the_others_are_carried_out(beside: Beside) -> None:
    beside.ones = MANY
    beside.handled(leave_in_peace, LONG)
    beside.there()
    beside.add(*[Paper(id=number) for number in range(1, 2001)])
    spoil(beside, *MANY)
    beside.worker()
    until(lambda: len(beside.done()) == 2000 - len(MANY), beside.attempts)
    until(lambda: beside.states() == ["held"] * len(MANY), beside.attempts)
    assert sorted(int(one.record) for one in beside.attempts()) == sorted(MANY)
    beside.add(Paper(id=3000))
    until(lambda: 3000 in beside.done())
    beside.lives[0].quiet()


def test_a_row_for_which_another_clause_does_not_hold_does_not_fail(beside: Beside) -> None:
    closed = range(OTHERS + 2, OTHERS + 22)

    @beside.app.on(Paper, LONG, Paper.status == "placed", name="done", retry=ONCE)
    def done(paper: Paper) -> None:
        paper.status = "done"

    beside.there()
    beside.add(*[Paper(id=number, status="closed") for number in closed])
    beside.placed()
    spoil(beside, ONE, *closed)
    beside.worker()
    beside.until_done()
    until(lambda: beside.states() == ["held"], beside.attempts)
    beside.lives[0].quiet()
    assert beside.attempt().record == str(ONE)


@pytest.mark.parametrize("deleted", [True, False], ids=["deleted", "mended"])
def test_it_is_asked_plainly_once_no_such_row_is_left(beside: Beside, monkeypatch: pytest.MonkeyPatch, *, deleted: bool) -> None:
    monkeypatch.setattr(raising_conditions, "PLAIN_S", 0.1)
    monkeypatch.setattr(raising_conditions, "AGAIN_S", 0.1)
    beside.handled(leave_in_peace, LONG)
    spoiled(beside)
    life = beside.worker()
    beside.until_done()
    until(lambda: beside.states() == ["held"])
    question = life.worker.queues[0].query
    assert question.in_turn
    if deleted:
        beside.run("DELETE FROM papers WHERE id = :key", key=ONE)
    else:
        mend(beside, ONE, status="done")
    until(lambda: not question.in_turn)


def test_a_condition_that_raises_for_too_many_rows_waits_as_a_whole(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundstate.engine.sql.raising_rows.APART_MOST", 10)
    beside.ones = range(1, 31)
    beside.handled(leave_in_peace, LONG)
    spoiled(beside)
    beside.worker()
    until(lambda: beside.told("condition_failed"))
    assert "of record 1, 2, 3 and more than 10 others" in beside.told("condition_failed")[0]
    assert beside.states() == []
    assert words_of(beside) in (beside.status().unseen or "")
    beside.lives[0].stop()
    beside.add(Paper(id=500))
    assert "not carried out: its condition cannot be asked of record 1, 2, 3 and more than 10 others" in beside.why(500).next


def test_the_reports_name_the_row_before_any_worker_met_it(beside: Beside) -> None:
    beside.handled(leave_in_peace, LONG)
    spoiled(beside)
    said = f"its condition cannot be asked of record {ONE}: {words_of(beside)}"
    assert said in beside.pending().unseen["done"]
    assert said in (beside.status().unseen or "")
    assert f"{OF_ONE}: {words_of(beside)}" in beside.why().next
    assert "as soon as a worker runs" in beside.why(2).next
    with open_store_read_only(beside.app.stores[0]) as (database, _lives):
        found = check_database(
            database, [ConditionQuery(spec, database) for spec in beside.app.reactions.values()], beside.app.stores[0].metadatas
        )
        planned = build_plan(beside.app.name, database, [ConditionQuery(spec, database) for spec in beside.app.reactions.values()], [])
    assert [(one.level, one.kind, one.subject) for one in found if one.kind in ("condition", "index")] == [("problem", "condition", "done")]
    assert said in next(one.words for one in found if one.kind == "condition")
    assert [(one.rows, one.lacks) for one in planned.reactions] == [(OTHERS, None)]


def test_a_row_is_put_in_doubt_with_the_others_where_a_reaction_is_accepted_so(beside: Beside) -> None:
    calling(beside)
    Papers.metadata.create_all(beside.engine)
    beside._there = True
    beside.add(*[Paper(id=number) for number in range(1, 11)])
    spoil(beside, ONE)
    beside.app.init(accept=["done=doubt"])
    assert beside.states() == ["doubt"] * 10


def test_a_row_is_left_as_a_baseline_with_the_others(beside: Beside) -> None:
    beside.handled(leave_in_peace, LONG)
    Papers.metadata.create_all(beside.engine)
    beside._there = True
    beside.add(*[Paper(id=number) for number in range(1, 11)])
    spoil(beside, ONE)
    beside.app.init(baseline=["done"])
    assert [(one.state.value, one.why) for one in beside.attempts()] == [("held", "baseline")] * 10


def test_rows_that_were_left_as_a_baseline_keep_nobody_waiting_beside_a_row_for_which_it_raises(beside: Beside) -> None:
    beside.handled(leave_in_peace, LONG)
    Papers.metadata.create_all(beside.engine)
    beside._there = True
    beside.add(*[Paper(id=number) for number in range(1000, 1010)])
    beside.app.init(baseline=["done"])
    beside.placed()
    spoil(beside, ONE)
    life = beside.worker()
    beside.until_done()
    until(lambda: len(beside.attempts()) == 11)
    assert {one.why for one in beside.attempts() if one.record != str(ONE)} == {"baseline"}
    life.sweep()
    assert beside.told("turn_failed") == []


def test_a_row_whose_key_has_two_columns_is_held_and_the_others_are_carried_out(beside: Beside) -> None:
    @beside.app.on(Sheet, Sheet.status == "placed", Sheet.data["pages"].as_integer() > 5, retry=ONCE)
    def read(sheet: Sheet) -> None:
        sheet.status = "done"

    beside.there()
    beside.add(*[Sheet(book=f"book {number % 3}", number=number) for number in range(20)])
    said = '{"pages": "unknown"}' if beside.postgres else "not json"
    beside.run("UPDATE sheets SET data = :said WHERE number = 7", said=said)
    beside.worker()
    until(lambda: beside.states() == ["held"], beside.attempts)
    with beside.session() as session:
        until(lambda: session.scalar(select(func.count()).where(Sheet.status == "done")) == 19)
    assert beside.status("read").rows == 0


def test_a_new_reaction_begins_on_the_others(beside: Beside) -> None:
    beside.handled(leave_in_peace, LONG)
    Papers.metadata.create_all(beside.engine)
    beside._there = True
    beside.add(*[Paper(id=number) for number in range(1, OTHERS + 2)])
    spoil(beside, ONE)
    beside._there = False
    beside.go_on(f"{OF_ONE}: {words_of(beside)}", event="record_unreadable")
