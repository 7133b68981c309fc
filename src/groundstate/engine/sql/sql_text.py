"""Writes a condition as SQL with its values, as in the WHERE of a statement on its table. The text is executed again, or shown to people.

The condition is compiled as part of a statement on its table. Compiled alone it would have another meaning: a subquery that compares
something with the record's row would read all rows of the record's table.
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

    If a type cannot write its values as literals, the text has parameters, and a list of their values at its end.
    """
    try:
        return _without_nul(
            with_single_percents(dialect, _where_clause(dialect.statement_compiler, dialect, table, condition, literal_binds=True)[0])
        )
    except (CompileError, NotImplementedError):
        said, values = _where_clause(dialect.statement_compiler, dialect, table, condition, literal_binds=False)
        return _without_nul(f"{said} -- {values}")


def _without_nul(said: str) -> str:
    """Return the text with NUL characters written as an escape: PostgreSQL's text type cannot hold NUL, and bytes that a clause compares
    may contain it.
    """
    return said.replace("\x00", "\\x00")


def sql_for_people(dialect: Dialect, table: FromClause, condition: ColumnElement[Any]) -> str:
    """Return the condition as SQL for people: on one line, with every value."""
    made: Any = dialect.statement_compiler
    said, _ = _where_clause(_display_compiler(made), dialect, table, condition, literal_binds=True)
    return _without_nul(with_single_percents(dialect, one_line(said)))


def _where_clause(
    compiler: Any, dialect: Dialect, table: FromClause, condition: ColumnElement[Any], *, literal_binds: bool
) -> tuple[str, Mapping[str, Any]]:
    """Return the pair (SQL text after WHERE, its parameters)."""
    statement: Any = select(literal_column("1")).select_from(table).where(condition)
    compiled = compiler(dialect, statement, compile_kwargs={"literal_binds": literal_binds})
    return compiled.string.partition("WHERE ")[2], compiled.params


def one_line(said: str) -> str:
    """Return SQL of several lines as one line."""
    return re.sub(r"\s*\n\s*", " ", said)


def with_single_percents(dialect: Dialect, said: str) -> str:
    """Return SQL with single percent signs. SQLAlchemy doubles them for drivers that mark parameters by %."""
    return said.replace("%%", "%") if getattr(dialect.identifier_preparer, "_double_percents", False) else said


@lru_cache(maxsize=8)
def _display_compiler(base: Any) -> type[SQLCompiler]:
    """Return a subclass of the dialect's compiler. If an SQL type cannot write a value as a literal, this compiler writes the value as
    Python text.
    """

    class DisplayCompiler(base):  # type: ignore[misc]  # the compiler class depends on the dialect
        def render_literal_value(self, value: Any, type_: Any, **more: Any) -> str:
            try:
                written: str = super().render_literal_value(value, type_, **more)
            except (CompileError, NotImplementedError):
                return repr(str(value))
            return written

    return DisplayCompiler
