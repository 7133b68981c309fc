"""Models as users write them: plain declarative, dataclasses and SQLModel. Made for declaring; no table of them is created."""

from __future__ import annotations

import enum
from datetime import date, datetime
from typing import Any, Literal

from sqlalchemy import JSON, ForeignKey
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column, relationship
from sqlmodel import Field, SQLModel

from groundstate import UtcDateTime


class Base(DeclarativeBase): ...


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


class Level(enum.StrEnum):
    LOW = "low"
    HIGH = "high"


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    tenant: Mapped[str]
    channel: Mapped[str | None]
    total: Mapped[int]
    refunded: Mapped[int | None]
    gift: Mapped[bool] = mapped_column(default=False)
    size: Mapped[Size] = mapped_column(default=Size.SMALL)
    level: Mapped[Level | None]
    kind: Mapped[Literal["web", "shop"]] = mapped_column(default="web")
    placed_at: Mapped[datetime] = mapped_column(UtcDateTime)
    day: Mapped[date]
    next_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    mailed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    counted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    notes: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    tracked: Mapped[dict[str, Any]] = mapped_column(MutableDict.as_mutable(JSON()), default=dict)
    items: Mapped[list[Item]] = relationship(back_populates="order")


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    packed: Mapped[bool | None]
    weight: Mapped[int]
    order: Mapped[Order] = relationship(back_populates="items")


class Rush(Order):
    """Joined-table inheritance."""

    __tablename__ = "rush_orders"
    id: Mapped[int] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    courier: Mapped[str | None]


class DataBase(MappedAsDataclass, DeclarativeBase): ...


class Parcel(DataBase):
    __tablename__ = "parcels"
    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    state: Mapped[str]
    sent_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class Hero(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    state: str
    saved_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
