"""Conditions and tries as people read them: values written out, one line, subqueries of their record, and until when is tried."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import ForeignKey, Interval, String, TypeDecorator, exists, func, inspect, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from groundstate.engine.rows.attempt_text import describe_tries
from groundstate.engine.sql.sql_text import sql_for_people, sql_text, with_single_percents
from groundstate.rules.attempt import Attempt, State, Terms
from groundstate.rules.policy import Retry


class Base(DeclarativeBase): ...


class Tags(TypeDecorator[Any]):
    """Its values are written by the driver alone."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: Any) -> Any:
        return value

    def literal_processor(self, dialect: Any) -> Any:
        raise NotImplementedError


class Order(Base):
    __tablename__ = "shown_orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]
    tags: Mapped[Any] = mapped_column(Tags)
    at: Mapped[datetime]
    lasts: Mapped[timedelta] = mapped_column(Interval)
    items: Mapped[list[Item]] = relationship(back_populates="order")


class Item(Base):
    __tablename__ = "shown_items"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("shown_orders.id"))
    order: Mapped[Order] = relationship(back_populates="items")


class Gift(Order):
    __tablename__ = "shown_gifts"
    id: Mapped[int] = mapped_column(ForeignKey("shown_orders.id"), primary_key=True)
    wrapped: Mapped[bool]


DIALECTS: dict[str, Any] = {
    "sqlite": sqlite.dialect(),
    "postgres": postgresql.dialect(paramstyle="pyformat"),  # type: ignore[no-untyped-call]
}
CONDITIONS: dict[str, Callable[[], Any]] = {
    "a relationship": lambda: ~Order.items.any(Item.id > 3),
    "an exists": lambda: exists().where(Item.order_id == Order.id),
    "a subquery": lambda: select(func.count()).where(Item.order_id == Order.id).scalar_subquery() == 0,
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_subquery_reads_as_it_is_asked_and_in_one_line(condition: str, dialect: str) -> None:
    said = sql_for_people(DIALECTS[dialect], Order.__table__, CONDITIONS[condition]())
    assert "\n" not in said
    assert said.count("FROM shown_items") == 1
    assert "FROM shown_items, shown_orders" not in said
    assert "shown_items.order_id" in said
    assert "shown_orders.id" in said


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("record", [Order, Gift])
def test_a_subquery_that_is_asked_again_asks_of_each_record(record: type, condition: str, dialect: str) -> None:
    said = sql_text(DIALECTS[dialect], inspect(record).selectable, CONDITIONS[condition]())
    assert said.count("FROM shown_items") == 1
    assert "FROM shown_items, shown_" not in said


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_asked_again_has_the_values_of_what_cannot_be_written_beside_it(dialect: str) -> None:
    said = [sql_text(DIALECTS[dialect], Order.__table__, Order.tags == value) for value in (["a"], ["b"])]
    assert [one.partition(" -- ")[2] for one in said] == ["{'tags_1': ['a']}", "{'tags_1': ['b']}"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_value_is_written_out(dialect: str) -> None:
    said = sql_for_people(
        DIALECTS[dialect], Order.__table__, (Order.tags == ["a"]) & (func.timezone("UTC", Order.at) > "2026") & (Order.id == 7)
    )
    assert "tags_1" not in said
    assert "timezone_1" not in said
    assert "id = 7" in said
    assert "['a']" in said


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_percent_sign_stands_once(dialect: str) -> None:
    said = sql_for_people(DIALECTS[dialect], Order.__table__, Order.status.like("pl%") & (Order.id % 2 == 0))
    assert "%%" not in said
    assert "'pl%'" in said
    assert with_single_percents(DIALECTS["sqlite"], "a %% b") == "a %% b"


SINCE = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(("retry", "said"), [
    (Retry(times=10), "5 of 10"),
    (Retry(times=None), "5, no limit"),
    (Retry(times=None, give_up_after=timedelta(hours=2)), "5, no try after 2026-01-01 14:00 UTC"),
    (Retry(times=10, give_up_after=timedelta(days=1)), "5 of 10, no try after 2026-01-02 12:00 UTC"),
], ids=["times", "no limit", "a time", "both"])  # fmt: skip
def test_failures_are_told_with_what_ends_the_tries(retry: Retry, said: str) -> None:
    attempt = Attempt("app", "paid", "1", "", State.FAILED, 1, 1, 1, False, SINCE, SINCE, SINCE, failures=5)
    assert describe_tries(attempt, Terms(None, retry)) == said
