"""Conditions that type-check and would lose or double something: refused, or warned of, where they are declared."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import JSON, bindparam, case, exists, func, join, or_, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column
from sqlmodel import col

from groundstate import (
    App,
    DeclarationError,
    DeclarationWarning,
    ExternalService,
    IdempotencyKey,
    InDoubt,
    ReactionContext,
    Store,
    every_child,
)
from tests.app.models import Base, Hero, Item, Order, Parcel, Rush, Size
from tests.patience import HANG_S

ROOT = Path(__file__).parents[2]

DAY = timedelta(days=1)
ANY: Any = Order.gift


def _done(order: Order) -> None:
    order.status = "done"


def _refused(app: App, *clauses: Any) -> str:
    with pytest.raises(DeclarationError) as told:
        app.on(Order, *clauses)(_done)
    return str(told.value)


# ---- W1, W2: Python in SQL's place ---------------------------------------------------------------------------------------------
def test_w1_python_and_drops_a_clause(app: App) -> None:
    with pytest.raises(DeclarationError, match=r"`Order.status == 'placed' and Order.tenant == 'pilot'`: Python's `and`.*join them by &"):

        @app.on(Order, Order.status == "placed" and Order.tenant == "pilot")
        def charged(order: Order) -> None: ...


@pytest.mark.parametrize(
    "declare",
    [
        lambda app: app.on(Order, (Order.status == "placed") | (Order.total == 3 or Order.total < 1)),
        lambda app: app.on(Order, or_(Order.status == "placed" and Order.total > 3, Order.gift)),
        lambda app: app.on(Order, ~(Order.status == "placed" and Order.total > 3)),
        lambda app: app.on(Order, Order.items.any(Item.weight == 1 and Item.packed.is_(True))),
        lambda app: app.on(Order, every_child(Order.items, Item.weight == 1 and Item.packed.is_(True))),
        lambda app: app.at_rest(Order, Order.status == "placed" and Order.gift.is_(True)),
        lambda app: app.on(
            Order,
            Order.status == "placed",
            Order.tenant == "a" and Order.gift.is_(True),
            name="over several lines",
        ),
    ],
)
def test_w1_wherever_it_stands(app: App, declare: Callable[[App], Any]) -> None:
    with pytest.raises(DeclarationError, match=r"Python's `(and|or)` drops one of its sides"):
        declare(app)


@pytest.mark.parametrize(
    ("declare", "cure"),
    [
        (lambda app: app.on(Order, Order.status == "placed", Order.mailed_at is None), r"\.is_\("),
        (lambda app: app.on(Order, (Order.status == "placed") & (Order.mailed_at is None)), r"\.is_\("),
        (lambda app: app.on(Order, (Order.status == "placed") & (Order.mailed_at is not None)), r"\.is_not\("),
        (lambda app: app.on(Order, (Order.status == "placed") & (not ANY)), r"~\(\.\.\.\)"),
        (lambda app: app.on(Order, Order.status in ("placed", "paid")), r"\.in_\("),
    ],
)
def test_w2_python_compares_at_import(app: App, declare: Callable[[App], Any], cure: str) -> None:
    with pytest.raises(DeclarationError, match=cure):
        declare(app)


def test_w2_a_constant_is_seen_without_the_source(app: App) -> None:
    never: Any = Order.mailed_at is None
    assert "Python's False" in _refused(app, Order.status == "placed", never)
    assert "constant FALSE" in _refused(app, (Order.status == "placed") & never)
    assert "constant TRUE" in _refused(app, or_(~((Order.status == "placed") & never), Order.gift))


def test_source_that_cannot_be_read_is_no_error(app: App) -> None:
    names = {"app": app, "Order": Order, "_done": _done}
    exec("app.on(Order, Order.status == 'placed' and Order.total > 3)(_done)", names)
    assert len(app.reactions["_done"].clauses) == 1


# ---- W3, W4 --------------------------------------------------------------------------------------------------------------------
def test_w3_the_clock_of_the_import(app: App) -> None:
    with pytest.raises(DeclarationError, match=r"clock is read at import.*func\.now\(\)"):
        app.on(Order, Order.placed_at < datetime.now(UTC) - DAY)
    with pytest.raises(DeclarationError, match=r"clock is read at import"):
        app.on(Order, Order.day < date.today())  # noqa: DTZ011 - what users write
    yesterday = datetime(2026, 7, 5, 12, 30, 11, 423_911, tzinfo=UTC)
    assert "is the clock of the import" in _refused(app, Order.placed_at < yesterday)
    assert "is the clock of the import" in _refused(app, Order.items.any(Order.placed_at < yesterday))


@pytest.mark.parametrize(
    "clause", [Order.channel != "web", ~(Order.channel == "web"), Order.channel.not_in(["web"]), Order.channel.not_like("w%")]
)
def test_w4_unequal_loses_rows_where_it_is_null(app: App, clause: Any) -> None:
    with pytest.warns(DeclarationWarning, match=r"orders.channel can be NULL.*is_distinct_from") as told:
        app.on(Order, Order.status == "placed", clause)(_done)
    assert told[0].filename == __file__


@pytest.mark.parametrize("by_done_column", [True, False], ids=["a done column", "a clause"])
def test_a_json_column_that_is_asked_for_null_must_keep_none_as_null(tmp_path: Path, by_done_column: bool) -> None:
    class Base(DeclarativeBase):
        pass

    class Letter(Base):
        __tablename__ = "letters"
        id: Mapped[int] = mapped_column(primary_key=True)
        answer: Mapped[dict[str, Any] | None] = mapped_column(JSON)
        right: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))

    app = App("post", Store(f"sqlite:///{tmp_path}/x.db", Base))

    def answered(letter: Letter) -> None:
        letter.answer = {"yes": 1}

    def declare(column: Any, name: str) -> None:
        given: dict[str, Any] = {"done_column": column} if by_done_column else {}
        app.on(Letter, *([] if by_done_column else [column.is_(None)]), name=name, **given)(answered)

    with pytest.warns(DeclarationWarning, match=r"letters.answer is JSON.*map it as JSON\(none_as_null=True\)"):
        declare(Letter.answer, "of JSON")
    declare(Letter.right, "of NULL")


# ---- W5 ------------------------------------------------------------------------------------------------------------------------
def test_w5_two_reactions_on_the_same_state(app: App) -> None:
    app.on(Order, Order.status == "paid", Order.total > 3)(_done)
    with pytest.raises(DeclarationError, match=r"mailed has the same condition as reaction _done.*done_column=Order"):

        @app.on(Order, (Order.total > 3) & (Order.status == "paid"))
        def mailed(order: Order) -> None: ...

    app.on(Order, Order.status == "paid", Order.total < 3, name="another value")(_done)


def test_w5_the_same_fact_twice(app: App) -> None:
    app.on(Order, Order.status == "paid", done_column=Order.mailed_at)(_done)
    with pytest.raises(DeclarationError, match="same condition"):
        app.on(Order, Order.status == "paid", done_column=Order.mailed_at, name="again")(_done)


# ---- W6b, W19: other rows ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "clause",
    [
        exists().where(Item.weight > 3),
        ~select(Item.id).where(Item.packed.is_(True)).exists(),
        exists(select(Item.id).select_from(join(Order, Item)).where(Order.status == "placed")),
        exists().where(aliased(Order).status == "placed"),
        Order.id.in_(select(Item.order_id)) & exists().where(Item.weight > 3),
        select(func.count(Item.id)).scalar_subquery() > 3,
    ],
)
def test_w6b_a_subquery_that_does_not_mention_the_record(app: App, clause: Any) -> None:
    assert "says nothing of the Order in question" in _refused(app, clause)


def test_w6b_a_subquery_over_the_records_own_table_needs_an_alias(app: App) -> None:
    assert "another = aliased(Order)" in _refused(app, exists().where(Order.status == "placed"))


def test_w19_a_clause_of_another_records_column(app: App) -> None:
    told = _refused(app, Order.status == "placed", Item.weight > 3)
    assert "items.weight is not of Order" in told
    assert ".any(" in told
    assert "not of Order" in _refused(app, aliased(Order).status == "placed")


def test_w19_an_occurrence_or_a_fact_of_another_record(app: App) -> None:
    with pytest.raises(DeclarationError, match=r"occurrence=Item.weight is no column of Order"):
        app.on(Order, Order.status == "placed", occurrence=[Item.weight])(_done)
    with pytest.raises(DeclarationError, match=r"done_column=Item.packed is no column of Order"):
        app.on(Order, Order.status == "placed", done_column=Item.packed)(_done)
    wrong: Any = Order.next_at
    with pytest.raises(DeclarationError, match=r"occurrence=\[Order.next_at\]"):
        app.on(Order, Order.status == "placed", occurrence=wrong)(_done)


# ---- W12, W15, W16 -------------------------------------------------------------------------------------------------------------
def test_w12_a_recurring_condition_whose_key_never_changes(app: App, bank: ExternalService) -> None:
    @bank.call(in_doubt=InDoubt.hold())
    def charge(order: Order) -> str:
        return ""

    with pytest.warns(DeclarationWarning, match=r"add occurrence=\[Order.next_at\]"):

        @app.on(Order, Order.next_at <= func.now(), call=charge)
        def charged(order: Order, outcome: str) -> None: ...

    @app.on(Order, Order.next_at < func.now(), Order.gift.is_(True), call=charge, occurrence=[Order.next_at])
    def by_occurrence(order: Order, outcome: str) -> None: ...

    @app.on(Order, Order.next_at <= func.now(), call=charge, done_column=Order.mailed_at)
    def by_done_column(order: Order, outcome: str) -> None: ...

    @app.on(Order, Order.next_at < func.now(), Order.gift.is_(False), call=charge, occurrence=())
    def once(order: Order, outcome: str) -> None: ...


def _both(order: Order, outcome: str) -> None:
    order.refunded = order.total


def _approved(order: Order, outcome: str) -> None:
    order.status = "approved"


@pytest.mark.parametrize(
    "clauses",
    [
        (Order.refunded < Order.total,),
        (Order.total - Order.refunded > 0,),
        (Order.refunded != Order.total, Order.gift.is_(True), Order.refunded.is_not(None)),
        (or_(Order.refunded.is_(None), Order.refunded < Order.total),),
        (~or_(Order.refunded >= Order.total, Order.gift),),
        (case((Order.refunded < Order.total, True), else_=False),),
    ],
)
def test_a_call_that_compares_two_columns_of_its_record_needs_to_know_its_rounds(app: App, bank: ExternalService, clauses: Any) -> None:
    charge = bank.call(in_doubt=InDoubt.same_key(kept_for=timedelta(hours=1)))(_with_a_key)
    with pytest.warns(DeclarationWarning, match=r"compares Order\.(total|refunded) with Order\.(total|refunded).*add occurrence=") as told:
        app.on(Order, *clauses, call=charge)(_both)
    assert told[0].filename == __file__


def test_what_compares_two_columns_and_leaves_a_state_has_no_rounds(app: App, bank: ExternalService) -> None:
    charge = bank.call(in_doubt=InDoubt.same_key(kept_for=timedelta(hours=1)))(_with_a_key)
    app.on(Order, Order.status == "placed", Order.total > Order.refunded, call=charge)(_approved)
    app.on(Order, Order.status == "late", or_(Order.gift, Order.total > Order.refunded), call=charge, name="either")(_approved)
    rounds = (Order.status == "sent", Order.refunded < Order.total)
    app.on(Order, *rounds, call=charge, occurrence=[Order.refunded], name="rounds")(_both)
    app.on(Order, Order.refunded < Order.total, Order.gift.is_(True), call=charge, occurrence=(), name="once", due=Order.next_at)(_both)
    app.on(Order, Order.refunded < Order.total, call=charge, done_column=Order.mailed_at, name="fact")(_fact)
    without_key = bank.call(in_doubt=InDoubt.repeat())(_plain_call)
    app.on(Item, Item.weight > Item.order_id, call=without_key, name="no_key")(_weighed)


def _with_a_key(order: Order, key: IdempotencyKey) -> str:
    return ""


def _plain_call(item: Item) -> str:
    return ""


def _weighed(item: Item, outcome: str) -> None:
    item.weight = item.order_id


def _fact(order: Order, outcome: str, ctx: ReactionContext) -> None:
    order.mailed_at = ctx.now


# ---- one that holds wherever another does ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ((Order.status == "placed",), (Order.status == "placed", Order.total > 100)),
        ((Order.status.in_(["placed", "paid"]),), (Order.status == "placed", Order.gift.is_(True))),
        ((Order.status.is_distinct_from("cancelled"),), (Order.status == "placed",)),
        ((Order.size == Size.SMALL,), (Order.size == Size.SMALL, Order.status == "placed")),
        ((or_(Order.status == "placed", Order.status == "paid"),), (Order.status == "placed",)),
        ((Order.total > 100,), (Order.total > 1000,)),
        ((Order.total.between(1, 100),), (Order.total == 50, Order.status == "placed")),
    ],
)
@pytest.mark.parametrize("other_way", [False, True])
def test_two_reactions_of_which_one_holds_wherever_the_other_does(app: App, wide: Any, narrow: Any, other_way: bool) -> None:
    first, second = (("narrow", narrow), ("wide", wide)) if other_way else (("wide", wide), ("narrow", narrow))
    app.on(Order, *first[1], name=first[0])(_done)
    with pytest.warns(DeclarationWarning, match="reaction narrow: wherever it holds, reaction wide holds as well") as told:
        app.on(Order, *second[1], name=second[0])(_done)
    assert told[0].filename == __file__


def test_a_record_of_a_subclass_is_taken_by_a_reaction_on_all_of_them(app: App) -> None:
    app.on(Order, Order.status == "placed", name="all")(_done)
    with pytest.warns(DeclarationWarning, match="reaction rush: wherever it holds, reaction all holds as well"):
        app.on(Rush, Rush.status == "placed", Rush.courier.is_(None), name="rush")(_done)


def test_no_word_where_each_has_a_part_of_its_own_or_a_time_or_a_fact(app: App) -> None:
    app.on(Order, Order.status == "placed", Order.total > 100, name="large")(_done)
    app.on(Order, Order.status == "placed", Order.total <= 100, name="small")(_done)
    app.on(Order, Order.status == "placed", due=Order.next_at, name="timed")(_done)
    app.on(Order, Order.status == "placed", done_column=Order.mailed_at, name="mailed")(_mailed)
    app.on(Item, Item.packed.is_(True), name="packed")(_item_done)
    app.on(Item, Item.packed.is_not(True), name="unpacked")(_item_done)


def _mailed(order: Order, ctx: ReactionContext) -> None:
    order.mailed_at = ctx.now


def _item_done(item: Item) -> None: ...


def test_w15_json_that_changes_inside_is_not_written(app: App) -> None:
    @app.on(Order, Order.status == "placed")
    def noted(order: Order) -> None:
        order.notes["mail"] = "sent"
        order.tracked["mail"] = "sent"

    with pytest.warns(DeclarationWarning, match=r"the inside of notes, .*MutableDict.as_mutable\(JSON\)") as told:
        app.check_declarations()
    assert [one.filename for one in told] == [__file__]


def test_w16_an_enum_compared_with_what_it_never_is(app: App) -> None:
    assert "'SMALL', 'LARGE'" in _refused(app, Order.size == "small")
    assert "is never 's'" in _refused(app, Order.size.in_(["SMALL", "s"]))
    assert "is never 'middling'" in _refused(app, Order.level == "middling")
    assert "is never 'wep'" in _refused(app, Order.kind == "wep")
    assert "is never <Size.SMALL" in _refused(app, Order.level == Size.SMALL)


# ---- what else is no condition -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "clause", [func.count(Order.id) > 3, func.max(Order.total) == Order.total, func.row_number().over() == 1, func.sum(Order.total) > 1]
)
def test_an_aggregate_is_of_many_rows(app: App, clause: Any) -> None:
    assert "is of many rows" in _refused(app, clause)


def test_what_is_no_condition_at_all(app: App) -> None:
    assert "is text" in _refused(app, text("status = 'placed'"))
    assert "is text" in _refused(app, "status = 'placed'")
    assert "Python's None" in _refused(app, None)
    assert "no condition: compare it" in _refused(app, Order.status)
    assert "nobody gives the parameter 'tenant'" in _refused(app, Order.tenant == bindparam("tenant"))
    assert "has no clause" in _refused(app)


def test_every_child_needs_children_and_a_clause(app: App) -> None:
    with pytest.raises(DeclarationError, match="give the parent's relationship"):
        every_child(Order.status, Item.weight > 3)
    with pytest.raises(DeclarationError, match="has no clause"):
        every_child(Order.items)
    with pytest.raises(DeclarationError, match="one-to-many"):
        every_child(Item.order, Order.total > 3)
    with pytest.raises(DeclarationError, match="not of Item"):
        every_child(Order.items, Parcel.state == "sent")


# ---- records, facts, stores ----------------------------------------------------------------------------------------------------
def test_a_record_is_a_mapped_class_in_a_store(app: App) -> None:
    wrong: Any = int
    with pytest.raises(DeclarationError, match="int is no mapped class"):
        app.on(wrong, Order.status == "placed")(_done)
    small = App("small", Store("sqlite://", Base))
    with pytest.raises(DeclarationError, match=r"Hero is in none of the stores of App\('small'\)"):
        small.on(Hero, col(Hero.state) == "lost")(_saved)


def _saved(hero: Hero) -> None: ...


def test_a_fact_is_a_column_that_can_be_null(app: App) -> None:
    with pytest.raises(DeclarationError, match=r"done_column=Order.status cannot be NULL.*Mapped\[datetime \| None\]"):
        app.on(Order, Order.total > 3, done_column=Order.status)(_done)
    with pytest.raises(DeclarationError, match="is the primary key"):
        app.on(Order, Order.total > 3, done_column=Order.id)(_done)


def test_a_fact_alone_is_a_condition(app: App) -> None:
    app.on(Order, done_column=Order.mailed_at)(_done)
    assert [str(one) for one in app.reactions["_done"].clauses] == ["orders.mailed_at IS NULL"]


WITHOUT_COLUMNS = """
from groundstate import App, DeclarationError, Store
from tests.app.models import Base, Order

app = App("shop", Store("sqlite:///never-opened.db", Base))
try:
    @app.on(
        Order,
        Order.status.in_(["placed"]),
        Order.status == "placed" and Order.total > 5,
    )
    def gift(order: Order) -> None: ...
except DeclarationError as error:
    print(error)
"""


def test_python_in_a_clause_is_seen_where_python_was_told_to_forget_columns(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(WITHOUT_COLUMNS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-X", "no_debug_ranges", str(tmp_path / "shop.py")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S, check=True)
    assert "`Order.status == 'placed' and Order.total > 5`: Python's `and` drops one of its sides" in done.stdout
