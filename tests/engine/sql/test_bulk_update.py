"""What a batch writes is what plain SQLAlchemy would have written, however many records get what is `==`, and on each store."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from itertools import count
from threading import Event
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Double,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    PickleType,
    String,
    Text,
    Time,
    TypeDecorator,
    Uuid,
    select,
    text,
)
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import ExternalService, InDoubt, Retry, UtcDateTime
from tests.engine.kit import HANG_S, World, ms, until

EACH = 9  # records of each value: more than are written one by one
_dice = count()


class Word(enum.StrEnum):
    A = "a"
    B = "b"


class Zoned(TypeDecorator[datetime]):
    """Keeps the zone, as text."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> str | None:  # noqa: ARG002  # what a type is given
        return None if value is None else value.isoformat()

    def process_result_value(self, value: str | None, dialect: Any) -> datetime | None:  # noqa: ARG002  # what a type is given
        return None if value is None else datetime.fromisoformat(value)


class Written(TypeDecorator[Any]):
    """Any value as Python writes it."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:  # noqa: ARG002  # what a type is given
        return None if value is None else repr(value)


class Salted(TypeDecorator[str]):
    """No two of its values are stored alike, as where each is encrypted."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:  # noqa: ARG002  # what a type is given
        return None if value is None else f"{next(_dice)}:{value}"


@dataclass(frozen=True, eq=False)
class Money:
    """Equal by its amount alone."""

    amount: int
    currency: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.amount == self.amount

    def __hash__(self) -> int:
        return hash(self.amount)


class MoneyType(TypeDecorator[Money]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: Money | None, dialect: Any) -> str | None:  # noqa: ARG002  # what a type is given
        return None if value is None else f"{value.amount} {value.currency}"


class Lower(TypeDecorator[str]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:  # noqa: ARG002  # what a type is given
        return None if value is None else value.lower()


class Cents(TypeDecorator[int]):
    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Any) -> int | None:  # noqa: ARG002  # what a type is given
        return None if value is None else value * 100


class Base(DeclarativeBase):
    pass


class Cell(Base):
    __tablename__ = "cell"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]
    owner: Mapped[str]
    filled: Mapped[str]
    number: Mapped[int]
    json: Mapped[Any] = mapped_column(JSON)
    integer: Mapped[Any] = mapped_column(Integer)
    large: Mapped[Any] = mapped_column(BigInteger)
    boolean: Mapped[Any] = mapped_column(Boolean)
    double: Mapped[Any] = mapped_column(Double)
    floating: Mapped[Any] = mapped_column(Float)
    numeric: Mapped[Any] = mapped_column(Numeric)
    string: Mapped[Any] = mapped_column(String)
    body: Mapped[Any] = mapped_column(Text)
    binary: Mapped[Any] = mapped_column(LargeBinary)
    day: Mapped[Any] = mapped_column(Date)
    clock: Mapped[Any] = mapped_column(Time)
    naive: Mapped[Any] = mapped_column(DateTime)
    aware: Mapped[Any] = mapped_column(DateTime(timezone=True))
    instant: Mapped[Any] = mapped_column(UtcDateTime)
    interval: Mapped[Any] = mapped_column(Interval)
    unique: Mapped[Any] = mapped_column(Uuid)
    word: Mapped[Any] = mapped_column(Enum(Word))
    letter: Mapped[Any] = mapped_column(Enum("a", "b", name="letter"))
    pickled: Mapped[Any] = mapped_column(PickleType)
    zoned: Mapped[Any] = mapped_column(Zoned)
    written: Mapped[Any] = mapped_column(Written)
    money: Mapped[Any] = mapped_column(MoneyType)
    salted: Mapped[Any] = mapped_column(Salted)
    lower: Mapped[Any] = mapped_column(String().with_variant(Lower(), "postgresql", "sqlite"))
    cents: Mapped[Any] = mapped_column(Integer().with_variant(Cents(), "postgresql", "sqlite"))
    wide: Mapped[Any] = mapped_column(Integer().with_variant(BigInteger(), "postgresql"))


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    body: Mapped[Any] = mapped_column(MutableDict.as_mutable(JSON(none_as_null=True)), nullable=True)


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
INSTANTS = [NOON, NOON.astimezone(BERLIN), NOON.astimezone(timezone(timedelta(hours=1))), NOON.astimezone(timezone(timedelta(hours=2)))]
TWICE = [datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=fold) for fold in (0, 1)]
NAIVE = [datetime(2026, 1, 1, fold=fold) for fold in (0, 1)]  # noqa: DTZ001  # there are such columns
VALUES: dict[str, list[Any]] = {
    "json": [True, 1, 1.0, False, 0, 0.0, -0.0, "1", None, [True], [1], [1.0], {"a": True}, {"a": 1}, {"a": [0]}, {"a": [False]}],
    "integer": [True, 1, False, 0, None],
    "large": [2**40, 1, -1],
    "boolean": [True, False, 1, 0, None],
    "double": [1, 1.0, 0.0, -0.0, 1.5, Decimal("1.0")],
    "floating": [1, 1.0, 0.0, -0.0],
    "numeric": [Decimal(1), Decimal("1.0"), Decimal("1.00"), Decimal("1E+2"), Decimal(100), 1],
    "string": ["a", Word.A, "", None],
    "body": ["b", Word.B, "B"],
    "binary": [b"", b"a", None],
    "day": [date(2026, 1, 1), date(2026, 1, 2)],
    "clock": [time(1), time(1, fold=1)],
    "naive": [*NAIVE, NOON],
    "aware": [*INSTANTS, *TWICE, NAIVE[0]],
    "instant": [*INSTANTS, *TWICE],
    "interval": [timedelta(seconds=1), timedelta(hours=24), timedelta(days=1)],
    "unique": [uuid.UUID(int=1), uuid.UUID(int=2)],
    "word": [Word.A, Word.B, "A", None],
    "letter": ["a", "b"],
    "pickled": [True, 1, 1.0, (1,), (True,), Decimal("1.0"), Decimal("1.00"), Word.A, "a"],
    "zoned": [*INSTANTS, *TWICE],
    "written": [True, 1, 1.0, Decimal("1.0"), Decimal("1.00"), 0.0, -0.0, Word.A, "a"],
    "lower": [f"{letter}x" for letter in "ABCDEFGHIJ"],  # more than are written one by one
    "cents": list(range(10)),
    "wide": [2**40 + number for number in range(10)],
    "money": [Money(1, "EUR"), Money(1, "USD")],
}


_columns: Any = Cell.__table__.columns
for _column in _columns:
    _column.nullable = _column.name in VALUES or _column.name == "salted"


@pytest.fixture
def cells(database_url: str) -> Iterator[World]:
    made = World(database_url, Base)
    yield made
    made.close()


def _stored(world: World, column: str, owner: str) -> list[Any]:
    """What is in the column, and of which type the store says that it is."""
    what = f'CAST("{column}" AS TEXT), CAST(pg_typeof("{column}") AS TEXT)' if world.postgres else f'"{column}", typeof("{column}")'
    asked = text(f"SELECT {what} FROM cell WHERE filled = :filled AND owner = :owner ORDER BY number")
    with world.session() as session:
        return [tuple(row) for row in session.execute(asked, {"filled": column, "owner": owner})]


def _fill(cell: Cell) -> None:
    values = VALUES[cell.filled]
    setattr(cell, cell.filled, values[cell.number % len(values)])
    cell.status = "done"


def _declare(world: World, column: str) -> None:
    world.app.on(Cell, Cell.status == "new", Cell.filled == column, name=f"fill_{column}", retry=Retry(times=1, first=ms(5)))(_fill)


@pytest.mark.parametrize(("before", "each"), [("NULL", EACH), ("the first of them", EACH), ("NULL", 1)])
def test_a_batch_writes_what_plain_sqlalchemy_would(cells: World, before: str, each: int) -> None:
    for column in VALUES:
        _declare(cells, column)
    filled = []
    for column, values in VALUES.items():
        first = {} if before == "NULL" else {column: values[0]}
        for number in range(each * len(values)):
            filled.append(Cell(status="plain", owner="theirs", filled=column, number=number, **first))
            filled.append(Cell(status="new", owner="ours", filled=column, number=number, **first))
    cells.add(*filled)
    with Session(cells.engine) as session:
        for cell in session.scalars(select(Cell).where(Cell.status == "plain")):
            _fill(cell)
            session.flush()
        session.commit()
    cells.settled()
    assert [(one.reaction, one.error) for one in cells.attempts()] == []
    wrong = {}
    for column, values in VALUES.items():
        ours, theirs = _stored(cells, column, "ours"), _stored(cells, column, "theirs")
        if ours != theirs:
            pairs = zip(values * each, ours, theirs, strict=True)
            wrong[column] = list({repr(value): (mine, right) for value, mine, right in pairs if mine != right}.items())
    assert wrong == {}


def test_a_type_that_stores_no_two_values_alike_is_asked_for_each_record(cells: World) -> None:
    @cells.app.on(Cell, Cell.status == "new")
    def fill(cell: Cell) -> None:
        cell.salted, cell.status = "secret", "done"

    cells.add(*[Cell(status="new", owner="ours", filled="salted", number=number) for number in range(12)])
    cells.settled()
    assert len(set(_stored(cells, "salted", "ours"))) == 12


@pytest.mark.parametrize(("before", "after", "state"), [(None, {"answer": "yes"}, None), ({"first": 1}, {"first": 1}, "held")])
def test_what_is_changed_in_place_was_null_only_where_the_database_says_so(
    cells: World, before: Any, after: Any, state: str | None
) -> None:
    bank, asked, gate = ExternalService("bank"), Event(), Event()

    @bank.call(in_doubt=InDoubt.hold())
    def ask(note: Note) -> str:
        asked.set()
        assert gate.wait(HANG_S)
        return "yes"

    @cells.app.on(Note, Note.status == "new", call=ask)
    def answered(note: Note, outcome: str) -> None:
        if note.body is None:
            note.body = {}
        note.body["answer"] = outcome  # in a column that was written already: a fact, and another's value

    cells.add(Note(id=1, body=before))
    life = cells.worker()
    until(asked.is_set)
    with cells.session() as session:
        session.execute(text("UPDATE note SET status = 'cancelled'"))
        session.commit()
    gate.set()
    life.quiet()
    with cells.session() as session:
        assert session.scalars(select(Note)).one().body == after
    assert [one.state.value for one in cells.attempts()] == ([] if state is None else [state])
