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
    HTTPX,
    Absent,
    App,
    Call,
    Cron,
    Failure,
    InOrder,
    Key,
    Moment,
    NotDone,
    Occurrence,
    Outside,
    Plain,
    Rate,
    Reaction,
    Retry,
    Store,
    Unknown,
    again,
    ask,
    call_writes,
    every_child,
    hold,
    same_key,
)
from groundstate.testing import Findings, Lab, Ledger
from tests.typing.models import DAY, SECONDS, Base, Declined, Hero, Item, Mail, Order, Receipt, app, bank, smtp


class Client: ...


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    yield Client()


gateway = Outside("gateway", limit=5, not_done=[*HTTPX, ConnectionRefusedError, "smtplib.SMTPConnectError"], client=client)
tenants = Outside("tenants", limit=5, rate=Rate(10, SECONDS), limit_per=2, rate_per=Rate(times=1, each=SECONDS))
late = Store(lambda: create_engine("sqlite:///never-opened.db"), Base.metadata, failover="lossless", redact=str.upper)
listed: Store = Store.shards(["sqlite:///one.db", lambda: "sqlite:///two.db"], Base, name="eu", witness="witness")
by_name = Store.shards({"eu": "postgresql://eu/app", "us": create_engine("sqlite:///us.db")}, Base, direct={"eu": "postgresql://db/app"})
assert_type(by_name.shard("eu"), Store)
assert_type(by_name.parts, tuple[Store, ...])


# ---- calls ---------------------------------------------------------------------------------------------------------------------
@bank.call(in_doubt=ask(settle_after=SECONDS), timeout=SECONDS, retry=Retry(times=3), load=[selectinload(Order.items)])
async def charge(order: Order, key: Key, at: Moment) -> Receipt | Declined:
    return Receipt(key) if at.call_no == 1 else Declined("no")


@charge.find
async def _(order: Order, key: Key, occurrence: Occurrence) -> Receipt | Declined | Absent | Unknown:
    return Absent() if occurrence else Unknown()


@bank.call(in_doubt=same_key(kept_for=DAY, settle_after=SECONDS))
def refund(order: Order, key: Key) -> int:
    return order.id


@refund.find
def _(order: Order) -> int | type[Absent]:
    return Absent


@gateway.call(in_doubt=again(), stop_when_overtaken=True)
async def ping(order: Order, client: Client) -> None: ...


@smtp.call(in_doubt=hold())
def send(mail: Mail) -> str:
    return mail.to


@bank.call(in_doubt=again())
async def refreshed(order: Order) -> str:
    with call_writes("a token: the last one counts"):
        return "token"


@bank.call_many(size=100, in_doubt=same_key(kept_for=DAY))
async def charge_many(orders: Sequence[Order], keys: Sequence[Key]) -> Sequence[Receipt | NotDone]:
    return [Receipt(key) for key in keys]


@bank.call_many(size=100, in_doubt=hold())
def by_record(orders: Sequence[Order]) -> Mapping[Order, Receipt]:
    return {order: Receipt("") for order in orders}


assert_type(charge, Call[Order, Receipt | Declined])
assert_type(send, Call[Mail, str])
assert_type(charge_many, Call[Order, Receipt])


# ---- reactions -----------------------------------------------------------------------------------------------------------------
@app.on(Order, Order.status == "placed", ~Order.gift, call=charge, occurrence=[Order.next_at])
def paid(order: Order, outcome: Receipt | Declined, at: Moment) -> None:
    order.status = "paid" if isinstance(outcome, Receipt) else "declined"


@paid.overtaken
def paid_late(order: Order, outcome: Receipt | Declined, session: Session, key: Key) -> None:
    session.add(Order(status=key))


@paid.gave_up
def never_paid(order: Order, failure: Failure) -> None:
    order.status = failure.error


@app.on(Order, Order.status == "paid", Order.gift, retry=Retry(times=None))
def packed(order: Order) -> None:
    order.status = "packed"


@packed.gave_up
def never_packed(order: Order, failure: Failure, at: Moment) -> None:
    order.status = f"{failure.calls} at {at.now}"


def receipt_mail(order: Order, session: Session) -> Mail:
    return Mail(order.status)


@app.on(Order, Order.status.in_(["paid", "packed"]), call=send, sends=receipt_mail, fact=Order.mailed_at, name="receipt")
def mailed(order: Order, message_id: str, at: Moment) -> None:
    order.mailed_at = at.now


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


@app.on(Hero, col(Hero.state) == "lost", fact=col(Hero.saved_at))
def saved(hero: Hero, at: Moment) -> None:
    hero.saved_at = at.now


@tenants.call(in_doubt=hold())
def tell(order: Order) -> str:
    return order.status


@app.on(Order, Order.status == "told", call=tell, per=Order.status, in_order=InOrder(Order.status, Order.id, past_held=True))
def told(order: Order, answer: str) -> None:
    order.status = answer


@app.on(Hero, col(Hero.state) == "in line", in_order=InOrder(by=col(Hero.state)))
def in_line(hero: Hero) -> None:
    hero.state = "done"


app.rests(Order, Order.status == "shipped")


def unit_test(order: Order, at: Moment) -> None:
    packed(order)
    paid(order, Receipt("1"), at)
    paid(order, Declined("no"), at=at)
    paid_late(order, Receipt("1"), Session(), Key("k"))
    assert isinstance(packed, Plain)
    assert isinstance(paid, Reaction)
    assert isinstance(app, App)


@app.every("0 7 * * MON", zone="Europe/Berlin", missed="latest", gap="shift", overlap="both", retry=Retry(times=3), store=app.stores[0])
def weekly(session: Session, at: Moment) -> None:
    session.add(Order(status=at.due.isoformat()))


@app.every(DAY, missed="all", most=7, store=app.stores[0])
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
