"""Checks the arguments of decorators such as `@bank.call(...)`: wrong or missing ones raise an error that shows an example."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from groundstate.values.errors import DeclarationError

P = ParamSpec("P")
R = TypeVar("R")


def with_example(example: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a method so that arguments that it does not take raise a DeclarationError with this example, instead of a TypeError."""

    def around(method: Callable[P, R]) -> Callable[P, R]:
        takes = inspect.signature(method)

        @functools.wraps(method)
        def checked(*arguments: P.args, **options: P.kwargs) -> R:
            try:
                takes.bind(*arguments, **options)
            except TypeError as error:
                given = [getattr(one, "__name__", repr(one)) for one in arguments[1:]]
                raise DeclarationError(f"{method.__name__}({', '.join(given)}): {error}: write {example} above the function") from None
            return method(*arguments, **options)

        return checked

    return around
