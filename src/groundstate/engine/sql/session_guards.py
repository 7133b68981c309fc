"""Refuses, in every session of this process, writes that would make an attempt impossible to conclude. A refused write does not reach the
database. This module itself writes nothing.

While an attempt exists for a record, the record must not be deleted or get another key, since the attempt could not be concluded any more
(hazard 14). The check covers flushes, and the UPDATEs and DELETEs that a session executes. It does not cover SQL as text, or statements
that a connection executes, since neither triggers an event of a session. `call_write_guard`, which refuses writes inside a call, is called
here for each flush.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Delete,
    String,
    Table,
    Text,
    Update,
    and_,
    cast,
    event,
    inspect,
    or_,
    select,
)
from sqlalchemy.orm import Mapper, ORMExecuteState, Session, UOWTransaction

from groundstate.engine.sql import call_write_guard
from groundstate.engine.sql.attempt_filters import is_blocking, is_blocking_own_reaction
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store.same_database import StoreLocation
from groundstate.store.tables import attempt
from groundstate.values import keys
from groundstate.values.errors import GroundstateError, StateRefusedError

AT_WORK = "groundstate_at_work"  # key in session.info, for the pair (record whose handler runs in this session, primary key of the record)


@dataclass(frozen=True)
class _GuardedTable:
    """A table of one store on whose records reactions are declared."""

    place: StoreLocation
    spellings: frozenset[str]  # the names by which the column `blocks` of an attempt may refer to this table
    mapper: Mapper[Any]
    key: tuple[Any, ...]
    text_in_sql: ColumnElement[str] | None
    beside: frozenset[tuple[str, str]]  # pairs (app, reaction) for the reactions with a done column, whose attempts name no table

    @property
    def attempts_of_table_clause(self) -> ColumnElement[bool]:
        """The SQL condition that an attempt belongs to a record of this table."""
        named = attempt.c.blocks.in_(sorted(self.spellings))
        if not self.beside:
            return named
        its = or_(*[and_(attempt.c.app == app, attempt.c.reaction == reaction) for app, reaction in sorted(self.beside)])
        return or_(named, and_(attempt.c.blocks.is_(None), its))

    def is_reached_by(self, connection: Connection) -> bool:
        """Return whether this connection leads to the store of the guarded table. Another database may have a table of the same name, which
        is not guarded.
        """
        return self.place.is_at(connection.engine.url) or self.place.is_behind(connection)


# Full name of a table (also that of a subclass) -> name of a store -> the guarded table in that store.
_guarded: dict[str, dict[str, _GuardedTable]] = {}


def guard_records(query: ConditionQuery) -> None:
    """From now on, check in all sessions of this process what they do to records of this reaction."""
    place = StoreLocation(query.database.settings.url, query.database)
    for table in {*query.mapper.base_mapper.tables, *query.mapper.tables}:
        name = str(getattr(table, "fullname", table))
        known = _guarded.get(name, {})
        before = known.get(place.name)
        told = (
            frozenset(query.attempts.table_name_spellings)
            if before is None
            else before.spellings.union(query.attempts.table_name_spellings)
        )
        beside = frozenset() if before is None else before.beside
        if query.spec.done_column is not None:
            beside |= {(query.spec.app, query.spec.name)}
        mapper = query.mapper if table not in query.mapper.base_mapper.tables else query.mapper.base_mapper
        now = _GuardedTable(place, told, mapper, tuple(query.mapper.base_mapper.primary_key), _key_text_in_sql(query), beside)
        _guarded[name] = {**{at: one for at, one in known.items() if at != place.name}, place.name: now}
    for name, function in (("before_flush", _refuse_unsafe_flush), ("do_orm_execute", _refuse_unsafe_update_or_delete)):
        if not event.contains(Session, name, function):
            event.listen(Session, name, function)


def _key_text_in_sql(query: ConditionQuery) -> ColumnElement[str] | None:
    """Return the SQL for the text of the record's key, by the table's own column: an attribute of a subclass would leave out the rows of
    other subclasses. None if SQL cannot compute this text.
    """
    if query.keys.key_text_in_sql is None:
        return None
    column: Any = query.mapper.base_mapper.primary_key[0]
    return column if isinstance(column.type, String) else cast(column, Text)


# ---- a flush -----------------------------------------------------------------------------------------------------------------------
def _refuse_unsafe_flush(session: Session, _context: UOWTransaction, _instances: Any) -> None:
    """Before a flush, raise StateRefusedError if the flush writes inside a call, deletes a record with an attempt, or changes the key of a
    record with an attempt.
    """
    call_write_guard.refuse_flush_in_call(session)
    for record in session.deleted:
        _refuse_under_attempt(session, record, "deleted", is_blocking)
    for record in session.dirty:
        if _has_key_changed(record):  # an attempt names the old key, so a call could be made again for the record under its new key
            _refuse_under_attempt(session, record, "given another primary key", is_blocking_own_reaction)


def _has_key_changed(record: Any) -> bool:
    state: Any = inspect(record)
    mapper: Mapper[Any] = state.mapper
    names = {mapper.get_property_by_column(column).key for column in mapper.primary_key}
    return bool(state.identity) and any(
        name in state.committed_state and state.dict.get(name) != state.committed_state[name]
        for name in names & state.committed_state.keys()
    )


def _refuse_under_attempt(session: Session, record: Any, what: str, standing: ColumnElement[bool]) -> None:
    """Raise StateRefusedError if this record has an attempt that meets the SQL condition `standing`. what: What the session would do to the
    record, in words.
    """
    state: Any = inspect(record)
    table_name = str(state.mapper.base_mapper.local_table.fullname)
    if table_name not in _guarded or not state.identity:
        return
    try:
        text = keys.record_text(state.identity)
    except GroundstateError:
        return
    with session.no_autoflush:
        connection = session.connection(bind_arguments={"mapper": state.mapper})
        guarded = _guarded_table_in_store(table_name, connection)
        if guarded is None:
            return
        on_it = (guarded.attempts_of_table_clause, attempt.c.record == text)
        found = connection.execute(select(attempt.c.reaction, attempt.c.record, attempt.c.state).where(*on_it, standing).limit(1))
        row = found.first()
    if row is not None:
        raise _refusal_error(table_name, what, row)


def _guarded_table_in_store(table_name: str, connection: Connection) -> _GuardedTable | None:
    known = list(_guarded.get(table_name, {}).values())
    return next((one for one in reversed(known) if one.is_reached_by(connection)), None)


def _refusal_error(table_name: str, what: str, row: Any) -> StateRefusedError:
    cure = "mark the record as gone by a column" if what == "deleted" else "let the record keep its key"
    return StateRefusedError(
        f"{table_name} {row.record} cannot be {what} now: {row.reaction} is {row.state} on it, and what became of its call must be written "
        f"to it. Wait until it is concluded or settled (groundstate why), or {cure}"
    )


# ---- an UPDATE or DELETE that a session executes -----------------------------------------------------------------------------------
def _refuse_unsafe_update_or_delete(state: ORMExecuteState) -> None:
    """Before a session executes an UPDATE or DELETE, raise StateRefusedError if it would delete a record with an attempt, or change the key
    of a record with an attempt.
    """
    statement: Any = state.statement
    if (
        not isinstance(statement, (Update, Delete))
        or not isinstance(statement.table, Table)
        or str(statement.table.fullname) not in _guarded
    ):
        return
    if isinstance(statement, Delete):
        _refuse_statement(state, statement, "deleted", is_blocking)
    elif not _updates_by_key(state) and any(_new_key_values(statement, state.parameters)):
        _refuse_statement(state, statement, "given another primary key", is_blocking_own_reaction)


def _updates_by_key(state: ORMExecuteState) -> bool:
    """Return whether the ORM updates each row by a key among the given values, as in `session.execute(update(Order), [{"id": 1, ...}])`."""
    return state.is_orm_statement and isinstance(state.parameters, Sequence)


def _new_key_values(statement: Update, parameters: Any) -> list[tuple[Any, Any]]:
    """Return pairs (key column, new value) for the key columns that the statement sets."""
    whole: Any = statement
    # Only SQLAlchemy 2.0 has `_ordered_values`. Newer versions include these values in `_values`.
    ordered = dict(getattr(whole, "_ordered_values", None) or ())
    given: dict[Any, Any] = {**dict(whole._values or {}), **ordered}  # noqa: SLF001  # has no public name
    for one in [parameters] if isinstance(parameters, Mapping) else parameters or []:
        given.update(one)
    table: Any = statement.table
    mapper = statement.entity_description.get("entity")
    named = {} if mapper is None else {one.key: one.columns[0].key for one in inspect(mapper).column_attrs}
    found = []
    for name, value in given.items():
        key = name if isinstance(name, str) else name.key
        column = table.c.get(named.get(key, key))
        if column is not None and column.primary_key:
            found.append((column, value))
    return found


def _refuse_statement(state: ORMExecuteState, statement: Any, what: str, standing: ColumnElement[bool]) -> None:
    session, name = state.session, str(statement.table.fullname)
    where: dict[str, Any] = {**state.bind_arguments}
    if state.bind_mapper is not None:
        where["mapper"] = state.bind_mapper
    else:
        where.setdefault("clause", statement)
    connection = session.connection(bind_arguments=where)
    guarded = _guarded_table_in_store(name, connection)
    if guarded is None:
        return
    stands: tuple[Any, ...] = (guarded.attempts_of_table_clause, standing)
    mine = _record_of_running_handler(session, guarded) if what == "deleted" else None
    if mine is not None:  # the attempt of that record ends in this very transaction, so its record may be changed
        stands = (*stands, attempt.c.record != mine)
    if connection.execute(select(1).select_from(attempt).where(*stands).limit(1)).first() is None:
        return
    for values in _parameter_sets(state.parameters):
        row = _first_attempt_hit(state, statement, guarded, stands, values)
        if row is not None:
            raise _refusal_error(name, what, row)


def _record_of_running_handler(session: Session, guarded: _GuardedTable) -> str | None:
    """Return the key, as text, of the record whose handler runs in this session, if it is a record of this table; otherwise None."""
    record, key = session.info.get(AT_WORK, (None, ()))
    if record is None or inspect(record).mapper.base_mapper is not guarded.mapper.base_mapper:
        return None
    try:
        return keys.record_text(key)
    except GroundstateError:
        return None


def _parameter_sets(parameters: Any) -> Sequence[Mapping[str, Any]]:
    return [parameters] if isinstance(parameters, Mapping) else list(parameters or [{}])


def _first_attempt_hit(
    state: ORMExecuteState, statement: Any, guarded: _GuardedTable, stands: Sequence[Any], values: Mapping[str, Any]
) -> Any:
    """Return the row of an open attempt on a record that the statement would write; None if there is none."""
    entity = guarded.mapper if state.bind_mapper is None else state.bind_mapper
    hit = () if statement.whereclause is None else (statement.whereclause,)
    if isinstance(statement, Update):
        new = _new_key_values(statement, values)
        hit = (*hit, or_(*[column.is_distinct_from(_value_of_parameter(value)) for column, value in new]))
    arguments: dict[str, Any] = {**state.bind_arguments, "mapper": entity}
    open_attempts = select(attempt.c.reaction, attempt.c.record, attempt.c.state).where(*stands)
    if guarded.text_in_sql is not None:
        written = select(guarded.text_in_sql).select_from(entity).where(*hit)
        found = state.session.execute(open_attempts.where(attempt.c.record.in_(written)).limit(1), values, bind_arguments=arguments)
        return found.first()
    by_record = {row.record: row for row in state.session.execute(open_attempts, bind_arguments=arguments)}
    with state.session.execute(select(*guarded.key).select_from(entity).where(*hit), values, bind_arguments=arguments) as keys_hit:
        for key in keys_hit:
            try:
                row = by_record.get(keys.record_text(key))
            except GroundstateError:
                continue
            if row is not None:
                return row
    return None


def _value_of_parameter(value: Any) -> Any:
    return value.value if isinstance(value, BindParameter) and not value.required else value
