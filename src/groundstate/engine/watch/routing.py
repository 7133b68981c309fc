"""Finds which reactions a commit concerns, by the rows and tables that the commit touched. Sends no query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from groundstate.engine.sql import commit_hooks
from groundstate.engine.sql.commit_hooks import TouchedRecords
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.rules import constant_clauses


@dataclass
class ConcernedRecords:
    """The keys of the records of one reaction that a commit may concern. whole: whether it may also concern records with unknown keys."""

    keys: list[PrimaryKey] = field(default_factory=list)
    whole: bool = False

    def __bool__(self) -> bool:
        return self.whole or bool(self.keys)


def find_concerned_records(query: ConditionQuery, touched: TouchedRecords) -> ConcernedRecords:
    """Return which records may meet a reaction's condition now, by the rows and tables that a commit touched."""
    found = ConcernedRecords(whole=any(_reads_table_of(query, record) for record in touched.whole))
    mine = query.entity
    for record, keys in touched.keys.items():
        if issubclass(record, mine) or issubclass(mine, record):
            found.keys += _keys_that_may_match(query, keys)
        elif _reads_table_of(query, record) and not _is_class_of_child_clause(query, record):
            found.whole = True
    return found


def register_parent_wakeups(query: ConditionQuery) -> None:
    """For a reaction with `every_child` clauses: from now on, a commit of this process that touches a child row also counts as a commit
    that touches the parent record.
    """
    for every in query.spec.children:
        commit_hooks.wake_parent_with_child(every.child, query.entity, tuple(column.key for column in every.parent_key))


def _keys_that_may_match(query: ConditionQuery, keys: Mapping[PrimaryKey, Mapping[str, Any] | None]) -> list[PrimaryKey]:
    demanded = query.demanded_constants
    size = len(query.keys.key_attributes)
    return [key for key, new in keys.items() if len(key) == size and (not new or not constant_clauses.makes_a_clause_false(demanded, new))]


def _reads_table_of(query: ConditionQuery, record: type) -> bool:
    table = getattr(record, "__table__", None)
    return table is None or table.fullname in query.tables.names_of_tables_read


def _is_class_of_child_clause(query: ConditionQuery, record: type) -> bool:
    """Return whether this class is the child class of an `every_child` clause. If so, the commit's hint has the key of the parent."""
    return any(issubclass(record, every.child) for every in query.spec.children)
