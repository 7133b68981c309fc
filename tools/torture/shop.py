"""The tortured shop: an order passes through all four policies, done columns, an occurrence, and reactions without a call.

Its external service is provider.py. TORTURE_VERSION chooses one of three versions of its code, for deploys during a run: 2 has a changed
handler and one reaction more; 3 has one reaction renamed as well. TORTURE_VARIANT chooses a variant of each version: `service` makes two of
the calls at another service, one of them under another policy too; `occurrence` gives a reaction an occurrence that it did not have;
`wider` has a condition that matches more. Timings are short, but a call's deadline is still its begin + TIMEOUT + 5 s. Each column that a
call's handler writes is written once and never cleared, so that the judge can see what was concluded.
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
from groundstate.app.external_service import ExternalService
from groundstate.app.store import Store
from groundstate.rules.policy import MARGIN, InDoubt, Retry
from groundstate.values.answers import Absent, IdempotencyKey, NotDone, ReactionContext, Throttled, Unknown

TIMEOUT = timedelta(seconds=0.5)
SETTLE_AFTER = timedelta(seconds=0.5)
KEPT_FOR = timedelta(seconds=20)  # short, so that in a long run some keys are forgotten, and the lookup or a person settles their calls
RETRY = Retry(times=None, first=timedelta(seconds=0.25), longest=timedelta(seconds=2))
AT_ONCE = 8  # announcements in one call
DOOR = os.environ.get("TORTURE_PROVIDER", "")
VERSION = int(os.environ.get("TORTURE_VERSION", "1"))
VARIANT = os.environ.get("TORTURE_VARIANT", "")
THANKED_OF = 8  # every eighth order is thanked for; in the variant `wider`, every fourth
FINAL = ("done", "cancelled")
KEEPS = ("label", "announce")  # calls whose service acts only once under a key, for KEPT_FOR
# services of the variant `service`; this post deduplicates by key, and the first one does not
INSURER, POST = "another insurer", "another post"

Answer = dict[str, Any]


class Base(DeclarativeBase):
    """The declarative base of the shop's own tables."""


class Order(Base):
    """An order: placed -> paid -> packed (or placed again, for the next instalment) -> labelled -> shipped -> done | cancelled."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed", index=True)
    round: Mapped[int] = mapped_column(default=1)  # the current instalment; the order is 'placed' once in each
    rounds: Mapped[int] = mapped_column(default=1)
    charged_round: Mapped[int] = mapped_column(default=0)  # the last instalment whose charge is in this record
    receipt: Mapped[str | None] = mapped_column(default=None)
    label: Mapped[str | None] = mapped_column(default=None)
    listing: Mapped[str | None] = mapped_column(default=None)
    mailed: Mapped[str | None] = mapped_column(default=None)
    announced: Mapped[str | None] = mapped_column(default=None)
    packed_by: Mapped[int | None] = mapped_column(default=None)  # the version of the code
    surveyed: Mapped[int | None] = mapped_column(default=None)
    term: Mapped[int] = mapped_column(default=1)  # the term to insure: the occurrence that an intruder moves
    insured_term: Mapped[int] = mapped_column(default=0)  # the last term whose insurance is in this record
    policy: Mapped[str | None] = mapped_column(default=None)
    thanked: Mapped[str | None] = mapped_column(default=None)


class GoneOrder(Base):
    """The last state of a deleted order, written in the transaction of the delete, so that the judge still knows the order."""

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
bank = ExternalService("bank", limit=20)
courier = ExternalService("courier", limit=8)
catalogue = ExternalService("catalogue", limit=20)
post = ExternalService("post", limit=20)
station = ExternalService("station", limit=4)
insurer = ExternalService("insurer", limit=20)
other_insurer = ExternalService("other_insurer", limit=20)
other_post = ExternalService("other_post", limit=20)
florist = ExternalService("florist", limit=10)


# ---- the protocol of the provider ------------------------------------------------------------------------------------------------
def make_request(ask_for: str, call: str, key: str, order: Order, ctx: ReactionContext, occurrence: str = "") -> dict[str, Any]:
    """Return one request to the provider; its `until` is the last time at which the settling contract lets it act on this call.

    key: the key in the ledger of the service; see `service_key`.
    """
    until = ctx.now + TIMEOUT + MARGIN + SETTLE_AFTER
    kept = KEPT_FOR.total_seconds() if call in KEEPS or key.startswith(POST) else 0
    asked = {"ask": ask_for, "call": call, "key": key, "record": str(order.id), "occurrence": occurrence, "kept": kept}
    return asked | {"until": until.timestamp(), "pid": os.getpid()}


def service_key(service: str, key: str) -> str:
    """Return the key in the ledger of one service; '' is the first service of its kind. No service knows what another one did."""
    return f"{service}:{key}" if service else key


def encode_request(asked: Any) -> bytes:
    """Encode a request as a line of JSON, with the time at which it is sent."""
    return json.dumps({**asked, "sent": time.time()}).encode() + b"\n"


def decode_answer(line: bytes) -> Any:
    """Decode the provider's answer. Raises ConnectionError where the provider closed the connection, which leaves the call in doubt."""
    if not line.endswith(b"\n"):
        raise ConnectionError("the provider hung up")
    return json.loads(line)


def parse_receipt(answer: Answer) -> str:
    """Return the receipt in an answer. Raises NotDone or Throttled if the provider answered that it did nothing."""
    if "refused" in answer:
        raise NotDone(answer["refused"])
    if "busy" in answer:
        raise Throttled(timedelta(seconds=answer["busy"]))
    return str(answer["id"])


def parse_lookup_answer(answer: Answer) -> str | Absent | Unknown:
    """Convert the provider's answer to a lookup into the lookup's result."""
    if "id" in answer:
        return str(answer["id"])
    return Absent() if "absent" in answer else Unknown()


async def send_request(asked: Any) -> Any:
    """Send a request to the provider and return its answer, on the event loop of the calls."""
    reader, writer = await asyncio.open_unix_connection(DOOR)
    try:
        writer.write(encode_request(asked))
        return decode_answer(await reader.readline())
    finally:
        writer.close()


def send_request_blocking(asked: Any) -> Any:
    """Send a request to the provider and return its answer; it blocks the thread."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(DOOR)
        line.sendall(encode_request(asked))
        with line.makefile("rb") as answers:
            return decode_answer(answers.readline())


# ---- InDoubt.lookup(): a charge for each instalment ------------------------------------------------------------------------------
@bank.call(in_doubt=InDoubt.lookup(settle_after=SETTLE_AFTER), timeout=TIMEOUT, retry=RETRY)
async def charge(order: Order, key: IdempotencyKey, ctx: ReactionContext) -> str:
    """Charge the current instalment. It may happen at most once for each instalment, and the bank has a lookup."""
    return parse_receipt(await send_request(make_request("do", "charge", key, order, ctx, str(order.round))))


@charge.lookup
async def charge_lookup(order: Order, key: IdempotencyKey, ctx: ReactionContext) -> str | Absent | Unknown:
    """Look up the charge of the current instalment at the provider."""
    return parse_lookup_answer(await send_request(make_request("find", "charge", key, order, ctx)))


@app.on(Order, Order.status == "placed", call=charge, occurrence=(Order.round,))
def paid(order: Order, outcome: str) -> None:
    """Write the charge into the order."""
    order.status, order.charged_round, order.receipt = "paid", order.round, outcome


@paid.overtaken
def paid_overtaken(order: Order, outcome: str) -> None:
    """Write the charge into an order that was cancelled while the call was in flight."""
    order.charged_round, order.receipt = order.round, outcome


# ---- reactions without a call ----------------------------------------------------------------------------------------------------
@app.on(Order, Order.status == "paid")
def packed(order: Order) -> None:
    """Set the order to its next instalment, or to packed after the last one."""
    if order.round < order.rounds:
        order.status, order.round = "placed", order.round + 1
    else:
        order.status = "packed"
    if VERSION >= 2:
        order.packed_by = VERSION  # the new code writes this column besides


if VERSION >= 2:

    @app.on(Order, Order.status == "done", done_column=Order.surveyed)
    def surveyed(order: Order) -> None:
        """Survey a finished order. Version 1 lacks this reaction; all its finished orders match, so a person must accept it."""
        order.surveyed = VERSION


# ---- InDoubt.same_key(): a label, with a lookup; an announcement for many records, without one -------------------------------------
@courier.call(in_doubt=InDoubt.same_key(kept_for=KEPT_FOR, settle_after=SETTLE_AFTER), timeout=TIMEOUT, retry=RETRY)
def label(order: Order, key: IdempotencyKey, ctx: ReactionContext) -> str:
    """Print a label in a thread. The courier acts only once under a key."""
    return parse_receipt(send_request_blocking(make_request("do", "label", key, order, ctx)))


@label.lookup
def label_lookup(order: Order, key: IdempotencyKey, ctx: ReactionContext) -> str | Absent | Unknown:
    """Look up the label at the provider."""
    return parse_lookup_answer(send_request_blocking(make_request("find", "label", key, order, ctx)))


@app.on(
    Order,
    Order.status == "packed",
    call=label,
    name="labelled" if VERSION < 3 else "stickered",
    occurrence=(Order.rounds,) if VARIANT == "occurrence" else (),
)
def labelled(order: Order, outcome: str) -> None:
    """Write the label into the order."""
    order.status, order.label = "labelled", outcome


@labelled.overtaken
def labelled_overtaken(order: Order, outcome: str) -> None:
    """Write the label into an order that was cancelled meanwhile, or one whose occurrence a deploy changed and which still waits for it."""
    order.label = outcome
    if order.status == "packed":
        order.status = "labelled"


@station.call_many(size=AT_ONCE, in_doubt=InDoubt.same_key(kept_for=KEPT_FOR), timeout=TIMEOUT, retry=RETRY)
async def announce(orders: Sequence[Order], keys: Sequence[IdempotencyKey], ctx: ReactionContext) -> dict[Order, str | NotDone]:
    """Announce several orders in one request.

    An order that the answer leaves out is in doubt; one whose key is too old is held, since there is no lookup.
    """
    asked = [make_request("do", "announce", key, order, ctx) for order, key in zip(orders, keys, strict=True)]
    answers = await send_request({"ask": "many", "each": asked})
    said: dict[Order, str | NotDone] = {}
    for order, answer in zip(orders, answers, strict=True):
        if answer is not None:
            said[order] = str(answer["id"]) if "id" in answer else NotDone("not now")
    return said


@app.on(Order, Order.label.is_not(None), call=announce, done_column=Order.announced)
def announced(order: Order, outcome: str) -> None:
    """Write the announcement into its done column, whatever the order's status is."""
    order.announced = outcome


@app.on(Order, Order.status == "labelled")
def shipped(order: Order) -> None:
    """Mark the order as shipped."""
    order.status = "shipped"


# ---- InDoubt.repeat() and InDoubt.hold() -----------------------------------------------------------------------------------------
@catalogue.call(in_doubt=InDoubt.repeat(), timeout=TIMEOUT, retry=RETRY)
async def listing(order: Order, key: IdempotencyKey, ctx: ReactionContext) -> str:
    """List the order in the catalogue. Calling it twice does no harm."""
    return parse_receipt(await send_request(make_request("do", "listing", key, order, ctx)))


@app.on(Order, Order.status == "shipped", call=listing)
def listed(order: Order, outcome: str) -> None:
    """Write the listing into the order, which is then done."""
    order.status, order.listing = "done", outcome


@post.call(in_doubt=InDoubt.hold(), timeout=TIMEOUT, retry=RETRY)
async def mail(order: Order, key: IdempotencyKey, ctx: ReactionContext) -> str:
    """Mail the receipt. A person decides where the call is in doubt."""
    return parse_receipt(await send_request(make_request("do", "mail", key, order, ctx)))


@other_post.call(in_doubt=InDoubt.same_key(kept_for=KEPT_FOR), timeout=TIMEOUT, retry=RETRY)
async def mail_elsewhere(order: Order, key: IdempotencyKey, ctx: ReactionContext) -> str:
    """Mail the receipt by another post, which acts only once under a key and does not know what the first post did."""
    return parse_receipt(await send_request(make_request("do", "mail", service_key(POST, key), order, ctx)))


@app.on(Order, Order.receipt.is_not(None), call=mail_elsewhere if VARIANT == "service" else mail, done_column=Order.mailed)
def mailed(order: Order, outcome: str) -> None:
    """Write the mail into its done column, whatever the order's status is."""
    order.mailed = outcome


# ---- InDoubt.lookup(): an occurrence that another program may move, and a condition that a deploy makes wider ----------------------
@insurer.call(in_doubt=InDoubt.lookup(settle_after=SETTLE_AFTER), timeout=TIMEOUT, retry=RETRY)
async def insure(order: Order, key: IdempotencyKey, ctx: ReactionContext) -> str:
    """Insure the order for its current term. It may happen at most once for each term."""
    return parse_receipt(await send_request(make_request("do", "insure", key, order, ctx, str(order.term))))


@insure.lookup
async def _(order: Order, key: IdempotencyKey, ctx: ReactionContext) -> str | Absent | Unknown:
    return parse_lookup_answer(await send_request(make_request("find", "insure", key, order, ctx)))


@other_insurer.call(in_doubt=InDoubt.lookup(settle_after=SETTLE_AFTER), timeout=TIMEOUT, retry=RETRY)
async def insure_elsewhere(order: Order, key: IdempotencyKey, ctx: ReactionContext) -> str:
    """Insure the order at another insurer."""
    return parse_receipt(await send_request(make_request("do", "insure", service_key(INSURER, key), order, ctx, str(order.term))))


@insure_elsewhere.lookup
async def _(order: Order, key: IdempotencyKey, ctx: ReactionContext) -> str | Absent | Unknown:
    return parse_lookup_answer(await send_request(make_request("find", "insure", service_key(INSURER, key), order, ctx)))


@app.on(
    Order,
    Order.receipt.is_not(None),
    Order.insured_term < Order.term,
    call=insure_elsewhere if VARIANT == "service" else insure,
    occurrence=(Order.term,),
)
def insured(order: Order, outcome: str) -> None:
    """Write the insurance into the order. It has no `overtaken`, so a person decides where the term was moved meanwhile."""
    order.insured_term, order.policy = order.term, outcome


@florist.call(in_doubt=InDoubt.lookup(settle_after=SETTLE_AFTER), timeout=TIMEOUT, retry=RETRY)
async def thank(order: Order, key: IdempotencyKey, ctx: ReactionContext) -> str:
    """Send flowers for the order. It may happen at most once."""
    return parse_receipt(await send_request(make_request("do", "thank", key, order, ctx)))


@thank.lookup
async def thank_lookup(order: Order, key: IdempotencyKey, ctx: ReactionContext) -> str | Absent | Unknown:
    """Look up the flowers at the provider."""
    return parse_lookup_answer(await send_request(make_request("find", "thank", key, order, ctx)))


@app.on(
    Order,
    Order.status == "done",
    Order.id % (THANKED_OF // 2 if VARIANT == "wider" else THANKED_OF) == 0,
    call=thank,
    done_column=Order.thanked,
)
def thanked(order: Order, outcome: str) -> None:
    """Write the thanks into the order. A deploy that widens the condition leaves the orders that already exist as they are."""
    order.thanked = outcome


app.at_rest(Order, Order.status.in_(FINAL))
