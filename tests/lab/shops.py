"""Apps for the lab: one that is right, and parts of it that are wrong in one way each. Their own databases are never opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import Absent, App, Instant, Key, Moment, NotDone, Outside, Retry, Store, Unknown, again, ask, hold, same_key

SECONDS = timedelta(seconds=30)
NOWHERE = "sqlite:///never-opened.db"


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    receipt: Mapped[str | None]
    mailed: Mapped[str | None]
    done_at: Mapped[datetime | None] = mapped_column(Instant)
    count: Mapped[int] = mapped_column(default=0)


def never(*_: object) -> Any:
    """A call that a lab must not make."""
    raise AssertionError("the lab made a call for real")


@dataclass
class Shop:
    """The right app: charge by `ask`, pack, and mail by `hold` beside it."""

    app: App
    charge: Any
    send: Any


def shop() -> Shop:
    app = App("lab-shop", Store(NOWHERE, Base))
    bank, smtp = Outside("bank"), Outside("smtp")

    @bank.call(in_doubt=ask(settle_after=SECONDS), timeout=timedelta(seconds=20))
    async def charge(order: Order, key: Key) -> str:
        return str(never(order, key))

    @charge.find
    async def _(order: Order, key: Key) -> str | Absent | Unknown:
        return str(never(order, key))

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    @app.on(Order, Order.status == "paid")
    def packed(order: Order) -> None:
        order.status = "packed"

    @smtp.call(in_doubt=hold())
    async def send(order: Order) -> str:
        return str(never(order))

    @app.on(Order, Order.receipt.is_not(None), call=send, fact=Order.mailed)
    def mailed(order: Order, outcome: str) -> None:
        order.mailed = outcome

    return Shop(app, charge, send)


def cancel(session: Session) -> None:
    """Someone cancels the first order, where it is not charged yet."""
    order = session.get(Order, 1)
    if order is not None and order.status == "placed":
        order.status = "cancelled"


def plain(name: str, handler: Callable[..., None]) -> App:
    """One reaction without a call: what becomes of placed orders."""
    app = App(f"lab-{name}", Store(NOWHERE, Base))
    app.on(Order, Order.status == "placed", name=name)(handler)
    return app


@dataclass
class Calling:
    """One reaction with a call."""

    app: App
    call: Any
    reaction: Any


POLICIES = {"ask": ask(settle_after=SECONDS), "same_key": same_key(kept_for=timedelta(days=1)), "hold": hold(), "again": again()}


def calling(policy: str = "ask", *, sync: bool = False, retry: Retry | None = None) -> Calling:
    """Charges an order under this policy."""
    app = App("lab-calling", Store(NOWHERE, Base))
    bank = Outside("bank")
    declare = bank.call(in_doubt=POLICIES[policy], timeout=timedelta(seconds=20), retry=retry or Retry())
    charge: Any
    if sync:

        @declare
        def charge_in_a_thread(order: Order, key: Key) -> str:
            return str(never(order, key))

        charge = charge_in_a_thread
    else:

        @declare
        async def charge_on_the_loop(order: Order, key: Key) -> str:
            return str(never(order, key))

        charge = charge_on_the_loop
    if policy == "ask":

        async def find(order: Order, key: Key) -> str | Absent | Unknown:
            return str(never(order, key))

        charge.find(find)

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str, at: Moment) -> None:
        order.status, order.receipt, order.done_at = "paid", outcome, at.now

    return Calling(app, charge, paid)


def many() -> Calling:
    """Charges up to three orders by one request."""
    app = App("lab-many", Store(NOWHERE, Base))

    @Outside("bank").call_many(in_doubt=ask(settle_after=SECONDS), timeout=timedelta(seconds=20), size=3)
    async def charge(orders: Sequence[Order], keys: Sequence[Key]) -> Sequence[str | NotDone]:
        return [str(never(orders, keys))]

    @charge.find
    async def _(order: Order, key: Key) -> str | Absent | Unknown:
        return str(never(order, key))

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    return Calling(app, charge, paid)
