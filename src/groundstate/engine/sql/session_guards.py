"""Refuses in a user's session, before it reaches the database, what would break an attempt. Reads attempts, writes nothing.

While an attempt exists for a record, the record must not be deleted or get another key, since the attempt could not be concluded any more
(hazard 14). What is seen is a flush, and an UPDATE or DELETE that a session executes; SQL as text, and a statement that a connection
executes, pass no event of a session. Writes inside a call are refused by `call_write_guard`, which is called here for each flush.
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
from groundstate.engine.sql.condition_query import ConditionQuery, blocking, keeps_own_reaction
from groundstate.store.same_database import StoreLocation
from groundstate.store.tables import attempt
from groundstate.values import keys
from groundstate.values.errors import GroundstateError, StateRefusedError

AT_WORK = "groundstate_at_work"  # key in session.info: the record whose handler runs in this session, and its key


@dataclass(frozen=True)
class _Guarded:
    """A table with reactions in one store."""

    place: StoreLocation
    spellings: frozenset[str]  # of the table in the attempts' `blocks` column
    mapper: Mapper[Any]
    key: tuple[Any, ...]
    text_in_sql: ColumnElement[str] | None
    beside: frozenset[tuple[str, str]]  # app and reaction of those with a done column, whose attempts name no table

    @property
    def on_it(self) -> ColumnElement[bool]:
        """The SQL condition that an attempt is on a record of this table."""
        named = attempt.c.blocks.in_(sorted(self.spellings))
        if not self.beside:
            return named
        its = or_(*[and_(attempt.c.app == app, attempt.c.reaction == reaction) for app, reaction in sorted(self.beside)])
        return or_(named, and_(attempt.c.blocks.is_(None), its))

    def is_behind(self, connection: Connection) -> bool:
        """Whether this connection leads to the store. Another database may have the same tables, and none of ours."""
        return self.place.is_at(connection.engine.url) or self.place.is_behind(connection)


# The full name of a table -> what is known of it in each store, by the store's name. A table of a subclass is one of them too.
_guarded: dict[str, dict[str, _Guarded]] = {}


def guard(query: ConditionQuery) -> None:
    """Watch the sessions of this process from now on for the records of this reaction."""
    place = StoreLocation(query.database.settings.url, query.database)
    for table in {*query.mapper.base_mapper.tables, *query.mapper.tables}:
        name = str(getattr(table, "fullname", table))
        known = _guarded.get(name, {})
        before = known.get(place.name)
        told = frozenset(query.spellings) if before is None else before.spellings.union(query.spellings)
        beside = frozenset() if before is None else before.beside
        if query.spec.done_column is not None:
            beside |= {(query.spec.app, query.spec.name)}
        mapper = query.mapper if table not in query.mapper.base_mapper.tables else query.mapper.base_mapper
        now = _Guarded(place, told, mapper, tuple(query.mapper.base_mapper.primary_key), _text_of_key(query), beside)
        _guarded[name] = {**{at: one for at, one in known.items() if at != place.name}, place.name: now}
    for name, function in (("before_flush", _before_flush), ("do_orm_execute", _before_statement)):
        if not event.contains(Session, name, function):
            event.listen(Session, name, function)


def _text_of_key(query: ConditionQuery) -> ColumnElement[str] | None:
    """Return `text_in_sql` by the table's own column: an attribute of a subclass would leave out the rows of the others."""
    if query.text_in_sql is None:
        return None
    column: Any = query.mapper.base_mapper.primary_key[0]
    return column if isinstance(column.type, String) else cast(column, Text)


# ---- a flush -----------------------------------------------------------------------------------------------------------------------
def _before_flush(session: Session, _context: UOWTransaction, _instances: Any) -> None:
    call_write_guard.refuse_flush(session)
    for record in session.deleted:
        _refuse_under_attempt(session, record, "deleted", blocking)
    for record in session.dirty:
        if _key_changed(record):  # under another key the call would be made anew, whatever is held under the old key
            _refuse_under_attempt(session, record, "given another primary key", keeps_own_reaction)


def _key_changed(record: Any) -> bool:
    state: Any = inspect(record)
    mapper: Mapper[Any] = state.mapper
    names = {mapper.get_property_by_column(column).key for column in mapper.primary_key}
    return bool(state.identity) and any(
        name in state.committed_state and state.dict.get(name) != state.committed_state[name]
        for name in names & state.committed_state.keys()
    )


def _refuse_under_attempt(session: Session, record: Any, what: str, standing: ColumnElement[bool]) -> None:
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
        guarded = _in_its_store(table_name, connection)
        if guarded is None:
            return
        on_it = (guarded.on_it, attempt.c.record == text)
        found = connection.execute(select(attempt.c.reaction, attempt.c.record, attempt.c.state).where(*on_it, standing).limit(1))
        row = found.first()
    if row is not None:
        raise _refusal(table_name, what, row)


def _in_its_store(table_name: str, connection: Connection) -> _Guarded | None:
    known = list(_guarded.get(table_name, {}).values())
    return next((one for one in reversed(known) if one.is_behind(connection)), None)


def _refusal(table_name: str, what: str, row: Any) -> StateRefusedError:
    cure = "mark the record as gone by a column" if what == "deleted" else "let the record keep its key"
    return StateRefusedError(
        f"{table_name} {row.record} cannot be {what} now: {row.reaction} is {row.state} on it, and what became of its call must be written "
        f"to it. Wait until it is concluded or settled (groundstate why), or {cure}"
    )


# ---- an UPDATE or DELETE that a session executes -----------------------------------------------------------------------------------
def _before_statement(state: ORMExecuteState) -> None:
    statement: Any = state.statement
    if (
        not isinstance(statement, (Update, Delete))
        or not isinstance(statement.table, Table)
        or str(statement.table.fullname) not in _guarded
    ):
        return
    if isinstance(statement, Delete):
        _refuse_statement(state, statement, "deleted", blocking)
    elif not _is_by_key(state) and any(_new_key(statement, state.parameters)):
        _refuse_statement(state, statement, "given another primary key", keeps_own_reaction)


def _is_by_key(state: ORMExecuteState) -> bool:
    """Whether the ORM updates each row by the key among its values, as `session.execute(update(Order), [{"id": 1, ...}])` does."""
    return state.is_orm_statement and isinstance(state.parameters, Sequence)


def _new_key(statement: Update, parameters: Any) -> list[tuple[Any, Any]]:
    """Return the key's columns that the statement sets, each with its new value."""
    whole: Any = statement
    ordered = dict(getattr(whole, "_ordered_values", None) or ())  # of SQLAlchemy 2.0; newer ones have them among the others
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
    guarded = _in_its_store(name, connection)
    if guarded is None:
        return
    stands: tuple[Any, ...] = (guarded.on_it, standing)
    mine = _at_work(session, guarded) if what == "deleted" else None
    if mine is not None:  # its attempt ends in this very transaction
        stands = (*stands, attempt.c.record != mine)
    if connection.execute(select(1).select_from(attempt).where(*stands).limit(1)).first() is None:
        return
    for values in _each(state.parameters):
        row = _first_hit(state, statement, guarded, stands, values)
        if row is not None:
            raise _refusal(name, what, row)


def _at_work(session: Session, guarded: _Guarded) -> str | None:
    record, key = session.info.get(AT_WORK, (None, ()))
    if record is None or inspect(record).mapper.base_mapper is not guarded.mapper.base_mapper:
        return None
    try:
        return keys.record_text(key)
    except GroundstateError:
        return None


def _each(parameters: Any) -> Sequence[Mapping[str, Any]]:
    return [parameters] if isinstance(parameters, Mapping) else list(parameters or [{}])


def _first_hit(state: ORMExecuteState, statement: Any, guarded: _Guarded, stands: Sequence[Any], values: Mapping[str, Any]) -> Any:
    """Return an open attempt on a record that the statement would write; None where there is none."""
    entity = guarded.mapper if state.bind_mapper is None else state.bind_mapper
    hit = () if statement.whereclause is None else (statement.whereclause,)
    if isinstance(statement, Update):
        new = _new_key(statement, values)
        hit = (*hit, or_(*[column.is_distinct_from(_without_name(value)) for column, value in new]))
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


def _without_name(value: Any) -> Any:
    return value.value if isinstance(value, BindParameter) and not value.required else value
