"""Decides how many workers share one backlog (many old rows of a reaction).

Each worker at a backlog reports how many rows it carried out, and in what time. The report also asks the other workers to help. From the
reports, the sweep leader (the worker that sweeps for all) finds out which number of workers is fastest (rules/concurrency_tuning.py), and
it excludes the workers above this number. A lost message does no harm: an exclusion expires, and the sweep leader is never excluded. A
forged message can only make the work slower.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable

from groundstate.engine.watch.sweep_leader import SweepLeader
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.concurrency_tuning import AdmittedWorkers, Gate, Report
from groundstate.rules.hint_codec import EVERYBODY, Hint

log = logging.getLogger("groundstate")
TELLS_EACH_S = 0.2  # seconds: the least time between two reports of one worker
KEPT_OUT_S = 2.0  # seconds until a worker's exclusion from a backlog ends, unless the sweep leader repeats it
ARRIVES_S = 0.5  # seconds that a new worker waits for reports of the other workers before it works at a backlog
UNHEARD_MOST = 1_000  # messages kept for the next loop iteration; the oldest are dropped


class BacklogSharing:
    """One worker's part in the sharing of backlogs. Only the worker's own thread calls it, except for `receive_message`."""

    def __init__(self, worker_state: WorkerState, leader: SweepLeader, say: Callable[[Hint], None]) -> None:
        self._worker_state = worker_state
        self._leader = leader
        self._say = say
        self._gate = Gate()
        self._unheard: deque[tuple[Hint, float]] = deque(maxlen=UNHEARD_MOST)
        # By reaction: monotonic time at which this worker's exclusion ends. The dict is replaced, not changed, since other threads read it.
        self._kept_out: dict[str, float] = {}
        self._incarnation = 0
        self._rows = 0
        self._began: float | None = None  # monotonic time at which the unreported work began; None if all work is reported
        self._next_told = 0.0
        self._settled = 0  # the number of workers that was last logged as the best for a backlog; 0: no worker is excluded

    # ---- methods that other threads call -------------------------------------------------------------------------------------------
    def receive_message(self, hint: Hint) -> bool:
        """Keep another worker's message about a backlog for the next loop iteration. Return whether this worker may have work because of
        the message.

        It has no work if the message excludes this worker, or is only about backlogs from which this worker is already excluded. Any thread
        may call this.
        """
        if hint.crew == self._leader.lock and (hint.did is not None or hint.let_in is not None):
            self._unheard.append((hint, self._worker_state.clock.monotonic()))
        if hint.let_in is not None:
            return _may_work_at_backlog(self._worker_state.incarnation.id, hint.let_in[1])
        return hint.did is None or not self._kept_out.keys() >= set(hint.reactions)

    # ---- methods of the worker's own thread ----------------------------------------------------------------------------------------
    def count_rows(self, rows: int, began: float) -> None:
        """Add the rows of one backlog batch to the next report. began: monotonic time at which the batch began."""
        self._rows += rows
        if self._began is None:
            self._began = began

    def exchange_reports(self) -> None:
        """Send this worker's report, and handle the messages of the others. The sweep leader also says which workers work at a backlog."""
        now = self._worker_state.clock.monotonic()
        if self._incarnation != self._worker_state.incarnation.id:
            self._exclude_itself_at_first(now)
        self._report_backlogs(now)
        while self._unheard:
            self._apply_message(*self._unheard.popleft())
        if self._decides_who_works:
            self._publish_admitted_workers(now)
        over = [name for name, until in self._kept_out.items() if self._leader.has_to_sweep or now >= until]
        if over:
            self._rejoin_backlogs(over)

    @property
    def _decides_who_works(self) -> bool:
        return self._leader.has_to_sweep and not self._leader.is_without_leader

    @property
    def excluded_reactions(self) -> list[str]:
        """Return the reactions whose backlogs this worker leaves to others now."""
        return sorted(self._kept_out)

    def next_wake_time(self) -> float | None:
        """Return the monotonic time at which this worker's first exclusion from a backlog ends, or None if it is excluded from none."""
        return min(self._kept_out.values(), default=None)

    def _exclude_itself_at_first(self, now: float) -> None:
        self._incarnation = self._worker_state.incarnation.id
        if not self._leader.has_to_sweep:
            self._leave_backlogs([queue.name for queue in self._worker_state.queues], now + ARRIVES_S)

    def _report_backlogs(self, now: float) -> None:
        """Tell the other workers which backlogs are larger than this worker's next batch, and how many rows this worker carried out since
        its last report.
        """
        long = [queue for queue in self._worker_state.all_queues if queue.rows.long]
        if not long or now < self._next_told:
            return
        self._next_told = now + TELLS_EACH_S
        for queue in long:
            queue.rows.note_long_backlog_reported()
        report = None if self._began is None else Report(self._worker_state.incarnation.id, self._rows, now - self._began)
        self._rows, self._began = 0, None
        if self._leader.worker_count > 1:
            names = tuple(sorted({queue.name for queue in long}))
            if report is not None and self._decides_who_works:
                self._gate.record_report(report, names, now)
            self._say(Hint(reactions=names, rows=EVERYBODY, crew=self._leader.lock, did=report))

    def _publish_admitted_workers(self, now: float) -> None:
        me = self._worker_state.incarnation.id
        workers = sorted({*self._leader.workers, me})
        found = self._gate.decide_admission(me, workers, now)
        if found is not None:
            settled = 0 if found.workers is None else self._gate.search.settled
            if settled not in (0, self._settled):
                words = "of %d workers %d go on with the backlog of %s, the others leave it to them: as many as did most so far"
                names = ", ".join(found.reactions)
                log.info(words, len(workers), settled, names, extra={"event": "backlog_left", "workers": settled, "reactions": names})
            self._settled = settled
            self._say(Hint(reactions=found.reactions, rows=EVERYBODY, crew=self._leader.lock, let_in=(me, found)))

    def _apply_message(self, hint: Hint, at: float) -> None:
        if hint.did is not None:
            ours = [queue.name for queue in self._worker_state.queues if queue.name in hint.reactions]
            if ours and self._decides_who_works and self._leader.is_known_worker(hint.did.incarnation, at):
                self._gate.record_report(hint.did, ours, at)
        elif hint.let_in is not None and not self._leader.has_to_sweep and self._leader.is_known_worker(hint.let_in[0], at):
            if _may_work_at_backlog(self._worker_state.incarnation.id, hint.let_in[1]):
                self._rejoin_backlogs(hint.reactions)
                for queue in self._worker_state.all_queues:
                    if queue.name in hint.reactions:
                        queue.rows.note_unknown_keys(spread=True)
            else:
                self._leave_backlogs(hint.reactions, at + KEPT_OUT_S)

    def _leave_backlogs(self, names: Iterable[str], until: float) -> None:
        """Exclude this worker from these reactions' backlogs until a monotonic time. It still carries out their fresh rows."""
        queues = [queue for queue in self._worker_state.all_queues if queue.name in names and queue.query.spec.call is None]
        for queue in queues:
            queue.rows.leave_backlog_to_others()
        self._kept_out = self._kept_out | {queue.name: until for queue in queues}

    def _rejoin_backlogs(self, names: Iterable[str]) -> None:
        for queue in self._worker_state.all_queues:
            if queue.name in names:
                queue.rows.rejoin_backlog()
        self._kept_out = {name: until for name, until in self._kept_out.items() if name not in set(names)}


def _may_work_at_backlog(incarnation: int, found: AdmittedWorkers) -> bool:
    return found.workers is None or incarnation in found.workers
