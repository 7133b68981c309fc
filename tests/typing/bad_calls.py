"""Wrong calls and finds. Each line that a type checker must refuse ends with the mark, and no other may be refused."""

from __future__ import annotations

from collections.abc import Sequence

from groundstate import Absent, Key, Outside, Unknown, ask, hold, same_key
from tests.typing.models import DAY, SECONDS, Declined, Order, Receipt, bank


@bank.call()  # refused: how a doubt is settled has no default
def undecided(order: Order) -> str:
    return order.status


@bank.call(in_doubt="hold")  # refused: a policy is no text
def by_text(order: Order) -> str:
    return order.status


@bank.call(in_doubt=hold(), timeout=30)  # refused: seconds of what?
def untimed(order: Order) -> str:
    return order.status


same_key()  # refused: how long does the provider keep it?
ask()  # refused: when can Absent be believed?
Outside("bank", limit="3")  # refused: a number
Outside("bank", not_done=[BaseException])  # refused: an Exception


@bank.call(in_doubt=ask(settle_after=SECONDS))
async def charge(order: Order, key: Key) -> Receipt:
    return Receipt(key)


@charge.find  # refused: it answers with another outcome
async def _(order: Order, key: Key) -> Declined | Absent | Unknown:
    return Absent()


@charge.find  # refused: None is neither an outcome nor Absent
async def _(order: Order) -> Receipt | None:
    return None


@charge.find  # refused: it takes what the call takes
async def _(order: int) -> Receipt | Absent:
    return Absent()


@bank.call_many(in_doubt=same_key(kept_for=DAY))  # refused: how many?
def unsized(orders: Sequence[Order], keys: Sequence[Key]) -> Sequence[Receipt]:
    return []


@bank.call_many(size=3, in_doubt=hold())  # refused: one outcome for many records
def single(orders: Sequence[Order]) -> Receipt:
    return Receipt("")
