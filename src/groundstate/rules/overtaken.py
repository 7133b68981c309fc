"""Decides what becomes of an overtaken outcome: an outcome that came after the condition ceased to hold, the occurrence changed, or the
record was deleted (rule 2).

The reaction's author may declare what becomes of the outcome. Otherwise the ordinary handler writes the outcome. If
`reason_to_hold_overtaken` finds a reason against this, the outcome is held for a person, or dropped under `InDoubt.repeat()`. The
functions are pure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

WhenOvertaken = Literal["hold", "same", "drop"]
WORDS: tuple[str, ...] = get_args(WhenOvertaken)


@dataclass(frozen=True, slots=True)
class FalseClause:
    """A FalseClause describes a clause that no longer holds.

    columns: the record's columns that the clause names. own_columns_only: whether the clause reads only columns of the record.
    """

    columns: Collection[str]
    own_columns_only: bool


def reason_to_hold_overtaken(
    written: Collection[str],
    null_before: Collection[str],
    false_clauses: Sequence[FalseClause],
    *,
    wrote_else: bool,
    same_occurrence: bool,
    done_column: bool = False,
) -> str | None:
    """Return why an overtaken outcome must be held, or dropped, although the handler could write it.

    Return None if what the handler wrote may stay.

    Args:
        written: the record's columns that the handler wrote.
        null_before: the written columns that were NULL before.
        false_clauses: the clauses that no longer hold.
        wrote_else: whether the handler wrote anything except columns of the record.
        same_occurrence: whether the occurrence is the same as when the call was begun.
        done_column: whether the reaction has a done column; then clauses over other tables do not matter.
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
    """HandOver says that the overtaken outcome is to be given to the `overtaken` handler that the reaction declares."""


@dataclass(frozen=True, slots=True)
class WriteSame:
    """WriteSame says that the ordinary handler is to write the outcome, even if the condition no longer holds or the occurrence changed."""


@dataclass(frozen=True, slots=True)
class WriteFact:
    """WriteFact says that the ordinary handler is to write the outcome, if `reason_to_hold_overtaken` finds no reason against it.

    drops: what becomes of the outcome if there is a reason: True means that it is dropped, False that it is held for a person.
    """

    drops: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """Hold says that the outcome is to be kept in a held attempt for a person, with the reason `why`."""

    why: str


@dataclass(frozen=True, slots=True)
class DropOutcome:
    """DropOutcome says that the attempt and its overtaken outcome are to be deleted; `say` is a line for the log."""

    say: str


Answer = HandOver | WriteSame | WriteFact | Hold | DropOutcome


def decide_overtaken_outcome(said: WhenOvertaken | None, *, has_handler: bool, repeats: bool, exists: bool) -> Answer:
    """Decide what becomes of an overtaken outcome.

    said: the reaction's `overtaken=`, or None. has_handler: whether the reaction declares an `overtaken` handler. repeats: whether the
    policy is InDoubt.repeat(). exists: whether the record still exists.
    """
    if said == "drop":
        return DropOutcome("its outcome was overtaken, and is dropped as overtaken='drop' says")
    if not exists:
        return Hold("the record was deleted while its call was made")
    match said:
        case "hold":
            return Hold("overtaken: its condition or occurrence no longer held, and overtaken='hold' is declared")
        case "same":
            return WriteSame()
        case None:
            return HandOver() if has_handler else WriteFact(drops=repeats)
