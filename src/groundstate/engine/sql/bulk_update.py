"""Finds the attributes that handlers changed, and writes the changes of many records with one statement.

A bulk UPDATE is twice as fast as a flush of each record. It is used only if a flush would do nothing but send this UPDATE: no mapper hook,
no version column, no onupdate, one table, only column attributes (hazard 23). All other records are left to SQLAlchemy's unit of work.
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
_SHARED = 8  # the least number of records with the same new values for which one statement writes all of them
_IN_ARRAYS = frozenset({Integer, BigInteger, SmallInteger, String, Text, Boolean, DateTime, Date, Double, Uuid})


def changed_attributes(record: Any) -> dict[str, Any]:
    """Return the changed attributes of the record (those that a flush would write), as a dict from attribute name to old value.

    As in SQLAlchemy, the column type's own comparison decides whether a value changed.
    """
    state: Any = instance_state(record)
    values, attributes = state.dict, state.manager
    found = {}
    for name, old in state.committed_state.items():
        implementation = attributes[name].impl
        if implementation.uses_objects or name not in values or implementation.is_equal(values[name], old) is not True:
            found[name] = old
    return found


def is_old_value_unknown(old: Any) -> bool:
    """Return whether `old` says that the old value is unknown, since the attribute was set before it was loaded, or was changed in
    place.
    """
    return old is NO_VALUE


@lru_cache(maxsize=128)
def bulk_writable_columns(mapper: Mapper[Any]) -> Mapping[str, Any] | None:
    """Return a dict from attribute name to column, for the columns that a bulk UPDATE may write. Return None if the records of this mapper
    always need the unit of work.
    """
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


def has_write_listeners(mapper: Mapper[Any]) -> bool:
    """Return whether an event listener is registered for writes of this mapper. The result is not cached, since listeners may be added at
    any time.
    """
    return any(len(getattr(mapper.dispatch, hook)) for hook in _HOOKS)


def flush_has_listeners(session: Session) -> bool:
    """Return whether listeners other than groundstate's own are registered for flushes. A bulk UPDATE would not call them."""
    dispatch: Any = session.dispatch
    ours = 1  # the number of groundstate's own listeners per event: after_flush in commit_hooks.py, before_flush in session_guards.py
    return len(dispatch.before_flush) > ours or len(dispatch.after_flush) > ours or len(dispatch.after_flush_postexec) > 0


def new_values_for_bulk_update(mapper: Mapper[Any], records: Sequence[Any], session: Session) -> list[dict[str, Any]] | None:
    """Return one dict of new values per record, by attribute name. Return None if some change must be written by the unit of work, so that
    the caller has to flush all of them.
    """
    columns = bulk_writable_columns(mapper)
    if columns is None or session.new or session.deleted or flush_has_listeners(session):
        return None
    known = {id(record) for record in records}
    others: set[Any] = set()  # other changed objects (as SQLAlchemy states), to be flushed before the bulk UPDATE
    for touched in session.identity_map._modified:  # noqa: SLF001  # session.dirty builds a new set at each access
        other = touched.obj()
        if id(other) not in known:
            if not _can_flush_before_bulk_update(mapper, other):
                return None
            others.add(touched)
    if others and _has_expunge_cascade(mapper) and any(_cascades_expunge_to(record, others) for record in records):
        return None
    found: list[dict[str, Any]] = []
    written_by = set()  # the mappers of the changed records; a subclass has a mapper of its own
    for record in records:
        state: Any = instance_state(record)
        if not state.modified:
            found.append({})
            continue
        written_by.add(state.manager.mapper)
        new = {}
        for name in changed_attributes(record):
            if name not in columns or name not in state.dict:
                return None
            value = state.dict[name]
            if hasattr(value, "__clause_element__") or hasattr(value, "compile"):
                return None  # only the unit of work can write a value that is an SQL expression
            new[name] = value
        found.append(new)
    return None if any(has_write_listeners(its) or its.version_id_col is not None for its in written_by) else found


def _can_flush_before_bulk_update(mapper: Mapper[Any], other: Any) -> bool:
    """Return whether this changed object, which is not one of the records, may be flushed before the bulk UPDATE, while the records are not
    in the session.

    The object may be flushed first if the flush writes only plain columns of a row in another table. Then the order of the two writes does
    not matter, and no collection that contains a record is flushed.
    """
    its = instance_state(other).mapper
    columns = bulk_writable_columns(its)
    return (
        columns is not None
        and not has_write_listeners(its)
        and its.local_table is not mapper.local_table
        and columns.keys() >= changed_attributes(other).keys()
    )


@lru_cache(maxsize=128)
def _has_expunge_cascade(mapper: Mapper[Any]) -> bool:
    """Return whether expunging a record from the session may expunge other objects with it."""
    return any(one.cascade.expunge for its in mapper.self_and_descendants for one in its.relationships)


def _cascades_expunge_to(record: Any, others: set[Any]) -> bool:
    """Return whether expunging this record would also expunge one of these changed objects, so that no flush would write that object."""
    state: Any = instance_state(record)
    return any(reached in others for _, _, reached, _ in state.mapper.cascade_iterator("expunge", state))


def write_changes(
    database: Database, connection: Connection, mapper: Mapper[Any], keys: Sequence[tuple[Any, ...]], changes: Sequence[Mapping[str, Any]]
) -> None:
    """Write the changes of these records (one dict per key). Records with the same new values are written by one statement, all others by
    one executemany for each set of columns.

    Two values count as the same only if no type and no driver could distinguish them. `==` is not enough: True equals 1, and 1 equals the
    decimal 1.0.

    Raises:
        StaleDataError: A row was not found by its key, as when a column's type loads a value that does not equal the stored one.
    """
    binds = _custom_bind_processors(mapper, connection.dialect)
    groups: dict[tuple[Any, ...], list[tuple[tuple[Any, ...], Mapping[str, Any]]]] = {}
    for key, change in zip(keys, changes, strict=True):
        if not change:
            continue
        kinds, told = tuple(map(type, change.values())), tuple(change.items())
        if binds or not _SAME_IF_EQUAL.issuperset(kinds):
            told = tuple(
                [
                    (name, _comparison_key_after_bind(binds[name], value) if name in binds else _comparison_key(value))
                    for name, value in told
                ]
            )
        groups.setdefault((kinds, told), []).append((key, change))
    single: dict[tuple[str, ...], list[tuple[tuple[Any, ...], Mapping[str, Any]]]] = {}
    for group in groups.values():
        values = group[0][1]
        if len(group) >= _SHARED and len(mapper.primary_key) == 1:
            statement, parameter = _update_with_shared_values(database, mapper, tuple(values))
            given = {f"v_{name}": value for name, value in values.items()} | {"k": parameter([key[0] for key, _ in group])}
            _check_row_count(mapper, connection.execute(statement, given).rowcount, len(group))
        else:
            single.setdefault(tuple(values), []).extend(group)
    for some in single.values():
        _write_individual_values(database, connection, mapper, some)


@lru_cache(maxsize=128)
def _custom_bind_processors(mapper: Mapper[Any], dialect: Dialect) -> Mapping[str, Callable[[Any], Any]]:
    """Return a dict from attribute name to bind processor, for the attributes whose types are neither SQLAlchemy's nor groundstate's.

    The result of SQLAlchemy's and groundstate's own processors depends only on the value. Any other processor may return the same result
    for two different values, different results for two equal values, or a random result.
    """
    found = {}
    for name, column in (bulk_writable_columns(mapper) or {}).items():
        kind = column.type.dialect_impl(dialect)
        if not type(kind).__module__.startswith(("sqlalchemy.", "groundstate.")):
            process = kind.bind_processor(dialect)
            if process is not None:
                found[name] = process
    return found


def _comparison_key_after_bind(process: Callable[[Any], Any], value: Any) -> Any:
    """Return the key by which `write_changes` compares the value that this bind processor makes."""
    try:
        return _comparison_key(process(value))
    except Exception:  # the type refuses the value now, and will raise again when the value is written
        return object()


def _comparison_key(value: Any) -> Any:
    """Return a key that is equal for two values only if they are identical in every respect. For a value of an unknown type, return a key
    that equals no other key.
    """
    kind = value.__class__
    if kind in _SAME_IF_EQUAL:
        return (kind, value)
    told = _TOLD.get(kind)
    if told is not None:
        return (kind, *told(value))
    if isinstance(value, enum.Enum):
        return (kind, id(value))  # each member exists once
    return object()


def _comparison_key_of_time(value: Any) -> Any:
    # Times that are equal may have different dates in two zones, and one hour occurs twice when clocks are put back.
    """Return a key that tells equal times with different time zones or folds apart."""
    return (value, id(value.tzinfo), value.fold)


# Two equal values of one of these types are the same in every respect.
_SAME_IF_EQUAL = frozenset({str, bytes, bool, int, UUID, date, timedelta, type(None)})
_TOLD: Mapping[type, Callable[[Any], Any]] = {
    float: lambda value: (value, repr(value)),  # 0.0 == -0.0, but their texts differ
    Decimal: lambda value: (str(value),),  # 1.0 == 1.00, but their texts differ
    datetime: _comparison_key_of_time,
    time: _comparison_key_of_time,
}


@lru_cache(maxsize=128)
def _update_with_shared_values(
    database: Database, mapper: Mapper[Any], names: tuple[str, ...]
) -> tuple[Update, Callable[[Sequence[Any]], Any]]:
    """Return the pair (UPDATE that gives many records the same values, function that makes its parameter from the records' keys)."""
    columns = bulk_writable_columns(mapper) or {}
    table: Any = mapper.local_table
    keys = in_list.is_one_of(database, mapper.primary_key[0], "k")
    new = {columns[name]: bindparam(f"v_{name}", type_=columns[name].type) for name in names}
    return update(table).where(keys.expression).values(new), keys.parameter


def _write_individual_values(
    database: Database, connection: Connection, mapper: Mapper[Any], some: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]
) -> None:
    """Write changes that set the same columns to different values: by one UPDATE with arrays if that is possible, otherwise by an
    executemany.
    """
    names = tuple(some[0][1])
    if (
        database.locks_rows
        and len(some) >= _SHARED
        and _can_pass_as_arrays(mapper, names, connection.dialect)
        and _have_exact_python_types(mapper, names, some)
    ):
        given: dict[str, Any] = {f"k_{number}": [key[number] for key, _ in some] for number in range(len(mapper.primary_key))}
        given |= {f"v_{name}": [change[name] for _, change in some] for name in names}
        _check_row_count(mapper, connection.execute(_update_from_arrays(mapper, names), given).rowcount, len(some))
        return
    parameters = [
        {f"k_{number}": value for number, value in enumerate(key)} | {f"v_{name}": change[name] for name in names} for key, change in some
    ]
    written = connection.execute(_update_of_one_row(mapper, names), parameters)
    if len(some) == 1 or connection.dialect.supports_sane_multi_rowcount:
        _check_row_count(mapper, written.rowcount, len(some))


def _check_row_count(mapper: Mapper[Any], written: int, wanted: int) -> None:
    """Raise StaleDataError if an UPDATE wrote another number of rows than there are keys. The unit of work checks this as well, since the
    database reports no error for a row that is not found.
    """
    if written != wanted:
        raise StaleDataError(f"an UPDATE of {mapper.local_table} wrote {written} of {wanted} rows by their keys")


@lru_cache(maxsize=128)
def _update_of_one_row(mapper: Mapper[Any], names: tuple[str, ...]) -> Update:
    """Return an UPDATE that sets these attributes of one record, for an executemany."""
    columns = bulk_writable_columns(mapper) or {}
    table: Any = mapper.local_table
    return (
        update(table)
        .where(*[column == bindparam(f"k_{number}", type_=column.type) for number, column in enumerate(mapper.primary_key)])
        .values({columns[name]: bindparam(f"v_{name}", type_=columns[name].type) for name in names})
    )


@lru_cache(maxsize=128)
def _can_pass_as_arrays(mapper: Mapper[Any], names: tuple[str, ...], dialect: Dialect) -> bool:
    """Return whether arrays can pass the values of these columns unchanged: the driver writes an array's elements of these types as it
    writes single values.
    """
    columns = bulk_writable_columns(mapper) or {}
    kinds = [column.type for column in [*mapper.primary_key, *(columns[name] for name in names)]]
    return all(type(kind) in _IN_ARRAYS and _is_type_without_variant(kind, dialect) for kind in kinds)


def _is_type_without_variant(kind: Any, dialect: Dialect) -> bool:
    """Return whether this dialect uses the type itself. A variant of it (`with_variant`) may be of any class."""
    return type(kind.dialect_impl(dialect)) is type(dialect.type_descriptor(kind))


def _have_exact_python_types(mapper: Mapper[Any], names: Sequence[str], some: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> bool:
    """Return whether each value has exactly the Python type of its column. If not, the values cannot be passed as arrays: the driver adapts
    all elements of an array alike, and refuses True beside 1.
    """
    columns = bulk_writable_columns(mapper) or {}
    for name in names:
        values = [change[name] for _, change in some]
        kind = columns[name].type.python_type
        if not {value.__class__ for value in values} <= {kind, type(None)}:
            return False
        if kind is datetime and len({value.tzinfo is None for value in values if value is not None}) > 1:
            return False
    return True


@lru_cache(maxsize=128)
def _update_from_arrays(mapper: Mapper[Any], names: tuple[str, ...]) -> Update:
    """Return one UPDATE for any number of records on PostgreSQL, where an executemany would send one statement for each record."""
    columns = bulk_writable_columns(mapper) or {}
    table: Any = mapper.local_table
    sent = {f"k_{number}": column for number, column in enumerate(mapper.primary_key)} | {f"v_{name}": columns[name] for name in names}
    new = in_list.rows_from_arrays("groundstate_new", {name: of.type for name, of in sent.items()})
    mine = [of == new.c[f"k_{number}"] for number, of in enumerate(mapper.primary_key)]
    return update(table).where(*mine).values({columns[name]: new.c[f"v_{name}"] for name in names})
