"""Releases each savepoint that was rolled back to, so that the rest of its transaction does not run inside it.

SQLAlchemy ends a nested transaction that failed with ROLLBACK TO SAVEPOINT, and never releases the savepoint. PostgreSQL goes on inside of
it: the rows that are written from then on have the savepoint's number as their `xmin`, and not the transaction's. A row with the column
`wrote` would look as if something else had written it (wrote_column.py).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, event

_ROLLED_BACK = "groundstate_rolled_back_to"  # in a Connection's __dict__: the quoted name of the savepoint that has to be released


def release_savepoints_after_rollback(engine: Engine) -> None:
    """Release each savepoint of this engine's connections before the first statement that follows its rollback. For PostgreSQL."""
    event.listen(engine, "rollback_savepoint", _note_rollback)
    event.listen(engine, "before_cursor_execute", _release_before_statement)


def _note_rollback(connection: Connection, name: str, _context: None) -> None:
    # A rollback to an outer savepoint destroys the inner ones, so that only the latest name is needed.
    vars(connection)[_ROLLED_BACK] = connection.dialect.identifier_preparer.quote(name)


def _release_before_statement(connection: Connection, _cursor: Any, statement: str, *_: object) -> None:
    if _ROLLED_BACK not in vars(connection) or statement.startswith("ROLLBACK TO SAVEPOINT"):
        return
    cursor = connection.connection.cursor()  # not the statement's own, which may be one of the server's
    try:
        cursor.execute(f"RELEASE SAVEPOINT {vars(connection).pop(_ROLLED_BACK)}")
    finally:
        cursor.close()
