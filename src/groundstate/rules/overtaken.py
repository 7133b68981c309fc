"""Whether an ordinary handler's work is kept when its condition no longer held: a fact concludes, a state holds (rules.md 2). Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FalseClause:
    """A clause that does not hold any more: the columns it names, and whether it reads this record's columns alone."""

    columns: Collection[str]
    own_columns_only: bool


def kept(
    written: Collection[str], null_before: Collection[str], false_clauses: Sequence[FalseClause], *, wrote_else: bool, same_occurrence: bool
) -> str | None:
    """None where it is kept, else why it is held with its outcome."""
    if not same_occurrence:
        return "overtaken: its occurrence changed while the call was made"
    if wrote_else:
        return "overtaken: the handler wrote more than columns of this record"
    if not written:
        return "overtaken: the condition no longer held and the handler wrote nothing"
    if any(not clause.own_columns_only for clause in false_clauses):
        return "overtaken: a clause over other tables no longer held"
    tested = {column for clause in false_clauses for column in clause.columns}
    for column in sorted(written):
        if column not in null_before:
            return f"overtaken: {column} had a value already when the handler wrote it"
        if column in tested:
            return f"overtaken: {column} is tested by a clause that no longer held"
    return None
