"""Slots: how many calls of the whole fleet may be under way at once, by numbered locks that die with their holder. Never waits for one.

A worker takes as many as it needs, keeps them while calls use them, and gives back what it did not need for a little while, so that
another worker is not starved. No row says that a call runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from groundstate.engine import numbers
from groundstate.engine.shift import Shift
from groundstate.rules.reaction import OutsideSpec

LINGER_S = 0.05  # so long a slot is kept that no call uses
AGAIN_S = 0.02  # so long after one was not to be had it is tried again, and then after twice as long
AGAIN_MOST_S = 0.2
WHOLE = ""
Place = tuple[OutsideSpec, str | None]  # an outside as a whole ('' for the part), a part of it ('=' and its name), or what has none (None)


def most_at_once(place: Place) -> int | None:
    """How many calls the whole fleet may have under way there; None: no such limit, and no slots."""
    outside, part = place
    if part is None:
        return None
    return outside.limit if part == WHOLE else outside.limit_per


@dataclass
class Slots:
    """Of one worker, for its transactions' thread. A life that took its lock anew has none: they died with the lock before."""

    shift: Shift
    _life: tuple[int, int] = (0, 0)
    _held: dict[Place, set[int]] = field(default_factory=dict)
    _idle_since: dict[Place, float] = field(default_factory=dict)
    _again_at: dict[Place, float] = field(default_factory=dict)
    _refused: dict[Place, float] = field(default_factory=dict)  # how long was waited the last time, before it was tried again

    def held(self, place: Place) -> int:
        self._forget_old_life()
        return len(self._held.get(place, ()))

    def refused(self, place: Place) -> bool:
        """Whether there were fewer than wanted when it was last tried."""
        self._forget_old_life()
        return place in self._again_at

    def retry(self, wanted: Callable[[Place], bool], now: float) -> set[Place]:
        """Where there were fewer than wanted: one more, if it is free by now, before anybody opens a transaction for it."""
        self._forget_old_life()
        for place in [one for one in self._again_at if not wanted(one)]:
            del self._again_at[place]
            self._refused.pop(place, None)
        tried = [place for place, at in self._again_at.items() if at <= now]
        self.take({place: self.held(place) + 1 for place in tried}, now)
        return {place for place in tried if place not in self._again_at}

    def take(self, needed: Mapping[Place, int], now: float) -> None:
        """So that so many are held of each, as far as they are free."""
        self._forget_old_life()
        wanted = {place: count - self.held(place) for place, count in needed.items()}
        wanted = {place: more for place, more in wanted.items() if more > 0 and self._again_at.get(place, 0.0) <= now}
        if not wanted:
            return
        free = {place: self._not_ours(place) for place in wanted}
        got = self.shift.life.lives.take_slots([(more, free[place]) for place, more in wanted.items()])
        for place, more in wanted.items():
            ours = got.intersection(free[place])
            if ours:
                self._held.setdefault(place, set()).update(ours)
                self._refused.pop(place, None)
            if len(ours) < more:
                self._refused[place] = min(self._refused.get(place, AGAIN_S / 2) * 2, AGAIN_MOST_S)
                self._again_at[place] = now + self._refused[place] * (0.5 + self.shift.life.dice.random())
            else:
                self._again_at.pop(place, None)

    def take_again(self, used: Mapping[Place, int], now: float) -> None:
        """After the lock of the life was lost, and the slots with it: those of calls that are still in the air, as far as they are free."""
        if self._died:
            self.take({place: count for place, count in used.items() if most_at_once(place) is not None}, now)

    @property
    def _died(self) -> bool:
        return self._life != self.shift.life.holder

    def give_back(self, used: Callable[[Place], int], now: float) -> None:
        """What was not used for a while."""
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
            self.shift.life.lives.give_slots_back(back)

    @property
    def waits(self) -> bool:
        """Whether some are to be tried again."""
        return bool(self._again_at)

    def times(self) -> list[float]:
        """When something is to be given back, or tried again."""
        return [*(at + LINGER_S for at in self._idle_since.values()), *self._again_at.values()]

    def _not_ours(self, place: Place) -> list[int]:
        """Numbers of others, or of nobody, another one first each time: two workers that begin with the same would meet at each."""
        outside, part = place
        numbered = numbers.slots(self.shift.app, outside.name, part or WHOLE, most_at_once(place) or 0)
        first = self.shift.life.dice.randrange(len(numbered))
        ours = self._held.get(place, ())
        return [number for number in (*numbered[first:], *numbered[:first]) if number not in ours]

    def _forget_old_life(self) -> None:
        if self._died:
            self._life = self.shift.life.holder
            self._held, self._idle_since, self._again_at, self._refused = {}, {}, {}, {}
