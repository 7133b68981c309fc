"""Applies the user's ORM filters (such as one that hides rows marked as deleted) to groundstate's own statements.

Such a filter is a listener for `do_orm_execute` on every Session. It adds `with_loader_criteria`, or a WHERE, to a statement. The listeners
filter the statements by which the ORM loads records, but not the Core statements by which groundstate reads keys. So each class is selected
once with the listeners, and the clause that they add is then used in all statements: a record that a filter hides counts as deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Alias, ColumnElement, Select, Table, event, select
from sqlalchemy.orm import Mapper, ORMExecuteState, Session
from sqlalchemy.sql import visitors
from sqlalchemy.sql.util import ClauseAdapter

from groundstate.engine.sql.safe_text import describe_exception, where_raised
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database
from groundstate.values.errors import GroundstateError

Filter = ColumnElement[bool]


class FilterRaised(GroundstateError):
    """The user's listener raised an error when groundstate asked for its filter on a class. A reaction that reads the class is not carried
    out.
    """

    def __init__(self, entity: Any, error: Exception) -> None:
        super().__init__(
            f"a listener for do_orm_execute raised for {entity.__name__}, asked outside of a handler"
            f" ({describe_exception(error)}{where_raised(error)}), so that nobody knows which records it hides:"
            " let it add nothing to a session of which it knows nothing, and start again"
        )


class _CaughtError(Exception):
    """Raised to end the execution of a statement after the listeners have changed it, since only the changed statement is needed."""


@dataclass(frozen=True)
class FilteredClauses:
    """The clauses of one reaction with the user's filters.

    clauses: The reaction's clauses, with filters in their subqueries. record_conditions: The filter on the record's class, as a tuple;
    empty if there is none. raised: The error that a listener raised; the filters are incomplete if it is set.
    """

    clauses: tuple[ColumnElement[bool], ...]
    record_conditions: tuple[Filter, ...]
    raised: FilterRaised | None

    @property
    def all_conditions(self) -> tuple[ColumnElement[bool], ...]:
        """Return all that must hold for a record: the clauses and the filter on its class."""
        return (*self.clauses, *self.record_conditions)


def filter_clauses(database: Database, spec: ReactionSpec) -> FilteredClauses:
    """Return the clauses of this reaction with the user's filters. A record that a filter hides counts as deleted."""
    record_conditions: tuple[Filter, ...] = ()
    try:
        found = filter_clause_for(database, spec.record)
        record_conditions = () if found is None else (found,)
        clauses = tuple(with_subqueries_filtered(database, spec.mapper, clause) for clause in spec.clauses)
    except FilterRaised as error:
        return FilteredClauses(spec.clauses, record_conditions, error)
    return FilteredClauses(clauses, record_conditions, None)


def filter_clause_for(database: Database, entity: Any) -> Filter | None:
    """Return the clause that the user's filters add to each SELECT of this mapped class; None if they add none. Raises FilterRaised."""
    plain: Select[Any] = select(entity)
    try:
        statement = _statement_after_listeners(database, plain)
    except Exception as error:
        raise FilterRaised(entity, error) from error
    if statement is None:
        return None
    added, own = _where_clause(database, statement), _where_clause(database, plain)
    return None if added is None or str(added) == str(own) else added


def with_subqueries_filtered(database: Database, mapper: Mapper[Any], clause: ColumnElement[Any]) -> Any:
    """Return the clause with the user's filters added to each subquery in it, for mapped classes of the same registry. Raises
    FilterRaised.
    """
    if not _has_listeners():
        return clause
    classes = {one.local_table: one.class_ for one in mapper.registry.mappers if not one.inherits}

    def filter_of_table(table: Any) -> Filter | None:
        return filter_clause_for(database, classes[table]) if table in classes else None

    return visitors.cloned_traverse(clause, {}, {"select": lambda part: _add_filters(part, filter_of_table)})


def _add_filters(part: Select[Any], of_table: Callable[[Any], Filter | None]) -> None:
    for source in part.get_final_froms():
        table = source.element if isinstance(source, Alias) else source
        found = of_table(table) if isinstance(table, Table) else None
        if found is not None:
            # A decorator of SQLAlchemy sets the attribute `non_generative`, so the type checker does not know it.
            Select.where.non_generative(part, ClauseAdapter(source).traverse(found))  # type: ignore[attr-defined]  # set by a decorator


def _has_listeners() -> bool:
    heard: Any = Session.dispatch
    return bool(heard.do_orm_execute)


def _statement_after_listeners(database: Database, statement: Select[Any]) -> Select[Any] | None:
    """Return the statement as the user's listeners changed it; None if there are no listeners, or if a listener returned a result of its
    own.
    """
    if not _has_listeners():
        return None
    caught: list[Any] = []

    def capture(state: ORMExecuteState) -> None:
        caught.append(state.statement)
        raise _CaughtError

    with Session(bind=database.engine) as session:
        event.listen(session, "do_orm_execute", capture)  # a listener of one session runs after the listeners of all sessions
        try:
            session.execute(statement).close()
        except _CaughtError:
            return caught[0]  # type: ignore[no-any-return]  # the statement as the listeners left it
    return None  # a user's listener returned a result of its own


def _where_clause(database: Database, statement: Select[Any]) -> Filter | None:
    compiled: Any = statement.compile(dialect=database.engine.dialect)
    found: Filter | None = compiled.compile_state.statement.whereclause
    return found
