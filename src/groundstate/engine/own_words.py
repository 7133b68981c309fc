"""Writes what a worker says of itself (says.py) into its own row: when that has changed, and at most once in a while.

A report, on which nothing waits: where it cannot be written, it is tried again later, and the worker's own log tells what it would have.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import update

from groundstate.engine.crowd import Crowd
from groundstate.engine.limits import ANSWER_LENGTH, Limits, Paused
from groundstate.engine.rings import Step as RingStep
from groundstate.engine.says import Failing, Lacks, Pause, Ring, Says, Step, written
from groundstate.engine.shift import Shift
from groundstate.engine.slots import Place
from groundstate.store.tables import worker as table

EACH_S = 1.0  # how often it is looked whether there is something else to say
NAMED_MOST = 100  # pauses, and rings; all are counted
STEPS_MOST = 10  # of one ring
WHY_LENGTH = 500  # of what a reaction lacks
TROUBLED_AFTER = 4  # so often in a row a reaction could not be carried out as a whole: it is tried again after most of a second then
WAIT = timedelta(milliseconds=100)  # for the lock that writing needs


@dataclass(frozen=True)
class _Seen:
    """What is to be said, with times of the monotonic clock: equal as long as nothing has changed."""

    held: bool = False
    drains: bool = False
    paused: tuple[tuple[Place, Paused], ...] = ()
    paused_count: int = 0
    rings: tuple[tuple[float, tuple[RingStep, ...]], ...] = ()
    rings_count: int = 0
    leaves: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    failing: tuple[tuple[str, float, float], ...] = ()
    troubled: tuple[str, ...] = ()
    lacks: tuple[tuple[str, str], ...] = ()


class OwnWords:
    """Of one worker; for its transactions' thread alone. held: whether it waits for a go."""

    def __init__(self, shift: Shift, limits: Limits, crowd: Crowd, held: Callable[[], bool]) -> None:
        self._shift = shift
        self._limits = limits
        self._crowd = crowd
        self._held = held
        self._next = 0.0
        self._life = 0
        self._written = _Seen()
        self._failing_since: dict[str, float] = {}
        self._drains_since: float | None = None

    def turn(self) -> None:
        """Looks, now and then, and writes what is new."""
        now, life = time.monotonic(), self._shift.life
        if now < self._next or not life.sound:
            return
        self._next = now + EACH_S
        if self._life != life.id:
            self._life, self._written = life.id, _Seen()  # another row, which says nothing yet
        seen = self._look(now)
        if seen != self._written:
            with contextlib.suppress(Exception):  # it is tried again; what stands in the way is told by who cannot do without
                self._write(seen)
                self._written = seen

    def _look(self, now: float) -> _Seen:
        shift, paused = self._shift, self._limits.paused
        some = sorted(paused, key=lambda place: (place[0].name, place[1] is not None, place[1] or ""))
        rings = shift.life.rings.going(now)
        return _Seen(
            held=self._held(),
            drains=self._drains(now),
            paused=tuple((place, paused[place]) for place in some[:NAMED_MOST]),
            paused_count=len(some),
            rings=tuple((since, tuple(steps[:STEPS_MOST])) for since, steps in rings[:NAMED_MOST]),
            rings_count=len(rings),
            leaves=tuple(self._crowd.kept_out),
            aside=_names(lane.name for lane in shift.lanes if lane.aside),
            failing=self._failing(now),
            troubled=_names(lane.name for lane in shift.lanes if lane.trouble >= TROUBLED_AFTER and not (lane.barred or lane.lacks)),
            lacks=tuple(sorted((lane.name, lane.lacks) for lane in shift.lanes if lane.lacks is not None)),
        )

    def _drains(self, now: float) -> bool:
        """Not of a drain that is over in a moment."""
        if self._shift.stopping is None:
            return False
        if self._drains_since is None:
            self._drains_since = now
        return now >= self._drains_since + EACH_S

    def _failing(self, now: float) -> tuple[tuple[str, float, float], ...]:
        until = {lane.name: lane.failing.until for lane in self._shift.lanes if lane.question.spec.call is None and lane.failing.open}
        self._failing_since = {name: self._failing_since.get(name, now) for name in until}
        return tuple((name, self._failing_since[name], until[name]) for name in sorted(until))

    def _write(self, seen: _Seen) -> None:
        life = self._shift.life
        with life.transaction(wait=WAIT) as tx:
            shown, clock = tx.now, time.monotonic()

            def at(seconds: float) -> datetime:
                return shown + timedelta(seconds=seconds - clock)

            says = Says(
                held=seen.held,
                drains=seen.drains,
                paused=tuple(self._pause(place, one, at) for place, one in seen.paused),
                paused_count=seen.paused_count,
                rings=tuple(Ring(at(since), tuple(_step(one) for one in steps)) for since, steps in seen.rings),
                rings_count=seen.rings_count,
                leaves=seen.leaves,
                aside=seen.aside,
                failing=tuple(Failing(name, at(since), at(until)) for name, since, until in seen.failing),
                troubled=seen.troubled,
                lacks=tuple(Lacks(name, life.shorten(why, WHY_LENGTH)) for name, why in seen.lacks),
            )
            tx.connection.execute(update(table).where(table.c.life == life.id).values(says=written(says)))

    def _pause(self, place: Place, one: Paused, at: Callable[[float], datetime]) -> Pause:
        outside, part = place
        answered = self._shift.life.shorten(one.answered, ANSWER_LENGTH) if one.answered else ""
        return Pause(outside.name, part[1:] if part else None, at(one.since), at(one.until), answered)


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


def _step(one: RingStep) -> Step:
    question, key, occurrence = one
    return Step(question.spec.name, question.spec.table_name, question.record_text(key), occurrence)
