"""Whether an outcome of this type can be kept as JSON and comes back as it was (hazard 16). Looks at types alone."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import itertools
import typing
import uuid
from collections.abc import Collection
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal

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
    for member in members(annotation):
        if member is Any or member is object:
            raise DeclarationError(f"{what}: an outcome of type {_name(member)} would come back as a dict where it was kept: {_CURE}")
    if not all(member in _PLAIN for member in members(annotation)):
        _check_by_pydantic(annotation, what)
    _check_unions(annotation, what, set())
    return annotation


def _check_by_pydantic(annotation: Any, what: str) -> None:
    import pydantic  # noqa: PLC0415 - 0.1 s, and most apps' outcomes are plain or use it anyway

    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(annotation)
        adapter.json_schema(mode="serialization")
        adapter.json_schema(mode="validation")
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise DeclarationError(f"{what}: an outcome of type {_name(annotation)} cannot be kept as JSON ({first}): {_CURE}") from error


def _check_unions(annotation: Any, what: str, seen: set[int]) -> None:
    if id(annotation) in seen:
        return
    seen.add(id(annotation))
    alternatives = members(annotation)
    for one, other in itertools.permutations(alternatives, 2):
        if _taken_for(one, other):
            raise DeclarationError(
                f"{what}: an outcome {_name(one)} that was kept as JSON could come back as {_name(other)}: give each of them a field"
                " that tells,"
                f' such as `kind: Literal["{_name(one).lower()}"] = "{_name(one).lower()}"`'
            )
    for member in alternatives:
        for inner in [*typing.get_args(bare(member)), *(kind for kind, _ in _fields(member).values())]:
            if not isinstance(inner, (str, int, bytes)) and typing.get_origin(member) is not Literal:
                _check_unions(inner, what, seen)


def _taken_for(one: Any, other: Any) -> bool:
    """Whether the JSON of one is as good a JSON of the other."""
    if one is other or not (_kinds(one) & _kinds(other)):
        return False
    ours, theirs = _fields(one), _fields(other)
    if _is_model(one) and _is_model(other):
        if any(required and name not in ours for name, (_, required) in theirs.items()) or not set(ours) <= set(theirs):
            return False
        return not any(_apart(ours[name][0], theirs[name][0]) for name in ours)
    texts = _kinds(one) == {"text"} and _kinds(other) == {"text"}
    return texts and one not in (str, Literal) and not _literals_apart(one, other) and _never_text(one)


def _never_text(one: Any) -> bool:
    """Whether a value of it is not the same as its text, so that coming back as another text type matters."""
    return typing.get_origin(one) is not Literal and one is not str


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
    ours, theirs = members(one), members(other)
    return all(not (_kinds(a) & _kinds(b)) or _literals_apart(a, b) for a in ours for b in theirs)


def _kinds(one: Any) -> set[str]:
    """Which kinds of JSON a value of this type becomes."""
    one = bare(one)
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
    if _is_model(one) or issubclass(origin, dict):
        return {"object"}
    return {"array"} if issubclass(origin, Collection) else {"text", "number", "array", "object"}


def _is_model(one: Any) -> bool:
    return isinstance(one, type) and (dataclasses.is_dataclass(one) or typing.is_typeddict(one) or hasattr(one, "model_fields"))


def _fields(one: Any) -> dict[str, tuple[Any, bool]]:
    """Field -> (type, whether it must be there), of a dataclass, TypedDict or pydantic model."""
    if not _is_model(one):
        return {}
    if hasattr(one, "model_fields"):
        return {name: (field.annotation, field.is_required()) for name, field in one.model_fields.items()}
    try:
        hints = typing.get_type_hints(one)
    except Exception:  # noqa: BLE001 - names local to where it was defined; compared by name alone then
        hints = dict(one.__annotations__)
    if typing.is_typeddict(one):
        return {name: (kind, name in one.__required_keys__) for name, kind in hints.items()}
    return {
        field.name: (hints.get(field.name, Any), field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
        for field in dataclasses.fields(one)
        if field.init
    }


def check_covers(handled: Any, called: Any, what: str) -> None:
    """Refuses a handler that is not annotated for all that the call returns. Looks at plain classes alone."""
    ours = members(handled)
    if not all(isinstance(one, type) and typing.get_origin(one) is None for one in (*ours, *members(called))):
        return
    for one in members(called):
        if not issubclass(one, tuple(ours)) and not (one is int and float in ours):
            raise DeclarationError(
                f"{what}: its call can return {_name(one)}, and the handler's outcome is annotated {_name(handled)} only: add it"
            )


def _name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) and typing.get_origin(annotation) is None else str(annotation)
