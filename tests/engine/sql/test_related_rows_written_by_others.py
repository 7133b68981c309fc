"""Rows that a handler writes by way of others, or in a savepoint of its own: what somebody else wrote to them meanwhile is not lost.

PostgreSQL alone: on SQLite a transaction of ours has the database to itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import JSON, DateTime, ForeignKey, Numeric, String, TypeDecorator, create_engine, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from groundstate import ExternalService, InDoubt, Retry
from groundstate.engine.sql.call_write_guard import outside_of_call
from tests.engine.kit import World, ms


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "related_accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int] = mapped_column(default=0)


class AnyCase(TypeDecorator[str]):
    """Its values are the same for it whatever the case of their letters."""

    impl = String
    cache_ok = True

    def compare_values(self, x: Any, y: Any) -> bool:
        return str(x).lower() == str(y).lower()


class Vector:
    """As an array of numbers is: its == is no truth."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __eq__(self, other: object) -> Any:
        return NotImplemented if not isinstance(other, Vector) else NoTruth()

    __hash__ = None  # type: ignore[assignment]  # as of a list


class NoTruth:
    def __bool__(self) -> bool:
        raise ValueError("the truth of an array is ambiguous")


class VectorType(TypeDecorator[Vector]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: Vector | None, dialect: Any) -> str | None:  # noqa: ARG002  # what a type is given
        return None if value is None else json.dumps(value.numbers)

    def process_result_value(self, value: str | None, dialect: Any) -> Vector | None:  # noqa: ARG002  # what a type is given
        return None if value is None else Vector(json.loads(value))


class File(Base):
    """A row beside the record, with values of many kinds."""

    __tablename__ = "related_files"
    id: Mapped[int] = mapped_column(primary_key=True)
    seen: Mapped[int] = mapped_column(default=0)
    data: Mapped[Any] = mapped_column(JSON)
    tracked: Mapped[Any] = mapped_column(MutableDict.as_mutable(JSONB()))
    name: Mapped[str] = mapped_column(AnyCase)
    vector: Mapped[Vector] = mapped_column(VectorType, deferred=True)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    price: Mapped[Decimal] = mapped_column(Numeric(8, 2))


class Order(Base):
    __tablename__ = "related_orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    note: Mapped[str] = mapped_column(default="")


class Booking(Base):
    __tablename__ = "related_bookings"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(default="plain")
    status: Mapped[str] = mapped_column(default="new")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "plain"}  # noqa: RUF012  # as the declarative base has it


class Trip(Booking):
    """Half of it stands in a table of its own."""

    __tablename__ = "related_trips"
    id: Mapped[int] = mapped_column(ForeignKey("related_bookings.id"), primary_key=True)
    total: Mapped[int] = mapped_column(default=0)
    __mapper_args__ = {"polymorphic_identity": "trip"}  # noqa: RUF012


class Shelf(Base):
    """Its boxes and its lamp do not know of it but by their columns."""

    __tablename__ = "related_shelves"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    boxes: Mapped[list[Box]] = relationship()
    parcels: Mapped[list[Parcel]] = relationship(cascade="all, delete-orphan")
    lamp: Mapped[Lamp | None] = relationship()


class Box(Base):
    __tablename__ = "related_boxes"
    id: Mapped[int] = mapped_column(primary_key=True)
    weight: Mapped[int] = mapped_column(default=0)
    shelf_id: Mapped[int | None] = mapped_column(ForeignKey("related_shelves.id"))


class Parcel(Base):
    __tablename__ = "related_parcels"
    id: Mapped[int] = mapped_column(primary_key=True)
    weight: Mapped[int] = mapped_column(default=0)
    shelf_id: Mapped[int] = mapped_column(ForeignKey("related_shelves.id"))


class Lamp(Base):
    __tablename__ = "related_lamps"
    id: Mapped[int] = mapped_column(primary_key=True)
    shelf_id: Mapped[int | None] = mapped_column(ForeignKey("related_shelves.id"))


class Office:
    """A world, and somebody else who writes once while a handler is under way."""

    def __init__(self, url: str) -> None:
        self.world = World(url, Base)
        self.other = create_engine(url)
        self.met = 0

    def meet(self, statement: str) -> None:
        """The first time: somebody else has done this, and committed it."""
        self.met += 1
        if self.met == 1:
            with outside_of_call(), self.other.begin() as connection:
                connection.execute(text(statement))

    def stored(self, statement: str) -> list[Any]:
        with self.other.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement))]

    def close(self) -> None:
        self.other.dispose()
        self.world.close()


@pytest.fixture
def office(postgres_url: str) -> Iterator[Office]:
    made = Office(postgres_url)
    yield made
    made.close()


# ---- a lost update that the handler catches -----------------------------------------------------------------------------------------
class NotBookedError(Exception):
    pass


def _in_a_savepoint(account: Account, order: Order, session: Session) -> None:
    try:
        with session.begin_nested():
            account.balance += 1
            session.flush()
    except Exception:  # noqa: BLE001  # as handlers do
        order.note = "not booked"


def _without_one(account: Account, order: Order, session: Session) -> None:
    account.balance += 1
    try:
        session.flush()
    except Exception:  # noqa: BLE001  # as handlers do
        session.expire(account)
        order.note = "not booked"


def _as_another(account: Account, _order: Order, session: Session) -> None:
    account.balance += 1
    try:
        session.flush()
    except Exception as error:
        raise NotBookedError from error


CATCHES: dict[str, Callable[[Account, Order, Session], None]] = {
    "in a savepoint": _in_a_savepoint,
    "without one": _without_one,
    "and raises another": _as_another,
}


@pytest.mark.parametrize("alone", [False, True], ids=["together", "alone"])
@pytest.mark.parametrize("which", CATCHES)
def test_a_lost_update_that_the_handler_catches_is_done_again(office: Office, which: str, alone: bool) -> None:
    tried: list[int] = []

    @office.world.app.on(Order, Order.status == "new", retry=Retry(times=1, first=ms(5)))
    def booked(order: Order, session: Session) -> None:
        tried.append(order.id)
        if alone and len(tried) == 1:
            raise RuntimeError("once: then each is run in a savepoint of its own")
        account = session.get_one(Account, 1)
        office.meet("update related_accounts set balance = balance + 100")
        CATCHES[which](account, order, session)
        order.status = "done"

    office.world.add(Account(id=1), Order(id=1))
    office.world.settled()
    assert office.world.attempts() == []
    assert office.stored("select balance from related_accounts") == [(101,)]
    assert office.stored("select status, note from related_orders") == [("done", "")]


def test_an_outcome_whose_handler_made_another_error_of_a_lost_update_is_not_held(office: Office) -> None:
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.hold())
    def ask(order: Order) -> int:
        return order.id

    @office.world.app.on(Order, Order.status == "new", call=ask)
    def booked(order: Order, outcome: int, session: Session) -> None:
        account = session.get_one(Account, 1)
        office.meet("update related_accounts set balance = balance + 100")
        _as_another(account, order, session)
        order.note = str(outcome)
        order.status = "done"

    office.world.add(Account(id=1), Order(id=1))
    office.world.settled()
    assert office.world.attempts() == []
    assert office.stored("select balance from related_accounts") == [(101,)]
    assert office.stored("select status, note from related_orders") == [("done", "1")]


# ---- a record in two tables -----------------------------------------------------------------------------------------------------------
def _add(office: Office, booking: Booking, amount: int) -> None:
    assert isinstance(booking, Trip)
    before = booking.total
    office.meet("update related_trips set total = total + 100")
    booking.total = before + amount
    booking.status = "done"


def test_the_row_of_a_subclass_is_compared_where_the_reaction_is_on_the_class_above_it(office: Office) -> None:
    @office.world.app.on(Booking, Booking.status == "new")
    def booked(booking: Booking) -> None:
        _add(office, booking, 1)

    office.world.add(Trip(id=1))
    office.world.settled()
    assert office.stored("select total from related_trips") == [(101,)]


def test_it_is_compared_where_an_outcome_is_put_to_it(office: Office) -> None:
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.hold())
    def ask(booking: Booking) -> int:
        return booking.id

    @office.world.app.on(Booking, Booking.status == "new", call=ask)
    def booked(booking: Booking, outcome: int) -> None:
        _add(office, booking, outcome)

    office.world.add(Trip(id=1))
    office.world.settled()
    assert office.stored("select total from related_trips") == [(101,)]
    assert office.world.attempts() == []


def test_a_record_of_a_subclass_is_not_deleted_by_what_was_read_of_it_before_it_changed(office: Office) -> None:
    @office.world.app.on(Booking, Booking.status == "new")
    def booked(booking: Booking, session: Session) -> None:
        assert isinstance(booking, Trip)
        empty = booking.total == 0
        office.meet("update related_trips set total = total + 100")
        booking.status = "done"
        if empty:
            session.delete(booking)

    office.world.add(Trip(id=1))
    office.world.settled()
    assert office.stored("select total from related_trips") == [(100,)]


def test_a_record_in_two_tables_that_nobody_else_changes_is_carried_out_once(office: Office) -> None:
    ran: list[int] = []

    @office.world.app.on(Booking, Booking.status == "new")
    def booked(booking: Booking) -> None:
        ran.append(booking.id)
        if isinstance(booking, Trip):
            booking.total += 1
        booking.status = "done"

    office.world.add(Trip(id=1), Booking(id=2), Trip(id=3))
    office.world.settled()
    assert sorted(ran) == [1, 2, 3]
    assert office.stored("select total from related_trips") == [(1,), (1,)]


# ---- rows in a collection that do not know of it --------------------------------------------------------------------------------------
def _put_in(office: Office, shelf: Shelf, session: Session) -> None:
    free = session.scalars(select(Box).where(Box.shelf_id.is_(None))).first()
    office.meet("update related_boxes set shelf_id = 9")
    if free is not None:
        shelf.boxes.append(free)


def _take_out(office: Office, shelf: Shelf, _session: Session) -> None:
    found = [one for one in shelf.boxes if one.weight == 0]
    office.meet("update related_boxes set weight = 5")
    for one in found:
        shelf.boxes.remove(one)


def _make_an_orphan(office: Office, shelf: Shelf, _session: Session) -> None:
    found = [one for one in shelf.parcels if one.weight == 0]
    office.meet("update related_parcels set weight = 5")
    for one in found:
        shelf.parcels.remove(one)


def _set(office: Office, shelf: Shelf, session: Session) -> None:
    free = session.scalars(select(Lamp).where(Lamp.shelf_id.is_(None))).first()
    office.meet("update related_lamps set shelf_id = 9")
    if free is not None:
        shelf.lamp = free


def _delete_the_owner(office: Office, _shelf: Shelf, session: Session) -> None:
    other = session.get_one(Shelf, 9)
    light = sum(one.weight for one in other.boxes) == 0
    office.meet("update related_boxes set weight = 5")
    if light:
        session.delete(other)


MEMBERS: dict[str, tuple[Any, Any, str, list[Any]]] = {
    "put in": (_put_in, lambda: Box(id=1), "select shelf_id from related_boxes", [(9,)]),
    "taken out": (_take_out, lambda: Box(id=1, shelf_id=1), "select shelf_id, weight from related_boxes", [(1, 5)]),
    "an orphan": (_make_an_orphan, lambda: Parcel(id=1, shelf_id=1), "select weight from related_parcels", [(5,)]),
    "one alone": (_set, lambda: Lamp(id=1), "select shelf_id from related_lamps", [(9,)]),
    "of an owner that is deleted": (
        _delete_the_owner,
        lambda: Box(id=1, shelf_id=9),
        "select shelf_id, weight from related_boxes",
        [(9, 5)],
    ),
}


@pytest.mark.parametrize("which", MEMBERS)
def test_a_row_that_is_put_into_a_collection_or_taken_out_of_it_is_compared(office: Office, which: str) -> None:
    act, row, asked, expected = MEMBERS[which]
    ran: list[int] = []

    @office.world.app.on(Shelf, Shelf.status == "new")
    def done(shelf: Shelf, session: Session) -> None:
        ran.append(shelf.id)
        act(office, shelf, session)
        shelf.status = "done"

    office.world.add(Shelf(id=9, status="done"), Shelf(id=1))
    office.world.add(row())
    office.world.settled()
    assert office.stored(asked) == expected
    assert ran == [1, 1]


# ---- what is the same -------------------------------------------------------------------------------------------------------------------
def _file() -> File:
    at = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    data = {"paid": 1}
    return File(id=1, data=data, tracked=data, name="x", vector=Vector([1, 2]), at=at, price=Decimal("1.5"))


CHANGES = {
    "data": """data = '{"paid": true}'""",
    "tracked": """tracked = '{"paid": true}'""",
    "name": "name = 'X'",
    "vector": "vector = '[1, 3]'",
    "at": "at = at + interval '1 hour'",
    "price": "price = 1.51",
    "nothing": "seen = 0",
}


@pytest.mark.parametrize("which", CHANGES)
def test_a_row_beside_the_record_is_read_again_where_any_value_of_it_is_another_one(office: Office, which: str) -> None:
    ran: list[int] = []

    @office.world.app.on(Order, Order.status == "new")
    def done(order: Order, session: Session) -> None:
        ran.append(order.id)
        file = session.get_one(File, 1)
        if which in ("vector", "nothing"):  # where it cannot be compared, it hides what is seen of others
            assert file.vector is not None
        office.meet(f"update related_files set {CHANGES[which]}")
        file.seen += 1
        order.status = "done"

    office.world.add(_file(), Order(id=1))
    office.world.settled()
    assert ran == ([1] if which == "nothing" else [1, 1])
    assert office.stored("select seen from related_files") == [(1,)]
