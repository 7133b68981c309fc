"""Describes an attempt for people: what it is, how and from when it will be settled, what comes next. Pure functions; they
print nothing.
"""

from __future__ import annotations

import math
import shlex
from datetime import UTC, datetime

from groundstate.rules.attempt import Attempt, State, Terms, of_other_code
from groundstate.rules.blocking import is_baseline
from groundstate.rules.policy import MARGIN

IN_DOUBT, IN_THE_AIR, ALIVE_OR_IN_DOUBT, CARRIED_OUT = "in doubt", "in the air", "alive or in doubt", "being carried out"
INTERRUPTED = "interrupted, nothing was called"


def counted(count: int, one: str, many: str) -> str:
    """Return a count with its noun and verb: '1 row is', '1,204 rows are'."""
    return f"{count:,} {one if count == 1 else many}"


def known_in(seconds: float) -> str:
    """Return the text that says why it is not known yet whether a worker is alive (the server was restarted, which freed its lock), and
    when it will be known.
    """
    return f"the server was started anew; known in {max(math.ceil(seconds), 1)} s"


def on_what(record: str, occurrence: str) -> str:
    """Return the record's key, with the occurrence if there is one; for an attempt of a schedule, which has no record, the tick."""
    if not record and occurrence:
        return f"tick {occurrence}"
    return f"{record} ({occurrence})" if occurrence else record


def settled_by_a_person(attempt: Attempt) -> str:
    """Return how a person settles a held attempt whose call was made or may have been, with the commands to type."""
    which = f"{attempt.reaction} {shlex.quote(attempt.record)} --occurrence {shlex.quote(attempt.occurrence)}"
    if is_baseline(attempt):
        return f"it is left as a baseline: `groundstate retry {which}` carries it out"
    if attempt.outcome is None:
        return f"`groundstate settle {which}`, with --absent or --outcome"
    return (
        f"`groundstate retry {which}` gives its outcome to the handler; `groundstate forget {which}` lets it go, once what came of"
        " the call is accounted for"
    )


def standing(attempt: Attempt, *, alive: bool | None, has_call: bool = True, known_in_s: float | None = None) -> str:
    """Return the state of an attempt in words. For a begun one it depends on whether its worker is alive (`alive`); `known_in_s` is
    explained at `WorkerSeen`.
    """
    match attempt.state:
        case State.BEGUN if known_in_s is not None and has_call:
            return f"{ALIVE_OR_IN_DOUBT}: {known_in(known_in_s)}"
        case State.BEGUN:
            return begun(alive=alive, has_call=has_call)
        case State.DOUBT:
            return IN_DOUBT
        case _:
            return str(attempt.state)


def begun(*, alive: bool | None, has_call: bool) -> str:
    """Return the words for a begun attempt, by whether its worker is alive; `alive` is None if that cannot be seen."""
    if not has_call:
        return CARRIED_OUT if alive else INTERRUPTED
    if alive is None:
        return ALIVE_OR_IN_DOUBT
    return IN_THE_AIR if alive else IN_DOUBT


def settling(terms: Terms | None) -> str:
    """Return in words how an attempt in doubt will be settled."""
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


def accepted_in_doubt(terms: Terms, many: str) -> str:
    """Return in words what becomes of rows that a person accepts as in doubt, whose idempotency keys then count as too old. `many` is their
    number in words.
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


def settled_from(attempt: Attempt, terms: Terms | None) -> datetime | None:
    """Return from when on a worker can settle an attempt in doubt (with a lookup: from when its Absent is believed); None means at once."""
    if terms is None or terms.policy is None:
        return None
    if terms.policy.kind == "lookup":
        return attempt.deadline + terms.settle_after
    return attempt.next_at


def key_kept_until(attempt: Attempt, terms: Terms | None) -> datetime | None:
    """Return until when a call under the same key may be begun; None if the policy sets no such limit."""
    if terms is None or terms.policy is None or terms.policy.kept_for is None:
        return None
    return attempt.first_at + terms.policy.kept_for - terms.timeout - MARGIN - terms.settle_after


def tries(attempt: Attempt, terms: Terms | None) -> str:
    """Return in words how often an attempt has failed, how many failures are allowed, and until when it is retried."""
    retry = terms.retry if terms else None
    times = None if retry is None or retry.times is None else f"{attempt.failures} of {retry.times}"
    ends = None if retry is None or retry.give_up_after is None else attempt.since + retry.give_up_after
    until = "" if ends is None else f", until {ends.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return f"{times or attempt.failures}{until}" if times or until else f"{attempt.failures}, no limit"


def comes_next(attempt: Attempt, terms: Terms | None, *, alive: bool | None, known_in_s: float | None = None) -> str:
    """Return in words what will happen to an attempt next. Times are left out, since they are shown beside it."""
    match attempt.state:
        case State.HELD if attempt.outcome is not None:
            return "waits for a person: `groundstate retry` runs the handler with the outcome in hand, and calls nothing"
        case State.HELD if attempt.unsure:
            return "waits for a person: `groundstate settle` says what became of its call"
        case State.HELD:
            return "waits for a person: `groundstate retry` or `groundstate forget`"
        case State.FAILED if terms is None:
            return "nothing: this code does not declare its reaction"
        case State.FAILED:
            return "tried again"
        case State.BEGUN if known_in_s is not None and terms is not None and terms.policy is not None:
            return f"its worker concludes it, if it lives; else {settling(terms)}"
        case State.BEGUN if alive and terms is not None and terms.policy is not None:
            return "its worker concludes it when the call returns"
        case State.BEGUN if terms is not None and terms.policy is None:
            return "its worker concludes it" if alive else "carried out again"
        case _:
            reason = None if terms is None else of_other_code(attempt, terms)
            return settling(terms) if reason is None else f"held, since other code began it ({reason}): a person says what became of it"
