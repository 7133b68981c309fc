"""What a worker looks at before it takes a lock: whether a pass that begins has anything to take, and rows written beside a long one.

Most passes find nothing, and must not lock for that. Reads alone; what cannot be asked waits, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, exists, literal_column, select
from sqlalchemy.exc import DBAPIError

from groundstate.engine import aside, attempts, barred, set_apart, trouble, unfit
from groundstate.engine.fleet import Fleet
from groundstate.engine.lane import Lane
from groundstate.engine.shift import Shift, postpone
from groundstate.engine.timers import Timers

T = TypeVar("T")
NEWEST_AT_ONCE = 50
TOGETHER_FROM = 4  # so many conditions are asked by one statement
TOGETHER_S = 1.0  # for so long conditions are asked one after another; the others follow at the next turn
TOGETHER_MOST = 128  # and no more than so many: the database plans all of it at once
APART_S = 60.0  # so long each is asked by itself, after one could not be asked


class Looks:
    """Of one worker; for its transactions' thread alone."""

    def __init__(self, shift: Shift, fleet: Fleet, timers: Timers) -> None:
        self._shift = shift
        self._fleet = fleet
        self._timers = timers
        self._together: dict[tuple[tuple[Lane, int], ...], Any] = {}
        self._apart_until = 0.0
        self.took_s = 0.0  # since this was last set to nothing

    def turn(self) -> None:
        """Takes over what was heard, and looks what a sweep found worth a look."""
        started = time.monotonic()
        for lane in self._shift.parts:
            if lane.listen() and lane.question.timing is not None:
                self._timers.heard()
            if lane.newest and lane.on and lane.lacks is None and lane.search is None:
                self._look_at_newest(lane)
        self._look_before_locking()
        self.took_s += time.monotonic() - started

    def _look_before_locking(self) -> None:
        now = time.monotonic()
        beginning = [lane for lane in self._shift.parts if lane.passes and not lane.probed and lane.not_before <= now]
        due_lanes = [lane for lane in self._shift.lanes if lane.due]
        if not beginning and not due_lanes:
            return
        try:
            with self._shift.database.reading(wait=barred.WAIT) as connection:
                if due_lanes and connection.execute(attempts.ANY).first() is None:
                    for lane in due_lanes:
                        lane.due, lane.due_cursor = False, None
                self._look_at(connection, beginning)
        except DBAPIError as error:
            passing = trouble.transient(error) and not (trouble.locked(error) or trouble.cut(error))
            if passing or now < self._apart_until:
                raise
            self._apart_until = now + APART_S  # or takes long: one of them cannot be asked: which one is seen when each is asked by itself

    def _look_at(self, connection: Connection, beginning: list[Lane]) -> None:
        apart = time.monotonic() < self._apart_until
        plain = [] if apart else [lane for lane in beginning if lane.groups is None]
        if len(plain) < TOGETHER_FROM:
            plain = []
        for first in range(0, len(plain), TOGETHER_MOST):
            some = tuple(plain[first : first + TOGETHER_MOST])
            began = time.monotonic()
            with self._shift.database.limit(connection, max(map(aside.limit_s, some))):
                row = connection.execute(self._of_all(some)).one()
            for lane, found in zip(some, row, strict=True):
                lane.asking.took((time.monotonic() - began) / len(some))
                self._looked_at(connection, lane, found=bool(found))
        asked, began = set(plain), time.monotonic()
        for lane in beginning:
            if lane in asked:
                continue
            rows = self._asked(lane, connection, partial(lane.probe, connection))
            if rows is None or time.monotonic() - began > TOGETHER_S:
                return
            self._looked_at(connection, lane, found=bool(rows))

    def _looked_at(self, connection: Connection, lane: Lane, *, found: bool) -> None:
        lane.probed = True
        if not found:
            lane.swept()
        elif lane.elsewhere:
            size = self._fleet.size
            self._asked(lane, connection, lambda: lane.begin_elsewhere(connection, self._shift.life.dice.randrange(size)))

    def _of_all(self, some: tuple[Lane, ...]) -> Any:
        """One row: for each of them whether there is anything that a pass would look at."""
        which = tuple((lane, lane.question.version) for lane in some)
        made = self._together.get(which)
        if made is None:
            if len(self._together) > TOGETHER_MOST:
                self._together.clear()
            one: Any = literal_column("1")
            each = [exists(select(one).select_from(lane.question.entity).where(lane.question.takeable)) for lane in some]
            made = self._together[which] = select(*[found.label(f"found_{number}") for number, found in enumerate(each)])
        return made

    def _asked(self, lane: Lane, connection: Connection, ask: Callable[[], T]) -> T | None:
        """The answer; None where this lane's condition cannot be asked: it waits, and the others go on."""
        try:
            with aside.limited(self._shift, lane, connection):
                return ask()
        except Exception as error:
            if not isinstance(error, DBAPIError) and not trouble.unloadable(error):
                raise
            if aside.met(lane, error):
                return None
            if trouble.locked(error):
                barred.are_barred(self._shift, [lane])
                return None
            if trouble.transient(error):
                raise
            if unfit.met(self._shift, lane, error) or set_apart.met(self._shift, lane, error):
                return None
            postpone(lane)
            set_apart.say_failed(lane, error)
            return None

    def _look_at_newest(self, lane: Lane) -> None:
        """While a long backlog is gone through in key order, rows that somebody else has just written must not wait for its end."""
        lane.newest = False
        with self._shift.database.reading(wait=barred.WAIT) as connection:
            newest = lane.question.places_after(None, NEWEST_AT_ONCE, crowded=True, newest=True)
            rows = self._asked(lane, connection, lambda: connection.execute(newest).all())
            lane.fresh.update(dict.fromkeys(lane.question.key_in(tuple(row)) for row in rows or ()))
