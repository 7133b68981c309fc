"""groundstate runs event-driven applications whose state is in your own tables: after a crash you know what is left to do.

Every public name can be imported from here. The module that defines a name is imported when the name is first used, so that
`import groundstate` itself is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundstate import not_done
    from groundstate.app.app import App
    from groundstate.app.children import every_child
    from groundstate.app.external_service import Call, ExternalService
    from groundstate.app.lifecycle import Remaining
    from groundstate.app.reaction import Plain, Reaction
    from groundstate.app.store import ShardedStore, Store
    from groundstate.engine.health import WorkerHealth
    from groundstate.engine.rows.reaction_registry import UnacceptedReaction
    from groundstate.engine.sql.call_write_guard import call_writes
    from groundstate.engine.worker.shut_down import StopResult
    from groundstate.rules.cron import Cron
    from groundstate.rules.due import Due, after
    from groundstate.rules.in_order import InOrder
    from groundstate.rules.policy import InDoubt, Retry
    from groundstate.rules.rate import Rate
    from groundstate.store.port import StoreSettings
    from groundstate.store.tables import UtcDateTime
    from groundstate.values.answers import Absent, Failure, IdempotencyKey, NotDone, Occurrence, ReactionContext, Throttled, Unknown
    from groundstate.values.errors import (
        ConflictError,
        DeclarationError,
        DeclarationWarning,
        GroundstateError,
        NotFoundError,
        NotInitialisedError,
        StateRefusedError,
        StoppedError,
        StoreRefusedError,
        TransportDownError,
        TransportRefusedError,
        WentBackError,
    )

_HOMES = {
    "app.app": ("App",),
    "app.children": ("every_child",),
    "app.external_service": ("Call", "ExternalService"),
    "app.lifecycle": ("Remaining",),
    "app.reaction": ("Plain", "Reaction"),
    "app.store": ("ShardedStore", "Store"),
    "engine.health": ("WorkerHealth",),
    "engine.rows.reaction_registry": ("UnacceptedReaction",),
    "engine.sql.call_write_guard": ("call_writes",),
    "engine.worker.shut_down": ("StopResult",),
    "rules.cron": ("Cron",),
    "rules.due": ("Due", "after"),
    "rules.in_order": ("InOrder",),
    "rules.policy": ("InDoubt", "Retry"),
    "rules.rate": ("Rate",),
    "store.port": ("StoreSettings",),
    "store.tables": ("UtcDateTime",),
    "values.answers": ("Absent", "Throttled", "Failure", "IdempotencyKey", "ReactionContext", "NotDone", "Occurrence", "Unknown"),
    "values.errors": (
        "ConflictError",
        "DeclarationError",
        "DeclarationWarning",
        "GroundstateError",
        "NotFoundError",
        "NotInitialisedError",
        "StateRefusedError",
        "StoppedError",
        "StoreRefusedError",
        "TransportDownError",
        "TransportRefusedError",
        "WentBackError",
    ),
}
_HOME_OF = {name: f"groundstate.{home}" for home, names in _HOMES.items() for name in names}

__all__ = [
    "Absent",
    "App",
    "Call",
    "ConflictError",
    "Cron",
    "DeclarationError",
    "DeclarationWarning",
    "Due",
    "ExternalService",
    "Failure",
    "GroundstateError",
    "IdempotencyKey",
    "InDoubt",
    "InOrder",
    "NotDone",
    "NotFoundError",
    "NotInitialisedError",
    "Occurrence",
    "Plain",
    "Rate",
    "Reaction",
    "ReactionContext",
    "Remaining",
    "Retry",
    "ShardedStore",
    "StateRefusedError",
    "StopResult",
    "StoppedError",
    "Store",
    "StoreRefusedError",
    "StoreSettings",
    "Throttled",
    "TransportDownError",
    "TransportRefusedError",
    "UnacceptedReaction",
    "Unknown",
    "UtcDateTime",
    "WentBackError",
    "WorkerHealth",
    "after",
    "call_writes",
    "every_child",
    "not_done",
]


def __getattr__(name: str) -> Any:
    if name == "not_done":
        return import_module("groundstate.not_done")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'groundstate' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
