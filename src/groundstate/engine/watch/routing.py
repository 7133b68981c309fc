"""Which reactions a commit concerns, by the rows and tables it touched. Sends no query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from groundstate.engine.sql import commit_hooks
from groundstate.engine.sql.commit_hooks import Touched
from groundstate.engine.sql.condition_query import ConditionQuery, PrimaryKey
from groundstate.rules import constant_clauses


@dataclass
class Concern:
    """What a commit means for one reaction: keys of its records, and whether records whose keys are unknown were touched as well."""

    keys: list[PrimaryKey] = field(default_factory=list)
    whole: bool = False

    def __bool__(self) -> bool:
        return self.whole or bool(self.keys)


def concern(query: ConditionQuery, touched: Touched) -> Concern:
    """Return which records a reaction has to look at after a commit."""
    found = Concern(whole=any(_reads(query, record) for record in touched.whole))
    mine = query.entity
    for record, keys in touched.keys.items():
        if issubclass(record, mine) or issubclass(mine, record):
            found.keys += _of_its_own(query, keys)
        elif _reads(query, record) and not _by_parent(query, record):
            found.whole = True
    return found


def wake_parents(query: ConditionQuery) -> None:
    """Let each `every_child` row that any session of this process touches wake its parent record, in every worker here."""
    for every in query.spec.children:
        commit_hooks.wakes_parent(every.child, query.entity, tuple(column.key for column in every.parent_key))


def _of_its_own(query: ConditionQuery, keys: Mapping[PrimaryKey, Mapping[str, Any] | None]) -> list[PrimaryKey]:
    demanded = query.constants
    size = len(query.key_attributes)
    return [key for key, new in keys.items() if len(key) == size and (not new or not constant_clauses.falsifies(demanded, new))]


def _reads(query: ConditionQuery, record: type) -> bool:
    table = getattr(record, "__table__", None)
    return table is None or table.fullname in query.tables_named


def _by_parent(query: ConditionQuery, record: type) -> bool:
    """Return whether this class is a child of `every_child`: its rows wake only their parent, whose key the hint carries."""
    return any(issubclass(record, every.child) for every in query.spec.children)
