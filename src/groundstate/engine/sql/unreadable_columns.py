"""Names the columns of a record whose stored values their types cannot convert, for the person who will correct them. Changes nothing.

No stored value makes it raise, even if a column contains a value of another type, or text that is valid in no encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, LargeBinary, Text, cast, func, select

from groundstate.engine.sql import db_errors
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.sql.safe_text import running_user_code
from groundstate.engine.sql.savepoint_query import in_savepoint

SHOWN_MOST = 80  # how many letters of a stored value a message shows


def describe_unreadable_columns(connection: Connection, query: ConditionQuery, key: PrimaryKey) -> str:
    """Return a text such as ` (orders.due_at holds 'yesterday')`, which names the columns of this record that cannot be read.

    The text is empty if each single column can be read, for example if a load hook of the user raised the error. Raises only if the
    transaction or its connection is gone.
    """
    found: list[str] = []
    try:
        with in_savepoint(connection):
            found.extend(_unreadable_values(connection, query, key))
    except Exception as error:
        if db_errors.is_no_fault_of_record(error):
            raise  # the transaction or its connection is gone; after any other error, report what was found before it
    return f" ({', '.join(found)})" if found else ""


def _unreadable_values(connection: Connection, query: ConditionQuery, key: PrimaryKey) -> Iterator[str]:
    for attribute in query.mapper.column_attrs:
        column = getattr(query.entity, attribute.key)
        try:
            with in_savepoint(connection), running_user_code():
                connection.execute(select(column).where(query.keys.has_key_among([key]))).all()
        except Exception as error:
            if not (db_errors.is_record_load_error(error) or db_errors.is_text_encoding_error(error)):
                raise
            held = connection.execute(select(_stored_bytes(connection, column)).where(query.keys.has_key_among([key]))).scalar()
            yield f"{query.spec.table_name}.{attribute.columns[0].name} holds {stored_bytes_as_text(held)}"


def _stored_bytes(connection: Connection, column: Any) -> Any:
    """Return the SQL for the stored bytes of a column. The driver does not decode bytes, so no stored value makes it fail."""
    if connection.dialect.name == "sqlite":
        return cast(column, LargeBinary)
    return func.convert_to(cast(column, Text), "SQL_ASCII", type_=LargeBinary())  # for SQL_ASCII, PostgreSQL returns the bytes unconverted


def stored_bytes_as_text(raw: object) -> str:
    """Return stored bytes in the form for a message: as text if they are UTF-8, otherwise as bytes; only the first SHOWN_MOST letters."""
    if raw is None:
        return "NULL"
    if not isinstance(raw, bytes):
        return repr(f"{raw!s:.{SHOWN_MOST}}")
    try:
        return repr(raw.decode()[:SHOWN_MOST])
    except UnicodeDecodeError:
        return repr(raw[:SHOWN_MOST])
