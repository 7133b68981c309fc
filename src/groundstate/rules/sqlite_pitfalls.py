"""Refuses expressions that SQLite computes without an error, but with another result than is meant. Returns messages that name the cure.

SQLite has no types for times, durations or JSON: SQLAlchemy stores them as text there, and SQLite computes with that text. An expression is
refused if its result is wrong for every row, or depends on the alphabetical order of these texts. Comparing two times, or two Intervals, is
right and not refused. The functions are pure.
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
_OF_ALL: tuple[Rule, ...] = (in_json.check_whole_json_comparison, in_json.check_json_cast_to_text, values.check_value_fits_type)
# A rule for a mistake within one side of a comparison comes before the rules for the whole comparison, because its message explains more.
_OF_SQLITE: tuple[Rule, ...] = (
    *_OF_ALL,
    times.check_time_arithmetic,
    times.check_sum_of_times,
    times.check_cast_to_time,
    times.check_time_modifier,
    values.check_text_with_number,
    values.check_number_with_text,
    in_json.check_json_with_other_types,
    in_json.check_json_boolean_as_word,
    in_json.check_like_on_json,
    values.check_enum_order,
    times.check_day_with_time,
    times.check_clock_comparison,
    times.check_day_with_bound_time,
    times.check_time_with_text,
    values.check_decimal_arithmetic,
    times.check_extracted_field,
    values.check_cast_to_text,
    times.check_time_with_number,
    times.check_different_time_kinds,
    times.check_length_of_time_text,
    times.check_time_in_other_zone,
    times.check_time_stored_without_zone,
)


def reason_to_refuse_expression(expression: Any, dialect: Dialect) -> str | None:
    """Return why the expression would have another result than is meant, as a text that names the cure.

    Return None where nothing is certainly wrong.
    """
    parts = list(look.all_parts(expression))
    for rule in _OF_SQLITE if dialect.name == "sqlite" else _OF_ALL:
        for one in parts:
            why = rule(one, dialect)
            if why is not None:
                return f"on SQLite {why}" if rule not in _OF_ALL else why
    return None


def reason_to_refuse_reaction(spec: ReactionSpec, dialect: Dialect) -> str | None:
    """Return why an expression of the reaction would have another result than is meant; None where nothing is certainly wrong.

    It checks the reaction's clauses, its due time, and the criteria of the loader options of its call.
    """
    given: list[tuple[str, Any]] = [("", clause) for clause in spec.clauses]
    if spec.due is not None and spec.due.attribute is None:
        given.append((f"due={spec.due.base} ", spec.due.base))
    if spec.call is not None:
        given += [(f"load= of call {spec.call.function.name}: ", criterion) for criterion in _loader_criteria(spec.call.load)]
    for where, one in given:
        why = reason_to_refuse_expression(one, dialect)
        if why is not None:
            return f"reaction {spec.name}: {where}{why}"
    return None


def _loader_criteria(options: Iterable[Any]) -> Iterator[Any]:
    """Yield each SQL criterion in these loader options, from `relationship.and_(...)` and `with_loader_criteria`.

    It reads private attributes of SQLAlchemy, since there is no public access to the criteria.
    """
    for option in options:
        for element in getattr(option, "context", ()):
            yield from getattr(element, "_extra_criteria", ())
        if not getattr(option, "deferred_where_criteria", True):
            yield option.where_criteria
