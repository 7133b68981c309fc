"""Every kind of model that users write (hazard 24), each with how its records are made, what moves them on, and what is true at the end."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import (
    DDL,
    JSON,
    Column,
    Computed,
    Enum,
    ForeignKey,
    Integer,
    LargeBinary,
    String,
    Table,
    Uuid,
    event,
    func,
)
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    column_property,
    composite,
    mapped_column,
    registry,
    relationship,
)
from sqlmodel import Field, SQLModel

from groundstate import UtcDateTime


class Base(DeclarativeBase):
    pass


class Step(enum.Enum):
    NEW = "n"
    MIDDLE = "m"
    DONE = "d"


@dataclass(frozen=True)
class Kind:
    """new -> middle by a reaction without a call, middle -> done by one with a call."""

    model: Any
    make: Callable[[int], Any]
    states: tuple[Any, Any, Any] = ("new", "middle", "done")
    state: str = "status"
    clauses: tuple[Any, ...] = ()
    first: Callable[[Any], None] = lambda _: None  # what the first handler does beside moving on
    then: Callable[[Any], None] = lambda _: None  # what the second does
    true: Callable[[Any], bool] = lambda _: True  # of each record at the end


class Generated(Base):
    __tablename__ = "generated"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    amount: Mapped[int]
    double: Mapped[int] = mapped_column(Computed("amount * 2"))


class Triggered(Base):
    __tablename__ = "triggered"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    touched: Mapped[int] = mapped_column(default=0)


def triggered_by(table: Any, body: str, when: str) -> None:
    """Makes a trigger on updates of `status`, on each store in its own words."""
    changes = f"UPDATE {table.name} SET {body} WHERE id = new.id"
    sqlite = f"CREATE TRIGGER {table.name}_t AFTER UPDATE OF status ON {table.name} WHEN {when} BEGIN {changes}; END"
    event.listen(table, "after_create", DDL(sqlite).execute_if(dialect="sqlite"))  # type: ignore[no-untyped-call]  # SQLAlchemy has no types there
    function = f"CREATE FUNCTION {table.name}_f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {changes}; RETURN NULL; END $$"
    trigger = (
        f"CREATE TRIGGER {table.name}_t AFTER UPDATE OF status ON {table.name} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION {table.name}_f()"
    )
    event.listen(table, "after_create", DDL(function).execute_if(dialect="postgresql"))  # type: ignore[no-untyped-call]  # SQLAlchemy has no types there
    event.listen(table, "after_create", DDL(trigger).execute_if(dialect="postgresql"))  # type: ignore[no-untyped-call]  # SQLAlchemy has no types there


triggered_by(Triggered.__table__, "touched = touched + 1", "true")


class Stamped(Base):
    __tablename__ = "stamped"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    changed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, onupdate=func.now())
    changes: Mapped[str | None] = mapped_column(onupdate=lambda: "python")


class Loose(Base):
    __tablename__ = "loose"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    data: Mapped[Any] = mapped_column(MutableDict.as_mutable(JSON), default=dict)
    items: Mapped[Any] = mapped_column(JSON, default=list)


class Hybrid(Base):
    __tablename__ = "hybrid"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")

    @hybrid_property
    def step(self) -> str:
        return self.status

    @step.inplace.setter
    def _set_step(self, value: str) -> None:
        self.status = value


class Full(Base):
    __tablename__ = "full_names"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    first: Mapped[str] = mapped_column(default="Ada")
    last: Mapped[str] = mapped_column(default="L")
    full: Mapped[str] = column_property(first + " " + last)


class Animal(Base):
    __tablename__ = "animals"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012  # as SQLAlchemy's own examples


class Dog(Animal):
    name: Mapped[str | None] = mapped_column(default=None)
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


class Payment(Base):
    __tablename__ = "payments"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "payment"}  # noqa: RUF012


class CardPayment(Payment):
    __tablename__ = "card_payments"
    id: Mapped[int] = mapped_column(ForeignKey("payments.id"), primary_key=True)
    card: Mapped[str | None] = mapped_column(default=None)
    used: Mapped[bool] = mapped_column(default=False)
    __mapper_args__ = {"polymorphic_identity": "card"}  # noqa: RUF012


class Pair(Base):
    __tablename__ = "pairs"
    left: Mapped[int] = mapped_column(primary_key=True)
    right: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


class Unique(Base):
    __tablename__ = "uniques"
    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


class UniquePair(Base):
    __tablename__ = "unique_pairs"
    day: Mapped[date] = mapped_column(primary_key=True)
    who: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


class Enumerated(Base):
    __tablename__ = "enumerated"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[Step] = mapped_column(default=Step.NEW)


class ByEnum(Base):
    __tablename__ = "by_enum"
    step: Mapped[Step] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


class Suit(enum.Enum):
    A, B, C, D, E, F, G, H, I, J, K, L = "abcdefghijkl"  # noqa: E741


class BySuit(Base):
    """Its key is written by the values of an enum, and not by its names."""

    __tablename__ = "by_suit"
    suit: Mapped[Any] = mapped_column(Enum(Suit, values_callable=lambda suits: [suit.value for suit in suits]), primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


class Words(Base):
    __tablename__ = 'Order "by" Select'
    id: Mapped[int] = mapped_column("Group", primary_key=True)
    status: Mapped[str] = mapped_column("select", default="new")
    note: Mapped[str | None] = mapped_column("From %s (x)", default=None)
    values: Mapped[str | None] = mapped_column("Values", default=None)


class Texts(Base):
    __tablename__ = "texts"
    id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


class Timed(Base):
    __tablename__ = "timed"
    at: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


class Versioned(Base):
    __tablename__ = "versioned"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    version: Mapped[int] = mapped_column(nullable=False)
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


class Hooked(Base):
    __tablename__ = "hooked"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    hooks: Mapped[int] = mapped_column(default=0)


@event.listens_for(Hooked, "before_update")
def _count(_mapper: Any, _connection: Any, target: Hooked) -> None:
    target.hooks += 1


class Heavy(Base):
    __tablename__ = "heavy"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    blob: Mapped[bytes | None] = mapped_column(LargeBinary, default=b"\x00\x01", deferred=True)
    seen: Mapped[str | None] = mapped_column(default=None, deferred=True)


class Parent(Base):
    __tablename__ = "parents"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    children: Mapped[list[Child]] = relationship(lazy="joined", order_by="Child.id")


class Child(Base):
    __tablename__ = "children"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey("parents.id"))
    status: Mapped[str] = mapped_column(default="new")
    parent: Mapped[Parent] = relationship(lazy="joined", viewonly=True)


class Data(MappedAsDataclass, Base):
    __tablename__ = "data"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


@dataclass
class Point:
    x: int
    y: int


class Placed(Base):
    __tablename__ = "placed"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    at: Mapped[Point] = composite(mapped_column("x"), mapped_column("y"))


class Classic:
    """Mapped in the old way, with a prefix before its columns' names."""

    def __init__(self, _id: int) -> None:
        self._id = _id
        self._status = "new"


_classic = Table("classic", Base.metadata, Column("id", Integer, primary_key=True), Column("status", String))
registry(metadata=Base.metadata).map_imperatively(Classic, _classic, column_prefix="_")


class Champion(SQLModel, table=True):
    __tablename__ = "champions"
    id: int | None = Field(default=None, primary_key=True)
    status: str = "new"
    power: str | None = None


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def _json_in_place(record: Any) -> None:
    record.data["seen"] = True
    record.items = [*record.items, 1]


def _children_too(record: Any) -> None:
    for child in record.children:
        child.status = "seen"


def _set(**values: Any) -> Callable[[Any], None]:
    def write(record: Any) -> None:
        for name, value in values.items():
            setattr(record, name, value)

    return write


KINDS: dict[str, Kind] = {
    "generated columns": Kind(Generated, lambda n: Generated(id=n, amount=n), clauses=(Generated.double > 0,),
                              first=lambda r: setattr(r, "amount", r.amount + 1), true=lambda r: r.double == 2 * (r.id + 1)),
    "a trigger": Kind(Triggered, lambda n: Triggered(id=n), true=lambda r: r.touched == 2),
    "onupdate": Kind(Stamped, lambda n: Stamped(id=n), true=lambda r: r.changed_at is not None and r.changes == "python"),
    "mutable JSON": Kind(Loose, lambda n: Loose(id=n, data={}, items=[]), first=_json_in_place,
                         true=lambda r: r.data == {"seen": True} and r.items == [1]),
    "a hybrid property": Kind(Hybrid, lambda n: Hybrid(id=n), state="step"),
    "column_property": Kind(Full, lambda n: Full(id=n), clauses=(Full.full.like("A% L%"),), first=_set(last="Love"),
                            true=lambda r: r.full == "Ada Love"),
    "single-table inheritance, the base": Kind(Animal, lambda n: Dog(id=n, name="Rex") if n % 2 else Animal(id=n),
                                               true=lambda r: r.id % 2 == 0 or r.name == "Rex"),
    "joined-table inheritance, the child": Kind(CardPayment, lambda n: CardPayment(id=n, card="1"), clauses=(CardPayment.card == "1",),
                                                first=_set(used=True), true=lambda r: r.used),
    "a composite key": Kind(Pair, lambda n: Pair(left=n, right=f'a "{n}", ü')),
    "a UUID key": Kind(Unique, lambda n: Unique(id=uuid.UUID(int=n))),
    "a composite key of date and UUID": Kind(
        UniquePair, lambda n: UniquePair(day=date(2026, 1, 1) + timedelta(days=n), who=uuid.UUID(int=n))
    ),
    "an enum": Kind(Enumerated, lambda n: Enumerated(id=n), states=(Step.NEW, Step.MIDDLE, Step.DONE)),
    "an enum in the key": Kind(ByEnum, lambda n: ByEnum(step=Step.DONE, id=n)),
    "an enum as the key": Kind(BySuit, lambda n: BySuit(suit=list(Suit)[n - 1])),
    "quoted names and reserved words": Kind(Words, lambda n: Words(id=n), first=_set(note="a"), then=_set(values="b"),
                                            true=lambda r: (r.note, r.values) == ("a", "b")),
    "a text key": Kind(Texts, lambda n: Texts(id=f"key/{n}'\"%s ü")),
    "a time as key": Kind(Timed, lambda n: Timed(at=NOON + timedelta(microseconds=n))),
    "version_id_col": Kind(Versioned, lambda n: Versioned(id=n), true=lambda r: r.version == 3),
    "mapper hooks": Kind(Hooked, lambda n: Hooked(id=n), true=lambda r: r.hooks == 2),
    "deferred columns": Kind(Heavy, lambda n: Heavy(id=n), first=_set(seen="yes"), true=lambda r: (r.seen, r.blob) == ("yes", b"\x00\x01")),
    "a joined relationship": Kind(Parent, lambda n: Parent(id=n, children=[Child(id=2 * n), Child(id=2 * n + 1)]), first=_children_too,
                                  true=lambda r: [child.status for child in r.children] == ["seen", "seen"]),
    "a dataclass": Kind(Data, lambda n: Data(id=n)),
    "a composite attribute": Kind(Placed, lambda n: Placed(id=n, at=Point(n, 1)), first=_set(at=Point(0, 9)),
                                  true=lambda r: r.at == Point(0, 9)),
    "imperative mapping": Kind(Classic, Classic, state="_status"),
    "SQLModel": Kind(Champion, lambda n: Champion(id=n), first=_set(power="more"), true=lambda r: r.power == "more"),
}  # fmt: skip
