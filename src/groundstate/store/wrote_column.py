"""Defines the column `wrote`: the number of groundstate's transaction that last wrote the row. On SQLite it stays NULL.

If the number differs from PostgreSQL's own `xmin`, something else wrote the row last: it was loaded from a data-only dump, rewritten by
ALTER TABLE, or updated by code that does not know the column. VACUUM, FREEZE, CLUSTER and adding a column change neither number.

No statement that writes these rows may run in a savepoint: `xmin` would be the savepoint's number, but `wrote` would be the number of the
transaction. released_savepoints.py releases a savepoint that failed, so that later statements do not run in it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeEngine, UserDefinedType


class Xid8(UserDefinedType[int]):
    """The column type for PostgreSQL's xid8, a transaction number that does not wrap around. In Python it is an int.

    Only SQL expressions write it.
    """

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the name of the type in CREATE TABLE."""
        return "xid8"

    def result_processor(self, dialect: Any, coltype: object) -> Any:  # noqa: ARG002  # SQLAlchemy passes both arguments
        """Return a function that converts a result to int, since psycopg returns an xid8 as text."""
        return lambda value: None if value is None else int(value)


XID8: TypeEngine[int] = BigInteger().with_variant(Xid8(), "postgresql")


class OnPostgres(ColumnElement[Any]):
    """An OnPostgres is an SQL expression with the text `words` on PostgreSQL, and the text `elsewhere` on every other database."""

    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012  # SQLAlchemy needs a list
        ("words", InternalTraversal.dp_string),
        ("elsewhere", InternalTraversal.dp_string),
    ]

    def __init__(self, words: str, elsewhere: str, kind: TypeEngine[Any]) -> None:
        self.words = words
        self.elsewhere = elsewhere
        self.type = kind


@compiles(OnPostgres)
def _compile_elsewhere(element: OnPostgres, compiler: Any, **options: Any) -> str:  # noqa: ARG001  # SQLAlchemy passes all arguments
    return element.elsewhere


@compiles(OnPostgres, "postgresql")
def _compile_for_postgres(element: OnPostgres, compiler: Any, **options: Any) -> str:  # noqa: ARG001  # SQLAlchemy passes all arguments
    return element.words


# SQL for whether groundstate wrote the row last. xmin is the lower half (32 bits) of a transaction's number, so only that half is compared.
SAME = "{0}.xmin::text::bigint = ({0}.wrote::text::bigint & 4294967295)"
THIS_TRANSACTION: ColumnElement[int] = OnPostgres("pg_current_xact_id()", "NULL", XID8)
# The number 0, which no transaction has. In the row of a reaction it means that the reaction waits for a person
# (engine/rows/data_restore_check.py).
WAITS: ColumnElement[int] = OnPostgres("'0'::xid8", "NULL", XID8)


def wrote_column(table: str) -> Column[int]:
    """Return the column `wrote` for groundstate's table of this name. Each INSERT and UPDATE by SQLAlchemy sets the column.

    An UPDATE changes the number only in a row that groundstate wrote last. So a row that other programs wrote stays recognisable. A row
    from an older version, which wrote no number, stays without a number.
    """
    still = f"CASE WHEN {SAME.format(table)} THEN pg_current_xact_id() ELSE {table}.wrote END"
    return Column("wrote", XID8, default=THIS_TRANSACTION, onupdate=OnPostgres(still, "NULL", XID8))


def is_written_by_others(table: str) -> ColumnElement[bool]:
    """Return SQL for whether something other than groundstate last wrote a row of this table.

    The SQL gives false on SQLite, and NULL for a row without a number.
    """
    return OnPostgres(f"NOT ({SAME.format(table)})", "(1 = 0)", Boolean())


def is_marked_as_waiting(table: str) -> ColumnElement[bool]:
    """Return SQL that is true if a row of this table has 0 in `wrote`, which means that its reaction waits for a person. On SQLite it is
    always false.
    """
    return OnPostgres(f"coalesce({table}.wrote = '0'::xid8, false)", "(1 = 0)", Boolean())
