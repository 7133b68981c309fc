"""Whether a record may be taken, given the attempts that stand on it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from groundstate.rules import kind
from groundstate.rules.attempt import Attempt, State
from groundstate.values.keys import is_round

BASELINE = "baseline"  # why a record is held that was there before its reaction, and is left alone


def blocker(  # noqa: PLR0913  # who asks, and what of his declaration matters
    app: str,
    reaction: str,
    occurrence: str,
    attempts: Iterable[Attempt],
    *,
    fact: bool,
    again: bool = False,
    columns: Sequence[str] = (),
    same_call: Collection[str] = (),
) -> Attempt | None:
    """The attempt that keeps the reaction from this record, other than its own for this occurrence.

    A begun or unsure attempt keeps out every other reaction on the table, and its own reaction under every other occurrence
    (hazards 13, 57). A held attempt with an outcome keeps out its own reaction, under every other occurrence, and each of `same_call`, the
    app's reactions that make the same call: it was made, and only a person can say whether the next round, or the other reaction, would
    make it once more. `again`: the reaction's calls may be made twice, so that an outcome which is held does not keep it out, unless that
    call was begun under a policy that calls nothing twice. `columns`:
    the names of the occurrence's columns; a row that was left as a baseline when they were others is left under every occurrence. A
    reaction with a fact is kept out by its own attempts only.
    """
    for one in attempts:
        mine = one.app == app and one.reaction == reaction
        if mine and is_round(one.occurrence, occurrence, len(columns)):
            continue
        if one.blocking and (mine or (not fact and one.blocks is not None)):
            return one
        same = mine or (one.app == app and one.reaction in same_call and not fact and one.blocks is not None)
        if same and one.keeps_own_reaction and not (again and kind.kind_in(one.begun_with).policy in (None, kind.AGAIN)):
            return one
        if mine and is_baseline(one) and kind.is_of_other_rounds(one.begun_with, columns):
            return one
    return None


def is_baseline(attempt: Attempt) -> bool:
    """Whether it stands for a row that was there before its reaction, and is left alone."""
    return attempt.state is State.HELD and attempt.why == BASELINE and not attempt.unsure


def own(app: str, reaction: str, occurrence: str, attempts: Iterable[Attempt], columns: Sequence[str] = ()) -> Attempt | None:
    """The reaction's own attempt for this occurrence of these columns."""
    formerly = None
    for one in attempts:
        if one.app == app and one.reaction == reaction:
            if one.occurrence == occurrence:
                return one
            if is_round(one.occurrence, occurrence, len(columns)):
                formerly = one
    return formerly


def due(attempt: Attempt, now: datetime) -> bool:
    """Whether a failed attempt or a doubt may be looked at now."""
    return attempt.state in (State.FAILED, State.DOUBT) and (attempt.next_at is None or attempt.next_at <= now)
