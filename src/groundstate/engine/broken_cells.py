"""Which columns of a record hold what their types make no value of, in words, for the person who puts it right. Changes nothing."""

from __future__ import annotations

from sqlalchemy import Connection, Text, cast, select

from groundstate.engine import trouble
from groundstate.engine.guarded import user_code
from groundstate.engine.question import PrimaryKey, Question

SHOWN_MOST = 80  # letters of what stands there


def unreadable_columns(connection: Connection, question: Question, key: PrimaryKey) -> str:
    """As ` (orders.due_at holds 'yesterday')`; empty where each column by itself can be read, as where a hook of the user's raised."""
    found: list[str] = []
    for attribute in question.mapper.column_attrs:
        column = getattr(question.entity, attribute.key)
        try:
            with user_code():
                connection.execute(select(column).where(question.among([key]))).all()
        except Exception as error:
            if not trouble.unloadable(error):
                raise
            held = connection.execute(select(cast(column, Text)).where(question.among([key]))).scalar()
            shown = f"{held!s:.{SHOWN_MOST}}"
            found.append(f"{question.spec.table_name}.{attribute.columns[0].name} holds {shown!r}")
    return f" ({', '.join(found)})" if found else ""
