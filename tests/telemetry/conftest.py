"""A small app in this process, with every kind of reaction, and a gateway that does as it is told."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import Absent, App, ExternalService, IdempotencyKey, InDoubt, NotDone, Store, Unknown, UtcDateTime, after
from tests.patience import HANG_S

_numbers = itertools.count()


@dataclass
class Shop:
    """The app and its database. `bank` is what the gateway does with each call; `inside` is run within each of them."""

    app: App
    engine: Engine
    bank: str = "outcome"
    gate: threading.Event = field(default_factory=threading.Event)
    handled: threading.Event = field(default_factory=threading.Event)
    inside: Callable[[], None] = lambda: None
    in_handler: Callable[[], None] = lambda: None

    def sql(self, statement: str, **given: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(statement), given)

    def order(self, status: str = "placed", note: str | None = None) -> None:
        self.sql("INSERT INTO orders (status, note, at) VALUES (:status, :note, CURRENT_TIMESTAMP)", status=status, note=note)

    def statuses(self) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.execute(text("SELECT status FROM orders ORDER BY id")).scalars())


def made(url: str) -> Shop:  # noqa: C901  # an app is many small functions
    """The app on a fresh database, set up and not started."""

    class Base(DeclarativeBase): ...

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        status: Mapped[str]
        note: Mapped[str | None]
        receipt: Mapped[str | None]
        at: Mapped[datetime] = mapped_column(UtcDateTime)

    app = App(f"watched{next(_numbers)}", Store(url, Base))
    driver = url.replace("postgresql://", "postgresql+psycopg://")
    shop = Shop(app, create_engine(driver))
    bank, mail = ExternalService("bank"), ExternalService("mail")

    @bank.call(in_doubt=InDoubt.lookup(settle_after=timedelta(hours=1)), timeout=timedelta(seconds=30))
    async def charge(order: Order, key: IdempotencyKey) -> str:
        shop.inside()
        if shop.bank == "refuse":
            raise NotDone("refused: card 4111")
        if shop.bank == "break":
            raise ConnectionResetError("in the middle of card 4111")
        if shop.bank == "block":
            shop.gate.wait(HANG_S)
        return f"r{order.id}"

    @charge.lookup
    async def _(order: Order, key: IdempotencyKey) -> str | Absent | Unknown:
        return Unknown()

    @mail.call(in_doubt=InDoubt.hold())
    def send(order: Order) -> str:
        shop.inside()
        return f"m{order.id}"

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, receipt: str) -> None:
        shop.in_handler()
        order.status = "paid"

    @app.on(Order, Order.status == "paid", call=send)
    def mailed(order: Order, message: str) -> None:
        order.status, order.receipt = "mailed", message

    @app.on(Order, Order.status == "mailed")
    def packed(order: Order) -> None:
        shop.in_handler()
        if order.note == "broken":
            raise ValueError("card 4111")
        if order.note == "block":
            shop.handled.set()
            shop.gate.wait(HANG_S)
        order.status = "packed"

    @app.on(Order, Order.status == "packed", due=after(Order.at, timedelta(days=1)))
    def archived(order: Order) -> None:
        order.status = "archived"

    app.init(tables=True, accept=True)
    return shop


def ended(shop: Shop) -> None:
    shop.gate.set()
    shop.app.stop(timedelta(seconds=5))
    shop.engine.dispose()


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    """On each store."""
    found = made(database_url)
    yield found
    ended(found)


@pytest.fixture
def sqlite_shop(sqlite_url: str) -> Iterator[Shop]:
    """On SQLite alone."""
    found = made(sqlite_url)
    yield found
    ended(found)
