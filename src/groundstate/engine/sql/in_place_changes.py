"""Finds changes that a handler makes inside a value of its record, such as plain JSON, which SQLAlchemy does not see and would not write.

Values are compared before and after the handler. Only dicts, lists, sets, bytearrays and Mutable types derived from these are compared
inside; the Mutable types themselves see only changes of the outermost value. Of other objects within them only the identity counts.
"""

from __future__ import annotations

import marshal
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import ARRAY, JSON, TypeDecorator, select
from sqlalchemy.dialects.postgresql import HSTORE
from sqlalchemy.ext.mutable import MutableBase
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.types import UserDefinedType

from groundstate.engine.sql import bulk_update
from groundstate.engine.sql.condition_query import PrimaryKey
from groundstate.engine.sql.exact_equality import exactly_equal
from groundstate.engine.sql.transaction import Transaction

_PLAIN = (dict, list, set, bytearray)
_KINDS = frozenset(_PLAIN)
_NO_REFERENCES = 2  # version of marshal's format: the one in which equal values give equal bytes

Before = Mapping[str, tuple[Any, Any]]  # attribute -> the value itself, and a copy of its contents


def copy_mutable_values(record: Any) -> Before | None:
    """Copy those values of the record that can be changed inside; None where there are none."""
    state = instance_state(record)
    names = _names(state.mapper)
    if not names:
        return None
    held = state.dict
    found: dict[str, tuple[Any, Any]] = {}
    for name in names:
        value = held.get(name)
        plain = None if value is None else _plain(value)
        if plain is not None:
            copy = _copied(plain)
            if copy is not None:
                found[name] = (value, copy)
    return found or None


def why_change_would_be_lost(tx: Transaction, key: PrimaryKey, record: Any, was: Before) -> str | None:
    """Return why a change inside a value would be lost, with the cure; None where there is no such change, or where it is or will be
    written.
    """
    state = instance_state(record)
    found = edited(record, was)
    if not found or record in tx.session.deleted:
        return None
    flushed = bulk_update.changed(record)
    found = [name for name in found if name not in flushed and _is_unwritten(tx, state.mapper, key, name, was[name][1])]
    return _words(state.mapper, found, was) if found else None


def edited(record: Any, was: Before) -> list[str]:
    """Return the attributes whose values have other contents than before."""
    state = instance_state(record)
    return [name for name, (value, copy) in was.items() if _edited(state, name, value, copy)]


def _words(mapper: Mapper[Any], names: Sequence[str], was: Before) -> str:
    first = names[0]
    shown = " and ".join(f"{mapper.class_.__name__}.{name}" for name in names)
    cure = f"after the change call flag_modified(record, {first!r}) of sqlalchemy.orm.attributes, or assign a deep copy that was changed"
    value = was[first][0]
    if isinstance(value, MutableBase):
        cure += f" ({type(value).__name__} sees changes of its outermost value alone)"
    elif value.__class__ is dict:
        kind = type(mapper.column_attrs[first].columns[0].type).__name__
        cure += f"; where the outermost keys alone are changed, map it as MutableDict.as_mutable({kind})"
    return f"the handler changed the inside of {shown}, which SQLAlchemy does not see, so that nothing of it would be written: {cure}"


@lru_cache(maxsize=128)
def _names(mapper: Mapper[Any]) -> tuple[str, ...]:
    """Return the attributes whose values may be changed inside. A type of the user's may turn a text into any object."""
    return tuple(one.key for one in mapper.column_attrs if len(one.columns) == 1 and _may_have_an_inside(one.columns[0].type))


def _may_have_an_inside(kind: Any) -> bool:
    of_ours = type(kind).__module__.startswith("groundstate.")
    return isinstance(kind, JSON | ARRAY | HSTORE | TypeDecorator | UserDefinedType) and not of_ours


def _plain(value: Any) -> Any:
    """Return the value as a plain dict, list, set or bytearray; None for anything else."""
    kind = value.__class__
    if kind in _KINDS:
        return value
    if issubclass(kind, MutableBase):
        plain: Any = next((one for one in _PLAIN if issubclass(kind, one)), None)
        return None if plain is None else plain(value)
    return None


def _copied(plain: Any) -> Any:
    """Return the value's marshalled bytes or, where marshal refuses it, a copy of its containers; None for a value that contains itself."""
    try:
        return marshal.dumps(plain, _NO_REFERENCES)  # takes a tenth of the time of a copy
    except ValueError:
        pass
    try:
        return _structure(plain)
    except RecursionError:
        return None


def _structure(value: Any) -> Any:
    kind = value.__class__
    if kind is dict:
        return {key: _structure(each) for key, each in value.items()}
    if kind is list or kind is tuple:
        return kind(map(_structure, value))
    return kind(value) if kind in _KINDS else value


def _edited(state: Any, name: str, value: Any, copy: Any) -> bool:
    """Whether the value has other contents than before, also where a shallow copy of it was assigned, which shares its inner values."""
    if state.dict.get(name) is None:
        return False
    plain = _plain(value)
    return plain is not None and not _is_as(copy, plain)


def _is_as(copy: Any, plain: Any) -> bool:
    if copy.__class__ is bytes:
        try:
            if marshal.dumps(plain, _NO_REFERENCES) == copy:
                return True
        except ValueError:
            pass
        copy = marshal.loads(copy)  # noqa: S302  # the bytes were dumped in this process by `_copied`
    try:
        return exactly_equal(copy, plain)
    except RecursionError:
        return True


def _is_unwritten(tx: Transaction, mapper: Mapper[Any], key: PrimaryKey, name: str, copy: Any) -> bool:
    """Whether the change is not in the row yet: a flush in the handler, or a statement of the handler, may have written it."""
    model: Any = mapper.class_
    keys = [getattr(model, mapper.get_property_by_column(column).key) for column in mapper.primary_key]
    asked = select(getattr(model, name)).where(*[one == value for one, value in zip(keys, key, strict=True)])
    row = tx.connection.execute(asked).first()
    plain = None if row is None or row[0] is None else _plain(row[0])
    return plain is not None and _is_as(copy, plain)
