"""Detects that a user's function returned something that should have been awaited or iterated first, as when `await` was forgotten."""

from __future__ import annotations

import inspect
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any


def describe_unawaited(value: Any) -> str | None:
    """Return a phrase that describes the value, if it is a coroutine, a generator or another awaitable. Returns None for any other value.

    A coroutine that was not started is closed, so that Python does not warn about it as well.
    """
    kind = type(value)  # `isinstance` also trusts `__class__`, which a proxy may set
    if issubclass(kind, CoroutineType):
        if inspect.getcoroutinestate(value) == inspect.CORO_CREATED:
            value.close()
        return f"the coroutine {value.__qualname__} that was never awaited"
    if issubclass(kind, GeneratorType | AsyncGeneratorType):
        return f"the generator {value.__qualname__} that was never iterated"
    if hasattr(kind, "__await__"):
        return f"an awaitable of type {kind.__name__} that was not awaited"
    return None
