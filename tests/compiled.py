"""Statements are compiled once for all tests of a process, and not once for the engine of each test.

A third of what the tests computed was SQLAlchemy compiling the same statements for one fresh engine after the other. An application has few
engines, and never meets that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Dialect
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.util import LRUCache

KEPT = 3000  # statements: those of a file and its neighbours

_PLAIN = (str, int, float, bool, tuple, frozenset, type(None))
# What each dialect makes for itself, of the rest of its settings, some of it when it is first asked for; and listeners to its events, which
# change nothing of what is compiled.
_MADE = {"identifier_preparer", "type_compiler", "type_compiler_instance", "_psycopg_adapters_map", "_type_memos"}
_MADE |= {"_bind_typing_render_casts", "_supports_statement_cache", "insert_executemany_returning", "dispatch", "_has_events"}


@contextmanager
def once_for_all_engines() -> Iterator[None]:
    """While it lasts, what was compiled for one engine is used by each other one whose dialect is set up alike."""
    cache: LRUCache[Any, Any] = LRUCache(KEPT)
    alike: dict[tuple[Any, ...], Dialect] = {}
    known: WeakKeyDictionary[Dialect, Dialect] = WeakKeyDictionary()
    compile_ = ClauseElement._compile_w_cache

    def first_of_its_kind(dialect: Dialect) -> Dialect:
        found = known.get(dialect)
        if found is None:
            known[dialect] = found = alike.setdefault(_set_up(dialect), dialect)
        return found

    def shared(self: ClauseElement, dialect: Dialect, *, compiled_cache: Any, **other: Any) -> Any:
        if compiled_cache is None:
            return compile_(self, dialect, compiled_cache=None, **other)
        return compile_(self, first_of_its_kind(dialect), compiled_cache=cache, **other)

    with mock.patch.object(ClauseElement, "_compile_w_cache", shared):
        yield


def _set_up(dialect: Dialect) -> tuple[Any, ...]:
    """All by which a dialect compiles and converts: modules and functions count by which they are."""
    settings = ((name, value if isinstance(value, _PLAIN) else id(value)) for name, value in vars(dialect).items() if name not in _MADE)
    return (type(dialect), *sorted(settings, key=lambda one: one[0]))
