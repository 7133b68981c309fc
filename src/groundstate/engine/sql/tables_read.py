"""Finds the tables that a condition reads, and among them the tables in which it reads rows other than the record's own row. It inspects
the expression, and sends no query.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from sqlalchemy import Select, Table
from sqlalchemy.sql import visitors
from sqlalchemy.sql.selectable import AliasedReturnsRows, Join, SelectBase

from groundstate.engine.sql.clause_parts import reads_only_columns
from groundstate.engine.sql.record_loading import RecordLoading
from groundstate.engine.sql.user_filters import FilteredClauses
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database

# Functions of PostgreSQL that read no rows. Any other function may be defined by the user, and may read every table.
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


class _AnyTable(Exception):
    """Raised if the expression may read any table."""


class ConditionTables:
    """The tables that the clauses, the user's filters and the due time of one reaction read. A narrowing condition is not counted."""

    def __init__(self, spec: ReactionSpec, database: Database, filtered: FilteredClauses, loading: RecordLoading) -> None:
        self._spec = spec
        self._database = database
        self._filtered = filtered
        self._loading = loading

    @cached_property
    def names_of_tables_read(self) -> frozenset[str]:
        """Return the full names of all tables that the clauses read, including the record's own."""
        named = {table.fullname for table in self._spec.mapper.tables}
        for clause in self._spec.clauses:
            for part in visitors.iterate(clause):
                table = part if isinstance(part, Table) else getattr(part, "table", None)
                if isinstance(table, Table):
                    named.add(table.fullname)
        return frozenset(named)

    @cached_property
    def other_tables_read_by_clauses(self) -> frozenset[str] | None:
        """Return the full names of the tables in which the clauses read rows other than the record's own row. None if they may read any
        table.

        `ConditionQuery.other_tables_read` also considers a narrowing condition.
        """
        read = (*self._filtered.all_conditions, *self._due_expressions)
        return other_tables_read(read, self._spec.mapper.tables, functions_may_read=self._database.locks_rows)

    @cached_property
    def clauses_read_only_own_row(self) -> bool:
        """Return whether loading a record and evaluating its clauses read nothing but the record's own row, on a database that locks rows.

        False on a database that does not lock rows. `RecordSelects.reads_only_own_row` also considers a narrowing condition.
        """
        if not self._database.locks_rows or not self._loading.loads_one_table:
            return False
        mapper = self._spec.mapper
        own = set(mapper.tables)
        read = [
            *self._spec.clauses,
            *self._filtered.record_conditions,
            *self._due_expressions,
            *(column for attribute in mapper.column_attrs for column in attribute.columns),
        ]
        return all(reads_only_columns(clause, own) for clause in read)

    @property
    def _due_expressions(self) -> tuple[Any, ...]:
        return () if self._spec.due is None else (self._spec.due.base,)


def other_tables_read(clauses: Iterable[Any], own: Iterable[Any], *, functions_may_read: bool) -> frozenset[str] | None:
    """Return the full names of the tables in which the clauses read rows other than the record's own row; None if they may read any table.

    own: The tables of the record. functions_may_read: Whether a function in this database may read rows.
    """
    names = {table.fullname for table in own if isinstance(table, Table)}
    try:
        return frozenset(name for clause in clauses for name in _tables_read_by(clause, names, functions_may_read=functions_may_read))
    except _AnyTable:
        return None


def _tables_read_by(clause: Any, own: set[str], *, functions_may_read: bool) -> Iterator[str]:
    parts: Iterable[Any] = visitors.iterate(clause)
    for part in parts:
        kind = part.__visit_name__
        if kind in ("textclause", "textual_select") or (
            getattr(part, "is_literal", False) and not (part.name == "*" or part.name.isdigit())
        ):
            raise _AnyTable
        if functions_may_read and hasattr(part, "packagenames") and (part.packagenames or part.name.lower() not in _OF_THEIR_ARGUMENTS):
            raise _AnyTable
        if isinstance(part, Select):
            yield from _uncorrelated_own_tables(part, own)
        if isinstance(part, AliasedReturnsRows | Join):
            yield from _table_names_in(part)
        elif isinstance(part, Table):
            if part.fullname not in own:  # for the record's own tables, `_uncorrelated_own_tables` decides this
                yield part.fullname
        elif isinstance(table := getattr(part, "table", None), Table):
            if table.fullname not in own:
                yield table.fullname
        elif table is not None:
            yield from _table_names_in(table)


def _uncorrelated_own_tables(part: Any, own: set[str]) -> set[str]:
    """Return the record's tables in which this subquery may read rows other than the record's own row.

    These are the tables that the subquery does not correlate with the outer query. Some of them may not be named in the subquery.
    """
    if part._auto_correlate:  # noqa: SLF001  # no public name
        # SQLAlchemy correlates all tables that the outer query names, unless the subquery would then have no table left in its FROM.
        froms = part.get_final_froms()
        return {name for one in froms if (name := getattr(one, "fullname", None)) in own} if len(froms) == 1 else set()
    if part._correlate_except is not None:  # noqa: SLF001
        return {name for one in part._correlate_except if (name := getattr(one, "fullname", None)) in own}  # noqa: SLF001
    return own - {getattr(one, "fullname", None) for one in part._correlate or ()}  # noqa: SLF001


def _table_names_in(source: Any) -> Iterator[str]:
    """Yield the names of the tables in an element of a FROM clause. Raises _AnyTable."""
    if isinstance(source, Table):
        yield source.fullname
    elif isinstance(source, Join):
        yield from _table_names_in(source.left)
        yield from _table_names_in(source.right)
    elif isinstance(source, AliasedReturnsRows):
        yield from _table_names_in(source.element)
    elif isinstance(source, SelectBase):
        for one in visitors.iterate(source):
            if isinstance(one, Table):
                yield one.fullname
            elif isinstance(table := getattr(one, "table", None), Table):
                yield table.fullname
    elif hasattr(source, "packagenames") or getattr(source, "__visit_name__", "") == "values":
        return  # a function computes these rows from its arguments; `_tables_read_by` checks the function itself
    else:
        raise _AnyTable
