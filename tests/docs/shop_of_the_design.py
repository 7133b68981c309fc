"""The shop by which this library was designed: with a charge, a mail, a time-out and a schedule. Declares; is never run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import Absent, App, ExternalService, IdempotencyKey, InDoubt, ReactionContext, Store, Unknown, UtcDateTime, after, not_done


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    placed_at: Mapped[datetime] = mapped_column(UtcDateTime)
    status: Mapped[str] = mapped_column(default="placed")  # placed -> paid -> packed | cancelled | declined
    receipt: Mapped[str | None] = mapped_column(default=None)
    mailed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class Report(Base):
    __tablename__ = "reports"
    id: Mapped[int] = mapped_column(primary_key=True)
    week: Mapped[date]


@dataclass(frozen=True)
class Receipt:
    id: str


@dataclass(frozen=True)
class Declined:
    why: str


@dataclass(frozen=True)
class Mail:
    to: str


app = App("design", Store("sqlite:///never-opened.db", Base))
bank = ExternalService("bank", limit=50, not_done=not_done.HTTPX)
smtp = ExternalService("smtp")


@bank.call(in_doubt=InDoubt.lookup(settle_after=timedelta(seconds=30)), timeout=timedelta(seconds=20))
async def charge(order: Order, key: IdempotencyKey) -> Receipt | Declined:
    return Declined(f"no {order.id} under {key}")


@charge.lookup
async def _(order: Order, key: IdempotencyKey) -> Receipt | Declined | Absent | Unknown:
    return Unknown()


@app.on(Order, Order.status == "placed", call=charge)
def paid(order: Order, outcome: Receipt | Declined) -> None:
    if isinstance(outcome, Receipt):
        order.status, order.receipt = "paid", outcome.id
    else:
        order.status = "declined"


@app.on(Order, Order.status == "paid")
def packed(order: Order) -> None:
    order.status = "packed"


@smtp.call(in_doubt=InDoubt.hold())
def send(mail: Mail) -> str:
    return mail.to


def receipt_mail(order: Order) -> Mail:
    return Mail(order.email)


@app.on(Order, Order.receipt.is_not(None), call=send, prepare=receipt_mail, done_column=Order.mailed_at)
def mailed(order: Order, outcome: str, ctx: ReactionContext) -> None:
    order.mailed_at = ctx.now


@app.on(Order, Order.status == "placed", due=after(Order.placed_at, timedelta(hours=24)))
def cancel_unpaid(order: Order) -> None:
    order.status = "cancelled"


@app.every("0 7 * * MON", zone="Europe/Berlin", missed="latest")
def weekly_report(session: Session, ctx: ReactionContext) -> None:
    session.add(Report(week=ctx.due.date()))
