"""Finds the rows for which a condition raises: text that is no number or no JSON, a division by zero. Runs SELECTs only.

A database evaluates a condition over rows in an order of its own, so one such row makes the whole query fail. So the clauses are evaluated
one after another (`ConditionQuery.ask_in_turn`) for the keys of the whole table, in pages; a page that raises is halved down to single
rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from groundstate.engine.sql import db_errors
from groundstate.engine.sql.condition_query import APART_MOST, ConditionQuery, PrimaryKey
from groundstate.engine.sql.savepoint_query import OF_ONE, ask_in_savepoint, why_unasked
from groundstate.store.port import Database
from groundstate.store.tables import attempt as table
from groundstate.values.keys import NoValue

T = TypeVar("T")
Unasked = Callable[[Exception, str], None]

PAGE = 500  # keys that one statement reads
SHOWN = 3
WITHIN_S = 5.0  # seconds: a person may wait for the answer


@dataclass
class Search:
    """The search for the rows of one reaction for which its condition raises, with what it found so far."""

    cursor: PrimaryKey | None = None
    over: bool = False
    culprits: dict[PrimaryKey, str] = field(default_factory=dict)  # key -> the database's message
    ready: list[PrimaryKey] = field(default_factory=list)

    @property
    def too_many(self) -> bool:
        """Whether the condition raises for so many rows that the condition must be wrong, and not the rows."""
        return len(self.culprits) > APART_MOST

    def page(self, connection: Connection, query: ConditionQuery) -> None:
        """Search one more page of keys."""
        rows = [tuple(row) for row in connection.execute(query.keys_after(self.cursor, PAGE))]
        wanted = [key for key in rows if not any(type(value) is NoValue for value in key)]  # a pass over the table reports the others
        if wanted:
            self.ready += ready_keys_splitting_on_error(connection, query, wanted, self.culprits)
        self.cursor = rows[-1] if rows else self.cursor
        self.over = len(rows) < PAGE or self.too_many

    def in_words(self, query: ConditionQuery) -> str:
        """Say for which records the condition cannot be evaluated, and why."""
        some = [query.record_shown(key) for key in list(self.culprits)[:SHOWN]]
        more = len(self.culprits) - len(some)
        beside = "" if not more else f" and more than {APART_MOST:,} others" if self.too_many else f" and {more:,} others"
        return f"its condition cannot be asked of record {', '.join(some)}{beside}: {next(iter(self.culprits.values()))}"


def ready_keys_splitting_on_error(
    connection: Connection, query: ConditionQuery, wanted: Sequence[PrimaryKey], culprits: dict[PrimaryKey, str]
) -> list[PrimaryKey]:
    """Return those of the wanted keys whose records are ready.

    Keys for which the condition raises are added to `culprits` with the database's message, until there are more than APART_MOST.
    """
    if len(culprits) > APART_MOST:
        return []
    try:
        with connection.begin_nested():
            return [tuple(row) for row in connection.execute(query.ready_given, query.given(wanted))]
    except DBAPIError as error:
        if not db_errors.of_a_value(error):
            raise
        if len(wanted) == 1:
            culprits[wanted[0]] = db_errors.database_message(error)
            return []
    half = len(wanted) // 2
    return ready_keys_splitting_on_error(connection, query, wanted[:half], culprits) + ready_keys_splitting_on_error(
        connection, query, wanted[half:], culprits
    )


def ask_excluding_raising_rows(
    connection: Connection, query: ConditionQuery, ask: Callable[[], T], unasked: Unasked, *, known: bool = True
) -> T | None:
    """Run `ask` in a savepoint; where the condition raises for some rows, exclude these and run it again.

    Returns None after a call of `unasked` with the error and the reason. known: exclude the failing rows only if each has an attempt, which
    reports it; otherwise exclude all that are found.
    """
    errors: list[Exception] = []
    found = ask_in_savepoint(connection, ask, errors.append)
    if found is None and known and db_errors.of_a_value(errors[-1]):
        query.ask_in_turn(_attempted(connection, query, saying=OF_ONE))
        found = ask_in_savepoint(connection, ask, errors.append)
    if found is not None:
        return found
    if not db_errors.of_a_value(errors[-1]):
        unasked(errors[-1], why_unasked(errors[-1]))
        return None
    looked = search(connection, query)
    there = looked.over and not looked.too_many
    if there and (not known or _attempted(connection, query).issuperset(looked.culprits)):
        found = ask_in_savepoint(connection, ask, errors.append)
    if found is None:
        unasked(errors[-1], looked.in_words(query) if looked.culprits else why_unasked(errors[-1]))
    return found


def _attempted(connection: Connection, query: ConditionQuery, saying: str = "") -> set[PrimaryKey]:
    """Return the keys of records that have a failed or held attempt whose error text begins with `saying`, up to APART_MOST."""
    mine = select(table.c.record).where(table.c.app == query.spec.app, table.c.reaction == query.spec.name)
    mine = mine.where(table.c.state.in_(["failed", "held"]), table.c.error.startswith(saying, autoescape=True)).limit(APART_MOST)
    return {key for text in connection.execute(mine).scalars() if (key := query.key_of_text(text)) is not None}


def retry_without_raising_rows(database: Database, query: ConditionQuery, do: Callable[[], T]) -> T:
    """Run `do`; if the condition raises for some rows, find them, exclude them (`ConditionQuery.apart`), and run `do` again."""
    try:
        return do()
    except DBAPIError as error:
        if query.in_turn or not db_errors.of_a_value(error):
            raise
    with database.reading() as connection:
        search(connection, query)
    return do()


def search(connection: Connection, query: ConditionQuery, within_s: float = WITHIN_S) -> Search:
    """Search the whole table at once for rows for which the condition raises, and let the condition be evaluated for the others only.

    `over` of the result is False where the search took longer than `within_s` seconds.
    """
    until_s = time.monotonic() + within_s
    query.ask_in_turn(())
    found = Search()
    while not found.over and time.monotonic() < until_s:
        found.page(connection, query)
        found.ready.clear()
    if found.over and not found.too_many:
        query.ask_in_turn(found.culprits)
    return found
