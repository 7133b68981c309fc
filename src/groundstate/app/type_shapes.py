"""Finds the alternatives and fields that an outcome's type is made of, and its name for messages. Looks only at types; refuses none."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from groundstate.app.signature import bare, members


def alternatives_of(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, also of a union that is named by a NewType or a `type` statement."""
    found = members(without_names(annotation))
    return tuple(inner for one in found for inner in ((one,) if without_names(one) is one else alternatives_of(one)))


def without_names(one: Any) -> Any:
    """Return the type behind a NewType, a `type` statement or `Annotated`."""
    one = bare(one)
    if isinstance(one, typing.NewType):
        return without_names(one.__supertype__)
    return without_names(one.__value__) if type(one).__name__ == "TypeAliasType" else one


def is_root(one: Any) -> bool:
    """Whether the type is a root model of pydantic, whose JSON is that of its one value."""
    return bool(getattr(one, "__pydantic_root_model__", False))


def is_model(one: Any) -> bool:
    """Whether the type has fields: it is a dataclass, a TypedDict or a pydantic model."""
    return isinstance(one, type) and (dataclasses.is_dataclass(one) or typing.is_typeddict(one) or hasattr(one, "model_fields"))


def fields_of(one: Any) -> dict[str, tuple[Any, bool]]:
    """Return the fields of a dataclass, TypedDict or pydantic model: by name, the field's type and whether it is required."""
    if not is_model(one):
        return {}
    if hasattr(one, "model_fields"):
        return {name: (field.annotation, field.is_required()) for name, field in one.model_fields.items()}
    try:
        hints = typing.get_type_hints(one)
    except Exception:  # noqa: BLE001 - an annotation may name a local of the function around the class
        hints = dict(one.__annotations__)
    if typing.is_typeddict(one):
        return {name: (kind, name in one.__required_keys__) for name, kind in hints.items()}
    return {
        field.name: (hints.get(field.name, Any), field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
        for field in dataclasses.fields(one)
        if field.init
    }


def name_of(annotation: Any) -> str:
    """Return the name of a type for messages."""
    return annotation.__name__ if isinstance(annotation, type) and typing.get_origin(annotation) is None else str(annotation)
