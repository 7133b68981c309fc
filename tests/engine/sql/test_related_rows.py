"""Rows beside the record that handlers change: none of two workers' changes is lost, and they do not wait for each other in a circle.

On SQLite a transaction of ours has the database to itself, so the same tests hold there without anything of this.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import ForeignKey, Numeric, create_engine, delete, event, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.types import JSON

from groundstate import ExternalService, InDoubt
from groundstate.engine.operate.check import check_database
from groundstate.engine.sql import db_errors, related_rows
from groundstate.engine.sql.call_write_guard import outside_of_call
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from tests.engine.kit import CALL_LIMIT, Life, World, until
from tests.patience import HANG_S


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "beside_accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(default="plain")
    balance: Mapped[int] = mapped_column(default=0)
    rate: Mapped[float] = mapped_column(default=0.0)
    price: Mapped[Decimal] = mapped_column(Numeric(8, 2), default=Decimal(1))
    notes: Mapped[dict[str, int]] = mapped_column(MutableDict.as_mutable(JSON()), default=dict)
    lines: Mapped[list[Line]] = relationship(back_populates="account")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "plain"}  # noqa: RUF012  # as the declarative base has it


class Savings(Account):
    __tablename__ = "beside_savings"
    id: Mapped[int] = mapped_column(ForeignKey("beside_accounts.id"), primary_key=True)
    interest: Mapped[int] = mapped_column(default=0)
    __mapper_args__ = {"polymorphic_identity": "savings"}  # noqa: RUF012


class Pair(Base):
    """A row with a key of two columns."""

    __tablename__ = "beside_pairs"
    left: Mapped[int] = mapped_column(primary_key=True)
    right: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(default=0)


class Line(Base):
    __tablename__ = "beside_lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    amount: Mapped[int] = mapped_column(default=1)
    account_id: Mapped[int | None] = mapped_column(ForeignKey("beside_accounts.id"))
    account: Mapped[Account | None] = relationship(back_populates="lines")


ACCOUNTS, SAVINGS = Base.metadata.tables["beside_accounts"], Base.metadata.tables["beside_savings"]
Handler = Callable[[Line, Session], None]


class Ledger:
    """A world with accounts, and what changes them from elsewhere while a handler is under way."""

    def __init__(self, url: str) -> None:
        self.world = World(url, Base)
        self.other = create_engine(url)
        self.ran: list[int] = []

    def declare(self, handler: Handler) -> None:
        @self.world.app.on(Line, Line.status == "new")
        def booked(line: Line, session: Session) -> None:
            self.ran.append(line.id)
            handler(line, session)
            line.status = "done"

    def lines(self, count: int, first: int = 1) -> None:
        self.world.add(*[Line(id=number) for number in range(first, first + count)])

    def carry_out(self, handler: Handler, *rows: Any) -> None:
        """One line, beside these rows, by one worker."""
        self.declare(handler)
        self.world.add(*rows)
        self.lines(1)
        self.world.worker()
        until(self.all_done)

    def all_done(self) -> bool:
        with self.world.session() as session:
            return session.scalars(select(Line.id).where(Line.status == "new")).first() is None

    def of(self, what: Any, key: Any) -> Any:
        with self.world.session() as session:
            return session.get(what, key)

    def close(self) -> None:
        self.other.dispose()
        self.world.close()


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    made = Ledger(database_url)
    yield made
    made.close()


@pytest.fixture
def on_postgres(postgres_url: str) -> Iterator[Ledger]:
    made = Ledger(postgres_url)
    yield made
    made.close()


class Meeting:
    """Handlers of two workers that have both read and not yet written, once. On SQLite there is but one at a time."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._barrier = threading.Barrier(2, timeout=HANG_S) if ledger.world.url.startswith("postgresql") else None
        self._came: set[int] = set()

    def once(self) -> None:
        if self._barrier is not None and threading.get_ident() not in self._came:
            self._came.add(threading.get_ident())
            self._barrier.wait()

    def of_two_workers(self, lines: int) -> list[Life]:
        """The first one has its lines in hand, and has read, when the second one is given others."""
        lives = [self._ledger.world.worker(), self._ledger.world.worker()]
        self._ledger.lines(lines // 2)
        until(lambda: self._barrier is None or self._barrier.n_waiting > 0)
        self._ledger.lines(lines // 2, first=lines // 2 + 1)
        until(self._ledger.all_done)
        return lives


def test_two_workers_that_add_to_one_row_lose_nothing(ledger: Ledger) -> None:
    meeting = Meeting(ledger)

    def book(line: Line, session: Session) -> None:
        account = session.get(Account, 1)
        assert account is not None
        meeting.once()
        account.balance += line.amount

    ledger.declare(book)
    ledger.world.add(Account(id=1))
    meeting.of_two_workers(200)
    assert ledger.of(Account, 1).balance == 200


def test_the_outcomes_of_two_workers_calls_are_all_counted(ledger: Ledger) -> None:
    bank, meeting = ExternalService("bank"), Meeting(ledger)

    @bank.call(in_doubt=InDoubt.hold(), timeout=CALL_LIMIT)
    def charge(line: Line) -> int:
        return line.amount

    @ledger.world.app.on(Line, Line.status == "new", call=charge)
    def charged(line: Line, amount: int, session: Session) -> None:
        account = session.get(Account, 1)
        assert account is not None
        meeting.once()
        account.balance += amount
        line.status = "done"

    ledger.world.add(Account(id=1))
    meeting.of_two_workers(100)
    assert ledger.of(Account, 1).balance == 100
    assert ledger.world.attempts() == []


DEADLOCKS = text("select deadlocks from pg_stat_database where datname = current_database()")


@pytest.mark.parametrize("flushes", [False, True], ids=["at the end", "amid"])
def test_workers_that_touch_shared_rows_in_different_orders_lose_nothing(on_postgres: Ledger, flushes: bool) -> None:
    meeting = Meeting(on_postgres)

    def book(line: Line, session: Session) -> None:
        accounts = [session.get(Account, key) for key in ((1, 2) if line.id % 2 else (2, 1))]
        meeting.once()
        for account in accounts:
            _add(account)
            if flushes:
                session.flush()  # so the rows are locked in this order, which is another one for the next line

    on_postgres.declare(book)
    on_postgres.world.add(Account(id=1), Account(id=2))
    with on_postgres.other.connect() as connection:
        before = connection.execute(DEADLOCKS).scalar_one()
    lives = meeting.of_two_workers(60)
    assert [on_postgres.of(Account, key).balance for key in (1, 2)] == [60, 60]
    for life in lives:
        life.stop()  # its connections end, and tell the server's statistics what they met
    with on_postgres.other.connect() as connection:
        assert flushes or connection.execute(DEADLOCKS).scalar_one() == before


class Meddled:
    """What changes a row from elsewhere, once, between a handler's read and its write."""

    def __init__(self, ledger: Ledger, statement: Any) -> None:
        self._ledger, self._statement, self._done = ledger, statement, False

    def once(self) -> None:
        if not self._done:
            self._done = True
            with outside_of_call(), self._ledger.other.begin() as connection:
                connection.execute(self._statement)


CHANGED_BETWEEN: dict[str, tuple[Any, tuple[type[Account], int], Callable[[Any], Any], Any]] = {
    "added to": (
        update(Account).where(Account.id == 1).values(balance=10),
        (Account, 1),
        lambda account: setattr(account, "balance", account.balance + 1),
        ("balance", 11),
    ),
    "decided by another column": (
        update(Account).where(Account.id == 1).values(rate=2.5),
        (Account, 1),
        lambda account: setattr(account, "balance", 1 + int(account.rate * 2)),
        ("balance", 6),
    ),
    "a JSON value changed in place": (
        update(Account).where(Account.id == 1).values(notes={"a": 1}),
        (Account, 1),
        lambda account: account.notes.update(b=2),
        ("notes", {"a": 1, "b": 2}),
    ),
    "a column of a parent class": (
        update(ACCOUNTS).where(ACCOUNTS.c.id == 2).values(balance=10),
        (Savings, 2),
        lambda account: setattr(account, "interest", account.balance + 1),
        ("interest", 11),
    ),
    "a column of a subclass": (
        update(SAVINGS).values(interest=10),
        (Account, 2),
        lambda account: setattr(account, "interest", account.interest + 1),
        ("interest", 11),
    ),
}


@pytest.mark.parametrize("which", CHANGED_BETWEEN)
def test_what_was_changed_between_read_and_write_is_read_again(on_postgres: Ledger, which: str) -> None:
    statement, (kind, key), write, (name, expected) = CHANGED_BETWEEN[which]
    meddled = Meddled(on_postgres, statement)

    def book(_line: Line, session: Session) -> None:
        row = session.get(kind, key)
        for column in ("balance", "rate", "notes", "interest"):
            getattr(row, column, None)
        meddled.once()
        write(row)

    on_postgres.carry_out(book, Account(id=1), Savings(id=2))
    assert getattr(on_postgres.of(Savings if key == 2 else Account, key), name) == expected
    assert on_postgres.ran == [1, 1]


def test_a_row_with_a_key_of_two_columns_is_compared_too(on_postgres: Ledger) -> None:
    meddled = Meddled(on_postgres, update(Pair).where(Pair.right == "b").values(count=10))

    def book(_line: Line, session: Session) -> None:
        pairs = list(session.scalars(select(Pair).order_by(Pair.right)))
        meddled.once()
        for pair in pairs:
            pair.count += 1

    on_postgres.carry_out(book, Pair(left=1, right="a"), Pair(left=1, right="b"))
    assert [on_postgres.of(Pair, (1, name)).count for name in "ab"] == [1, 11]


def test_a_row_that_somebody_deleted_meanwhile_is_looked_for_anew(on_postgres: Ledger) -> None:
    meddled = Meddled(on_postgres, delete(Pair))

    def book(_line: Line, session: Session) -> None:
        pair = session.get(Pair, (1, "a"))
        meddled.once()
        if pair is None:
            session.add(Pair(left=1, right="a", count=100))
        else:
            pair.count += 1

    on_postgres.carry_out(book, Pair(left=1, right="a"))
    assert on_postgres.of(Pair, (1, "a")).count == 100


def test_a_row_is_not_deleted_by_what_was_read_of_it_before_it_changed(on_postgres: Ledger) -> None:
    meddled = Meddled(on_postgres, update(Pair).values(count=5))

    def book(_line: Line, session: Session) -> None:
        pair = session.get(Pair, (1, "a"))
        assert pair is not None
        empty = pair.count == 0
        meddled.once()
        if empty:
            session.delete(pair)

    on_postgres.carry_out(book, Pair(left=1, right="a"))
    assert on_postgres.of(Pair, (1, "a")).count == 5


def test_what_a_listener_of_flushes_changes_is_compared_too(on_postgres: Ledger) -> None:
    meddled = Meddled(on_postgres, update(Account).values(balance=10))

    def counts(session: Session, _context: Any, _instances: Any) -> None:
        for line in [one for one in session.dirty if isinstance(one, Line)]:
            with session.no_autoflush:
                account = session.get(Account, 1)
            assert account is not None
            meddled.once()
            account.balance += line.amount

    on_postgres.declare(lambda _line, _session: None)
    on_postgres.world.add(Account(id=1))
    on_postgres.lines(1)
    event.listen(Session, "before_flush", counts)
    try:
        on_postgres.world.worker()
        until(on_postgres.all_done)
    finally:
        event.remove(Session, "before_flush", counts)
    assert on_postgres.of(Account, 1).balance == 11


def _add(account: Account | None) -> None:
    assert account is not None
    account.balance += 1


def _twice(_line: Line, session: Session) -> None:
    _add(session.get(Account, 1))
    session.flush()
    _add(session.get(Account, 1))


def _made_and_changed(line: Line, session: Session) -> None:
    session.add(made := Account(id=line.id + 100, price=Decimal("1.005")))
    session.flush()
    made.balance += 1


def _in_vain(_line: Line, session: Session) -> None:
    account = session.get(Account, 1)
    savepoint = session.begin_nested()
    _add(account)
    session.flush()
    savepoint.rollback()
    _add(account)


UNTOUCHED: dict[str, Handler] = {
    "an expression": lambda _line, session: setattr(session.get(Account, 1), "balance", Account.balance + 1),
    "a locked read": lambda _line, session: _add(session.get(Account, 1, with_for_update=True)),
    "a value set without a look": lambda _line, session: _add(session.get(Account, 1)),
    "NaN beside it": lambda _line, session: _add(session.get(Account, 3)),
    "a row of its own": _made_and_changed,
    "twice in one": _twice,
    "in a savepoint that is given up": _in_vain,
}


@pytest.mark.parametrize("which", UNTOUCHED)
def test_what_nobody_else_has_changed_is_done_once(on_postgres: Ledger, which: str) -> None:
    on_postgres.carry_out(UNTOUCHED[which], Account(id=1, price=Decimal("1.5")), Account(id=3, rate=float("nan")))
    assert on_postgres.ran == [1]


def test_a_lock_that_a_savepoint_gave_up_is_taken_again(on_postgres: Ledger) -> None:
    meddled = Meddled(on_postgres, update(Account).values(balance=10))

    def book(_line: Line, session: Session) -> None:
        account = session.get(Account, 1)
        assert account is not None
        savepoint = session.begin_nested()
        account.balance += 1
        session.flush()
        savepoint.rollback()
        before = account.balance
        meddled.once()
        account.balance = before + 1

    on_postgres.carry_out(book, Account(id=1))
    assert on_postgres.of(Account, 1).balance == 11


def test_a_schedule_s_handler_loses_nothing_either(on_postgres: Ledger) -> None:
    meddled = Meddled(on_postgres, update(Account).values(balance=10))

    @on_postgres.world.app.every(timedelta(hours=1), missed="latest")
    def counted(session: Session) -> None:
        account = session.get(Account, 1)
        assert account is not None
        before = account.balance
        meddled.once()
        account.balance = before + 1

    on_postgres.world.add(Account(id=1))
    on_postgres.world.settled()  # from now on it counts
    on_postgres.world.forward(3700)
    on_postgres.world.worker()
    until(lambda: on_postgres.of(Account, 1).balance == 11)


def test_rows_that_keep_changing_are_locked_first_and_it_ends(on_postgres: Ledger) -> None:
    """Each time another row is found to have changed: all that were met are locked first, the next time."""
    changed: list[int] = []

    def book(_line: Line, session: Session) -> None:
        accounts = [session.get(Account, key) for key in range(1, 4)]
        balances = [account.balance for account in accounts if account is not None]
        if len(changed) < 3:
            changed.append(len(changed) + 1)
            with outside_of_call(), on_postgres.other.connect() as connection:
                connection.exec_driver_sql("set lock_timeout = '200ms'")
                try:
                    connection.execute(update(Account).where(Account.id == changed[-1]).values(balance=10))
                    connection.commit()
                except OperationalError:
                    connection.rollback()  # locked first, by the worker: that is the point
        for account, before in zip(accounts, balances, strict=True):
            if account is not None:
                account.balance = before + 1

    on_postgres.carry_out(book, *[Account(id=key) for key in range(1, 4)])
    assert [on_postgres.of(Account, key).balance for key in range(1, 4)] == [11, 1, 1]
    assert on_postgres.ran == [1, 1]


def test_a_transaction_that_is_outrun_again_and_again_is_let_out() -> None:
    tries: list[frozenset[db_errors.RelatedRow]] = []

    def outrun(first: frozenset[db_errors.RelatedRow]) -> None:
        tries.append(first)
        raise db_errors.LostUpdate(frozenset({db_errors.RelatedRow(Account.__mapper__, (len(tries),))}))

    with pytest.raises(db_errors.LostUpdate):
        related_rows.redo_lost_updates(outrun)
    assert [len(first) for first in tries] == list(range(related_rows.AGAIN_MOST + 1))


def test_check_says_what_is_cheaper_than_reading_a_shared_row_and_writing_it_back(on_postgres: Ledger) -> None:
    def reads(_line: Line, session: Session) -> None:
        account = session.get_one(Account, 1)
        account.balance += 1

    def computes(_line: Line, session: Session) -> None:
        session.get_one(Account, 1).balance = Account.balance + 1

    on_postgres.world.app.on(Line, Line.status == "new")(reads)
    on_postgres.world.app.on(Line, Line.status == "other")(computes)
    on_postgres.world.there()
    database, _, _ = connect.open_store(on_postgres.world.app.stores[0].settings())
    try:
        questions = [ConditionQuery(spec, database) for spec in on_postgres.world.app.reactions.values()]
        found = [one for one in check_database(database, questions, [Base.metadata]) if one.kind == "shared rows"]
    finally:
        database.close()
    assert [(one.level, one.subject) for one in found] == [("advice", "reads")]
    assert "account.balance = TheClass.balance + ..." in (found[0].cure or "")
