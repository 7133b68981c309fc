"""Runs a query for one reaction in a savepoint, so that a condition that cannot be evaluated does not stop other reactions.

A condition may fail for every row, for example because it names a function that does not exist. Or it may fail only for some rows, for
example because it casts a text to a number.
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
def in_savepoint(connection: Connection) -> Iterator[None]:
    """Wrap queries in a savepoint (PostgreSQL), so that their error does not abort the transaction. Nothing may be written in the block.

    After an error the savepoint is rolled back and also released. SQLAlchemy does not release a savepoint that it has rolled back to: the
    transaction would go on inside the savepoint, and no row of groundstate may be written in a savepoint (`store.wrote_column`). On SQLite
    nothing is done, since the error of a query aborts no transaction there.
    """
    if connection.dialect.name != "postgresql":
        yield
        return
    connection.exec_driver_sql("SAVEPOINT groundstate_asked")
    try:
        yield
    except Exception as error:
        if not db_errors.is_no_fault_of_record(error):  # after a transient error the transaction or its connection may be gone
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT groundstate_asked")
            connection.exec_driver_sql("RELEASE SAVEPOINT groundstate_asked")
        raise
    connection.exec_driver_sql("RELEASE SAVEPOINT groundstate_asked")


def query_in_savepoint(connection: Connection, ask: Callable[[], T], on_failure: Callable[[Exception], None]) -> T | None:
    """Run `ask` in a savepoint, and return its result. If it fails, call `on_failure` with the error, and return None.

    Raises DBAPIError if the database itself is in trouble, since the same query may succeed later.
    """
    try:
        with connection.begin_nested():
            return ask()
    except Exception as error:
        if not db_errors.is_fault_of_statement(error):
            raise
        on_failure(error)
        return None


def why_record_not_evaluable(error: Exception) -> str:
    """Return the reason why a condition cannot be evaluated for one record."""
    return f"{OF_ONE}: {db_errors.database_message(error)}"


def why_condition_not_evaluable(error: Exception) -> str:
    """Return the reason why a condition cannot be evaluated, with the cure if one is known."""
    unbound = isinstance(error, OverflowError) or (isinstance(error, StatementError) and db_errors.is_raised_before_sending(error))
    return f"its condition cannot be asked: {db_errors.database_message(error)}{f': {VALUES_CURE}' if unbound else ''}"
