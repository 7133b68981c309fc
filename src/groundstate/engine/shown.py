"""A condition as SQL with its values written out, as it stands in a statement on its table: to be asked again, and for people.

By itself it would be another one: a subquery that compares something with the record's row would read all rows of its table.
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
    """SQL that can be asked, and that no other condition has; with the list of its values beside it where a type cannot be written."""
    try:
        return _without_nul(undoubled(dialect, _where(dialect.statement_compiler, dialect, table, condition, literal_binds=True)[0]))
    except (CompileError, NotImplementedError):
        said, values = _where(dialect.statement_compiler, dialect, table, condition, literal_binds=False)
        return _without_nul(f"{said} -- {values}")


def _without_nul(said: str) -> str:
    """As it can be written down: PostgreSQL's text has no NUL, which bytes that a clause compares may have."""
    return said.replace("\x00", "\\x00")


def sql_shown(dialect: Dialect, table: FromClause, condition: ColumnElement[Any]) -> str:
    """For people: in one line, with every value."""
    made: Any = dialect.statement_compiler
    said, _ = _where(_compiler(made), dialect, table, condition, literal_binds=True)
    return _without_nul(undoubled(dialect, one_line(said)))


def _where(
    compiler: Any, dialect: Dialect, table: FromClause, condition: ColumnElement[Any], *, literal_binds: bool
) -> tuple[str, Mapping[str, Any]]:
    """What stands behind WHERE, and the parameters in it."""
    statement: Any = select(literal_column("1")).select_from(table).where(condition)
    compiled = compiler(dialect, statement, compile_kwargs={"literal_binds": literal_binds})
    return compiled.string.partition("WHERE ")[2], compiled.params


def one_line(said: str) -> str:
    """SQL of several lines in one."""
    return re.sub(r"\s*\n\s*", " ", said)


def undoubled(dialect: Dialect, said: str) -> str:
    """SQL as it is typed: a driver that fills parameters in by % wants each of the others twice."""
    return said.replace("%%", "%") if getattr(dialect.identifier_preparer, "_double_percents", False) else said


@lru_cache(maxsize=8)
def _compiler(base: Any) -> type[SQLCompiler]:
    """A dialect's own compiler, that writes a value out as Python does where its type cannot."""

    class Shown(base):  # type: ignore[misc]  # which class it is, the dialect alone knows
        def render_literal_value(self, value: Any, type_: Any, **more: Any) -> str:
            try:
                written: str = super().render_literal_value(value, type_, **more)
            except (CompileError, NotImplementedError):
                return repr(str(value))
            return written

    return Shown
