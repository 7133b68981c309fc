"""Compares values by their type and all their contents, and not by `==`. For example, it compares an outcome with the value that is loaded
from the outcome's JSON.

`==` is not exact enough: `True == 1` and `1.0 == Decimal("1.00")` are true, and an object's own `__eq__` may ignore attributes that a
handler reads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime, time
from decimal import Decimal
from functools import cached_property
from typing import Any

_PYDANTIC = ("__pydantic_extra__", "__pydantic_private__")
_NOT_STATE = ("__dict__", "__weakref__", "__pydantic_fields_set__", *_PYDANTIC)


def exactly_equal(one: Any, other: Any) -> bool:
    """Return whether the two values are the same for every handler.

    The comparison ignores the name of a time zone, the order of keys, and which fields of a model were set. NaN equals NaN here. An int
    equals a float of the same value, since Python's type hints accept an int where a float is annotated.
    """
    if one is other:
        return True
    if type(one) is not type(other):
        return type(one) is int and type(other) is float and bool(one == other)
    if isinstance(one, float):
        same = bool(one == other) and math.copysign(1, one) == math.copysign(1, other)
        return same or (math.isnan(one) and math.isnan(other))
    if isinstance(one, Decimal):
        return bool(one.as_tuple() == other.as_tuple())
    if isinstance(one, datetime | time):
        return bool(one.replace(tzinfo=None) == other.replace(tzinfo=None)) and one.utcoffset() == other.utcoffset()
    if isinstance(one, Mapping):
        return _mappings_exactly_equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(exactly_equal, one, other))
    if isinstance(one, AbstractSet):
        there = {element: element for element in other}
        return len(one) == len(other) and all(element in there and exactly_equal(element, there[element]) for element in one)
    if _is_compared_by_attributes(one):
        return _mappings_exactly_equal(attributes_of(one), attributes_of(other))
    return bool(one == other)


def _mappings_exactly_equal(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    names = {name: name for name in other}
    return len(one) == len(other) and all(
        name in names and exactly_equal(name, names[name]) and exactly_equal(value, other[names[name]]) for name, value in one.items()
    )


def _is_compared_by_attributes(one: Any) -> bool:
    """Return whether this value is compared by its attributes. True for dataclasses, pydantic models, and objects whose class has no
    `__eq__` of its own.
    """
    plain = dataclasses.is_dataclass(one) or hasattr(type(one), "__pydantic_validator__")
    has_own: Any = type(one).__eq__
    return plain or (has_own is object.__eq__ and bool(attributes_of(one)))


def attributes_of(one: Any) -> dict[str, Any]:
    """Return a dict from name to value of the object's attributes, including private ones. Values of cached_property are left out, since
    they are computed again.
    """
    found = {name: value for name, value in getattr(one, "__dict__", {}).items() if not _is_cached_property(type(one), name)}
    for kind in type(one).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            mangled = f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
            if mangled not in _NOT_STATE and hasattr(one, mangled):
                found[mangled] = getattr(one, mangled)
    for name in _PYDANTIC:
        found.update({f"{name}.{key}": value for key, value in (getattr(one, name, None) or {}).items()})
    return found


def _is_cached_property(kind: type, name: str) -> bool:
    return any(isinstance(base.__dict__.get(name), cached_property) for base in kind.__mro__)
