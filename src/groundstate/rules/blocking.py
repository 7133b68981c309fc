"""Decides whether a record may be taken, given the attempts that exist on it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from groundstate.rules import begun_kind
from groundstate.rules.attempt import Attempt, State
from groundstate.values.keys import is_round

BASELINE = "baseline"  # the `why` of a held attempt whose record existed before its reaction, and is left alone


def blocker(  # noqa: PLR0913  # the reaction that wants the record, and what matters of its declaration
    app: str,
    reaction: str,
    occurrence: str,
    attempts: Iterable[Attempt],
    *,
    done_column: bool,
    repeats: bool = False,
    columns: Sequence[str] = (),
    same_call: Collection[str] = (),
) -> Attempt | None:
    """Return the attempt that keeps the reaction from this record, other than its own for this occurrence; None where there is none.

    A begun or unsure attempt keeps out every other reaction on the table, and its own reaction under every other occurrence (hazards 13,
    57). A held attempt with an outcome keeps out its own reaction, under every other occurrence, and each of `same_call`, the app's
    reactions that make the same call: the call was made, and only a person can say whether the next occurrence, or the other reaction,
    would make it again.

    done_column: the reaction has a done column, so that only its own attempts keep it out. repeats: its calls may be made twice, so that a
    held outcome does not keep it out, unless that call was begun under a policy that repeats no call. columns: the names of the
    occurrence's columns; a record that was left alone as a baseline when they were others is left alone under every occurrence.
    """
    for one in attempts:
        mine = one.app == app and one.reaction == reaction
        if mine and is_round(one.occurrence, occurrence, len(columns)):
            continue
        if one.blocking and (mine or (not done_column and one.blocks is not None)):
            return one
        same = mine or (one.app == app and one.reaction in same_call and not done_column and one.blocks is not None)
        if same and one.keeps_own_reaction and not (repeats and begun_kind.kind_in(one.begun_with).policy in (None, begun_kind.AGAIN)):
            return one
        if mine and is_baseline(one) and begun_kind.is_of_other_rounds(one.begun_with, columns):
            return one
    return None


def is_baseline(attempt: Attempt) -> bool:
    """Return whether the attempt marks a record that existed before its reaction, and is left alone."""
    return attempt.state is State.HELD and attempt.why == BASELINE and not attempt.unsure


def own(app: str, reaction: str, occurrence: str, attempts: Iterable[Attempt], columns: Sequence[str] = ()) -> Attempt | None:
    """Return the reaction's own attempt for this occurrence, made of these columns; None where there is none."""
    formerly = None
    for one in attempts:
        if one.app == app and one.reaction == reaction:
            if one.occurrence == occurrence:
                return one
            if is_round(one.occurrence, occurrence, len(columns)):
                formerly = one
    return formerly


def due(attempt: Attempt, now: datetime) -> bool:
    """Return whether an attempt that failed or is in doubt may be processed now, because its retry time has come or it has none."""
    return attempt.state in (State.FAILED, State.DOUBT) and (attempt.next_at is None or attempt.next_at <= now)
