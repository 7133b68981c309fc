"""What new values prove false of `column == constant`, and that nothing is proven where it is not certain."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import JSON, ColumnElement, String, TypeDecorator, inspect, literal, or_
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate.rules.constant_clauses import constants_by_attribute, makes_a_clause_false


class Base(DeclarativeBase):
    pass


class Lower(TypeDecorator[str]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str:  # noqa: ARG002  # what a type is given
        return (value or "").lower()[:3]


class Plain(TypeDecorator[str]):
    impl = String
    cache_ok = True


class Order(Base):
    __tablename__ = "rules_order"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column("status")
    open: Mapped[bool]
    tries: Mapped[int]
    price: Mapped[Decimal]
    note: Mapped[str | None]
    lower: Mapped[str] = mapped_column(Lower)
    varied: Mapped[str] = mapped_column(String().with_variant(Lower(), "sqlite"))
    plain: Mapped[str] = mapped_column(Plain)
    json: Mapped[Any] = mapped_column(JSON)


class Line(Base):
    __tablename__ = "rules_line"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str]


def demanded(*clauses: ColumnElement[bool]) -> dict[str, Any]:
    return constants_by_attribute(clauses, inspect(Order))


def test_what_a_clause_demands_is_read_by_the_attribute_and_not_the_column_s_name() -> None:
    assert demanded(Order.state == "new", Order.tries == 3) == {"state": "new", "tries": 3}


def test_a_type_that_only_wraps_another_is_as_good_as_that() -> None:
    assert demanded(Order.plain == "new") == {"plain": "new"}


@pytest.mark.parametrize(
    "clause",
    [
        Order.state != "new",
        Order.tries > 3,
        Order.note.is_(None),
        Order.state.in_(["new"]),
        or_(Order.state == "new", Order.tries == 3),
        Order.state == Order.note,
        Order.price == Decimal("1.0"),
        Line.state == "new",
        Order.price == literal("1"),
        Order.lower == "new",
        Order.varied == "new",
        Order.json == "new",
    ],
    ids=str,
)
def test_nothing_is_demanded_where_it_cannot_be_said_with_certainty(clause: ColumnElement[bool]) -> None:
    assert demanded(clause) == {}


def test_a_new_value_proves_a_clause_false() -> None:
    assert makes_a_clause_false({"state": "new"}, {"state": "paid"})
    assert makes_a_clause_false({"tries": 3, "state": "new"}, {"tries": 4})
    assert makes_a_clause_false({"open": True}, {"open": False})


@pytest.mark.parametrize(("constant", "value"), [("new", "NEW"), ("new", "new  "), ("to_pay", "to pay"), ("café", "cafe"), ("ß", "SS")])
def test_texts_that_some_collation_finds_equal_prove_nothing(constant: str, value: str) -> None:
    assert not makes_a_clause_false({"state": constant}, {"state": value})


def test_null_is_not_equal_to_anything() -> None:
    assert makes_a_clause_false({"state": "new"}, {"state": None})


def test_the_same_value_or_another_column_proves_nothing() -> None:
    assert not makes_a_clause_false({"state": "new"}, {"state": "new"})
    assert not makes_a_clause_false({"state": "new"}, {"note": "paid"})
    assert not makes_a_clause_false({}, {"state": "paid"})


def test_values_of_another_type_prove_nothing_since_the_database_may_find_them_equal() -> None:
    assert not makes_a_clause_false({"tries": 1}, {"tries": True})
    assert not makes_a_clause_false({"tries": 1}, {"tries": "2"})
    assert not makes_a_clause_false({"tries": 1}, {"tries": Decimal(2)})


values = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(["", "a", "A", "1"]))
names = st.sampled_from(["a", "b", "c"])


@given(st.dictionaries(names, values.filter(lambda one: one is not None)), st.dictionaries(names, values))
def test_whatever_is_proven_false_differs_in_a_demanded_column(wanted: dict[str, Any], new: dict[str, Any]) -> None:
    differs = any(name in new and (new[name] is None or new[name] != constant) for name, constant in wanted.items())
    assert differs or not makes_a_clause_false(wanted, new)
    if any(name in new and new[name] is None for name in wanted):
        assert makes_a_clause_false(wanted, new)
