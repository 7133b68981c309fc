"""Reads what a user's function takes: its first arguments by position, and the rest by annotation. Calls no function."""

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

_CALL = "__call__"  # the method of a callable object that is no function
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
_NO_SESSION = " A call runs outside of any transaction: what it needs of other rows is read by `prepare` or `load=`."
_BY_TEXT = {kind.__name__: supply for kind, supply in _SUPPLIES.items() if isinstance(kind, type)} | {"Sequence[IdempotencyKey]": "keys"}


class Unresolved:
    """An annotation that names something that cannot be found when the function is declared. `text` is the annotation as written."""

    def __init__(self, text: str) -> None:
        self.text = text


@dataclass(frozen=True)
class Signature:
    """The parameters and the return type of a user's function, as `read` found them."""

    function: Function
    what: str  # how error messages name the function, such as "the handler paid"
    first: tuple[Any, ...]  # resolved annotations of its first arguments; inspect.Parameter.empty for one without
    returns: Any


def read(call: Any, what: str, first: Sequence[str], supplied: Sequence[str]) -> Signature:
    """Return the signature of a function that takes `first` by position, and by annotation may take any of `supplied`.

    Raises:
        DeclarationError: the function cannot be called in this way; the message says what it may take.
    """
    if not callable(call):
        raise DeclarationError(f"{what} is no function but {call!r}")
    what = f"{what} {name_of(call)}"
    declared = _declared_as(call)
    if declared is not None:
        raise DeclarationError(f"{what} is {declared}")
    if _is_generator(call):
        raise DeclarationError(f"{what} is a generator function, and its body would never run: return instead of yield")
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        raise DeclarationError(f"{what} has no signature that can be read: wrap it in a `def`") from None
    hints = _hints(call)
    by_position, rest = _split_positional_parameters(parameters, len(first))
    if by_position is None:
        raise DeclarationError(f"{what} must take {_listed(first)} by position, and then by annotation what it wants of {_shown(supplied)}")
    wants = {
        one.name: supply for one in rest if (supply := _supplied_name_for_parameter(one, hints.get(one.name), what, supplied)) is not None
    }
    annotations = tuple(hints.get(one.name, inspect.Parameter.empty) for one in by_position)
    return Signature(Function(call, wants, is_async(call)), what, annotations, hints.get("return", inspect.Parameter.empty))


def _declared_as(call: Any) -> str | None:
    """Return an error text with the cure for a function that is a call or a reaction already, or wraps one.

    Returns None for a plain function.
    """
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


def bare(annotation: Any) -> Any:
    """Return the annotation without a surrounding `Annotated`."""
    return annotation.__origin__ if typing.get_origin(annotation) is typing.Annotated else annotation


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, without `Annotated`. For another type, return a tuple of the type alone."""
    annotation = bare(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(inner for one in typing.get_args(annotation) for inner in members(one))
    return (annotation,)


def _is_generator(call: Any) -> bool:
    return any(
        test(one) for one in (call, getattr(call, _CALL, None)) for test in (inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    )


def _split_positional_parameters(
    parameters: Sequence[inspect.Parameter], count: int
) -> tuple[list[inspect.Parameter] | None, list[inspect.Parameter]]:
    """Return the parameters that take the first `count` positional arguments, and the rest. The first list is None if too few can take
    them.
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


def _supplied_name_for_parameter(one: inspect.Parameter, annotation: Any, what: str, supplied: Sequence[str]) -> str | None:
    if one.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        return None
    supply = "client" if one.name == "client" and "client" in supplied else _supply_of(annotation)
    if supply in supplied and one.kind is not inspect.Parameter.POSITIONAL_ONLY:
        return supply
    if supply is None and one.default is not inspect.Parameter.empty:
        return None
    if supply in supplied:
        raise DeclarationError(f"{what}: what is supplied is given by name, and {one.name!r} takes it by position alone: remove the '/'")
    raise DeclarationError(_nobody_supplies(one, annotation, what, supplied))


def _nobody_supplies(one: inspect.Parameter, annotation: Any, what: str, supplied: Sequence[str]) -> str:
    hint = ""
    kinds = [kind for kind in members(annotation) if isinstance(kind, type)]
    if one.name == "client":
        hint = " Give the service a client, as in ExternalService(name, client=lambda: httpx.AsyncClient())."
    elif any(issubclass(kind, Session) for kind in kinds):
        hint = _NO_SESSION if "session" not in supplied else " What is supplied is a sqlalchemy.orm.Session: annotate it so."
    elif any(kind.__name__ in ("AsyncSession", "async_scoped_session") for kind in kinds):
        hint = " Inside a transaction of ours nothing is awaited: take a sqlalchemy.orm.Session."
    elif one.name in ("session", "ctx", "key", "keys", "occurrence") and annotation is None:
        hint = f" Annotate it: {_SHOWN[one.name]}."
    return f"{what}: nobody supplies its parameter {one.name!r}.{hint} By annotation it may take {_shown(supplied)}; give others a default"


def _supply_of(annotation: Any) -> str | None:
    if isinstance(annotation, Unresolved):
        last_names = re.sub(r"\s|[\w.]+\.(?=\w)", "", annotation.text)
        return _BY_TEXT.get(re.sub(r"^None\||\|None$", "", last_names))
    for kind in members(annotation):
        for known, supply in _SUPPLIES.items():
            if kind == known:
                return supply
    return None


def _hints(call: Any) -> dict[str, Any]:
    """Return the annotations, each resolved by itself, so that one that cannot be found does not spoil the others."""
    function = _innermost(call)
    names = _names_around(function)
    found: dict[str, Any] = {}
    for name, annotation in _annotations(function).items():
        found[name] = _resolved(annotation, getattr(function, "__globals__", {}), names)
    return found


def _annotations(function: Any) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        return dict(annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF))
    return dict(getattr(function, "__annotations__", {}))


def _resolved(annotation: Any, module: dict[str, Any], around: dict[str, Any]) -> Any:
    def carrier() -> None: ...

    carrier.__annotations__ = {"it": annotation}
    try:
        return typing.get_type_hints(carrier, module, around, include_extras=True)["it"]
    except Exception:  # noqa: BLE001 - an annotation is any expression, and may raise anything
        return Unresolved(annotation if isinstance(annotation, str) else getattr(annotation, "__forward_arg__", repr(annotation)))


def _innermost(call: Any) -> Any:
    while isinstance(call, functools.partial):
        call = call.func
    call = inspect.unwrap(call)
    if isinstance(call, types.MethodType):
        return call.__func__
    if not isinstance(call, types.FunctionType) and not isinstance(call, type):
        return getattr(type(call), _CALL, call)
    return call


def _names_around(function: Any) -> dict[str, Any]:
    """Return the variables of the function's closure and the locals around its declaration, so that models made inside a function are
    found.
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


_MANY = 1000  # names: the search stops here, since no function that declares a handler has more locals


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)


def _shown(supplied: Sequence[str]) -> str:
    return ", ".join(_SHOWN[one] for one in supplied) or "nothing"


def function_name(call: Callable[..., Any], what: str) -> str:
    """Return a function's name, to be kept in tables and idempotency keys. Raises DeclarationError if it has none, such as a lambda."""
    name = name_of(call)
    if name == "<lambda>" or not hasattr(call, "__name__") or not name.strip("_"):
        raise DeclarationError(f"{what} {name} has no name of its own, and keys are made of it: give name='...'")
    return name
