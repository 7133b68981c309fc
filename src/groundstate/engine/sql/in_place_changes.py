"""Finds changes that a handler makes inside a value of its record, such as plain JSON. SQLAlchemy does not notice such changes, and would
not write them.

The values are compared before and after the handler. Only the contents of dicts, lists, sets, bytearrays and Mutable types derived from
these are compared; a Mutable type itself notices only changes of the outermost value. Any other object inside a value is compared by
identity.
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
from groundstate.engine.sql.exact_equality import exactly_equal
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.sql.transaction import Transaction

_PLAIN = (dict, list, set, bytearray)
_KINDS = frozenset(_PLAIN)
_NO_REFERENCES = 2  # the version of marshal's format in which equal values have equal bytes

Before = Mapping[str, tuple[Any, Any]]  # attribute name -> (the value itself, a copy of its contents)


def copy_mutable_values(record: Any) -> Before | None:
    """Return the values of the record that can be changed inside, with copies of their contents; None if it has no such value."""
    state = instance_state(record)
    names = _attributes_changeable_inside(state.mapper)
    if not names:
        return None
    held = state.dict
    found: dict[str, tuple[Any, Any]] = {}
    for name in names:
        value = held.get(name)
        plain = None if value is None else _as_plain_container(value)
        if plain is not None:
            copy = _copy_of_contents(plain)
            if copy is not None:
                found[name] = (value, copy)
    return found or None


def why_change_would_be_lost(tx: Transaction, key: PrimaryKey, record: Any, was: Before) -> str | None:
    """Return an error text that says why a change inside a value would be lost, with the cure.

    None if there is no such change, or if the change is not lost since it was written already or the flush will write it.
    """
    state = instance_state(record)
    found = edited_attributes(record, was)
    if not found or record in tx.session.deleted:
        return None
    flushed = bulk_update.changed_attributes(record)
    found = [name for name in found if name not in flushed and _is_unwritten(tx, state.mapper, key, name, was[name][1])]
    return _loss_message(state.mapper, found, was) if found else None


def edited_attributes(record: Any, was: Before) -> list[str]:
    """Return the names of the attributes whose values have other contents now than their copies in `was`."""
    state = instance_state(record)
    return [name for name, (value, copy) in was.items() if _has_other_contents(state, name, value, copy)]


def _loss_message(mapper: Mapper[Any], names: Sequence[str], was: Before) -> str:
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
def _attributes_changeable_inside(mapper: Mapper[Any]) -> tuple[str, ...]:
    """Return the names of the attributes whose values may be changed inside. The result includes attributes of the user's own types, which
    may load any object.
    """
    return tuple(one.key for one in mapper.column_attrs if len(one.columns) == 1 and _may_be_changed_inside(one.columns[0].type))


def _may_be_changed_inside(kind: Any) -> bool:
    of_ours = type(kind).__module__.startswith("groundstate.")
    return isinstance(kind, JSON | ARRAY | HSTORE | TypeDecorator | UserDefinedType) and not of_ours


def _as_plain_container(value: Any) -> Any:
    """Return the value as a plain dict, list, set or bytearray; None if it is of another type."""
    kind = value.__class__
    if kind in _KINDS:
        return value
    if issubclass(kind, MutableBase):
        plain: Any = next((one for one in _PLAIN if issubclass(kind, one)), None)
        return None if plain is None else plain(value)
    return None


def _copy_of_contents(plain: Any) -> Any:
    """Return the value's marshalled bytes or, if marshal refuses the value, a copy of its containers. None for a value that contains
    itself.
    """
    try:
        return marshal.dumps(plain, _NO_REFERENCES)  # this takes a tenth of the time of a copy
    except ValueError:
        pass
    try:
        return _copy_of_containers(plain)
    except RecursionError:
        return None


def _copy_of_containers(value: Any) -> Any:
    kind = value.__class__
    if kind is dict:
        return {key: _copy_of_containers(each) for key, each in value.items()}
    if kind is list or kind is tuple:
        return kind(map(_copy_of_containers, value))
    return kind(value) if kind in _KINDS else value


def _has_other_contents(state: Any, name: str, value: Any, copy: Any) -> bool:
    """Return whether the value of this attribute has other contents than before.

    This includes changes of the inner values after a shallow copy has replaced the value, since the copy shares the inner values.
    """
    if state.dict.get(name) is None:
        return False
    plain = _as_plain_container(value)
    return plain is not None and not _equals_copy(copy, plain)


def _equals_copy(copy: Any, plain: Any) -> bool:
    if copy.__class__ is bytes:
        try:
            if marshal.dumps(plain, _NO_REFERENCES) == copy:
                return True
        except ValueError:
            pass
        copy = marshal.loads(copy)  # noqa: S302  # these bytes were made in this process by `_copy_of_contents`
    try:
        return exactly_equal(copy, plain)
    except RecursionError:
        return True


def _is_unwritten(tx: Transaction, mapper: Mapper[Any], key: PrimaryKey, name: str, copy: Any) -> bool:
    """Return whether the change still has to be written to the row. A flush or a statement of the handler may have written it already."""
    model: Any = mapper.class_
    keys = [getattr(model, mapper.get_property_by_column(column).key) for column in mapper.primary_key]
    asked = select(getattr(model, name)).where(*[one == value for one, value in zip(keys, key, strict=True)])
    row = tx.connection.execute(asked).first()
    plain = None if row is None or row[0] is None else _as_plain_container(row[0])
    return plain is not None and _equals_copy(copy, plain)
