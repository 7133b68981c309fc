"""JSON of any shape given to `settle --outcome`, against outcomes of each kind: it is taken as that type or refused in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator

from groundstate import ExternalService, IdempotencyKey, InDoubt
from groundstate.engine.rows import outcome_json
from groundstate.rules.attempt import State
from groundstate.values.errors import ConflictError
from tests.engine.kit import Order, World
from tests.engine.operate.test_actions import settle, stored
from tests.fuzz.conftest import examples


@dataclass(frozen=True)
class Receipt:
    id: str
    amount: int = 0


@dataclass(frozen=True)
class Declined:
    why: str


class Parcel(BaseModel):
    number: int
    sent_at: datetime
    price: Decimal | None = None

    @field_validator("number")
    @classmethod
    def checked(cls, value: int) -> int:
        return {1: value}[value]  # a validator with a fault of its own


class Colour(Enum):
    RED = "red"


KINDS: list[Any] = [
    str,
    int,
    bool,
    bytes,
    datetime,
    timedelta,
    Colour,
    Receipt,
    Receipt | Declined,
    Parcel,
    str | None,
    list[Receipt],
    dict[str, int],
]
SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.sampled_from(["red", "r1", "2026-01-01T00:00:00Z"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "amount", "why", "number", "sent_at"]), inner, max_size=4)
    ),
    max_leaves=6,
)
WRITTEN = st.one_of(
    SHAPES.map(json.dumps), st.text(max_size=20), st.sampled_from(["[" * 5000, "{" * 5000, '"\\ud800"', "NaN", "1e999", "-", "\ufeff1"])
)


@examples(60)
@example(Parcel, '{"number": 2, "sent_at": "2026-01-01T00:00:00Z"}')
@example(Receipt, "[" * 5000)
@given(st.sampled_from(KINDS), WRITTEN)
def test_any_json_is_an_outcome_of_the_handlers_type_or_refused_in_words(kind: Any, written: str) -> None:
    try:
        value = outcome_json.load_outcome(kind, written)
    except ConflictError as refused:
        said = str(refused)
    else:
        said = _goes_there_and_back(kind, value)
    assert "is no outcome of type" in said or said == "it does"


def _goes_there_and_back(kind: Any, value: Any) -> str:
    kept = outcome_json.dump_outcomes(kind, [value])
    first, rest = outcome_json.first_and_rest(kept)
    assert rest is None
    assert outcome_json.is_text_only(first) or outcome_json.load_first_outcome(kind, kept) == value or value != value  # noqa: PLR0124  # NaN
    return "it does"


@examples(40)
@given(st.sampled_from(KINDS), WRITTEN, st.text(max_size=10))
def test_whatever_stands_in_the_outcome_column_another_one_can_be_added_and_none_is_dropped(kind: Any, written: str, value: str) -> None:
    for kept in (outcome_json.append_outcome(kind, written, value), outcome_json.put_outcome_first(kind, written, value)):
        assert len(json.loads(kept)) >= 1
    first, _ = outcome_json.first_and_rest(outcome_json.put_outcome_first(str, written, value))
    assert first == value
    outcome_json.first_and_rest(written)
    outcome_json.without_outcome(written, value)


def test_outcomes_are_one_where_their_json_is_and_not_where_python_calls_them_equal() -> None:
    assert outcome_json.without_outcome("[1, true, 1.0, NaN]", True) == "[1, 1.0, NaN]"
    assert outcome_json.without_outcome("[NaN]", float("nan")) is None
    assert outcome_json.put_outcome_first(bool | int, "[1]", True) == "[true, 1]"


@pytest.mark.parametrize(("kind", "value"), [(float | None, float("nan")), (float, float("-inf")), (dict[str, Any], {"a": [float("inf")]})])
def test_a_number_for_which_json_has_no_word_comes_back_as_it_was(kind: Any, value: Any) -> None:
    assert repr(outcome_json.load_first_outcome(kind, outcome_json.dump_outcomes(kind, [value]))) == repr(value)


def test_a_set_with_such_a_number_is_kept_as_text_since_nobody_knows_which_it_was() -> None:
    first, _ = outcome_json.first_and_rest(outcome_json.dump_outcomes(set[float | None], [{float("nan"), None}]))
    assert outcome_json.is_text_only(first)


@pytest.fixture
def charged(sqlite_url: str) -> Iterator[World]:
    world = World(sqlite_url)
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.hold(), timeout=timedelta(seconds=1))
    def charge(order: Order, key: IdempotencyKey) -> Receipt | Declined:
        raise AssertionError("a person's word is never a call")

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: Receipt | Declined) -> None:
        order.status = "paid" if isinstance(outcome, Receipt) else "declined"

    yield world.there()
    world.close()


@examples(12)
@given(WRITTEN)
def test_an_order_is_paid_or_declined_by_what_a_person_says_or_stays_held_as_it_was(charged: World, written: str) -> None:
    world = charged
    with world.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM orders")
    world.force("DELETE FROM groundstate_attempt")
    world.orders(1)
    stored(world, unsure=True)
    try:
        settle(world, written)
    except ConflictError:
        assert world.order().status == "placed"
        assert world.attempt().state is State.HELD
        assert world.attempt().unsure
    else:
        assert world.order().status in ("paid", "declined")
        assert world.attempts() == []
