"""The models of the typing samples."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlmodel import Field, SQLModel

from groundstate import App, ExternalService, Store, UtcDateTime

SECONDS = timedelta(seconds=30)
DAY = timedelta(days=1)


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]
    gift: Mapped[bool]
    next_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    mailed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    items: Mapped[list[Item]] = relationship(back_populates="order")


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    packed: Mapped[bool]
    order: Mapped[Order] = relationship(back_populates="items")


class Hero(SQLModel, table=True):
    __tablename__ = "typed_heroes"  # pyright: ignore[reportAssignmentType]  # SQLModel's own type of it
    id: int | None = Field(default=None, primary_key=True)
    state: str
    saved_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


@dataclass(frozen=True)
class Receipt:
    id: str


@dataclass(frozen=True)
class Declined:
    why: str


@dataclass(frozen=True)
class Mail:
    to: str


app = App("typed", Store("sqlite:///never-opened.db", Base, SQLModel))
bank = ExternalService("bank")
smtp = ExternalService("smtp")
