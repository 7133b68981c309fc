"""Finds out whether a database finds the records of one reaction by the texts of their keys."""

from __future__ import annotations

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from groundstate.engine.sql import db_errors
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.values.errors import GroundstateError
from groundstate.values.keys import NoValue

CURE = (
    "give the table a key of text, integer, UUID, date, time or decimal (of a class of your own: keep its text, or let its type's"
    " process_result_value give one of these), and make this column unique"
)
_NO_SUCH_OPERATOR = ("42883", "42804", "42725")  # SQLSTATEs: undefined or ambiguous function or operator, type mismatch


class KeyRefused(GroundstateError):
    """Records of this reaction cannot be found by the texts of their keys. The reaction is not carried out, since the outcome of a call
    could not be written into its record.
    """

    def __init__(self, words: str) -> None:
        super().__init__(f"{words}: {CURE}")
        self.words = words


def find_key_refusal(connection: Connection, query: ConditionQuery, key: PrimaryKey | None = None) -> KeyRefused | None:
    """Return why the database does not find records by the texts of their keys; None if it finds them.

    key: The key of an existing record. If it is None, the first record of the table is tried, if there is one.
    """
    columns = query.keys.key_columns
    if all(one.is_plain for one in columns):
        return None
    try:
        with connection.begin_nested():
            why = next(filter(None, (one.why_float_not_found(connection) for one in columns)), None)
            if why is None and key is None:
                row = connection.execute(select(*query.keys.key_columns_as_stored).limit(1)).first()
                key = None if row is None or any(isinstance(value, NoValue) for value in row) else tuple(row)
            if why is None and key is not None:
                why = _why_key_not_found(connection, query, key)
    except Exception as error:
        if db_errors.is_raised_before_sending(error):
            return None  # the error concerns one record only, and is reported with that record
        if not isinstance(error, DBAPIError) or getattr(error.orig, "sqlstate", None) not in _NO_SUCH_OPERATOR:
            raise
        why = str(error.orig).splitlines()[0]
    return None if why is None else KeyRefused(f"records of {query.spec.table_name} are not found by the text of their key: {why}")


def _why_key_not_found(connection: Connection, query: ConditionQuery, key: PrimaryKey) -> str | None:
    """Return why the database does not find the record with this key by the key's text; None if it finds the record."""
    try:
        written = query.keys.record_text(key)
        again = query.keys.key_from_text(written)
    except (GroundstateError, ValueError) as error:
        return str(error)
    row = connection.execute(query.keys.select_existing_keys([again])).first()
    if row is not None and query.keys.record_text(tuple(row)) == written:
        return None
    return f"{key[0] if len(key) == 1 else key!r} is there, and the database does not find it by {written!r}"
