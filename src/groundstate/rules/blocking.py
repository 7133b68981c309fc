"""Decides whether a reaction may act on a record, given the attempts that exist on the record. The functions are pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from groundstate.rules import begun_kind
from groundstate.rules.attempt import Attempt, State
from groundstate.values.keys import belongs_to_occurrence

BASELINE = "baseline"  # the `why` of a held attempt that marks a record to be left alone, since it existed before its reaction


def find_blocking_attempt(  # noqa: PLR0913  # each argument is needed to decide
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
    """Return an attempt that keeps the reaction from acting on this record; None where there is none. The reaction's own attempt for this
    occurrence (the round of the record) does not block it.

    An attempt that is begun, or whose call may have been made (`unsure`), blocks the other reactions on the record, and its own reaction
    for other occurrences (hazards 13, 57). A held attempt with an outcome blocks its own reaction for other occurrences, and the reactions
    in `same_call`: the call was made, and only a person can tell whether a call for another occurrence or reaction would do the same work
    again.

    Args:
        app: the app of the reaction that is to be carried out.
        reaction: the name of that reaction.
        occurrence: the text of the record's occurrence.
        attempts: all attempts on the record.
        done_column: whether the reaction has a done column; then only its own attempts block it.
        repeats: whether the reaction's calls may be made twice. Then a held attempt with an outcome blocks the reaction only if the held
            attempt was begun under another policy than InDoubt.repeat().
        columns: the names of the occurrence's columns. A baseline that was made under other columns blocks every occurrence.
        same_call: names of the app's other reactions that make the call which this reaction makes.
    """
    for one in attempts:
        mine = one.app == app and one.reaction == reaction
        if mine and belongs_to_occurrence(one.occurrence, occurrence, len(columns)):
            continue
        if one.is_blocking and (mine or (not done_column and one.blocks is not None)):
            return one
        same = mine or (one.app == app and one.reaction in same_call and not done_column and one.blocks is not None)
        if same and one.blocks_own_reaction and not (repeats and begun_kind.parse_kind(one.begun_with).policy in (None, begun_kind.AGAIN)):
            return one
        if mine and is_baseline(one) and begun_kind.has_other_occurrence_columns(one.begun_with, columns):
            return one
    return None


def is_baseline(attempt: Attempt) -> bool:
    """Return whether the attempt only marks a record that the reaction must leave alone, since the record existed before the reaction."""
    return attempt.state is State.HELD and attempt.why == BASELINE and not attempt.unsure


def find_own_attempt(app: str, reaction: str, occurrence: str, attempts: Iterable[Attempt], columns: Sequence[str] = ()) -> Attempt | None:
    """Return the reaction's own attempt for this occurrence (round of the record); None where there is none.

    columns: the names of the columns whose texts make up the occurrence.
    """
    of_older_code = None
    for one in attempts:
        if one.app == app and one.reaction == reaction:
            if one.occurrence == occurrence:
                return one
            if belongs_to_occurrence(one.occurrence, occurrence, len(columns)):
                of_older_code = one
    return of_older_code


def is_retry_due(attempt: Attempt, now: datetime) -> bool:
    """Return whether the attempt is failed or in doubt, and its retry time has come or is not set."""
    return attempt.state in (State.FAILED, State.DOUBT) and (attempt.next_at is None or attempt.next_at <= now)
