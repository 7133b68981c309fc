"""Runs transactions with a BEGIN statement that the caller chooses, on SQLite and PostgreSQL.

The database driver must be in autocommit mode, so that it sends no BEGIN itself. A transaction is never run again once its BEGIN succeeded.
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
_IDLE = 0  # libpq's transaction status PQTRANS_IDLE: the session is in no transaction


@dataclass(frozen=True)
class TransactionMode:
    """A TransactionMode says how a transaction runs.

    begin: the SQL that begins the transaction. keep: whether it ends with COMMIT, and not with ROLLBACK, if nothing is raised. before,
    after: SQL that runs on the connection before and after the transaction, or ''; `after` must undo `before`, since the connection goes
    back to a pool.
    """

    begin: str
    keep: bool = True
    before: str = ""
    after: str = ""


def set_begin_statement(engine: Engine, statement: str) -> None:
    """Let each transaction of the engine begin with the SQL `statement` from now on, unless the transaction has a TransactionMode."""

    def send_begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, statement))

    event.listen(engine, "begin", send_begin)


@contextmanager
def begin_transaction(engine: Engine, manner: TransactionMode) -> Iterator[Connection]:
    """Run the block in a transaction of this mode; yield its connection. If the block or the COMMIT raises, roll the transaction back.

    The connection is discarded afterwards if the block left settings on it, or if its transaction cannot be ended.

    Raises:
        InvalidRequestError: the block itself ended the transaction, so that nobody knows whether it was committed.
    """
    connection, begun = _begin_on_working_connection(engine, manner)
    failed = spoilt = False
    try:
        yield connection
        if manner.keep:
            begun.commit()
        else:
            begun.rollback()
    except BaseException as error:
        failed, spoilt = True, connection_reset.may_be_due_to_settings(error)
        if spoilt:
            connection_reset.log_discarded_connection(error)
        if begun.is_active:
            with suppress(Exception):  # the error of the block is raised, and not an error of this ROLLBACK
                begun.rollback()
        raise
    finally:
        _return_to_pool(connection, manner, failed=failed, spoilt=spoilt)


def _begin_on_working_connection(engine: Engine, manner: TransactionMode) -> tuple[Connection, RootTransaction]:
    try:
        return _connect_and_begin(engine, manner)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
    # The connection from the pool broke while it was idle, for example because the server was restarted. Nothing was done in this
    # transaction, and the pool has discarded its older connections, so a new connection either works or raises the true error.
    return _connect_and_begin(engine, manner)


def _connect_and_begin(engine: Engine, manner: TransactionMode) -> tuple[Connection, RootTransaction]:
    connection = engine.connect()
    try:
        connection_reset.initial_state(connection)
        if manner.before:
            _driver_connection(connection).execute(manner.before)
        return connection, connection.execution_options(**{_BEGIN: manner.begin}).begin()
    except BaseException:
        _return_to_pool(connection, manner, failed=True)
        raise


def _return_to_pool(connection: Connection, manner: TransactionMode, *, failed: bool, spoilt: bool = False) -> None:
    try:
        if failed and not connection.invalidated and _is_stuck_in_transaction(connection):
            connection.invalidate()
        if connection_reset.has_leftover_settings(connection, failed) or (spoilt and not connection.invalidated):
            connection.invalidate()
        if manner.after and not connection.invalidated:
            _driver_connection(connection).execute(manner.after)
    except BaseException:
        connection.invalidate()
        raise
    finally:
        connection.close()


def _is_stuck_in_transaction(connection: Connection) -> bool:
    """Roll back any transaction that is still open on the connection, and return whether that failed.

    SQLite keeps a transaction open if it refuses the COMMIT, although SQLAlchemy counts the transaction as ended.
    """
    driver = _driver_connection(connection)
    if not _is_in_transaction(driver):
        return False
    with suppress(Exception):
        driver.rollback()
    return _is_in_transaction(driver)


def _is_in_transaction(driver: Any) -> bool:
    if isinstance(driver, sqlite3.Connection):
        return driver.in_transaction
    return not driver.closed and driver.pgconn.transaction_status != _IDLE


def _driver_connection(connection: Connection) -> Any:
    # Statements that must run outside of a transaction use the driver's connection: on SQLAlchemy's they would begin a transaction.
    return connection.connection.driver_connection
