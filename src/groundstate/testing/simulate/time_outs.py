"""Finds out how a user's own call reacts to a time-out, with a stand-in for its client and without the external service.

A call that reports a time-out as 'surely not done' would be made twice. Neither a type checker nor a test without time-outs finds that
mistake.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self, TypeGuard

from groundstate.app.validate_not_done import is_timeout_name
from groundstate.rules.specs import CallSpec

ROUNDS = 50  # an async call that is not done after this many turns of the event loop waits for something other than the stand-in
DEPTH = 4  # how many levels of containers and objects in the client's arguments are searched for the key

Fence = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class Ended:
    """How a user's call ended after a time-out of its client: the exception that it raised, or what it returned."""

    met: str  # name of the exception class with which the client timed out
    raised: BaseException | None
    returned: Any = None


class _AnotherRequest(BaseException):
    """Raised if the call makes a second request after the time-out: the stand-in cannot know the answer to it."""


class ClientStandIn:
    """A client that accepts any attribute and any method call. A method call with the idempotency key in its arguments times out."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def __getattr__(self, name: str) -> Self:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *given: Any, **named: Any) -> Self:
        """Accept the method call and return this client, or raise the time-out if the arguments contain the key."""
        self._request.raise_if_key_is_given((given, named))
        return self

    def __getitem__(self, _key: object) -> Self:
        return self

    def __await__(self) -> Generator[None, None, Self]:
        yield from ()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...


class Request:
    """The one request that a call makes. It is recognised by the idempotency key in its arguments, and raises `error`."""

    def __init__(self, key: str, error: BaseException) -> None:
        self.timed_out = False
        self._key = key
        self.error = error

    def raise_if_key_is_given(self, given: object) -> None:
        """Raise the time-out if these arguments contain the key. Raise _AnotherRequest if the time-out was raised before."""
        if self.timed_out:
            raise _AnotherRequest
        if _contains_key(given, self._key, DEPTH):
            self.timed_out = True
            raise self.error


def results_after_time_outs(call: CallSpec, run: Callable[[Any], Any], key: str, fence: Fence) -> Iterator[Ended]:
    """Yield one Ended for each time-out that the call's client could raise: for Python's TimeoutError, and for the classes named in the
    function's source.

    run: a function that calls the user's function with the given client.
    fence: a function that returns a context in which nothing reaches external services.
    The call is run only if it takes both a client and a key. Otherwise a stand-in could not keep it from having a real effect.
    """
    if {"client", "key"} <= set(call.function.wants.values()):
        kinds: list[type[Exception]] = [TimeoutError, *_time_out_classes_in(call)]
        for kind in dict.fromkeys(kinds):
            request = Request(key, _time_out_error_of_class(kind))
            ended = _run_with_time_out(call, run, request, fence)
            if request.timed_out and ended is not None:
                yield ended


def _time_out_classes_in(call: CallSpec) -> list[type[Exception]]:
    """Return the time-out classes that the call's function names in its source, by themselves or as an attribute of a module."""
    function: Any = inspect.unwrap(call.function.call)
    code = getattr(function, "__code__", None)
    if code is None:
        return []
    known = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
    named = [known[name] for name in (*code.co_names, *code.co_freevars) if name in known]
    within = [getattr(module, name, None) for module in named if isinstance(module, ModuleType) for name in code.co_names]
    return list(filter(_is_time_out_class, [*named, *within]))


def _is_time_out_class(one: object) -> TypeGuard[type[Exception]]:
    """Return whether the object is an exception class for a time-out that can happen after the request was sent."""
    return isinstance(one, type) and issubclass(one, Exception) and is_timeout_name(one.__name__)


def _time_out_error_of_class(kind: type[Exception]) -> Exception:
    with suppress(Exception):
        return kind()
    with suppress(Exception):
        return kind("the lab lets it time out")
    return kind.__new__(kind)


def _run_with_time_out(call: CallSpec, run: Callable[[Any], Any], request: Request, fence: Fence) -> Ended | None:
    met = type(request.error).__name__
    try:
        if call.function.is_async:
            return Ended(met, None, asyncio.run(_await_for_limited_rounds(run, request, fence)))
        with fence(call.function.name):
            return Ended(met, None, run(ClientStandIn(request)))
    except (
        _AnotherRequest,
        asyncio.CancelledError,
        AssertionError,
    ):  # the fence raises AssertionError if the call would reach a service
        return None
    except Exception as error:  # noqa: BLE001  # whatever the user's function raises is how it ended
        return Ended(met, error)


async def _await_for_limited_rounds(run: Callable[[Any], Any], request: Request, fence: Fence) -> Any:
    """Await the call, and return its result. If it is not done after ROUNDS turns of the event loop, cancel it."""
    task = asyncio.ensure_future(run(ClientStandIn(request)))
    with fence("the call"):
        for _ in range(ROUNDS):
            await asyncio.sleep(0)
            if task.done():
                return task.result()
    task.cancel()
    with suppress(BaseException):
        await task
    raise asyncio.CancelledError


def _contains_key(given: object, key: str, depth: int) -> bool:
    if isinstance(given, str):
        return key in given
    if isinstance(given, bytes):
        return key.encode() in given
    if depth == 0:
        return False
    if isinstance(given, Mapping):
        return any(_contains_key(one, key, depth - 1) for pair in given.items() for one in pair)
    if isinstance(given, list | tuple | set | frozenset):
        return any(_contains_key(one, key, depth - 1) for one in given)
    fields = getattr(given, "__dict__", None)
    return isinstance(fields, dict) and _contains_key(fields, key, depth - 1)
