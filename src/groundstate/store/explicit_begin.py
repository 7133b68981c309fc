"""Runs transactions whose BEGIN statement is sent by us, as the caller chooses it. Both drivers use it.

The database driver must be in autocommit, so that it sends no BEGIN of its own. Nothing here tries a transaction again once it has begun.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, RootTransaction, event
from sqlalchemy.exc import DBAPIError

from groundstate.store import connection_reset

_BEGIN = "groundstate_begin"
_IDLE = 0  # libpq's PQTRANS_IDLE


@dataclass(frozen=True)
class TransactionMode:
    """Describes how a transaction runs.

    begin: the SQL that begins it. keep: whether it ends with COMMIT where nothing was raised. before, after: SQL for the connection outside
    of the transaction; `after` undoes `before`, since the connection goes back to a pool. `before` runs on an idle connection.
    """

    begin: str
    keep: bool = True
    before: str = ""
    after: str = ""


def begin_with(engine: Engine, words: str) -> None:
    """Begin each transaction of the engine with the SQL in `words` from now on, where its Manner has no other."""

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, words))

    event.listen(engine, "begin", begin)


@contextmanager
def transaction(engine: Engine, manner: TransactionMode) -> Iterator[Connection]:
    """Run the block in a transaction of this manner, and roll it back on any exception, including one of its COMMIT or ROLLBACK.

    A connection on which the block left settings, or that does not leave its transaction, is discarded.

    Raises:
        InvalidRequestError: the block itself ended the transaction, so that it is unknown whether it is kept.
    """
    connection, begun = _begun(engine, manner)
    failed = spoilt = False
    try:
        yield connection
        if manner.keep:
            begun.commit()
        else:
            begun.rollback()
    except BaseException as error:
        failed, spoilt = True, connection_reset.may_be_of_it(error)
        if spoilt:
            connection_reset.say_failed(error)
        if begun.is_active:
            with suppress(Exception):  # what went wrong is told by the error; the connection is looked at as it is given back
                begun.rollback()
        raise
    finally:
        _give_back(connection, manner, failed=failed, spoilt=spoilt)


def _begun(engine: Engine, manner: TransactionMode) -> tuple[Connection, RootTransaction]:
    try:
        return _begin(engine, manner)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
    # The pooled connection had broken while it was idle (the server was restarted). Nothing was done on it, and the pool has discarded
    # the others of its age, so a new one either works or shows the true error.
    return _begin(engine, manner)


def _begin(engine: Engine, manner: TransactionMode) -> tuple[Connection, RootTransaction]:
    connection = engine.connect()
    try:
        connection_reset.resting(connection)
        if manner.before:
            _driver(connection).execute(manner.before)
        return connection, connection.execution_options(**{_BEGIN: manner.begin}).begin()
    except BaseException:
        _give_back(connection, manner, failed=True)
        raise


def _give_back(connection: Connection, manner: TransactionMode, *, failed: bool, spoilt: bool = False) -> None:
    try:
        if failed and not connection.invalidated and _stands_open(connection):
            connection.invalidate()
        if connection_reset.has_leftover_settings(connection, failed) or (spoilt and not connection.invalidated):
            connection.invalidate()
        if manner.after and not connection.invalidated:
            _driver(connection).execute(manner.after)
    except BaseException:
        connection.invalidate()
        raise
    finally:
        connection.close()


def _stands_open(connection: Connection) -> bool:
    """Whether a transaction is still open on it that cannot be rolled back. SQLite keeps one open whose COMMIT it refuses, and SQLAlchemy
    counts it as over.
    """
    driver = _driver(connection)
    if not _is_in_transaction(driver):
        return False
    with suppress(Exception):
        driver.rollback()
    return _is_in_transaction(driver)


def _is_in_transaction(driver: Any) -> bool:
    if isinstance(driver, sqlite3.Connection):
        return driver.in_transaction
    return not driver.closed and driver.pgconn.transaction_status != _IDLE


def _driver(connection: Connection) -> Any:
    # The driver's own connection, since a statement on SQLAlchemy's would begin a transaction.
    return connection.connection.driver_connection
