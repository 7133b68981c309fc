"""Tells of which tables a condition reads rows other than the record's own. Looks at the expression alone, and asks no database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Select, Table
from sqlalchemy.sql import visitors
from sqlalchemy.sql.selectable import AliasedReturnsRows, Join, SelectBase

# Functions of PostgreSQL that read no rows. Any other function may be the user's own, which may read every table.
_OF_THEIR_ARGUMENTS = frozenset({
    "abs", "age", "array_length", "ascii", "bit_length", "btrim", "cardinality", "ceil", "ceiling", "char_length", "character_length",
    "clock_timestamp", "coalesce", "concat", "concat_ws", "current_date", "current_time", "current_timestamp", "current_user", "date_part",
    "date_trunc", "extract", "floor", "greatest", "initcap", "json_extract", "json_extract_path_text", "jsonb_array_length",
    "jsonb_extract_path", "jsonb_extract_path_text", "jsonb_typeof", "json_typeof", "json_array_length", "jsonb_exists", "least", "left",
    "length", "localtime", "localtimestamp", "lower", "lpad", "ltrim", "make_interval", "mod", "now", "nullif", "num_nonnulls", "num_nulls",
    "octet_length", "position", "power", "random", "regexp_replace", "replace", "right", "round", "rpad", "rtrim", "session_user",
    "sign", "split_part", "starts_with", "statement_timestamp", "strpos", "substr", "substring", "timezone", "to_char", "to_date",
    "to_number", "to_timestamp", "transaction_timestamp", "trim", "trunc", "upper", "user",
    "count", "sum", "min", "max", "avg", "bool_and", "bool_or", "every", "string_agg", "array_agg", "row_number", "rank",
})  # fmt: skip


class _Any(Exception):
    """The expression may read any table."""


def beside_own_row(clauses: Iterable[Any], own: Iterable[Any], *, functions_may_read: bool) -> frozenset[str] | None:
    """Return the full names of the tables of which other rows than the record's own are read; None where it may be any table.

    own: the tables of the record. functions_may_read: whether a function in this database may read rows.
    """
    names = {table.fullname for table in own if isinstance(table, Table)}
    try:
        return frozenset(name for clause in clauses for name in _read_by(clause, names, functions_may_read=functions_may_read))
    except _Any:
        return None


def _read_by(clause: Any, own: set[str], *, functions_may_read: bool) -> Iterator[str]:
    parts: Iterable[Any] = visitors.iterate(clause)
    for part in parts:
        kind = part.__visit_name__
        if kind in ("textclause", "textual_select") or (
            getattr(part, "is_literal", False) and not (part.name == "*" or part.name.isdigit())
        ):
            raise _Any
        if functions_may_read and hasattr(part, "packagenames") and (part.packagenames or part.name.lower() not in _OF_THEIR_ARGUMENTS):
            raise _Any
        if isinstance(part, Select):
            yield from _not_correlated(part, own)
        if isinstance(part, AliasedReturnsRows | Join):
            yield from _tables(part)
        elif isinstance(part, Table):
            if part.fullname not in own:  # else what it means depends on the subquery that names it
                yield part.fullname
        elif isinstance(table := getattr(part, "table", None), Table):
            if table.fullname not in own:
                yield table.fullname
        elif table is not None:
            yield from _tables(table)


def _not_correlated(part: Any, own: set[str]) -> set[str]:
    """Return those of the record's tables that mean other rows than the record within this subquery, if it names them."""
    if part._auto_correlate:  # noqa: SLF001  # no public name
        froms = part.get_final_froms()  # SQLAlchemy correlates all of them that are named without, unless there is but one
        return {name for one in froms if (name := getattr(one, "fullname", None)) in own} if len(froms) == 1 else set()
    if part._correlate_except is not None:  # noqa: SLF001
        return {name for one in part._correlate_except if (name := getattr(one, "fullname", None)) in own}  # noqa: SLF001
    return own - {getattr(one, "fullname", None) for one in part._correlate or ()}  # noqa: SLF001


def _tables(source: Any) -> Iterator[str]:
    """Return the names of the tables in something that rows are selected from. Raises _Any."""
    if isinstance(source, Table):
        yield source.fullname
    elif isinstance(source, Join):
        yield from _tables(source.left)
        yield from _tables(source.right)
    elif isinstance(source, AliasedReturnsRows):
        yield from _tables(source.element)
    elif isinstance(source, SelectBase):
        for one in visitors.iterate(source):
            if isinstance(one, Table):
                yield one.fullname
            elif isinstance(table := getattr(one, "table", None), Table):
                yield table.fullname
    elif hasattr(source, "packagenames") or getattr(source, "__visit_name__", "") == "values":
        return  # rows that a function makes of its arguments; whether the function itself may read is asked where it is met
    else:
        raise _Any
