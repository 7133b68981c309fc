"""What a handler changed, and writing many such changes with one statement. Falls back to the unit of work where a mapper wants more.

A bulk UPDATE for the batch is twice as fast as a flush of each record. It may be used only where nothing would have happened in that flush
beside this UPDATE: no mapper hook, no version column, no onupdate, one table, column attributes alone (hazard 23).
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

from groundstate.engine import listed
from groundstate.store.port import Database

_HOOKS = ("before_update", "after_update", "before_insert", "after_insert", "before_delete", "after_delete")
_SHARED = 8  # so many records with the same new values are written by one statement
_IN_ARRAYS = frozenset({Integer, BigInteger, SmallInteger, String, Text, Boolean, DateTime, Date, Double, Uuid})


def changed(record: Any) -> dict[str, Any]:
    """Attributes that a flush would write, with their old values: told as SQLAlchemy tells it, by the column type's own comparison."""
    state: Any = instance_state(record)
    values, attributes = state.dict, state.manager
    found = {}
    for name, old in state.committed_state.items():
        implementation = attributes[name].impl
        if implementation.uses_objects or name not in values or implementation.is_equal(values[name], old) is not True:
            found[name] = old
    return found


def unknown_before(old: Any) -> bool:
    """Whether nobody knows what it was: it was not loaded when it was set, or it was changed in place."""
    return old is NO_VALUE


@lru_cache(maxsize=128)
def plain_columns(mapper: Mapper[Any]) -> Mapping[str, Any] | None:
    """Attribute name -> column for what a bulk UPDATE may write; None where this mapper needs the unit of work, whoever listens to it."""
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
    """Whether somebody listens to what is written by this mapper, be it since a moment ago."""
    return any(len(getattr(mapper.dispatch, hook)) for hook in _HOOKS)


def flush_has_listeners(session: Session) -> bool:
    """Whether somebody but us listens to flushes: they would not hear of a bulk UPDATE."""
    dispatch: Any = session.dispatch
    ours = 1  # hints.py listens to after_flush, guards.py to before_flush
    return len(dispatch.before_flush) > ours or len(dispatch.after_flush) > ours or len(dispatch.after_flush_postexec) > 0


def bulk_changes(mapper: Mapper[Any], records: Sequence[Any], session: Session) -> list[dict[str, Any]] | None:
    """For each record its new values by attribute, where a bulk UPDATE may write all of them after a flush of the rest; else None."""
    columns = plain_columns(mapper)
    if columns is None or session.new or session.deleted or flush_has_listeners(session):
        return None
    known = {id(record) for record in records}
    others: set[Any] = set()  # the states of what is to be flushed before the records, and without them
    for touched in session.identity_map._modified:  # noqa: SLF001  # session.dirty builds a set of all, each time
        other = touched.obj()
        if id(other) not in known:
            if not _can_go_before(mapper, other):
                return None
            others.add(touched)
    if others and _takes_along(mapper) and any(_goes_with(record, others) for record in records):
        return None
    found: list[dict[str, Any]] = []
    written_by = set()  # records of subclasses are written by mappers of their own
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
                return None  # a SQL expression as a value
            new[name] = value
        found.append(new)
    return None if any(is_heard(its) or its.version_id_col is not None for its in written_by) else found


def _can_go_before(mapper: Mapper[Any], other: Any) -> bool:
    """Whether this object, which is none of the records, may be flushed before them, while none of them is in the session.

    It may where only plain columns of a row of another table are written: no order between the two, and no collection with a record in it.
    """
    its = instance_state(other).mapper
    columns = plain_columns(its)
    return (
        columns is not None and not is_heard(its) and its.local_table is not mapper.local_table and columns.keys() >= changed(other).keys()
    )


@lru_cache(maxsize=128)
def _takes_along(mapper: Mapper[Any]) -> bool:
    """Whether a record that is taken out of the session may take others with it."""
    return any(one.cascade.expunge for its in mapper.self_and_descendants for one in its.relationships)


def _goes_with(record: Any, others: set[Any]) -> bool:
    """Whether one of these goes out of the session with the record, and would not be flushed."""
    state: Any = instance_state(record)
    return any(reached in others for _, _, reached, _ in state.mapper.cascade_iterator("expunge", state))


def write(
    database: Database, connection: Connection, mapper: Mapper[Any], keys: Sequence[tuple[Any, ...]], changes: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the changes: records that get the same values by one statement, the others by one executemany for each set of columns.

    The same is what no type and no driver could tell apart, and not what is `==`: True is not 1, nor is 1 the decimal 1.0.

    Raises:
        StaleDataError: rows were not found by their keys, as where a value that was read of a column is not equal to what is in it.
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
    """Attribute -> what makes of its value what the driver gets, for types that are neither SQLAlchemy's nor ours.

    Theirs depend on nothing but the value. Another one may map two values to one, make two of values that are `==`, or roll dice.
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
    except Exception:  # the type refuses it, and does so again when it is written
        return object()


def _told(value: Any) -> Any:
    """What is equal for values alone that are the same in every way; of a type that is not known here, for no two."""
    kind = value.__class__
    if kind in _SAME_IF_EQUAL:
        return (kind, value)
    told = _TOLD.get(kind)
    if told is not None:
        return (kind, *told(value))
    if isinstance(value, enum.Enum):
        return (kind, id(value))  # there is one of each
    return object()


def _told_time(value: Any) -> Any:
    # What is equal in two zones may be two dates, and an hour comes twice where clocks are put back.
    return (value, id(value.tzinfo), value.fold)


_SAME_IF_EQUAL = frozenset({str, bytes, bool, int, UUID, date, timedelta, type(None)})  # of one type
_TOLD: Mapping[type, Callable[[Any], Any]] = {
    float: lambda value: (value, repr(value)),  # 0.0 == -0.0
    Decimal: lambda value: (str(value),),  # 1.0 == 1.00
    datetime: _told_time,
    time: _told_time,
}


@lru_cache(maxsize=128)
def _write_alike(database: Database, mapper: Mapper[Any], names: tuple[str, ...]) -> tuple[Update, Callable[[Sequence[Any]], Any]]:
    columns = plain_columns(mapper) or {}
    table: Any = mapper.local_table
    keys = listed.one_of(database, mapper.primary_key[0], "k")
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
    """As the unit of work does: an UPDATE that finds no row is no error for the database."""
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
    """Whether arrays bring these values as they are: of types whose element the driver writes like the value alone."""
    columns = plain_columns(mapper) or {}
    kinds = [column.type for column in [*mapper.primary_key, *(columns[name] for name in names)]]
    return all(type(kind) in _IN_ARRAYS and _is_itself(kind, dialect) for kind in kinds)


def _is_itself(kind: Any, dialect: Dialect) -> bool:
    """Whether a type stands for itself in this database, and not for a variant of it, which may be anybody's."""
    return type(kind.dialect_impl(dialect)) is type(dialect.type_descriptor(kind))


def _of_their_types(mapper: Mapper[Any], names: Sequence[str], some: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> bool:
    """Whether the values are of the columns' own Python types: the elements of one array are sent alike, and True beside 1 not at all."""
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
    """One statement for any number of records, PostgreSQL's: an executemany is a statement a record for the server."""
    columns = plain_columns(mapper) or {}
    table: Any = mapper.local_table
    sent = {f"k_{number}": column for number, column in enumerate(mapper.primary_key)} | {f"v_{name}": columns[name] for name in names}
    new = listed.unnested("groundstate_new", {name: of.type for name, of in sent.items()})
    mine = [of == new.c[f"k_{number}"] for number, of in enumerate(mapper.primary_key)]
    return update(table).where(*mine).values({columns[name]: new.c[f"v_{name}"] for name in names})
