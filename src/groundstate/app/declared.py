"""Lists the reactions and schedules that an app declares on each of its databases. For modules of groundstate, not for users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from sqlalchemy import MetaData

from groundstate.app.store import Store
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec


class AppDeclarations(Protocol):
    """The attributes of `App` that this module reads."""

    @property
    def stores(self) -> Sequence[Store]:
        """The stores of the app. A sharded store counts as one."""

    @property
    def reactions(self) -> Mapping[str, ReactionSpec]:
        """The specs of the app's reactions by their names."""

    @property
    def schedules(self) -> Mapping[str, ScheduleSpec]:
        """The specs of the app's schedules by their names."""


def databases_of(app: AppDeclarations) -> tuple[Store, ...]:
    """Return every database of the app: each store, and each shard of a sharded store."""
    return tuple(database for store in app.stores for database in store.databases)


def reactions_of(app: AppDeclarations, store: Store) -> list[ReactionSpec]:
    """Return the reactions whose records are in this store or shard."""
    return [spec for spec in app.reactions.values() if spec.store is store or store in spec.store.databases]


def schedules_of(app: AppDeclarations, store: Store) -> list[ScheduleSpec]:
    """Return the schedules that write to this store or shard."""
    return [spec for spec in app.schedules.values() if spec.store is store or store in spec.store.databases]


def tables_of_other_stores(app: AppDeclarations, store: Store) -> dict[MetaData, str]:
    """Return a dict from each MetaData of the app's other stores to the label of its store, for error messages."""
    others = [other for other in app.stores if store not in other.databases]
    return {metadata: other.label for other in others for metadata in other.metadatas}
