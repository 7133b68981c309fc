"""Decides how many calls may be begun at an external service, and for each of its tenants: room, slots, tokens and pauses. It keeps one
worker's accounts, and begins nothing.

The tenant is the value of `per`. A tenant whose service fails, or that has no slot or token left, is skipped, and the others go on (hazard
60). Its work queue is read again when a call there has ended, or when something is free.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

from groundstate.engine.call.rate_limit import Tokens
from groundstate.engine.call.semaphore import WHOLE, LimitedScope, Slots, most_at_once
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
ANSWER_LENGTH = 200  # characters of a service's latest answer in the log line about its pause
AT_ONCE = 100  # calls that one worker has in flight at a service without a limit
HELD_BACK_MOST = 50  # how often a record that was not tried yet is looked for in vain, before a probe is of one that was
Freed = Mapping[LimitedScope, int]
NOTHING_FREED: Freed = {}


@dataclass(frozen=True)
class Paused:
    """Describes a service, or its tenant, that is paused. since, until: monotonic seconds; once `until` is past, one call at a time probes
    the service. answered: the latest error, not yet redacted.
    """

    since: float
    until: float
    answered: str


def place_of(in_flight: InFlightCall) -> LimitedScope:
    return _call(in_flight.query).service, in_flight.tenant


def whole(service: ServiceSpec) -> LimitedScope:
    return service, WHOLE


class Limits:
    """Counts what one worker has in flight and decides what it may begin. Used by its transactions' thread only."""

    def __init__(self, worker_state: WorkerState) -> None:
        self._worker_state = worker_state
        self._air: Counter[LimitedScope] = Counter()  # calls and lookups in flight, for each tenant and for the whole service
        self._hanging: Counter[LimitedScope] = (
            Counter()
        )  # those of `_air` that run past their time limit: they use up the limit, but are no probe
        self._breakers: dict[LimitedScope, Breaker] = {}
        self.paused: dict[LimitedScope, Paused] = {}  # what is reported of each service or tenant whose breaker is open
        self._slots = Slots(worker_state)
        self._free_at: dict[LimitedScope, float] = {}  # monotonic time at which the next token of a service or tenant is free
        self._tokens: Tokens | None = None
        self._freed: Freed = NOTHING_FREED
        self._granted: Counter[LimitedScope] = Counter()  # calls that the open transaction was granted
        self._held_back: Counter[LimitedScope] = Counter()  # how often records that were tried before were held back, since the last probe
        self.held_back = False  # whether the latest call of `admit` held some back
        self._passed_by: dict[WorkQueue, float] = {}  # when each queue with skipped records is read again; infinity: once a call has ended

    # ---- room ------------------------------------------------------------------------------------------------------------------
    def room(self, queue: WorkQueue, now: float, freed: Freed = NOTHING_FREED) -> int:
        """Return how many calls of this reaction may be begun now, judged from memory without a query."""
        call = queue.query.spec.call
        if call is None:
            return 0
        room = self._room_at(whole(call.service), now, freed)[0]
        return min(room, self._pause_room((call.service, None), room, now, freed)) if queue.query.spec.per is None else room

    def may_go(self, queue: WorkQueue, value: str, now: float) -> bool:
        """Return whether any call for this value of `per` may be begun now, judged from memory without a query. If not, the value is
        skipped.
        """
        if queue.query.spec.in_order is not None:
            return True  # its groups are those of `in_order`, not the tenants
        room, at = self._room_of_part((_call(queue.query).service, f"={value}"), now, self._freed)
        if room <= 0:
            self.pass_by(queue, at)
        return room > 0

    def _room_at(self, place: LimitedScope, now: float, freed: Freed = NOTHING_FREED) -> tuple[int, float]:
        """Return how many calls the limit and the rate of a service or tenant allow, and the time at which there may be more if they allow
        none.
        """
        if self._free_at.get(place, 0.0) > now:
            return 0, self._free_at[place]
        used = self._used(place, freed)
        limit = most_at_once(place)
        most = limit if limit is not None else AT_ONCE if place[1] == WHOLE else 2**31
        if limit is not None and self._slots.refused(place):
            return min(most, self._slots.held(place)) - used, math.inf  # `turn` takes the slot that is missing once it is free
        return most - used, math.inf

    def _room_of_part(self, place: LimitedScope, now: float, freed: Freed = NOTHING_FREED) -> tuple[int, float]:
        """Return how many calls the limit, the rate and the pause of a tenant allow, and the time at which there may be more."""
        room, at = self._room_at(place, now, freed)
        paused = self._pause_room(place, room, now, freed)
        if paused < room:
            more_at = self._breakers[place].more_at(now)
            return paused, math.inf if more_at is None else more_at
        return room, at

    def _pause_room(self, place: LimitedScope, free: int, now: float, freed: Freed) -> int:
        breaker = self._breakers.get(place)
        return free if breaker is None else breaker.room(free, self._used(place, freed) - self._hanging[place], now)

    def _used(self, place: LimitedScope, freed: Freed = NOTHING_FREED) -> int:
        return self._air[place] + self._granted[place] - freed.get(place, 0)

    # ---- within a transaction that begins calls --------------------------------------------------------------------------------
    def open(self, tx: Transaction, freed: Freed) -> None:
        """Prepare for a transaction that begins calls. freed: the slots that it frees when it commits."""
        self._tokens = Tokens(self._worker_state, tx, self._free_at)
        self._freed = freed
        self._granted.clear()

    def room_in(self, queue: WorkQueue) -> int:
        """Return how many calls of this reaction may be begun in this transaction, by memory and by the tokens that the database counts for
        the service.
        """
        now = time.monotonic()
        room = self.room(queue, now, self._freed)
        if room <= 0 or self._tokens is None:
            return room
        place = whole(_call(queue.query).service)
        return min(room, self._tokens.left([place]).get(place, room))

    def left_of(self, queue: WorkQueue, values: Sequence[str]) -> dict[str, int]:
        """Return how many calls may be begun in this transaction for each of these values of `per`, by memory and by the tokens counted in
        the database. A value that may begin none is skipped. The result is empty for a reaction with `in_order`, whose groups are not those
        of `per`.
        """
        if self._tokens is None or queue.query.spec.in_order is not None:
            return {}
        now, places = time.monotonic(), {value: (_call(queue.query).service, f"={value}") for value in values}
        tokens = self._tokens.left(places.values())
        left = {value: min(self._room_of_part(place, now, self._freed)[0], tokens.get(place, AT_ONCE)) for value, place in places.items()}
        for value, place in places.items():
            if left[value] <= 0:
                self.pass_by(queue, self._free_at.get(place, math.inf))
        return left

    def admit(self, queue: WorkQueue, tenants: Sequence[str | None], again: Sequence[bool]) -> list[bool]:
        """Return for each of these tenants, in their order, whether one call may be begun in this transaction. What is not admitted is
        skipped until there is room.

        again: which of the records were tried before. None of these is a probe as long as others are looked for (`holds_back`).
        """
        service = _call(queue.query).service
        back = {tenant for tenant in set(compress(tenants, again)) if self.holds_back((service, tenant))}
        self.held_back = bool(back)
        if back:
            self._held_back.update((service, tenant) for tenant in back)
            goes = [not (tried and tenant in back) for tenant, tried in zip(tenants, again, strict=True)]
            rest = iter(self._admit(queue, list(compress(tenants, goes))))
            return [may and next(rest) for may in goes]
        return self._admit(queue, tenants)

    def holds_back(self, place: LimitedScope) -> bool:
        """Return whether the next probe of this service has to be a record that was not tried yet, and there may be one.

        The failures may be those of the records: a few broken ones would keep the service paused for ever if each probe were one of them.
        """
        breaker = self._breakers.get(place)
        if breaker is None or not breaker.wants_new or self._held_back[place] >= HELD_BACK_MOST:
            return False
        now = time.monotonic()
        return any(
            queue.on and queue.not_before <= now and (queue.fresh or queue.passes)
            for queue in self._worker_state.queues
            if queue.query.spec.call is not None and queue.query.spec.call.service is place[0]
        )

    def probes(self, queue: WorkQueue) -> bool:
        """Return whether the service of this reaction, which has no tenants, is being probed."""
        breaker = self._breakers.get((_call(queue.query).service, None))
        return breaker is not None and breaker.probing and queue.query.spec.per is None

    def _admit(self, queue: WorkQueue, tenants: Sequence[str | None]) -> list[bool]:
        service, now = _call(queue.query).service, time.monotonic()
        per = queue.query.spec.per is not None
        caps = {
            (service, tenant): self._room_of_part((service, tenant), now, self._freed) if per else (len(tenants), math.inf)
            for tenant in tenants
        }
        caps[whole(service)] = self._room_at(whole(service), now, self._freed)
        chosen, left_over = _within(caps, service, tenants)
        wanted = _counted(service, tenants, chosen)
        self._slots.take({place: self._used(place, self._freed) + count for place, count in wanted.items() if most_at_once(place)}, now)
        for place in wanted:
            if most_at_once(place) is not None:
                caps[place] = _less(caps[place], self._slots.held(place) - self._used(place, self._freed), math.inf)
        if self._tokens is not None:
            for place, left in self._tokens.left(wanted).items():
                caps[place] = _less(caps[place], left, self._free_at.get(place, 0.0))
        chosen, left_over = _within(caps, service, tenants)
        granted = _counted(service, tenants, chosen)
        self._granted.update(granted)
        if self._tokens is not None:
            self._tokens.spend(granted)
        for tenant, may in zip(tenants, chosen, strict=True):
            if not may:
                places = ((service, tenant), whole(service))
                self.pass_by(queue, max(caps[place][1] for place in places if left_over[place] <= 0))
        return chosen

    def write(self) -> None:
        """Write the tokens that were spent. It is called before the commit."""
        if self._tokens is not None:
            self._tokens.write()

    def close(self) -> None:
        """Note that the transaction has ended, by a commit or not."""
        if self._tokens is not None:
            self._tokens.note()
        self._tokens, self._freed = None, NOTHING_FREED
        self._granted.clear()

    # ---- calls in flight ---------------------------------------------------------------------------------------------------------
    def sent(self, in_flight: InFlightCall) -> None:
        for place in places_of(in_flight):
            self._air[place] += 1

    def hangs(self, in_flight: InFlightCall) -> None:
        """Count a call that runs past its time limit."""
        self._hanging.update(places_of(in_flight))

    def landed(self, in_flight: InFlightCall) -> None:
        _take_off(self._air, in_flight)
        if in_flight.given_up:
            _take_off(self._hanging, in_flight)
        service = _call(in_flight.query).service
        for queue in [one for one, at in self._passed_by.items() if at == math.inf and _call(one.query).service is service]:
            self._passed_by[queue] = 0.0
        if in_flight.query.spec.in_order is not None:
            # The next record of the same `in_order` value may go now.
            self._passed_by[self._worker_state.queue(in_flight.query.spec.name)] = 0.0

    def clear(self) -> None:
        """Forget all calls in flight, since none of them is waited for any more."""
        self._air.clear()
        self._hanging.clear()

    def heard(self, word: CallResult, now: float) -> bool:
        """Report a call result to the breaker of its service or tenant. Return whether that begins a pause."""
        if isinstance(word, NotSent | ThreadEnded) or (isinstance(word, Unclear) and word.in_flight.cut_off):
            return False
        place, again = place_of(word.in_flight), word.in_flight.again
        self._held_back.pop(place, None)
        breaker = self._breakers.pop(place, None) or Breaker()
        was_open = breaker.open
        match word:
            case NothingHappened(counts=False, retry_after=wait) if wait is not None:
                breaker.record_throttled(now, wait.total_seconds(), again=again)
            case NothingHappened() | Unclear():
                breaker.record_failure(word.in_flight.identity, now, again=again)
            case Returned():
                breaker.succeeded(now)
            case FoundUnknown(error=error) if error is not None:
                breaker.record_failure(word.in_flight.identity, now, lookup=True)
            case FoundAbsent() | FoundUnknown():
                breaker.record_lookup_answer(now)
        since = self.paused[place].since if place in self.paused else now
        if breaker.open:
            error = word.error if isinstance(word, NothingHappened | Unclear | FoundUnknown) else None
            self.paused[place] = Paused(since, breaker.until, error or "")
        else:
            self.paused.pop(place, None)
        if breaker != Breaker():  # a breaker in its initial state is not kept, since there may be a million tenants
            self._breakers[place] = breaker
        if breaker.open != was_open:
            what = self._pauses_in_words(self.paused[place], now) if breaker.open else f"answers again, after {now - since:.1f} s"
            log.warning(
                "the service %s%s %s",
                place[0].name,
                f", {place[1][1:]}" if place[1] else "",
                what,
                extra={"event": "service_breaker", "service": place[0].name, "open": breaker.open},
            )
        return breaker.open and not was_open

    def _pauses_in_words(self, one: Paused, now: float) -> str:
        answered = f"; its last answer: {self._worker_state.incarnation.shorten(one.answered, ANSWER_LENGTH)}" if one.answered else ""
        return f"fails: it pauses for {one.until - now:.1f} s, and is probed{answered}"

    # ---- work queues with skipped records ----------------------------------------------------------------------------------------
    def pass_by(self, queue: WorkQueue, until: float) -> None:
        self._passed_by[queue] = min(self._passed_by.get(queue, math.inf), until)

    def turn(self, now: float) -> None:
        """Prepare for a call turn: have skipped work queues read again where their time has come, or where a slot or token is free, and
        give back unused slots.
        """
        self._slots.take_again(self._air, now)
        got = {service for service, _ in self._slots.retry(self._wanted, now)}
        got |= {service for (service, _), at in self._free_at.items() if at <= now}
        for queue in self._passed_by if got else ():
            if _call(queue.query).service in got:
                self._passed_by[queue] = 0.0
        for queue in [one for one, at in self._passed_by.items() if at <= now]:
            del self._passed_by[queue]
            if queue.on:
                queue.sweep()
                queue.due, queue.seen_full = True, False
        self._slots.give_back(lambda place: self._air[place], now)
        self._free_at = {place: at for place, at in self._free_at.items() if at > now}

    def times(self, now: float) -> list[float]:
        """Return the monotonic times at which something may be begun, or is to be done, here."""
        found = [at for breaker in self._breakers.values() if (at := breaker.more_at(now)) is not None]
        found += [at for at in self._passed_by.values() if at != math.inf]
        found += self._free_at.values()
        return [*found, *self._slots.times()]

    def _wanted(self, place: LimitedScope) -> bool:
        """Return whether a work queue waits for a slot of this service or tenant."""
        queues = (queue for queue in self._worker_state.queues if queue.wants or queue in self._passed_by)
        return any(queue.query.spec.call is not None and queue.query.spec.call.service is place[0] for queue in queues)

    @property
    def in_the_air(self) -> dict[str, int]:
        """Return the number of calls and lookups in flight, by the service's name."""
        return {place[0].name: count for place, count in self._air.copy().items() if place[1] == WHOLE}

    @property
    def hanging(self) -> int:
        """Return the number of calls that run past their time limit."""
        return sum(count for place, count in self._hanging.copy().items() if place[1] == WHOLE)

    @property
    def open_breakers(self) -> list[LimitedScope]:
        return [place for place, breaker in self._breakers.copy().items() if breaker.open]

    @property
    def awaited(self) -> bool:
        """Return whether a skipped work queue may go on at a known time, or as soon as another worker gives a slot back."""
        return self._slots.waits or any(at != math.inf for at in self._passed_by.values())


def _call(query: ConditionQuery) -> CallSpec:
    call = query.spec.call
    assert call is not None  # noqa: S101  # only reactions with a call come here
    return call


def places_of(in_flight: InFlightCall) -> tuple[LimitedScope, LimitedScope]:
    place = place_of(in_flight)
    return place, whole(place[0])


def _take_off(counted: Counter[LimitedScope], in_flight: InFlightCall) -> None:
    for place in places_of(in_flight):
        counted[place] -= 1
        if not counted[place]:
            del counted[place]


def _less(cap: tuple[int, float], room: int, at: float) -> tuple[int, float]:
    return (room, at or math.inf) if room < cap[0] else cap


def _within(
    caps: Mapping[LimitedScope, tuple[int, float]], service: ServiceSpec, tenants: Sequence[str | None]
) -> tuple[list[bool], dict[LimitedScope, int]]:
    """Return for each of these tenants whether a call fits into the room of the tenant and of the service, the first ones first; and the
    room that is left.
    """
    left = {place: room for place, (room, _) in caps.items()}
    chosen = []
    for tenant in tenants:
        place = (service, tenant)
        may = left[place] > 0 and left[whole(service)] > 0
        chosen.append(may)
        if may:
            left[place] -= 1
            left[whole(service)] -= 1
    return chosen, left


def _counted(service: ServiceSpec, tenants: Iterable[str | None], chosen: Iterable[bool]) -> Counter[LimitedScope]:
    """Return how many of the chosen calls go to each tenant, and to the service as a whole."""
    some = [tenant for tenant, may in zip(tenants, chosen, strict=True) if may]
    return Counter([*((service, tenant) for tenant in some), *[whole(service)] * len(some)])
