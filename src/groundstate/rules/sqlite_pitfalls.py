"""Refuses what SQLite computes without an error, but not as it is meant. Pure: reads expressions, and returns messages with the cure.

SQLite has no type for times, durations or JSON: SQLAlchemy stores them as text there, and what is computed with them goes by the text.
Refused is what is wrong for every row, or orders rows by the letters; what is right is allowed, as comparing two times, or Intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sqlalchemy import Dialect

from groundstate.rules import sql_inspect as look
from groundstate.rules import sqlite_pitfalls_json as in_json
from groundstate.rules import sqlite_pitfalls_times as times
from groundstate.rules import sqlite_pitfalls_values as values
from groundstate.rules.specs import ReactionSpec

Rule = Callable[[Any, Dialect], str | None]
_OF_ALL: tuple[Rule, ...] = (in_json.whole, in_json.json_as_text, values.not_taken)
# A rule for a mistake within one side comes before the rule for the comparison around it, because it explains more.
_OF_SQLITE: tuple[Rule, ...] = (
    *_OF_ALL,
    times.arithmetic,
    times.sum_of_times,
    times.cast_to_time,
    times.modifier,
    values.text_with_number,
    values.number_with_text,
    in_json.compared_with_others,
    in_json.word_of_truth,
    in_json.within_json,
    values.enum,
    times.day_and_time,
    times.clock,
    times.day_with_time_given,
    times.time_with_text,
    values.decimals,
    times.part_of_time,
    values.cast_to_text,
    times.time_with_number,
    times.of_another_kind,
    times.other_form,
    times.in_another_zone,
    times.by_its_own_clock,
)


def refused(expression: Any, dialect: Dialect) -> str | None:
    """Return why this database would not compute the expression as it is meant, with the cure; None where nothing is certainly wrong."""
    parts = list(look.parts(expression))
    for rule in _OF_SQLITE if dialect.name == "sqlite" else _OF_ALL:
        for one in parts:
            why = rule(one, dialect)
            if why is not None:
                return f"on SQLite {why}" if rule not in _OF_ALL else why
    return None


def of_reaction(spec: ReactionSpec, dialect: Dialect) -> str | None:
    """Return why this database would not compute an expression of the reaction as it is meant, in its clauses, its due time, or the
    criteria of what its call loads; None where nothing is certainly wrong.
    """
    given: list[tuple[str, Any]] = [("", clause) for clause in spec.clauses]
    if spec.due is not None and spec.due.attribute is None:
        given.append((f"due={spec.due.base} ", spec.due.base))
    if spec.call is not None:
        given += [(f"load= of call {spec.call.function.name}: ", criterion) for criterion in _criteria(spec.call.load)]
    for where, one in given:
        why = refused(one, dialect)
        if why is not None:
            return f"reaction {spec.name}: {where}{why}"
    return None


def _criteria(options: Iterable[Any]) -> Iterator[Any]:
    """Yield the criteria that loader options contain, by `relationship.and_(...)` and `with_loader_criteria`. SQLAlchemy has no public name
    for them.
    """
    for option in options:
        for element in getattr(option, "context", ()):
            yield from getattr(element, "_extra_criteria", ())
        if not getattr(option, "deferred_where_criteria", True):
            yield option.where_criteria
