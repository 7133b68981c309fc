"""Apps as users write them, each twice: with a fault that type-checks and works in every ordinary test, and without it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from groundstate import Absent, App, DeclarationWarning, ExternalService, IdempotencyKey, InDoubt, NotDone, ReactionContext, Store, Unknown
from groundstate.testing import Client
from tests.testing.apps import ASK, RETRY, TIMEOUT, Base, Case, Order, order

Made = Callable[[str], Case]
Call = Callable[..., Any]  # sync or async
Find = Callable[..., "str | Absent | Unknown"]


def _no_client() -> Any:
    raise AssertionError("the lab gives the client")


# ---- calls and lookups: the user's own functions, run against the fake -------------------------------------------------------------
def right_call(order: Order, key: IdempotencyKey, client: Client) -> str:
    return str(client.request(key, order))


def right_find(order: Order, key: IdempotencyKey, client: Client) -> str | Absent | Unknown:
    return next((str(one.answer) for one in client.seen if one.key == key), Absent())


def call_that_takes_all_for_not_done(order: Order, key: IdempotencyKey, client: Client) -> str:
    try:
        return str(client.request(key, order))
    except Exception as error:
        raise NotDone(str(error)) from error


def call_that_takes_a_time_out_for_not_done(order: Order, key: IdempotencyKey, client: Client) -> str:
    try:
        return str(client.request(key, order))
    except TimeoutError as error:
        raise NotDone("it timed out") from error


class GatewayTimeout(Exception):
    """As a provider's library has its own."""


async def call_that_takes_its_clients_time_out_for_not_done(order: Order, key: IdempotencyKey, client: Any) -> str:
    try:
        async with asyncio.timeout(9):
            answer = await client.post("/charges", headers={"Idempotency-Key": f"charge-{key}"})
    except GatewayTimeout as error:
        raise NotDone("it timed out") from error
    return str(answer.json()["id"])


def call_that_takes_a_time_out_for_a_refusal(order: Order, key: IdempotencyKey, client: Any) -> str:
    try:
        return str(client.charge(key=str(key), cents=order.stock))
    except TimeoutError:
        return "refused"


async def right_async_call(order: Order, key: IdempotencyKey, client: Any) -> str:
    await client.login()
    try:
        async with asyncio.timeout(9):
            answer = await client.post("/charges", headers={"Idempotency-Key": f"charge-{key}"})
    except ConnectionRefusedError as error:
        raise NotDone("it was not even reached") from error
    return str(answer.json()["id"])


def call_that_looks_for_it_itself(order: Order, key: IdempotencyKey, client: Any) -> str:
    try:
        return str(client.charge(key=str(key), cents=order.stock))
    except TimeoutError:
        return str(client.charge_of(str(key)))


def call_that_repeats_itself(order: Order, key: IdempotencyKey, client: Client) -> str:
    try:
        return str(client.request(key, order))
    except TimeoutError:
        return str(client.request(key, order))


def call_that_makes_its_own_key(order: Order, key: IdempotencyKey, client: Client) -> str:
    return str(client.request(str(uuid.uuid4()), order))


def call_that_fails_on_one(order: Order, key: IdempotencyKey, client: Client) -> str:
    if order.id == 1:
        raise KeyError("a bug, before anything is sent")
    return right_call(order, key, client)


def find_that_knows_nothing(order: Order, key: IdempotencyKey, client: Client) -> str | Absent | Unknown:
    return Absent()


def find_by_record(order: Order, key: IdempotencyKey, client: Client) -> str | Absent | Unknown:
    return next((str(one.answer) for one in client.seen if one.argument.id == order.id), Absent())


def gateway(name: str, call: Call, find: Find | None, in_doubt: InDoubt, *, rounds: bool = False, told_apart: bool = True) -> Case:
    """An order that is charged by these functions: in each round, where there are rounds."""
    app = App(name, Store("sqlite:///planted.db", Base))
    bank = ExternalService("bank", client=_no_client)
    charge = bank.call(in_doubt=in_doubt, timeout=TIMEOUT, retry=RETRY)(call)
    if find is not None:
        charge.lookup(find)

    @app.on(Order, Order.status == "placed", call=charge, occurrence=[Order.round] if rounds and told_apart else [])
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    def next_round(session: Session) -> None:
        one = order(session)
        if one.status == "paid":
            one.status, one.round = "placed", one.round + 1

    return Case(app, [charge], meanwhile=[next_round] if rounds else [], through=lambda client: client)


def played(name: str, call: Call) -> Case:
    """The same with a plain fake: the functions are given no line to it."""
    return replace(gateway(name, call, right_find, ASK), through=None)


def failing_on_one(name: str) -> Case:
    """A call that fails on one of two orders, whenever it is tried: it is given up after some tries, and the other is paid."""
    return replace(gateway(name, call_that_fails_on_one, None, InDoubt.repeat()), rows=lambda: [Order(id=1), Order(id=2)])


class KeepsNoKeys:
    """A provider's client, of a provider that does not look at keys."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.seen = client.seen

    def request(self, _key: str, argument: Any) -> Any:
        return self._client.request(str(uuid.uuid4()), argument)


def on_a_provider_without_keys(name: str, in_doubt: InDoubt) -> Case:
    return replace(gateway(name, right_call, None, in_doubt), through=KeepsNoKeys)


def at_most_one_charge(_session: Session, effects: list[Any]) -> None:
    assert len(effects) <= 1, f"charged {len(effects)} times"


def charged(name: str, in_doubt: InDoubt) -> Case:
    """What its author knows of the service and the lab does not: a second call does harm."""
    return replace(gateway(name, right_call, None, in_doubt), always=at_most_one_charge)


# ---- handlers ------------------------------------------------------------------------------------------------------------------
def charging(name: str, handler: Callable[..., None], **more: Any) -> tuple[App, Any, Case]:
    """An order that is charged by the fake, and this handler."""
    app = App(name, Store("sqlite:///planted.db", Base))
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.hold(), timeout=TIMEOUT, retry=RETRY)
    def charge(order: Order, key: IdempotencyKey) -> str:
        raise AssertionError("the lab's fake is called instead")

    reaction = app.on(Order, Order.status == "placed", call=charge)(handler)
    return app, reaction, Case(app, [charge], **more)


def paid(order: Order, outcome: str) -> None:
    order.status, order.receipt = "paid", outcome


def cancels(session: Session) -> None:
    one = order(session)
    if one.status == "placed":
        one.status = one.wish = "cancelled"


def stays_cancelled(session: Session, _effects: list[Any]) -> None:
    one = order(session)
    assert one.wish != "cancelled" or one.status == "cancelled", "a cancelled order was paid"


def overtaken_by_the_same_handler(name: str, *, wrong: bool) -> Case:
    _, reaction, case = charging(name, paid, meanwhile=[cancels], always=stays_cancelled)
    if wrong:
        reaction.overtaken(paid)
    return case


def is_edited(session: Session) -> None:
    one = order(session)
    if one.status == "placed":
        one.round = 9  # what its receipt must say as well


def paid_what_is_owed(order: Order, outcome: str) -> None:
    order.status = "paid" if outcome == f"receipt {order.id}/{order.round}" else "underpaid"


def is_paid_in_full(session: Session, effects: list[Any]) -> None:
    one = order(session)
    assert one.status != "paid" or [charged.round for charged in effects] == [one.round], "less was taken than the order says"


def edited(name: str, *, wrong: bool) -> Case:
    handler = paid if wrong else paid_what_is_owed
    return charging(name, handler, meanwhile=[is_edited], always=is_paid_in_full)[2]


# ---- reactions without a call ---------------------------------------------------------------------------------------------------
def packing(name: str, handler: Callable[..., None], **more: Any) -> Case:
    app = App(name, Store("sqlite:///planted.db", Base))
    app.on(Order, Order.status == "placed", name="packed")(handler)
    return Case(app, **more)


def packed(order: Order) -> None:
    order.status = "packed"


def counted_only(order: Order) -> None:
    order.stock = order.stock + 1


mails: list[int] = []  # what a handler sent by itself, beside its transaction


def packed_and_mailed(order: Order) -> None:
    mails.append(order.id)
    order.status = "packed"


def one_mail(_session: Session, _effects: list[Any]) -> None:
    sent = list(mails)
    mails.clear()
    assert sent in ([], [1]), f"{len(sent)} mails went out"


numbers = iter(range(1, 1_000_000))  # kept in memory, as if a life never ended


def numbered_in_memory(order: Order) -> None:
    order.status, order.receipt = "packed", str(next(numbers))


def numbered_by_the_table(order: Order, session: Session) -> None:
    taken = session.scalars(select(Order.receipt).where(Order.receipt.is_not(None))).all()
    order.status, order.receipt = "packed", str(len(taken) + 1)


def numbers_have_no_gap(session: Session, _effects: list[Any]) -> None:
    assert session.scalars(select(Order.receipt)).all() == ["1"]


def dated_by_python(order: Order) -> None:
    order.status, order.receipt = "packed", datetime.now(UTC).isoformat()


def dated_by_the_moment(order: Order, ctx: ReactionContext) -> None:
    order.status, order.receipt = "packed", ctx.now.isoformat()


def dated_today(session: Session, _effects: list[Any]) -> None:
    assert (order(session).receipt or "").startswith("2030-01-01"), "it is dated by another clock than the database's"


def all_are_done(session: Session, _effects: list[Any]) -> None:
    left = session.scalars(select(Order.status).where(Order.status.not_in(["packed", "paid"]))).all()
    assert not left, f"nobody answers {left}"


def in_two_steps(name: str, *, wrong: bool) -> Case:
    """An order is checked, and what was checked is packed; or nobody answers that."""
    case = packing(name, checked, at_the_end=all_are_done)
    if not wrong:
        case.app.on(Order, Order.status == "checked", name="sent")(packed)
    return case


def checked(order: Order) -> None:
    order.status = "checked"


def two_on_one_state(name: str, *, wrong: bool) -> Case:
    """Two consumers of one event: both on the same state, or the second by a fact."""
    app = App(name, Store("sqlite:///planted.db", Base))
    app.on(Order, Order.status == "placed", name="packed")(packed)
    if wrong:
        with pytest.warns(DeclarationWarning, match="reaction noted: wherever it holds, reaction packed holds as well"):
            app.on(Order, Order.status == "placed", Order.wish.is_(None), name="noted")(noted_by_its_state)
    else:
        app.on(Order, Order.status == "packed", done_column=Order.wish, name="noted")(noted)
    return Case(app)


def noted(order: Order) -> None:
    order.wish = "noted"


def noted_by_its_state(order: Order) -> None:
    order.status = "noted"


def misspelt(name: str, *, wrong: bool) -> Case:
    """The second reaction waits for a state that nobody sets."""
    app = App(name, Store("sqlite:///planted.db", Base))
    app.on(Order, Order.status == "placed", name="checked")(checked)
    app.on(Order, Order.status == ("chekced" if wrong else "checked"), name="packed")(packed)
    return Case(app)
