"""Right programs: both type checkers accept each line, and the package accepts the module when it is imported."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import assert_type

from sqlalchemy import create_engine, func
from sqlalchemy.orm import Session, selectinload
from sqlmodel import col

from groundstate import (
    Absent,
    App,
    Call,
    Cron,
    ExternalService,
    Failure,
    IdempotencyKey,
    InDoubt,
    InOrder,
    NotDone,
    Occurrence,
    Plain,
    Rate,
    Reaction,
    ReactionContext,
    Retry,
    Store,
    Unknown,
    call_writes,
    every_child,
    not_done,
)
from groundstate.testing import Findings, Lab, Ledger
from tests.typing.models import DAY, SECONDS, Base, Declined, Hero, Item, Mail, Order, Receipt, app, bank, smtp


class Client: ...


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    yield Client()


gateway = ExternalService("gateway", limit=5, not_done=[*not_done.HTTPX, ConnectionRefusedError, "smtplib.SMTPConnectError"], client=client)
tenants = ExternalService("tenants", limit=5, rate=Rate(10, SECONDS), limit_per=2, rate_per=Rate(times=1, each=SECONDS))
late = Store(lambda: create_engine("sqlite:///never-opened.db"), Base.metadata, failover="lossless", redact=str.upper)
listed: Store = Store.shards(["sqlite:///one.db", lambda: "sqlite:///two.db"], Base, name="eu", witness="witness")
by_name = Store.shards({"eu": "postgresql://eu/app", "us": create_engine("sqlite:///us.db")}, Base, direct={"eu": "postgresql://db/app"})
assert_type(by_name.shard("eu"), Store)
assert_type(by_name.databases, tuple[Store, ...])


# ---- calls ---------------------------------------------------------------------------------------------------------------------
@bank.call(in_doubt=InDoubt.lookup(settle_after=SECONDS), timeout=SECONDS, retry=Retry(times=3), load=[selectinload(Order.items)])
async def charge(order: Order, key: IdempotencyKey, ctx: ReactionContext) -> Receipt | Declined:
    return Receipt(key) if ctx.call_no == 1 else Declined("no")


@charge.lookup
async def _(order: Order, key: IdempotencyKey, occurrence: Occurrence) -> Receipt | Declined | Absent | Unknown:
    return Absent() if occurrence else Unknown()


@bank.call(in_doubt=InDoubt.same_key(kept_for=DAY, settle_after=SECONDS))
def refund(order: Order, key: IdempotencyKey) -> int:
    return order.id


@refund.lookup
def _(order: Order) -> int | type[Absent]:
    return Absent


@gateway.call(in_doubt=InDoubt.repeat(), stop_when_overtaken=True)
async def ping(order: Order, client: Client) -> None: ...


@smtp.call(in_doubt=InDoubt.hold())
def send(mail: Mail) -> str:
    return mail.to


@bank.call(in_doubt=InDoubt.repeat())
async def refreshed(order: Order) -> str:
    with call_writes("a token: the last one counts"):
        return "token"


@bank.call_many(size=100, in_doubt=InDoubt.same_key(kept_for=DAY))
async def charge_many(orders: Sequence[Order], keys: Sequence[IdempotencyKey]) -> Sequence[Receipt | NotDone]:
    return [Receipt(key) for key in keys]


@bank.call_many(size=100, in_doubt=InDoubt.hold())
def by_record(orders: Sequence[Order]) -> Mapping[Order, Receipt]:
    return {order: Receipt("") for order in orders}


assert_type(charge, Call[Order, Receipt | Declined])
assert_type(send, Call[Mail, str])
assert_type(charge_many, Call[Order, Receipt])


# ---- reactions -----------------------------------------------------------------------------------------------------------------
@app.on(Order, Order.status == "placed", ~Order.gift, call=charge, occurrence=[Order.next_at])
def paid(order: Order, outcome: Receipt | Declined, ctx: ReactionContext) -> None:
    order.status = "paid" if isinstance(outcome, Receipt) else "declined"


@paid.overtaken
def paid_late(order: Order, outcome: Receipt | Declined, session: Session, key: IdempotencyKey) -> None:
    session.add(Order(status=key))


@paid.gave_up
def never_paid(order: Order, failure: Failure) -> None:
    order.status = failure.error


@app.on(Order, Order.status == "paid", Order.gift, retry=Retry(times=None))
def packed(order: Order) -> None:
    order.status = "packed"


@packed.gave_up
def never_packed(order: Order, failure: Failure, ctx: ReactionContext) -> None:
    order.status = f"{failure.calls} at {ctx.now}"


def receipt_mail(order: Order, session: Session) -> Mail:
    return Mail(order.status)


@app.on(Order, Order.status.in_(["paid", "packed"]), call=send, prepare=receipt_mail, done_column=Order.mailed_at, name="receipt")
def mailed(order: Order, message_id: str, ctx: ReactionContext) -> None:
    order.mailed_at = ctx.now


@app.on(Order, (Order.status == "packed") & every_child(Order.items, Item.packed, Item.id > 0), func.length(Order.status) > 3)
def shipped(order: Order, session: Session) -> None:
    order.status = "shipped"


@app.on(Order, Order.status == "back", call=refund)
def refunded(order: Order, outcome: int) -> None:
    order.status = "refunded"


@app.on(Order, Order.status == "quiet", call=ping)
def pinged(order: Order, outcome: None) -> None:
    order.status = "pinged"


@app.on(Order, Order.status == "bulk", call=charge_many, overtaken="same")
def paid_in_bulk(order: Order, outcome: Receipt) -> None:
    order.status = "paid"


@app.on(Order, Order.status == "bulk by record", call=by_record)
def paid_by_record(order: Order, outcome: Receipt | None) -> None:
    order.status = "paid"


@app.on(Hero, col(Hero.state) == "lost", done_column=col(Hero.saved_at))
def saved(hero: Hero, ctx: ReactionContext) -> None:
    hero.saved_at = ctx.now


@tenants.call(in_doubt=InDoubt.hold())
def tell(order: Order) -> str:
    return order.status


@app.on(Order, Order.status == "told", call=tell, per=Order.status, in_order=InOrder(Order.status, Order.id, past_held=True))
def told(order: Order, answer: str) -> None:
    order.status = answer


@app.on(Hero, col(Hero.state) == "in line", in_order=InOrder(by=col(Hero.state)))
def in_line(hero: Hero) -> None:
    hero.state = "done"


app.at_rest(Order, Order.status == "shipped")


def unit_test(order: Order, ctx: ReactionContext) -> None:
    packed(order)
    paid(order, Receipt("1"), ctx)
    paid(order, Declined("no"), ctx=ctx)
    paid_late(order, Receipt("1"), Session(), IdempotencyKey("k"))
    assert isinstance(packed, Plain)
    assert isinstance(paid, Reaction)
    assert isinstance(app, App)


@app.every("0 7 * * MON", zone="Europe/Berlin", missed="latest", gap="shift", fold="both", retry=Retry(times=3), store=app.stores[0])
def weekly(session: Session, ctx: ReactionContext) -> None:
    session.add(Order(status=ctx.due.isoformat()))


@app.every(DAY, missed="all", max_missed=7, store=app.stores[0])
def daily() -> None: ...


assert_type(Cron("0 7 * * MON", "Europe/Berlin").next(datetime(2026, 1, 1)), datetime)  # noqa: DTZ001  # naive means UTC


def in_the_lab(lab: Lab) -> None:
    charges = lab.fake(charge, lambda order: Receipt(order.status))
    assert_type(charges, Ledger[Order])
    assert_type(charges.effects, list[Order])
    lab.fake(charge, Declined("no"))
    assert_type(lab.fake(send, lambda mail: mail.to), Ledger[Mail])
    assert_type(lab.fake(charge_many, lambda order: Receipt(order.status)), Ledger[Order])

    @lab.meanwhile
    def cancel(session: Session) -> None:
        session.get_one(Order, 1).status = "cancelled"
        lab.clock.forward(DAY)

    def look(session: Session) -> None:
        assert session.get_one(Order, 1).status != "lost"

    found = lab.crash_everywhere(app, Order(id=1), always=look, at_the_end=look, may_fail=["paid"], budget=10, seed=1)
    assert_type(found, Findings)
    with Lab(postgres="postgresql://localhost", strict=True, say=print) as other:
        assert_type(other.clock.now, datetime)
