"""A new round of a record that stands in a line: what became of the old round does not keep it waiting, and `why` says what is so."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import ColumnElement, literal, null, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.visitors import replacement_traverse

from groundstate import DeclarationError, ExternalService, InDoubt, InOrder, NotDone, Retry, UtcDateTime
from groundstate.engine.operate.why import Answer, explain_record
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from groundstate.store.tables import attempt
from tests.engine.kit import CALL_LIMIT, World, until

LATER = Retry(first=timedelta(hours=1))
ONCE = Retry(times=1)


class Base(DeclarativeBase):
    pass


class Step(Base):
    __tablename__ = "line_steps"
    id: Mapped[int] = mapped_column(primary_key=True)
    chat: Mapped[str] = mapped_column(default="a")
    number: Mapped[int] = mapped_column(default=1)
    status: Mapped[str] = mapped_column(default="new")
    round: Mapped[int | None] = mapped_column(default=1)
    name: Mapped[str | None] = mapped_column(default="one")
    at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=lambda: datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def lines(database_url: str) -> Iterator[World]:
    made = World(database_url, Base)
    yield made
    made.close()


IN_ORDER = InOrder(Step.chat, Step.number)
PAST_HELD = InOrder(Step.chat, Step.number, past_held=True)


class Sent:
    """The service: which records were sent, and how often the next calls for each are refused, or end in doubt."""

    def __init__(self, world: World, in_order: InOrder = IN_ORDER, retry: Retry = LATER, occurrence: Any = (Step.round,)) -> None:
        self.sent: list[int] = []
        self.refuses: dict[int, int] = {}
        self.doubts: dict[int, int] = {}
        service = ExternalService("sms")

        @service.call(in_doubt=InDoubt.hold(), timeout=CALL_LIMIT, retry=retry)
        def send(one: Step) -> str:
            if self.refuses.get(one.id, 0):
                self.refuses[one.id] -= 1
                raise NotDone("refused")
            self.sent.append(one.id)
            if self.doubts.get(one.id, 0):
                self.doubts[one.id] -= 1
                raise RuntimeError("the answer was lost")
            return "ok"

        @world.app.on(Step, Step.status == "new", call=send, in_order=in_order, occurrence=occurrence)
        def told(one: Step, _answer: str) -> None:
            one.status = "sent"


def _statuses(world: World) -> dict[int, str]:
    with world.session() as session:
        return {row[0]: row[1] for row in session.execute(select(Step.id, Step.status))}


def _why(world: World, record: int) -> Answer:
    database, lives, _ = connect.open_store(world.app.stores[0].settings())
    life = world.lives[-1]
    try:
        return explain_record("shop", life.database, [life.worker.queues[0].query], lives(), "line_steps", str(record)).answers[0]
    finally:
        database.close()


NEXT = {
    "an integer": ((Step.round,), "round = 2"),
    "text": ((Step.name,), "name = 'two'"),
    "no text any more": ((Step.name,), "name = null"),
    "a time": ((Step.at,), "at = '2026-01-02 00:00:00.000000'"),
    "two columns": ((Step.round, Step.name), "name = 'two'"),
}


@pytest.mark.parametrize("in_order", [IN_ORDER, InOrder(Step.chat)], ids=["in order", "one at a time"])
@pytest.mark.parametrize("which", NEXT)
def test_a_new_round_does_not_wait_for_the_old_rounds_next_try(lines: World, which: str, in_order: InOrder) -> None:
    occurrence, change = NEXT[which]
    sent = Sent(lines, in_order, occurrence=occurrence)
    sent.refuses = {1: 1}
    lines.add(Step(id=1))
    life = lines.worker()
    until(lambda: lines.states() == ["failed"])
    assert _why(lines, 1).next_at is not None
    lines.add(Step(id=2, number=2))
    life.sweep()
    # Records that have no order pass one that waits for its next try: what is asked must not meet the second one's call.
    until(lambda: _statuses(lines)[2] == ("new" if in_order.order is not None else "sent"))
    life.hints_alone()
    lines.run(f"update line_steps set {change} where id = 1")
    assert _why(lines, 1).next == "carried out now"
    life.sweep()
    until(lambda: _statuses(lines) == {1: "sent", 2: "sent"})
    assert sorted(sent.sent) == [1, 2]


def test_a_new_round_waits_for_a_doubt_of_the_old_one_and_why_says_so(lines: World) -> None:
    sent = Sent(lines)
    sent.doubts = {1: 1}
    lines.add(Step(id=1))
    life = lines.worker()
    until(lambda: lines.states() == ["held"])
    lines.add(Step(id=2, number=2))
    lines.run("update line_steps set round = 2 where id = 1")
    life.sweep()
    life.sweep()
    assert sent.sent == [1]
    assert "its own held attempt of round 1" in _why(lines, 1).next
    assert _why(lines, 2).next == "waits for its turn behind record 1"


def test_a_head_that_failed_in_its_present_round_is_waited_for_and_why_says_when(lines: World) -> None:
    sent = Sent(lines)
    sent.refuses = {1: 2}
    lines.add(Step(id=1), Step(id=2, number=2))
    life = lines.worker()
    until(lambda: lines.states() == ["failed"])
    lines.run("update line_steps set round = 2 where id = 1")
    until(lambda: [one.occurrence for one in lines.attempts()] == ["1", "2"])
    life.sweep()
    life.sweep()
    assert sent.sent == []
    assert _why(lines, 1).next_at == next(one.next_at for one in lines.attempts() if one.occurrence == "2")


@pytest.mark.parametrize("which", [name for name in NEXT if name != "two columns"])
def test_a_record_that_stepped_aside_held_stands_in_its_line_again_in_its_next_round(lines: World, which: str) -> None:
    occurrence, change = NEXT[which]
    sent = Sent(lines, PAST_HELD, ONCE, occurrence)
    sent.refuses = {1: 1}
    lines.add(Step(id=1))
    life = lines.worker()
    until(lambda: lines.states() == ["held"])
    lines.add(Step(id=2, number=2))
    until(lambda: _statuses(lines) == {1: "new", 2: "sent"})
    life.sweep()
    lines.run(f"update line_steps set {change} where id = 1")
    until(lambda: _statuses(lines) == {1: "sent", 2: "sent"})
    assert sent.sent == [2, 1]
    assert lines.states() == ["held"], "what is held of the old round is still a person's"


def test_what_was_left_as_a_baseline_stands_in_its_line_in_its_next_round(lines: World) -> None:
    sent = Sent(lines)
    lines.app.init(tables=True)
    lines.run("insert into line_steps (id, chat, number, status, round) values (1, 'a', 1, 'new', 1)")
    lines.app.init(baseline=["told"])
    lines.add(Step(id=2, number=2))
    life = lines.worker()
    until(lambda: sent.sent == [2])
    life.sweep()
    lines.run("update line_steps set round = 2 where id = 1")
    until(lambda: sent.sent == [2, 1])


def test_past_held_needs_an_occurrence_whose_rounds_sql_can_tell(lines: World) -> None:
    Sent(lines, PAST_HELD, occurrence=(Step.round, Step.name))
    with pytest.raises(DeclarationError, match="past_held= needs an occurrence of one column"):
        lines.worker()


TEXTS = [None, "", ":", ":null:", "::null::", ":empty:", ":empty", "null", "one", "ONE", "a:null:"]


def _in_its_place(written: Any, one: Any) -> Any:
    return written if one is attempt.c.occurrence else None


def test_sql_tells_an_attempt_of_the_present_round_as_python_does(lines: World) -> None:
    """Of what is written today and of what older code wrote, for texts that look like the text of none as well."""

    @lines.app.on(Step, Step.status == "new", occurrence=[Step.name], name="told")
    def told(step: Step) -> None:
        step.status = "told"

    lines.add(*[Step(id=number, name=null() if text is None else text) for number, text in enumerate(TEXTS)])
    database = connect.open_store(connect.resolve_settings(lines.url))[0]
    question = ConditionQuery(lines.app.reactions["told"], database)
    is_of_this_round: ColumnElement[bool] | None = question.attempts.is_attempt_of_this_occurrence
    assert is_of_this_round is not None
    with database.reading() as connection:
        for written in ["", *[question.occurrences.occurrence_text_of_values([text]) for text in TEXTS]]:
            asked = replacement_traverse(is_of_this_round, {}, partial(_in_its_place, literal(written)))
            by_sql = set(connection.execute(select(Step.id).where(asked)).scalars())
            assert by_sql == {
                number
                for number, text in enumerate(TEXTS)
                if question.occurrences.means_occurrence(written, question.occurrences.occurrence_text_of_values([text]))
            }
    database.close()
