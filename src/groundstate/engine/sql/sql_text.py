"""Writes a condition as SQL with its values, as in the WHERE of a statement on its table: to be executed again, and to be shown to people.

It is compiled within such a statement because it would mean something else by itself: a subquery that compares something with the record's
row would read all rows of its table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Dialect, FromClause, literal_column, select
from sqlalchemy.exc import CompileError
from sqlalchemy.sql.compiler import SQLCompiler


def sql_text(dialect: Dialect, table: FromClause, condition: ColumnElement[Any]) -> str:
    """Return the condition as SQL that can be executed. Different conditions have different texts.

    Where a type cannot write its values as literals, the SQL has parameters, and a list of their values behind it.
    """
    try:
        return _without_nul(undoubled(dialect, _where(dialect.statement_compiler, dialect, table, condition, literal_binds=True)[0]))
    except (CompileError, NotImplementedError):
        said, values = _where(dialect.statement_compiler, dialect, table, condition, literal_binds=False)
        return _without_nul(f"{said} -- {values}")


def _without_nul(said: str) -> str:
    """Write NUL characters as an escape: PostgreSQL's text type has none, and bytes that a clause compares may have some."""
    return said.replace("\x00", "\\x00")


def sql_shown(dialect: Dialect, table: FromClause, condition: ColumnElement[Any]) -> str:
    """Return the condition as SQL for people: in one line, with every value."""
    made: Any = dialect.statement_compiler
    said, _ = _where(_compiler(made), dialect, table, condition, literal_binds=True)
    return _without_nul(undoubled(dialect, one_line(said)))


def _where(
    compiler: Any, dialect: Dialect, table: FromClause, condition: ColumnElement[Any], *, literal_binds: bool
) -> tuple[str, Mapping[str, Any]]:
    """Return the SQL behind WHERE, and its parameters."""
    statement: Any = select(literal_column("1")).select_from(table).where(condition)
    compiled = compiler(dialect, statement, compile_kwargs={"literal_binds": literal_binds})
    return compiled.string.partition("WHERE ")[2], compiled.params


def one_line(said: str) -> str:
    """Put SQL of several lines into one line."""
    return re.sub(r"\s*\n\s*", " ", said)


def undoubled(dialect: Dialect, said: str) -> str:
    """Return SQL with single percent signs: SQLAlchemy doubles them for drivers that mark parameters by %."""
    return said.replace("%%", "%") if getattr(dialect.identifier_preparer, "_double_percents", False) else said


@lru_cache(maxsize=8)
def _compiler(base: Any) -> type[SQLCompiler]:
    """Return a subclass of the dialect's compiler that writes a value as Python shows it where the SQL type cannot."""

    class Shown(base):  # type: ignore[misc]  # only the dialect knows its compiler class
        def render_literal_value(self, value: Any, type_: Any, **more: Any) -> str:
            try:
                written: str = super().render_literal_value(value, type_, **more)
            except (CompileError, NotImplementedError):
                return repr(str(value))
            return written

    return Shown
