"""Decides how many calls one worker may begin at each external service, and for each tenant of a service. It applies limits, rates and
pauses. It begins no call itself.

A record's tenant is the value of the column that its reaction declares as `per`. A tenant whose calls fail, or for which no slot or token
is free, is skipped while the others go on (hazard 60). A work queue with skipped records is read again when a call to its service has
ended, or when a slot or token may be free.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

from groundstate.engine.call.rate_limit import Tokens
from groundstate.engine.call.semaphore import WHOLE, LimitedScope, Slots, limit_of_scope
from groundstate.engine.rows.in_flight import (
    CallResult,
    FoundAbsent,
    FoundUnknown,
    InFlightCall,
    NothingHappened,
    NotSent,
    Returned,
    ThreadEnded,
    Unclear,
)
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.transaction import Transaction
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.circuit_breaker import Breaker
from groundstate.rules.specs import CallSpec, ServiceSpec

log = logging.getLogger("groundstate")
ANSWER_LENGTH = 200  # the most characters of a service's latest answer that the log line about its pause shows
AT_ONCE = 100  # the most calls that one worker has in flight at a service without a limit
HELD_BACK_MOST = 50  # records that were tried before are held back at most this many times in succession; then one may be the probe
Freed = Mapping[LimitedScope, int]
NOTHING_FREED: Freed = {}


@dataclass(frozen=True)
class Paused:
    """A pause of the calls to a service, or to one tenant of it.

    since, until: monotonic seconds. After `until`, one call at a time probes whether the service answers again.
    answered: the text of the latest error, not redacted; empty if there is none.
    """

    since: float
    until: float
    answered: str


def tenant_scope(in_flight: InFlightCall) -> LimitedScope:
    return _call_spec(in_flight.query).service, in_flight.tenant


def service_scope(service: ServiceSpec) -> LimitedScope:
    return service, WHOLE


class Limits:
    """Counts the calls that one worker has in flight, and decides how many calls it may begin. Must be used only by the thread that runs
    its transactions.
    """

    def __init__(self, worker_state: WorkerState) -> None:
        self._worker_state = worker_state
        self._air: Counter[LimitedScope] = Counter()  # number of calls and lookups in flight, by tenant and by service
        # How many calls of `_air` run past their time limit. They count against the limit, but not as the probe of a paused service.
        self._hanging: Counter[LimitedScope] = Counter()
        self._breakers: dict[LimitedScope, Breaker] = {}
        self.paused: dict[LimitedScope, Paused] = {}  # the pause of each service or tenant whose circuit breaker is open
        self._slots = Slots(worker_state)
        self._free_at: dict[LimitedScope, float] = {}  # by service or tenant, monotonic seconds at which its next token is free
        self._tokens: Tokens | None = None
        self._freed: Freed = NOTHING_FREED
        self._granted: Counter[LimitedScope] = Counter()  # number of calls admitted in the open transaction
        # by service or tenant: how often a record that was tried before was held back, counted since the latest call result
        self._held_back: Counter[LimitedScope] = Counter()
        self.held_back = False  # whether the latest `admit_calls` held back a record that was tried before
        self._passed_by: dict[
            WorkQueue, float
        ] = {}  # the monotonic seconds at which a queue with skipped records is read again; infinity: only after a call has ended

    # ---- room ------------------------------------------------------------------------------------------------------------------
    def room_by_memory(self, queue: WorkQueue, now: float, freed: Freed = NOTHING_FREED) -> int:
        """Return how many calls of this reaction may be begun now, by the counts in memory alone. No query is made."""
        call = queue.query.spec.call
        if call is None:
            return 0
        room = self._room_in_scope(service_scope(call.service), now, freed)[0]
        return min(room, self._room_during_pause((call.service, None), room, now, freed)) if queue.query.spec.per is None else room

    def may_begin_for_tenant(self, queue: WorkQueue, value: str, now: float) -> bool:
        """Return whether a call for this value of `per` may be begun now, by the counts in memory alone. If not, note that the queue has
        skipped records.
        """
        if queue.query.spec.in_order is not None:
            return True  # for a reaction with `in_order`, `value` is an `in_order` value and not a tenant
        room, at = self._room_for_tenant((_call_spec(queue.query).service, f"={value}"), now, self._freed)
        if room <= 0:
            self.skip_queue_until(queue, at)
        return room > 0

    def _room_in_scope(self, place: LimitedScope, now: float, freed: Freed = NOTHING_FREED) -> tuple[int, float]:
        """Return a pair for a service or tenant: how many calls its limit and its rate allow now, and the monotonic seconds at which they
        may allow more (infinity if unknown).
        """
        if self._free_at.get(place, 0.0) > now:
            return 0, self._free_at[place]
        used = self._count_used(place, freed)
        limit = limit_of_scope(place)
        most = limit if limit is not None else AT_ONCE if place[1] == WHOLE else 2**31
        if limit is not None and self._slots.lacked_slots(place):
            return min(most, self._slots.number_held(place)) - used, math.inf  # `prepare_turn` takes another slot once one is free
        return most - used, math.inf

    def _room_for_tenant(self, place: LimitedScope, now: float, freed: Freed = NOTHING_FREED) -> tuple[int, float]:
        """Return a pair for a tenant: how many calls its limit, rate and pause allow now, and the monotonic seconds at which they may allow
        more (infinity if unknown).
        """
        room, at = self._room_in_scope(place, now, freed)
        paused = self._room_during_pause(place, room, now, freed)
        if paused < room:
            more_at = self._breakers[place].more_allowed_at(now)
            return paused, math.inf if more_at is None else more_at
        return room, at

    def _room_during_pause(self, place: LimitedScope, free: int, now: float, freed: Freed) -> int:
        breaker = self._breakers.get(place)
        return free if breaker is None else breaker.calls_allowed(free, self._count_used(place, freed) - self._hanging[place], now)

    def _count_used(self, place: LimitedScope, freed: Freed = NOTHING_FREED) -> int:
        return self._air[place] + self._granted[place] - freed.get(place, 0)

    # ---- within a transaction that begins calls --------------------------------------------------------------------------------
    def begin_transaction(self, tx: Transaction, freed: Freed) -> None:
        """Prepare for a transaction that begins calls. freed: by service or tenant, how many slots the commit frees."""
        self._tokens = Tokens(self._worker_state, tx, self._free_at)
        self._freed = freed
        self._granted.clear()

    def room_in_transaction(self, queue: WorkQueue) -> int:
        """Return how many calls of this reaction may be begun in this transaction, by the counts in memory and by the service's tokens in
        the database.
        """
        now = self._worker_state.clock.monotonic()
        room = self.room_by_memory(queue, now, self._freed)
        if room <= 0 or self._tokens is None:
            return room
        place = service_scope(_call_spec(queue.query).service)
        return min(room, self._tokens.calls_left([place]).get(place, room))

    def room_by_tenant(self, queue: WorkQueue, values: Sequence[str]) -> dict[str, int]:
        """Return, for each of these values of `per`, how many calls may be begun in this transaction, by the counts in memory and by the
        tokens in the database. If that is 0 for a value, note that the queue has skipped records.

        For a reaction with `in_order`, return an empty dict: `values` are not tenants then.
        """
        if self._tokens is None or queue.query.spec.in_order is not None:
            return {}
        now, places = self._worker_state.clock.monotonic(), {value: (_call_spec(queue.query).service, f"={value}") for value in values}
        tokens = self._tokens.calls_left(places.values())
        left = {
            value: min(self._room_for_tenant(place, now, self._freed)[0], tokens.get(place, AT_ONCE)) for value, place in places.items()
        }
        for value, place in places.items():
            if left[value] <= 0:
                self.skip_queue_until(queue, self._free_at.get(place, math.inf))
        return left

    def admit_calls(self, queue: WorkQueue, tenants: Sequence[str | None], again: Sequence[bool]) -> list[bool]:
        """Return, for each record, whether its call may be begun in this transaction. If some call may not be begun, note that the queue
        has skipped records.

        tenants: the tenant of each record.
        again: for each record, whether it was tried before. If it was, its call must wait while `must_hold_back_retries` is true.
        """
        service = _call_spec(queue.query).service
        back = {tenant for tenant in set(compress(tenants, again)) if self.must_hold_back_retries((service, tenant))}
        self.held_back = bool(back)
        if back:
            self._held_back.update((service, tenant) for tenant in back)
            goes = [not (tried and tenant in back) for tenant, tried in zip(tenants, again, strict=True)]
            rest = iter(self._admit_within_limits(queue, list(compress(tenants, goes))))
            return [may and next(rest) for may in goes]
        return self._admit_within_limits(queue, tenants)

    def must_hold_back_retries(self, place: LimitedScope) -> bool:
        """Return whether records that were tried before must wait, because the next probe of this service should be the call of a record
        that was not tried yet.

        The failures may come from the records and not from the service. A few broken records would keep the service paused for ever if
        every probe were the call of one of these records.
        """
        breaker = self._breakers.get(place)
        if breaker is None or not breaker.wants_untried_record or self._held_back[place] >= HELD_BACK_MOST:
            return False
        now = self._worker_state.clock.monotonic()
        return any(
            queue.is_enabled and queue.postponement.not_before <= now and (queue.rows.fresh or queue.has_pass)
            for queue in self._worker_state.queues
            if queue.query.spec.call is not None and queue.query.spec.call.service is place[0]
        )

    def is_probed(self, queue: WorkQueue) -> bool:
        """Return whether the service of this reaction is being probed after a pause, and the reaction has no tenants."""
        breaker = self._breakers.get((_call_spec(queue.query).service, None))
        return breaker is not None and breaker.probing and queue.query.spec.per is None

    def _admit_within_limits(self, queue: WorkQueue, tenants: Sequence[str | None]) -> list[bool]:
        service, now = _call_spec(queue.query).service, self._worker_state.clock.monotonic()
        per = queue.query.spec.per is not None
        caps = {
            (service, tenant): self._room_for_tenant((service, tenant), now, self._freed) if per else (len(tenants), math.inf)
            for tenant in tenants
        }
        caps[service_scope(service)] = self._room_in_scope(service_scope(service), now, self._freed)
        chosen, left_over = _fit_calls_into_room(caps, service, tenants)
        wanted = _count_by_scope(service, tenants, chosen)
        self._slots.take_slots(
            {place: self._count_used(place, self._freed) + count for place, count in wanted.items() if limit_of_scope(place)}, now
        )
        for place in wanted:
            if limit_of_scope(place) is not None:
                caps[place] = _lesser_cap(caps[place], self._slots.number_held(place) - self._count_used(place, self._freed), math.inf)
        if self._tokens is not None:
            for place, left in self._tokens.calls_left(wanted).items():
                caps[place] = _lesser_cap(caps[place], left, self._free_at.get(place, 0.0))
        chosen, left_over = _fit_calls_into_room(caps, service, tenants)
        granted = _count_by_scope(service, tenants, chosen)
        self._granted.update(granted)
        if self._tokens is not None:
            self._tokens.spend_tokens(granted)
        for tenant, may in zip(tenants, chosen, strict=True):
            if not may:
                places = ((service, tenant), service_scope(service))
                self.skip_queue_until(queue, max(caps[place][1] for place in places if left_over[place] <= 0))
        return chosen

    def write_tokens(self) -> None:
        """Write to the database how many tokens were spent. Call it before the commit."""
        if self._tokens is not None:
            self._tokens.write_counts()

    def end_transaction(self) -> None:
        """Forget what concerns only the open transaction. Call it when the transaction has ended, committed or not."""
        if self._tokens is not None:
            self._tokens.note_next_free_times()
        self._tokens, self._freed = None, NOTHING_FREED
        self._granted.clear()

    # ---- calls in flight ---------------------------------------------------------------------------------------------------------
    def count_sent_call(self, in_flight: InFlightCall) -> None:
        for place in tenant_and_service_scopes(in_flight):
            self._air[place] += 1

    def count_hanging_call(self, in_flight: InFlightCall) -> None:
        """Count a call that runs past its time limit."""
        self._hanging.update(tenant_and_service_scopes(in_flight))

    def count_ended_call(self, in_flight: InFlightCall) -> None:
        _subtract_call(self._air, in_flight)
        if in_flight.given_up:
            _subtract_call(self._hanging, in_flight)
        service = _call_spec(in_flight.query).service
        for queue in [one for one, at in self._passed_by.items() if at == math.inf and _call_spec(one.query).service is service]:
            self._passed_by[queue] = 0.0
        if in_flight.query.spec.in_order is not None:
            # The next record with an equal `in_order` value may be called now.
            self._passed_by[self._worker_state.queue_named(in_flight.query.spec.name)] = 0.0

    def forget_calls_in_flight(self) -> None:
        """Forget all calls in flight. Call it when the worker stops waiting for them."""
        self._air.clear()
        self._hanging.clear()

    def report_to_breaker(self, result: CallResult, now: float) -> bool:
        """Report a call result to the circuit breaker of its service or tenant, and return whether this result begins a pause."""
        if isinstance(result, NotSent | ThreadEnded) or (isinstance(result, Unclear) and result.in_flight.cut_off):
            return False
        place, again = tenant_scope(result.in_flight), result.in_flight.was_tried_before
        self._held_back.pop(place, None)
        breaker = self._breakers.pop(place, None) or Breaker()
        was_open = breaker.is_open
        match result:
            case NothingHappened(counts=False, retry_after=wait) if wait is not None:
                breaker.record_throttled(now, wait.total_seconds(), again=again)
            case NothingHappened() | Unclear():
                breaker.record_failure(result.in_flight.identity, now, again=again)
            case Returned():
                breaker.record_success(now)
            case FoundUnknown(error=error) if error is not None:
                breaker.record_failure(result.in_flight.identity, now, lookup=True)
            case FoundAbsent() | FoundUnknown():
                breaker.record_lookup_answer(now)
        since = self.paused[place].since if place in self.paused else now
        if breaker.is_open:
            error = result.error if isinstance(result, NothingHappened | Unclear | FoundUnknown) else None
            self.paused[place] = Paused(since, breaker.until, error or "")
        else:
            self.paused.pop(place, None)
        if breaker != Breaker():  # a breaker in its initial state is not kept, since there may be a million tenants
            self._breakers[place] = breaker
        if breaker.is_open != was_open:
            what = self._describe_pause(self.paused[place], now) if breaker.is_open else f"answers again, after {now - since:.1f} s"
            log.warning(
                "the service %s%s %s",
                place[0].name,
                f", {place[1][1:]}" if place[1] else "",
                what,
                extra={"event": "service_breaker", "service": place[0].name, "open": breaker.is_open},
            )
        return breaker.is_open and not was_open

    def _describe_pause(self, one: Paused, now: float) -> str:
        answered = f"; its last answer: {self._worker_state.incarnation.shorten(one.answered, ANSWER_LENGTH)}" if one.answered else ""
        return f"fails: it pauses for {one.until - now:.1f} s, and is probed{answered}"

    # ---- work queues with skipped records ----------------------------------------------------------------------------------------
    def skip_queue_until(self, queue: WorkQueue, until: float) -> None:
        self._passed_by[queue] = min(self._passed_by.get(queue, math.inf), until)

    def prepare_turn(self, now: float) -> None:
        """Prepare for a call turn. Take missing slots that are free now, and give back unused ones. Let a work queue with skipped records
        be read again if its time has come, or if a slot or token of its service is free.
        """
        self._slots.retake_lost_slots(self._air, now)
        got = {service for service, _ in self._slots.retry_refused_slots(self._is_slot_wanted, now)}
        got |= {service for (service, _), at in self._free_at.items() if at <= now}
        for queue in self._passed_by if got else ():
            if _call_spec(queue.query).service in got:
                self._passed_by[queue] = 0.0
        for queue in [one for one, at in self._passed_by.items() if at <= now]:
            del self._passed_by[queue]
            if queue.is_enabled:
                queue.rows.request_pass()
                queue.due_work.request_attempts()
        self._slots.give_back_idle_slots(lambda place: self._air[place], now)
        self._free_at = {place: at for place, at in self._free_at.items() if at > now}

    def wake_times(self, now: float) -> list[float]:
        """Return the times, in monotonic seconds, at which a call may be begun, or a slot is to be tried again or given back."""
        found = [at for breaker in self._breakers.values() if (at := breaker.more_allowed_at(now)) is not None]
        found += [at for at in self._passed_by.values() if at != math.inf]
        found += self._free_at.values()
        return [*found, *self._slots.wake_times()]

    def _is_slot_wanted(self, place: LimitedScope) -> bool:
        """Return whether some work queue may use another slot of this service or tenant."""
        queues = (queue for queue in self._worker_state.queues if queue.has_work or queue in self._passed_by)
        return any(queue.query.spec.call is not None and queue.query.spec.call.service is place[0] for queue in queues)

    @property
    def calls_in_flight_by_service(self) -> dict[str, int]:
        """Return how many calls and lookups are in flight, by the name of the service."""
        return {place[0].name: count for place, count in self._air.copy().items() if place[1] == WHOLE}

    @property
    def number_of_hanging_calls(self) -> int:
        """Return the number of calls that run past their time limit."""
        return sum(count for place, count in self._hanging.copy().items() if place[1] == WHOLE)

    @property
    def scopes_with_open_breaker(self) -> list[LimitedScope]:
        return [place for place, breaker in self._breakers.copy().items() if breaker.is_open]

    @property
    def may_skipped_queue_go_on(self) -> bool:
        """Return whether some work queue with skipped records can go on later, at a known time or when another worker gives a slot back."""
        return self._slots.waits_for_slot or any(at != math.inf for at in self._passed_by.values())


def _call_spec(query: ConditionQuery) -> CallSpec:
    call = query.spec.call
    assert call is not None  # noqa: S101  # this module is only used for reactions with a call
    return call


def tenant_and_service_scopes(in_flight: InFlightCall) -> tuple[LimitedScope, LimitedScope]:
    place = tenant_scope(in_flight)
    return place, service_scope(place[0])


def _subtract_call(counted: Counter[LimitedScope], in_flight: InFlightCall) -> None:
    for place in tenant_and_service_scopes(in_flight):
        counted[place] -= 1
        if not counted[place]:
            del counted[place]


def _lesser_cap(cap: tuple[int, float], room: int, at: float) -> tuple[int, float]:
    return (room, at or math.inf) if room < cap[0] else cap


def _fit_calls_into_room(
    caps: Mapping[LimitedScope, tuple[int, float]], service: ServiceSpec, tenants: Sequence[str | None]
) -> tuple[list[bool], dict[LimitedScope, int]]:
    """Return a pair. Its first item says for each of these tenants, in this order, whether a call fits into the room of the tenant and of
    the service. Its second item has the room that is left after these calls, by tenant and for the service.
    """
    left = {place: room for place, (room, _) in caps.items()}
    chosen = []
    for tenant in tenants:
        place = (service, tenant)
        may = left[place] > 0 and left[service_scope(service)] > 0
        chosen.append(may)
        if may:
            left[place] -= 1
            left[service_scope(service)] -= 1
    return chosen, left


def _count_by_scope(service: ServiceSpec, tenants: Iterable[str | None], chosen: Iterable[bool]) -> Counter[LimitedScope]:
    """Return how many of these calls were chosen, by tenant and for the whole service."""
    some = [tenant for tenant, may in zip(tenants, chosen, strict=True) if may]
    return Counter([*((service, tenant) for tenant in some), *[service_scope(service)] * len(some)])
