"""A transaction whose first word is ours: which BEGIN is sent is said by who begins it. The same for both drivers.

The database driver must be in autocommit, so that it sends no BEGIN of its own. Nothing here tries a transaction again once it has begun.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, RootTransaction, event
from sqlalchemy.exc import DBAPIError

from groundstate.store import left_behind

_BEGIN = "groundstate_begin"


@dataclass(frozen=True)
class Manner:
    """How a transaction runs.

    begin: the SQL that begins it. keep: whether it ends with COMMIT where nothing was raised. before, after: SQL for the connection
    outside of the transaction, `after` undoing `before`, since the connection goes back to a pool; `before` runs on an idle connection.
    """

    begin: str
    keep: bool = True
    before: str = ""
    after: str = ""


def begin_with(engine: Engine, words: str) -> None:
    """From now on each transaction of the engine begins with `words`, where no manner says otherwise."""

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, words))

    event.listen(engine, "begin", begin)


@contextmanager
def transaction(engine: Engine, manner: Manner) -> Iterator[Connection]:
    """A transaction in this manner; rolled back on any exception. A connection on which settings were left in it is thrown away.

    Raises:
        InvalidRequestError: the block itself ended the transaction, so that nobody can say whether it is kept.
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
        failed, spoilt = True, left_behind.may_be_of_it(error)
        if spoilt:
            left_behind.say_failed(error)
        if begun.is_active:
            begun.rollback()
        raise
    finally:
        _give_back(connection, manner, failed=failed, spoilt=spoilt)


def _begun(engine: Engine, manner: Manner) -> tuple[Connection, RootTransaction]:
    try:
        return _begin(engine, manner)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
    # A connection of the pool that died while it lay there (the server was restarted). Nothing was done on it, and the pool has
    # thrown away the others of its age, so a new one either works or tells the truth.
    return _begin(engine, manner)


def _begin(engine: Engine, manner: Manner) -> tuple[Connection, RootTransaction]:
    connection = engine.connect()
    try:
        left_behind.resting(connection)
        if manner.before:
            _driver(connection).execute(manner.before)
        return connection, connection.execution_options(**{_BEGIN: manner.begin}).begin()
    except BaseException:
        _give_back(connection, manner, failed=True)
        raise


def _give_back(connection: Connection, manner: Manner, *, failed: bool, spoilt: bool = False) -> None:
    try:
        if left_behind.is_spoilt(connection, failed) or (spoilt and not connection.invalidated):
            connection.invalidate()
        if manner.after and not connection.invalidated:
            _driver(connection).execute(manner.after)
    except BaseException:
        connection.invalidate()
        raise
    finally:
        connection.close()


def _driver(connection: Connection) -> Any:
    # The driver's own connection: SQLAlchemy's would begin a transaction for it.
    return connection.connection.driver_connection
