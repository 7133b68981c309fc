"""The text of a record's occurrence: which columns' NULL has a text of its own, and what older code wrote. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.types import ARRAY, JSON, PickleType, TypeDecorator

from groundstate.rules.reaction import ReactionSpec
from groundstate.values import keys


def text_of(spec: ReactionSpec, values: Sequence[object]) -> str:
    """The canonical text of an occurrence with these values, no two of which have one."""
    return keys.occurrence_text(values, [may_be_empty(one.type) for one in spec.occurrence])


def may_be_empty(kind: Any) -> bool:
    """Whether such a column could hold an empty text beside NULL. Of a time or a number NULL has always been written as ''."""
    return python_type(kind) in (str, bytes)


def has_one_text(kind: Any) -> bool:
    """Whether the values of such a column have a canonical text each: those of a list, of a range or of JSON have none."""
    while not isinstance(kind, JSON | ARRAY | PickleType):
        if kind.__visit_name__ == "HSTORE" or kind.__visit_name__.endswith("RANGE"):  # PostgreSQL's: nothing of it is loaded here
            return False
        if not isinstance(kind, TypeDecorator):
            return True
        if tells_its_values(kind):
            return issubclass(_own_python_type(kind), keys.WITH_TEXT)
        kind = kind.impl_instance
    return False


def tells_its_values(kind: Any) -> bool:
    """Whether the type says of what Python type its values are: one that is decorated rarely does."""
    return _own_python_type(kind) is not object


def _own_python_type(kind: Any) -> type:
    try:
        found: type = kind.python_type
    except NotImplementedError:
        return object
    return found


def python_type(kind: Any) -> type:
    """What a column of this type holds; text where nothing tells."""
    while True:
        found = _own_python_type(kind)
        if found is not object:
            return found
        if not isinstance(kind, TypeDecorator):
            return str
        kind = kind.impl_instance  # a decorated type says nothing of its own: what it decorates does
