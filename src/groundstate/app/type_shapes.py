"""Takes an outcome's type apart into alternatives and fields, and names types in messages. It checks nothing."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from groundstate.app.signature import union_members, without_annotated


def alternatives_of(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union. A member that is a NewType or a `type` statement for another union is replaced by the members of that
    union.
    """
    found = union_members(unwrap_named_type(annotation))
    return tuple(inner for one in found for inner in ((one,) if unwrap_named_type(one) is one else alternatives_of(one)))


def unwrap_named_type(one: Any) -> Any:
    """Return the type behind a NewType, a `type` statement or `Annotated`."""
    one = without_annotated(one)
    if isinstance(one, typing.NewType):
        return unwrap_named_type(one.__supertype__)
    return unwrap_named_type(one.__value__) if type(one).__name__ == "TypeAliasType" else one


def is_root_model(one: Any) -> bool:
    """Whether the type is a RootModel of pydantic, which is written to JSON as its only value, without a field name."""
    return bool(getattr(one, "__pydantic_root_model__", False))


def is_type_with_fields(one: Any) -> bool:
    """Whether the type has fields: it is a dataclass, a TypedDict or a pydantic model."""
    return isinstance(one, type) and (dataclasses.is_dataclass(one) or typing.is_typeddict(one) or hasattr(one, "model_fields"))


def fields_of(one: Any) -> dict[str, tuple[Any, bool]]:
    """Return a dict from the name of each field of a dataclass, TypedDict or pydantic model to a pair: its type, and whether it is
    required.
    """
    if not is_type_with_fields(one):
        return {}
    if hasattr(one, "model_fields"):
        return {name: (field.annotation, field.is_required()) for name, field in one.model_fields.items()}
    try:
        hints = typing.get_type_hints(one)
    except Exception:  # noqa: BLE001 - an annotation may name a local variable of the function that defines the class
        hints = dict(one.__annotations__)
    if typing.is_typeddict(one):
        return {name: (kind, name in one.__required_keys__) for name, kind in hints.items()}
    return {
        field.name: (hints.get(field.name, Any), field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
        for field in dataclasses.fields(one)
        if field.init
    }


def type_name(annotation: Any) -> str:
    """Return the name of a type for messages."""
    return annotation.__name__ if isinstance(annotation, type) and typing.get_origin(annotation) is None else str(annotation)
