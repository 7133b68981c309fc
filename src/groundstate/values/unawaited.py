"""Tells whether a user's function gave back something that was still to be awaited or iterated, as where `await` was forgotten."""

from __future__ import annotations

import inspect
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any


def unawaited(value: Any) -> str | None:
    """Return in words what this value is if it is still to be awaited or iterated; None for any other value.

    A coroutine that was not started is closed, so that Python does not warn of it as well. What its function did before is not known.
    """
    kind = type(value)  # `isinstance` would ask the value itself, which may be a proxy
    if issubclass(kind, CoroutineType):
        if inspect.getcoroutinestate(value) == inspect.CORO_CREATED:
            value.close()
        return f"the coroutine {value.__qualname__} that was never awaited"
    if issubclass(kind, GeneratorType | AsyncGeneratorType):
        return f"the generator {value.__qualname__} that was never iterated"
    if hasattr(kind, "__await__"):
        return f"an awaitable of type {kind.__name__} that was not awaited"
    return None
