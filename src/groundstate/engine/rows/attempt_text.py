"""Describes an attempt for people: its state, how its call will be settled and at what time at the earliest, and what happens to the
attempt next. All functions are pure.
"""

from __future__ import annotations

import math
import shlex
from datetime import UTC, datetime

from groundstate.rules.attempt import Attempt, State, Terms, reason_code_cannot_settle
from groundstate.rules.blocking import is_baseline
from groundstate.rules.policy import MARGIN

IN_DOUBT, IN_THE_AIR, ALIVE_OR_IN_DOUBT, CARRIED_OUT = "in doubt", "in the air", "alive or in doubt", "being carried out"
INTERRUPTED = "interrupted, nothing was called"


def count_with_noun(count: int, one: str, many: str) -> str:
    """Return a count with its noun and verb: '1 row is', '1,204 rows are'."""
    return f"{count:,} {one if count == 1 else many}"


def liveness_known_in(seconds: float) -> str:
    """Return a clause that says why it is not known yet whether a worker is alive, and after how many seconds it will be known.

    The reason is that a restart of the server freed all locks.
    """
    return f"the server was started anew; known in {max(math.ceil(seconds), 1)} s"


def describe_record_or_tick(record: str, occurrence: str) -> str:
    """Return the record's key, followed by the occurrence if there is one. For an attempt of a schedule, which has no record, return its
    tick (the time at which it was to run).
    """
    if not record and occurrence:
        return f"tick {occurrence}"
    return f"{record} ({occurrence})" if occurrence else record


def describe_settling_by_person(attempt: Attempt) -> str:
    """Return a text with the commands by which a person settles a held attempt. The attempt's call was made, or may have been made."""
    which = f"{attempt.reaction} {shlex.quote(attempt.record)} --occurrence {shlex.quote(attempt.occurrence)}"
    if is_baseline(attempt):
        return f"it is left as a baseline: `groundstate retry {which}` carries it out"
    if attempt.outcome is None:
        return f"`groundstate settle {which}`, with --absent or --outcome"
    return (
        f"`groundstate retry {which}` gives its outcome to the handler; `groundstate forget {which}` lets it go, once what came of"
        " the call is accounted for"
    )


def describe_state(attempt: Attempt, *, alive: bool | None, has_call: bool = True, known_in_s: float | None = None) -> str:
    """Return the state of an attempt in words. The words for a begun attempt depend on whether its worker is alive.

    alive: whether its worker is alive; None if nobody can tell.
    known_in_s: after a restart of the server, the seconds until it is known whether the worker is alive; None if this is known already.
    """
    match attempt.state:
        case State.BEGUN if known_in_s is not None and has_call:
            return f"{ALIVE_OR_IN_DOUBT}: {liveness_known_in(known_in_s)}"
        case State.BEGUN:
            return describe_begun_state(alive=alive, has_call=has_call)
        case State.DOUBT:
            return IN_DOUBT
        case _:
            return str(attempt.state)


def describe_begun_state(*, alive: bool | None, has_call: bool) -> str:
    """Return the state of a begun attempt in words. alive: whether its worker is alive; None if nobody can tell."""
    if not has_call:
        return CARRIED_OUT if alive else INTERRUPTED
    if alive is None:
        return ALIVE_OR_IN_DOUBT
    return IN_THE_AIR if alive else IN_DOUBT


def describe_settling(terms: Terms | None) -> str:
    """Return a text that says how an attempt in doubt will be settled, that is, how the outcome of its call will be found out."""
    if terms is None:
        return "by nothing: this code does not declare its reaction"
    if terms.policy is None:
        return "held: its reaction makes no call any more, a person says what became of this one"
    match terms.policy.kind:
        case "hold":
            return "held: a person says what became of it"
        case "repeat":
            return "called again while its condition holds"
        case "lookup":
            return "by its lookup; Absent is believed when it is asked after the time given"
        case "same_key":
            return (
                f"called again under the same key; once that is too old {'its lookup is asked' if terms.has_lookup else 'a person decides'}"
            )


def describe_accepting_in_doubt(terms: Terms, many: str) -> str:
    """Return a text that says what happens to existing rows if a person accepts a reaction and says that calls may have been made for them.

    Each of these calls then counts as in doubt, and its idempotency key as too old. many: the number of these rows in words.
    """
    match None if terms.policy is None else terms.policy.kind:
        case "repeat":
            return "it is called all the same, since its policy is InDoubt.repeat()"
        case "lookup":
            return "its lookup is asked, and it is called where that says Absent"
        case "same_key" if terms.has_lookup:
            return "its lookup is asked, since nobody knows how old its key is, and it is called where that says Absent"
        case _:
            return f"{many} would be held, each until a person says what became of it (`groundstate settle`)"


def earliest_settling_time(attempt: Attempt, terms: Terms | None) -> datetime | None:
    """Return the earliest time at which a worker can settle an attempt in doubt; None if it can settle the attempt at once.

    Under the policy `lookup`, this is the time from which the lookup's answer Absent is believed.
    """
    if terms is None or terms.policy is None:
        return None
    if terms.policy.kind == "lookup":
        return attempt.deadline + terms.settle_after
    return attempt.next_at


def key_kept_until(attempt: Attempt, terms: Terms | None) -> datetime | None:
    """Return the time until which the call may be repeated under its idempotency key; None if the policy sets no such limit."""
    if terms is None or terms.policy is None or terms.policy.kept_for is None:
        return None
    return attempt.first_at + terms.policy.kept_for - terms.timeout - MARGIN - terms.settle_after


def describe_tries(attempt: Attempt, terms: Terms | None) -> str:
    """Return in words how often an attempt has failed, how many failures are allowed, and until when the attempt is retried."""
    retry = terms.retry if terms else None
    times = None if retry is None or retry.times is None else f"{attempt.failures} of {retry.times}"
    ends = None if retry is None or retry.give_up_after is None else attempt.since + retry.give_up_after
    until = "" if ends is None else f", no try after {ends.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return f"{times or attempt.failures}{until}" if times or until else f"{attempt.failures}, no limit"


def describe_next_step(attempt: Attempt, terms: Terms | None, *, alive: bool | None, known_in_s: float | None = None) -> str:
    """Return in words what will happen to an attempt next, without the times, since the caller shows them beside the text."""
    match attempt.state:
        case State.HELD if attempt.outcome is not None:
            return "waits for a person: `groundstate retry` runs the handler with the outcome in hand, and calls nothing"
        case State.HELD if attempt.unsure:
            return "waits for a person: `groundstate settle` says what became of its call"
        case State.HELD:
            return "waits for a person: `groundstate retry`, or `groundstate forget` once its condition does not hold"
        case State.FAILED if terms is None:
            return "nothing: this code does not declare its reaction"
        case State.FAILED:
            return "tried again"
        case State.BEGUN if known_in_s is not None and terms is not None and terms.policy is not None:
            return f"its worker concludes it, if it lives; else {describe_settling(terms)}"
        case State.BEGUN if alive and terms is not None and terms.policy is not None:
            return "its worker concludes it when the call returns"
        case State.BEGUN if terms is not None and terms.policy is None:
            return "its worker concludes it" if alive else "carried out again"
        case _:
            reason = None if terms is None else reason_code_cannot_settle(attempt, terms)
            return (
                describe_settling(terms)
                if reason is None
                else f"held, since other code began it ({reason}): a person says what became of it"
            )
