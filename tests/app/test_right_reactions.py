"""Right programs are told nothing: each of these declares without an error and without a warning, which the suite makes an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, Optional

import pytest
import sqlalchemy.orm
from pydantic import BaseModel
from sqlalchemy import and_, bindparam, case, exists, func, literal, not_, or_, select
from sqlalchemy.orm import Session, aliased, selectinload
from sqlmodel import col

from groundstate import (
    Absent,
    App,
    Call,
    ExternalService,
    Failure,
    IdempotencyKey,
    InDoubt,
    NotDone,
    Occurrence,
    ReactionContext,
    Retry,
    Unknown,
    every_child,
    not_done,
)
from tests.app.models import Hero, Item, Level, Order, Parcel, Rush, Size

SECONDS = timedelta(seconds=30)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Receipt:
    id: str


@dataclass(frozen=True)
class Declined:
    why: str


class Sent(BaseModel):
    message: str
    at: datetime


other = aliased(Order)
LIMIT = 10
CLAUSES: dict[str, list[Any]] = {
    "equal": [Order.status == "placed"],
    "two clauses": [Order.status == "placed", Order.tenant == "pilot"],
    "joined by and": [(Order.status == "placed") & (Order.tenant == "pilot")],
    "and_": [and_(Order.status == "placed", Order.total > LIMIT)],
    "or_": [or_(Order.status == "placed", Order.status == "paid")],
    "not_": [not_(Order.status == "placed")],
    "in": [Order.status.in_(["placed", "paid"])],
    "not in, not nullable": [Order.status.not_in(["placed", "paid"])],
    "is null": [Order.mailed_at.is_(None)],
    "is not null": [Order.mailed_at.is_not(None)],
    "equals none": [Order.mailed_at == None],  # noqa: E711
    "a boolean column": [Order.gift],
    "not a boolean column": [~Order.gift],
    "a boolean column is true": [Order.gift.is_(True)],
    "a boolean column equals true": [Order.gift == True],  # noqa: E712
    "unequal, not nullable": [Order.status != "placed"],
    "unequal, null named as well": [or_(Order.channel != "web", Order.channel.is_(None))],
    "unequal, null excluded": [Order.channel != "web", Order.channel.is_not(None)],
    "distinct": [Order.channel.is_distinct_from("web")],
    "between": [Order.total.between(1, 10)],
    "arithmetic": [Order.total * 2 > Order.refunded + 5],
    "columns compared": [Order.total <= Order.refunded],
    "a function": [func.length(Order.status) > 3],
    "like": [Order.status.like("p%")],
    "greatest of two": [func.max(Order.total, Order.refunded) > 3],
    "case": [case((Order.gift, Order.total), else_=0) > 3],
    "an enum's member": [Order.size == Size.LARGE],
    "an enum's name": [Order.size == "LARGE"],
    "an enum of strings, by value": [Order.level == "low"],
    "an enum of strings, by member": [Order.level.in_([Level.LOW, Level.HIGH])],
    "a literal": [Order.kind == "web"],
    "a launch date": [Order.placed_at >= datetime(2026, 1, 1, tzinfo=UTC)],
    "a day": [Order.day >= date(2026, 1, 1)],
    "the database's clock": [Order.status == "placed", Order.placed_at < func.now()],
    "json": [Order.notes["urgent"].as_boolean()],
    "any child": [Order.items.any(Item.weight > 3)],
    "no child": [~Order.items.any()],
    "exists": [exists().where(Item.order_id == Order.id, Item.weight > 3)],
    "not exists": [~select(Item.id).where(Item.order_id == Order.id).exists()],
    "exists of an alias of itself": [~exists().where(other.tenant == Order.tenant, other.id < Order.id)],
    "a counting subquery": [select(func.count(Item.id)).where(Item.order_id == Order.id).scalar_subquery() > 3],
    "in a subquery": [Order.id.in_(select(Item.order_id).where(Item.packed.is_(True)))],
    "not in a subquery": [Order.id.not_in(select(Item.order_id))],
    "compared with a subquery": [Order.total > select(func.max(Item.weight)).scalar_subquery()],
    "in the record's own table": [Order.id.in_(select(func.max(other.id)).group_by(other.tenant))],
    "every child": [every_child(Order.items, Item.packed.is_(True), Item.weight > 0)],
    "every child and more": [Order.status == "paid", every_child(Order.items, Item.packed.is_(True)), Order.total > 0],
    "a late parameter": [Order.tenant == bindparam("tenant", callable_=lambda: "pilot")],
    "a literal made explicit": [Order.tenant == literal("pilot")],
    "python inside a value": [Order.total > (LIMIT or 5), Order.gift.is_(not LIMIT)],
}


@pytest.mark.parametrize("clauses", CLAUSES.values(), ids=CLAUSES.keys())
def test_a_right_condition_is_accepted(app: App, clauses: list[Any]) -> None:
    @app.on(Order, *clauses)
    def done(order: Order) -> None:
        order.status = "done"

    app.check_declarations()
    assert app.reactions["done"].clauses


def test_a_handler_takes_what_is_supplied_by_annotation(app: App) -> None:
    @app.on(Order, Order.status == "placed")
    def one(order: Order, session: Session, ctx: ReactionContext) -> None: ...

    @app.on(Order, Order.status == "paid")
    def two(order: Order, *, it: sqlalchemy.orm.Session, ctx: ReactionContext | None = None, debug: bool = False) -> None: ...

    @app.on(Order, Order.status == "sent")
    def three(order: Order, /, db: Optional[Session], *args: object, **options: object) -> None: ...  # noqa: UP045

    assert app.reactions["one"].handler.wants == {"session": "session", "ctx": "ctx"}
    assert app.reactions["two"].handler.wants == {"it": "session", "ctx": "ctx"}
    assert app.reactions["three"].handler.wants == {"db": "session"}


def test_what_is_named_where_the_handler_is_declared_is_found(app: App) -> None:
    from groundstate import ReactionContext as Instantly

    @dataclass
    class Local:
        id: str

    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.repeat())
    def charge(order: Order, when: Instantly) -> Local:
        return Local("1")

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: Local) -> None: ...

    assert charge.spec.function.wants == {"when": "ctx"}
    assert app.reactions["paid"].outcome_type is Local


def test_each_policy_with_what_it_needs(app: App, bank: ExternalService) -> None:
    mail = ExternalService("mail", limit=3, not_done=[*not_done.HTTPX, ConnectionRefusedError], client=nullcontext)

    @bank.call(in_doubt=InDoubt.repeat(), load=[selectinload(Order.items)], retry=Retry(times=None), stop_when_overtaken=True)
    async def one(order: Order) -> None: ...

    @bank.call(in_doubt=InDoubt.same_key(kept_for=DAY), timeout=SECONDS)
    def two(order: Order, key: IdempotencyKey) -> Receipt | Declined:
        return Receipt(key)

    @bank.call(in_doubt=InDoubt.same_key(kept_for=DAY, settle_after=SECONDS))
    def three(order: Order, key: IdempotencyKey, ctx: ReactionContext) -> int:
        return ctx.call_no

    @three.lookup
    def _(order: Order, key: IdempotencyKey, occurrence: Occurrence) -> int | Absent | Unknown:
        return Absent()

    @bank.call(in_doubt=InDoubt.lookup(settle_after=SECONDS))
    async def four(order: Order, key: IdempotencyKey) -> Receipt | Declined | None: ...

    @four.lookup
    async def _(order: Order, key: IdempotencyKey, ctx: ReactionContext) -> Receipt | Declined | type[Absent | Unknown] | None:
        return Unknown

    @mail.call(in_doubt=InDoubt.hold())
    def five(order: Order, client: Any) -> Sent:
        return Sent(message=str(client), at=datetime.now(UTC))

    @bank.call_many(size=100, in_doubt=InDoubt.same_key(kept_for=DAY))
    async def six(orders: Sequence[Order], keys: Sequence[IdempotencyKey]) -> Sequence[Receipt | NotDone]:
        return [Receipt(key) for key in keys]

    @bank.call_many(size=100, in_doubt=InDoubt.repeat())
    def seven(orders: Sequence[Order]) -> Mapping[Order, float]:
        return {}

    def states(call: Call[Order, Any], name: str, kind: Any) -> None:
        def handler(order: Order, outcome: Any) -> None: ...

        handler.__annotations__["outcome"] = kind
        app.on(Order, Order.status == name, call=call, name=name)(handler)

    states(one, "one", None)
    states(two, "two", Receipt | Declined)
    states(three, "three", float)
    states(four, "four", Receipt | Declined | None)
    states(five, "five", Sent)
    states(six, "six", Receipt)
    states(seven, "seven", float)
    app.check_declarations()
    assert six.spec.wants_keys == "keys"
    assert six.spec.outcome_type is Receipt
    assert six.spec.many == 100
    assert five.spec.function.wants == {"client": "client"}
    assert app.reactions["four"].terms.has_lookup
    assert two(Order(id=1), IdempotencyKey("k")) == Receipt("k")


def test_the_other_endings_stay_functions(app: App, bank: ExternalService) -> None:
    @bank.call(in_doubt=InDoubt.hold())
    def send(text: str) -> str:
        return text

    def text_of(order: Order, session: Session) -> str:
        return order.status

    @app.on(
        Order,
        Order.total > 3,
        call=send,
        prepare=text_of,
        done_column=Order.mailed_at,
        occurrence=[Order.next_at, Order.day],
        name="the mail",
    )
    def mailed(order: Order, message: str, ctx: ReactionContext) -> None:
        order.mailed_at = ctx.now

    @mailed.overtaken
    def too_late(order: Order, message: str, key: IdempotencyKey, occurrence: Occurrence, ctx: ReactionContext) -> None: ...

    @mailed.gave_up
    def never(order: Order, failure: Failure, session: Session) -> None:
        order.status = failure.error

    @app.on(Order, Order.status == "placed", retry=Retry(times=2))
    def packed(order: Order) -> None:
        order.status = "packed"

    @packed.gave_up
    def unpacked(order: Order, failure: Failure, ctx: ReactionContext) -> None: ...

    spec = app.reactions["the mail"]
    assert (spec.done_column, [one.key for one in spec.occurrence]) == ("mailed_at", ["next_at", "day"])
    assert spec.overtaken is not None
    assert spec.overtaken.wants == {"key": "key", "occurrence": "occurrence", "ctx": "ctx"}
    assert spec.gave_up is not None
    assert spec.prepare is not None
    assert spec.prepare.wants == {"session": "session"}
    assert app.reactions["packed"].terms.retry == Retry(times=2)
    order = Order(id=1)
    packed(order)
    assert order.status == "packed"
    never(order, Failure("broken", 1, datetime.now(UTC)), Session())
    assert order.status == "broken"


def test_several_consumers_of_one_state_each_with_a_fact(app: App) -> None:
    @app.on(Order, Order.status == "paid", done_column=Order.mailed_at)
    def mailed(order: Order, ctx: ReactionContext) -> None:
        order.mailed_at = ctx.now

    @app.on(Order, Order.status == "paid", done_column=Order.counted_at)
    def counted(order: Order, ctx: ReactionContext) -> None:
        order.counted_at = ctx.now

    @app.on(Order, Order.status == "paid")
    def packed(order: Order) -> None:
        order.status = "packed"

    assert [str(one) for one in app.reactions["mailed"].clauses] == ["orders.status = :status_1", "orders.mailed_at IS NULL"]


def test_every_child_is_known_with_what_wakes_the_parent(app: App) -> None:
    @app.on(Order, Order.status == "paid", every_child(Order.items, Item.packed.is_(True)))
    def packed(order: Order) -> None:
        order.status = "packed"

    spec = app.reactions["packed"]
    (found,) = spec.children
    assert (found.child, found.relationship, [one.key for one in found.parent_key]) == (Item, "items", ["order_id"])
    assert len(spec.clauses) == 3


def test_conditions_that_name_another_table_each_in_its_own_way(app: App) -> None:
    item = aliased(Item)

    @app.on(Order, Order.status == "paid", exists().where(Item.order_id == Order.id))
    def packed(order: Order) -> None:
        order.status = "packed"

    @app.on(Order, Order.status == "paid", select(Item.id).where(Item.order_id == Order.id).exists())
    def counted(order: Order) -> None:
        order.status = "counted"

    @app.on(Order, Order.status == "paid", exists(select(item.id).where(item.order_id == Order.id)))
    def booked(order: Order) -> None:
        order.status = "booked"

    @app.on(Order, Order.status == "paid", exists(select(Item).where(Item.order_id == Order.id)))
    def mailed(order: Order) -> None:
        order.status = "mailed"

    assert list(app.reactions) == ["packed", "counted", "booked", "mailed"]


def test_dataclass_models_and_sqlmodel(app: App) -> None:
    @app.on(Parcel, Parcel.state == "packed", done_column=Parcel.sent_at)
    def sent(parcel: Parcel, ctx: ReactionContext) -> None:
        parcel.sent_at = ctx.now

    @app.on(Hero, col(Hero.state) == "lost", done_column=col(Hero.saved_at))
    def saved(hero: Hero, ctx: ReactionContext) -> None:
        hero.saved_at = ctx.now

    assert app.reactions["saved"].store is app.stores[1]
    assert app.reactions["saved"].done_column == "saved_at"
    app.check_declarations()


def test_inherited_columns_are_of_the_record_too(app: App) -> None:
    @app.on(Rush, Rush.status == "placed", Rush.courier.is_(None), occurrence=[Rush.next_at, Rush.courier], done_column=Rush.mailed_at)
    def hurried(order: Order, ctx: ReactionContext) -> None:
        order.mailed_at = ctx.now

    assert app.reactions["hurried"].done_column == "mailed_at"
    app.check_declarations()


def test_a_tracked_json_column_may_change_inside(app: App) -> None:
    @app.on(Order, Order.status == "placed")
    def noted(order: Order) -> None:
        order.tracked["seen"] = True
        order.notes = {**order.notes, "seen": True}
        order.status = "noted"

    assert "noted" in app.reactions


def test_alternatives_that_can_be_told_apart(app: App, bank: ExternalService) -> None:
    @dataclass
    class Ok:
        id: str
        kind: Literal["ok"] = "ok"

    @dataclass
    class Refused:
        id: str
        kind: Literal["refused"] = "refused"

    @bank.call(in_doubt=InDoubt.hold())
    def charge(order: Order) -> Ok | Refused:
        return Ok("1")

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: Ok | Refused) -> None: ...

    @app.on(Order, Order.status == "late", call=charge)
    def paid_late(order: Order, outcome: Ok | Refused | dict[str, int] | list[str] | float | None) -> None: ...

    assert app.reactions["paid"].outcome_type == Ok | Refused


def test_states_at_rest(app: App) -> None:
    app.at_rest(Order, Order.status.in_(["packed", "cancelled"]))
    assert [record for record, _ in app.rested] == [Order]


def test_a_call_is_known_by_its_function_or_by_the_name_that_is_said(app: App, bank: ExternalService) -> None:
    class Charger:
        def __call__(self, order: Order) -> Receipt:
            return Receipt(str(order.id))

    def charge(order: Order, *, twice: bool = False) -> Receipt:
        return Receipt(str(twice))

    calls: dict[str, Any] = {
        "charge": bank.call(in_doubt=InDoubt.hold())(charge),
        "of old": bank.call(in_doubt=InDoubt.hold(), name="of old")(charge),
        "Charger": bank.call(in_doubt=InDoubt.hold())(Charger()),  # and not where it stands in memory, which is new in each process
    }
    for number, (name, call) in enumerate(calls.items()):

        @app.on(Order, Order.status == str(number), call=call, name=name)
        def paid(order: Order, outcome: Receipt) -> None: ...

    assert {name: spec.kind.call for name, spec in app.reactions.items() if spec.kind is not None} == {name: name for name in calls}


def test_the_occurrence_is_known_by_its_columns_and_a_find_without_a_name_by_none(app: App, bank: ExternalService) -> None:
    @bank.call(in_doubt=InDoubt.lookup(settle_after=SECONDS), answers_for=["stripe"])
    def charge(order: Order, key: IdempotencyKey) -> str:
        return str(key)

    @charge.lookup
    def _(order: Order, key: IdempotencyKey) -> str | Absent | Unknown:
        return Absent()

    @app.on(Order, Order.status == "placed", call=charge, occurrence=[Order.status])
    def paid(order: Order, outcome: str) -> None: ...

    app.check_declarations()
    own = app.reactions["paid"].kind
    assert own is not None
    assert (own.service, own.lookup, own.key, own.policy, own.occurrence) == ("bank", None, True, "lookup", ("status",))
