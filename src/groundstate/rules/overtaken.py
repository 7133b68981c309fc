"""Decides what becomes of an outcome whose condition or occurrence no longer holds: what the author declared, else the default (rules.md
2). Pure.

By default the outcome of a reaction with a done column is concluded, and any other is held. Under `InDoubt.repeat()` an outcome that would
be held is dropped, as a call in doubt is under that policy.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

WhenOvertaken = Literal["hold", "same", "drop"]
WORDS: tuple[str, ...] = get_args(WhenOvertaken)


@dataclass(frozen=True, slots=True)
class FalseClause:
    """A FalseClause is a clause that no longer holds: the columns of this record that it names, and whether it reads only these."""

    columns: Collection[str]
    own_columns_only: bool


def reason_to_hold_overtaken(  # the columns that were written, and what is known of them
    written: Collection[str],
    null_before: Collection[str],
    false_clauses: Sequence[FalseClause],
    *,
    wrote_else: bool,
    same_occurrence: bool,
    done_column: bool = False,
) -> str | None:
    """Return None where an overtaken outcome is kept, else the reason why it is held.

    done_column: the reaction declared a done column, so what it writes is true whatever other tables contain now. For another reaction it
    is not known whether a clause over other tables concerns the same work.
    """
    if not same_occurrence:
        return "overtaken: its occurrence changed while the call was made"
    if wrote_else:
        return "overtaken: the handler wrote more than columns of this record"
    if not written:
        return "overtaken: the condition no longer held and the handler wrote nothing"
    if not done_column and any(not clause.own_columns_only for clause in false_clauses):
        return "overtaken: a clause over other tables no longer held"
    tested = {column for clause in false_clauses for column in clause.columns}
    for column in sorted(written):
        if column not in null_before:
            return f"overtaken: {column} had a value already when the handler wrote it"
        if column in tested:
            return f"overtaken: {column} is tested by a clause that no longer held"
    return None


@dataclass(frozen=True, slots=True)
class HandOver:
    """HandOver passes the overtaken outcome to the reaction's own `overtaken` handler."""


@dataclass(frozen=True, slots=True)
class WriteSame:
    """WriteSame lets the ordinary handler write the outcome whatever the condition and the occurrence are now: the call was made."""


@dataclass(frozen=True, slots=True)
class WriteFact:
    """WriteFact lets the ordinary handler write the outcome if `kept` allows it; else it drops the outcome where `drops`, or holds it."""

    drops: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """Hold keeps the outcome in a held attempt for a person, with the reason `why`."""

    why: str


@dataclass(frozen=True, slots=True)
class DropIt:
    """DropIt deletes the attempt of an overtaken outcome; `say` is a line for the log."""

    say: str


Answer = HandOver | WriteSame | WriteFact | Hold | DropIt


def decide_overtaken_outcome(said: WhenOvertaken | None, *, has_handler: bool, repeats: bool, exists: bool) -> Answer:
    """Decide what becomes of an overtaken outcome. repeats: the call may be made twice. exists: the record was not deleted."""
    if said == "drop":
        return DropIt("its outcome was overtaken, and is dropped as overtaken='drop' says")
    if not exists:
        return Hold("the record was deleted while its call was made")
    match said:
        case "hold":
            return Hold("overtaken: its condition or occurrence no longer held, and overtaken='hold' is declared")
        case "same":
            return WriteSame()
        case None:
            return HandOver() if has_handler else WriteFact(drops=repeats)
