"""Limits how many calls of all workers may be in flight at once, by numbered locks (slots), which are freed when the worker that holds them
dies.

Nothing here waits for a slot. A worker takes as many slots as it needs, keeps them while calls use them, and soon gives unused slots back,
so that other workers can take them. Slots are only locks: no table has a row for a slot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from groundstate.engine.sql import lock_ids
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.specs import ServiceSpec

LINGER_S = 0.05  # seconds for which an unused slot is kept
AGAIN_S = 0.02  # seconds until a slot that was not free is tried again; doubled after each try
AGAIN_MOST_S = 0.2  # seconds: the longest wait between two tries, before jitter
WHOLE = ""
# A pair of a service and a tenant, to which a limit applies. The tenant is '=' followed by the value of `per`, '' for the whole service, or
# None for calls without a tenant.
LimitedScope = tuple[ServiceSpec, str | None]


def limit_of_scope(place: LimitedScope) -> int | None:
    """Return how many calls to a service, or for one tenant of it, all workers together may have in flight; None if there is no limit.
    Without a limit, no slots are used.
    """
    service, tenant = place
    if tenant is None:
        return None
    return service.limit if tenant == WHOLE else service.limit_per


@dataclass
class Slots:
    """The slots (numbered locks, one for each call in flight) that one worker holds. Must be used only by the thread that runs its
    transactions.

    A worker that loses its own lock loses its slots with it. So when it takes its lock again, it begins without slots.
    """

    worker_state: WorkerState
    _incarnation: tuple[int, int] = (0, 0)
    _held: dict[LimitedScope, set[int]] = field(default_factory=dict)
    _idle_since: dict[LimitedScope, float] = field(default_factory=dict)
    _again_at: dict[LimitedScope, float] = field(default_factory=dict)
    _refused: dict[LimitedScope, float] = field(default_factory=dict)  # by service or tenant, the latest wait between two tries, in seconds

    def number_held(self, place: LimitedScope) -> int:
        self._forget_slots_of_lost_lock()
        return len(self._held.get(place, ()))

    def lacked_slots(self, place: LimitedScope) -> bool:
        """Return whether the latest try to take slots of this service or tenant got fewer slots than it wanted."""
        self._forget_slots_of_lost_lock()
        return place in self._again_at

    def retry_refused_slots(self, wanted: Callable[[LimitedScope], bool], now: float) -> set[LimitedScope]:
        """Try to take one more slot of each service or tenant that got too few before, if more are still wanted. Return the services and
        tenants that got one.

        No transaction is needed.
        """
        self._forget_slots_of_lost_lock()
        for place in [one for one in self._again_at if not wanted(one)]:
            del self._again_at[place]
            self._refused.pop(place, None)
        tried = [place for place, at in self._again_at.items() if at <= now]
        self.take_slots({place: self.number_held(place) + 1 for place in tried}, now)
        return {place for place in tried if place not in self._again_at}

    def take_slots(self, needed: Mapping[LimitedScope, int], now: float) -> None:
        """Take free slots until each service or tenant has as many as it needs, or until none is free."""
        self._forget_slots_of_lost_lock()
        wanted = {place: count - self.number_held(place) for place, count in needed.items()}
        wanted = {place: more for place, more in wanted.items() if more > 0 and self._again_at.get(place, 0.0) <= now}
        if not wanted:
            return
        free = {place: self._slots_not_held(place) for place in wanted}
        got = self.worker_state.incarnation.liveness.take_slots([(more, free[place]) for place, more in wanted.items()])
        for place, more in wanted.items():
            ours = got.intersection(free[place])
            if ours:
                self._held.setdefault(place, set()).update(ours)
                self._refused.pop(place, None)
            if len(ours) < more:
                self._refused[place] = min(self._refused.get(place, AGAIN_S / 2) * 2, AGAIN_MOST_S)
                self._again_at[place] = now + self._refused[place] * (0.5 + self.worker_state.incarnation.dice.random())
            else:
                self._again_at.pop(place, None)

    def retake_lost_slots(self, used: Mapping[LimitedScope, int], now: float) -> None:
        """If the slots were lost together with the worker's lock, take new slots for the calls that are still in flight, as far as slots
        are free.
        used: the number of calls in flight, by service or tenant.
        """
        if self._is_lock_lost:  # `used` counts ended calls until they are concluded, so it may exceed the limit
            limited = {place: limit for place in used if (limit := limit_of_scope(place)) is not None}
            self.take_slots({place: min(used[place], limit) for place, limit in limited.items()}, now)

    @property
    def _is_lock_lost(self) -> bool:
        return self._incarnation != self.worker_state.incarnation.lock_holder_key

    def give_back_idle_slots(self, used: Callable[[LimitedScope], int], now: float) -> None:
        """Give back the slots that have been unused for LINGER_S seconds."""
        self._forget_slots_of_lost_lock()
        back: set[int] = set()
        for place, ours in list(self._held.items()):
            surplus = len(ours) - used(place)
            if surplus <= 0:
                self._idle_since.pop(place, None)
            elif now - self._idle_since.setdefault(place, now) >= LINGER_S:
                back.update(ours.pop() for _ in range(surplus))
                del self._idle_since[place]
                if not ours:
                    del self._held[place]
        if back:
            self.worker_state.incarnation.liveness.give_slots_back(back)

    @property
    def waits_for_slot(self) -> bool:
        """Return whether this worker will try again to take some slot."""
        return bool(self._again_at)

    def wake_times(self) -> list[float]:
        """Return the times, in monotonic seconds, at which a slot is to be given back or tried again."""
        return [*(at + LINGER_S for at in self._idle_since.values()), *self._again_at.values()]

    def _slots_not_held(self, place: LimitedScope) -> list[int]:
        """Return the numbers of the slots that this worker does not hold, beginning at a random slot. If all workers began at the same
        slot, they would compete for every slot.
        """
        service, tenant = place
        numbered = lock_ids.slot_lock_ids(self.worker_state.app, service.name, tenant or WHOLE, limit_of_scope(place) or 0)
        first = self.worker_state.incarnation.dice.randrange(len(numbered))
        ours = self._held.get(place, ())
        return [number for number in (*numbered[first:], *numbered[:first]) if number not in ours]

    def _forget_slots_of_lost_lock(self) -> None:
        if self._is_lock_lost:
            self._incarnation = self.worker_state.incarnation.lock_holder_key
            self._held, self._idle_since, self._again_at, self._refused = {}, {}, {}, {}
