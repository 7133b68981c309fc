"""Plants a fault in the engine for the duration of a block: a function with some words of its source replaced. Changes no file."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Change:
    """In `owner.name` these words become those. Raises AssertionError where they do not stand there once: then the engine has changed."""

    owner: Any
    name: str
    old: str
    new: str


@contextmanager
def planted(*changes: Change) -> Iterator[None]:
    """While the block runs, the engine has these faults."""
    with ExitStack() as stack:
        for owner, name in dict.fromkeys((change.owner, change.name) for change in changes):
            some = [change for change in changes if (change.owner, change.name) == (owner, name)]
            stack.enter_context(mock.patch.object(owner, name, _mutant(owner, name, some)))
        yield


def _mutant(owner: Any, name: str, changes: Sequence[Change]) -> Any:
    original = inspect.getattr_static(owner, name)
    while hasattr(original, "__wrapped__"):
        original = original.__wrapped__
    original = getattr(original, "func", original)  # of a cached_property
    original = getattr(original, "fget", original)  # of a property
    source = textwrap.dedent(inspect.getsource(original))
    for change in changes:
        assert source.count(change.old) == 1, f"{change.old!r} stands {source.count(change.old)} times in {name}: plant it anew"
        source = source.replace(change.old, change.new)
    module = sys.modules[original.__module__]
    made: dict[str, Any] = {}
    code = compile("from __future__ import annotations\n" + source, str(module.__file__), "exec")
    exec(code, vars(module), made)
    mutant = made[name]
    if hasattr(mutant, "__set_name__"):
        mutant.__set_name__(owner, name)
    return mutant
