"""The app of these tests, as text: each test imports it under a name of its own, since two apps of one name are refused."""

from __future__ import annotations

TEXT = """
import warnings
from datetime import datetime, timedelta
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from groundstate import Absent, App, ExternalService, InDoubt, IdempotencyKey, Store, Unknown, UtcDateTime

warnings.filterwarnings("ignore", "reaction noted: wherever it holds")  # two that want one record are what some tests are about

class Base(DeclarativeBase): ...

class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    receipt: Mapped[str | None] = mapped_column(default=None)
    mailed: Mapped[str | None] = mapped_column(default=None)
    note: Mapped[str | None] = mapped_column(default=None)

class Item(Base):
    __tablename__ = "items"
    order_id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")

app = App(NAME, Store(URL, Base))
bank = ExternalService("bank")

@bank.call(in_doubt=InDoubt.lookup(settle_after=timedelta(seconds=30)), timeout=timedelta(seconds=20))
def charge(order: Order, key: IdempotencyKey) -> str:
    return f"r{order.id}"

@charge.lookup
def find_charge(order: Order, key: IdempotencyKey) -> str | Absent | Unknown:
    return Absent()

@bank.call(in_doubt=InDoubt.hold())
def send(order: Order) -> str:
    return f"m{order.id}"

@app.on(Order, Order.status == "placed", call=charge)
def paid(order: Order, outcome: str) -> None:
    order.status, order.receipt = "paid", outcome

@app.on(Order, Order.status == "paid")
def packed(order: Order) -> None:
    order.status = "packed"

@app.on(Order, Order.note == "please", Order.status == "placed")
def noted(order: Order) -> None:
    order.note = "noted"

@app.on(Order, Order.receipt.is_not(None), call=send, done_column=Order.mailed)
def mailed(order: Order, outcome: str) -> None:
    order.mailed = outcome

@app.on(Item, Item.status == "new")
def seen(item: Item) -> None:
    item.status = "seen"

app.at_rest(Order, Order.status == "packed")
"""
