"""Builds the text of a record's occurrence (the values that tell one round of a record from the next), and decides for which column types
that is possible. The functions are pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.types import ARRAY, JSON, PickleType, TypeDecorator

from groundstate.rules.specs import ReactionSpec
from groundstate.values import keys


def occurrence_text(spec: ReactionSpec, values: Sequence[object]) -> str:
    """Return the text of an occurrence with these values, one per occurrence column. Different values have different texts."""
    return keys.occurrence_text(values, [can_hold_empty_text(one.type) for one in spec.occurrence])


def can_hold_empty_text(kind: Any) -> bool:
    """Return whether a column of this type can hold an empty text or empty bytes. The occurrence's text must tell such an empty value from
    NULL.
    """
    return python_type(kind) in (str, bytes)


def has_canonical_text(kind: Any) -> bool:
    """Return whether each value of a column of this type has exactly one text. A list, a range or JSON can have several texts."""
    while not isinstance(kind, JSON | ARRAY | PickleType):
        if kind.__visit_name__ == "HSTORE" or kind.__visit_name__.endswith("RANGE"):  # compared by name, so that no dialect is imported
            return False
        if not isinstance(kind, TypeDecorator):
            return True
        if declares_python_type(kind):
            return issubclass(_declared_python_type(kind), keys.WITH_TEXT)
        kind = kind.impl_instance
    return False


def declares_python_type(kind: Any) -> bool:
    """Return whether the column type declares the Python type of its values. A TypeDecorator rarely does."""
    return _declared_python_type(kind) is not object


def _declared_python_type(kind: Any) -> type:
    try:
        found: type = kind.python_type
    except NotImplementedError:
        return object
    return found


def python_type(kind: Any) -> type:
    """Return the Python type of the values of a column of this type; `str` if the column type does not declare a Python type."""
    while True:
        found = _declared_python_type(kind)
        if found is not object:
            return found
        if not isinstance(kind, TypeDecorator):
            return str
        kind = kind.impl_instance  # if a TypeDecorator declares no Python type, take that of its underlying type
