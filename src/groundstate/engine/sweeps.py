"""When everything is asked: each second, the safety net under lost hints. Begins passes; looks at no row itself.

A worker for which another one sweeps (see fleet.py) does so rarely by itself, and looks now and then whether it is its turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from groundstate.engine import due, pulse
from groundstate.engine.fleet import Fleet
from groundstate.engine.lane import Lane
from groundstate.engine.looks import Looks
from groundstate.engine.pulse import Pulse
from groundstate.engine.shift import Shift
from groundstate.engine.timers import Timers
from groundstate.rules.usual import Usual

SWEEP_S = 1.0
SWEEP_SHARE = 0.01  # of the wall time, at most, goes into sweeps
SWEEP_LONGEST_S = 30.0
SWEEP_LANE_S = 5.0  # no reaction waits longer for a sweep than so long, or
SWEEP_LANE_TIMES = 20  # than so many times as long as its own condition takes to ask
SWEEP_LED_S = 60.0  # of a worker for which another one sweeps: a net under the net
BY_ITSELF_S = 30.0  # for so long after trouble each sweeps for itself
LOOK_S = 0.1  # how often an embedded store is asked whether another process wrote
LOOK_BUSY_S = 0.02  # the same while a backlog is worked off, when it costs nothing beside the work
LOOK_SHARE = 0.1  # so much goes, at most, into what such a look leads to


class Sweeps:
    """Of one worker; for its transactions' thread alone. keep_house: what a sweep looks at beside conditions; beat: the little of it that
    a worker does which does not sweep.
    """

    def __init__(self, shift: Shift, fleet: Fleet, looks: Looks, timers: Timers) -> None:
        self._shift = shift
        self._fleet = fleet
        self._looks = looks
        self._timers = timers
        self.next = 0.0
        self.next_look = 0.0
        self.heard_here = False  # a session of this process committed since the last look
        self.idle_s = 0.0  # spent in turns of the last sweep that did nothing: what sweeping costs
        self._left_out_s = 0.0  # what those cost which that sweep left out
        self._cost = Usual()
        self._led = False
        self._by_itself_until = 0.0

    def turn(self, keep_house: Callable[[Pulse], None], beat: Callable[[Pulse], None]) -> bool:
        """Begins a sweep if it is time; whether one began."""
        shift = self._shift
        if shift.stopping is not None:
            return False
        now = time.monotonic()
        if self._fleet.beat_is_due(now):
            beat(self._look_around(now))
        self._follow_the_fleet(now)
        if shift.next_due is not None and now >= shift.next_due:
            self._look_at_attempts(shift.lanes)
            due.ask(shift)
        others = self._others_wrote(now)
        full = now >= self.next
        if not (full or others):
            return False
        wanted = others or self.next <= 0.0
        swept = [lane for lane in shift.parts if wanted or lane.next_sweep <= now]
        for lane in swept:
            if lane.on:
                lane.sweep()
        self._look_at_attempts([lane for lane in shift.lanes if lane.on])
        self._timers.heard()
        if full:
            shift.tally.sweep_begins(now)
            self._pause(now, swept)
            keep_house(self._look_around(now))
        shift.took = 0
        self.idle_s = 0.0
        self._left_out_s = sum(lane.asking.seconds for lane in shift.parts if lane not in swept and not lane.aside)
        return True

    def _pause(self, now: float, swept: list[Lane]) -> None:
        """Says when these are swept again, and so when the next sweep begins."""
        pause_s, dice = self._pause_s(now), 0.9 + self._shift.life.dice.random() / 5
        for lane in swept:
            lane.next_sweep = now + dice * (pause_s if self._is_led(now) else self._pause_of(lane, pause_s))
        self.next = min([now + pause_s * dice, *(lane.next_sweep for lane in self._shift.parts)])

    def _pause_of(self, lane: Lane, pause_s: float) -> float:
        own_s = lane.asking.seconds
        longest_s = max(SWEEP_LANE_S, SWEEP_LANE_TIMES * own_s)
        return min(max(SWEEP_LONGEST_S, own_s) if lane.aside else pause_s, longest_s)

    def _look_around(self, now: float) -> Pulse:
        seen = pulse.take(self._shift)
        self._fleet.heard(seen, now)
        return seen

    def wait_until(self) -> float:
        """When there is something to do."""
        times = [self.next]
        if self._shift.embedded:
            times.append(self.next_look)
        if not self._fleet.alone:
            times.append(self._fleet.next_beat)
        return min(times)

    def by_itself(self, now: float) -> None:
        """After trouble: a commit of which nobody knows may land yet, and only whose it is looks for it (hazard 47)."""
        self._by_itself_until = now + BY_ITSELF_S
        self._all_by(now)  # it begins with a look at all of our tables: who may not see them is still in trouble

    def _all_by(self, at: float) -> None:
        self.next = min(self.next, at)
        for lane in self._shift.parts:
            lane.next_sweep = min(lane.next_sweep, at)

    def _is_led(self, now: float) -> bool:
        return not self._fleet.sweeps and now >= self._by_itself_until

    def _pause_s(self, now: float) -> float:
        if self._is_led(now):
            return SWEEP_LED_S
        # One that found work goes on with the next at once.
        cost_s = self._cost.took(self.idle_s + self._left_out_s) if self.idle_s else 0.0
        return min(max(SWEEP_S, cost_s / SWEEP_SHARE), SWEEP_LONGEST_S)

    def _follow_the_fleet(self, now: float) -> None:
        """Whoever is to sweep from now on, for all or since hints no longer come, does so at once, or as soon as it may."""
        led = not self._fleet.sweeps
        if self._led and not led:
            self._all_by(now + (0.0 if self._fleet.leads else SWEEP_S * self._shift.life.dice.random()))
        self._led = led

    def _look_at_attempts(self, lanes: list[Lane]) -> None:
        for lane in lanes:
            lane.due, lane.seen_full = True, False

    def _others_wrote(self, now: float) -> bool:
        """Whether another process wrote to an embedded store; asked ten times a second."""
        shift = self._shift
        if not shift.embedded or now < self.next_look:
            return False
        # What this process wrote came by hints already; another's commit in the same moment waits for the next sweep.
        others = shift.life.did_others_write() and not self.heard_here
        self.heard_here = False
        busy = any(lane.on and lane.backlog for lane in shift.parts)
        self.next_look = now + max(LOOK_BUSY_S if busy else LOOK_S, self._looks.took_s / LOOK_SHARE)
        self._looks.took_s = 0.0
        return others
