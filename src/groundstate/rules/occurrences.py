"""Builds the text of a record's occurrence, and decides which column types have a canonical text or may hold an empty one beside NULL.
Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.types import ARRAY, JSON, PickleType, TypeDecorator

from groundstate.rules.specs import ReactionSpec
from groundstate.values import keys


def text_of(spec: ReactionSpec, values: Sequence[object]) -> str:
    """Return the canonical text of an occurrence with these values; different values have different texts."""
    return keys.occurrence_text(values, [may_be_empty(one.type) for one in spec.occurrence])


def may_be_empty(kind: Any) -> bool:
    """Return whether a column of this type could hold an empty text beside NULL. For times and numbers '' has always stood for NULL."""
    return python_type(kind) in (str, bytes)


def has_one_text(kind: Any) -> bool:
    """Return whether every value of a column of this type has a canonical text; values of lists, ranges and JSON have none."""
    while not isinstance(kind, JSON | ARRAY | PickleType):
        if kind.__visit_name__ == "HSTORE" or kind.__visit_name__.endswith("RANGE"):  # by name: PostgreSQL's dialect is not imported
            return False
        if not isinstance(kind, TypeDecorator):
            return True
        if tells_its_values(kind):
            return issubclass(_own_python_type(kind), keys.WITH_TEXT)
        kind = kind.impl_instance
    return False


def tells_its_values(kind: Any) -> bool:
    """Return whether the type declares the Python type of its values; a TypeDecorator rarely does."""
    return _own_python_type(kind) is not object


def _own_python_type(kind: Any) -> type:
    try:
        found: type = kind.python_type
    except NotImplementedError:
        return object
    return found


def python_type(kind: Any) -> type:
    """Return the Python type of the values of a column of this type; `str` where the type does not declare one."""
    while True:
        found = _own_python_type(kind)
        if found is not object:
            return found
        if not isinstance(kind, TypeDecorator):
            return str
        kind = kind.impl_instance  # a TypeDecorator that declares no Python type holds what its underlying type holds
