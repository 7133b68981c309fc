"""The shop that is killed: one order's way through all four policies, a fact, an occurrence, and steps that touch the database alone.

Its outside is tests/kill/provider.py. Timings are short, but a call's deadline is its begin + TIMEOUT + 5 s all the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import Absent, App, Busy, Key, Moment, NotDone, Outside, Retry, Store, Unknown, again, ask, hold, same_key
from groundstate.rules.policy import MARGIN

TIMEOUT = timedelta(seconds=0.5)
SETTLE_AFTER = timedelta(seconds=0.5)
KEPT_FOR = timedelta(seconds=20)  # short enough that some keys are forgotten in a long run, and settled by the find
RETRY = Retry(times=None, first=timedelta(seconds=0.1), longest=timedelta(seconds=2))
DOOR = os.environ.get("KILL_PROVIDER", "")
FINAL = ("done", "cancelled")

Answer = dict[str, Any]


class Base(DeclarativeBase):
    pass


class Order(Base):
    """Each column that a call's handler writes is written once and never emptied, so that the judge can see what was concluded."""

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


app = App("kill", Store(os.environ.get("KILL_DATABASE", "sqlite:///kill.db"), Base))
bank = Outside("bank", limit=20)
courier = Outside("courier", limit=8)
catalogue = Outside("catalogue", limit=20)
post = Outside("post", limit=20)


def request(ask_for: str, call: str, key: str, order: Order, at: Moment, occurrence: str = "") -> bytes:
    """One request to the provider. `until`: the last moment at which it may act on this call, by the contract of settling."""
    until = at.now + TIMEOUT + MARGIN + SETTLE_AFTER
    asked = {"ask": ask_for, "call": call, "key": key, "record": str(order.id), "occurrence": occurrence}
    return json.dumps(asked | {"began": at.now.timestamp(), "until": until.timestamp(), "pid": os.getpid()}).encode() + b"\n"


def understood(line: bytes) -> Answer:
    """The provider's answer. Raises NotDone and Busy where it says so; ConnectionError where it hung up, which says nothing."""
    if not line.endswith(b"\n"):
        raise ConnectionError("the provider hung up")
    answer: Answer = json.loads(line)
    if "refused" in answer:
        raise NotDone(answer["refused"])
    if "busy" in answer:
        raise Busy(timedelta(seconds=answer["busy"]))
    return answer


async def told(sent: bytes) -> Answer:
    """Asks the provider on the calls' loop."""
    reader, writer = await asyncio.open_unix_connection(DOOR)
    try:
        writer.write(sent)
        return understood(await reader.readline())
    finally:
        writer.close()


def told_in_thread(sent: bytes) -> Answer:
    """Asks the provider, and blocks."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(DOOR)
        line.sendall(sent)
        with line.makefile("rb") as answers:
            return understood(answers.readline())


def found(answer: Answer) -> str | Absent | Unknown:
    """What a find makes of the provider's answer."""
    if "id" in answer:
        return str(answer["id"])
    return Absent() if "absent" in answer else Unknown()


@bank.call(in_doubt=ask(settle_after=SETTLE_AFTER), timeout=TIMEOUT, retry=RETRY)
async def charge(order: Order, key: Key, at: Moment) -> str:
    return str((await told(request("do", "charge", key, order, at, str(order.round))))["id"])


@charge.find
async def _(order: Order, key: Key, at: Moment) -> str | Absent | Unknown:
    return found(await told(request("find", "charge", key, order, at)))


@app.on(Order, Order.status == "placed", call=charge, occurrence=(Order.round,))
def paid(order: Order, outcome: str) -> None:
    order.status, order.charged_round, order.receipt = "paid", order.round, outcome


@paid.overtaken
def _(order: Order, outcome: str) -> None:
    """It was cancelled while its charge was on the way: the charge is written down all the same."""
    order.charged_round, order.receipt = order.round, outcome


@app.on(Order, Order.status == "paid")
def packed(order: Order) -> None:
    if order.round < order.rounds:
        order.status, order.round = "placed", order.round + 1
    else:
        order.status = "packed"


@courier.call(in_doubt=same_key(kept_for=KEPT_FOR, settle_after=SETTLE_AFTER), timeout=TIMEOUT, retry=RETRY)
def label(order: Order, key: Key, at: Moment) -> str:
    return str(told_in_thread(request("do", "label", key, order, at))["id"])


@label.find
def _(order: Order, key: Key, at: Moment) -> str | Absent | Unknown:
    return found(told_in_thread(request("find", "label", key, order, at)))


@app.on(Order, Order.status == "packed", call=label)
def labelled(order: Order, outcome: str) -> None:
    order.status, order.label = "labelled", outcome


@app.on(Order, Order.status == "labelled")
def shipped(order: Order) -> None:
    order.status = "shipped"


@catalogue.call(in_doubt=again(), timeout=TIMEOUT, retry=RETRY)
async def listing(order: Order, key: Key, at: Moment) -> str:
    return str((await told(request("do", "listing", key, order, at)))["id"])


@app.on(Order, Order.status == "shipped", call=listing)
def listed(order: Order, outcome: str) -> None:
    order.status, order.listing = "done", outcome


@post.call(in_doubt=hold(), timeout=TIMEOUT, retry=RETRY)
async def mail(order: Order, key: Key, at: Moment) -> str:
    return str((await told(request("do", "mail", key, order, at)))["id"])


@app.on(Order, Order.receipt.is_not(None), call=mail, fact=Order.mailed)
def mailed(order: Order, outcome: str) -> None:
    order.mailed = outcome


app.rests(Order, Order.status.in_(FINAL))
