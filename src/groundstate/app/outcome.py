"""Whether an outcome of this type can be kept as JSON and comes back as it was (hazard 16). Looks at types alone."""

from __future__ import annotations

import enum
import inspect
import itertools
import typing
import uuid
from collections.abc import Collection, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal

from groundstate.app import told
from groundstate.app.shapes import alternatives_of, fields_of, is_model, is_root, name_of, without_names
from groundstate.app.signature import Unresolved, bare, members
from groundstate.values.errors import DeclarationError

_NUMBERS = (int, float)
_TEXTS = (str, bytes, uuid.UUID, datetime, date, time, timedelta, Decimal)
_PLAIN = (bool, *_NUMBERS, *_TEXTS, type(None))
_CURE = "make it of dataclasses, pydantic models, enums and plain values"


def check(annotation: Any, what: str) -> Any:
    """The outcome's type. Raises DeclarationError for one that cannot go to JSON and back, with the cure.

    An outcome is kept in the attempt's row where the handler cannot take it, and a person has it handed to the handler again.
    """
    if annotation is inspect.Parameter.empty:
        raise DeclarationError(
            f"{what}: annotate its second argument with the outcome's type, as in `outcome: Receipt | Declined`: where the handler fails,"
            " the outcome is kept as JSON and comes back as that type"
        )
    if isinstance(annotation, Unresolved):
        raise DeclarationError(
            f"{what}: the outcome's type {annotation.text!r} cannot be found when it is declared: import it outside of `if"
            " TYPE_CHECKING:`, and"
            " define it above"
        )
    for member in alternatives_of(annotation):
        if member is Any or member is object:
            raise DeclarationError(f"{what}: an outcome of type {name_of(member)} would come back as a dict where it was kept: {_CURE}")
    if not all(member in _PLAIN for member in members(annotation)):
        _check_by_pydantic(annotation, what)
    _check_unions(annotation, what, {})
    told.check(annotation, what)
    return annotation


def _check_by_pydantic(annotation: Any, what: str) -> None:
    import pydantic  # noqa: PLC0415 - 0.1 s, and most apps' outcomes are plain or use it anyway

    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(annotation)
        adapter.json_schema(mode="serialization")
        adapter.json_schema(mode="validation")
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise DeclarationError(f"{what}: an outcome of type {name_of(annotation)} cannot be kept as JSON ({first}): {_CURE}") from error


def _check_unions(annotation: Any, what: str, seen: dict[int, Any]) -> None:
    if id(annotation) in seen:
        return
    seen[id(annotation)] = annotation  # kept alive, so that no other one gets its number
    alternatives = alternatives_of(annotation)
    for one, other in itertools.permutations(alternatives, 2):
        if _taken_for(one, other):
            raise DeclarationError(
                f"{what}: an outcome {name_of(one)} that was kept as JSON could come back as {name_of(other)}: give each of them a field"
                " that tells,"
                f' such as `kind: Literal["{name_of(one).lower()}"] = "{name_of(one).lower()}"`'
            )
    for member in alternatives:
        for inner in [*typing.get_args(bare(member)), *(kind for kind, _ in fields_of(typing.get_origin(member) or member).values())]:
            if not isinstance(inner, (str, int, bytes)) and typing.get_origin(member) is not Literal:
                _check_unions(inner, what, seen)


def _taken_for(one: Any, other: Any) -> bool:
    """Whether the JSON of one is as good a JSON of the other."""
    kinds = _kinds(one)
    if one is other or kinds != _kinds(other) or len(kinds) != 1 or _literals_apart(one, other):
        return False
    if typing.get_origin(one) is Literal or one in _AS_THEY_ARE:
        return False
    first, second = (typing.get_origin(kind) or kind for kind in (one, other))
    if first is second:
        return False
    if kinds == {"object"} and is_model(first) and is_model(second) and not (is_root(first) or is_root(second)):
        ours, theirs = fields_of(first), fields_of(second)
        if any(required and name not in ours for name, (_, required) in theirs.items()) or not set(ours) <= set(theirs):
            return False
        return not any(_apart(ours[name][0], theirs[name][0]) for name in ours)
    return kinds != {"object"} or not _is_told_from_dict(one, other)


def _is_told_from_dict(one: Any, other: Any) -> bool:
    """Of a dict and what has fields: whether a field that is always there is of a kind that the dict's values are not."""
    if typing.is_typeddict(one) or typing.is_typeddict(other):
        return True  # it is a dict
    fields, mapping = (fields_of(one), other) if is_model(one) and not is_root(one) else (fields_of(other), one)
    values = typing.get_args(mapping)[-1:]
    written = is_model(one)  # all of its fields are, where it is the one that is kept
    return any(_apart(kind, value) for kind, required in fields.values() if required or written for value in values)


_AS_THEY_ARE = (str, int, float)  # JSON has a value of each; in a union pydantic tries them before types that it builds from such a value


def _literals_apart(one: Any, other: Any) -> bool:
    first, second = _values(one), _values(other)
    return first is not None and second is not None and not first & second


def _values(one: Any) -> set[Any] | None:
    if typing.get_origin(one) is Literal:
        return {value.value if isinstance(value, enum.Enum) else value for value in typing.get_args(one)}
    if isinstance(one, type) and issubclass(one, enum.Enum):
        return {member.value for member in one}
    return None


def _apart(one: Any, other: Any) -> bool:
    """Whether no value of one field can be one of the other."""
    ours, theirs = alternatives_of(one), alternatives_of(other)
    return all(not (_kinds(a) & _kinds(b)) or _literals_apart(a, b) for a in ours for b in theirs)


def _kinds(one: Any) -> set[str]:
    """Which kinds of JSON a value of this type becomes."""
    one = without_names(one)
    if is_root(one):
        return {kind for inner in alternatives_of(one.model_fields["root"].annotation) for kind in _kinds(inner)}
    values = _values(one)
    if values is not None:
        return {kind for value in values for kind in _kinds(type(value))}
    if one is bool or one is type(None):
        return {str(one)}
    origin = typing.get_origin(one) or one
    if not isinstance(origin, type):
        return {"text", "number", "array", "object"}
    if issubclass(origin, _NUMBERS):
        return {"number"}
    if issubclass(origin, _TEXTS):
        return {"text"}
    if is_model(origin) or issubclass(origin, Mapping):
        return {"object"}
    return {"array"} if issubclass(origin, Collection) else {"text", "number", "array", "object"}


def check_covers(handled: Any, called: Any, what: str) -> None:
    """Refuses a handler that is not annotated for all that the call returns, or its find. Looks at plain classes alone.

    what: the reaction, and which of the two.
    """
    ours = members(handled)
    if called is Any or not all(isinstance(one, type) and typing.get_origin(one) is None for one in (*ours, *members(called))):
        return
    for one in members(called):
        if one in ours or (one is int and float in ours):
            continue
        if issubclass(one, tuple(ours)):
            raise DeclarationError(
                f"{what} can return {name_of(one)}, which would come back as another type where it was kept, since the handler's"
                f" outcome is annotated {name_of(handled)}: annotate it with {name_of(one)}"
            )
        raise DeclarationError(f"{what} can return {name_of(one)}, and the handler's outcome is annotated {name_of(handled)} only: add it")
