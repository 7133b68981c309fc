"""Defines the state transitions of an attempt, and nothing else.

Each function takes an attempt and an event, and returns a decision about the attempt. The transitions are exactly the rows of the table in
docs/attempt-table.md. A model checker checks the table too (model/table.pml), so change code, table and model together. The functions are
pure: no clock, no random number, no database. If the record was deleted, the row of the table for deleted records applies before any other
row. An attempt is settled even while another attempt blocks its record.
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
from groundstate.rules.retry import UNKNOWN_HELD_AFTER, is_last_try_used, reason_of_last_try


class State(StrEnum):
    """A State is the state of an attempt, as stored in its row."""

    BEGUN = "begun"
    DOUBT = "doubt"
    FAILED = "failed"
    HELD = "held"

    @property
    def display_text(self) -> str:
        """Return the state as it is shown to people."""
        return "in doubt" if self is State.DOUBT else self.value


@dataclass(frozen=True, slots=True)
class Attempt:
    """An Attempt is a row of `groundstate_attempt`; docs/attempt-table.md explains each column."""

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
    outcome: str | None = None  # JSON array of the outcomes that were received; None if there are none
    blocks: str | None = None
    together: int = 0  # 1 if begun alone in careful mode, otherwise careful mode's limit on attempts in progress; 0 outside of careful mode
    begun_with: str | None = None  # JSON of the latest call's Kind (rules/begun_kind.py); None where the Kind is not known

    @property
    def identity(self) -> tuple[str, str, str, str]:
        return (self.app, self.reaction, self.record, self.occurrence)

    @property
    def is_blocking(self) -> bool:
        """Return whether the attempt keeps reactions from acting on the record: its call is in flight, or may have been made.

        Such an attempt blocks all other reactions. It blocks its own reaction for other occurrences (rounds of the record).
        """
        return self.state is State.BEGUN or self.unsure

    @property
    def blocks_own_reaction(self) -> bool:
        """Return whether the attempt keeps its own reaction from acting on other occurrences of this record, until a person settles it.

        A held attempt blocks its own reaction if its call was made, or may have been made. The reason is that the next occurrence may be
        the same work under another key.
        """
        return self.state is State.HELD and (self.unsure or self.outcome is not None)


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms hold those choices of the reaction's author on which the state transitions of its attempts depend."""

    policy: InDoubt | None  # how a call in doubt is settled; None for a reaction without a call
    retry: Retry
    timeout: timedelta = timedelta()
    has_lookup: bool = False
    kind: Kind | None = None  # how this version makes the reaction's calls; None for a reaction without a call
    answers_for: Collection[str] = ()  # names of services whose calls the lookup knows, whichever version of the application made them

    @property
    def repeats_under_same_key(self) -> bool:
        """Return whether a second call under the same key returns the first call's outcome, as InDoubt.same_key() demands."""
        return self.policy is not None and self.policy.kind == "same_key"

    @property
    def settle_after(self) -> timedelta:
        """Return how long after a call's deadline the service may still carry out the call; by default the call's timeout."""
        chosen = self.policy.settle_after if self.policy else None
        return self.timeout if chosen is None else chosen


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts are what was read about a record while it was locked."""

    exists: bool
    holds: bool  # whether the condition holds, and the record is still in the attempt's occurrence (round of the record)
    expired: bool = False  # whether it is too late to act on the record, since it has been due for `valid_for` or longer

    @property
    def no_longer_holds(self) -> bool:
        return not self.holds


# ---- decisions: what becomes of an attempt -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Keep:
    """Keep says that the row of the attempt is to be stored with the values of `attempt`."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete says that the attempt is to be deleted; `say` is a line for the log, or None if no line is needed."""

    say: str | None = None


@dataclass(frozen=True, slots=True)
class Conclude:
    """Conclude says that the handler is to be run with the outcome. `loudly` is a line for the log, or None."""

    loudly: str | None = None


@dataclass(frozen=True, slots=True)
class Overtaken:
    """Overtaken says that an outcome came after the condition ceased to hold, the occurrence changed, or the record was deleted.

    `overtaken.answer` decides what becomes of the outcome.
    """


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin says that a new call is to be begun for this attempt; `attempt_with_new_call` then fills in the call's columns."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class AskLookup:
    """AskLookup says that the lookup is to be asked what became of the attempt's call."""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """GaveUp says that the `gave_up` handler is to be run. Without one, or if it makes no progress, the attempt is held for a person."""

    unsure: bool


@dataclass(frozen=True, slots=True)
class Expired:
    """Expired says that it is too late to act on the record, so that the `expired` handler is to be run.

    If that handler fails, `on_expired_handler_failed` decides what follows.
    """

    unsure: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait says that the attempt is left as it is, and will be looked at again later."""


Decision = Keep | Delete | Conclude | Overtaken | Begin | AskLookup | GaveUp | Expired | Wait


# ---- attempts that are begun ---------------------------------------------------------------------------------------------------
def on_call_returned(facts: Facts) -> Decision:
    """Decide what becomes of an outcome that the call returned, or that the lookup found for a call in doubt. No new call is begun."""
    if not facts.exists:
        return Overtaken()
    return Conclude() if facts.holds else Overtaken()


def hold_refused_outcome(attempt: Attempt, why: str, error: str | None, outcomes: str) -> Keep:
    """Hold an attempt with its outcomes (JSON) for a person, because the handler could not apply an outcome.

    The handler raised, made no progress or does not accept the outcome, or the database refused the handler's changes.
    """
    return Keep(replace(attempt, state=State.HELD, unsure=False, outcome=outcomes, why=why, error=error, next_at=None))


def on_call_not_done(attempt: Attempt, error: str, next_at: datetime, *, counts: bool) -> Keep:
    """Let the attempt wait until `next_at`, since its latest call was certainly not made. If an earlier call may have been made, the
    attempt stays in doubt; otherwise it is failed.

    counts: whether this try counts as a failure; False if the service throttled the call.
    """
    state = State.DOUBT if attempt.unsure else State.FAILED
    return Keep(replace(attempt, state=state, failures=attempt.failures + counts, next_at=next_at, error=error))


def put_in_doubt(attempt: Attempt, error: str, next_at: datetime, now: datetime) -> Keep:
    """Put the attempt in doubt until `next_at`.

    The reason is that its call timed out, or raised an error that does not show whether the service acted.
    """
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


def adopt_attempt(attempt: Attempt, adopter: int, now: datetime, *, alone: bool, ends: Sequence[int] = ()) -> Keep:
    """Take over an attempt of a worker that has ended. The adopter holds the lock of that worker.

    An attempt in doubt stays in doubt. A begun attempt with a call is put in doubt. A begun attempt without a call becomes failed, since
    only its handler ran. The end of the worker counts as a failure of a begun attempt if `alone`, or if the attempt has a call that was
    begun outside careful mode.

    Args:
        attempt: an attempt that is begun or in doubt.
        adopter: the number of the worker incarnation (a worker from taking its lock to losing it) that takes the attempt over.
        now: the time by the database's clock.
        alone: whether the ended worker was in careful mode, and carried out nothing else when it ended (hazard 25).
        ends: the incarnations that ended uncleanly while the attempt was in progress, the latest last. Empty if this end is no sign
            against the attempt: after a drain, a lost lock, or a restart of the database server.
    """
    if attempt.state is State.DOUBT:
        return Keep(replace(attempt, worker=adopter, deadline=max(attempt.deadline, now)))
    has_call = attempt.unsure or attempt.call_no > 0
    counts = alone or (has_call and attempt.together == 0)
    taken_over = replace(attempt, worker=adopter, failures=attempt.failures + counts, next_at=now, error=poison_suspects.DIED)
    if ends:
        taken_over = replace(taken_over, why=poison_suspects.why_for_ended_workers(ends))
    if has_call:
        taken_over = replace(taken_over, state=State.DOUBT, unsure=True, deadline=max(attempt.deadline, now))
    else:
        taken_over = replace(taken_over, state=State.FAILED)
    if alone and poison_suspects.is_suspected(ends[:-1], has_call=has_call):
        return hold_attempt(taken_over, poison_suspects.why_for_ended_workers(ends, alone=True))
    return Keep(taken_over)


def on_call_not_sent(attempt: Attempt, now: datetime) -> Keep | Delete:
    """Decide what follows when the attempt's worker is running and knows that it did not send the call.

    For example, the COMMIT that stored the attempt was applied, but the worker received no answer to the COMMIT, and so did not send the
    call.
    """
    if attempt.unsure:
        return Keep(replace(attempt, state=State.DOUBT, next_at=now))
    if attempt.failures > 0:
        return Keep(replace(attempt, state=State.FAILED, next_at=now))
    return Delete()


def on_call_not_in_memory(attempt: Attempt, now: datetime) -> Keep | Delete:
    """Decide what follows for a begun attempt whose worker is running, but does not have the attempt's call in memory.

    An attempt with a call is put in doubt, since the call may have been made: a failover may have lost the commit that concluded the
    attempt, or a person may have restored its row. An attempt without a call is treated as if its call was not sent.
    """
    if not attempt.unsure and attempt.call_no == 0:
        return on_call_not_sent(attempt, now)
    return put_in_doubt(attempt, "its worker knows nothing of this call, though the database says that it began it", now, now)


# ---- attempts in doubt ---------------------------------------------------------------------------------------------------------
def decide_attempt_in_doubt(attempt: Attempt, terms: Terms, facts: Facts, now: datetime) -> Decision:
    """Decide what follows for an attempt in doubt.

    Call this function in the attempt's worker, after `next_at`, and once the thread of the call has ended.
    """
    policy = terms.policy
    if policy is None:
        return hold_attempt(attempt, "the reaction makes no call any more: settle what became of this one")
    if not facts.exists:
        return hold_attempt(attempt, "the record was deleted while its call was in doubt")
    reason = reason_code_cannot_settle(attempt, terms)
    if reason is not None:
        return hold_attempt(attempt, f"{begun_kind.HELD_FOR}: {reason}")
    if begun_kind.may_be_settled_by_lookup_only(attempt.begun_with, terms.kind):
        return AskLookup()
    return _decide_by_policy(attempt, policy, terms, facts, now)


def _decide_by_policy(attempt: Attempt, policy: InDoubt, terms: Terms, facts: Facts, now: datetime) -> Decision:
    spent = is_last_try_used(terms.retry, attempt.failures, attempt.since, now)
    match policy.kind:
        case "hold":
            return hold_attempt(attempt, "in doubt, and its policy is InDoubt.hold(): a person decides")
        case "lookup":
            return _ask_lookup_or_hold(attempt, terms)
        case "repeat":
            if facts.no_longer_holds:
                return Delete("in doubt under InDoubt.repeat(), and its condition no longer holds: let go")
            if facts.expired:
                return Expired(unsure=True)
            return GaveUp(unsure=True) if spent else Begin(attempt)
        case "same_key":
            if facts.holds and not facts.expired and not is_key_too_old(attempt, terms, now):
                if spent:
                    return hold_attempt(attempt, f"in doubt, and {reason_of_last_try(terms.retry, attempt.failures)}")
                return Begin(attempt)
            if terms.has_lookup:
                return _ask_lookup_or_hold(attempt, terms)
            return hold_attempt(attempt, f"in doubt, and {_reason_for_no_second_call(attempt, facts)}")


def _ask_lookup_or_hold(attempt: Attempt, terms: Terms) -> AskLookup | Keep:
    reason = (
        None
        if begun_kind.parse_kind(attempt.begun_with).service in terms.answers_for
        else begun_kind.describe_lookup_difference(attempt.begun_with, terms.kind)
    )
    return AskLookup() if reason is None else hold_attempt(attempt, f"{begun_kind.HELD_FOR}: {reason}")


def reason_code_cannot_settle(attempt: Attempt, terms: Terms) -> str | None:
    """Return why this version of the application cannot settle the attempt, now or once it is in doubt; None if this version can."""
    return begun_kind.why_not_settled_here(attempt.begun_with, terms.kind, terms.answers_for if terms.has_lookup else ())


def _reason_for_no_second_call(attempt: Attempt, facts: Facts) -> str:
    if not facts.holds:
        return "its condition no longer holds"
    if facts.expired:
        return "it is too late to call again"
    # LONG_AGO says that nobody knows when the call was made: the database was restored, or a person accepted the row with 'doubt'. Then the
    # key of the call counts as too old, and `why` holds the reason. If the end of a worker has overwritten `why`, the general reason is
    # returned.
    if attempt.first_at == LONG_AGO and attempt.why is not None and not attempt.why.startswith(poison_suspects.DIED):
        return attempt.why
    return "its key is too old to call again"


def is_key_too_old(attempt: Attempt, terms: Terms, now: datetime) -> bool:
    """Return whether the key is too old for a second call.

    This is so if a call that is begun now could be carried out at a time when the provider may have forgotten the key.
    """
    if terms.policy is None or terms.policy.kept_for is None:
        return False
    return attempt.first_at + terms.policy.kept_for <= now + terms.timeout + MARGIN + terms.settle_after


def on_lookup_absent(attempt: Attempt, terms: Terms, facts: Facts, asked_at: datetime, asks_at: datetime, next_at: datetime) -> Decision:
    """Decide what follows when the lookup answered Absent. The answer is believed only if no call of the attempt could still arrive.

    asked_at: when the lookup was asked, by the database's clock. asks_at: when to ask the lookup again if it was asked too early. next_at:
    when to make the call again if the answer is believed.
    """
    if not facts.exists:
        return hold_attempt(attempt, "the record was deleted while its call was in doubt")
    if asked_at <= attempt.deadline + terms.settle_after:
        return on_lookup_unknown(attempt, asks_at, None)  # None: the attempt keeps the error of its call
    if facts.holds:
        return Keep(replace(attempt, state=State.FAILED, unsure=False, next_at=next_at))
    return Delete()


def on_lookup_unknown(attempt: Attempt, next_at: datetime, error: str | None) -> Keep:
    """Leave the attempt in doubt until `next_at`, since the lookup answered Unknown, raised, or answered Absent too early.

    error: the new error text of the attempt; None keeps its present one.
    """
    return Keep(replace(attempt, next_at=next_at, error=error or attempt.error))


def hold_unknown_for_too_long(attempt: Attempt, why: str) -> Keep:
    """Hold an attempt for a person, since no lookup could tell for a day (or `give_up_after`) what became of the call."""
    return hold_attempt(attempt, why)


def ask_again_or_hold(attempt: Attempt, terms: Terms, now: datetime, next_at: datetime, error: str | None) -> Keep:
    """Leave the attempt in doubt until the next lookup at `next_at`, since a lookup could not tell what became of the call.

    Once `give_up_after`, or a day, has passed since the deadline of the call, hold the attempt for a person instead.
    """
    limit = terms.retry.give_up_after or UNKNOWN_HELD_AFTER
    if now - attempt.deadline > limit:
        return hold_unknown_for_too_long(attempt, f"nobody could say for {limit} what became of its call")
    return on_lookup_unknown(attempt, next_at, error)


# ---- attempts that failed ------------------------------------------------------------------------------------------------------
def decide_failed_attempt(attempt: Attempt, terms: Terms, facts: Facts, now: datetime, *, blocked: bool) -> Decision:
    """Decide what follows for a failed attempt whose `next_at` has passed. blocked: whether another attempt blocks the record."""
    if facts.no_longer_holds or not facts.exists:
        return Delete()
    if blocked:  # another call on the record is not settled, so neither a call nor a handler may act on the record
        return Wait()
    if facts.expired:  # checked before the number of tries, so that a record expires even after its last try
        return Expired(unsure=False)
    if is_last_try_used(terms.retry, attempt.failures, attempt.since, now):
        return GaveUp(unsure=False)
    return Begin(attempt)


def on_expired_handler_failed(attempt: Attempt, terms: Terms, now: datetime, next_at: datetime, error: str) -> Keep:
    """Let the `expired` handler run again at `next_at`, since it raised or made no progress; after the last try hold the attempt.

    An attempt in doubt stays in doubt.
    """
    state = State.DOUBT if attempt.unsure else State.FAILED
    after = replace(attempt, state=state, failures=attempt.failures + 1, next_at=next_at, error=error, why=EXPIRED_HANDLER_FAILED)
    if is_last_try_used(terms.retry, after.failures, after.since, now):
        return hold_attempt(after, f"{EXPIRED_HANDLER_FAILED}: {error}")
    return Keep(after)


EXPIRED_HANDLER_FAILED = "it is too late for it, and its expired handler failed"


def hold_attempt(attempt: Attempt, why: str, *, error: str | None = None) -> Keep:
    """Hold the attempt for a person, with the reason `why`. If its call may have been made, the held attempt still says so (`unsure`)."""
    return Keep(replace(attempt, state=State.HELD, next_at=None, why=why, error=error or attempt.error))


# ---- a call is begun -----------------------------------------------------------------------------------------------------------
def attempt_with_new_call(  # noqa: PLR0913  # each argument is a column that a new call changes
    attempt: Attempt, *, worker: int, call: int, now: datetime, deadline: datetime, together: int = 0, begun_with: str | None = None
) -> Attempt:
    """Return the attempt with a new call. If an earlier call may have been made, the attempt stays unsure, and keeps the time of its first
    call and the later one of the two deadlines.

    In that case the two calls differ at most in their lookups, since `decide_attempt_in_doubt` begins no other second call. If both calls
    are under InDoubt.repeat(), they may differ in more.
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
        begun_with=begun_kind.kind_json_of_repeated_begin(attempt.begun_with, begun_with) if attempt.unsure else begun_with,
    )


# ---- call results that come late --------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class HoldNew:
    """HoldNew says that the outcome's attempt no longer exists, so that a new held attempt with the outcome is to be written.

    If an `overtaken` handler takes the outcome, no attempt is written.
    """


@dataclass(frozen=True, slots=True)
class AddOutcome:
    """AddOutcome says that the attempt is to be held with the outcome added to its outcomes.

    unsure: whether some call of the attempt may still have been made without a known outcome. loudly: a line for the log, or None.
    """

    unsure: bool
    loudly: str | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop says that the outcome is to be dropped; `say` is the line for the log that says why."""

    say: str


def must_restore_attempt(facts: Facts, *, outcome: bool, repeats: bool, blocked: bool) -> bool:
    """Return whether an attempt must be written again before the result of its call is applied, because somebody deleted its row.

    Call this function in the attempt's worker, if the worker never lost its lock and did not delete the row itself. If the call has an
    outcome, the attempt is needed only if a handler can be given the outcome: the condition holds, the occurrence is unchanged, and
    nothing blocks the record. A call without an outcome is in doubt, so the attempt is needed. Under InDoubt.repeat() the attempt is
    needed only if a further call would be made.

    Args:
        facts: what was read under the record's lock.
        outcome: whether the call has an outcome.
        repeats: whether the policy is InDoubt.repeat().
        blocked: whether another attempt blocks the record.
    """
    return not (outcome or repeats) or (facts.exists and facts.holds and not blocked)


Late = Conclude | HoldNew | AddOutcome | Drop


def decide_late_outcome(
    attempt: Attempt | None, policy: InDoubt | None, said: WhenOvertaken | None = None, *, own: Kind | None = None
) -> Late:
    """Decide what becomes of an outcome whose call is no longer the latest call of its attempt. The outcome proves that the service acted.

    attempt: None if it no longer exists. said: the reaction's `overtaken=`. own: the Kind of the call that has this outcome. If the
    latest call is of another Kind, the outcome proves nothing about the latest call.
    """
    if attempt is None:
        if said == "drop":
            return Drop("an outcome came after its attempt was settled, and is dropped as overtaken='drop' says")
        if said is None and policy is not None and policy.kind == "repeat":
            return Drop("an outcome came after its attempt was settled, under InDoubt.repeat(): let go")
        return HoldNew()
    if attempt.is_blocking and begun_kind.describe_call_difference(attempt.begun_with, own) is not None:
        return AddOutcome(unsure=True, loudly="an outcome of another call came while the latest call is not settled: held")
    match attempt.state:
        case State.DOUBT:
            return Conclude()
        case State.FAILED:
            return Conclude("an outcome came though its call was settled as absent: the lookup or a person was wrong")
        case State.BEGUN if attempt.unsure:
            return Conclude()
        case State.BEGUN:
            return AddOutcome(unsure=True, loudly="an outcome of an earlier call came while a new call is in flight: held")
        case State.HELD if attempt.outcome is not None:
            return AddOutcome(unsure=attempt.unsure)
        case State.HELD if attempt.unsure:
            return Conclude()
        case _:
            return AddOutcome(unsure=False)


# ---- what a person asks for --------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Refuse:
    """Refuse says that a person's command is not possible now; `why` is the text for the person, and also names what is possible."""

    why: str


def apply_retry_command(attempt: Attempt, terms: Terms, now: datetime) -> Keep | Conclude | Refuse:
    """Apply the command `groundstate retry`. If the attempt has an outcome, its handler is run again, and no new call is begun."""
    fresh = replace(attempt, failures=0, since=now, next_at=now, why=None)
    if attempt.state is State.FAILED:
        return Keep(replace(attempt, next_at=now, failures=0, since=now))
    if attempt.state is not State.HELD:
        return Refuse(f"it is {attempt.state.display_text}, not held: it is carried out by a worker")
    if attempt.outcome is not None:
        if attempt.unsure and now <= attempt.deadline + terms.settle_after:
            return Refuse("a later call of it may still be on its way: retry it after its deadline and settle_after")
        return Conclude()
    if not attempt.unsure:
        return Keep(replace(fresh, state=State.FAILED))
    policy = terms.policy
    if policy is None or policy.kind == "hold" or (is_key_too_old(attempt, terms, now) and not terms.has_lookup):
        return Refuse("nobody can say what became of its call: settle it as absent or with its outcome first")
    reason = reason_code_cannot_settle(attempt, terms)
    if reason is not None:
        return Refuse(f"this code cannot settle it ({reason}): settle it as absent or with its outcome, or let the code that began it run")
    return Keep(replace(fresh, state=State.DOUBT))


def apply_settle_absent_command(attempt: Attempt, terms: Terms, facts: Facts, now: datetime) -> Keep | Delete | Refuse:
    """Apply the command `groundstate settle --absent`, by which a person says that the service did not act."""
    if attempt.state is not State.HELD:
        return Refuse(f"it is {attempt.state.display_text}, not held: its policy settles it")
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


def apply_settle_outcome_command(attempt: Attempt, terms: Terms, now: datetime) -> Conclude | Refuse:
    """Apply the command `groundstate settle --outcome`: a person gives the outcome of the call in doubt, as a lookup would."""
    if attempt.state is not State.HELD:
        return Refuse(f"it is {attempt.state.display_text}, not held: its policy settles it")
    if terms.policy is None:
        return Refuse("the reaction makes no call, so there is no outcome to settle it with: `retry` or `forget` it")
    if attempt.outcome is not None and attempt.unsure and now <= attempt.deadline + terms.settle_after:
        return Refuse("a later call of it may still be on its way: settle it after its deadline and settle_after")
    return Conclude()


def hold_remaining_outcomes(attempt: Attempt, remaining: str) -> Keep:
    """Hold the attempt with the outcomes that remain (JSON), after the handler took one of them. Each outcome proves that the service
    acted.
    """
    why = (
        "one of its outcomes was concluded, and these came as well: `retry` gives them to `overtaken`; or undo them outside, then `forget`"
    )
    return Keep(replace(attempt, state=State.HELD, unsure=False, outcome=remaining, why=why, error=None, next_at=None))


def apply_forget_command(attempt: Attempt, terms: Terms, facts: Facts, now: datetime) -> Delete | Refuse:
    """Apply the command `groundstate forget`, which deletes a held attempt.

    The command is refused while the condition holds and the occurrence is unchanged, since the reaction would then act on the record anew.
    """
    if attempt.state is not State.HELD:
        return Refuse(f"it is {attempt.state.display_text}, not held")
    if facts.exists and facts.holds:
        if terms.policy is None and not attempt.unsure and attempt.outcome is None and attempt.call_no == 0:
            return Refuse("its condition holds, so once forgotten its handler would run again: change the record first, or `retry` it")
        return Refuse("its condition holds, so forgetting it would be a new call: change the record first, or `retry` or `settle` it")
    if attempt.unsure and now <= attempt.deadline + terms.settle_after:
        return Refuse("its call may still be on its way; forget it after its deadline and settle_after")
    return Delete()
