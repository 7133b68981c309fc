"""Defines the state transitions of an attempt: the table of what happened and what follows, and nothing else.

Each function takes one attempt and what happened to it, and returns what is to become of it. The rows are those of the attempt table in the
docs, and no other transition exists; `protocol.pml` checks the same rows with a model checker, so change both or neither. Pure: no clock,
no random number, no database. A deleted record comes before every other row, and settling never asks whether something blocks it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from groundstate.rules import begun_kind, poison_suspects
from groundstate.rules.begun_kind import Kind
from groundstate.rules.overtaken import WhenOvertaken
from groundstate.rules.policy import LONG_AGO, MARGIN, InDoubt, Retry
from groundstate.rules.retry import UNKNOWN_HELD_AFTER, last_try_used


class State(StrEnum):
    """A State is the state of an attempt's row; an attempt in none of these states has no row."""

    BEGUN = "begun"
    DOUBT = "doubt"
    FAILED = "failed"
    HELD = "held"

    @property
    def words(self) -> str:
        """Return the state as it is shown to people."""
        return "in doubt" if self is State.DOUBT else self.value


@dataclass(frozen=True, slots=True)
class Attempt:
    """An Attempt is a row of `groundstate_attempt` (see the docs page of that name for each column)."""

    app: str
    reaction: str
    record: str
    occurrence: str
    state: State
    worker: int
    call: int
    call_no: int
    unsure: bool
    since: datetime
    first_at: datetime
    deadline: datetime
    failures: int = 0
    next_at: datetime | None = None
    error: str | None = None
    why: str | None = None
    outcome: str | None = None  # JSON array; None where there is none
    blocks: str | None = None
    together: int = 0  # how many attempts were begun together in careful mode; 0 outside of it
    begun_with: str | None = None  # JSON: what its latest call was begun with (rules/begun_kind.py); None where that is not known

    @property
    def identity(self) -> tuple[str, str, str, str]:
        return (self.app, self.reaction, self.record, self.occurrence)

    @property
    def blocking(self) -> bool:
        """Return whether the attempt keeps every other reaction, and every other occurrence of its own reaction, from the record."""
        return self.state is State.BEGUN or self.unsure

    @property
    def keeps_own_reaction(self) -> bool:
        """Return whether the attempt keeps its own reaction, but no other, from this record under every other occurrence, until a person
        settles it.

        It does so if it is held and its call was or may have been made: the next occurrence may be the same work under another key.
        """
        return self.state is State.HELD and (self.unsure or self.outcome is not None)


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms hold what the reaction's author chose, as far as state transitions depend on it."""

    policy: InDoubt | None  # None for a reaction without a call
    retry: Retry
    timeout: timedelta = timedelta()
    has_lookup: bool = False
    kind: Kind | None = None  # what its calls are begun with
    answers_for: Collection[str] = ()  # services whose calls its lookup knows, whatever code began them

    @property
    def repeats_under_its_key(self) -> bool:
        """Return whether a call that is made again brings the outcome of the first call."""
        return self.policy is not None and self.policy.kind == "same_key"

    @property
    def settle_after(self) -> timedelta:
        """Return how long after its deadline a call may still be carried out."""
        chosen = self.policy.settle_after if self.policy else None
        return self.timeout if chosen is None else chosen


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts are what was read under the record's lock."""

    exists: bool
    holds: bool  # whether both the condition and the occurrence hold
    expired: bool = False  # whether it is too late for the record, by `valid_for`

    @property
    def gone(self) -> bool:
        return not self.holds


# ---- decisions: what becomes of an attempt -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Keep:
    """Keep says that the attempt is stored as this one."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete says that the attempt is deleted; `say` is a line for the log, where the deletion must not be silent."""

    say: str | None = None


@dataclass(frozen=True, slots=True)
class Conclude:
    """Conclude says that the handler is run with the outcome, and that its result decides what follows. `loudly` is a line for the log."""

    loudly: str | None = None


@dataclass(frozen=True, slots=True)
class Overtaken:
    """Overtaken says that an outcome came whose condition or occurrence no longer holds: `overtaken.answer` decides what becomes of it."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin says that a call is begun for this attempt, which contains what must be kept of the old one."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class AskLookup:
    """AskLookup says that the call's lookup is asked what became of the call."""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """GaveUp says that the `gave_up` handler is run; without one, or where it makes no progress, the attempt is held."""

    unsure: bool


@dataclass(frozen=True, slots=True)
class Expired:
    """Expired says that it is too late, and that the `expired` handler is run; where it makes no progress, `expired_in_vain` decides."""

    unsure: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait says that nothing changes now."""


Decision = Keep | Delete | Conclude | Overtaken | Begin | AskLookup | GaveUp | Expired | Wait


# ---- attempts that are begun ---------------------------------------------------------------------------------------------------
def returned(facts: Facts) -> Decision:
    """Decide what follows when the call returned, or the lookup found the outcome of a call in doubt. It is never a new call."""
    if not facts.exists:
        return Overtaken()
    return Conclude() if facts.holds else Overtaken()


def outcome_refused(attempt: Attempt, why: str, error: str | None, outcomes: str) -> Keep:
    """Hold an attempt whose outcome could not be concluded: the handler raised or made no progress, its flush was refused, or no handler
    accepts the outcome.
    """
    return Keep(replace(attempt, state=State.HELD, unsure=False, outcome=outcomes, why=why, error=error, next_at=None))


def not_done(attempt: Attempt, error: str, next_at: datetime, *, counts: bool) -> Keep:
    """Decide what follows when the call was certainly not made. `counts` is False for Throttled. An earlier call may have been made all the
    same, so an attempt in doubt stays in doubt.
    """
    state = State.DOUBT if attempt.unsure else State.FAILED
    return Keep(replace(attempt, state=state, failures=attempt.failures + counts, next_at=next_at, error=error))


def unclear(attempt: Attempt, error: str, next_at: datetime, now: datetime) -> Keep:
    """Put the attempt in doubt: its call timed out, or raised an error that does not show whether the service acted."""
    return Keep(
        replace(
            attempt,
            state=State.DOUBT,
            unsure=True,
            failures=attempt.failures + 1,
            next_at=next_at,
            error=error,
            deadline=max(attempt.deadline, now),
        )
    )


def adopted(attempt: Attempt, adopter: int, now: datetime, *, alone: bool, ends: Sequence[int] = ()) -> Keep:
    """Take over an attempt whose worker has ended; the adopter holds that worker's lock.

    An attempt that was begun for a call has a call number, whatever today's code makes of its reaction; without one only a handler ran.
    alone: nothing else was in progress in its worker, which was in careful mode (hazard 25); outside careful mode every end without an
    outcome counts as a failure. ends: the unclean ends of workers at which it was in progress, this one last; empty where this end says
    nothing of the attempt: after a drain, a lost lock, or a restart of the database server.
    """
    if attempt.state is State.DOUBT:
        return Keep(replace(attempt, worker=adopter, deadline=max(attempt.deadline, now)))
    has_call = attempt.unsure or attempt.call_no > 0
    counts = alone or (has_call and attempt.together == 0)
    taken_over = replace(attempt, worker=adopter, failures=attempt.failures + counts, next_at=now, error=poison_suspects.DIED)
    if ends:
        taken_over = replace(taken_over, why=poison_suspects.ended_under(ends))
    if has_call:
        taken_over = replace(taken_over, state=State.DOUBT, unsure=True, deadline=max(attempt.deadline, now))
    else:
        taken_over = replace(taken_over, state=State.FAILED)
    if alone and poison_suspects.suspected(ends[:-1], has_call=has_call):
        return held_as(taken_over, poison_suspects.ended_under(ends, alone=True))
    return Keep(taken_over)


def did_not_go_out(attempt: Attempt, now: datetime) -> Keep | Delete:
    """Decide what follows when the attempt's worker is running and knows that the call was not sent. This includes a begin whose COMMIT
    brought no answer and took effect after all.
    """
    if attempt.unsure:
        return Keep(replace(attempt, state=State.DOUBT, next_at=now))
    if attempt.failures > 0:
        return Keep(replace(attempt, state=State.FAILED, next_at=now))
    return Delete()


def not_in_memory(attempt: Attempt, now: datetime) -> Keep | Delete:
    """Decide what follows when the attempt's worker is running, has no such call in memory, and did not fail to begin it.

    The call may have been made, and what was written of it since is gone from the database (a failover that lost commits), or a person put
    its row back.
    """
    if not attempt.unsure and attempt.call_no == 0:
        return did_not_go_out(attempt, now)
    return unclear(attempt, "its worker knows nothing of this call, though the database says that it began it", now, now)


# ---- attempts in doubt ---------------------------------------------------------------------------------------------------------
def settle(attempt: Attempt, terms: Terms, facts: Facts, now: datetime) -> Decision:
    """Decide what follows for an attempt of this worker that is in doubt, whose retry time has come and whose thread no longer runs."""
    policy = terms.policy
    if policy is None:
        return held_as(attempt, "the reaction makes no call any more: settle what became of this one")
    if not facts.exists:
        return held_as(attempt, "the record was deleted while its call was in doubt")
    reason = of_other_code(attempt, terms)
    if reason is not None:
        return held_as(attempt, f"{begun_kind.HELD_FOR}: {reason}")
    if begun_kind.needs_lookup_only(attempt.begun_with, terms.kind):
        return AskLookup()
    return _by_policy(attempt, policy, terms, facts, now)


def _by_policy(attempt: Attempt, policy: InDoubt, terms: Terms, facts: Facts, now: datetime) -> Decision:
    spent = last_try_used(terms.retry, attempt.failures, attempt.since, now)
    match policy.kind:
        case "hold":
            return held_as(attempt, "in doubt, and its policy is InDoubt.hold(): a person decides")
        case "lookup":
            return _ask(attempt, terms)
        case "repeat":
            if facts.gone:
                return Delete("in doubt under InDoubt.repeat(), and its condition no longer holds: let go")
            if facts.expired:
                return Expired(unsure=True)
            return GaveUp(unsure=True) if spent else Begin(attempt)
        case "same_key":
            if facts.holds and not facts.expired and not key_too_old(attempt, terms, now):
                if spent:
                    return held_as(attempt, "in doubt, and the last try was used")
                return Begin(attempt)
            if terms.has_lookup:
                return _ask(attempt, terms)
            return held_as(attempt, f"in doubt, and {_no_second_call(attempt, facts)}")


def _ask(attempt: Attempt, terms: Terms) -> AskLookup | Keep:
    reason = (
        None
        if begun_kind.kind_in(attempt.begun_with).service in terms.answers_for
        else begun_kind.other_lookup(attempt.begun_with, terms.kind)
    )
    return AskLookup() if reason is None else held_as(attempt, f"{begun_kind.HELD_FOR}: {reason}")


def of_other_code(attempt: Attempt, terms: Terms) -> str | None:
    """Return why today's code cannot settle an attempt that is in doubt or may become so; None where it can, by its policy."""
    return begun_kind.reason_not_to_settle(attempt.begun_with, terms.kind, terms.answers_for if terms.has_lookup else ())


def _no_second_call(attempt: Attempt, facts: Facts) -> str:
    if not facts.holds:
        return "its condition no longer holds"
    if facts.expired:
        return "it is too late to call again"
    # After a restore, and where a person accepted the row as a doubt, it is not known when the call was made: its key counts as too old,
    # and `why` says what happened, unless `why` reports the end of a worker instead.
    if attempt.first_at == LONG_AGO and attempt.why is not None and not attempt.why.startswith(poison_suspects.DIED):
        return attempt.why
    return "its key is too old to call again"


def key_too_old(attempt: Attempt, terms: Terms, now: datetime) -> bool:
    """Return whether the provider may forget the key before it is certain that a call begun now was carried out or never will be."""
    if terms.policy is None or terms.policy.kept_for is None:
        return False
    return attempt.first_at + terms.policy.kept_for <= now + terms.timeout + MARGIN + terms.settle_after


def absent(attempt: Attempt, terms: Terms, facts: Facts, asked_at: datetime, asks_at: datetime, next_at: datetime) -> Decision:
    """Decide what follows when a lookup answered Absent to a question asked at `asked_at`, by the database's clock.

    asks_at: when the lookup is asked again, where that question was too early. next_at: when the call is made again, by the backoff for
    failures, counted from its deadline.
    """
    if not facts.exists:
        return held_as(attempt, "the record was deleted while its call was in doubt")
    if asked_at <= attempt.deadline + terms.settle_after:
        return unknown(attempt, asks_at, None)  # None keeps the error of its call
    if facts.holds:
        return Keep(replace(attempt, state=State.FAILED, unsure=False, next_at=next_at))
    return Delete()


def unknown(attempt: Attempt, next_at: datetime, error: str | None) -> Keep:
    """Leave the attempt as it is until `next_at`: its lookup answered Unknown, raised, or answered Absent to a question asked too early."""
    return Keep(replace(attempt, next_at=next_at, error=error or attempt.error))


def unknown_for_too_long(attempt: Attempt, why: str) -> Keep:
    """Hold an attempt of which no lookup could say for a day (or `give_up_after`) what became of its call."""
    return held_as(attempt, why)


def unanswered(attempt: Attempt, terms: Terms, now: datetime, next_at: datetime, error: str | None) -> Keep:
    """Schedule another lookup, since it is not known now what became of the call; hold the attempt after `UNKNOWN_HELD_AFTER` or
    `give_up_after`.
    """
    limit = terms.retry.give_up_after or UNKNOWN_HELD_AFTER
    if now - attempt.deadline > limit:
        return unknown_for_too_long(attempt, f"nobody could say for {limit} what became of its call")
    return unknown(attempt, next_at, error)


# ---- attempts that failed ------------------------------------------------------------------------------------------------------
def retry_failed(attempt: Attempt, terms: Terms, facts: Facts, now: datetime, *, blocked: bool) -> Decision:
    """Decide what follows for a failed attempt whose `next_at` has passed."""
    if facts.gone or not facts.exists:
        return Delete()
    if blocked:  # another call on the record is not settled: neither a call nor a handler may act on the record as if it had not been made
        return Wait()
    if facts.expired:  # checked before the last try, since a record that is too late may have been tried any number of times
        return Expired(unsure=False)
    if last_try_used(terms.retry, attempt.failures, attempt.since, now):
        return GaveUp(unsure=False)
    return Begin(attempt)


def expired_in_vain(attempt: Attempt, terms: Terms, now: datetime, next_at: datetime, error: str) -> Keep:
    """Decide what follows when the `expired` handler raised or made no progress: it is tried again, and the attempt is held after the last
    try. An attempt in doubt, under InDoubt.repeat(), stays in doubt.
    """
    state = State.DOUBT if attempt.unsure else State.FAILED
    after = replace(attempt, state=state, failures=attempt.failures + 1, next_at=next_at, error=error, why=IN_VAIN)
    if last_try_used(terms.retry, after.failures, after.since, now):
        return held_as(after, f"{IN_VAIN}: {error}")
    return Keep(after)


IN_VAIN = "it is too late for it, and its expired handler failed"


def held_as(attempt: Attempt, why: str, *, error: str | None = None) -> Keep:
    """Hold the attempt for a person, with the reason `why`; an unsure attempt stays unsure."""
    return Keep(replace(attempt, state=State.HELD, next_at=None, why=why, error=error or attempt.error))


# ---- a call is begun -----------------------------------------------------------------------------------------------------------
def begun(  # noqa: PLR0913  # the columns that a call has
    attempt: Attempt, *, worker: int, call: int, now: datetime, deadline: datetime, together: int = 0, begun_with: str | None = None
) -> Attempt:
    """Return the attempt with a new call. Where an earlier call may have been made, it stays unsure, and keeps the age of its key and the
    later deadline.

    Such an earlier call was the same call, or both are under InDoubt.repeat(): `settle` begins no other one. Its lookup may have been
    another.
    """
    return replace(
        attempt,
        state=State.BEGUN,
        worker=worker,
        call=call,
        call_no=attempt.call_no + 1,
        first_at=attempt.first_at if attempt.unsure else now,
        deadline=max(deadline, attempt.deadline) if attempt.unsure else deadline,
        next_at=None,
        together=together,
        begun_with=begun_kind.kind_text_of_repeated_begin(attempt.begun_with, begun_with) if attempt.unsure else begun_with,
    )


# ---- call results that come late --------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class HoldNew:
    """HoldNew says that the attempt is gone: a new held attempt with the outcome is written, unless a handler takes the outcome."""


@dataclass(frozen=True, slots=True)
class AddOutcome:
    """AddOutcome says that the attempt keeps this outcome beside those it has; `unsure` is its new value."""

    unsure: bool
    loudly: str | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop says that the outcome is dropped since it says nothing new; `say` is a line for the log."""

    say: str


def attempt_is_restored(facts: Facts, *, outcome: bool, repeats: bool, blocked: bool) -> bool:
    """Return whether a missing attempt is restored, as it was, before its call result is applied. Its worker is running, never lost its
    lock and did not delete it.

    outcome: the call has an outcome, which is concluded where condition and occurrence still hold and nothing else was begun on the record.
    Without an outcome the call is in doubt, so the attempt is restored whatever its record is; but under InDoubt.repeat() only where the
    record would be called once more.
    """
    return not (outcome or repeats) or (facts.exists and facts.holds and not blocked)


Late = Conclude | HoldNew | AddOutcome | Drop


def late_outcome(attempt: Attempt | None, policy: InDoubt | None, said: WhenOvertaken | None = None, *, own: Kind | None = None) -> Late:
    """Decide what follows when an outcome comes of a call that is no longer its attempt's latest: it is evidence that the service acted.

    said: what the reaction's author declared about overtaken outcomes. own: what the call with this outcome was begun with; if that is
    another kind, the outcome says nothing of the attempt's latest call.
    """
    if attempt is None:
        if said == "drop":
            return Drop("an outcome came after its attempt was settled, and is dropped as overtaken='drop' says")
        if said is None and policy is not None and policy.kind == "repeat":
            return Drop("an outcome came after its attempt was settled, under InDoubt.repeat(): let go")
        return HoldNew()
    if attempt.blocking and begun_kind.other_call(attempt.begun_with, own) is not None:
        return AddOutcome(unsure=True, loudly="an outcome of another call came while what became of the latest one is not known: held")
    match attempt.state:
        case State.DOUBT:
            return Conclude()
        case State.FAILED:
            return Conclude("an outcome came though its call was told absent: the lookup or a person was wrong")
        case State.BEGUN if attempt.unsure:
            return Conclude()
        case State.BEGUN:
            return AddOutcome(unsure=True, loudly="an outcome of an earlier call came while a new one is in the air: held")
        case State.HELD if attempt.outcome is not None:
            return AddOutcome(unsure=attempt.unsure)
        case State.HELD if attempt.unsure:
            return Conclude()
        case _:
            return AddOutcome(unsure=False)


# ---- what a person asks for --------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Refuse:
    """Refuse says that what a person asked for is not possible now, why, and what is possible."""

    why: str


def person_retry(attempt: Attempt, terms: Terms, now: datetime) -> Keep | Conclude | Refuse:
    """Apply `groundstate retry`. An attempt with an outcome is concluded again, and no new call is begun for it."""
    fresh = replace(attempt, failures=0, since=now, next_at=now, why=None)
    if attempt.state is State.FAILED:
        return Keep(replace(attempt, next_at=now, failures=0, since=now))
    if attempt.state is not State.HELD:
        return Refuse(f"it is {attempt.state.words}, not held: it is carried out by a worker")
    if attempt.outcome is not None:
        if attempt.unsure and now <= attempt.deadline + terms.settle_after:
            return Refuse("a later call of it may still be on its way: retry it after its deadline and settle_after")
        return Conclude()
    if not attempt.unsure:
        return Keep(replace(fresh, state=State.FAILED))
    policy = terms.policy
    if policy is None or policy.kind == "hold" or (key_too_old(attempt, terms, now) and not terms.has_lookup):
        return Refuse("nobody can say what became of its call: settle it as absent or with its outcome first")
    reason = of_other_code(attempt, terms)
    if reason is not None:
        return Refuse(f"this code cannot settle it ({reason}): settle it as absent or with its outcome, or let the code that began it run")
    return Keep(replace(fresh, state=State.DOUBT))


def person_absent(attempt: Attempt, terms: Terms, facts: Facts, now: datetime) -> Keep | Delete | Refuse:
    """Apply `groundstate settle --absent`, by which a person says that the service did not act."""
    if attempt.state is not State.HELD:
        return Refuse(f"it is {attempt.state.words}, not held: its policy settles it")
    if not attempt.unsure:
        return Refuse("no call of it is in doubt: `retry` or `forget` it")
    if now <= attempt.deadline + terms.settle_after:
        until = attempt.deadline + terms.settle_after
        return Refuse(f"its call may still be on its way until {until.isoformat(timespec='seconds')}: settle it as absent after that")
    if attempt.outcome is not None:
        return Keep(replace(attempt, unsure=False))
    if facts.exists and facts.holds:
        return Keep(replace(attempt, state=State.FAILED, unsure=False, failures=0, since=now, next_at=now, why=None))
    return Delete()


def person_outcome(attempt: Attempt, terms: Terms, now: datetime) -> Conclude | Refuse:
    """Apply `groundstate settle --outcome`: a person says with which outcome the service acted, and it goes on as if a lookup found it."""
    if attempt.state is not State.HELD:
        return Refuse(f"it is {attempt.state.words}, not held: its policy settles it")
    if terms.policy is None:
        return Refuse("the reaction makes no call, so there is no outcome to settle it with: `retry` or `forget` it")
    if attempt.outcome is not None and attempt.unsure and now <= attempt.deadline + terms.settle_after:
        return Refuse("a later call of it may still be on its way: settle it after its deadline and settle_after")
    return Conclude()


def one_of_several(attempt: Attempt, remaining: str) -> Keep:
    """Hold the attempt after one of several outcomes was concluded: the others stay listed, since each says that the service acted."""
    why = (
        "one of its outcomes was concluded, and these came as well: `retry` gives them to `overtaken`; or undo them outside, then `forget`"
    )
    return Keep(replace(attempt, state=State.HELD, unsure=False, outcome=remaining, why=why, error=None, next_at=None))


def person_forget(attempt: Attempt, terms: Terms, facts: Facts, now: datetime) -> Delete | Refuse:
    """Apply `groundstate forget`. It is refused while condition and occurrence hold, since that would lead to a new call or run."""
    if attempt.state is not State.HELD:
        return Refuse(f"it is {attempt.state.words}, not held")
    if facts.exists and facts.holds:
        if terms.policy is None and not attempt.unsure and attempt.outcome is None and attempt.call_no == 0:
            return Refuse("its condition holds, so once forgotten its handler would run again: change the record first, or `retry` it")
        return Refuse("its condition holds, so forgetting it would be a new call: change the record first, or `retry` or `settle` it")
    if attempt.unsure and now <= attempt.deadline + terms.settle_after:
        return Refuse("its call may still be on its way; forget it after its deadline and settle_after")
    return Delete()
