"""Explains how the database finds the rows of a condition, and writes the DDL of an index that would help (hazard 28). Creates no index."""

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
from groundstate.engine.sql.condition_query import ConditionQuery, sql_name
from groundstate.engine.sql.sql_text import undoubled
from groundstate.rules import sql_inspect as look
from groundstate.rules.specs import EveryChild
from groundstate.store.port import Database

COUNTED_MOST = 100_000


@dataclass(frozen=True)
class Scan:
    """A table that the database reads from beginning to end to evaluate a condition."""

    table: str
    rows: int  # rows of the table, counted up to COUNTED_MOST
    ddl: str | None  # DDL of the index that would avoid the scan; None where no index can be given


class _Explained(Executable, ClauseElement):
    """EXPLAIN of a statement, with the parameters of that statement."""

    inherit_cache = False

    def __init__(self, statement: Select[Any], words: str) -> None:
        self.statement = statement
        self.words = words


@compiles(_Explained)
def _compiled(element: _Explained, compiler: Any, **options: Any) -> str:
    said = f"{element.words} {compiler.process(element.statement, **options)}"
    compiler._result_columns.clear()  # noqa: SLF001  # the result is a plan, whose columns have none of the statement's types
    return said


def scans(database: Database, connection: Connection, query: ConditionQuery) -> list[Scan]:
    """Return the tables that the database reads as a whole to evaluate the condition, even where they are small today."""
    statement = select(*query.key_attributes).where(query.ready)
    found = set(_scanned(_plan(database, connection, statement)))
    if database.name == "postgresql":
        whole = partition_index.roots(connection, sorted(found))
        found = {whole.get(name, name) for name in found}
    return [_scan(database, connection, query, name) for name in sorted(found)]


def unsorted(database: Database, connection: Connection, query: ConditionQuery) -> Scan | None:
    """Return a Scan of the record's table if the next due records can only be found by a sort of all rows for which the condition holds.

    Returns None where an index gives them in order, or nothing is ever due.
    """
    if query.timing is None:
        return None
    statement = select(query.key_attributes[0]).where(query.condition, query.timing.early).order_by(query.timing.base).limit(1)
    if not _sorts(_plan(database, connection, statement)):
        return None
    table: Any = query.mapper.base_mapper.local_table
    return _scan(database, connection, query, table.name)


def ungrouped(database: Database, connection: Connection, query: ConditionQuery) -> Scan | None:
    """Return a Scan of the record's table if no index leads from one value of `per` or `in_order` to the next, and to the first rows of
    each.

    Returns None where an index does, or the reaction has neither.
    """
    if query.spec.per is None and query.spec.in_order is None:
        return None
    asked = group_scan.statements(query)
    unknown = select(cast(null(), asked.column.type)).scalar_subquery()  # a value that is unknown to the planner
    for statement in (asked.least_after(unknown), asked.line_of(unknown, query.key_attributes[0]).limit(1)):
        if _sorts(_plan(database, connection, statement)):
            table: Any = query.mapper.base_mapper.local_table
            where = [clause for clause in query.spec.clauses if _of_table_alone(clause, table)]
            rows = _scan(database, connection, query, table.name)
            ddl = _index_by(database, table, [asked.column, *asked.in_line], where)
            return Scan(rows.table, rows.rows, _by_parts(database, connection, table, ddl))
    return None


# ---- plans ---------------------------------------------------------------------------------------------------------------------
def _plan(database: Database, connection: Connection, statement: Select[Any]) -> list[str] | dict[str, Any]:
    """Return the lines of SQLite's plan, or the root node of PostgreSQL's."""
    if database.name == "sqlite":
        return [str(row[-1]) for row in connection.execute(_Explained(statement, "EXPLAIN QUERY PLAN"))]
    # PostgreSQL always reads and sorts a small table as a whole, so it is asked for the plan of a large one.
    connection.execute(text("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off"))
    said = connection.execute(_Explained(statement, "EXPLAIN (FORMAT JSON)")).scalar_one()
    plan: dict[str, Any] = (json.loads(said) if isinstance(said, str) else said)[0]["Plan"]
    return plan


def _scanned(plan: list[str] | dict[str, Any]) -> Iterator[str]:
    if isinstance(plan, dict):
        yield from (node["Relation Name"] for node in _nodes(plan) if node["Node Type"] == "Seq Scan")
        return
    for line in plan:
        scanned = re.fullmatch(r"SCAN (?:TABLE )?(\S+)(?: AS \S+)?( USING .*)?", line)
        if scanned and not (scanned[2] or "").startswith((" USING INDEX", " USING COVERING INDEX")):
            yield scanned[1]


def _sorts(plan: list[str] | dict[str, Any]) -> bool:
    if isinstance(plan, dict):
        return any(node["Node Type"] == "Sort" for node in _nodes(plan))
    return any(line.startswith("USE TEMP B-TREE") for line in plan)


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for inner in node.get("Plans", ()):
        yield from _nodes(inner)


def _scan(database: Database, connection: Connection, query: ConditionQuery, name: str) -> Scan:
    tables = {table.name: table for table in tables_of(query)}
    table = tables.get(name)
    if table is None:  # the name is an alias, or that of a table behind a view
        return Scan(name, 0, None)
    some = select(literal_column("1")).select_from(table).limit(COUNTED_MOST).subquery()
    rows = int(connection.execute(select(func.count()).select_from(some)).scalar_one())
    if table in query.mapper.tables:
        return Scan(table.fullname, rows, _by_parts(database, connection, table, partial_index(database, query, table)))
    for every in query.spec.children:
        if table in _tables_of(every):
            ddl = _plain_index(database, table, [look.base_column(one) for one in every.parent_key])
            return Scan(table.fullname, rows, _by_parts(database, connection, table, ddl))
    return Scan(table.fullname, rows, None)


def tables_of(query: ConditionQuery) -> set[Any]:
    """Return the tables of the reaction's record, and the tables that its clauses name."""
    named = set(query.mapper.tables)
    for clause in query.spec.clauses:
        named |= {column.table for column in look.columns(look.parts(clause)) if hasattr(column.table, "fullname")}
    return named


def _tables_of(every: EveryChild) -> set[Any]:
    mapper: Any = inspect(every.child)
    return set(mapper.tables)


# ---- the index -----------------------------------------------------------------------------------------------------------------
def partial_index(database: Database, query: ConditionQuery, table: Any) -> str | None:
    """Return DDL of an index over the rows for which the condition may hold.

    Returns None for a reaction without a due time and without a clause that reads only columns of this table.
    """
    where = [clause for clause in query.spec.clauses if _of_table_alone(clause, table)]
    due = [] if query.timing is None else [query.timing.base]
    if not where and not due:
        return None
    return _index(database, table, f"ix_{table.name}_{query.spec.name}", [*due, *table.primary_key.columns], where)


def _index_by(database: Database, table: Any, attributes: Sequence[Any], where: Sequence[ColumnElement[bool]]) -> str | None:
    """Return DDL of an index over these columns, for the rows for which these clauses hold; None where a column is of another table."""
    if any(
        look.base_column(one).table is not table for attribute in attributes for one in look.columns(look.parts(look.element(attribute)))
    ):
        return None  # an index cannot span two tables
    name = f"ix_{table.name}_by_{look.base_column(look.element(attributes[0])).name}"
    return _index(database, table, name, attributes, where)


def _index(database: Database, table: Any, name: str, attributes: Sequence[Any], where: Sequence[ColumnElement[bool]]) -> str | None:
    """Return DDL of an index; None where some part of it cannot be written in an index."""
    try:
        columns = list(dict.fromkeys(_written(database, one, table) for one in attributes))
        said = f" WHERE {_said(database, and_(*where))}" if where else ""
    except (CompileError, NotImplementedError):
        return None
    return f"{_create(database, table, name, columns)}{said};"


def _written(database: Database, base: Any, table: Any) -> str:
    """Return a column or a due time as it is written in an index: its name, or the expression in parentheses."""
    inner = look.element(base)
    if getattr(inner, "table", None) is not None:
        return database.engine.dialect.identifier_preparer.quote(look.base_column(inner).name)
    if any(True for _ in look.subqueries(inner)) or any(
        look.base_column(one).table is not table for one in look.columns(look.parts(inner))
    ):
        raise CompileError("a due time that reads other rows cannot be in an index")
    return f"({_said(database, inner)})"


def _said(database: Database, expression: Any) -> str:
    dialect = database.engine.dialect
    return undoubled(dialect, str(expression.compile(dialect=dialect, compile_kwargs={"literal_binds": True, "include_table": False})))


def _plain_index(database: Database, table: Any, columns: list[Any]) -> str:
    quote = database.engine.dialect.identifier_preparer.quote
    return f"{_create(database, table, f'ix_{table.name}_{columns[0].name}', [quote(column.name) for column in columns])};"


def _create(database: Database, table: Any, name: str, columns: list[str]) -> str:
    """Return the CREATE INDEX statement. columns: their texts in SQL."""
    prepare = database.engine.dialect.identifier_preparer
    listed = ", ".join(columns)
    if database.name == "postgresql":
        return f"CREATE INDEX CONCURRENTLY {prepare.quote(name[:63])} ON {sql_name(table, database)} ({listed})"
    # SQLite wants the schema before the index's name, and not before the table's.
    schema = f"{prepare.quote(table.schema)}." if table.schema else ""
    return f"CREATE INDEX {schema}{prepare.quote(name)} ON {prepare.quote(table.name)} ({listed})"


def _by_parts(database: Database, connection: Connection, table: Any, ddl: str | None) -> str | None:
    """Return the DDL of an index in the form that a partitioned table needs, where the table is partitioned."""
    if ddl is None or database.name != "postgresql":
        return ddl
    written = sql_name(table, database)
    parts = partition_index.tree(connection, written)
    if not parts:
        return ddl
    made, _, what = ddl.partition(f" ON {written} ")
    return partition_index.ddl(parts, made.rpartition(" ")[2].strip('"'), what.rstrip(";"))


def _of_table_alone(clause: ColumnElement[bool], table: Any) -> bool:
    """Whether an index's WHERE may contain the clause: only columns of this table and constants, no subquery, and no function.

    A database refuses a function that reads its clock there.
    """
    if any(True for _ in look.subqueries(clause)):
        return False
    for part in visitors.iterate(clause):
        if isinstance(part, FunctionElement) or (isinstance(part, BindParameter) and part.callable is not None):
            return False
        if getattr(part, "table", None) is not None and look.base_column(part).table is not table:
            return False
    return any(True for _ in look.columns(look.own_parts(clause)))
