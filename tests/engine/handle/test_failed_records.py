"""A batch with some records whose handlers fail: those are done apart, and the others together, by two transactions more for a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import CheckConstraint, String, TypeDecorator, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import ExternalService, Failure, InDoubt, Retry
from groundstate.engine.handle import failed_records
from groundstate.engine.watch import batch_locks
from tests.engine.clocks import Turned
from tests.engine.kit import CALL_LIMIT, World, ms

ROWS, BAD = 120, 8
LONG_S = 3600.0  # no transaction of a busy machine ends in its middle
LATER = Retry(times=3, first=ms(3_600_000))


class Base(DeclarativeBase): ...


class Word(TypeDecorator[str]):
    """Whose values are looked at when they are written."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Any) -> str | None:
        if value == "nonsense":
            raise ValueError("that is no word")
        return value


class Bill(Base):
    __tablename__ = "bills"
    __table_args__ = (CheckConstraint("note <> 'unpaid'"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    sent: Mapped[str | None] = mapped_column(default=None)
    note: Mapped[str | None] = mapped_column(Word, default=None)


class Line(Base):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    seen: Mapped[str] = mapped_column(default="no")


def is_bad(bill: Bill) -> bool:
    return bill.id % (ROWS // BAD) == 0


def _raises(bill: Bill, _session: Session) -> None:
    if is_bad(bill):
        raise ValueError("this one is bad")


def _writes(word: str) -> Callable[[Bill, Session], None]:
    def write(bill: Bill, _session: Session) -> None:
        bill.note = word if is_bad(bill) else f"note {bill.id}"

    return write


def _makes_no_progress(bill: Bill, _session: Session) -> None:
    if is_bad(bill):
        bill.status, bill.sent = "placed", None


def _changes_a_row_beside(bill: Bill, session: Session) -> None:
    line = session.get(Line, 1 if is_bad(bill) else 2)
    assert line is not None
    line.seen = f"{bill.id}"
    _writes("unpaid")(bill, session)


FAULTS: dict[str, Callable[[Bill, Session], None]] = {
    "the handler raises": _raises,
    "a type refuses the value": _writes("nonsense"),
    "the database refuses the value": _writes("unpaid"),
    "no progress": _makes_no_progress,
    "a value is refused, and a row beside it was changed": _changes_a_row_beside,
}


class Billing:
    """Reactions on bills, and how often a handler ran."""

    def __init__(self, url: str, patch: pytest.MonkeyPatch) -> None:
        self.world = World(url, Base)
        # One handler with a savepoint of its own takes a quarter of what a transaction may take.
        self.world.clock = self._clock = Turned()
        for name in ("HOLD_S", "HOLD_EMBEDDED_S", "HOLD_BESIDE_OTHERS_S"):
            patch.setattr(batch_locks, name, LONG_S)
        self.runs: Counter[int] = Counter()
        self.transactions: set[Any] = set()  # in which handlers ran
        self.with_bad: set[Any] = set()  # and those of some that fail
        self.does: Callable[[Bill, Session], None] = _raises

    def plain(self, retry: Retry = LATER) -> Any:
        @self.world.app.on(Bill, Bill.status == "placed", retry=retry, name="sent")
        def sent(bill: Bill, session: Session) -> None:
            self._runs(bill, session)
            bill.status = "sent"
            self.does(bill, session)

        return sent

    def called(self) -> None:
        self._with_a_call(Bill.status == "placed")

    def fact(self) -> None:
        self._with_a_call(Bill.sent.is_(None), done_column=Bill.sent)

    def _with_a_call(self, condition: Any, **options: Any) -> None:
        post = ExternalService("post", limit=ROWS)

        @post.call(in_doubt=InDoubt.repeat(), timeout=CALL_LIMIT, retry=LATER)
        async def send(_bill: Bill) -> str:
            return "sent"

        @self.world.app.on(Bill, condition, call=send, name="sent", **options)
        def _(bill: Bill, outcome: str, session: Session) -> None:
            self._runs(bill, session)
            if options:
                bill.sent = outcome
            else:
                bill.status = outcome
            self.does(bill, session)

    def _runs(self, bill: Bill, session: Session) -> None:
        self.runs[bill.id] += 1
        if session.in_nested_transaction():
            self._clock.ahead += LONG_S / 4
        self.transactions.add(session)  # each transaction has one of its own
        if is_bad(bill):
            self.with_bad.add(session)

    def carried_out(self) -> None:
        self.world.add(*[Bill(id=number + 1) for number in range(ROWS)], Line(id=1), Line(id=2))
        life = self.world.there().worker()
        assert life.worker.wait_until_idle(None)  # by the turned clock any limit would soon be over

    def is_as_meant(self) -> None:
        assert {int(one.record) for one in self.world.attempts()} == {(number + 1) * (ROWS // BAD) for number in range(BAD)}
        with self.world.session() as session:
            done = session.query(Bill.id).where((Bill.status == "sent") | Bill.sent.is_not(None)).count()
            assert done == ROWS - BAD
            assert [line.seen for line in session.query(Line).where(Line.id == 1)] == ["no"], "what a failed handler wrote is kept nowhere"


@pytest.fixture
def billing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(failed_records, "WRITING_S", LONG_S)
    made = Billing(database_url, monkeypatch)
    yield made
    made.world.close()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("reaction", [Billing.plain, Billing.called])
def test_records_that_fail_are_done_apart_and_the_others_together(
    billing: Billing, reaction: Callable[[Billing], None], fault: str
) -> None:
    reaction(billing)
    billing.does = FAULTS[fault]
    billing.carried_out()
    billing.is_as_meant()
    # When calls come back is the machine's affair: of each transaction with one that fails there are another two at most.
    assert len(billing.transactions if reaction is Billing.plain else billing.with_bad) <= 3 * BAD


def _writes_another_column(bill: Bill, _session: Session) -> None:
    if is_bad(bill):
        bill.note = "more than a fact"


def _adds_a_row(bill: Bill, session: Session) -> None:
    if is_bad(bill):
        session.add(Line(id=100 + bill.id))


@pytest.mark.parametrize("does", [_raises, _writes_another_column])
def test_facts_of_records_that_fail_are_done_apart(billing: Billing, does: Callable[[Bill, Session], None]) -> None:
    billing.fact()
    billing.does = does
    billing.carried_out()
    billing.is_as_meant()
    assert len(billing.with_bad) <= 3 * BAD


def _executes(bill: Bill, session: Session) -> None:
    if is_bad(bill):
        session.execute(update(Bill).where(Bill.id == bill.id).values(note="unpaid"))


@pytest.mark.parametrize(("reaction", "does"), [(Billing.plain, _executes), (Billing.called, _executes), (Billing.fact, _adds_a_row)])
def test_where_it_cannot_be_told_who_fails_each_has_a_savepoint(
    billing: Billing, reaction: Callable[[Billing], None], does: Callable[[Bill, Session], None]
) -> None:
    reaction(billing)
    billing.does = does
    billing.carried_out()
    billing.is_as_meant()


def test_those_whose_last_try_was_used_are_answered_apart(billing: Billing) -> None:
    reaction = billing.plain(Retry(times=1, first=ms(1)))

    @reaction.gave_up
    def _(bill: Bill, failure: Failure) -> None:
        bill.status = "given up"

    billing.carried_out()
    assert billing.world.attempts() == []
    with billing.world.session() as session:
        assert session.query(Bill).where(Bill.status == "given up").count() == BAD
        assert session.query(Bill).where(Bill.status == "sent").count() == ROWS - BAD
    assert len(billing.with_bad) <= 3 * BAD


def test_what_was_not_looked_at_in_time_is_looked_at_later(billing: Billing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed_records, "WRITING_S", 0.0)
    billing.plain()
    billing.does = FAULTS["the database refuses the value"]
    billing.carried_out()
    billing.is_as_meant()


@pytest.mark.parametrize("reaction", [Billing.plain, Billing.called])
def test_where_none_fails_each_handler_runs_once(billing: Billing, reaction: Callable[[Billing], None]) -> None:
    reaction(billing)
    billing.does = lambda _bill, _session: None
    billing.carried_out()
    assert billing.world.attempts() == []
    assert set(billing.runs.values()) == {1}
