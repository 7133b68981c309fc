"""Rows for which a condition raises: text that is no number, or no JSON, a division by zero. Which ones they are. SELECTs alone.

A database asks a condition of rows in an order of its own, so that one such row keeps it from answering for any. So its clauses are asked
one after another (`Question.ask_in_turn`) of the keys of the whole table, in pages; a page that raises is halved down to single rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from groundstate.engine import trouble
from groundstate.engine.asked_apart import OF_ONE, asked_apart, why_unasked
from groundstate.engine.question import APART_MOST, PrimaryKey, Question
from groundstate.store.port import Database
from groundstate.store.tables import attempt as table
from groundstate.values.keys import NoValue

T = TypeVar("T")
Unasked = Callable[[DBAPIError, str], None]

PAGE = 500  # keys
SHOWN = 3
WITHIN_S = 5.0  # somebody waits for an answer


@dataclass
class Search:
    """For the rows of one reaction for which its condition raises, and what it found on its way."""

    cursor: PrimaryKey | None = None
    over: bool = False
    culprits: dict[PrimaryKey, str] = field(default_factory=dict)  # with what the database said
    ready: list[PrimaryKey] = field(default_factory=list)

    @property
    def too_many(self) -> bool:
        """Whether it is the condition that is wrong, and not some rows."""
        return len(self.culprits) > APART_MOST

    def page(self, connection: Connection, question: Question) -> None:
        """Goes on by one page."""
        rows = [tuple(row) for row in connection.execute(question.keys_after(self.cursor, PAGE))]
        wanted = [key for key in rows if not any(type(value) is NoValue for value in key)]  # of the others a pass tells
        if wanted:
            self.ready += asked(connection, question, wanted, self.culprits)
        self.cursor = rows[-1] if rows else self.cursor
        self.over = len(rows) < PAGE or self.too_many

    def in_words(self, question: Question) -> str:
        """Of which records the condition cannot be asked, and why."""
        some = [question.record_shown(key) for key in list(self.culprits)[:SHOWN]]
        more = len(self.culprits) - len(some)
        beside = "" if not more else f" and more than {APART_MOST:,} others" if self.too_many else f" and {more:,} others"
        return f"its condition cannot be asked of record {', '.join(some)}{beside}: {next(iter(self.culprits.values()))}"


def asked(connection: Connection, question: Question, wanted: Sequence[PrimaryKey], culprits: dict[PrimaryKey, str]) -> list[PrimaryKey]:
    """Those of these that are ready; those for which the condition raises go into `culprits`, as far as more of them are sought."""
    if len(culprits) > APART_MOST:
        return []
    try:
        with connection.begin_nested():
            return [tuple(row) for row in connection.execute(question.ready_given, question.given(wanted))]
    except DBAPIError as error:
        if not trouble.of_a_value(error):
            raise
        if len(wanted) == 1:
            culprits[wanted[0]] = trouble.said(error)
            return []
    half = len(wanted) // 2
    return asked(connection, question, wanted[:half], culprits) + asked(connection, question, wanted[half:], culprits)


def asked_of_the_others(
    connection: Connection, question: Question, ask: Callable[[], T], unasked: Unasked, *, known: bool = True
) -> T | None:
    """As `asked_apart`, and where the condition raises for some rows, what `ask` brings of all others. `unasked` is told why there is none.

    known: that is so where an attempt stands on each of these rows, which says the rest; else whoever they are.
    """
    errors: list[DBAPIError] = []
    found = asked_apart(connection, ask, errors.append)
    if found is None and known and trouble.of_a_value(errors[-1]):
        question.ask_in_turn(_attempted(connection, question, saying=OF_ONE))
        found = asked_apart(connection, ask, errors.append)
    if found is not None:
        return found
    if not trouble.of_a_value(errors[-1]):
        unasked(errors[-1], why_unasked(errors[-1]))
        return None
    looked = search(connection, question)
    there = looked.over and not looked.too_many
    if there and (not known or _attempted(connection, question).issuperset(looked.culprits)):
        found = asked_apart(connection, ask, errors.append)
    if found is None:
        unasked(errors[-1], looked.in_words(question) if looked.culprits else why_unasked(errors[-1]))
    return found


def _attempted(connection: Connection, question: Question, saying: str = "") -> set[PrimaryKey]:
    """The keys of records on which an attempt stands that surely did nothing, as far as so many rows may be set apart."""
    mine = select(table.c.record).where(table.c.app == question.spec.app, table.c.reaction == question.spec.name)
    mine = mine.where(table.c.state.in_(["failed", "held"]), table.c.error.startswith(saying, autoescape=True)).limit(APART_MOST)
    return {key for text in connection.execute(mine).scalars() if (key := question.key_of_text(text)) is not None}


def beside_them(database: Database, question: Question, do: Callable[[], T]) -> T:
    """What goes over all rows of which the condition can be asked, and then over those of which it cannot (`Question.apart`)."""
    try:
        return do()
    except DBAPIError as error:
        if question.in_turn or not trouble.of_a_value(error):
            raise
    with database.reading() as connection:
        search(connection, question)
    return do()


def search(connection: Connection, question: Question, within_s: float = WITHIN_S) -> Search:
    """Looks for them at once, and lets the condition be asked of the others alone; `over` is False where that takes longer."""
    until_s = time.monotonic() + within_s
    question.ask_in_turn(())
    found = Search()
    while not found.over and time.monotonic() < until_s:
        found.page(connection, question)
        found.ready.clear()
    if found.over and not found.too_many:
        question.ask_in_turn(found.culprits)
    return found
