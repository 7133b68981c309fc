"""Checks whether outcomes of a type can be kept as JSON and loaded again unchanged (hazard 16). Looks only at types."""

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

from groundstate.app import lossy_outcomes
from groundstate.app.signature import Unresolved, bare, members
from groundstate.app.type_shapes import alternatives_of, fields_of, is_model, is_root, name_of, without_names
from groundstate.values.errors import DeclarationError

_NUMBERS = (int, float)
_TEXTS = (str, bytes, uuid.UUID, datetime, date, time, timedelta, Decimal)
_PLAIN = (bool, *_NUMBERS, *_TEXTS, type(None))
_CURE = "make it of dataclasses, pydantic models, enums and plain values"


def check(annotation: Any, what: str) -> Any:
    """Return the outcome's type. Raises DeclarationError, with the cure, if JSON cannot keep its values and give them back unchanged.

    An outcome that the handler cannot take is kept in the attempt's row, and is given to the handler again when a person retries the
    attempt.
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
    lossy_outcomes.check(annotation, what)
    return annotation


def _check_by_pydantic(annotation: Any, what: str) -> None:
    import pydantic  # noqa: PLC0415 - the import takes 0.1 s, and is not needed for plain outcomes

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
    seen[id(annotation)] = annotation  # a reference that keeps the annotation alive, so that its id is not used again
    alternatives = alternatives_of(annotation)
    for one, other in itertools.permutations(alternatives, 2):
        if _json_is_ambiguous(one, other):
            raise DeclarationError(
                f"{what}: an outcome {name_of(one)} that was kept as JSON could come back as {name_of(other)}: give each of them a field"
                " that tells,"
                f' such as `kind: Literal["{name_of(one).lower()}"] = "{name_of(one).lower()}"`'
            )
    for member in alternatives:
        for inner in [*typing.get_args(bare(member)), *(kind for kind, _ in fields_of(typing.get_origin(member) or member).values())]:
            if not isinstance(inner, (str, int, bytes)) and typing.get_origin(member) is not Literal:
                _check_unions(inner, what, seen)


def _json_is_ambiguous(one: Any, other: Any) -> bool:
    """Whether JSON that was written for type `one` can be read as type `other` as well."""
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
        return not any(_json_kinds_are_disjoint(ours[name][0], theirs[name][0]) for name in ours)
    return kinds != {"object"} or not _is_told_from_dict(one, other)


def _is_told_from_dict(one: Any, other: Any) -> bool:
    """Whether JSON shows which of two types was written, if one is a dict and the other has fields.

    It does if a field that is always present has a kind of JSON value that the dict's values cannot have.
    """
    if typing.is_typeddict(one) or typing.is_typeddict(other):
        return True  # a TypedDict is a dict at run time, so that nothing is mistaken
    fields, mapping = (fields_of(one), other) if is_model(one) and not is_root(one) else (fields_of(other), one)
    values = typing.get_args(mapping)[-1:]
    written = is_model(one)  # if the type with fields is the one that is kept, all of its fields are written
    return any(_json_kinds_are_disjoint(kind, value) for kind, required in fields.values() if required or written for value in values)


_AS_THEY_ARE = (str, int, float)  # JSON has each of these: in a union pydantic prefers them to types that it builds from such values


def _literals_apart(one: Any, other: Any) -> bool:
    first, second = _values(one), _values(other)
    return first is not None and second is not None and not first & second


def _values(one: Any) -> set[Any] | None:
    if typing.get_origin(one) is Literal:
        return {value.value if isinstance(value, enum.Enum) else value for value in typing.get_args(one)}
    if isinstance(one, type) and issubclass(one, enum.Enum):
        return {member.value for member in one}
    return None


def _json_kinds_are_disjoint(one: Any, other: Any) -> bool:
    """Whether no value of one field's type can be a value of the other's in JSON."""
    ours, theirs = alternatives_of(one), alternatives_of(other)
    return all(not (_kinds(a) & _kinds(b)) or _literals_apart(a, b) for a in ours for b in theirs)


def _kinds(one: Any) -> set[str]:
    """Return the kinds of JSON that values of this type are written as, such as {"text"} or {"object"}."""
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
    """Refuse a handler whose annotation lacks a type that the call, or its lookup, returns. Looks only at plain classes.

    what: the name of the function that returns the types, for error messages: the reaction's call or the lookup of its call.
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
