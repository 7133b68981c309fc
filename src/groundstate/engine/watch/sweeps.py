"""When every condition is asked: each second, as the safety net under lost hints. Begins passes; reads no row itself.

A worker for which another one sweeps (sweep_leader.py) does so rarely by itself, and checks now and then whether it has to.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from groundstate.engine.watch import due_attempts, idle_probe
from groundstate.engine.watch.due_timers import Timers
from groundstate.engine.watch.idle_probe import IdleProbe
from groundstate.engine.watch.peek import Peek
from groundstate.engine.watch.sweep_leader import SweepLeader
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.median_cost import Usual

SWEEP_S = 1.0
SWEEP_SHARE = 0.01  # the largest share of wall time that sweeps may take
SWEEP_LONGEST_S = 30.0
SWEEP_LANE_S = 5.0  # seconds: the longest time between two sweeps of a reaction, unless its condition is slow
SWEEP_LANE_TIMES = 20  # the longest time between two sweeps of a slow condition, in multiples of its usual duration
SWEEP_LED_S = 60.0  # seconds between sweeps of a worker for which another one sweeps: a second safety net
BY_ITSELF_S = 30.0  # seconds after trouble in which each worker sweeps for itself
LOOK_S = 0.1  # seconds between two checks whether another process wrote to an embedded store
LOOK_BUSY_S = 0.02  # seconds between two checks for such writes during a backlog, beside which they cost nothing
LOOK_SHARE = 0.1  # the largest share of wall time for the reads that follow when another process wrote


class Sweeps:
    """The sweeps of one worker. Only the worker's own thread calls it."""

    def __init__(self, worker_state: WorkerState, leader: SweepLeader, looks: Peek, timers: Timers) -> None:
        self._worker_state = worker_state
        self._leader = leader
        self._looks = looks
        self._timers = timers
        self.next = 0.0
        self.next_look = 0.0
        self.heard_here = False  # a session of this process committed since the last check
        self.idle_s = 0.0  # seconds spent in loop iterations of the last sweep that did nothing: the cost of sweeping
        self._left_out_s = 0.0  # seconds that the conditions take which the last sweep left out
        self._cost = Usual()
        self._led = False
        self._by_itself_until = 0.0

    def turn(self, keep_house: Callable[[IdleProbe], None], beat: Callable[[IdleProbe], None]) -> bool:
        """Begin a sweep if it is time; return whether one began.

        keep_house: does what a sweep does beside conditions. beat: does the small part of it that a worker does for which another one
        sweeps.
        """
        worker_state = self._worker_state
        if worker_state.stopping is not None:
            return False
        now = time.monotonic()
        if self._leader.beat_is_due(now):
            beat(self._look_around(now))
        self._follow_the_fleet(now)
        if worker_state.next_due is not None and now >= worker_state.next_due:
            self._look_at_attempts(worker_state.queues)
            due_attempts.refresh_next_due(worker_state)
        others = self._others_wrote(now)
        full = now >= self.next
        if not (full or others):
            return False
        wanted = others or self.next <= 0.0
        swept = [queue for queue in worker_state.parts if wanted or queue.next_sweep <= now]
        for queue in swept:
            if queue.on:
                queue.sweep()
        self._look_at_attempts([queue for queue in worker_state.queues if queue.on])
        self._timers.heard()
        if full:
            worker_state.tally.sweep_begins(now)
            self._pause(now, swept)
            keep_house(self._look_around(now))
        worker_state.took = 0
        self.idle_s = 0.0
        self._left_out_s = sum(queue.asking.seconds for queue in worker_state.parts if queue not in swept and not queue.aside)
        return True

    def _pause(self, now: float, swept: list[WorkQueue]) -> None:
        """Set when these queues are swept again, and by that when the next sweep begins."""
        pause_s, dice = self._pause_s(now), 0.9 + self._worker_state.incarnation.dice.random() / 5
        for queue in swept:
            queue.next_sweep = now + dice * (pause_s if self._is_led(now) else self._pause_of(queue, pause_s))
        self.next = min([now + pause_s * dice, *(queue.next_sweep for queue in self._worker_state.parts)])

    def _pause_of(self, queue: WorkQueue, pause_s: float) -> float:
        own_s = queue.asking.seconds
        longest_s = max(SWEEP_LANE_S, SWEEP_LANE_TIMES * own_s)
        return min(max(SWEEP_LONGEST_S, own_s) if queue.aside else pause_s, longest_s)

    def _look_around(self, now: float) -> IdleProbe:
        seen = idle_probe.run_idle_probe(self._worker_state)
        self._leader.heard(seen, now)
        return seen

    def wait_until(self) -> float:
        """Return the monotonic time at which `turn` has something to do."""
        times = [self.next]
        if self._worker_state.embedded:
            times.append(self.next_look)
        if not self._leader.alone:
            times.append(self._leader.next_beat)
        return min(times)

    def by_itself(self, now: float) -> None:
        """Let this worker sweep by itself for a while after trouble: a commit that brought no answer may still land, and only its own
        worker looks for it (hazard 47).
        """
        self._by_itself_until = now + BY_ITSELF_S
        self._all_by(now)  # such a sweep first reads groundstate's tables: if that fails, the trouble is not over

    def _all_by(self, at: float) -> None:
        self.next = min(self.next, at)
        for queue in self._worker_state.parts:
            queue.next_sweep = min(queue.next_sweep, at)

    def _is_led(self, now: float) -> bool:
        return not self._leader.sweeps and now >= self._by_itself_until

    def _pause_s(self, now: float) -> float:
        if self._is_led(now):
            return SWEEP_LED_S
        # A sweep without idle iterations cost nothing: it found work in each.
        cost_s = self._cost.took(self.idle_s + self._left_out_s) if self.idle_s else 0.0
        return min(max(SWEEP_S, cost_s / SWEEP_SHARE), SWEEP_LONGEST_S)

    def _follow_the_fleet(self, now: float) -> None:
        """Bring the next sweep forward when this worker has to sweep from now on, as the leader or since hints no longer arrive."""
        led = not self._leader.sweeps
        if self._led and not led:
            self._all_by(now + (0.0 if self._leader.leads else SWEEP_S * self._worker_state.incarnation.dice.random()))
        self._led = led

    def _look_at_attempts(self, queues: list[WorkQueue]) -> None:
        for queue in queues:
            queue.due, queue.seen_full = True, False

    def _others_wrote(self, now: float) -> bool:
        """Return whether another process wrote to an embedded store. Between two checks, return False."""
        worker_state = self._worker_state
        if not worker_state.embedded or now < self.next_look:
            return False
        # Hints tell of commits of this process. A commit of another process between the same two checks waits for the next sweep.
        others = worker_state.incarnation.did_others_write() and not self.heard_here
        self.heard_here = False
        busy = any(queue.on and queue.backlog for queue in worker_state.parts)
        self.next_look = now + max(LOOK_BUSY_S if busy else LOOK_S, self._looks.took_s / LOOK_SHARE)
        self._looks.took_s = 0.0
        return others
