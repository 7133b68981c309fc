"""The column `wrote`: which transaction of ours wrote a row, so that PostgreSQL's own note of it (`xmin`) tells where somebody else did.

A row that was loaded from a dump of data alone, rewritten by ALTER TABLE, or updated by somebody who does not know the column, has another
transaction in `xmin` than in `wrote`. VACUUM, FREEZE, CLUSTER and columns that are added leave both alone. On SQLite the column stays NULL.

No statement that writes these rows may run in a savepoint: `xmin` would be the savepoint's, and `wrote` the transaction's.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeEngine, UserDefinedType


class Xid8(UserDefinedType[int]):
    """PostgreSQL's type of transaction numbers that do not wrap around. An int in Python; written by expressions alone."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Its name in DDL."""
        return "xid8"

    def result_processor(self, dialect: Any, coltype: object) -> Any:  # noqa: ARG002  # SQLAlchemy's own signature
        """Psycopg gives it as text."""
        return lambda value: None if value is None else int(value)


XID8: TypeEngine[int] = BigInteger().with_variant(Xid8(), "postgresql")


class OnPostgres(ColumnElement[Any]):
    """An expression of PostgreSQL's own, and what stands for it elsewhere."""

    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012  # as SQLAlchemy has it
        ("words", InternalTraversal.dp_string),
        ("elsewhere", InternalTraversal.dp_string),
    ]

    def __init__(self, words: str, elsewhere: str, kind: TypeEngine[Any]) -> None:
        self.words = words
        self.elsewhere = elsewhere
        self.type = kind


@compiles(OnPostgres)
def _elsewhere(element: OnPostgres, compiler: Any, **options: Any) -> str:  # noqa: ARG001  # as SQLAlchemy calls it
    return element.elsewhere


@compiles(OnPostgres, "postgresql")
def _words(element: OnPostgres, compiler: Any, **options: Any) -> str:  # noqa: ARG001  # as above
    return element.words


# xmin is the lower half of the full number, and xid8 has no remainder: both are compared as numbers.
SAME = "{0}.xmin::text::bigint = ({0}.wrote::text::bigint & 4294967295)"
THIS_TRANSACTION: ColumnElement[int] = OnPostgres("pg_current_xact_id()", "NULL", XID8)
# A number that no transaction has: a reaction of which this is written waits for a person (engine/put_back.py).
WAITS: ColumnElement[int] = OnPostgres("'0'::xid8", "NULL", XID8)


def wrote(table: str) -> Column[int]:
    """The column, for a table of ours of this name: filled in by each INSERT and UPDATE that is made by SQLAlchemy.

    An UPDATE leaves the sign as it was: only a row that was as we had left it is written anew, so that what somebody else wrote goes on
    to tell, and a row of older code, which says nothing, goes on to say nothing.
    """
    still = f"CASE WHEN {SAME.format(table)} THEN pg_current_xact_id() ELSE {table}.wrote END"
    return Column("wrote", XID8, default=THIS_TRANSACTION, onupdate=OnPostgres(still, "NULL", XID8))


def somebody_else_wrote(table: str) -> ColumnElement[bool]:
    """Whether a row of this table was last written by somebody else. Never on SQLite; NULL where the row says nothing."""
    return OnPostgres(f"NOT ({SAME.format(table)})", "(1 = 0)", Boolean())


def is_marked(table: str) -> ColumnElement[bool]:
    """Whether WAITS is written in a row of this table. Never on SQLite."""
    return OnPostgres(f"coalesce({table}.wrote = '0'::xid8, false)", "(1 = 0)", Boolean())
