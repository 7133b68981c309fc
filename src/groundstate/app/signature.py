"""Reads the parameters of a user's function: the first parameters get arguments by position, the others get what their annotations ask for.
Calls no function.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from groundstate.rules.specs import Function
from groundstate.values.answers import IdempotencyKey, Occurrence, ReactionContext
from groundstate.values.errors import DeclarationError

if sys.version_info >= (3, 14):
    import annotationlib

_CALL = "__call__"  # the method that runs if an object of the user's own class is called like a function
_PACKAGE = __name__.partition(".")[0]
_SUPPLIES: dict[Any, str] = {
    Session: "session",
    ReactionContext: "ctx",
    IdempotencyKey: "key",
    Occurrence: "occurrence",
    Sequence[IdempotencyKey]: "keys",
}
_SHOWN = {
    "session": "session: Session",
    "ctx": "ctx: ReactionContext",
    "key": "key: IdempotencyKey",
    "occurrence": "occurrence: Occurrence",
    "keys": "keys: Sequence[IdempotencyKey]",
    "client": "client",
}
_NO_SESSION = " A call runs outside of any transaction: read the other rows that it needs by `prepare` or `load=`."
_BY_TEXT = {kind.__name__: supply for kind, supply in _SUPPLIES.items() if isinstance(kind, type)} | {"Sequence[IdempotencyKey]": "keys"}


class Unresolved:
    """An annotation with a name that does not exist when the function is declared. `text` is the annotation as written."""

    def __init__(self, text: str) -> None:
        self.text = text


@dataclass(frozen=True)
class Signature:
    """The parameters and the return type of a user's function, as `read_signature` found them."""

    function: Function
    what: str  # how error messages name the function, such as "the handler paid"
    first: tuple[Any, ...]  # the annotation of each parameter that is passed by position, or inspect.Parameter.empty if it has none
    returns: Any


def read_signature(call: Any, what: str, first: Sequence[str], supplied: Sequence[str]) -> Signature:
    """Return the signature of a function, after checking that groundstate can call it.

    Its first parameters take the arguments that `first` describes, by position. Each other parameter must have a default, or an annotation
    that stands for one of the values named in `supplied`.

    Raises:
        DeclarationError: the function cannot be called in this way; the message says which parameters it may have.
    """
    if not callable(call):
        raise DeclarationError(f"{what} is no function but {call!r}")
    what = f"{what} {name_of(call)}"
    declared = _error_if_declared(call)
    if declared is not None:
        raise DeclarationError(f"{what} is {declared}")
    if _is_generator_function(call):
        raise DeclarationError(f"{what} is a generator function, and its body would never run: return instead of yield")
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        raise DeclarationError(f"{what} has no signature that can be read: wrap it in a `def`") from None
    hints = _resolve_annotations(call)
    by_position, rest = _split_positional_parameters(parameters, len(first))
    if by_position is None:
        raise DeclarationError(
            f"{what} must take {_join_by_and(first)} by position, and then by annotation what it wants of {_show_parameters(supplied)}"
        )
    wants = {one.name: supply for one in rest if (supply := _value_name_of_parameter(one, hints.get(one.name), what, supplied)) is not None}
    annotations = tuple(hints.get(one.name, inspect.Parameter.empty) for one in by_position)
    return Signature(Function(call, wants, is_async(call)), what, annotations, hints.get("return", inspect.Parameter.empty))


def _error_if_declared(call: Any) -> str | None:
    """Return an error text with the cure if the function is, or wraps, a declared call or reaction. Returns None for a plain function."""
    while call is not None:
        said: str | None = getattr(type(call), "DECLARED_AS", None)
        if said is not None:
            return said
        call = call.func if isinstance(call, functools.partial) else getattr(call, "__wrapped__", None)
    return None


def name_of(call: Any) -> str:
    """Return the name of a callable, or its repr if it has no name."""
    return str(getattr(call, "__name__", None) or repr(call))


def is_async(call: Any) -> bool:
    """Whether calling the function returns something that must be awaited."""
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, _CALL, None))


def without_annotated(annotation: Any) -> Any:
    """Return X for `Annotated[X, ...]`, and any other annotation as it is."""
    return annotation.__origin__ if typing.get_origin(annotation) is typing.Annotated else annotation


def union_members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, each without `Annotated`. For any other type, return a tuple with just this type."""
    annotation = without_annotated(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(inner for one in typing.get_args(annotation) for inner in union_members(one))
    return (annotation,)


def _is_generator_function(call: Any) -> bool:
    return any(
        test(one) for one in (call, getattr(call, _CALL, None)) for test in (inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    )


def _split_positional_parameters(
    parameters: Sequence[inspect.Parameter], count: int
) -> tuple[list[inspect.Parameter] | None, list[inspect.Parameter]]:
    """Return a pair. Its first item has the parameters that take the first `count` positional arguments; it is None if the function takes
    fewer. Its second item has the other parameters.
    """
    taken: list[inspect.Parameter] = []
    left = list(parameters)
    while len(taken) < count:
        if not left or left[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
            return None, left
        taken.append(left[0])
        if left[0].kind is not inspect.Parameter.VAR_POSITIONAL:
            del left[0]
    return taken, left


def _value_name_of_parameter(one: inspect.Parameter, annotation: Any, what: str, supplied: Sequence[str]) -> str | None:
    if one.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        return None
    supply = "client" if one.name == "client" and "client" in supplied else _value_name_of_annotation(annotation)
    if supply in supplied and one.kind is not inspect.Parameter.POSITIONAL_ONLY:
        return supply
    if supply is None and one.default is not inspect.Parameter.empty:
        return None
    if supply in supplied:
        raise DeclarationError(f"{what}: {one.name!r} is supplied by name, but can be passed only by position: remove the '/'")
    raise DeclarationError(_message_for_unsupplied_parameter(one, annotation, what, supplied))


def _message_for_unsupplied_parameter(one: inspect.Parameter, annotation: Any, what: str, supplied: Sequence[str]) -> str:
    hint = ""
    kinds = [kind for kind in union_members(annotation) if isinstance(kind, type)]
    if one.name == "client":
        hint = " Give the service a client, as in ExternalService(name, client=lambda: httpx.AsyncClient())."
    elif any(issubclass(kind, Session) for kind in kinds):
        hint = _NO_SESSION if "session" not in supplied else " The session is a sqlalchemy.orm.Session: annotate it so."
    elif any(kind.__name__ in ("AsyncSession", "async_scoped_session") for kind in kinds):
        hint = " Inside a transaction of ours nothing is awaited: take a sqlalchemy.orm.Session."
    elif one.name in ("session", "ctx", "key", "keys", "occurrence") and annotation is None:
        hint = f" Annotate it: {_SHOWN[one.name]}."
    may_take = _show_parameters(supplied)
    return f"{what}: nobody supplies its parameter {one.name!r}.{hint} By annotation it may take {may_take}; give others a default"


def _value_name_of_annotation(annotation: Any) -> str | None:
    if isinstance(annotation, Unresolved):
        last_names = re.sub(r"\s|[\w.]+\.(?=\w)", "", annotation.text)
        return _BY_TEXT.get(re.sub(r"^None\||\|None$", "", last_names))
    for kind in union_members(annotation):
        for known, supply in _SUPPLIES.items():
            if kind == known:
                return supply
    return None


def _resolve_annotations(call: Any) -> dict[str, Any]:
    """Return the annotation of each parameter, by name. Each annotation is resolved separately, so that an unknown name in one of them does
    not affect the others.
    """
    function = _unwrap_function(call)
    names = _names_in_enclosing_scopes(function)
    found: dict[str, Any] = {}
    for name, annotation in _raw_annotations(function).items():
        found[name] = _resolve_annotation(annotation, getattr(function, "__globals__", {}), names)
    return found


def _raw_annotations(function: Any) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        return dict(annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF))
    return dict(getattr(function, "__annotations__", {}))


def _resolve_annotation(annotation: Any, module: dict[str, Any], around: dict[str, Any]) -> Any:
    def carrier() -> None: ...

    carrier.__annotations__ = {"it": annotation}
    try:
        return typing.get_type_hints(carrier, module, around, include_extras=True)["it"]
    except Exception:  # noqa: BLE001 - an annotation is any expression, and may raise anything
        return Unresolved(annotation if isinstance(annotation, str) else getattr(annotation, "__forward_arg__", repr(annotation)))


def _unwrap_function(call: Any) -> Any:
    while isinstance(call, functools.partial):
        call = call.func
    call = inspect.unwrap(call)
    if isinstance(call, types.MethodType):
        return call.__func__
    if not isinstance(call, types.FunctionType) and not isinstance(call, type):
        return getattr(type(call), _CALL, call)
    return call


def _names_in_enclosing_scopes(function: Any) -> dict[str, Any]:
    """Return the variables in the function's closure, and the local variables of the code that declares the function.

    An annotation may name a model that was defined there.
    """
    names: dict[str, Any] = {}
    frame = inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == _PACKAGE:
        frame = frame.f_back
    while frame is not None and frame.f_code.co_name != "<module>" and len(names) < _MANY:
        names = {**frame.f_locals, **names}
        frame = frame.f_back if "<locals>" in frame.f_code.co_qualname else None
    closure = getattr(function, "__closure__", None) or ()
    for name, cell in zip(getattr(function, "__code__").co_freevars if closure else (), closure, strict=False):  # noqa: B009
        try:
            names[name] = cell.cell_contents
        except ValueError:
            continue
    return names


_MANY = 1000  # number of names after which no more scopes are searched, so that the search is never slow


def _join_by_and(names: Sequence[str]) -> str:
    return " and ".join(names)


def _show_parameters(supplied: Sequence[str]) -> str:
    return ", ".join(_SHOWN[one] for one in supplied) or "nothing"


def function_name(call: Callable[..., Any], what: str) -> str:
    """Return a function's name for tables and idempotency keys. Raises DeclarationError if the function has no name, like a lambda."""
    name = name_of(call)
    if name == "<lambda>" or not hasattr(call, "__name__") or not name.strip("_"):
        raise DeclarationError(f"{what} {name} has no name of its own, and keys are made of it: give name='...'")
    return name
