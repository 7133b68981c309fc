"""Releases a savepoint after ROLLBACK TO SAVEPOINT, so that the transaction's later statements do not run inside the savepoint.

When a nested transaction fails, SQLAlchemy sends ROLLBACK TO SAVEPOINT, and never releases the savepoint. PostgreSQL then runs the
later statements inside the savepoint. The rows that they write get the savepoint's number as their `xmin`, instead of the transaction's
number. Rows with the column `wrote` would then look as if something other than groundstate had written them (wrote_column.py).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, event

_ROLLED_BACK = "groundstate_rolled_back_to"  # in a Connection's __dict__: the quoted name of the savepoint that has to be released


def release_savepoints_after_rollback(engine: Engine) -> None:
    """After a rollback to a savepoint on a connection of this engine, release the savepoint before the next statement runs.

    Use it only for PostgreSQL.
    """
    event.listen(engine, "rollback_savepoint", _note_rollback)
    event.listen(engine, "before_cursor_execute", _release_before_statement)


def _note_rollback(connection: Connection, name: str, _context: None) -> None:
    # A rollback to an outer savepoint destroys the inner ones, so that only the latest name is needed.
    vars(connection)[_ROLLED_BACK] = connection.dialect.identifier_preparer.quote(name)


def _release_before_statement(connection: Connection, _cursor: Any, statement: str, *_: object) -> None:
    if _ROLLED_BACK not in vars(connection) or statement.startswith("ROLLBACK TO SAVEPOINT"):
        return
    cursor = connection.connection.cursor()  # a new cursor, since the cursor of the statement may be a server-side cursor
    try:
        cursor.execute(f"RELEASE SAVEPOINT {vars(connection).pop(_ROLLED_BACK)}")
    finally:
        cursor.close()
