"""The read-only record that a call is given: detached, loaded, and refusing writes (rules.md 12)."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any, cast

from groundstate.values.errors import StateRefused


def take(record: Any) -> Any:
    """Makes the record refuse writes; its session is emptied before it goes out. Relationships must have been loaded before."""
    object.__setattr__(record, "__class__", _read_only(cast("Hashable", type(record))))
    return record


@cache
def _read_only(model: Any) -> type:
    def refuse(self: Any, name: str, value: object) -> None:
        if name.startswith("_sa_"):
            object.__setattr__(self, name, value)
            return
        raise StateRefused(
            f"{model.__name__}.{name} was set inside a call: a call gets a read-only snapshot, and what it writes would be lost. "
            "Return it as the outcome, and let the handler write it"
        )

    def refuse_delete(self: Any, name: str) -> None:
        refuse(self, name, None)

    # Made by `type` itself: a declarative metaclass would map it, and SQLModel's would build fields for it.
    names = {"__setattr__": refuse, "__delattr__": refuse_delete, "__abstract__": True, "__module__": model.__module__, "__slots__": ()}
    made: type = type.__new__(type(model), model.__name__, (model,), names)
    return made
