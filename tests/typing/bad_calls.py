"""Wrong calls and lookups. Each line that a type checker must refuse ends with the mark, and no other may be refused."""

from __future__ import annotations

from collections.abc import Sequence

from groundstate import Absent, ExternalService, IdempotencyKey, InDoubt, Unknown
from tests.typing.models import DAY, SECONDS, Declined, Order, Receipt, bank


@bank.call()  # refused: how a doubt is settled has no default
def undecided(order: Order) -> str:
    return order.status


@bank.call(in_doubt="hold")  # refused: a policy is no text
def by_text(order: Order) -> str:
    return order.status


@bank.call(in_doubt=InDoubt.hold(), timeout=30)  # refused: seconds of what?
def untimed(order: Order) -> str:
    return order.status


InDoubt.same_key()  # refused: how long does the provider keep it?
InDoubt.lookup()  # refused: when can Absent be believed?
ExternalService("bank", limit="3")  # refused: a number
ExternalService("bank", not_done=[BaseException])  # refused: an Exception


@bank.call(in_doubt=InDoubt.lookup(settle_after=SECONDS))
async def charge(order: Order, key: IdempotencyKey) -> Receipt:
    return Receipt(key)


@charge.lookup  # refused: it answers with another outcome
async def _(order: Order, key: IdempotencyKey) -> Declined | Absent | Unknown:
    return Absent()


@charge.lookup  # refused: None is neither an outcome nor Absent
async def _(order: Order) -> Receipt | None:
    return None


@charge.lookup  # refused: it takes what the call takes
async def _(order: int) -> Receipt | Absent:
    return Absent()


@bank.call_many(in_doubt=InDoubt.same_key(kept_for=DAY))  # refused: how many?
def unsized(orders: Sequence[Order], keys: Sequence[IdempotencyKey]) -> Sequence[Receipt]:
    return []


@bank.call_many(size=3, in_doubt=InDoubt.hold())  # refused: one outcome for many records
def single(orders: Sequence[Order]) -> Receipt:
    return Receipt("")
