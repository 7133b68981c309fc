"""Refuses, when a reaction is declared, outcome types whose values certainly cannot be loaded from JSON again (hazard 16).

Losses that depend on the value (an instance of a subclass, a serializer that rounds, a validator that changes the value) are detected when
an outcome is stored.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from groundstate.app.type_shapes import alternatives_of, is_type_with_fields, type_name, unwrap_named_type
from groundstate.engine.rows import outcome_json
from groundstate.values.errors import DeclarationError

_RUN_OUT = (collections.abc.Iterable, collections.abc.Iterator, collections.abc.Generator, collections.abc.AsyncIterable)
_SERIALIZERS = ("PlainSerializer", "WrapSerializer")


def check_survives_json(annotation: Any, what: str) -> None:
    """Raise DeclarationError, with the cure, if a part of the type cannot be loaded from JSON again, whatever its value."""
    _TypeWalk(what).check_annotation(annotation, "", serialized=False)


@dataclass
class _TypeWalk:
    """A walk through all parts of one type, such as the fields of a dataclass and the items of a list.

    The argument `serialized` of its methods says whether the part is written by a serializer of the user's own. Such a part is not refused,
    since its type does not tell what the serializer writes.
    """

    what: str
    # The annotations that were checked already, by their id(). Each is kept as a value, so that no other object gets its id.
    seen: dict[tuple[int, bool], Any] = field(default_factory=dict)

    def check_annotation(self, annotation: Any, path: str, *, serialized: bool) -> None:
        if (id(annotation), serialized) in self.seen or isinstance(annotation, str | bytes | int):
            return
        self.seen[id(annotation), serialized] = annotation
        serialized = serialized or any(type(one).__name__ in _SERIALIZERS for one in getattr(annotation, "__metadata__", ()))
        for member in alternatives_of(annotation):
            self._check_type(member, path, serialized=serialized)

    def _check_type(self, kind: Any, path: str, *, serialized: bool) -> None:
        origin = typing.get_origin(kind) or kind
        if not serialized:
            self._check_type_without_fields(kind, origin, path)
        if origin is Literal:
            return
        for inner in typing.get_args(kind):
            self.check_annotation(inner, path, serialized=serialized)
        if isinstance(origin, type):
            for name, annotation, by_hand in self._check_fields(origin, path):
                self.check_annotation(annotation, f"{path}.{name}" if path else name, serialized=serialized or by_hand)

    def _check_type_without_fields(self, kind: Any, origin: Any, path: str) -> None:
        if any(origin is one for one in _RUN_OUT):
            self._refuse(path, f"{type_name(kind)} is read once, and would be used up when it is written down", "make it a list")
        if hasattr(origin, "get_secret_value"):
            cure = "give the field a serializer that writes what is needed, or leave the secret out of the outcome"
            self._refuse(path, f"{type_name(kind)} is written as asterisks", cure)
        if origin is Literal or isinstance(kind, enum.EnumType):
            self._check_enum_or_literal_values(kind, origin, path)
        given = typing.get_args(kind)
        if given and _is_mapping(origin):
            self._check_mapping_keys(given[0], path)

    def _check_enum_or_literal_values(self, kind: Any, origin: Any, path: str) -> None:
        """Try each value of an enum or a Literal, and refuse the type if a value cannot be loaded from JSON again."""
        for value in typing.get_args(kind) if origin is Literal else origin:
            if not outcome_json.can_be_kept_as_json(kind, value):
                self._refuse(
                    path, f"{value!r} of {type_name(kind)} does not come back from JSON", "give it a text or a number as its value"
                )

    def _check_mapping_keys(self, keys: Any, path: str) -> None:
        """Refuse a mapping if its keys cannot be told apart or loaded again, since JSON writes all keys as texts."""
        kinds = [unwrap_named_type(one) for one in alternatives_of(keys)]
        cure = "make it a list of dataclasses"
        for kind in kinds:
            origin = typing.get_origin(kind) or kind
            if origin is type(None) or is_type_with_fields(origin) or (isinstance(origin, type) and issubclass(origin, tuple | frozenset)):
                self._refuse(path, f"keys of type {type_name(kind)} are written as texts that cannot be read again", cure)
            if isinstance(origin, type) and issubclass(origin, enum.Enum):
                for value in origin:
                    if not outcome_json.can_be_kept_as_json(dict[origin, int], {value: 1}):  # type: ignore[valid-type]  # `origin` is an enum of the user's
                        self._refuse(path, f"the key {value!r} does not come back from JSON", cure)
        if len(kinds) > 1 and not all(kind is str or _is_text_literal(kind) for kind in kinds):
            self._refuse(path, f"keys of types {' and '.join(map(type_name, kinds))} are written as the same texts", cure)

    def _check_fields(self, kind: type, path: str) -> Iterator[tuple[str, Any, bool]]:
        """Yield a triple for each field of the class: its name, its annotation, and whether a serializer of the class writes it.

        Refuse the class if a field would be lost, because it is not written to JSON or not read from JSON.
        """
        decorators = getattr(kind, "__pydantic_decorators__", None)
        whole = bool(decorators is not None and decorators.model_serializers)
        by_hand = {name for one in decorators.field_serializers.values() for name in one.info.fields} if decorators is not None else set()
        for one in _fields_of(kind):
            where = f"{path}.{one.name}" if path else one.name
            if one.excluded and not whole:
                self._refuse(where, "it is left out of the JSON (exclude=True)", "keep it, or return it in another type that has it not")
            if one.given_once:
                cure = "make it a field, or give it a default with which the rest comes back"
                self._refuse(where, f"{type_name(kind)} cannot be made again without it, and it is no field (InitVar)", cure)
            if not one.init and not _runs_code_at_creation(kind):
                cure = "make it init=True, or set it in __post_init__ from the other fields"
                self._refuse(where, "it is written, and not read again (init=False)", cure)
            yield one.name, one.annotation, whole or one.name in by_hand or "*" in by_hand

    def _refuse(self, path: str, why: str, cure: str) -> None:
        of = f"{path} of an outcome" if path else "an outcome"
        raise DeclarationError(f"{self.what}: {of} would not come back from JSON as it was: {why}. {cure[0].upper()}{cure[1:]}")


def _is_mapping(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Mapping)


def _is_text_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal and all(type(value) is str for value in typing.get_args(kind))


def _runs_code_at_creation(kind: type) -> bool:
    """Whether the class runs code when an instance is made, which may set fields that are not passed as arguments."""
    decorators = getattr(kind, "__pydantic_decorators__", None)
    return hasattr(kind, "__post_init__") or bool(decorators is not None and decorators.model_validators)


@dataclass(frozen=True)
class _Field:
    name: str
    annotation: Any
    excluded: bool = False
    init: bool = True
    given_once: bool = False  # whether the field is an InitVar without a default


def _fields_of(kind: type) -> Iterator[_Field]:
    if hasattr(kind, "model_fields"):
        for name, info in kind.model_fields.items():
            annotation = typing.Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
            yield _Field(name, annotation, excluded=info.exclude is True)
        return
    try:
        hints = typing.get_type_hints(kind, include_extras=True) if _has_fields(kind) else {}
    except Exception:  # noqa: BLE001 - an annotation may name a local variable of the function that defines the class
        hints = dict(getattr(kind, "__annotations__", {}))
    declared = getattr(kind, "__dataclass_fields__", {})
    stored = {one.name for one in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set(hints)
    for name, hint in hints.items():
        one = declared.get(name)
        default: Any = dataclasses.MISSING if one is None else one.default
        infos: list[Any] = [info for info in (*getattr(hint, "__metadata__", ()), default) if hasattr(info, "exclude")]
        if isinstance(hint, dataclasses.InitVar):
            none = default is dataclasses.MISSING and (one is None or one.default_factory is dataclasses.MISSING)
            required = none or any(info.is_required() for info in infos)
            yield _Field(name, hint.type, given_once=required)
        elif name in stored:
            yield _Field(name, hint, any(info.exclude is True for info in infos), init=one is None or one.init)


def _has_fields(kind: type) -> bool:
    return is_type_with_fields(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
