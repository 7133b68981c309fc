"""How the database finds the rows of a condition, and the index that would help (hazard 28). Explains alone: it makes no index."""

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

from groundstate.engine import groups, partitions
from groundstate.engine.question import Question, sql_name
from groundstate.engine.shown import undoubled
from groundstate.rules import clause as look
from groundstate.rules.reaction import EveryChild
from groundstate.store.port import Database

COUNTED_MOST = 100_000


@dataclass(frozen=True)
class Scan:
    """A table that is read from its begin to its end to answer a condition."""

    table: str
    rows: int  # counted up to 100,000
    ddl: str | None  # the index that would spare it; None where none can be said


class _Explained(Executable, ClauseElement):
    """EXPLAIN of a statement, with the parameters that the statement would have."""

    inherit_cache = False

    def __init__(self, statement: Select[Any], words: str) -> None:
        self.statement = statement
        self.words = words


@compiles(_Explained)
def _compiled(element: _Explained, compiler: Any, **options: Any) -> str:
    said = f"{element.words} {compiler.process(element.statement, **options)}"
    compiler._result_columns.clear()  # noqa: SLF001  # what comes back is a plan, and of none of the types of the statement's columns
    return said


def scans(database: Database, connection: Connection, question: Question) -> list[Scan]:
    """The tables that the condition makes the database read as a whole, however small they are today."""
    statement = select(*question.key_attributes).where(question.ready)
    found = set(_scanned(_plan(database, connection, statement)))
    if database.name == "postgresql":
        whole = partitions.roots(connection, sorted(found))
        found = {whole.get(name, name) for name in found}
    return [_scan(database, connection, question, name) for name in sorted(found)]


def unsorted(database: Database, connection: Connection, question: Question) -> Scan | None:
    """The record's table, where no index gives what is due next without sorting all rows of which the condition holds."""
    if question.timing is None:
        return None
    statement = select(question.key_attributes[0]).where(question.condition, question.timing.early).order_by(question.timing.base).limit(1)
    if not _sorts(_plan(database, connection, statement)):
        return None
    table: Any = question.mapper.base_mapper.local_table
    return _scan(database, connection, question, table.name)


def ungrouped(database: Database, connection: Connection, question: Question) -> Scan | None:
    """The record's table, where no index leads from one value of `per` or `in_order` to the next, and to the first rows of each."""
    if question.spec.per is None and question.spec.in_order is None:
        return None
    asked = groups.statements(question)
    unknown = select(cast(null(), asked.column.type)).scalar_subquery()  # a value that the planner cannot know
    for statement in (asked.least_after(unknown), asked.line_of(unknown, question.key_attributes[0]).limit(1)):
        if _sorts(_plan(database, connection, statement)):
            table: Any = question.mapper.base_mapper.local_table
            where = [clause for clause in question.spec.clauses if _of_table_alone(clause, table)]
            rows = _scan(database, connection, question, table.name)
            ddl = _index_by(database, table, [asked.column, *asked.in_line], where)
            return Scan(rows.table, rows.rows, _by_parts(database, connection, table, ddl))
    return None


# ---- plans ---------------------------------------------------------------------------------------------------------------------
def _plan(database: Database, connection: Connection, statement: Select[Any]) -> list[str] | dict[str, Any]:
    """The lines of SQLite's plan, the nodes of PostgreSQL's."""
    if database.name == "sqlite":
        return [str(row[-1]) for row in connection.execute(_Explained(statement, "EXPLAIN QUERY PLAN"))]
    # A small table is always read and sorted as a whole: ask what a large one would need.
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


def _scan(database: Database, connection: Connection, question: Question, name: str) -> Scan:
    tables = {table.name: table for table in tables_of(question)}
    table = tables.get(name)
    if table is None:  # an alias, or a table behind a view
        return Scan(name, 0, None)
    some = select(literal_column("1")).select_from(table).limit(COUNTED_MOST).subquery()
    rows = int(connection.execute(select(func.count()).select_from(some)).scalar_one())
    if table in question.mapper.tables:
        return Scan(table.fullname, rows, _by_parts(database, connection, table, partial_index(database, question, table)))
    for every in question.spec.children:
        if table in _tables_of(every):
            ddl = _plain_index(database, table, [look.base_column(one) for one in every.parent_key])
            return Scan(table.fullname, rows, _by_parts(database, connection, table, ddl))
    return Scan(table.fullname, rows, None)


def tables_of(question: Question) -> set[Any]:
    """The tables of its record, and those that its clauses name."""
    named = set(question.mapper.tables)
    for clause in question.spec.clauses:
        named |= {column.table for column in look.columns(look.parts(clause)) if hasattr(column.table, "fullname")}
    return named


def _tables_of(every: EveryChild) -> set[Any]:
    mapper: Any = inspect(every.child)
    return set(mapper.tables)


# ---- the index -----------------------------------------------------------------------------------------------------------------
def partial_index(database: Database, question: Question, table: Any) -> str | None:
    """DDL of an index over the rows of which the condition may hold; None where no clause is of this table's columns alone."""
    where = [clause for clause in question.spec.clauses if _of_table_alone(clause, table)]
    due = [] if question.timing is None else [question.timing.base]
    if not where and not due:
        return None
    return _index(database, table, f"ix_{table.name}_{question.spec.name}", [*due, *table.primary_key.columns], where)


def _index_by(database: Database, table: Any, attributes: Sequence[Any], where: Sequence[ColumnElement[bool]]) -> str | None:
    """DDL of an index over these columns, of the rows of which these clauses hold."""
    if any(
        look.base_column(one).table is not table for attribute in attributes for one in look.columns(look.parts(look.element(attribute)))
    ):
        return None  # no index is over two tables
    name = f"ix_{table.name}_by_{look.base_column(look.element(attributes[0])).name}"
    return _index(database, table, name, attributes, where)


def _index(database: Database, table: Any, name: str, attributes: Sequence[Any], where: Sequence[ColumnElement[bool]]) -> str | None:
    """None where something of it cannot be said in an index."""
    try:
        columns = list(dict.fromkeys(_written(database, one, table) for one in attributes))
        said = f" WHERE {_said(database, and_(*where))}" if where else ""
    except (CompileError, NotImplementedError):
        return None
    return f"{_create(database, table, name, columns)}{said};"


def _written(database: Database, base: Any, table: Any) -> str:
    """A column, or a due time, as a column of an index: its name, or the expression in parentheses."""
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
    """columns: as they are to be written."""
    prepare = database.engine.dialect.identifier_preparer
    listed = ", ".join(columns)
    if database.name == "postgresql":
        return f"CREATE INDEX CONCURRENTLY {prepare.quote(name[:63])} ON {sql_name(table, database)} ({listed})"
    # SQLite names the schema with the index, and not with the table.
    schema = f"{prepare.quote(table.schema)}." if table.schema else ""
    return f"CREATE INDEX {schema}{prepare.quote(name)} ON {prepare.quote(table.name)} ({listed})"


def _by_parts(database: Database, connection: Connection, table: Any, ddl: str | None) -> str | None:
    """The DDL of an index as it can be made on a table that is partitioned."""
    if ddl is None or database.name != "postgresql":
        return ddl
    written = sql_name(table, database)
    parts = partitions.tree(connection, written)
    if not parts:
        return ddl
    made, _, what = ddl.partition(f" ON {written} ")
    return partitions.ddl(parts, made.rpartition(" ")[2].strip('"'), what.rstrip(";"))


def _of_table_alone(clause: ColumnElement[bool], table: Any) -> bool:
    """Whether an index's WHERE may say it: columns of this table and constants, no subquery, no function (a clock is refused there)."""
    if any(True for _ in look.subqueries(clause)):
        return False
    for part in visitors.iterate(clause):
        if isinstance(part, FunctionElement) or (isinstance(part, BindParameter) and part.callable is not None):
            return False
        if getattr(part, "table", None) is not None and look.base_column(part).table is not table:
            return False
    return any(True for _ in look.columns(look.own_parts(clause)))
