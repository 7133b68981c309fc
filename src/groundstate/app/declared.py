"""Lists what an app declares on each of its databases, for modules of groundstate and not for users. Only reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from sqlalchemy import MetaData

from groundstate.app.store import Store
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec


class Declares(Protocol):
    """The declarations of an app, as `App` keeps them."""

    @property
    def stores(self) -> Sequence[Store]:
        """The stores of the app. A sharded store counts as one."""

    @property
    def reactions(self) -> Mapping[str, ReactionSpec]:
        """The specs of the app's reactions by their names."""

    @property
    def schedules(self) -> Mapping[str, ScheduleSpec]:
        """The specs of the app's schedules by their names."""


def databases_of(app: Declares) -> tuple[Store, ...]:
    """Return every database of the app: each store, and each shard of a sharded store."""
    return tuple(database for store in app.stores for database in store.databases)


def reactions_of(app: Declares, store: Store) -> list[ReactionSpec]:
    """Return the reactions whose records are in this store or shard."""
    return [spec for spec in app.reactions.values() if spec.store is store or store in spec.store.databases]


def schedules_of(app: Declares, store: Store) -> list[ScheduleSpec]:
    """Return the schedules that write to this store or shard."""
    return [spec for spec in app.schedules.values() if spec.store is store or store in spec.store.databases]


def tables_elsewhere(app: Declares, store: Store) -> dict[MetaData, str]:
    """Return the metadata of the tables in the app's other stores, each with its store's name for error messages."""
    others = [other for other in app.stores if store not in other.databases]
    return {metadata: other.label for other in others for metadata in other.metadatas}
