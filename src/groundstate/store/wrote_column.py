"""Defines the column `wrote`, with the number of our transaction that wrote the row. Where PostgreSQL's own note (`xmin`) differs, others
wrote it.

That is so for a row that was loaded from a dump of data only, rewritten by ALTER TABLE, or updated by code that does not know the column.
VACUUM, FREEZE, CLUSTER and added columns leave both alone. On SQLite the column stays NULL.

No statement that writes these rows may run in a savepoint: `xmin` would be the savepoint's number, and `wrote` the transaction's.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeEngine, UserDefinedType


class Xid8(UserDefinedType[int]):
    """Maps PostgreSQL's type of transaction numbers that do not wrap around: an int in Python, written by SQL expressions only."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the type's name in DDL."""
        return "xid8"

    def result_processor(self, dialect: Any, coltype: object) -> Any:  # noqa: ARG002  # SQLAlchemy's own signature
        """Return a converter to int, since psycopg returns such a number as text."""
        return lambda value: None if value is None else int(value)


XID8: TypeEngine[int] = BigInteger().with_variant(Xid8(), "postgresql")


class OnPostgres(ColumnElement[Any]):
    """Compiles to one SQL text on PostgreSQL, and to another on every other database."""

    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012  # SQLAlchemy's own form
        ("words", InternalTraversal.dp_string),
        ("elsewhere", InternalTraversal.dp_string),
    ]

    def __init__(self, words: str, elsewhere: str, kind: TypeEngine[Any]) -> None:
        self.words = words
        self.elsewhere = elsewhere
        self.type = kind


@compiles(OnPostgres)
def _elsewhere(element: OnPostgres, compiler: Any, **options: Any) -> str:  # noqa: ARG001  # SQLAlchemy's signature
    return element.elsewhere


@compiles(OnPostgres, "postgresql")
def _words(element: OnPostgres, compiler: Any, **options: Any) -> str:  # noqa: ARG001  # SQLAlchemy's signature
    return element.words


# xmin is the lower half (32 bits) of the full number. xid8 has no operator for a remainder, so both are compared as bigint.
SAME = "{0}.xmin::text::bigint = ({0}.wrote::text::bigint & 4294967295)"
THIS_TRANSACTION: ColumnElement[int] = OnPostgres("pg_current_xact_id()", "NULL", XID8)
# No transaction has this number. A reaction in whose row it is written waits for a person (engine/rows/data_restore_check.py).
WAITS: ColumnElement[int] = OnPostgres("'0'::xid8", "NULL", XID8)


def wrote(table: str) -> Column[int]:
    """Return the column for our table of this name: it is filled in by each INSERT and UPDATE that SQLAlchemy makes.

    An UPDATE renews the number only in a row that we wrote last: so a row that others wrote remains recognisable, and a row of older code,
    which has no number, keeps none.
    """
    still = f"CASE WHEN {SAME.format(table)} THEN pg_current_xact_id() ELSE {table}.wrote END"
    return Column("wrote", XID8, default=THIS_TRANSACTION, onupdate=OnPostgres(still, "NULL", XID8))


def somebody_else_wrote(table: str) -> ColumnElement[bool]:
    """Return SQL for whether a row of this table was last written by code other than ours. False on SQLite; NULL where the row has no
    number.
    """
    return OnPostgres(f"NOT ({SAME.format(table)})", "(1 = 0)", Boolean())


def is_marked(table: str) -> ColumnElement[bool]:
    """Return SQL for whether WAITS is written in a row of this table. False on SQLite."""
    return OnPostgres(f"coalesce({table}.wrote = '0'::xid8, false)", "(1 = 0)", Boolean())
