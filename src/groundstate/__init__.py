"""Event-driven applications whose state is in your own tables: pull the plug, and know what is left to do.

Everything public is here, and is imported when it is first asked for: `import groundstate` imports nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundstate.app.app import App
    from groundstate.app.children import every_child
    from groundstate.app.not_done import BOTOCORE, HTTPX, REQUESTS, SMTPLIB
    from groundstate.app.outside import Call, Outside
    from groundstate.app.reaction import Plain, Reaction
    from groundstate.app.store import Store
    from groundstate.engine.inside_call import call_writes
    from groundstate.rules.cron import Cron
    from groundstate.rules.due import Due, after
    from groundstate.rules.order import InOrder
    from groundstate.rules.policy import InDoubt, Retry, again, ask, hold, same_key
    from groundstate.rules.rate import Rate
    from groundstate.store.tables import Instant
    from groundstate.values.answers import Absent, Busy, Failure, Key, Moment, NotDone, Occurrence, Unknown
    from groundstate.values.errors import (
        Conflict,
        DeclarationError,
        DeclarationWarning,
        GroundstateError,
        NotFound,
        NotInitialised,
        StateRefused,
        Stopped,
        StoreRefused,
        TransportDown,
        TransportRefused,
        WentBack,
    )

_HOMES = {
    "app.app": ("App",),
    "app.children": ("every_child",),
    "app.not_done": ("BOTOCORE", "HTTPX", "REQUESTS", "SMTPLIB"),
    "app.outside": ("Call", "Outside"),
    "app.reaction": ("Plain", "Reaction"),
    "app.store": ("Store",),
    "engine.inside_call": ("call_writes",),
    "rules.cron": ("Cron",),
    "rules.due": ("Due", "after"),
    "rules.order": ("InOrder",),
    "rules.policy": ("InDoubt", "Retry", "again", "ask", "hold", "same_key"),
    "rules.rate": ("Rate",),
    "store.tables": ("Instant",),
    "values.answers": ("Absent", "Busy", "Failure", "Key", "Moment", "NotDone", "Occurrence", "Unknown"),
    "values.errors": (
        "Conflict",
        "DeclarationError",
        "DeclarationWarning",
        "GroundstateError",
        "NotFound",
        "NotInitialised",
        "StateRefused",
        "Stopped",
        "StoreRefused",
        "TransportDown",
        "TransportRefused",
        "WentBack",
    ),
}
_HOME_OF = {name: f"groundstate.{home}" for home, names in _HOMES.items() for name in names}

__all__ = [
    "BOTOCORE",
    "HTTPX",
    "REQUESTS",
    "SMTPLIB",
    "Absent",
    "App",
    "Busy",
    "Call",
    "Conflict",
    "Cron",
    "DeclarationError",
    "DeclarationWarning",
    "Due",
    "Failure",
    "GroundstateError",
    "InDoubt",
    "InOrder",
    "Instant",
    "Key",
    "Moment",
    "NotDone",
    "NotFound",
    "NotInitialised",
    "Occurrence",
    "Outside",
    "Plain",
    "Rate",
    "Reaction",
    "Retry",
    "StateRefused",
    "Stopped",
    "Store",
    "StoreRefused",
    "TransportDown",
    "TransportRefused",
    "Unknown",
    "WentBack",
    "after",
    "again",
    "ask",
    "call_writes",
    "every_child",
    "hold",
    "same_key",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'groundstate' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
