"""What a condition query caches is of its present order of evaluation, and of the narrowing that it has now."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import pytest
from sqlalchemy import Integer, Select, cast
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import App, Store, UtcDateTime, after
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.record_selects import RecordSelects
from groundstate.store import connect

DAY = timedelta(days=1)


class Base(DeclarativeBase):
    pass


class Letter(Base):
    __tablename__ = "query_letters"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]
    weight: Mapped[str]
    sent_at: Mapped[datetime] = mapped_column(UtcDateTime)


@pytest.fixture
def query(database_url: str) -> Iterator[ConditionQuery]:
    app = App("shop", Store(database_url, Base))

    @app.on(Letter, Letter.status == "new", cast(Letter.weight, Integer) > 3, due=after(Letter.sent_at, DAY, valid_for=DAY))
    def sent(letter: Letter) -> None:
        letter.status = "sent"

    @sent.expired
    def sent_expired(letter: Letter) -> None:
        letter.status = "late"

    database, _, _ = connect.open_store(app.stores[0].settings())
    yield ConditionQuery(app.reactions["sent"], database)
    database.close()


CACHED = sorted(name for name, member in vars(RecordSelects).items() if isinstance(member, cached_property))


def sql_of(query: ConditionQuery, name: str) -> str:
    """The SQL of a cached member, with the parameters that are read when it is executed."""
    found: Select[Any] | list[Select[Any]] = getattr(query.selects, name)
    made = [one.compile(dialect=query.database.engine.dialect) for one in (found if isinstance(found, list) else [found])]
    return "\n".join(f"{one} {sorted(one.construct_params(_check=False))}" for one in made)


def changed_by(query: ConditionQuery, *changes: Any) -> list[bool]:
    """Whether each change gives each cached member another SQL, where all members were cached before it."""
    before, found = [sql_of(query, name) for name in CACHED], []
    for change in changes:
        version = query.version
        change()
        now = [sql_of(query, name) for name in CACHED]
        found += [query.version > version, *(was != sql for was, sql in zip(before, now, strict=True))]
        before = now
    return found


def test_there_is_something_cached() -> None:
    assert set(CACHED) >= {"select_given_ready_records", "select_given_ready_keys", "select_given_records_with_truth", "probe_statements"}


def test_every_cached_statement_is_of_the_present_order_of_evaluation(query: ConditionQuery) -> None:
    late = query.query_for_expired
    assert late is not None
    for one in (query, late):
        assert all(changed_by(one, lambda: query.evaluate_clauses_in_turn([(1,)]), query.evaluate_clauses_in_any_order))


def test_every_cached_statement_for_ready_records_is_narrowed(query: ConditionQuery) -> None:
    late = query.query_for_expired
    assert late is not None
    ready = [name for name in CACHED if name != "select_given_records_with_truth"]  # a call that has begun is concluded all the same
    for one in (query, late):
        before = [sql_of(one, name) for name in ready]
        query.narrow_by("status <> 'old'")
        assert all("status <> 'old'" in sql_of(one, name) and sql_of(one, name) != was for name, was in zip(ready, before, strict=True))


def test_the_keys_that_are_left_out_are_read_when_a_statement_is_executed(query: ConditionQuery) -> None:
    query.evaluate_clauses_in_turn([(1,)])
    selects, version = query.selects, query.version
    query.exclude_raising_row((2,))
    assert query.raising_keys == {(1,), (2,)}
    assert (query.selects, query.version) == (selects, version)
    query.include_rows_again([(1,), (3,)])
    assert query.raising_keys == {(2,)}
    assert (query.selects, query.version) == (selects, version)


def test_a_narrowed_condition_may_read_any_table_and_never_locks_as_it_evaluates(postgres_url: str) -> None:
    app = App("shop", Store(postgres_url, Base))

    @app.on(Letter, Letter.status == "new")
    def sent(letter: Letter) -> None:
        letter.status = "sent"

    database, _, _ = connect.open_store(app.stores[0].settings())
    query = ConditionQuery(app.reactions["sent"], database)
    assert (query.selects.reads_only_own_row, query.other_tables_read) == (True, frozenset())
    query.narrow_by("exists (select 1 from boxes)")
    assert (query.selects.reads_only_own_row, query.other_tables_read) == (False, None)
    query.end_narrowing()
    assert (query.selects.reads_only_own_row, query.other_tables_read) == (False, frozenset())
    database.close()


def test_the_text_for_people_is_the_same_in_each_order_of_evaluation(query: ConditionQuery) -> None:
    query.evaluate_clauses_in_turn([(1,)])
    assert "CASE" not in query.texts.condition_for_people
    assert "status = 'new'" in query.texts.condition_for_people


def test_what_a_trigger_may_change_is_not_demanded(query: ConditionQuery) -> None:
    assert query.demanded_constants == {"status": "new"}
    query.triggers_may_change_row = True
    assert query.demanded_constants == {}
