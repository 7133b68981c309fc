"""Makes the read-only record that a call is given: detached, loaded, and refusing writes (rules.md 12).

A value that is edited in place (a dict of JSON, a pickled object, a list of loaded records) cannot refuse the edit without being of another
type than the user's code expects. Such values are compared before and after the call, and an edit is reported.
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

    The caller removes the record from its session before it is given out. Relationships must have been loaded before.
    """
    object.__setattr__(record, "__class__", _read_only(cast("Hashable", type(record))))
    return record


@cache
def _read_only(model: Any) -> type:
    def refuse(self: Any, name: str, value: object) -> None:
        if name.startswith("_sa_"):
            object.__setattr__(self, name, value)
            return
        raise StateRefusedError(
            f"{model.__name__}.{name} was set inside a call: a call gets a read-only snapshot, and what it writes would be lost. {CURE}"
        )

    def refuse_delete(self: Any, name: str) -> None:
        refuse(self, name, None)

    # `type` itself makes the class: a declarative metaclass would map it, and SQLModel's would build fields for it.
    names = {"__setattr__": refuse, "__delattr__": refuse_delete, "__abstract__": True, "__module__": model.__module__, "__slots__": ()}
    names["__groundstate_snapshot__"] = True
    made: type = type.__new__(type(model), model.__name__, (model,), names)
    return made


# ---- edits in place --------------------------------------------------------------------------------------------------------------
@dataclass(eq=False, slots=True)
class _Before:
    """One record before the call: its path, a copy of its editable values, and the names of the attributes that counted as changed."""

    path: str
    state: InstanceState[Any]
    copies: dict[str, Any]
    changed: frozenset[str]


@dataclass(eq=False, slots=True)
class GivenSnapshot:
    """A snapshot as a call was given it, with the records that are loaded beside it."""

    records: list[_Before]

    def edited(self) -> list[str]:
        """Return the paths of the attributes that differ from what the call was given."""
        found: list[str] = []
        for one in self.records:
            names = {name for name, copy in one.copies.items() if not _same(copy, one.state.dict.get(name))}
            names |= set(one.state.committed_state) - one.changed  # a related record was set, or a list of related records edited
            names.update(_edited_composites(one.state))
            found += [f"{one.path}{name}" for name in sorted(names)]
        return found


def in_place_edit_message(what: str, names: list[str]) -> str:
    """Return the error message for edits in place. what: who made them, such as 'the call charge'."""
    return (
        f"{what} edited {', '.join(names)} of its snapshot in place: a call gets a read-only snapshot, and what it writes there is lost."
        f" {CURE}; what it changes for itself alone, it copies first"
    )


def copy_editable_values(argument: Any) -> GivenSnapshot | None:
    """Copy the editable values of a snapshot before a call. Returns None for an argument that is no snapshot, but was made by `prepare`."""
    if _is_one(cast("Hashable", type(argument))):
        return GivenSnapshot([_Before(path, state, _copies(state), frozenset(state.committed_state)) for path, state in _loaded(argument)])
    return None


@cache
def _is_one(kind: Any) -> bool:
    return "__groundstate_snapshot__" in vars(kind)


def _loaded(record: Any) -> Iterator[tuple[str, InstanceState[Any]]]:
    """Yield the record and every record that is loaded beside it, each with its path and its SQLAlchemy state."""
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


def _copies(state: InstanceState[Any]) -> dict[str, Any]:
    columns = state.mapper.column_attrs
    held = [(name, value) for name, value in state.dict.items() if value.__class__ not in _FIXED]
    return {name: _copied(value) for name, value in held if name in columns}


def _copied(value: Any) -> Any:
    try:
        return _copy(value, ())
    except RuntimeError:  # the value is nested too deeply, or another thread edits it now
        return _UNKNOWN


def _same(copy: Any, value: Any) -> bool:
    now = _copied(value)
    try:
        return copy is _UNKNOWN or now is _UNKNOWN or bool(copy == now)
    except RuntimeError:
        return True


_UNKNOWN = object()


def _copy(value: Any, within: tuple[int, ...]) -> Any:
    """Return the contents of a value as dicts, lists and pairs of a type and a plain value. Two copies are equal as long as the value is
    not edited.
    """
    kind = value.__class__
    if kind in _FIXED:
        return value if kind is str else (kind, value if value == value else None)  # noqa: PLR0124  # NaN is not equal to itself
    if isinstance(value, enum.Enum | type) or callable(value) or id(value) in within:
        return (kind, id(value))
    within = (*within, id(value))
    if isinstance(value, Mapping):
        return (kind, {(key.__class__, key): _copy(each, within) for key, each in value.items()})
    if isinstance(value, list | tuple):
        return (kind, [_copy(each, within) for each in value])
    if isinstance(value, AbstractSet):
        return (kind, {(each.__class__, each) for each in value})
    if isinstance(value, bytearray):
        return (kind, bytes(value))
    if _tells_its_state(kind):
        return (kind, _pickled(value, within))
    slots = {name for one in kind.__mro__ for name in _names(vars(one).get("__slots__", ()))}
    held = getattr(value, "__dict__", {}) | {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return (kind, {name: _copy(each, within) for name, each in held.items() if not _caches(kind, name)})


@cache
def _tells_its_state(kind: Any) -> bool:
    """Whether the class defines how it is copied and pickled, as deques, arrays and paths do.

    The attributes of such an object do not show whether it changed: contents may be missing in them, or a cache be among them.
    """
    return any(getattr(kind, name, None) is not getattr(object, name, None) for name in ("__reduce_ex__", "__reduce__", "__getstate__"))


def _pickled(value: Any, within: tuple[int, ...]) -> Any:
    """Return a copy of what the object gives to pickle if it gives the same twice; otherwise return its identity."""
    try:
        once, twice = (_copy(_reduced(value), within) for _ in range(2))
    except RuntimeError:
        raise
    except Exception:  # the class is the user's and may raise anything, or the object cannot be pickled
        return id(value)
    return once if once == twice else id(value)


def _reduced(value: Any) -> Any:
    told = value.__reduce_ex__(4)
    return told if isinstance(told, str) else (*told[1:3], *(list(each or ()) for each in told[3:5]))


@cache
def _caches(kind: type, name: str) -> bool:
    """Whether the attribute only keeps a computed value, as that of a cached_property does."""
    found = next((vars(one)[name] for one in kind.__mro__ if name in vars(one)), None)
    return hasattr(found, "__get__") and not hasattr(found, "__set__")


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _edited_composites(state: InstanceState[Any]) -> Iterator[str]:
    """Yield the names of composite attributes that were edited.

    A composite value is made of its columns when it is read; an edited one differs from what the columns would make now.
    """
    for composite in state.mapper.composites:
        value = state.dict.get(composite.key)
        if value is not None:
            made: Any = composite.composite_class
            columns = [state.dict.get(attribute.key) for attribute in composite.props]
            try:
                fresh = _copied(made(*columns))
            except Exception:  # noqa: S112  # a value that the user's class refuses to make cannot be compared
                continue
            if not _same(fresh, value):
                yield composite.key
