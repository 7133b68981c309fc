"""Checks whether the database has the tables and columns to which a reaction's record is mapped, and whether it finds the record by its
key.

A new version of the application may start before its migration has run. The condition alone would not show that: a new column may be in no
condition, but the statement that loads the record names every column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, Table, inspect, literal, select
from sqlalchemy.exc import DBAPIError, NoSuchTableError
from sqlalchemy.orm import Session

from groundstate.engine.sql import db_errors, key_refusal
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.savepoint_query import query_in_savepoint, why_condition_not_evaluable
from groundstate.store.engine_settings import translated_schema
from groundstate.values.errors import GroundstateError

CURE = "run your migrations"


LOAD_CURE = "give load= of its call loader options of that record, as in load=[selectinload(Order.lines)]"


class UnbuildableStatement(GroundstateError):
    """Says why a statement of a reaction never reaches the database: it cannot be built, or the driver does not accept its values."""


def find_mapping_error(
    connection: Connection, queries: Sequence[ConditionQuery], *, rights: bool = False
) -> DBAPIError | UnbuildableStatement | None:
    """Return the database's error about a column or table that these queries name and that does not exist; None if nothing is missing. If a
    statement cannot even be built, the result says why.

    rights: Whether to return also an error about a table that groundstate's role may not read.
    """
    asked: ConditionQuery | None = None
    try:
        with Session(bind=connection, join_transaction_mode="create_savepoint") as session:
            # Leave out a query whose ORM filter raised an error: the filter would raise for these statements as well.
            for asked in [one for one in queries if one.filter_raised is None]:
                for statement in asked.selects.probe_statements:
                    session.execute(statement).close()
    except Exception as error:
        if asked is not None and db_errors.is_raised_before_sending(error):
            return _unbuildable_statement(connection, asked, error)
        if not isinstance(error, DBAPIError) or db_errors.is_no_fault_of_record(error):
            raise
        if db_errors.is_schema_mismatch(error) or (rights and db_errors.is_permission_denied(error)):
            return error
    return None


def _unbuildable_statement(connection: Connection, query: ConditionQuery, error: Exception) -> UnbuildableStatement:
    """Return why the statements of this reaction cannot be built: because of its condition, or because of what is loaded together with its
    record.
    """
    errors: list[Exception] = []
    query_in_savepoint(connection, lambda: connection.execute(_select_by_condition(query)).all(), errors.append)
    if errors and db_errors.is_raised_before_sending(errors[0]):
        why = UnbuildableStatement(why_condition_not_evaluable(errors[0]))
    else:
        why = UnbuildableStatement(
            f"its record cannot be loaded: {db_errors.database_message(error)}{f': {LOAD_CURE}' if query.loading.options else ''}"
        )
    why.__cause__ = error
    return why


def _select_by_condition(query: ConditionQuery) -> Select[Any]:
    return select(literal(1)).select_from(query.entity).where(query.condition.is_ready).limit(0)


def describe_missing_names(connection: Connection, queries: Sequence[ConditionQuery]) -> dict[str, str]:
    """Return a dict from reaction name to what the reaction lacks in this database, such as 'column orders.extra is missing'. It contains
    only reactions that lack something.
    """
    if find_mapping_error(connection, queries) is None:
        return {}
    each = {query.spec.name: (query, find_mapping_error(connection, [query])) for query in queries}
    return {name: _missing_in_words(connection, query, error) for name, (query, error) in each.items() if isinstance(error, DBAPIError)}


def describe_unbuildable_statements(connection: Connection, queries: Sequence[ConditionQuery]) -> dict[str, str]:
    """Return a dict from reaction name to the reason and the cure, for the reactions whose statements cannot be built."""
    if find_mapping_error(connection, queries) is None:
        return {}
    each = {query.spec.name: find_mapping_error(connection, [query]) for query in queries}
    return {name: str(error) for name, error in each.items() if isinstance(error, UnbuildableStatement)}


def why_not_carried_out(connection: Connection, queries: Sequence[ConditionQuery]) -> dict[str, str]:
    """Return a dict from reaction name to the reason and the cure, for the reactions that no worker can carry out on this database.

    The reasons are: a column or table is missing, the user's listener raises for the records, the records cannot be found by the texts of
    their keys, or a statement cannot be built.
    """
    found = {
        name: f"{words}: {CURE}" for name, words in describe_missing_names(connection, queries).items()
    } | describe_unbuildable_statements(connection, queries)
    for query in queries:
        why = None if query.spec.name in found else query.filter_raised or key_refusal.find_key_refusal(connection, query)
        if why is not None:
            found[query.spec.name] = str(why)
    return found


def reactions_not_evaluable(connection: Connection, queries: Sequence[ConditionQuery], lacks: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of `lacks` (reaction name to reason) for the reactions whose condition cannot be evaluated, since the condition
    itself needs what is missing.
    """
    found = {}
    for query in queries:
        name = query.spec.name
        if name not in lacks:
            continue
        try:
            with connection.begin_nested():
                connection.execute(_select_by_condition(query))
        except Exception as error:
            if not (db_errors.is_schema_mismatch(error) or db_errors.is_raised_before_sending(error)):
                raise
            found[name] = lacks[name]
    return found


def _missing_in_words(connection: Connection, query: ConditionQuery, error: DBAPIError) -> str:
    names = list(_missing_tables_and_columns(connection, query))
    tables, columns = [name for kind, name in names if kind == "table"], [name for kind, name in names if kind == "column"]
    return " and ".join(
        _sentence_about_missing(kind, some) for kind, some in (("table", tables), ("column", columns)) if some
    ) or db_errors.database_message(error)


def _sentence_about_missing(kind: str, names: Sequence[str]) -> str:
    return f"{kind} {names[0]} is missing" if len(names) == 1 else f"{kind}s {', '.join(names)} are missing"


def _missing_tables_and_columns(connection: Connection, query: ConditionQuery) -> Iterator[tuple[str, str]]:
    """Yield a pair (kind, name) for each table or column that is needed to load the record and does not exist.

    Tables and columns that are needed only by clauses over other tables are not checked.
    """
    looked = inspect(connection)
    for table in query.loading.tables_loaded:
        if not isinstance(table, Table):
            continue
        try:
            columns = looked.get_columns(table.name, schema=translated_schema(connection, table))
        except NoSuchTableError:
            yield "table", table.fullname
            continue
        there = {column["name"].lower() for column in columns}  # in lower case, since SQLite ignores case in names
        yield from (("column", f"{table.fullname}.{column.name}") for column in table.columns if column.name.lower() not in there)
