"""The shop that is tortured: one order's way through all four policies, facts, an occurrence, and steps that touch the database alone.

Its outside is provider.py. It is declared in three versions of its code, chosen by TORTURE_VERSION, for deploys midway:
2 has a changed handler and one reaction more; 3 has a reaction renamed besides. Each version comes in variants, chosen by
TORTURE_VARIANT: `service` makes two of the calls at another service, one of them by another policy besides, `occurrence` gives a
reaction an occurrence that it had not, `wider` has a condition that matches more. Timings are short, but a call's deadline is its
begin + TIMEOUT + 5 s all the same. Each column that a call's handler writes is written once and never emptied, so that the judge can
see what was concluded.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Index
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate.app.app import App
from groundstate.app.outside import Outside
from groundstate.app.store import Store
from groundstate.rules.policy import MARGIN, Retry, again, ask, hold, same_key
from groundstate.values.answers import Absent, Busy, Key, Moment, NotDone, Unknown

TIMEOUT = timedelta(seconds=0.5)
SETTLE_AFTER = timedelta(seconds=0.5)
KEPT_FOR = timedelta(seconds=20)  # short enough that some keys are forgotten in a long run, and settled by the find or by a person
RETRY = Retry(times=None, first=timedelta(seconds=0.25), longest=timedelta(seconds=2))
AT_ONCE = 8  # announcements in one call
DOOR = os.environ.get("TORTURE_PROVIDER", "")
VERSION = int(os.environ.get("TORTURE_VERSION", "1"))
VARIANT = os.environ.get("TORTURE_VARIANT", "")
THANKED_OF = 8  # every so manieth order is thanked for; twice as many in the variant `wider`
FINAL = ("done", "cancelled")
KEEPS = ("label", "announce")  # calls whose service acts once under a key, for KEPT_FOR
INSURER, POST = "another insurer", "another post"  # services of the variant `service`; this post looks at keys, as the first one does not

Answer = dict[str, Any]


class Base(DeclarativeBase):
    """The shop's own tables."""


class Order(Base):
    """An order: placed -> paid -> packed (or placed again, for the next instalment) -> labelled -> shipped -> done | cancelled."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed", index=True)
    round: Mapped[int] = mapped_column(default=1)  # instalments: the order is 'placed' once in each
    rounds: Mapped[int] = mapped_column(default=1)
    charged_round: Mapped[int] = mapped_column(default=0)  # the last round whose charge is in this record
    receipt: Mapped[str | None] = mapped_column(default=None)
    label: Mapped[str | None] = mapped_column(default=None)
    listing: Mapped[str | None] = mapped_column(default=None)
    mailed: Mapped[str | None] = mapped_column(default=None)
    announced: Mapped[str | None] = mapped_column(default=None)
    packed_by: Mapped[int | None] = mapped_column(default=None)  # the version of the code
    surveyed: Mapped[int | None] = mapped_column(default=None)
    term: Mapped[int] = mapped_column(default=1)  # for which it is insured: the occurrence that an enemy moves
    insured_term: Mapped[int] = mapped_column(default=0)  # the last term whose insurance is in this record
    policy: Mapped[str | None] = mapped_column(default=None)
    thanked: Mapped[str | None] = mapped_column(default=None)


class GoneOrder(Base):
    """A deleted order as it was last, written in the delete's own transaction: what the judge knows it by."""

    __tablename__ = "gone_orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]
    round: Mapped[int]
    rounds: Mapped[int]
    charged_round: Mapped[int]
    receipt: Mapped[str | None]
    label: Mapped[str | None]
    listing: Mapped[str | None]
    mailed: Mapped[str | None]
    announced: Mapped[str | None]
    packed_by: Mapped[int | None]
    surveyed: Mapped[int | None]
    term: Mapped[int]
    insured_term: Mapped[int]
    policy: Mapped[str | None]
    thanked: Mapped[str | None]


for _name, _clause in {
    "orders_to_mail": Order.receipt.is_not(None) & Order.mailed.is_(None),
    "orders_to_announce": Order.label.is_not(None) & Order.announced.is_(None),
    "orders_to_survey": (Order.status == "done") & Order.surveyed.is_(None),
    "orders_to_insure": Order.receipt.is_not(None) & (Order.insured_term < Order.term),
    "orders_to_thank": (Order.status == "done") & Order.thanked.is_(None),
}.items():
    Index(_name, Order.id, sqlite_where=_clause, postgresql_where=_clause)


app = App("torture", Store(os.environ.get("TORTURE_DATABASE", "sqlite:///torture.db"), Base))
bank = Outside("bank", limit=20)
courier = Outside("courier", limit=8)
catalogue = Outside("catalogue", limit=20)
post = Outside("post", limit=20)
station = Outside("station", limit=4)
insurer = Outside("insurer", limit=20)
other_insurer = Outside("other_insurer", limit=20)
other_post = Outside("other_post", limit=20)
florist = Outside("florist", limit=10)


# ---- the wire to the provider ----------------------------------------------------------------------------------------------------
def request(ask_for: str, call: str, key: str, order: Order, at: Moment, occurrence: str = "") -> dict[str, Any]:
    """One request to the provider. `until`: the last moment at which it may act on this call, by the contract of settling.

    key: as the books of the service have it, see `key_at`.
    """
    until = at.now + TIMEOUT + MARGIN + SETTLE_AFTER
    kept = KEPT_FOR.total_seconds() if call in KEEPS or key.startswith(POST) else 0
    asked = {"ask": ask_for, "call": call, "key": key, "record": str(order.id), "occurrence": occurrence, "kept": kept}
    return asked | {"until": until.timestamp(), "pid": os.getpid()}


def key_at(service: str, key: str) -> str:
    """A key in a service's own books; '' is the first service of its kind. No service knows what was done at another."""
    return f"{service}:{key}" if service else key


def sent(asked: Any) -> bytes:
    """As it goes over the wire just now: a line of JSON."""
    return json.dumps({**asked, "sent": time.time()}).encode() + b"\n"


def understood(line: bytes) -> Any:
    """The provider's answer, a line of JSON. Raises ConnectionError where it hung up, which says nothing."""
    if not line.endswith(b"\n"):
        raise ConnectionError("the provider hung up")
    return json.loads(line)


def receipt_in(answer: Answer) -> str:
    """The receipt. Raises NotDone and Busy where the provider says so."""
    if "refused" in answer:
        raise NotDone(answer["refused"])
    if "busy" in answer:
        raise Busy(timedelta(seconds=answer["busy"]))
    return str(answer["id"])


def found(answer: Answer) -> str | Absent | Unknown:
    """What a find makes of the provider's answer."""
    if "id" in answer:
        return str(answer["id"])
    return Absent() if "absent" in answer else Unknown()


async def told(asked: Any) -> Any:
    """Asks the provider on the calls' loop."""
    reader, writer = await asyncio.open_unix_connection(DOOR)
    try:
        writer.write(sent(asked))
        return understood(await reader.readline())
    finally:
        writer.close()


def told_in_thread(asked: Any) -> Any:
    """Asks the provider, and blocks."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(DOOR)
        line.sendall(sent(asked))
        with line.makefile("rb") as answers:
            return understood(answers.readline())


# ---- ask: a charge for each instalment -------------------------------------------------------------------------------------------
@bank.call(in_doubt=ask(settle_after=SETTLE_AFTER), timeout=TIMEOUT, retry=RETRY)
async def charge(order: Order, key: Key, at: Moment) -> str:
    """At most once for each round; the bank can be asked."""
    return receipt_in(await told(request("do", "charge", key, order, at, str(order.round))))


@charge.find
async def _(order: Order, key: Key, at: Moment) -> str | Absent | Unknown:
    return found(await told(request("find", "charge", key, order, at)))


@app.on(Order, Order.status == "placed", call=charge, occurrence=(Order.round,))
def paid(order: Order, outcome: str) -> None:
    """The charge is in the record."""
    order.status, order.charged_round, order.receipt = "paid", order.round, outcome


@paid.overtaken
def _(order: Order, outcome: str) -> None:
    """It was cancelled while its charge was on the way: the charge is written down all the same."""
    order.charged_round, order.receipt = order.round, outcome


# ---- the database alone ----------------------------------------------------------------------------------------------------------
@app.on(Order, Order.status == "paid")
def packed(order: Order) -> None:
    """The next instalment, or packed."""
    if order.round < order.rounds:
        order.status, order.round = "placed", order.round + 1
    else:
        order.status = "packed"
    if VERSION >= 2:
        order.packed_by = VERSION  # what the new code does besides


if VERSION >= 2:

    @app.on(Order, Order.status == "done", fact=Order.surveyed)
    def surveyed(order: Order) -> None:
        """The reaction that the first version had not: all orders of its time match, so a person accepts it."""
        order.surveyed = VERSION


# ---- same_key: a label, with a find; an announcement for many, without -----------------------------------------------------------
@courier.call(in_doubt=same_key(kept_for=KEPT_FOR, settle_after=SETTLE_AFTER), timeout=TIMEOUT, retry=RETRY)
def label(order: Order, key: Key, at: Moment) -> str:
    """Once per key; in a thread."""
    return receipt_in(told_in_thread(request("do", "label", key, order, at)))


@label.find
def _(order: Order, key: Key, at: Moment) -> str | Absent | Unknown:
    return found(told_in_thread(request("find", "label", key, order, at)))


@app.on(
    Order,
    Order.status == "packed",
    call=label,
    name="labelled" if VERSION < 3 else "stickered",
    occurrence=(Order.rounds,) if VARIANT == "occurrence" else (),
)
def labelled(order: Order, outcome: str) -> None:
    """The label is in the record."""
    order.status, order.label = "labelled", outcome


@labelled.overtaken
def _(order: Order, outcome: str) -> None:
    """It was cancelled meanwhile; or the code gave its reaction another occurrence, and it still waits for this label."""
    order.label = outcome
    if order.status == "packed":
        order.status = "labelled"


@station.call_many(size=AT_ONCE, in_doubt=same_key(kept_for=KEPT_FOR), timeout=TIMEOUT, retry=RETRY)
async def announce(orders: Sequence[Order], keys: Sequence[Key], at: Moment) -> dict[Order, str | NotDone]:
    """One request for several orders. What the answer leaves out is in doubt; a key that is too old is held, since nobody can be asked."""
    asked = [request("do", "announce", key, order, at) for order, key in zip(orders, keys, strict=True)]
    answers = await told({"ask": "many", "each": asked})
    said: dict[Order, str | NotDone] = {}
    for order, answer in zip(orders, answers, strict=True):
        if answer is not None:
            said[order] = str(answer["id"]) if "id" in answer else NotDone("not now")
    return said


@app.on(Order, Order.label.is_not(None), call=announce, fact=Order.announced)
def announced(order: Order, outcome: str) -> None:
    """A fact, beside whatever else becomes of the order."""
    order.announced = outcome


@app.on(Order, Order.status == "labelled")
def shipped(order: Order) -> None:
    """On its way."""
    order.status = "shipped"


# ---- again, and hold -------------------------------------------------------------------------------------------------------------
@catalogue.call(in_doubt=again(), timeout=TIMEOUT, retry=RETRY)
async def listing(order: Order, key: Key, at: Moment) -> str:
    """Twice does no harm."""
    return receipt_in(await told(request("do", "listing", key, order, at)))


@app.on(Order, Order.status == "shipped", call=listing)
def listed(order: Order, outcome: str) -> None:
    """The last step."""
    order.status, order.listing = "done", outcome


@post.call(in_doubt=hold(), timeout=TIMEOUT, retry=RETRY)
async def mail(order: Order, key: Key, at: Moment) -> str:
    """A person decides where it is in doubt."""
    return receipt_in(await told(request("do", "mail", key, order, at)))


@other_post.call(in_doubt=same_key(kept_for=KEPT_FOR), timeout=TIMEOUT, retry=RETRY)
async def mail_elsewhere(order: Order, key: Key, at: Moment) -> str:
    """Once per key, of which the first post knows nothing."""
    return receipt_in(await told(request("do", "mail", key_at(POST, key), order, at)))


@app.on(Order, Order.receipt.is_not(None), call=mail_elsewhere if VARIANT == "service" else mail, fact=Order.mailed)
def mailed(order: Order, outcome: str) -> None:
    """A fact, beside whatever else becomes of the order."""
    order.mailed = outcome


# ---- ask, under an occurrence that somebody may move; and a condition that a deploy makes wider --------------------------------------
@insurer.call(in_doubt=ask(settle_after=SETTLE_AFTER), timeout=TIMEOUT, retry=RETRY)
async def insure(order: Order, key: Key, at: Moment) -> str:
    """At most once for each term."""
    return receipt_in(await told(request("do", "insure", key, order, at, str(order.term))))


@insure.find
async def _(order: Order, key: Key, at: Moment) -> str | Absent | Unknown:
    return found(await told(request("find", "insure", key, order, at)))


@other_insurer.call(in_doubt=ask(settle_after=SETTLE_AFTER), timeout=TIMEOUT, retry=RETRY)
async def insure_elsewhere(order: Order, key: Key, at: Moment) -> str:
    """At another insurer."""
    return receipt_in(await told(request("do", "insure", key_at(INSURER, key), order, at, str(order.term))))


@insure_elsewhere.find
async def _(order: Order, key: Key, at: Moment) -> str | Absent | Unknown:
    return found(await told(request("find", "insure", key_at(INSURER, key), order, at)))


@app.on(
    Order,
    Order.receipt.is_not(None),
    Order.insured_term < Order.term,
    call=insure_elsewhere if VARIANT == "service" else insure,
    occurrence=(Order.term,),
)
def insured(order: Order, outcome: str) -> None:
    """Without an `overtaken`: where its term was moved meanwhile, a person decides."""
    order.insured_term, order.policy = order.term, outcome


@florist.call(in_doubt=ask(settle_after=SETTLE_AFTER), timeout=TIMEOUT, retry=RETRY)
async def thank(order: Order, key: Key, at: Moment) -> str:
    """Flowers, at most once."""
    return receipt_in(await told(request("do", "thank", key, order, at)))


@thank.find
async def _(order: Order, key: Key, at: Moment) -> str | Absent | Unknown:
    return found(await told(request("find", "thank", key, order, at)))


@app.on(
    Order,
    Order.status == "done",
    Order.id % (THANKED_OF // 2 if VARIANT == "wider" else THANKED_OF) == 0,
    call=thank,
    fact=Order.thanked,
)
def thanked(order: Order, outcome: str) -> None:
    """For every so manieth order. Where the condition is made wider, the orders that are there already are left as they are."""
    order.thanked = outcome


app.rests(Order, Order.status.in_(FINAL))
