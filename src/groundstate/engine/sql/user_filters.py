"""Applies the user's ORM filters, such as one that hides rows marked as deleted, to our own statements as clauses.

Such a filter is a listener for `do_orm_execute` on every Session, which adds `with_loader_criteria`, or a WHERE, to what is executed. Our
statements are of two kinds: the ORM loads records, which the listeners filter, and Core reads keys, which they do not. So each class is
selected once with the listeners, and the clause that they added is used everywhere: a record that they hide counts as deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Alias, ColumnElement, Select, Table, event, select
from sqlalchemy.orm import Mapper, ORMExecuteState, Session
from sqlalchemy.sql import visitors
from sqlalchemy.sql.util import ClauseAdapter

from groundstate.engine.sql.safe_text import describe, place_of
from groundstate.store.port import Database
from groundstate.values.errors import GroundstateError

Filter = ColumnElement[bool]


class FilterRaised(GroundstateError):
    """A listener raised when it was asked what it adds for a class. A reaction that reads that class is not carried out."""

    def __init__(self, entity: Any, error: Exception) -> None:
        super().__init__(
            f"a listener for do_orm_execute raised for {entity.__name__}, asked outside of a handler ({describe(error)}{place_of(error)}),"
            " so that nobody knows which records it hides: let it add nothing to a session of which it knows nothing, and start again"
        )


class _CaughtError(Exception):
    """Stops the execution of a statement, since only the statement as the listeners left it is wanted."""


def seen(database: Database, entity: Any) -> Filter | None:
    """Return the clause that such filters add to every SELECT of this mapped class; None where they add none. Raises FilterRaised."""
    plain: Select[Any] = select(entity)
    try:
        statement = _as_the_listeners_leave_it(database, plain)
    except Exception as error:
        raise FilterRaised(entity, error) from error
    if statement is None:
        return None
    added, own = _where(database, statement), _where(database, plain)
    return None if added is None or str(added) == str(own) else added


def with_subqueries_filtered(database: Database, mapper: Mapper[Any], clause: ColumnElement[Any]) -> Any:
    """Return the clause with the filters added to each subquery in it, for the mapped classes of the same registry. Raises FilterRaised."""
    if not _is_listened():
        return clause
    classes = {one.local_table: one.class_ for one in mapper.registry.mappers if not one.inherits}

    def of_table(table: Any) -> Filter | None:
        return seen(database, classes[table]) if table in classes else None

    return visitors.cloned_traverse(clause, {}, {"select": lambda part: _filtered(part, of_table)})


def _filtered(part: Select[Any], of_table: Callable[[Any], Filter | None]) -> None:
    for source in part.get_final_froms():
        table = source.element if isinstance(source, Alias) else source
        found = of_table(table) if isinstance(table, Table) else None
        if found is not None:
            Select.where.non_generative(part, ClauseAdapter(source).traverse(found))  # type: ignore[attr-defined]  # a decorator adds it


def _is_listened() -> bool:
    heard: Any = Session.dispatch
    return bool(heard.do_orm_execute)


def _as_the_listeners_leave_it(database: Database, statement: Select[Any]) -> Select[Any] | None:
    if not _is_listened():
        return None
    caught: list[Any] = []

    def catch(state: ORMExecuteState) -> None:
        caught.append(state.statement)
        raise _CaughtError

    with Session(bind=database.engine) as session:
        event.listen(session, "do_orm_execute", catch)  # a listener of one session runs after those of all sessions
        try:
            session.execute(statement).close()
        except _CaughtError:
            return caught[0]  # type: ignore[no-any-return]  # the statement as the listeners left it
    return None  # a listener returned a result of its own


def _where(database: Database, statement: Select[Any]) -> Filter | None:
    compiled: Any = statement.compile(dialect=database.engine.dialect)
    found: Filter | None = compiled.compile_state.statement.whereclause
    return found
