"""Decides when to sweep, which means to query every condition: each second, so that rows whose hint was lost are found. A sweep begins
backlog passes, which read the rows later.

While another worker sweeps for all (the sweep leader, sweep_leader.py), this worker sweeps only once a minute, and checks from time to time
whether it has to become the leader.
"""

from __future__ import annotations

from collections.abc import Callable

from groundstate.engine.watch import due_attempts, idle_probe
from groundstate.engine.watch.due_timers import Timers
from groundstate.engine.watch.idle_probe import IdleProbe
from groundstate.engine.watch.peek import BacklogProbe
from groundstate.engine.watch.sweep_leader import SweepLeader
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.median_cost import UsualDuration

SWEEP_S = 1.0  # seconds between two sweeps, unless sweeps take much of the time
SWEEP_SHARE = 0.01  # the largest share of the time that sweeps may take
SWEEP_LONGEST_S = 30.0  # seconds: the longest pause between two sweeps of a worker, unless another worker is the sweep leader
SWEEP_LANE_S = 5.0  # seconds: the longest pause between two sweeps of one reaction, unless its condition is slow
SWEEP_LANE_TIMES = 20  # factor: for a slow condition the longest pause is this many times the usual duration of its query
SWEEP_LED_S = 60.0  # seconds between two sweeps of a worker while another worker is the sweep leader
BY_ITSELF_S = 30.0  # seconds: after trouble with the database, a worker sweeps for this long, even if another worker is the sweep leader
LOOK_S = 0.1  # seconds between two checks whether another process wrote to an embedded store
# Seconds between two checks for writes of other processes while a backlog is carried out. The backlog costs far more than these checks.
LOOK_BUSY_S = 0.02
LOOK_SHARE = 0.1  # the largest share of the time that queries caused by writes of other processes may take


class Sweeps:
    """Begins the sweeps of one worker. Only the worker's own thread calls it."""

    def __init__(self, worker_state: WorkerState, leader: SweepLeader, looks: BacklogProbe, timers: Timers) -> None:
        self._worker_state = worker_state
        self._leader = leader
        self._looks = looks
        self._timers = timers
        self.next = 0.0
        self.next_look = 0.0
        self.heard_here = False  # a session of this process committed since the last check for writes of other processes
        self.idle_s = 0.0  # seconds that loop iterations of the last sweep took without finding work, which is the cost of sweeping
        self._left_out_s = 0.0  # seconds that the queries left out by the last sweep usually take
        self._cost = UsualDuration()
        self._led = False
        self._by_itself_until = 0.0

    def begin_sweep_if_due(self, keep_house: Callable[[IdleProbe], None], beat: Callable[[IdleProbe], None]) -> bool:
        """Begin a sweep if it is time; return whether a sweep began.

        keep_house: does all work of a sweep other than querying conditions; called when a sweep is due. beat: does only the part of this
        work that each worker needs; called between sweeps while the workers have a sweep leader.
        """
        worker_state = self._worker_state
        if worker_state.stopping is not None:
            return False
        now = self._worker_state.clock.monotonic()
        if self._leader.is_probe_due(now):
            beat(self._probe_tables(now))
        self._sweep_sooner_if_not_led(now)
        if worker_state.next_due is not None and now >= worker_state.next_due:
            self._mark_attempts_due(worker_state.queues)
            due_attempts.refresh_next_due(worker_state)
        others = self._did_others_write(now)
        full = now >= self.next
        if not (full or others):
            return False
        wanted = others or self.next <= 0.0
        swept = [queue for queue in worker_state.all_queues if wanted or queue.due_work.next_sweep <= now]
        for queue in swept:
            if queue.is_enabled:
                queue.rows.request_pass()
        self._mark_attempts_due([queue for queue in worker_state.queues if queue.is_enabled])
        self._timers.mark_stale()
        if full:
            worker_state.tally.record_sweep_start(now)
            self._schedule_next_sweeps(now, swept)
            keep_house(self._probe_tables(now))
        worker_state.progress.restart_count()
        self.idle_s = 0.0
        self._left_out_s = sum(queue.rows.usual_query_s for queue in worker_state.all_queues if queue not in swept and not queue.rows.aside)
        return True

    def _schedule_next_sweeps(self, now: float, swept: list[WorkQueue]) -> None:
        """Set for each queue in `swept` when it is swept again. Let the next sweep begin at the earliest of these times of all queues."""
        pause_s, dice = self._pause_s(now), 0.9 + self._worker_state.incarnation.dice.random() / 5
        for queue in swept:
            own_pause_s = pause_s if self._leaves_sweeps_to_leader(now) else self._pause_of_queue_s(queue, pause_s)
            queue.due_work.schedule_sweep(now + dice * own_pause_s)
        self.next = min([now + pause_s * dice, *(queue.due_work.next_sweep for queue in self._worker_state.all_queues)])

    def _pause_of_queue_s(self, queue: WorkQueue, pause_s: float) -> float:
        own_s = queue.rows.usual_query_s
        longest_s = max(SWEEP_LANE_S, SWEEP_LANE_TIMES * own_s)
        return min(max(SWEEP_LONGEST_S, own_s) if queue.rows.aside else pause_s, longest_s)

    def _probe_tables(self, now: float) -> IdleProbe:
        seen = idle_probe.run_idle_probe(self._worker_state)
        self._leader.update_from_probe(seen, now)
        return seen

    def next_wake_time(self) -> float:
        """Return the monotonic time at which `begin_sweep_if_due` next has something to do."""
        times = [self.next]
        if self._worker_state.is_embedded:
            times.append(self.next_look)
        if not self._leader.is_without_leader:
            times.append(self._leader.next_beat)
        return min(times)

    def sweep_independently(self, now: float) -> None:
        """Let this worker sweep for itself for a while after trouble with the database: a commit to which no answer came may have
        succeeded, and no other worker looks for its rows (hazard 47). now: monotonic time of the first of these sweeps.
        """
        self._by_itself_until = now + BY_ITSELF_S
        self._sweep_all_queues_by(now)  # a sweep reads groundstate's tables first, so it fails early if the trouble is not over

    def _sweep_all_queues_by(self, at: float) -> None:
        self.next = min(self.next, at)
        for queue in self._worker_state.all_queues:
            queue.due_work.sweep_no_later_than(at)

    def _leaves_sweeps_to_leader(self, now: float) -> bool:
        return not self._leader.has_to_sweep and now >= self._by_itself_until

    def _pause_s(self, now: float) -> float:
        if self._leaves_sweeps_to_leader(now):
            return SWEEP_LED_S
        # If all loop iterations of the last sweep found work, sweeping cost nothing.
        cost_s = self._cost.record(self.idle_s + self._left_out_s) if self.idle_s else 0.0
        return min(max(SWEEP_S, cost_s / SWEEP_SHARE), SWEEP_LONGEST_S)

    def _sweep_sooner_if_not_led(self, now: float) -> None:
        """If this worker no longer leaves the sweeps to another worker, let its next sweep begin at once or within a second."""
        led = not self._leader.has_to_sweep
        if self._led and not led:
            self._sweep_all_queues_by(now + (0.0 if self._leader.leads else SWEEP_S * self._worker_state.incarnation.dice.random()))
        self._led = led

    def _mark_attempts_due(self, queues: list[WorkQueue]) -> None:
        for queue in queues:
            queue.due_work.request_attempts()

    def _did_others_write(self, now: float) -> bool:
        """If a check is due, return whether it shows that another process wrote to an embedded store; otherwise return False."""
        worker_state = self._worker_state
        if not worker_state.is_embedded or now < self.next_look:
            return False
        # After a commit of this process, the check cannot show whether another process wrote too. If it did, the next sweep finds its rows.
        others = worker_state.incarnation.have_others_written() and not self.heard_here
        self.heard_here = False
        busy = any(queue.is_enabled and queue.rows.backlog for queue in worker_state.all_queues)
        self.next_look = now + max(LOOK_BUSY_S if busy else LOOK_S, self._looks.took_s / LOOK_SHARE)
        self._looks.took_s = 0.0
        return others
