"""Finds the rows for which the evaluation of a condition fails: text that is no number or no JSON, a division by zero. Runs only SELECTs.

A database evaluates a condition over rows in any order, so one such row makes the whole query fail. To find the rows, the clauses are
evaluated one after another (`ConditionQuery.evaluate_clauses_in_turn`) for all keys of the table, page by page. A page that fails is halved
again and again, down to single rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from groundstate.engine.sql import db_errors
from groundstate.engine.sql.condition_query import APART_MOST, ConditionQuery
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.sql.savepoint_query import OF_ONE, query_in_savepoint, why_condition_not_evaluable
from groundstate.store.port import Database
from groundstate.store.tables import attempt as table
from groundstate.values.keys import NoValue

T = TypeVar("T")
OnFailure = Callable[[Exception, str], None]

PAGE = 500  # how many keys one statement reads
SHOWN = 3
WITHIN_S = 5.0  # seconds: how long a search may take, since a person may wait for the result


@dataclass
class RaisingRowSearch:
    """A search for the rows for which one reaction's condition fails, and what the search has found so far."""

    cursor: PrimaryKey | None = None
    over: bool = False
    culprits: dict[PrimaryKey, str] = field(default_factory=dict)  # the database's message for each failing row, by the row's key
    ready: list[PrimaryKey] = field(default_factory=list)

    @property
    def has_too_many(self) -> bool:
        """Whether the evaluation fails for so many rows that the condition itself must be wrong."""
        return len(self.culprits) > APART_MOST

    def search_next_page(self, connection: Connection, query: ConditionQuery) -> None:
        """Search one more page of keys for failing rows."""
        rows = [tuple(row) for row in connection.execute(query.keys.select_keys_after(self.cursor, PAGE))]
        # Leave out keys that cannot be loaded: the pass over the table reports them.
        wanted = [key for key in rows if not any(type(value) is NoValue for value in key)]
        if wanted:
            self.ready += ready_keys_splitting_on_error(connection, query, wanted, self.culprits)
        self.cursor = rows[-1] if rows else self.cursor
        self.over = len(rows) < PAGE or self.has_too_many

    def describe_culprits(self, query: ConditionQuery) -> str:
        """Return a phrase that says for which records the condition cannot be evaluated, and why."""
        some = [query.keys.record_for_people(key) for key in list(self.culprits)[:SHOWN]]
        more = len(self.culprits) - len(some)
        beside = "" if not more else f" and more than {APART_MOST:,} others" if self.has_too_many else f" and {more:,} others"
        return f"its condition cannot be asked of record {', '.join(some)}{beside}: {next(iter(self.culprits.values()))}"


def ready_keys_splitting_on_error(
    connection: Connection, query: ConditionQuery, wanted: Sequence[PrimaryKey], culprits: dict[PrimaryKey, str]
) -> list[PrimaryKey]:
    """Return the wanted keys whose records are ready. If the query fails, it is repeated with each half of the keys.

    Each key for which the evaluation fails is added to `culprits` with the database's message, until there are more than APART_MOST.
    """
    if len(culprits) > APART_MOST:
        return []
    try:
        with connection.begin_nested():
            return [tuple(row) for row in connection.execute(query.selects.select_given_ready_keys, query.keys.key_parameters(wanted))]
    except DBAPIError as error:
        if not db_errors.is_caused_by_value(error):
            raise
        if len(wanted) == 1:
            culprits[wanted[0]] = db_errors.database_message(error)
            return []
    half = len(wanted) // 2
    return ready_keys_splitting_on_error(connection, query, wanted[:half], culprits) + ready_keys_splitting_on_error(
        connection, query, wanted[half:], culprits
    )


def ask_excluding_raising_rows(
    connection: Connection, query: ConditionQuery, ask: Callable[[], T], on_failure: OnFailure, *, known: bool = True
) -> T | None:
    """Run `ask` in a savepoint, and return its result. If the evaluation fails for some rows, exclude these rows and run `ask` again.

    If `ask` fails again, call `on_failure` with the error and the reason, and return None.

    known: If True, exclude the failing rows only if each of them has an attempt, which shows the failure to people. If False, exclude all
        failing rows that are found.
    """
    errors: list[Exception] = []
    found = query_in_savepoint(connection, ask, errors.append)
    if found is None and known and db_errors.is_caused_by_value(errors[-1]):
        query.evaluate_clauses_in_turn(_keys_with_attempts(connection, query, saying=OF_ONE))
        found = query_in_savepoint(connection, ask, errors.append)
    if found is not None:
        return found
    if not db_errors.is_caused_by_value(errors[-1]):
        on_failure(errors[-1], why_condition_not_evaluable(errors[-1]))
        return None
    looked = search_raising_rows(connection, query)
    there = looked.over and not looked.has_too_many
    if there and (not known or _keys_with_attempts(connection, query).issuperset(looked.culprits)):
        found = query_in_savepoint(connection, ask, errors.append)
    if found is None:
        on_failure(errors[-1], looked.describe_culprits(query) if looked.culprits else why_condition_not_evaluable(errors[-1]))
    return found


def _keys_with_attempts(connection: Connection, query: ConditionQuery, saying: str = "") -> set[PrimaryKey]:
    """Return the keys of the records with a failed or held attempt whose error text begins with `saying`; at most APART_MOST keys."""
    mine = select(table.c.record).where(table.c.app == query.spec.app, table.c.reaction == query.spec.name)
    mine = mine.where(table.c.state.in_(["failed", "held"]), table.c.error.startswith(saying, autoescape=True)).limit(APART_MOST)
    return {key for text in connection.execute(mine).scalars() if (key := query.keys.key_from_text_or_none(text)) is not None}


def retry_without_raising_rows(database: Database, query: ConditionQuery, do: Callable[[], T]) -> T:
    """Run `do`, and return its result. If the evaluation fails for some rows, find these rows, exclude them
    (`ConditionQuery.raising_keys`), and run `do` again.
    """
    try:
        return do()
    except DBAPIError as error:
        if query.in_turn or not db_errors.is_caused_by_value(error):
            raise
    with database.reading() as connection:
        search_raising_rows(connection, query)
    return do()


def search_raising_rows(connection: Connection, query: ConditionQuery, within_s: float = WITHIN_S) -> RaisingRowSearch:
    """Search the whole table for rows for which the evaluation fails, and exclude these rows from later evaluations.

    If the search is not finished after `within_s` seconds, it ends, and `over` of the result is False.
    """
    until_s = query.database.clock.monotonic() + within_s
    query.evaluate_clauses_in_turn(())
    found = RaisingRowSearch()
    while not found.over and query.database.clock.monotonic() < until_s:
        found.search_next_page(connection, query)
        found.ready.clear()
    if found.over and not found.has_too_many:
        query.evaluate_clauses_in_turn(found.culprits)
    return found
