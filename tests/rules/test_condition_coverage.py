"""Whether one condition covers another, against the rows themselves: whatever is told, SQL says of each row."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, func, not_, or_, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

from groundstate.rules.condition_coverage import condition_is_implied
from groundstate.rules.sql_inspect import flatten_ands


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int | None]
    other: Mapped[int | None]
    name: Mapped[str | None]


@pytest.fixture(scope="module")
def things() -> Iterator[Engine]:
    """A row for each of the values that the clauses below are about."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    numbers, names = (None, 0, 1, 2, 3, 4), (None, "a", "b", "c")
    with Session(engine) as session, session.begin():
        session.add_all(Thing(number=one, other=two, name=name) for one, two, name in product(numbers, numbers[:4], names))
    yield engine
    engine.dispose()


_number = st.sampled_from([0, 1, 2, 3])
_column: Any = st.sampled_from([Thing.number, Thing.other, func.coalesce(Thing.number, 0)])
_simple: Any = st.one_of(
    st.builds(lambda column, value: column < value, _column, _number),
    st.builds(lambda column, value: column <= value, _column, _number),
    st.builds(lambda column, value: column > value, _column, _number),
    st.builds(lambda column, value: column >= value, _column, _number),
    st.builds(lambda column, value: column == value, _column, _number),
    st.builds(lambda column, value: column != value, _column, _number),
    st.builds(lambda column, low, high: column.between(low, high), _column, _number, _number),
    st.builds(lambda column, values: column.in_(values), _column, st.lists(_number, min_size=1, max_size=3)),
    st.builds(lambda value: Thing.name == value, st.sampled_from(["a", "b"])),
    st.builds(Thing.name.is_distinct_from, st.sampled_from(["a", "b"])),
    st.builds(lambda: Thing.name.is_(None)),
    st.builds(lambda column: column.is_not(None), _column),
    st.builds(lambda: Thing.number < Thing.other),
    st.builds(lambda: Thing.other > Thing.number),
)
_clause: Any = st.recursive(_simple, lambda inner: st.one_of(st.builds(or_, inner, inner), st.builds(lambda a, b: a & b, inner, inner),
                                                             st.builds(not_, inner)), max_leaves=3)  # fmt: skip


@given(wide=st.lists(_clause, min_size=1, max_size=2), narrow=st.lists(_clause, min_size=1, max_size=3))
def test_what_is_said_to_be_covered_holds_wherever_the_other_does(things: Engine, wide: list[Any], narrow: list[Any]) -> None:
    if condition_is_implied(flatten_ands(wide), flatten_ands(narrow), Thing.__mapper__):
        with things.connect() as connection:
            holds = {row.id for row in connection.execute(select(Thing.id).where(*narrow))}
            assert holds <= {row.id for row in connection.execute(select(Thing.id).where(*wide))}


WITHIN = [
    (Thing.number > 1, Thing.number > 2),
    (Thing.number >= 1, Thing.number > 1),
    (Thing.number < 3, Thing.number.in_([1, 2])),
    (Thing.number.between(1, 3), Thing.number == 2),
    (Thing.number.between(1, 3), (Thing.number >= 1) & (Thing.number < 3)),
    (or_(Thing.name == "a", Thing.number > 1), Thing.number > 2),
    (Thing.number > 0, or_(Thing.number > 1, Thing.number == 2)),
    (func.coalesce(Thing.number, 0) > 1, func.coalesce(Thing.number, 0) > 2),
    (or_(Thing.name == "a", Thing.name == "b"), Thing.name == "b"),
    (or_(Thing.number == 1, Thing.number == 2, Thing.other > 1), Thing.number.in_([1, 2])),
    (Thing.number.is_not(None), Thing.number > 1),
    (Thing.other.is_not(None), Thing.number == Thing.other),
]


@pytest.mark.parametrize(("wide", "narrow"), WITHIN)
def test_bounds_and_ors_are_seen(wide: Any, narrow: Any) -> None:
    assert condition_is_implied(flatten_ands([wide]), flatten_ands([narrow]), Thing.__mapper__)
    assert not condition_is_implied(flatten_ands([narrow]), flatten_ands([wide]), Thing.__mapper__)


def test_a_comparison_the_other_way_round_is_the_same() -> None:
    for one, other in (
        (Thing.number > Thing.other, Thing.other < Thing.number),
        (Thing.number == Thing.other, Thing.other == Thing.number),
    ):
        assert condition_is_implied(flatten_ands([one]), flatten_ands([other, Thing.name == "a"]), Thing.__mapper__)
    assert not condition_is_implied(
        flatten_ands([Thing.number > Thing.other]), flatten_ands([Thing.other > Thing.number]), Thing.__mapper__
    )


def test_another_expression_another_order_and_a_text_say_nothing() -> None:
    for wide, narrow in (
        (Thing.other > 1, Thing.number > 2),
        (Thing.number < 1, Thing.number > 2),
        (Thing.number.in_([1, 3]), Thing.number.between(1, 3)),
        (Thing.name > "a", Thing.name > "b"),
        (Thing.number > 1, func.coalesce(Thing.number, 0) > 2),
    ):
        assert not condition_is_implied(flatten_ands([wide]), flatten_ands([narrow]), Thing.__mapper__)
