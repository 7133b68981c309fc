"""What an outcome means whose condition or occurrence no longer holds: what the author said, else the default (rules.md 2). Pure.

The default: a fact concludes and a state holds; under `again()` what would be held is dropped, as a doubt of that policy is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

WhenOvertaken = Literal["hold", "same", "drop"]
WORDS: tuple[str, ...] = get_args(WhenOvertaken)


@dataclass(frozen=True, slots=True)
class FalseClause:
    """A clause that does not hold any more: the columns of this record that it names, and whether it reads these alone."""

    columns: Collection[str]
    own_columns_only: bool


def kept(  # what was written, and what is true of it
    written: Collection[str],
    null_before: Collection[str],
    false_clauses: Sequence[FalseClause],
    *,
    wrote_else: bool,
    same_occurrence: bool,
    fact: bool = False,
) -> str | None:
    """None where it is kept, else why it is held with its outcome.

    fact: the reaction said by `fact=` that what it writes is one. Then it is one whatever other tables say now; of another reaction nobody
    knows whether the clause that asked them speaks of the same.
    """
    if not same_occurrence:
        return "overtaken: its occurrence changed while the call was made"
    if wrote_else:
        return "overtaken: the handler wrote more than columns of this record"
    if not written:
        return "overtaken: the condition no longer held and the handler wrote nothing"
    if not fact and any(not clause.own_columns_only for clause in false_clauses):
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
    """The reaction's own overtaken handler takes it."""


@dataclass(frozen=True, slots=True)
class WriteSame:
    """What was done was done: the ordinary handler writes it, whatever the condition and the occurrence are now."""


@dataclass(frozen=True, slots=True)
class WriteFact:
    """The ordinary handler writes it if that is a fact (see `kept`); else it is held, or dropped where `drops`."""

    drops: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """It is held for a person."""

    why: str


@dataclass(frozen=True, slots=True)
class DropIt:
    """Its attempt goes; `say` is a line for the log."""

    say: str


Answer = HandOver | WriteSame | WriteFact | Hold | DropIt


def answer(said: WhenOvertaken | None, *, has_handler: bool, again: bool, exists: bool) -> Answer:
    """What becomes of the outcome. `again`: the call may be made twice. `exists`: the record was not deleted."""
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
            return HandOver() if has_handler else WriteFact(drops=again)
