"""Data classes for a call or lookup that is in flight to an external service (InFlightCall), and for its result (CallResult). engine/call
makes the calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from groundstate.clock import Clock
from groundstate.engine.rows.attempts import Identity
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.readonly_record import GivenSnapshot
from groundstate.rules.clock_jump import NOTICED
from groundstate.rules.policy import MARGIN
from groundstate.rules.specs import ReactionSpec
from groundstate.values import keys
from groundstate.values.answers import IdempotencyKey, Occurrence, ReactionContext


def read_clocks(clock: Clock) -> tuple[float, float]:
    """Return two clock readings in seconds: one of a clock that also runs while the host is suspended, one of the wall clock (hazard 5)."""
    return clock.uptime_s(), clock.wall()


def seconds_since_clocks(before: tuple[float, float], clock: Clock) -> float:
    """Return the seconds since `before`, an earlier result of `read_clocks`. If its two clocks disagree, return the greater number."""
    boot, wall = read_clocks(clock)
    return max(boot - before[0], wall - before[1])


@dataclass(eq=False)
class InFlightCall:
    """One call for one attempt. If `asked_at` is set, this is a lookup instead: it asks the service what became of the call."""

    query: ConditionQuery
    identity: Identity
    call: int  # call number: random, new for each call; an attempt is written only if it still has the number
    argument: Any
    key: IdempotencyKey
    moment: ReactionContext
    occurrence: Occurrence
    begun: tuple[float, float]  # what `read_clocks` returned before the attempt was written as begun
    asked_at: datetime | None = None  # the database's time before the lookup was sent; None for a call
    incarnation: int = 0  # id of the worker incarnation that began the call
    failures: int = 0  # how often this attempt had failed before
    # In careful mode, at most this many calls may be in flight at once, this call included: 1 means that this call must be alone.
    # Outside of careful mode it is 0.
    together: int = 0
    ends_s: float | None = None  # monotonic seconds at which the call times out; None before it is sent
    given_up: bool = False  # whether the call timed out and its thread (or its task, despite the cancellation) still runs
    answered: bool = False  # whether its result has arrived, though it may not be in the database yet
    counted: bool = False  # whether the end of the call was added to the counters
    cut_off: bool = False  # whether we cancelled the call, so that its result says nothing about the external service
    tenant: str | None = None  # the tenant (the value of `per`); None without `per`
    line: str | None = None  # the value of `in_order`; calls with equal values are made one at a time
    # A copy of the argument, made when the call is sent. It shows later whether the call changed its argument. None if no copy can be made.
    given: GivenSnapshot | None = None

    @property
    def is_lookup(self) -> bool:
        return self.asked_at is not None

    @property
    def was_tried_before(self) -> bool:
        """Return whether the call for this record was tried before. For a lookup this is always True."""
        return self.is_lookup or self.failures > 0 or self.moment.call_no > 1

    @property
    def spec_and_record(self) -> tuple[ReactionSpec, str]:
        """Return a pair: the spec of the reaction for which this call is made, and the key of the record as a text."""
        return self.query.spec, self.identity[2]

    @property
    def timeout(self) -> timedelta:
        call = self.query.spec.call
        return call.timeout if call else timedelta()

    def asked_at_by_clock(self, now: datetime) -> datetime:
        """Return when the lookup was sent, as a time of the database's clock. now: what that clock shows; it may have been set back
        since.
        """
        asked_at, at_latest = self.asked_at or now, now - timedelta(seconds=self.query.database.clock.uptime_s() - self.begun[0])
        return at_latest if asked_at - at_latest > NOTICED else asked_at

    def may_go_out(self) -> bool:
        """Return whether the call may still be sent: its whole timeout fits before its deadline, which was set when it was begun."""
        return self.is_lookup or seconds_since_clocks(self.begun, self.query.database.clock) <= MARGIN.total_seconds()


def tenant_of(query: ConditionQuery, record: Any) -> str | None:
    """Return the tenant (the value of `per`) for this record's calls; None if the reaction has no `per` or the record is gone."""
    per = query.spec.per
    value = None if per is None or record is None else getattr(record, per.key)
    return None if value is None else f"={keys.canonical_text(value)}"


@dataclass(eq=False)
class CallResult:
    """The result of a call or lookup, as one of the classes below. It is handed to the thread that runs transactions."""

    in_flight: InFlightCall


@dataclass(eq=False)
class Returned(CallResult):
    """The call returned, or the lookup found what the call had returned; `value` is the outcome."""

    value: Any


@dataclass(eq=False)
class NothingHappened(CallResult):
    """The call was surely not done: it raised NotDone, Throttled or an exception listed in `not_done=`, or it could not be started.

    counts: whether this counts as a failure of the attempt.
    retry_after: the wait that the service asked for; None if it asked for none.
    """

    error: str
    counts: bool = True
    retry_after: timedelta | None = None


@dataclass(eq=False)
class Unclear(CallResult):
    """The call may or may not have been done: it timed out, or raised an exception that does not tell. running: whether its thread or task
    still runs.
    """

    error: str
    running: bool = False


@dataclass(eq=False)
class NotSent(CallResult):
    """The call was not sent, because of a stop, a lost lock, or a deadline that had passed."""


@dataclass(eq=False)
class ThreadEnded(CallResult):
    """The thread or task of a call that had timed out before has now ended, without an outcome."""


@dataclass(eq=False)
class FoundAbsent(CallResult):
    """The lookup answered Absent: the service knows no such call."""


@dataclass(eq=False)
class FoundUnknown(CallResult):
    """The lookup answered Unknown, or raised an exception: the call stays in doubt."""

    error: str | None = None
