"""Every kind of model that users write (hazard 24), each with how its records are made, what moves them on, and what is true at the end."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    DDL,
    JSON,
    Column,
    Computed,
    ForeignKey,
    LargeBinary,
    Numeric,
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
    deferred,
    mapped_column,
    registry,
    relationship,
)
from sqlmodel import Field, SQLModel

from groundstate import Instant


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
    sqlite = f"CREATE TRIGGER {table.name}_t AFTER UPDATE OF status ON {table.name} WHEN {when} BEGIN UPDATE {table.name} SET {body} WHERE id = new.id; END"
    event.listen(table, "after_create", DDL(sqlite).execute_if(dialect="sqlite"))
    function = (
        f"CREATE FUNCTION {table.name}_f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE {table.name} SET {body} WHERE id = new.id;"
        " RETURN NULL; END $$"
    )
    trigger = f"CREATE TRIGGER {table.name}_t AFTER UPDATE OF status ON {table.name} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION {table.name}_f()"
    event.listen(table, "after_create", DDL(function).execute_if(dialect="postgresql"))
    event.listen(table, "after_create", DDL(trigger).execute_if(dialect="postgresql"))


triggered_by(Triggered.__table__, "touched = touched + 1", "true")


class Stamped(Base):
    __tablename__ = "stamped"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    changed_at: Mapped[datetime | None] = mapped_column(Instant, onupdate=func.now())
    changes: Mapped[str | None] = mapped_column(onupdate=lambda: "python")


class Loose(Base):
    __tablename__ = "loose"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    data: Mapped[Any] = mapped_column(MutableDict.as_mutable(JSON), default=dict)
    items: Mapped[Any] = mapped_column(JSON, default=list)


class Named(Base):
    __tablename__ = "named"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    first: Mapped[str]
    last: Mapped[str]
    full: Mapped[str] = column_property(Column("first", String) + " " + Column("last", String)) if False else mapped_column(default="")

    @hybrid_property
    def is_new(self) -> bool:
        return self.status == "new"

    @hybrid_property
    def step(self) -> str:
        return self.status

    @step.inplace.setter
    def _step(self, value: str) -> None:
        self.status = value


class Joined(Base):
    __tablename__ = "joined"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    first: Mapped[str] = mapped_column(default="Ada")
    last: Mapped[str] = mapped_column(default="L")
    full: Mapped[str] = column_property(func.upper("x"))


Joined.full = column_property(Joined.__table__.c.first + " " + Joined.__table__.c.last)  # type: ignore[assignment]  # a property added later


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
    at: Mapped[datetime] = mapped_column(Instant, primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


class Priced(Base):
    __tablename__ = "priced"
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2, asdecimal=True).with_variant(String, "sqlite"), primary_key=True)
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
    blob: Mapped[bytes | None] = deferred(mapped_column(LargeBinary, default=b"\x00\x01"))
    seen: Mapped[str | None] = deferred(mapped_column(default=None))


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


_classic = Table("classic", Base.metadata, Column("id", JSON().with_variant(String, "sqlite") if False else String, primary_key=True), Column("status", String))
registry(metadata=Base.metadata).map_imperatively(Classic, _classic, column_prefix="_")


class Hero(SQLModel, table=True):
    __tablename__ = "heroes"
    id: int | None = Field(default=None, primary_key=True)
    status: str = "new"
    power: str | None = None
