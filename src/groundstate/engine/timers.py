"""When the next record becomes due: asked of the database, and slept upon. Holds no timer itself: all of it may be forgotten.

One statement asks all reactions for their next few, each by its index. It is asked again at each sweep, after the last of them rang, and
soon after a session of this process wrote what a due time may be made of; the time between is measured by the monotonic clock, and nothing
else is. What became due since it was asked before is in the answer and rings at once, so that nothing falls between two of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import CompoundSelect, Connection, Integer, bindparam, literal_column, null, select, type_coerce, union_all
from sqlalchemy.exc import DBAPIError

from groundstate.engine import aside, barred, set_apart, trouble, unfit
from groundstate.engine.lane import Lane
from groundstate.engine.shift import Shift, postpone
from groundstate.engine.timing import InstantIfAny, Timing
from groundstate.rules.policy import LONG_AGO
from groundstate.rules.usual import Usual
from groundstate.store.tables import Instant

HORIZON = timedelta(hours=1)  # what becomes due later is asked for again long before
AT_ONCE = 32  # due times of a reaction that are known at once: no look must come between two that are close
AGAIN_S = 0.01  # so soon after it was asked it is asked again, where something was written
SHARE = 20  # and not sooner than after so many times as long as asking takes as a rule
AFTER_S = 0.001  # a clock that is read in milliseconds may say a little less than it is


class Timers:
    """Of one worker; for its transactions' thread alone."""

    def __init__(self, shift: Shift) -> None:
        self._shift = shift
        self._stale = True
        self._not_before = 0.0
        self._cost = Usual()
        self._asks: tuple[list[tuple[Lane, int]], Any] = ([], None)  # the statement that asks these lanes
        self._rung_until = LONG_AGO  # by the database's clock: what became due until then has rung
        self._said: list[datetime] = []  # what that clock said while it was asked

    def heard(self) -> None:
        """What a due time is made of may have been written: asked anew at one of the next turns."""
        self._stale = True

    def turn(self) -> None:
        """Rings for what is ready now, and asks for the next where that is not known."""
        now = time.monotonic()
        for lane in self._timed():
            if lane.timers and now >= lane.timers[0]:
                lane.ring(now)
                self._stale |= not lane.timers
        if self._stale and now >= self._not_before:
            self._ask()

    def wait_until(self) -> float | None:
        """When there is something to do; None while there is not."""
        times = [lane.timers[0] for lane in self._timed() if lane.timers]
        if self._stale and self._asks_any():
            times.append(self._not_before)
        return min(times, default=None)

    def _timed(self) -> list[Lane]:
        return [
            lane
            for lane in self._shift.parts
            if lane.question.timing is not None and lane.on and not (lane.barred is not None or lane.lacks or lane.aside or lane.search)
        ]

    def _asks_any(self) -> bool:
        return any(lane.question.timing is not None and lane.on for lane in self._shift.lanes)

    def _ask(self) -> None:
        lanes = self._timed()
        if not lanes:
            self._stale = False
            return
        started, since, self._said = time.monotonic(), self._rung_until, []
        with self._shift.database.reading(wait=barred.WAIT) as connection:
            waits = self._waits(connection, lanes)
        asked = time.monotonic()
        self._rung_until = min(self._said, default=since)
        self._stale = self._rung_until < since  # the host's clock went back: what is due between was not asked for
        for lane, some in zip(lanes, waits, strict=True):
            # From when it had answered, and not from when it was asked: one that rings too early would not ring again.
            lane.timers = [asked + max(wait_s, 0.0) + AFTER_S for wait_s in some]
        self._not_before = asked + max(AGAIN_S, self._cost.took(asked - started) * SHARE)

    def _waits(self, connection: Connection, lanes: list[Lane]) -> list[list[float]]:
        """For each lane how long it is until the next of its records are ready; none where none is in sight."""
        try:
            allowed_s = max(aside.LIMIT_S, aside.LIMIT_TIMES * self._cost.seconds)
            with self._shift.database.limit(connection, allowed_s), connection.begin_nested():
                return self._asked(connection, lanes)
        except DBAPIError as error:
            if trouble.transient(error) and not (trouble.locked(error) or trouble.cut(error)):
                raise
            if len(lanes) == 1 and aside.met(lanes[0], error):
                return [[]]
            if len(lanes) == 1 and trouble.locked(error):
                barred.bar(self._shift, lanes[0])
                return [[]]
            if len(lanes) == 1 and (unfit.met(self._shift, lanes[0], error) or set_apart.met(self._shift, lanes[0], error)):
                return [[]]
            if len(lanes) == 1:
                postpone(lanes[0])
                set_apart.say_failed(lanes[0], error, " when it is due next")
                return [[]]
            return [waits for lane in lanes for waits in self._waits(connection, [lane])]  # one cannot be asked: the others can

    def _asked(self, connection: Connection, lanes: list[Lane]) -> list[list[float]]:
        which = [(lane, lane.question.version) for lane in lanes]
        if self._asks[0] != which:
            self._asks = (which, self._statement(lanes))
        found: list[list[float]] = [[] for _ in lanes]
        since = {_since(number): _timing(lane).base_of(self._rung_until) for number, lane in enumerate(lanes)}
        for number, base, now in connection.execute(self._asks[1], since):
            if number < 0:
                self._said.append(now)
            elif base is not None:  # or it is no time
                found[number].append((_timing(lanes[number]).begins(base) - now).total_seconds())
        return [sorted(some) for some in found]

    def _statement(self, lanes: Sequence[Lane]) -> CompoundSelect[Any]:
        now = self._shift.database.now()
        parts = [
            lane.question.next_due(HORIZON, AT_ONCE, bindparam(_since(number), type_=Instant())).subquery()
            for number, lane in enumerate(lanes)
        ]
        asked = select(literal_column("-1", Integer), type_coerce(null(), InstantIfAny()), now)
        return union_all(asked, *[select(literal_column(str(n), Integer), part.c.at, now) for n, part in enumerate(parts)])


def _timing(lane: Lane) -> Timing:
    timing = lane.question.timing
    assert timing is not None  # noqa: S101  # or it was not asked
    return timing


def _since(number: int) -> str:
    return f"rung_until_{number}"
