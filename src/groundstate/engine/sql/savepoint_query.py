"""Runs a query for one reaction in a savepoint, so that a condition that the database cannot evaluate does not stop the other reactions.

A condition may name a function that does not exist, and then fails for every row; or it may raise for some rows only, as a cast of a text
that is no number does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import StatementError

from groundstate.engine.sql import db_errors

T = TypeVar("T")
OF_ONE = "its condition cannot be asked of this record"
VALUES_CURE = "compare each column with a value that its type takes, and that the database has"


@contextmanager
def kept_whole(connection: Connection) -> Iterator[None]:
    """Wrap queries in a savepoint (PostgreSQL), so that an error of theirs does not end the transaction. Nothing may be written inside it.

    The savepoint is released too, which SQLAlchemy does not do after it rolled back to one: else PostgreSQL would go on within it, and no
    row of ours may be written in a savepoint (`store.written`). On SQLite an error of a query ends no transaction.
    """
    if connection.dialect.name != "postgresql":
        yield
        return
    connection.exec_driver_sql("SAVEPOINT groundstate_asked")
    try:
        yield
    except Exception as error:
        if not db_errors.transient(error):  # after such errors the transaction or its connection is gone
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT groundstate_asked")
            connection.exec_driver_sql("RELEASE SAVEPOINT groundstate_asked")
        raise
    connection.exec_driver_sql("RELEASE SAVEPOINT groundstate_asked")


def ask_in_savepoint(connection: Connection, ask: Callable[[], T], unasked: Callable[[Exception], None]) -> T | None:
    """Run `ask` in a savepoint and return its result; None if that cannot be had, after a call of `unasked` with the error.

    Raises DBAPIError where the failure is the database's own trouble, since the same query may succeed another time.
    """
    try:
        with connection.begin_nested():
            return ask()
    except Exception as error:
        if not db_errors.is_its_own(error):
            raise
        unasked(error)
        return None


def cannot_be_asked(error: Exception) -> str:
    """Return the reason why a condition cannot be evaluated for one record."""
    return f"{OF_ONE}: {db_errors.database_message(error)}"


def why_unasked(error: Exception) -> str:
    """Return the reason why a condition cannot be evaluated, with the cure if one is known."""
    unbound = isinstance(error, OverflowError) or (isinstance(error, StatementError) and db_errors.unmade(error))
    return f"its condition cannot be asked: {db_errors.database_message(error)}{f': {VALUES_CURE}' if unbound else ''}"
