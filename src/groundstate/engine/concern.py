"""Which reactions a commit concerns. Reads what was touched; asks no database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from groundstate.engine import hints
from groundstate.engine.hints import Touched
from groundstate.engine.question import PrimaryKey, Question
from groundstate.rules import equality


@dataclass
class Concern:
    """What a reaction is told: keys of its records, and whether some that nobody knows were touched as well."""

    keys: list[PrimaryKey] = field(default_factory=list)
    whole: bool = False

    def __bool__(self) -> bool:
        return self.whole or bool(self.keys)


def concern(question: Question, touched: Touched) -> Concern:
    """What of it this reaction is to look at."""
    found = Concern(whole=any(_reads(question, record) for record in touched.whole))
    mine = question.entity
    for record, keys in touched.keys.items():
        if issubclass(record, mine) or issubclass(mine, record):
            found.keys += _of_its_own(question, keys)
        elif _reads(question, record) and not _by_parent(question, record):
            found.whole = True
    return found


def wake_parents(question: Question) -> None:
    """From now on a child that is touched in this process wakes its own parent, by whatever session, and whoever carries that out."""
    for every in question.spec.children:
        hints.wakes_parent(every.child, question.entity, tuple(column.key for column in every.parent_key))


def _of_its_own(question: Question, keys: Mapping[PrimaryKey, Mapping[str, Any] | None]) -> list[PrimaryKey]:
    demanded = question.constants
    size = len(question.key_attributes)
    return [key for key, new in keys.items() if len(key) == size and (not new or not equality.falsifies(demanded, new))]


def _reads(question: Question, record: type) -> bool:
    table = getattr(record, "__table__", None)
    return table is None or table.fullname in question.tables_named


def _by_parent(question: Question, record: type) -> bool:
    """Children of `every_child` wake their one parent, whose key the hint carries."""
    return any(issubclass(record, every.child) for every in question.spec.children)
