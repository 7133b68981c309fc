"""Checks whether the database has what a reaction's record is mapped to, can be asked for it, and finds it by its key.

A deploy may come before its migration. That a condition can be evaluated proves nothing, since the statement that loads the record names
every column, and a new column is in no condition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, Table, inspect, literal, select
from sqlalchemy.exc import DBAPIError, NoSuchTableError
from sqlalchemy.orm import Session

from groundstate.engine.sql import db_errors, key_columns
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.savepoint_query import ask_in_savepoint, why_unasked
from groundstate.store.engine_settings import schema_of
from groundstate.values.errors import GroundstateError

CURE = "run your migrations"


LOAD_CURE = "give load= of its call loader options of that record, as in load=[selectinload(Order.lines)]"


class StatementUnmade(GroundstateError):
    """A reaction's statement cannot be built, or the driver does not take its values: the database cannot be asked about it at all."""


def misfit(connection: Connection, queries: Sequence[ConditionQuery], *, rights: bool = False) -> DBAPIError | StatementUnmade | None:
    """Return the database's error about a column or table that these queries name and it lacks, or why one of them cannot be asked at all;
    None where nothing is missing.

    rights: return also an error about a table that our role may not read.
    """
    asked: ConditionQuery | None = None
    try:
        with Session(bind=connection, join_transaction_mode="create_savepoint") as session:
            # A query whose filter listener raised is left out: the listener would raise for these statements as well.
            for asked in [one for one in queries if one.filter_raised is None]:
                for statement in asked.of_nothing:
                    session.execute(statement).close()
    except Exception as error:
        if asked is not None and db_errors.unmade(error):
            return _unmade(connection, asked, error)
        if not isinstance(error, DBAPIError) or db_errors.transient(error):
            raise
        if db_errors.undefined(error) or (rights and db_errors.denied(error)):
            return error
    return None


def _unmade(connection: Connection, query: ConditionQuery, error: Exception) -> StatementUnmade:
    """By its condition, or by what is loaded beside its record."""
    errors: list[Exception] = []
    ask_in_savepoint(connection, lambda: connection.execute(_of_the_condition(query)).all(), errors.append)
    if errors and db_errors.unmade(errors[0]):
        why = StatementUnmade(why_unasked(errors[0]))
    else:
        why = StatementUnmade(
            f"its record cannot be loaded: {db_errors.database_message(error)}{f': {LOAD_CURE}' if query.options else ''}"
        )
    why.__cause__ = error
    return why


def _of_the_condition(query: ConditionQuery) -> Select[Any]:
    return select(literal(1)).select_from(query.entity).where(query.ready).limit(0)


def missing(connection: Connection, queries: Sequence[ConditionQuery]) -> dict[str, str]:
    """Say what is missing for each reaction that cannot be carried out here, such as 'column orders.extra is missing'."""
    if misfit(connection, queries) is None:
        return {}
    each = {query.spec.name: (query, misfit(connection, [query])) for query in queries}
    return {name: _words(connection, query, error) for name, (query, error) in each.items() if isinstance(error, DBAPIError)}


def unmade(connection: Connection, queries: Sequence[ConditionQuery]) -> dict[str, str]:
    """Of each reaction of which nothing can be asked, as its statement cannot be made, why, with the cure."""
    if misfit(connection, queries) is None:
        return {}
    each = {query.spec.name: misfit(connection, [query]) for query in queries}
    return {name: str(error) for name, error in each.items() if isinstance(error, StatementUnmade)}


def lacking(connection: Connection, queries: Sequence[ConditionQuery]) -> dict[str, str]:
    """Return, for each reaction that no worker can carry out here, the reason and the cure.

    A column or table is missing, a listener raises for its records, the texts of their keys do not lead to them, or a statement cannot be
    built.
    """
    found = {name: f"{words}: {CURE}" for name, words in missing(connection, queries).items()} | unmade(connection, queries)
    for query in queries:
        why = None if query.spec.name in found else query.filter_raised or key_columns.refused(connection, query)
        if why is not None:
            found[query.spec.name] = str(why)
    return found


def unaskable(connection: Connection, queries: Sequence[ConditionQuery], lacks: Mapping[str, str]) -> dict[str, str]:
    """Return those of the reactions in `lacks` whose condition itself names what is missing, so that it cannot be evaluated, with the
    reason.
    """
    found = {}
    for query in queries:
        name = query.spec.name
        if name not in lacks:
            continue
        try:
            with connection.begin_nested():
                connection.execute(_of_the_condition(query))
        except Exception as error:
            if not (db_errors.undefined(error) or db_errors.unmade(error)):
                raise
            found[name] = lacks[name]
    return found


def _words(connection: Connection, query: ConditionQuery, error: DBAPIError) -> str:
    names = list(_named(connection, query))
    tables, columns = [name for kind, name in names if kind == "table"], [name for kind, name in names if kind == "column"]
    return " and ".join(
        _are_missing(kind, some) for kind, some in (("table", tables), ("column", columns)) if some
    ) or db_errors.database_message(error)


def _are_missing(kind: str, names: Sequence[str]) -> str:
    return f"{kind} {names[0]} is missing" if len(names) == 1 else f"{kind}s {', '.join(names)} are missing"


def _named(connection: Connection, query: ConditionQuery) -> Iterator[tuple[str, str]]:
    """Yield the tables and columns that loading the record needs and that do not exist.

    It yields nothing where only a clause over other tables needs what is missing.
    """
    looked = inspect(connection)
    for table in query.tables_loaded:
        if not isinstance(table, Table):
            continue
        try:
            columns = looked.get_columns(table.name, schema=schema_of(connection, table))
        except NoSuchTableError:
            yield "table", table.fullname
            continue
        there = {column["name"].lower() for column in columns}  # SQLite ignores case in names
        yield from (("column", f"{table.fullname}.{column.name}") for column in table.columns if column.name.lower() not in there)
