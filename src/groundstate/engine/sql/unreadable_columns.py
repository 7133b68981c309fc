"""Names the columns of a record whose stored values their types cannot convert, for the person who corrects them. Changes nothing.

It only describes, so it never raises for a value: what stands in a column may be of any type, and in no encoding at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, LargeBinary, Text, cast, func, select

from groundstate.engine.sql import db_errors
from groundstate.engine.sql.condition_query import ConditionQuery, PrimaryKey
from groundstate.engine.sql.safe_text import user_code
from groundstate.engine.sql.savepoint_query import kept_whole

SHOWN_MOST = 80  # letters of a stored value that a message shows


def unreadable_columns(connection: Connection, query: ConditionQuery, key: PrimaryKey) -> str:
    """Return text such as ` (orders.due_at holds 'yesterday')`.

    It is empty where each column by itself can be read, as where a hook of the user's raised. Raises only what says that the transaction or
    its connection is gone.
    """
    found: list[str] = []
    try:
        with kept_whole(connection):
            found.extend(_unreadable(connection, query, key))
    except Exception as error:
        if db_errors.transient(error):
            raise  # else what was found before the error is told
    return f" ({', '.join(found)})" if found else ""


def _unreadable(connection: Connection, query: ConditionQuery, key: PrimaryKey) -> Iterator[str]:
    for attribute in query.mapper.column_attrs:
        column = getattr(query.entity, attribute.key)
        try:
            with kept_whole(connection), user_code():
                connection.execute(select(column).where(query.among([key]))).all()
        except Exception as error:
            if not (db_errors.unloadable(error) or db_errors.no_text(error)):
                raise
            held = connection.execute(select(_raw(connection, column)).where(query.among([key]))).scalar()
            yield f"{query.spec.table_name}.{attribute.columns[0].name} holds {shown(held)}"


def _raw(connection: Connection, column: Any) -> Any:
    """Return the SQL for the bytes that stand in a column. The driver decodes no bytes, so that none of them can make it raise."""
    if connection.dialect.name == "sqlite":
        return cast(column, LargeBinary)
    return func.convert_to(cast(column, Text), "SQL_ASCII", type_=LargeBinary())  # to which PostgreSQL converts nothing


def shown(raw: object) -> str:
    """Return stored bytes for a message: as text where they are UTF-8, else as bytes; cut where they are many."""
    if raw is None:
        return "NULL"
    if not isinstance(raw, bytes):
        return repr(f"{raw!s:.{SHOWN_MOST}}")
    try:
        return repr(raw.decode()[:SHOWN_MOST])
    except UnicodeDecodeError:
        return repr(raw[:SHOWN_MOST])
