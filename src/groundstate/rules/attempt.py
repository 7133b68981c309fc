"""The transitions of an attempt: the table of what happened to what, and nothing else.

Each function is told one attempt and what happened to it, and says what is to become of it. The rows are those of the attempt table in
the docs, and no other transition exists; `protocol.pml` checks the same rows with a model checker, so change both or neither. Pure: no
clock, no dice, no table. A deleted record comes before every other row, and settling never asks whether something blocks it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from groundstate.rules import careful, kind
from groundstate.rules.kind import Kind
from groundstate.rules.overtaken import WhenOvertaken
from groundstate.rules.policy import LONG_AGO, MARGIN, InDoubt, Retry
from groundstate.rules.retry import UNKNOWN_HELD_AFTER, last_try_used


class State(StrEnum):
    """Where an attempt stands; what stands in no state is not there."""

    BEGUN = "begun"
    DOUBT = "doubt"
    FAILED = "failed"
    HELD = "held"

    @property
    def words(self) -> str:
        """As it is said to people."""
        return "in doubt" if self is State.DOUBT else self.value


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of `groundstate_attempt` (see the docs page of that name for each column)."""

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
    together: int = 0  # careful mode: how many were begun together; 0 outside it
    begun_with: str | None = None  # JSON: what its latest call was begun with (rules/kind.py); None where that is not known

    @property
    def identity(self) -> tuple[str, str, str, str]:
        return (self.app, self.reaction, self.record, self.occurrence)

    @property
    def blocking(self) -> bool:
        """Whether no other reaction, and no other occurrence of its own, may take the record."""
        return self.state is State.BEGUN or self.unsure

    @property
    def keeps_own_reaction(self) -> bool:
        """Whether it keeps its own reaction, and no other, from the record under every other occurrence until a person settles it.

        Held, and its call was made or may have been: the round that comes next may be the same work under another key.
        """
        return self.state is State.HELD and (self.unsure or self.outcome is not None)


@dataclass(frozen=True, slots=True)
class Terms:
    """What the reaction's author chose, as far as transitions depend on it."""

    policy: InDoubt | None  # None for a reaction without a call
    retry: Retry
    timeout: timedelta = timedelta()
    has_find: bool = False
    kind: Kind | None = None  # what its calls are begun with
    answers_for: Collection[str] = ()  # services of whose calls, begun by whatever code, its find knows

    @property
    def repeats_under_its_key(self) -> bool:
        """Whether a call made again brings the outcome of the first."""
        return self.policy is not None and self.policy.kind == "same_key"

    @property
    def settle_after(self) -> timedelta:
        """How long after its deadline a call may still land."""
        chosen = self.policy.settle_after if self.policy else None
        return self.timeout if chosen is None else chosen


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read under the record's lock."""

    exists: bool
    holds: bool  # condition and occurrence, both
    expired: bool = False  # too late for it, by `valid_for`

    @property
    def gone(self) -> bool:
        return not self.holds


# ---- what is to become of it ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Keep:
    """The attempt becomes this."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Delete:
    """The attempt is deleted; `say` is a line for the log where that must not be silent."""

    say: str | None = None


@dataclass(frozen=True, slots=True)
class Conclude:
    """Run the handler with the outcome. What it does decides: see `handled`. `loudly` is said in the log."""

    loudly: str | None = None


@dataclass(frozen=True, slots=True)
class Overtaken:
    """The outcome came, and the condition or occurrence no longer holds: `overtaken.answer` says what becomes of it."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin a call for it, with what must stay of the attempt."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the find."""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Run the `gave_up` handler; without one, or without progress, hold."""

    unsure: bool


@dataclass(frozen=True, slots=True)
class Expired:
    """It is too late: run the `expired` handler; without progress: see `expired_in_vain`."""

    unsure: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing changes now."""


Decision = Keep | Delete | Conclude | Overtaken | Begin | Ask | GaveUp | Expired | Wait


# ---- begun ---------------------------------------------------------------------------------------------------------------------
def returned(facts: Facts) -> Decision:
    """Its call returned, or a doubt was found: the outcome is in hand. Never a new call from here."""
    if not facts.exists:
        return Overtaken()
    return Conclude() if facts.holds else Overtaken()


def outcome_refused(attempt: Attempt, why: str, error: str | None, outcomes: str) -> Keep:
    """An outcome is there, and the handler raised, made no progress, its flush was refused, or nobody could take it."""
    return Keep(replace(attempt, state=State.HELD, unsure=False, outcome=outcomes, why=why, error=error, next_at=None))


def not_done(attempt: Attempt, error: str, next_at: datetime, *, counts: bool) -> Keep:
    """The call was surely not done. `counts` is False for Busy. That says nothing of an earlier call: doubt stays."""
    state = State.DOUBT if attempt.unsure else State.FAILED
    return Keep(replace(attempt, state=state, failures=attempt.failures + counts, next_at=next_at, error=error))


def unclear(attempt: Attempt, error: str, next_at: datetime, now: datetime) -> Keep:
    """The call timed out, or raised what says nothing about the outside."""
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
    """Its worker is no more, and the adopter holds that worker's lock.

    What was begun for a call has a call number, whatever the code of today makes of its reaction; without one only a handler ran.
    alone: nothing else was under way in its worker, which was careful (hazard 25); outside careful mode every end without an outcome counts
    as a failure. ends: of lives, at which it was under way, this one the last; none where this one says nothing of it: a drain, a lost
    lock, a server that was started anew.
    """
    if attempt.state is State.DOUBT:
        return Keep(replace(attempt, worker=adopter, deadline=max(attempt.deadline, now)))
    has_call = attempt.unsure or attempt.call_no > 0
    counts = alone or (has_call and attempt.together == 0)
    taken_over = replace(attempt, worker=adopter, failures=attempt.failures + counts, next_at=now, error=careful.DIED)
    if ends:
        taken_over = replace(taken_over, why=careful.ended_under(ends))
    if has_call:
        taken_over = replace(taken_over, state=State.DOUBT, unsure=True, deadline=max(attempt.deadline, now))
    else:
        taken_over = replace(taken_over, state=State.FAILED)
    if alone and careful.suspected(ends[:-1], has_call=has_call):
        return held_as(taken_over, careful.ended_under(ends, alone=True))
    return Keep(taken_over)


def did_not_go_out(attempt: Attempt, now: datetime) -> Keep | Delete:
    """Its worker lives and knows that the call did not go out: also where the begin's COMMIT brought no answer, and landed after all."""
    if attempt.unsure:
        return Keep(replace(attempt, state=State.DOUBT, next_at=now))
    if attempt.failures > 0:
        return Keep(replace(attempt, state=State.FAILED, next_at=now))
    return Delete()


def not_in_memory(attempt: Attempt, now: datetime) -> Keep | Delete:
    """Its worker lives, has no such call in memory, and did not try in vain to begin it: it may have been made, and what was written of
    it since is gone from the database (a failover that lost commits), or somebody put its row back.
    """
    if not attempt.unsure and attempt.call_no == 0:
        return did_not_go_out(attempt, now)
    return unclear(attempt, "its worker knows nothing of this call, though the database says that it began it", now, now)


# ---- doubt ---------------------------------------------------------------------------------------------------------------------
def settle(attempt: Attempt, terms: Terms, facts: Facts, now: datetime) -> Decision:
    """A doubt of ours, due to be looked at, whose thread does not run any more."""
    policy = terms.policy
    if policy is None:
        return held_as(attempt, "the reaction makes no call any more: settle what became of this one")
    if not facts.exists:
        return held_as(attempt, "the record was deleted while its call was in doubt")
    reason = of_other_code(attempt, terms)
    if reason is not None:
        return held_as(attempt, f"{kind.HELD_FOR}: {reason}")
    if kind.needs_its_find(attempt.begun_with, terms.kind):
        return Ask()
    return _by_policy(attempt, policy, terms, facts, now)


def _by_policy(attempt: Attempt, policy: InDoubt, terms: Terms, facts: Facts, now: datetime) -> Decision:
    spent = last_try_used(terms.retry, attempt.failures, attempt.since, now)
    match policy.kind:
        case "hold":
            return held_as(attempt, "in doubt, and its policy is hold(): a person decides")
        case "ask":
            return _ask(attempt, terms)
        case "again":
            if facts.gone:
                return Delete("in doubt under again(), and its condition no longer holds: let go")
            if facts.expired:
                return Expired(unsure=True)
            return GaveUp(unsure=True) if spent else Begin(attempt)
        case "same_key":
            if facts.holds and not facts.expired and not key_too_old(attempt, terms, now):
                if spent:
                    return held_as(attempt, "in doubt, and the last try was used")
                return Begin(attempt)
            if terms.has_find:
                return _ask(attempt, terms)
            return held_as(attempt, f"in doubt, and {_no_second_call(attempt, facts)}")


def _ask(attempt: Attempt, terms: Terms) -> Ask | Keep:
    reason = None if kind.kind_in(attempt.begun_with).service in terms.answers_for else kind.other_find(attempt.begun_with, terms.kind)
    return Ask() if reason is None else held_as(attempt, f"{kind.HELD_FOR}: {reason}")


def of_other_code(attempt: Attempt, terms: Terms) -> str | None:
    """Why a doubt, or what may become one, cannot be settled by the code of today; None: it can, by its policy."""
    return kind.not_to_settle(attempt.begun_with, terms.kind, terms.answers_for if terms.has_find else ())


def _no_second_call(attempt: Attempt, facts: Facts) -> str:
    if not facts.holds:
        return "its condition no longer holds"
    if facts.expired:
        return "it is too late to call again"
    # After a restore, and where a person accepted it as a doubt, nobody knows when its call was made: its key counts as too old, and `why`
    # says what happened, unless it tells of a death instead.
    if attempt.first_at == LONG_AGO and attempt.why is not None and not attempt.why.startswith(careful.DIED):
        return attempt.why
    return "its key is too old to call again"


def key_too_old(attempt: Attempt, terms: Terms, now: datetime) -> bool:
    """Whether the provider may forget the key before a call begun now has surely landed."""
    if terms.policy is None or terms.policy.kept_for is None:
        return False
    return attempt.first_at + terms.policy.kept_for <= now + terms.timeout + MARGIN + terms.settle_after


def absent(attempt: Attempt, terms: Terms, facts: Facts, asked_at: datetime, asks_at: datetime, next_at: datetime) -> Decision:
    """A find answered Absent to a question asked at `asked_at` by the database's clock.

    asks_at: when it is asked again, where that was too early. next_at: when it is called again, by the backoff
    of what failed, counted from its deadline.
    """
    if not facts.exists:
        return held_as(attempt, "the record was deleted while its call was in doubt")
    if asked_at <= attempt.deadline + terms.settle_after:
        return unknown(attempt, asks_at, None)  # its call's own error stays
    if facts.holds:
        return Keep(replace(attempt, state=State.FAILED, unsure=False, next_at=next_at))
    return Delete()


def unknown(attempt: Attempt, next_at: datetime, error: str | None) -> Keep:
    """A find answered Unknown, raised, or answered Absent to a question asked too early."""
    return Keep(replace(attempt, next_at=next_at, error=error or attempt.error))


def unknown_for_too_long(attempt: Attempt, why: str) -> Keep:
    """Nobody could say for a day (or `give_up_after`) what became of it."""
    return held_as(attempt, why)


def unanswered(attempt: Attempt, terms: Terms, now: datetime, next_at: datetime, error: str | None) -> Keep:
    """Nobody can say just now what became of its call: asked again later, for as long as `UNKNOWN_HELD_AFTER` or `give_up_after` says."""
    limit = terms.retry.give_up_after or UNKNOWN_HELD_AFTER
    if now - attempt.deadline > limit:
        return unknown_for_too_long(attempt, f"nobody could say for {limit} what became of its call")
    return unknown(attempt, next_at, error)


# ---- failed --------------------------------------------------------------------------------------------------------------------
def retry_failed(attempt: Attempt, terms: Terms, facts: Facts, now: datetime, *, blocked: bool) -> Decision:
    """A failed attempt whose `next_at` has passed."""
    if facts.gone or not facts.exists:
        return Delete()
    if blocked:  # another call on the record is not settled: neither a call nor a handler may act on the record as if it had not been made
        return Wait()
    if facts.expired:  # before the last try: nothing is worth doing any more, so it does not matter how often it was tried
        return Expired(unsure=False)
    if last_try_used(terms.retry, attempt.failures, attempt.since, now):
        return GaveUp(unsure=False)
    return Begin(attempt)


def expired_in_vain(attempt: Attempt, terms: Terms, now: datetime, next_at: datetime, error: str) -> Keep:
    """The `expired` handler raised or made no progress: it is tried again, and held after the last try. A doubt under again() stays one."""
    state = State.DOUBT if attempt.unsure else State.FAILED
    after = replace(attempt, state=state, failures=attempt.failures + 1, next_at=next_at, error=error, why=IN_VAIN)
    if last_try_used(terms.retry, after.failures, after.since, now):
        return held_as(after, f"{IN_VAIN}: {error}")
    return Keep(after)


IN_VAIN = "it is too late for it, and its expired handler failed"


def held_as(attempt: Attempt, why: str, *, error: str | None = None) -> Keep:
    """Held for a person, with the reason; what is unsure stays so."""
    return Keep(replace(attempt, state=State.HELD, next_at=None, why=why, error=error or attempt.error))


# ---- a call is begun -----------------------------------------------------------------------------------------------------------
def begun(  # noqa: PLR0913  # what a call has
    attempt: Attempt, *, worker: int, call: int, now: datetime, deadline: datetime, together: int = 0, begun_with: str | None = None
) -> Attempt:
    """The attempt with a new call: unsure, the key's age and a later deadline stay where an earlier call may have been made.

    Such an earlier call was the same call, or both are under again(): `settle` begins no other one. Its find may have been another.
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
        begun_with=kind.begun_again(attempt.begun_with, begun_with) if attempt.unsure else begun_with,
    )


# ---- words that come late --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class HoldNew:
    """The attempt is gone: a held one is written anew with the outcome, unless a handler takes it."""


@dataclass(frozen=True, slots=True)
class AddOutcome:
    """The attempt keeps this outcome beside those it has; `unsure` is what it becomes."""

    unsure: bool
    loudly: str | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """It says nothing new; a line in the log."""

    say: str


def comes_back(facts: Facts, *, outcome: bool, again: bool, blocked: bool) -> bool:
    """The attempt is gone though its worker lives, never lost its lock, and has not removed it. Whether it stands again, as it was, before
    its word is put to it.

    outcome: an outcome is there; it is concluded where condition and occurrence still hold and nothing else was begun on the record. Else
    the call ended without one, so that nobody knows what became of it: a doubt, whatever its record is; under again() only where the record
    would be called once more.
    """
    return not (outcome or again) or (facts.exists and facts.holds and not blocked)


Late = Conclude | HoldNew | AddOutcome | Drop


def late(attempt: Attempt | None, policy: InDoubt | None, said: WhenOvertaken | None = None, *, own: Kind | None = None) -> Late:
    """An outcome of a call that is no longer the attempt's latest: evidence that the outside was acted on, whoever asks.

    said: what the reaction's author said of outcomes that are overtaken. own: what the call whose outcome this is was begun with; of
    another kind it says nothing of the attempt's latest call.
    """
    if attempt is None:
        if said == "drop":
            return Drop("an outcome came after its attempt was settled, and is dropped as overtaken='drop' says")
        if said is None and policy is not None and policy.kind == "again":
            return Drop("an outcome came after its attempt was settled, under again(): let go")
        return HoldNew()
    if attempt.blocking and kind.other_call(attempt.begun_with, own) is not None:
        return AddOutcome(unsure=True, loudly="an outcome of another call came while what became of the latest one is not known: held")
    match attempt.state:
        case State.DOUBT:
            return Conclude()
        case State.FAILED:
            return Conclude("an outcome came though its call was told absent: find or a person was wrong")
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


# ---- a person ----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Refuse:
    """Not possible now; why, and what is."""

    why: str


def person_retry(attempt: Attempt, terms: Terms, now: datetime) -> Keep | Conclude | Refuse:
    """`groundstate retry`: an outcome in hand is concluded again, and is never a new call."""
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
    if policy is None or policy.kind == "hold" or (key_too_old(attempt, terms, now) and not terms.has_find):
        return Refuse("nobody can say what became of its call: settle it as absent or with its outcome first")
    reason = of_other_code(attempt, terms)
    if reason is not None:
        return Refuse(f"this code cannot settle it ({reason}): settle it as absent or with its outcome, or let the code that began it run")
    return Keep(replace(fresh, state=State.DOUBT))


def person_absent(attempt: Attempt, terms: Terms, facts: Facts, now: datetime) -> Keep | Delete | Refuse:
    """`groundstate settle --absent`: a person says that the outside was not acted on."""
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
    """`groundstate settle --outcome`: a person says with which outcome the outside was acted on. Goes on as found."""
    if attempt.state is not State.HELD:
        return Refuse(f"it is {attempt.state.words}, not held: its policy settles it")
    if terms.policy is None:
        return Refuse("the reaction makes no call, so there is no outcome to settle it with: `retry` or `forget` it")
    if attempt.outcome is not None and attempt.unsure and now <= attempt.deadline + terms.settle_after:
        return Refuse("a later call of it may still be on its way: settle it after its deadline and settle_after")
    return Conclude()


def one_of_several(attempt: Attempt, remaining: str) -> Keep:
    """One of several outcomes was concluded: the others stay listed, since each says that the outside was acted on."""
    why = (
        "one of its outcomes was concluded, and these came as well: `retry` gives them to `overtaken`; or undo them outside, then `forget`"
    )
    return Keep(replace(attempt, state=State.HELD, unsure=False, outcome=remaining, why=why, error=None, next_at=None))


def person_forget(attempt: Attempt, terms: Terms, facts: Facts, now: datetime) -> Delete | Refuse:
    """`groundstate forget`: refused while condition and occurrence hold, since that would be a new call."""
    if attempt.state is not State.HELD:
        return Refuse(f"it is {attempt.state.words}, not held")
    if facts.exists and facts.holds:
        return Refuse("its condition holds, so forgetting it would be a new call: change the record first, or `retry` or `settle` it")
    if attempt.unsure and now <= attempt.deadline + terms.settle_after:
        return Refuse("its call may still be on its way; forget it after its deadline and settle_after")
    return Delete()
