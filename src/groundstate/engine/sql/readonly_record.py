"""Prepares the record that is passed to a call: it is detached from its session, loaded, and refuses writes (rules.md 12).

A mutable value (a dict of JSON, a pickled object, a list of loaded records) does not refuse a change in place: it would need another type
than the user's code expects. So mutable values are compared before and after the call, and a change is reported.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, cast
from uuid import UUID

from sqlalchemy.orm import InstanceState
from sqlalchemy.orm.attributes import instance_state

from groundstate.values.errors import StateRefusedError

CURE = "Return it as the outcome, and let the handler write it"
_FIXED = frozenset({str, bytes, int, float, bool, Decimal, date, datetime, time, timedelta, UUID, type(None)})


def make_read_only(record: Any) -> Any:
    """Make the record refuse writes, and return it.

    Before that, the caller must load the record's relationships and remove the record from its session.
    """
    object.__setattr__(record, "__class__", _read_only_class(cast("Hashable", type(record))))
    return record


@cache
def _read_only_class(model: Any) -> type:
    def refuse_set(self: Any, name: str, value: object) -> None:
        if name.startswith("_sa_"):
            object.__setattr__(self, name, value)
            return
        raise StateRefusedError(
            f"{model.__name__}.{name} was set inside a call: a call gets a read-only snapshot, and what it writes would be lost. {CURE}"
        )

    def refuse_delete(self: Any, name: str) -> None:
        refuse_set(self, name, None)

    # Call `type` to make the class: a declarative metaclass would map the class, and SQLModel's would build fields for it.
    names = {"__setattr__": refuse_set, "__delattr__": refuse_delete, "__abstract__": True, "__module__": model.__module__, "__slots__": ()}
    names["__groundstate_snapshot__"] = True
    made: type = type.__new__(type(model), model.__name__, (model,), names)
    return made


# ---- edits in place --------------------------------------------------------------------------------------------------------------
@dataclass(eq=False, slots=True)
class _RecordBefore:
    """One record as it was before the call: its path, copies of its mutable values, and the names of the attributes that already counted as
    changed.
    """

    path: str
    state: InstanceState[Any]
    copies: dict[str, Any]
    changed: frozenset[str]


@dataclass(eq=False, slots=True)
class GivenSnapshot:
    """The record that a call was given, and the records loaded together with it, as they were before the call."""

    records: list[_RecordBefore]

    def edited_paths(self) -> list[str]:
        """Return the paths of the attributes that differ now from what the call was given."""
        found: list[str] = []
        for one in self.records:
            names = {name for name, copy in one.copies.items() if not _is_unchanged(copy, one.state.dict.get(name))}
            names |= set(one.state.committed_state) - one.changed  # a related record was replaced, or a list of related records changed
            names.update(_edited_composites(one.state))
            found += [f"{one.path}{name}" for name in sorted(names)]
        return found


def in_place_edit_message(what: str, names: list[str]) -> str:
    """Return the error message for changes in place. what: The code that made the changes, such as 'the call charge'."""
    return (
        f"{what} edited {', '.join(names)} of its snapshot in place: a call gets a read-only snapshot, and what it writes there is lost."
        f" {CURE}; what it changes for itself alone, it copies first"
    )


def copy_editable_values(argument: Any) -> GivenSnapshot | None:
    """Copy the mutable values of a record before a call. Return None if `prepare` made the argument, since it is not a record then."""
    if _is_snapshot_class(cast("Hashable", type(argument))):
        return GivenSnapshot(
            [
                _RecordBefore(path, state, _copies_of_editable_values(state), frozenset(state.committed_state))
                for path, state in _loaded_records(argument)
            ]
        )
    return None


@cache
def _is_snapshot_class(kind: Any) -> bool:
    return "__groundstate_snapshot__" in vars(kind)


def _loaded_records(record: Any) -> Iterator[tuple[str, InstanceState[Any]]]:
    """Yield the record and each record that is loaded together with it, as pairs (path, SQLAlchemy state)."""
    seen: set[int] = set()
    left = [("", record)]
    while left:
        path, one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        state = instance_state(one)
        yield path, state
        for relation in state.mapper.relationships:
            name = relation.key
            related = state.dict.get(name)
            if related is not None:
                many = related.values() if isinstance(related, Mapping) else related if hasattr(related, "__iter__") else (related,)
                left += [(f"{path}{name}.", each) for each in many if hasattr(each, "_sa_instance_state")]


def _copies_of_editable_values(state: InstanceState[Any]) -> dict[str, Any]:
    columns = state.mapper.column_attrs
    held = [(name, value) for name, value in state.dict.items() if value.__class__ not in _FIXED]
    return {name: _copy_or_unknown(value) for name, value in held if name in columns}


def _copy_or_unknown(value: Any) -> Any:
    try:
        return _comparable_copy(value, ())
    except RuntimeError:  # the value is nested too deeply, or another thread is changing it
        return _UNKNOWN


def _is_unchanged(copy: Any, value: Any) -> bool:
    now = _copy_or_unknown(value)
    try:
        return copy is _UNKNOWN or now is _UNKNOWN or bool(copy == now)
    except RuntimeError:
        return True


_UNKNOWN = object()


def _comparable_copy(value: Any, within: tuple[int, ...]) -> Any:
    """Return the contents of a value as dicts, lists, and pairs (type, plain value). Copies from before and after a call are equal if the
    value was not changed in between.
    """
    kind = value.__class__
    if kind in _FIXED:
        return value if kind is str else (kind, value if value == value else None)  # noqa: PLR0124  # NaN is not equal to itself
    if isinstance(value, enum.Enum | type) or callable(value) or id(value) in within:
        return (kind, id(value))
    within = (*within, id(value))
    if isinstance(value, Mapping):
        return (kind, {(key.__class__, key): _comparable_copy(each, within) for key, each in value.items()})
    if isinstance(value, list | tuple):
        return (kind, [_comparable_copy(each, within) for each in value])
    if isinstance(value, AbstractSet):
        return (kind, {(each.__class__, each) for each in value})
    if isinstance(value, bytearray):
        return (kind, bytes(value))
    if _defines_own_pickling(kind):
        return (kind, _copy_by_pickling(value, within))
    slots = {name for one in kind.__mro__ for name in _slot_names(vars(one).get("__slots__", ()))}
    held = getattr(value, "__dict__", {}) | {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return (kind, {name: _comparable_copy(each, within) for name, each in held.items() if not _is_computed_attribute(kind, name)})


@cache
def _defines_own_pickling(kind: Any) -> bool:
    """Return whether the class itself defines how it is copied and pickled, as deques, arrays and paths do.

    The attributes of such an object do not show whether it was changed: they may lack its contents, or include a cache.
    """
    return any(getattr(kind, name, None) is not getattr(object, name, None) for name in ("__reduce_ex__", "__reduce__", "__getstate__"))


def _copy_by_pickling(value: Any, within: tuple[int, ...]) -> Any:
    """Return a copy of the data that the object gives to pickle, if it gives the same data twice; otherwise the object's identity."""
    try:
        once, twice = (_comparable_copy(_pickle_state(value), within) for _ in range(2))
    except RuntimeError:
        raise
    except Exception:  # the user's class may raise anything, and some objects cannot be pickled
        return id(value)
    return once if once == twice else id(value)


def _pickle_state(value: Any) -> Any:
    reduced = value.__reduce_ex__(4)
    return reduced if isinstance(reduced, str) else (*reduced[1:3], *(list(each or ()) for each in reduced[3:5]))


@cache
def _is_computed_attribute(kind: type, name: str) -> bool:
    """Return whether this attribute only stores a computed value, as a cached_property does."""
    found = next((vars(one)[name] for one in kind.__mro__ if name in vars(one)), None)
    return hasattr(found, "__get__") and not hasattr(found, "__set__")


def _slot_names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _edited_composites(state: InstanceState[Any]) -> Iterator[str]:
    """Yield the names of composite attributes that were changed.

    A composite value is built from its columns when it is read, so a changed value differs from one that is built anew.
    """
    for composite in state.mapper.composites:
        value = state.dict.get(composite.key)
        if value is not None:
            made: Any = composite.composite_class
            columns = [state.dict.get(attribute.key) for attribute in composite.props]
            try:
                fresh = _copy_or_unknown(made(*columns))
            except Exception:  # noqa: S112  # the user's class refuses to make the value, so it cannot be compared
                continue
            if not _is_unchanged(fresh, value):
                yield composite.key
