"""Finds what a handler changed, and writes many such changes with one statement. Leaves records to the unit of work where a mapper needs
it.

A bulk UPDATE for the batch is twice as fast as a flush of each record. It may be used only where the flush would do nothing but this
UPDATE: no mapper hook, no version column, no onupdate, one table, column attributes only (hazard 23).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Date,
    DateTime,
    Dialect,
    Double,
    Integer,
    SmallInteger,
    String,
    Text,
    Update,
    Uuid,
    bindparam,
    update,
)
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.base import NO_VALUE
from sqlalchemy.orm.exc import StaleDataError

from groundstate.engine.sql import in_list
from groundstate.store.port import Database

_HOOKS = ("before_update", "after_update", "before_insert", "after_insert", "before_delete", "after_delete")
_SHARED = 8  # records: from this number on, records with the same new values are written by one statement
_IN_ARRAYS = frozenset({Integer, BigInteger, SmallInteger, String, Text, Boolean, DateTime, Date, Double, Uuid})


def changed(record: Any) -> dict[str, Any]:
    """Return the attributes that a flush would write, with their old values. As in SQLAlchemy, the column type's own comparison decides."""
    state: Any = instance_state(record)
    values, attributes = state.dict, state.manager
    found = {}
    for name, old in state.committed_state.items():
        implementation = attributes[name].impl
        if implementation.uses_objects or name not in values or implementation.is_equal(values[name], old) is not True:
            found[name] = old
    return found


def unknown_before(old: Any) -> bool:
    """Whether the old value is unknown: the attribute was not loaded when it was set, or was changed in place."""
    return old is NO_VALUE


@lru_cache(maxsize=128)
def plain_columns(mapper: Mapper[Any]) -> Mapping[str, Any] | None:
    """Return the columns that a bulk UPDATE may write, by attribute name; None where this mapper always needs the unit of work."""
    if len(mapper.tables) != 1 or mapper.version_id_col is not None:
        return None
    table: Any = mapper.local_table
    if any(column.onupdate is not None or column.server_onupdate is not None or column.computed is not None for column in table.columns):
        return None
    columns: dict[str, Any] = {}
    for property_ in mapper.column_attrs:
        if len(property_.columns) == 1:
            column = property_.columns[0]
            if getattr(column, "table", None) is table and not column.primary_key:
                columns[property_.key] = column
    return columns


def is_heard(mapper: Mapper[Any]) -> bool:
    """Whether an event listener is registered for what this mapper writes. It is not cached, since listeners may be added at any time."""
    return any(len(getattr(mapper.dispatch, hook)) for hook in _HOOKS)


def flush_has_listeners(session: Session) -> bool:
    """Whether anything but groundstate listens to flushes; such a listener would not hear of a bulk UPDATE."""
    dispatch: Any = session.dispatch
    ours = 1  # our own listeners: commit_hooks.py to after_flush, session_guards.py to before_flush
    return len(dispatch.before_flush) > ours or len(dispatch.after_flush) > ours or len(dispatch.after_flush_postexec) > 0


def bulk_changes(mapper: Mapper[Any], records: Sequence[Any], session: Session) -> list[dict[str, Any]] | None:
    """Return the new values of each record by attribute; None if a bulk UPDATE, after a flush of the rest, could not write all of them."""
    columns = plain_columns(mapper)
    if columns is None or session.new or session.deleted or flush_has_listeners(session):
        return None
    known = {id(record) for record in records}
    others: set[Any] = set()  # states of other changed objects, which are flushed before the bulk UPDATE
    for touched in session.identity_map._modified:  # noqa: SLF001  # session.dirty builds a new set at each access
        other = touched.obj()
        if id(other) not in known:
            if not _can_go_before(mapper, other):
                return None
            others.add(touched)
    if others and _takes_along(mapper) and any(_goes_with(record, others) for record in records):
        return None
    found: list[dict[str, Any]] = []
    written_by = set()  # the mappers of the records, since records of subclasses are written by mappers of their own
    for record in records:
        state: Any = instance_state(record)
        if not state.modified:
            found.append({})
            continue
        written_by.add(state.manager.mapper)
        new = {}
        for name in changed(record):
            if name not in columns or name not in state.dict:
                return None
            value = state.dict[name]
            if hasattr(value, "__clause_element__") or hasattr(value, "compile"):
                return None  # an SQL expression as a value needs the unit of work
            new[name] = value
        found.append(new)
    return None if any(is_heard(its) or its.version_id_col is not None for its in written_by) else found


def _can_go_before(mapper: Mapper[Any], other: Any) -> bool:
    """Whether this object, which is none of the records, may be flushed before them, while none of them is in the session.

    It may where the flush writes only plain columns of a row of another table: then no order between the two matters, and no collection
    with a record in it is flushed.
    """
    its = instance_state(other).mapper
    columns = plain_columns(its)
    return (
        columns is not None and not is_heard(its) and its.local_table is not mapper.local_table and columns.keys() >= changed(other).keys()
    )


@lru_cache(maxsize=128)
def _takes_along(mapper: Mapper[Any]) -> bool:
    """Whether expunging a record from the session may expunge other objects with it."""
    return any(one.cascade.expunge for its in mapper.self_and_descendants for one in its.relationships)


def _goes_with(record: Any, others: set[Any]) -> bool:
    """Whether expunging this record would expunge one of these objects, which would then not be flushed."""
    state: Any = instance_state(record)
    return any(reached in others for _, _, reached, _ in state.mapper.cascade_iterator("expunge", state))


def write(
    database: Database, connection: Connection, mapper: Mapper[Any], keys: Sequence[tuple[Any, ...]], changes: Sequence[Mapping[str, Any]]
) -> None:
    """Write the changes: records that get the same values by one statement, the others by one executemany for each set of columns.

    Values are the same here only if no type and no driver could tell them apart; `==` is not enough: True is not 1, nor is 1 the decimal
    1.0.

    Raises:
        StaleDataError: rows were not found by their keys, as where a column's type reads a value that does not equal the stored one.
    """
    binds = _binds(mapper, connection.dialect)
    groups: dict[tuple[Any, ...], list[tuple[tuple[Any, ...], Mapping[str, Any]]]] = {}
    for key, change in zip(keys, changes, strict=True):
        if not change:
            continue
        kinds, told = tuple(map(type, change.values())), tuple(change.items())
        if binds or not _SAME_IF_EQUAL.issuperset(kinds):
            told = tuple([(name, _bound(binds[name], value) if name in binds else _told(value)) for name, value in told])
        groups.setdefault((kinds, told), []).append((key, change))
    single: dict[tuple[str, ...], list[tuple[tuple[Any, ...], Mapping[str, Any]]]] = {}
    for group in groups.values():
        values = group[0][1]
        if len(group) >= _SHARED and len(mapper.primary_key) == 1:
            statement, parameter = _write_alike(database, mapper, tuple(values))
            given = {f"v_{name}": value for name, value in values.items()} | {"k": parameter([key[0] for key, _ in group])}
            _check(mapper, connection.execute(statement, given).rowcount, len(group))
        else:
            single.setdefault(tuple(values), []).extend(group)
    for some in single.values():
        _write_each(database, connection, mapper, some)


@lru_cache(maxsize=128)
def _binds(mapper: Mapper[Any], dialect: Dialect) -> Mapping[str, Callable[[Any], Any]]:
    """Return the bind processors of attributes whose types are neither SQLAlchemy's nor ours.

    The processors of SQLAlchemy and groundstate depend only on the value. Another one may map two values to one, map values that are `==`
    to two, or be random.
    """
    found = {}
    for name, column in (plain_columns(mapper) or {}).items():
        kind = column.type.dialect_impl(dialect)
        if not type(kind).__module__.startswith(("sqlalchemy.", "groundstate.")):
            process = kind.bind_processor(dialect)
            if process is not None:
                found[name] = process
    return found


def _bound(process: Callable[[Any], Any], value: Any) -> Any:
    try:
        return _told(process(value))
    except Exception:  # the type refuses the value, and will raise again when it is written
        return object()


def _told(value: Any) -> Any:
    """Return a key that is equal for two values only if they are the same in every way. The key of a type unknown here equals no other."""
    kind = value.__class__
    if kind in _SAME_IF_EQUAL:
        return (kind, value)
    told = _TOLD.get(kind)
    if told is not None:
        return (kind, *told(value))
    if isinstance(value, enum.Enum):
        return (kind, id(value))  # each member exists once
    return object()


def _told_time(value: Any) -> Any:
    # Equal times in two zones may have two dates, and an hour occurs twice when clocks are put back.
    return (value, id(value.tzinfo), value.fold)


# Two values of one of these types are the same if they are equal.
_SAME_IF_EQUAL = frozenset({str, bytes, bool, int, UUID, date, timedelta, type(None)})
_TOLD: Mapping[type, Callable[[Any], Any]] = {
    float: lambda value: (value, repr(value)),  # 0.0 == -0.0
    Decimal: lambda value: (str(value),),  # 1.0 == 1.00, but their texts differ
    datetime: _told_time,
    time: _told_time,
}


@lru_cache(maxsize=128)
def _write_alike(database: Database, mapper: Mapper[Any], names: tuple[str, ...]) -> tuple[Update, Callable[[Sequence[Any]], Any]]:
    columns = plain_columns(mapper) or {}
    table: Any = mapper.local_table
    keys = in_list.one_of(database, mapper.primary_key[0], "k")
    new = {columns[name]: bindparam(f"v_{name}", type_=columns[name].type) for name in names}
    return update(table).where(keys.expression).values(new), keys.parameter


def _write_each(
    database: Database, connection: Connection, mapper: Mapper[Any], some: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]
) -> None:
    names = tuple(some[0][1])
    if (
        database.locks_rows
        and len(some) >= _SHARED
        and _fits_arrays(mapper, names, connection.dialect)
        and _of_their_types(mapper, names, some)
    ):
        given: dict[str, Any] = {f"k_{number}": [key[number] for key, _ in some] for number in range(len(mapper.primary_key))}
        given |= {f"v_{name}": [change[name] for _, change in some] for name in names}
        _check(mapper, connection.execute(_write_arrays(mapper, names), given).rowcount, len(some))
        return
    parameters = [
        {f"k_{number}": value for number, value in enumerate(key)} | {f"v_{name}": change[name] for name in names} for key, change in some
    ]
    written = connection.execute(_write_one(mapper, names), parameters)
    if len(some) == 1 or connection.dialect.supports_sane_multi_rowcount:
        _check(mapper, written.rowcount, len(some))


def _check(mapper: Mapper[Any], written: int, wanted: int) -> None:
    """Raise StaleDataError as the unit of work does: for the database, an UPDATE that finds no row is no error."""
    if written != wanted:
        raise StaleDataError(f"an UPDATE of {mapper.local_table} wrote {written} of {wanted} rows by their keys")


@lru_cache(maxsize=128)
def _write_one(mapper: Mapper[Any], names: tuple[str, ...]) -> Update:
    columns = plain_columns(mapper) or {}
    table: Any = mapper.local_table
    return (
        update(table)
        .where(*[column == bindparam(f"k_{number}", type_=column.type) for number, column in enumerate(mapper.primary_key)])
        .values({columns[name]: bindparam(f"v_{name}", type_=columns[name].type) for name in names})
    )


@lru_cache(maxsize=128)
def _fits_arrays(mapper: Mapper[Any], names: tuple[str, ...], dialect: Dialect) -> bool:
    """Whether arrays pass values of these columns unchanged: only types whose elements the driver writes as it writes single values."""
    columns = plain_columns(mapper) or {}
    kinds = [column.type for column in [*mapper.primary_key, *(columns[name] for name in names)]]
    return all(type(kind) in _IN_ARRAYS and _is_itself(kind, dialect) for kind in kinds)


def _is_itself(kind: Any, dialect: Dialect) -> bool:
    """Whether this database uses the type itself, and not a variant of it, which may be of any class."""
    return type(kind.dialect_impl(dialect)) is type(dialect.type_descriptor(kind))


def _of_their_types(mapper: Mapper[Any], names: Sequence[str], some: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> bool:
    """Whether all values have their column's own Python type: the driver sends an array's elements alike, and refuses True beside 1."""
    columns = plain_columns(mapper) or {}
    for name in names:
        values = [change[name] for _, change in some]
        kind = columns[name].type.python_type
        if not {value.__class__ for value in values} <= {kind, type(None)}:
            return False
        if kind is datetime and len({value.tzinfo is None for value in values if value is not None}) > 1:
            return False
    return True


@lru_cache(maxsize=128)
def _write_arrays(mapper: Mapper[Any], names: tuple[str, ...]) -> Update:
    """Build one statement for any number of records on PostgreSQL, where an executemany is one statement for each record on the server."""
    columns = plain_columns(mapper) or {}
    table: Any = mapper.local_table
    sent = {f"k_{number}": column for number, column in enumerate(mapper.primary_key)} | {f"v_{name}": columns[name] for name in names}
    new = in_list.unnested("groundstate_new", {name: of.type for name, of in sent.items()})
    mine = [of == new.c[f"k_{number}"] for number, of in enumerate(mapper.primary_key)]
    return update(table).where(*mine).values({columns[name]: new.c[f"v_{name}"] for name in names})
