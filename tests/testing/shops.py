"""Apps for the lab: one that is right, and parts of it that are wrong in one way each. Their own databases are never opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import Absent, App, ExternalService, IdempotencyKey, InDoubt, NotDone, ReactionContext, Retry, Store, Unknown, UtcDateTime

SECONDS = timedelta(seconds=30)
NOWHERE = "sqlite:///never-opened.db"


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    receipt: Mapped[str | None]
    mailed: Mapped[str | None]
    done_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
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
    bank, smtp = ExternalService("bank"), ExternalService("smtp")

    @bank.call(in_doubt=InDoubt.lookup(settle_after=SECONDS), timeout=timedelta(seconds=20))
    async def charge(order: Order, key: IdempotencyKey) -> str:
        return str(never(order, key))

    @charge.lookup
    async def _(order: Order, key: IdempotencyKey) -> str | Absent | Unknown:
        return str(never(order, key))

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    @app.on(Order, Order.status == "paid")
    def packed(order: Order) -> None:
        order.status = "packed"

    @smtp.call(in_doubt=InDoubt.hold())
    async def send(order: Order) -> str:
        return str(never(order))

    @app.on(Order, Order.receipt.is_not(None), call=send, done_column=Order.mailed)
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


POLICIES = {
    "lookup": InDoubt.lookup(settle_after=SECONDS),
    "same_key": InDoubt.same_key(kept_for=timedelta(days=1)),
    "hold": InDoubt.hold(),
    "repeat": InDoubt.repeat(),
}


def calling(policy: str = "lookup", *, sync: bool = False, retry: Retry | None = None) -> Calling:
    """Charges an order under this policy."""
    app = App("lab-calling", Store(NOWHERE, Base))
    bank = ExternalService("bank")
    declare = bank.call(in_doubt=POLICIES[policy], timeout=timedelta(seconds=20), retry=retry or Retry())
    charge: Any
    if sync:

        @declare
        def charge_in_a_thread(order: Order, key: IdempotencyKey) -> str:
            return str(never(order, key))

        charge = charge_in_a_thread
    else:

        @declare
        async def charge_on_the_loop(order: Order, key: IdempotencyKey) -> str:
            return str(never(order, key))

        charge = charge_on_the_loop
    if policy == "lookup":

        async def find(order: Order, key: IdempotencyKey) -> str | Absent | Unknown:
            return str(never(order, key))

        charge.lookup(find)

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str, ctx: ReactionContext) -> None:
        order.status, order.receipt, order.done_at = "paid", outcome, ctx.now

    return Calling(app, charge, paid)


def many() -> Calling:
    """Charges up to three orders by one request."""
    app = App("lab-many", Store(NOWHERE, Base))

    @ExternalService("bank").call_many(in_doubt=InDoubt.lookup(settle_after=SECONDS), timeout=timedelta(seconds=20), size=3)
    async def charge(orders: Sequence[Order], keys: Sequence[IdempotencyKey]) -> Sequence[str | NotDone]:
        return [str(never(orders, keys))]

    @charge.lookup
    async def _(order: Order, key: IdempotencyKey) -> str | Absent | Unknown:
        return str(never(order, key))

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    return Calling(app, charge, paid)
