"""Conditions that take long to ask: each is asked on a connection and a thread of its own, and the others go on beside it.

The worker's own thread asks a condition for a short while only. One that is cut there is asked here: for its keys alone, which are then
taken as if they had been hinted. Each further cut doubles how long it may take, up to some minutes, and then it runs to its end. What is
hinted is still asked for by its keys, by the worker's own thread, fewer at a time after each cut; one key that is cut alone waits until it
was found here.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection

from groundstate.engine import trouble
from groundstate.engine.lane import Lane
from groundstate.engine.question import Place, PrimaryKey
from groundstate.engine.shift import Shift
from groundstate.store.limits import Limit

log = logging.getLogger("groundstate")
LIMIT_S = 1.0  # so long the worker's own thread waits for one condition, or
LIMIT_TIMES = 20  # for so many times as long as it takes as a rule
CLAIM_TIMES = 5  # and so many times that where its records are locked and loaded as well
LIMIT_MOST_S = 300.0  # of one that is asked aside; after that it has no limit
FEWER = 8  # times fewer keys are asked for together after they were cut
REST_TIMES = 4  # as long as keys took until they were cut, the reaction's next ones wait: most of the time is the others'
KEYS_AT_ONCE = 1_000
KEYS_FEW = 50  # of a reaction whose calls are made in lines or parts: what is hinted beyond that is looked for once more


def limit_s(lane: Lane) -> float:
    """How long the worker's own thread waits for one look at this condition."""
    return max(LIMIT_S, LIMIT_TIMES * lane.asking.seconds)


def claim_s(lane: Lane) -> float:
    """How long it waits where the records are locked and loaded as well."""
    return CLAIM_TIMES * limit_s(lane)


@contextmanager
def limited(shift: Shift, lane: Lane, connection: Connection) -> Iterator[None]:
    """One look at a condition, by the worker's own thread. What takes longer is cut, and raises (`trouble.cut`)."""
    began = time.monotonic()
    with shift.database.limit(connection, limit_s(lane)):
        yield
    lane.asking.took(time.monotonic() - began)


def met(lane: Lane, error: BaseException | None) -> bool:
    """Whether it was such a cut that this lane met: it is asked aside from now on."""
    if error is None or not trouble.cut(error):
        return False
    if not lane.aside:
        log.warning(
            "%s: its condition takes longer than %.1f s to ask: from now on it is asked beside the others, which go on, and its rows"
            " are found late where no hint tells of them. `groundstate check` says which index it lacks",
            lane.name,
            limit_s(lane),
            extra={"event": "condition_slow", "reaction": lane.name},
        )
    lane.aside, lane.newest = True, False
    return True


def cut_by_keys(lane: Lane, keys: Sequence[PrimaryKey], took_s: float) -> None:
    """These were asked for by their keys, and that was cut: fewer of them come next. One alone comes again once it is found aside."""
    lane.batch = max(len(keys) // FEWER, 1)
    if len(keys) > 1:
        lane.fresh = dict.fromkeys(keys) | lane.fresh
    else:
        lane.sweep()
    lane.not_before = max(lane.not_before, time.monotonic() + REST_TIMES * took_s)


@dataclass
class _Look:
    """One look aside. Written by its thread, and read by the worker's once `ended`."""

    allowed_s: float
    limit: Limit | None = None
    ended: bool = False
    took_s: float = 0.0
    keys: Sequence[PrimaryKey] = ()
    cursor: Place | None = None  # where the pass goes on; None: it is at its end
    error: BaseException | None = None


@dataclass
class _Of:
    """What is known of one lane that is asked aside."""

    allowed_s: float = 2 * LIMIT_S
    look: _Look | None = None
    not_before: float = 0.0


@dataclass
class Aside:
    """Of one worker; for its transactions' thread alone. wake: called by others, once something was found."""

    shift: Shift
    wake: Callable[[], None]
    _lanes: dict[Lane, _Of] = field(default_factory=dict)

    def turn(self) -> None:
        """Takes over what was found, and lets the next looks begin."""
        for lane in self.shift.parts:
            if not lane.aside:
                continue
            of = self._lanes.setdefault(lane, _Of())
            if of.look is not None and of.look.ended:
                self._take(lane, of, of.look)
            if of.look is None and self._may_begin(lane) and time.monotonic() >= of.not_before:
                self._begin(lane, of)

    def wait_until(self) -> float | None:
        """When there is something to do here; None while nothing but an answer is waited for."""
        return min((of.not_before for lane, of in self._lanes.items() if of.look is None and self._may_begin(lane)), default=None)

    def stop(self) -> None:
        """Nobody waits for an answer any more."""
        for of in self._lanes.values():
            if of.look is not None and of.look.limit is not None:
                of.look.limit.until_s = 0.0

    def _may_begin(self, lane: Lane) -> bool:
        """Not before what was found is taken, which would be found again."""
        waits = bool(lane.fresh) or lane.barred is not None or lane.lacks is not None or lane.left_to_others or lane.search is not None
        return not waits and lane.aside and lane.on and lane.backlog and self.shift.stopping is None

    def _begin(self, lane: Lane, of: _Of) -> None:
        of.look = _Look(of.allowed_s)
        ask = threading.Thread(target=self._ask, args=(lane, lane.cursor, of.look), name=f"groundstate-aside-{lane.name}", daemon=True)
        ask.start()

    def _ask(self, lane: Lane, cursor: Place | None, look: _Look) -> None:
        began = time.monotonic()
        try:
            with self.shift.database.reading() as connection, self.shift.database.limit(connection, look.allowed_s) as look.limit:
                self._find(lane, cursor, look, connection)
        except BaseException as error:
            look.error = error
        look.took_s = time.monotonic() - began
        look.ended = True
        self.wake()

    def _find(self, lane: Lane, cursor: Place | None, look: _Look, connection: Connection) -> None:
        if lane.groups is not None:
            most = KEYS_FEW if lane.question.spec.call is not None else KEYS_AT_ONCE
            page = lane.groups.page(connection, cursor, most, lambda _value: True)
            look.keys, look.cursor = page.keys[:most], page.cursor
            return
        rows = [tuple(row) for row in connection.execute(lane.question.places_after(cursor, KEYS_AT_ONCE, crowded=True))]
        look.keys = [lane.question.key_in(row) for row in rows]
        look.cursor = rows[-1] if len(rows) == KEYS_AT_ONCE else None

    def _take(self, lane: Lane, of: _Of, look: _Look) -> None:
        of.look, of.not_before = None, time.monotonic() + look.took_s
        error = look.error
        if error is not None and trouble.cut(error):
            of.allowed_s = 2 * of.allowed_s if 2 * of.allowed_s <= LIMIT_MOST_S else math.inf
            log.debug("%s was cut after %.0f s", lane.name, look.took_s, extra={"event": "condition_cut", "reaction": lane.name})
            return
        if error is not None:
            lane.aside = trouble.transient(error)  # else the worker's own thread meets it as it meets that of any other lane
            return
        usual_s = lane.asking.took(look.took_s)
        lane.fresh.update(dict.fromkeys(look.keys))
        lane.cursor = look.cursor
        if look.cursor is None:
            lane.swept()
        if max(usual_s, look.took_s) < LIMIT_S / 2:
            lane.aside = False
            del self._lanes[lane]
