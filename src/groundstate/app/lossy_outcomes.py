"""Refuses outcome types whose values JSON surely cannot give back, when a reaction is declared, and names the cure (hazard 16).

What only a value shows (a subclass, a serializer that rounds, a validator that changes it) is found when an outcome is kept.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from groundstate.app.type_shapes import alternatives_of, is_model, name_of, without_names
from groundstate.engine.rows import outcome_json
from groundstate.values.errors import DeclarationError

_RUN_OUT = (collections.abc.Iterable, collections.abc.Iterator, collections.abc.Generator, collections.abc.AsyncIterable)
_SERIALIZERS = ("PlainSerializer", "WrapSerializer")


def check(annotation: Any, what: str) -> None:
    """Raise DeclarationError if a part of the type cannot be loaded from JSON again, whatever its value."""
    _TypeWalk(what).at(annotation, "", serialized=False)


@dataclass
class _TypeWalk:
    """A walk through all parts of one type. The argument `serialized` of its methods is True below a serializer of the user's own.

    The type does not tell what such a serializer writes, so these parts are not refused.
    """

    what: str
    seen: dict[tuple[int, bool], Any] = field(default_factory=dict)  # the values keep annotations alive, so that no id is used twice

    def at(self, annotation: Any, path: str, *, serialized: bool) -> None:
        if (id(annotation), serialized) in self.seen or isinstance(annotation, str | bytes | int):
            return
        self.seen[id(annotation), serialized] = annotation
        serialized = serialized or any(type(one).__name__ in _SERIALIZERS for one in getattr(annotation, "__metadata__", ()))
        for member in alternatives_of(annotation):
            self._one(member, path, serialized=serialized)

    def _one(self, kind: Any, path: str, *, serialized: bool) -> None:
        origin = typing.get_origin(kind) or kind
        if not serialized:
            self._plain(kind, origin, path)
        if origin is Literal:
            return
        for inner in typing.get_args(kind):
            self.at(inner, path, serialized=serialized)
        if isinstance(origin, type):
            for name, annotation, by_hand in self._fields(origin, path):
                self.at(annotation, f"{path}.{name}" if path else name, serialized=serialized or by_hand)

    def _plain(self, kind: Any, origin: Any, path: str) -> None:
        if any(origin is one for one in _RUN_OUT):
            self._refuse(path, f"{name_of(kind)} is read once, and would be used up when it is written down", "make it a list")
        if hasattr(origin, "get_secret_value"):
            cure = "give the field a serializer that writes what is needed, or leave the secret out of the outcome"
            self._refuse(path, f"{name_of(kind)} is written as asterisks", cure)
        if origin is Literal or isinstance(kind, enum.EnumType):
            self._values(kind, origin, path)
        given = typing.get_args(kind)
        if given and _is_mapping(origin):
            self._keys(given[0], path)

    def _values(self, kind: Any, origin: Any, path: str) -> None:
        """Refuse an enum or a Literal if one of its values, each of which is tried, does not come back from JSON."""
        for value in typing.get_args(kind) if origin is Literal else origin:
            if not outcome_json.comes_back(kind, value):
                self._refuse(path, f"{value!r} of {name_of(kind)} does not come back from JSON", "give it a text or a number as its value")

    def _keys(self, keys: Any, path: str) -> None:
        """Refuse a mapping whose keys cannot be told apart or read again once they are texts, as all keys in JSON are."""
        kinds = [without_names(one) for one in alternatives_of(keys)]
        cure = "make it a list of dataclasses"
        for kind in kinds:
            origin = typing.get_origin(kind) or kind
            if origin is type(None) or is_model(origin) or (isinstance(origin, type) and issubclass(origin, tuple | frozenset)):
                self._refuse(path, f"keys of type {name_of(kind)} are written as texts that cannot be read again", cure)
            if isinstance(origin, type) and issubclass(origin, enum.Enum):
                for value in origin:
                    if not outcome_json.comes_back(dict[origin, int], {value: 1}):  # type: ignore[valid-type]  # `origin` is an enum of the user's
                        self._refuse(path, f"the key {value!r} does not come back from JSON", cure)
        if len(kinds) > 1 and not all(kind is str or _is_text_literal(kind) for kind in kinds):
            self._refuse(path, f"keys of types {' and '.join(map(name_of, kinds))} are written as the same texts", cure)

    def _fields(self, kind: type, path: str) -> Iterator[tuple[str, Any, bool]]:
        """Yield each field's name, its annotation, and whether a serializer of the class writes it. Refuse fields that are lost in JSON."""
        decorators = getattr(kind, "__pydantic_decorators__", None)
        whole = bool(decorators is not None and decorators.model_serializers)
        by_hand = {name for one in decorators.field_serializers.values() for name in one.info.fields} if decorators is not None else set()
        for one in _fields_of(kind):
            where = f"{path}.{one.name}" if path else one.name
            if one.excluded and not whole:
                self._refuse(where, "it is left out of the JSON (exclude=True)", "keep it, or return it in another type that has it not")
            if one.given_once:
                cure = "make it a field, or give it a default with which the rest comes back"
                self._refuse(where, f"{name_of(kind)} cannot be made again without it, and it is no field (InitVar)", cure)
            if not one.init and not _is_made_whole(kind):
                cure = "make it init=True, or set it in __post_init__ from the other fields"
                self._refuse(where, "it is written, and not read again (init=False)", cure)
            yield one.name, one.annotation, whole or one.name in by_hand or "*" in by_hand

    def _refuse(self, path: str, why: str, cure: str) -> None:
        of = f"{path} of an outcome" if path else "an outcome"
        raise DeclarationError(f"{self.what}: {of} would not come back as it was where it was kept: {why}. {cure[0].upper()}{cure[1:]}")


def _is_mapping(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Mapping)


def _is_text_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal and all(type(value) is str for value in typing.get_args(kind))


def _is_made_whole(kind: type) -> bool:
    """Whether the class runs code when an instance is made, which may set fields that are no arguments."""
    decorators = getattr(kind, "__pydantic_decorators__", None)
    return hasattr(kind, "__post_init__") or bool(decorators is not None and decorators.model_validators)


@dataclass(frozen=True)
class _Field:
    name: str
    annotation: Any
    excluded: bool = False
    init: bool = True
    given_once: bool = False  # True for an InitVar without a default


def _fields_of(kind: type) -> Iterator[_Field]:
    if hasattr(kind, "model_fields"):
        for name, info in kind.model_fields.items():
            annotation = typing.Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
            yield _Field(name, annotation, excluded=info.exclude is True)
        return
    try:
        hints = typing.get_type_hints(kind, include_extras=True) if _has_fields(kind) else {}
    except Exception:  # noqa: BLE001 - an annotation may name a local of the function around the class
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
    return is_model(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
