"""Asks the database how it finds the rows of a condition, and writes the DDL of an index that would help (hazard 28). Creates no index."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, cast, func, inspect, literal_column, null, select, text
from sqlalchemy.exc import CompileError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import BindParameter, ClauseElement
from sqlalchemy.sql.expression import Executable
from sqlalchemy.sql.functions import FunctionElement

from groundstate.engine.sql import group_scan, partition_index
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.sql_text import with_single_percents
from groundstate.engine.sql.table_spelling import sql_table_name
from groundstate.rules import sql_inspect as look
from groundstate.rules.specs import EveryChild
from groundstate.store.port import Database

COUNTED_MOST = 100_000


@dataclass(frozen=True)
class TableScan:
    """A table that the database reads or sorts as a whole to evaluate a condition."""

    table: str
    rows: int  # how many rows the table has, counted up to COUNTED_MOST
    ddl: str | None  # the DDL of an index that would avoid the scan; None if no such index can be named


class _ExplainStatement(Executable, ClauseElement):
    """An EXPLAIN of another statement, with that statement's parameters."""

    inherit_cache = False

    def __init__(self, statement: Select[Any], words: str) -> None:
        self.statement = statement
        self.words = words


@compiles(_ExplainStatement)
def _compile_explain(element: _ExplainStatement, compiler: Any, **options: Any) -> str:
    said = f"{element.words} {compiler.process(element.statement, **options)}"
    compiler._result_columns.clear()  # noqa: SLF001  # the result is a plan, whose columns are not those of the explained statement
    return said


def find_table_scans(database: Database, connection: Connection, query: ConditionQuery) -> list[TableScan]:
    """Return one TableScan for each table that the database reads as a whole to evaluate the condition, even if the table is small
    today.
    """
    statement = select(*query.keys.key_attributes).where(query.condition.is_ready)
    found = set(_scanned_tables(_query_plan(database, connection, statement)))
    if database.name == "postgresql":
        whole = partition_index.partition_roots(connection, sorted(found))
        found = {whole.get(name, name) for name in found}
    return [_describe_scan(database, connection, query, name) for name in sorted(found)]


def find_sort_by_due_time(database: Database, connection: Connection, query: ConditionQuery) -> TableScan | None:
    """Return a TableScan of the record's table if the next due records can only be found by sorting all rows that meet the condition.

    Return None if an index gives the rows in that order, or if the reaction has no due time.
    """
    if query.timing is None:
        return None
    statement = (
        select(query.keys.key_attributes[0])
        .where(query.condition.holds, query.timing.is_still_to_come)
        .order_by(query.timing.base)
        .limit(1)
    )
    if not _plan_has_sort(_query_plan(database, connection, statement)):
        return None
    table: Any = query.mapper.base_mapper.local_table
    return _describe_scan(database, connection, query, table.name)


def find_sort_by_group(database: Database, connection: Connection, query: ConditionQuery) -> TableScan | None:
    """Return a TableScan of the record's table if no index supports the search for rows by their values of `per` or `in_order`.

    A suitable index finds the next greater value, and the first rows with each value. Return None if such an index exists, or if the
    reaction has neither option.
    """
    if query.spec.per is None and query.spec.in_order is None:
        return None
    asked = group_scan.group_statements(query)
    unknown = select(cast(null(), asked.column.type)).scalar_subquery()  # an expression whose value the planner does not know
    for statement in (asked.select_least_value_after(unknown), asked.select_rows_of_value(unknown, query.keys.key_attributes[0]).limit(1)):
        if _plan_has_sort(_query_plan(database, connection, statement)):
            table: Any = query.mapper.base_mapper.local_table
            where = [clause for clause in query.spec.clauses if _can_be_in_index_where(clause, table)]
            rows = _describe_scan(database, connection, query, table.name)
            ddl = _index_ddl_by_columns(database, table, [asked.column, *asked.order_within_group], where)
            return TableScan(rows.table, rows.rows, _ddl_for_partitions(database, connection, table, ddl))
    return None


# ---- plans ---------------------------------------------------------------------------------------------------------------------
def _query_plan(database: Database, connection: Connection, statement: Select[Any]) -> list[str] | dict[str, Any]:
    """Return the plan of this statement: a list of lines on SQLite, the root node as a dict on PostgreSQL."""
    if database.name == "sqlite":
        return [str(row[-1]) for row in connection.execute(_ExplainStatement(statement, "EXPLAIN QUERY PLAN"))]
    # PostgreSQL always reads and sorts a small table as a whole, so ask for the plan that it would choose for a large table.
    connection.execute(text("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off"))
    said = connection.execute(_ExplainStatement(statement, "EXPLAIN (FORMAT JSON)")).scalar_one()
    plan: dict[str, Any] = (json.loads(said) if isinstance(said, str) else said)[0]["Plan"]
    return plan


def _scanned_tables(plan: list[str] | dict[str, Any]) -> Iterator[str]:
    if isinstance(plan, dict):
        yield from (node["Relation Name"] for node in _plan_nodes(plan) if node["Node Type"] == "Seq Scan")
        return
    for line in plan:
        scanned = re.fullmatch(r"SCAN (?:TABLE )?(\S+)(?: AS \S+)?( USING .*)?", line)
        if scanned and not (scanned[2] or "").startswith((" USING INDEX", " USING COVERING INDEX")):
            yield scanned[1]


def _plan_has_sort(plan: list[str] | dict[str, Any]) -> bool:
    if isinstance(plan, dict):
        return any(node["Node Type"] == "Sort" for node in _plan_nodes(plan))
    return any(line.startswith("USE TEMP B-TREE") for line in plan)


def _plan_nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for inner in node.get("Plans", ()):
        yield from _plan_nodes(inner)


def _describe_scan(database: Database, connection: Connection, query: ConditionQuery, name: str) -> TableScan:
    """Return a TableScan for the table with this name, with its number of rows and the DDL of an index that would avoid the scan."""
    tables = {table.name: table for table in tables_in_condition(query)}
    table = tables.get(name)
    if table is None:  # the name is an alias, or the name of a table behind a view
        return TableScan(name, 0, None)
    some = select(literal_column("1")).select_from(table).limit(COUNTED_MOST).subquery()
    rows = int(connection.execute(select(func.count()).select_from(some)).scalar_one())
    if table in query.mapper.tables:
        return TableScan(table.fullname, rows, _ddl_for_partitions(database, connection, table, partial_index_ddl(database, query, table)))
    for every in query.spec.children:
        if table in _tables_of_child(every):
            ddl = _plain_index_ddl(database, table, [look.base_column(one) for one in every.parent_key])
            return TableScan(table.fullname, rows, _ddl_for_partitions(database, connection, table, ddl))
    return TableScan(table.fullname, rows, None)


def tables_in_condition(query: ConditionQuery) -> set[Any]:
    """Return the tables of the reaction's record, and the tables that its clauses name."""
    named = set(query.mapper.tables)
    for clause in query.spec.clauses:
        named |= {column.table for column in look.only_columns(look.all_parts(clause)) if hasattr(column.table, "fullname")}
    return named


def _tables_of_child(every: EveryChild) -> set[Any]:
    mapper: Any = inspect(every.child)
    return set(mapper.tables)


# ---- the index -----------------------------------------------------------------------------------------------------------------
def partial_index_ddl(database: Database, query: ConditionQuery, table: Any) -> str | None:
    """Return the DDL of an index on this table that contains only rows which may meet the condition.

    Return None if the reaction has neither a due time nor a clause that reads only columns of this table.
    """
    where = [clause for clause in query.spec.clauses if _can_be_in_index_where(clause, table)]
    due = [] if query.timing is None else [query.timing.base]
    if not where and not due:
        return None
    return _index_ddl(database, table, f"ix_{table.name}_{query.spec.name}", [*due, *table.primary_key.columns], where)


def _index_ddl_by_columns(database: Database, table: Any, attributes: Sequence[Any], where: Sequence[ColumnElement[bool]]) -> str | None:
    """Return the DDL of an index over these columns that contains only the rows which meet these clauses. Return None if a column belongs
    to another table.
    """
    if any(
        look.base_column(one).table is not table
        for attribute in attributes
        for one in look.only_columns(look.all_parts(look.sql_element(attribute)))
    ):
        return None  # an index cannot span two tables
    name = f"ix_{table.name}_by_{look.base_column(look.sql_element(attributes[0])).name}"
    return _index_ddl(database, table, name, attributes, where)


def _index_ddl(database: Database, table: Any, name: str, attributes: Sequence[Any], where: Sequence[ColumnElement[bool]]) -> str | None:
    """Return the DDL of an index; None if a part of it is not allowed in an index."""
    try:
        columns = list(dict.fromkeys(_index_column_text(database, one, table) for one in attributes))
        said = f" WHERE {_expression_text(database, and_(*where))}" if where else ""
    except (CompileError, NotImplementedError):
        return None
    return f"{_create_index_text(database, table, name, columns)}{said};"


def _index_column_text(database: Database, base: Any, table: Any) -> str:
    """Return the text of a column or a due time for use in an index: the column's name, or an expression in parentheses."""
    inner = look.sql_element(base)
    if getattr(inner, "table", None) is not None:
        return database.engine.dialect.identifier_preparer.quote(look.base_column(inner).name)
    if any(True for _ in look.outermost_subqueries(inner)) or any(
        look.base_column(one).table is not table for one in look.only_columns(look.all_parts(inner))
    ):
        raise CompileError("a due time that reads other rows cannot be in an index")
    return f"({_expression_text(database, inner)})"


def _expression_text(database: Database, expression: Any) -> str:
    dialect = database.engine.dialect
    return with_single_percents(
        dialect, str(expression.compile(dialect=dialect, compile_kwargs={"literal_binds": True, "include_table": False}))
    )


def _plain_index_ddl(database: Database, table: Any, columns: list[Any]) -> str:
    quote = database.engine.dialect.identifier_preparer.quote
    return f"{_create_index_text(database, table, f'ix_{table.name}_{columns[0].name}', [quote(column.name) for column in columns])};"


def _create_index_text(database: Database, table: Any, name: str, columns: list[str]) -> str:
    """Return the CREATE INDEX statement without its WHERE. columns: The columns as SQL texts."""
    prepare = database.engine.dialect.identifier_preparer
    listed = ", ".join(columns)
    if database.name == "postgresql":
        return f"CREATE INDEX CONCURRENTLY {prepare.quote(name[:63])} ON {sql_table_name(table, database)} ({listed})"
    # SQLite wants the schema before the name of the index, and not before the name of the table.
    schema = f"{prepare.quote(table.schema)}." if table.schema else ""
    return f"CREATE INDEX {schema}{prepare.quote(name)} ON {prepare.quote(table.name)} ({listed})"


def _ddl_for_partitions(database: Database, connection: Connection, table: Any, ddl: str | None) -> str | None:
    """Return the given DDL of an index. If the table is partitioned, return the DDL statements that it needs instead."""
    if ddl is None or database.name != "postgresql":
        return ddl
    written = sql_table_name(table, database)
    parts = partition_index.partition_tree(connection, written)
    if not parts:
        return ddl
    made, _, what = ddl.partition(f" ON {written} ")
    return partition_index.partitioned_index_ddl(parts, made.rpartition(" ")[2].strip('"'), what.rstrip(";"))


def _can_be_in_index_where(clause: ColumnElement[bool], table: Any) -> bool:
    """Return whether the WHERE of an index may contain this clause: it has only columns of this table and constants, and no subquery and no
    function.

    Functions are excluded, since a database refuses some of them in an index, for example a function that reads the clock.
    """
    if any(True for _ in look.outermost_subqueries(clause)):
        return False
    for part in visitors.iterate(clause):
        if isinstance(part, FunctionElement) or (isinstance(part, BindParameter) and part.callable is not None):
            return False
        if getattr(part, "table", None) is not None and look.base_column(part).table is not table:
            return False
    return any(True for _ in look.only_columns(look.iterate_without_subqueries(clause)))
