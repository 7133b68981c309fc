"""When the next record becomes due: asked of the database, and slept upon. Holds no timer itself: all of it may be forgotten.

One statement asks all reactions, each by its index. It is asked again at each sweep, after something rang, and soon after a session of this
process wrote what a due time may be made of; the time between is measured by the monotonic clock, and nothing else is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import CompoundSelect, Connection, Integer, literal_column, select, union_all
from sqlalchemy.exc import DBAPIError

from groundstate.engine import trouble
from groundstate.engine.lane import Lane
from groundstate.engine.shift import Shift, postpone

log = logging.getLogger("groundstate")
HORIZON = timedelta(hours=1)  # what becomes due later is asked for again long before
AGAIN_S = 0.01  # so soon after it was asked it is asked again, where something was written
SHARE = 20  # and not sooner than after so many times as long as asking took
AFTER_S = 0.001  # a clock that is read in milliseconds may say a little less than it is


class Timers:
    """Of one worker; for its transactions' thread alone."""

    def __init__(self, shift: Shift) -> None:
        self._shift = shift
        self._stale = True
        self._not_before = 0.0
        self._asks: tuple[list[Lane], Any] = ([], None)  # the statement that asks these lanes

    def heard(self) -> None:
        """What a due time is made of may have been written: asked anew at one of the next turns."""
        self._stale = True

    def turn(self) -> None:
        """Rings for what is ready now, and asks for the next where that is not known."""
        now = time.monotonic()
        for lane in self._timed():
            if lane.timer is not None and now >= lane.timer:
                lane.ring()
                self._stale = True
        if self._stale and now >= self._not_before:
            self._ask()

    def wait_until(self) -> float | None:
        """When there is something to do; None while there is not."""
        times = [lane.timer for lane in self._timed() if lane.timer is not None]
        if self._stale and self._asks_any():
            times.append(self._not_before)
        return min(times, default=None)

    def _timed(self) -> list[Lane]:
        return [lane for lane in self._shift.parts if lane.question.timing is not None and lane.on]

    def _asks_any(self) -> bool:
        return any(lane.question.timing is not None and lane.on for lane in self._shift.lanes)

    def _ask(self) -> None:
        lanes = self._timed()
        self._stale = False
        if not lanes:
            return
        started = time.monotonic()
        with self._shift.database.reading() as connection:
            waits = self._waits(connection, lanes)
        asked = time.monotonic()
        for lane, wait_s in zip(lanes, waits, strict=True):
            lane.timer = None if wait_s is None else started + max(wait_s, 0.0) + AFTER_S
        self._not_before = asked + max(AGAIN_S, (asked - started) * SHARE)

    def _waits(self, connection: Connection, lanes: list[Lane]) -> list[float | None]:
        """For each lane how long it is until the next of its records is ready; None where none is in sight."""
        try:
            with connection.begin_nested():
                return self._asked(connection, lanes)
        except DBAPIError as error:
            if trouble.transient(error):
                raise
            if len(lanes) == 1:
                postpone(lanes[0])
                log.exception("%s could not be asked when it is due next, tried again", lanes[0].name)
                return [None]
            return [wait for lane in lanes for wait in self._waits(connection, [lane])]  # one cannot be asked: the others can

    def _asked(self, connection: Connection, lanes: list[Lane]) -> list[float | None]:
        if self._asks[0] != lanes:
            self._asks = (lanes, self._statement(lanes))
        found: dict[int, float] = {}
        for number, base, now in connection.execute(self._asks[1]):
            timing = lanes[number].question.timing
            assert timing is not None  # noqa: S101  # or it was not asked
            found[number] = (timing.begins(base) - now).total_seconds()
        return [found.get(number) for number in range(len(lanes))]

    def _statement(self, lanes: Sequence[Lane]) -> CompoundSelect[Any]:
        now = self._shift.database.now()
        parts = [lane.question.next_due(HORIZON).subquery() for lane in lanes]
        return union_all(*[select(literal_column(str(n), Integer), part.c.at, now) for n, part in enumerate(parts)])
