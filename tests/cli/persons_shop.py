"""A shop whose attempts wait for persons: its database is named when a command opens it."""

from __future__ import annotations

import os
from datetime import timedelta

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import App, ExternalService, InDoubt, Store
from groundstate.values.answers import IdempotencyKey

URL = "PERSONS_SHOP_URL"


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    receipt: Mapped[str | None] = mapped_column(default=None)


app = App("persons-shop", Store(lambda: os.environ[URL], Base))
bank = ExternalService("bank")


@bank.call(in_doubt=InDoubt.hold(), timeout=timedelta(seconds=1))
def charge(order: Order, key: IdempotencyKey) -> str:
    raise RuntimeError("the line went dead")


@app.on(Order, Order.status == "placed", call=charge)
def paid(order: Order, outcome: str) -> None:
    if outcome == "bad":
        raise ValueError("no such receipt")
    order.status, order.receipt = "paid", outcome
