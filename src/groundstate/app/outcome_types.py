"""Checks whether outcomes of a type can be stored as JSON and loaded again unchanged (hazard 16). Only types are checked, not values."""

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
from groundstate.app.signature import Unresolved, union_members, without_annotated
from groundstate.app.type_shapes import alternatives_of, fields_of, is_root_model, is_type_with_fields, type_name, unwrap_named_type
from groundstate.values.errors import DeclarationError

_NUMBERS = (int, float)
_TEXTS = (str, bytes, uuid.UUID, datetime, date, time, timedelta, Decimal)
_PLAIN = (bool, *_NUMBERS, *_TEXTS, type(None))
_CURE = "make it of dataclasses, pydantic models, enums and plain values"


def check_outcome_type(annotation: Any, what: str) -> Any:
    """Return the outcome's type. Raises DeclarationError, with the cure, if its values cannot be stored as JSON and loaded again unchanged.

    If a handler fails, the outcome is stored as JSON in the attempt's row. When a person retries the attempt, the outcome is loaded, and
    passed to the handler again.
    """
    if annotation is inspect.Parameter.empty:
        raise DeclarationError(
            f"{what}: annotate its second argument with the outcome's type, as in `outcome: Receipt | Declined`: if the handler fails, the"
            " outcome is kept as JSON and comes back as that type"
        )
    if isinstance(annotation, Unresolved):
        raise DeclarationError(
            f"{what}: the outcome's type {annotation.text!r} cannot be found when it is declared: import it outside of `if"
            " TYPE_CHECKING:`, or define it above the handler"
        )
    for member in alternatives_of(annotation):
        if member is Any or member is object:
            raise DeclarationError(f"{what}: an outcome of type {type_name(member)} would come back as a dict from JSON: {_CURE}")
    if not all(member in _PLAIN for member in union_members(annotation)):
        _check_by_pydantic(annotation, what)
    _check_unions(annotation, what, {})
    lossy_outcomes.check_survives_json(annotation, what)
    return annotation


def _check_by_pydantic(annotation: Any, what: str) -> None:
    import pydantic  # noqa: PLC0415 - the import takes 0.1 s, and is not needed for plain outcomes

    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(annotation)
        adapter.json_schema(mode="serialization")
        adapter.json_schema(mode="validation")
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise DeclarationError(f"{what}: an outcome of type {type_name(annotation)} cannot be kept as JSON ({first}): {_CURE}") from error


def _check_unions(annotation: Any, what: str, seen: dict[int, Any]) -> None:
    if id(annotation) in seen:
        return
    seen[id(annotation)] = annotation  # a reference that keeps the annotation alive, so that its id is not used again
    alternatives = alternatives_of(annotation)
    for one, other in itertools.permutations(alternatives, 2):
        if _json_is_ambiguous(one, other):
            raise DeclarationError(
                f"{what}: an outcome {type_name(one)} that was kept as JSON could come back as {type_name(other)}: give each of them a"
                " field that tells them apart,"
                f' such as `kind: Literal["{type_name(one).lower()}"] = "{type_name(one).lower()}"`'
            )
    for member in alternatives:
        for inner in [
            *typing.get_args(without_annotated(member)),
            *(kind for kind, _ in fields_of(typing.get_origin(member) or member).values()),
        ]:
            if not isinstance(inner, (str, int, bytes)) and typing.get_origin(member) is not Literal:
                _check_unions(inner, what, seen)


def _json_is_ambiguous(one: Any, other: Any) -> bool:
    """Whether JSON that was written for type `one` can be read as type `other` as well."""
    kinds = _json_kinds(one)
    if one is other or kinds != _json_kinds(other) or len(kinds) != 1 or _literals_are_disjoint(one, other):
        return False
    if typing.get_origin(one) is Literal or one in _AS_THEY_ARE:
        return False
    first, second = (typing.get_origin(kind) or kind for kind in (one, other))
    if first is second:
        return False
    if (
        kinds == {"object"}
        and is_type_with_fields(first)
        and is_type_with_fields(second)
        and not (is_root_model(first) or is_root_model(second))
    ):
        ours, theirs = fields_of(first), fields_of(second)
        if any(required and name not in ours for name, (_, required) in theirs.items()) or not set(ours) <= set(theirs):
            return False
        return not any(_json_kinds_are_disjoint(ours[name][0], theirs[name][0]) for name in ours)
    return kinds != {"object"} or not _can_be_told_from_dict(one, other)


def _can_be_told_from_dict(one: Any, other: Any) -> bool:
    """Whether the JSON of a type with fields can be told from the JSON of a dict type.

    This is possible if some field is always written, and no value of the dict has the field's kind of JSON value, such as a number.
    """
    if typing.is_typeddict(one) or typing.is_typeddict(other):
        return True  # values of both types are dicts when loaded, so it does not matter which type is chosen
    fields, mapping = (fields_of(one), other) if is_type_with_fields(one) and not is_root_model(one) else (fields_of(other), one)
    values = typing.get_args(mapping)[-1:]
    written = is_type_with_fields(one)  # the JSON was written for type `one`: if this type has fields, its optional fields are written too
    return any(_json_kinds_are_disjoint(kind, value) for kind, required in fields.values() if required or written for value in values)


_AS_THEY_ARE = (str, int, float)  # JSON's own types: in a union, pydantic prefers them to types that must be parsed


def _literals_are_disjoint(one: Any, other: Any) -> bool:
    first, second = _literal_values(one), _literal_values(other)
    return first is not None and second is not None and not first & second


def _literal_values(one: Any) -> set[Any] | None:
    if typing.get_origin(one) is Literal:
        return {value.value if isinstance(value, enum.Enum) else value for value in typing.get_args(one)}
    if isinstance(one, type) and issubclass(one, enum.Enum):
        return {member.value for member in one}
    return None


def _json_kinds_are_disjoint(one: Any, other: Any) -> bool:
    """Whether every JSON value can stand for a value of at most one of the two types."""
    ours, theirs = alternatives_of(one), alternatives_of(other)
    return all(not (_json_kinds(a) & _json_kinds(b)) or _literals_are_disjoint(a, b) for a in ours for b in theirs)


def _json_kinds(one: Any) -> set[str]:
    """Return how values of this type are written in JSON, as a set of kinds such as {"text"} or {"object"}."""
    one = unwrap_named_type(one)
    if is_root_model(one):
        return {kind for inner in alternatives_of(one.model_fields["root"].annotation) for kind in _json_kinds(inner)}
    values = _literal_values(one)
    if values is not None:
        return {kind for value in values for kind in _json_kinds(type(value))}
    if one is bool or one is type(None):
        return {str(one)}
    origin = typing.get_origin(one) or one
    if not isinstance(origin, type):
        return {"text", "number", "array", "object"}
    if issubclass(origin, _NUMBERS):
        return {"number"}
    if issubclass(origin, _TEXTS):
        return {"text"}
    if is_type_with_fields(origin) or issubclass(origin, Mapping):
        return {"object"}
    return {"array"} if issubclass(origin, Collection) else {"text", "number", "array", "object"}


def check_handler_covers(handled: Any, called: Any, what: str) -> None:
    """Raise DeclarationError if the handler's annotation lacks a type that the reaction's call or lookup returns. Nothing is checked if one
    of these types is generic.

    what: how error messages name the function that returns the types: the call or the lookup.
    """
    ours = union_members(handled)
    if called is Any or not all(isinstance(one, type) and typing.get_origin(one) is None for one in (*ours, *union_members(called))):
        return
    for one in union_members(called):
        if one in ours or (one is int and float in ours):
            continue
        if issubclass(one, tuple(ours)):
            raise DeclarationError(
                f"{what} can return {type_name(one)}, which would come back as another type from JSON, since the handler's"
                f" outcome is annotated {type_name(handled)}: annotate it with {type_name(one)}"
            )
        raise DeclarationError(
            f"{what} can return {type_name(one)}, and the handler's outcome is annotated {type_name(handled)} only: add it"
        )
