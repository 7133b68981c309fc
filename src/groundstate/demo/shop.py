"""A small shop: its orders are charged, packed and confirmed by mail. All of it is here; the web shop only inserts orders."""

from __future__ import annotations

import os
import smtplib
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.message import EmailMessage
from typing import Any

import httpx
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import (
    Absent,
    App,
    ExternalService,
    IdempotencyKey,
    InDoubt,
    ReactionContext,
    Store,
    Throttled,
    Unknown,
    UtcDateTime,
    not_done,
)


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    total: Mapped[int]  # in cents
    placed_at: Mapped[datetime] = mapped_column(UtcDateTime)
    status: Mapped[str] = mapped_column(default="placed", index=True)  # placed -> paid -> packed, or declined -> cancelled
    receipt: Mapped[str | None] = mapped_column(default=None, index=True)
    mailed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)  # a done column: has the mail gone out?


@dataclass(frozen=True)
class Receipt:
    id: str


@dataclass(frozen=True)
class Declined:
    why: str


app = App("shop", Store(os.environ.get("SHOP_DATABASE", "sqlite:///shop.db"), Base))
gateway = os.environ.get("SHOP_GATEWAY", "http://127.0.0.1:8001")
bank = ExternalService("bank", limit=20, not_done=not_done.HTTPX, client=lambda: httpx.AsyncClient(base_url=gateway))
smtp = ExternalService("smtp", limit=4, not_done=not_done.SMTPLIB)


def outcome_of_charge(charge: dict[str, Any]) -> Receipt | Declined:
    return Receipt(charge["id"]) if charge["outcome"] == "charged" else Declined(charge["why"])


@bank.call(in_doubt=InDoubt.lookup(settle_after=timedelta(seconds=3)), timeout=timedelta(seconds=2))
async def charge(order: Order, key: IdempotencyKey, client: httpx.AsyncClient) -> Receipt | Declined:
    answer = await client.post("/charges", json={"key": key, "order": order.id, "amount": order.total})
    if answer.status_code == 503:
        raise Throttled(timedelta(seconds=int(answer.headers["retry-after"])))
    return outcome_of_charge(answer.json())


@charge.lookup
async def charge_lookup(order: Order, key: IdempotencyKey, client: httpx.AsyncClient) -> Receipt | Declined | Absent | Unknown:
    answer = await client.get("/charges", params={"key": key})
    return outcome_of_charge(answer.json()) if answer.is_success else Absent() if answer.status_code == 404 else Unknown()


@app.on(Order, Order.status == "placed", call=charge)
def paid(order: Order, outcome: Receipt | Declined) -> None:
    if isinstance(outcome, Receipt):
        order.status, order.receipt = "paid", outcome.id
    else:
        order.status = "declined"


@app.on(Order, Order.status == "paid")
def packed(order: Order) -> None:
    order.status = "packed"


@app.on(Order, Order.status == "declined")
def cancelled(order: Order) -> None:
    order.status = "cancelled"


@smtp.call(in_doubt=InDoubt.hold())  # nobody can ask a mail server whether a mail has arrived: where that is in doubt, a person decides
def send(order: Order, key: IdempotencyKey) -> str:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "shop@example.org", order.email, f"Receipt {order.receipt}"
    mail["Message-ID"], mail["X-Order"] = f"<{key}@example.org>", str(order.id)
    mail.set_content(f"Thank you! We charged {order.total / 100:.2f} for your order {order.id}.")
    host, port = os.environ.get("SHOP_SMTP", "127.0.0.1:1025").rsplit(":", 1)
    with smtplib.SMTP(host, int(port), timeout=20) as server:
        server.send_message(mail)
    return key


@app.on(Order, Order.receipt.is_not(None), call=send, done_column=Order.mailed_at)
def mailed(order: Order, outcome: str, ctx: ReactionContext) -> None:
    order.mailed_at = ctx.now


app.at_rest(Order, Order.status.in_(["packed", "cancelled"]))

# ruff: noqa: D101, D103, ARG001 - this is how a user writes, and the framework supplies arguments by position
