"""Limits how many calls of all workers may be in flight at once, by numbered locks (slots) that are freed when their holder dies.

Never waits for a slot. A worker takes as many as it needs, keeps them while calls use them, and gives back what it did not need for a short
while, so that other workers get some. No row says that a call is running.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from groundstate.engine.sql import lock_ids
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.specs import ServiceSpec

LINGER_S = 0.05  # seconds: how long a slot is kept that no call uses
AGAIN_S = 0.02  # seconds until a slot that was not free is tried again; doubled with each further try
AGAIN_MOST_S = 0.2  # seconds: the longest such wait, before jitter
WHOLE = ""
# What a limit applies to: a service as a whole (''), one tenant of it ('=' and the value of `per`), or calls without a tenant (None).
LimitedScope = tuple[ServiceSpec, str | None]


def most_at_once(place: LimitedScope) -> int | None:
    """Return how many calls to a service, or for one tenant of it, all workers may have in flight; None where there is no such limit, and
    so no slots.
    """
    service, tenant = place
    if tenant is None:
        return None
    return service.limit if tenant == WHOLE else service.limit_per


@dataclass
class Slots:
    """Holds the slots of one worker; used by its transactions' thread only. A worker that lost its lock and took it again has none, since
    slots are freed with the lock.
    """

    worker_state: WorkerState
    _incarnation: tuple[int, int] = (0, 0)
    _held: dict[LimitedScope, set[int]] = field(default_factory=dict)
    _idle_since: dict[LimitedScope, float] = field(default_factory=dict)
    _again_at: dict[LimitedScope, float] = field(default_factory=dict)
    _refused: dict[LimitedScope, float] = field(default_factory=dict)  # seconds that the latest wait lasted

    def held(self, place: LimitedScope) -> int:
        self._forget_old_life()
        return len(self._held.get(place, ()))

    def refused(self, place: LimitedScope) -> bool:
        """Return whether the latest try got fewer slots than were wanted."""
        self._forget_old_life()
        return place in self._again_at

    def retry(self, wanted: Callable[[LimitedScope], bool], now: float) -> set[LimitedScope]:
        """Try to take one more slot wherever fewer were free than wanted, without a transaction; return where that succeeded."""
        self._forget_old_life()
        for place in [one for one in self._again_at if not wanted(one)]:
            del self._again_at[place]
            self._refused.pop(place, None)
        tried = [place for place, at in self._again_at.items() if at <= now]
        self.take({place: self.held(place) + 1 for place in tried}, now)
        return {place for place in tried if place not in self._again_at}

    def take(self, needed: Mapping[LimitedScope, int], now: float) -> None:
        """Take slots until each service or tenant has as many as it needs, as far as they are free."""
        self._forget_old_life()
        wanted = {place: count - self.held(place) for place, count in needed.items()}
        wanted = {place: more for place, more in wanted.items() if more > 0 and self._again_at.get(place, 0.0) <= now}
        if not wanted:
            return
        free = {place: self._not_ours(place) for place in wanted}
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

    def take_again(self, used: Mapping[LimitedScope, int], now: float) -> None:
        """Take the slots of calls in flight again, as far as they are free, after they were lost together with the worker's lock."""
        if self._died:
            self.take({place: count for place, count in used.items() if most_at_once(place) is not None}, now)

    @property
    def _died(self) -> bool:
        return self._incarnation != self.worker_state.incarnation.holder

    def give_back(self, used: Callable[[LimitedScope], int], now: float) -> None:
        """Give back the slots that were not used for a while."""
        self._forget_old_life()
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
    def waits(self) -> bool:
        """Return whether some slots are to be tried again."""
        return bool(self._again_at)

    def times(self) -> list[float]:
        """Return the times at which a slot is to be given back or tried again."""
        return [*(at + LINGER_S for at in self._idle_since.values()), *self._again_at.values()]

    def _not_ours(self, place: LimitedScope) -> list[int]:
        """Return the numbers of the slots that we do not hold, from a random one on: two workers that began with the same one would compete
        for each.
        """
        service, tenant = place
        numbered = lock_ids.slot_lock_ids(self.worker_state.app, service.name, tenant or WHOLE, most_at_once(place) or 0)
        first = self.worker_state.incarnation.dice.randrange(len(numbered))
        ours = self._held.get(place, ())
        return [number for number in (*numbered[first:], *numbered[:first]) if number not in ours]

    def _forget_old_life(self) -> None:
        if self._died:
            self._incarnation = self.worker_state.incarnation.holder
            self._held, self._idle_since, self._again_at, self._refused = {}, {}, {}, {}
