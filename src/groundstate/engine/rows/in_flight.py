"""A call or a lookup in flight to an external service (InFlightCall), and the result that comes back (CallResult). Only values: engine/call
runs them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from groundstate.engine.rows.attempts import Identity
from groundstate.engine.rows.clock_jumps import boot_s
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.readonly_record import GivenSnapshot
from groundstate.rules.clock_jump import NOTICED
from groundstate.rules.policy import MARGIN
from groundstate.rules.specs import ReactionSpec
from groundstate.values import keys
from groundstate.values.answers import IdempotencyKey, Occurrence, ReactionContext


def clocks() -> tuple[float, float]:
    """Return seconds by two clocks: one that goes on while the host is suspended, and the wall clock (hazard 5)."""
    return boot_s(), time.time()


def seconds_since_clocks(before: tuple[float, float]) -> float:
    """Return the seconds since an earlier reading of `clocks`, by whichever of the two clocks went further."""
    boot, wall = clocks()
    return max(boot - before[0], wall - before[1])


@dataclass(eq=False)
class InFlightCall:
    """One call, or one lookup if `asked_at` is set, in flight for one attempt."""

    query: ConditionQuery
    identity: Identity
    call: int  # the fence: a random number, new for each call
    argument: Any
    key: IdempotencyKey
    moment: ReactionContext
    occurrence: Occurrence
    begun: tuple[float, float]  # `clocks()`, read before the begin was sent to the database
    asked_at: datetime | None = None  # set for a lookup: the database's time, read before it was asked
    incarnation: int = 0  # the worker incarnation that began it
    failures: int = 0  # how often this attempt had failed before
    together: int = 0  # careful mode: the most calls that may be in flight together, this one included; 0 outside of it
    ends_s: float | None = None  # monotonic seconds at which it times out; None before it was sent
    given_up: bool = False  # it timed out and still runs, in its thread, or in its task in spite of the cancellation
    answered: bool = False  # its result has arrived, though perhaps not yet in the database
    counted: bool = False  # its end was added to the counters
    cut_off: bool = False  # we ended it ourselves, which says nothing about the external service
    tenant: str | None = None  # the tenant: the value of `per`
    line: str | None = None  # the value of `in_order`: calls that share it go one at a time
    given: GivenSnapshot | None = None  # the snapshot before it was sent; None until then, and if `prepare` made the argument

    @property
    def is_lookup(self) -> bool:
        return self.asked_at is not None

    @property
    def again(self) -> bool:
        """Whether this record has been tried before, or is asked after."""
        return self.is_lookup or self.failures > 0 or self.moment.call_no > 1

    @property
    def subject(self) -> tuple[ReactionSpec, str]:
        """The spec of the reaction and the text of the record that this call is for."""
        return self.query.spec, self.identity[2]

    @property
    def timeout(self) -> timedelta:
        call = self.query.spec.call
        return call.timeout if call else timedelta()

    def asked_by(self, now: datetime) -> datetime:
        """Return when the lookup was asked, on the database's clock as it is set now: it shows `now`, and may have been set back since."""
        asked_at, at_latest = self.asked_at or now, now - timedelta(seconds=boot_s() - self.begun[0])
        return at_latest if asked_at - at_latest > NOTICED else asked_at

    def may_go_out(self) -> bool:
        """Whether so little time has passed since the begin that the call's whole timeout fits before its deadline."""
        return self.is_lookup or seconds_since_clocks(self.begun) <= MARGIN.total_seconds()


def tenant_of(query: ConditionQuery, record: Any) -> str | None:
    """Return the tenant of the external service that this record's calls go to; None if the reaction has no `per` or the record is gone."""
    per = query.spec.per
    value = None if per is None or record is None else getattr(record, per.key)
    return None if value is None else f"={keys.text(value)}"


@dataclass(eq=False)
class CallResult:
    """The result of an in-flight call, on its way back to the thread that runs transactions."""

    in_flight: InFlightCall


@dataclass(eq=False)
class Returned(CallResult):
    """The call returned, or the lookup found what the call had returned; `value` is the outcome."""

    value: Any


@dataclass(eq=False)
class NothingHappened(CallResult):
    """The call raised NotDone, Throttled or a listed exception type: it was surely not done."""

    error: str
    counts: bool = True
    retry_after: timedelta | None = None


@dataclass(eq=False)
class Unclear(CallResult):
    """The call timed out, or raised what does not say whether it was done. `running` is True while its thread or task goes on."""

    error: str
    running: bool = False


@dataclass(eq=False)
class NotSent(CallResult):
    """The call was not sent, because of a stop, a lost lock, or a deadline that had passed."""


@dataclass(eq=False)
class ThreadEnded(CallResult):
    """The thread or task of a call that had timed out has ended without an outcome."""


@dataclass(eq=False)
class FoundAbsent(CallResult):
    """The lookup answered Absent."""


@dataclass(eq=False)
class FoundUnknown(CallResult):
    """The lookup answered Unknown, or raised an exception."""

    error: str | None = None
