"""Makes decorators such as `@bank.call(...)` raise an error that shows an example if their arguments are wrong or missing."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from groundstate.values.errors import DeclarationError

P = ParamSpec("P")
R = TypeVar("R")


def show_example_on_misuse(example: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator for methods. If a decorated method is called with wrong or missing arguments, it raises a DeclarationError that
    shows this example, instead of a TypeError.
    """

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        takes = inspect.signature(method)

        @functools.wraps(method)
        def call_checked(*arguments: P.args, **options: P.kwargs) -> R:
            try:
                takes.bind(*arguments, **options)
            except TypeError as error:
                given = [getattr(one, "__name__", repr(one)) for one in arguments[1:]]
                raise DeclarationError(f"{method.__name__}({', '.join(given)}): {error}: write {example} above the function") from None
            return method(*arguments, **options)

        return call_checked

    return decorate
