"""How many workers share one backlog: each reports its rate, the reports ask other workers to help, and the sweep leader excludes some.

The sweep leader decides how many are best (rules/concurrency_tuning.py). Any message may be lost: an exclusion expires, and the sweep
leader is never excluded. A forged message costs speed only.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable

from groundstate.engine.watch.sweep_leader import SweepLeader
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.concurrency_tuning import AdmittedWorkers, Gate, Report
from groundstate.rules.hint_codec import EVERYBODY, Hint

log = logging.getLogger("groundstate")
TELLS_EACH_S = 0.2
KEPT_OUT_S = 2.0  # seconds until an exclusion from a backlog expires, unless the sweep leader repeats it
ARRIVES_S = 0.5  # seconds: a new worker listens this long for reports of others before it joins a backlog
UNHEARD_MOST = 1_000  # messages kept for the next loop iteration; the oldest are dropped


class BacklogSharing:
    """One worker's part in the sharing of backlogs. Any thread may call `hear`; only the worker's own thread calls the rest."""

    def __init__(self, worker_state: WorkerState, leader: SweepLeader, say: Callable[[Hint], None]) -> None:
        self._worker_state = worker_state
        self._leader = leader
        self._say = say
        self._gate = Gate()
        self._unheard: deque[tuple[Hint, float]] = deque(maxlen=UNHEARD_MOST)
        # By reaction: monotonic time of the exclusion's end. Replaced and never changed, since other threads read it.
        self._kept_out: dict[str, float] = {}
        self._incarnation = 0
        self._rows = 0
        self._began: float | None = None  # monotonic time at which the unreported work began
        self._next_told = 0.0
        self._settled = 0  # how many workers go on with a backlog, by the last log line; 0: all

    # ---- methods that other threads call -------------------------------------------------------------------------------------------
    def hear(self, hint: Hint) -> bool:
        """Receive another worker's message about a backlog. Return False if it excludes this worker, or concerns only backlogs it is
        excluded from.
        """
        if hint.crew == self._leader.lock and (hint.did is not None or hint.let_in is not None):
            self._unheard.append((hint, time.monotonic()))
        if hint.let_in is not None:
            return _is_in(self._worker_state.incarnation.id, hint.let_in[1])
        return hint.did is None or not self._kept_out.keys() >= set(hint.reactions)

    # ---- methods of the worker's own thread ----------------------------------------------------------------------------------------
    def did(self, rows: int, began: float) -> None:
        """Count the rows of a backlog batch. began: monotonic time at which the batch began."""
        self._rows += rows
        if self._began is None:
            self._began = began

    def turn(self) -> None:
        """Report this worker's rate, and handle the messages of others. The sweep leader also publishes which workers go on."""
        now = time.monotonic()
        if self._incarnation != self._worker_state.incarnation.id:
            self._arrive(now)
        self._tell(now)
        while self._unheard:
            self._take(*self._unheard.popleft())
        if self._keeps_the_door:
            self._publish_who_goes_on(now)
        over = [name for name, until in self._kept_out.items() if self._leader.sweeps or now >= until]
        if over:
            self._let_in(over)

    @property
    def _keeps_the_door(self) -> bool:
        return self._leader.sweeps and not self._leader.alone

    @property
    def kept_out(self) -> list[str]:
        """Return the reactions whose backlogs this worker leaves to others now."""
        return sorted(self._kept_out)

    def wait_until(self) -> float | None:
        """Return the monotonic time at which this worker's first exclusion ends, or None if it is not excluded."""
        return min(self._kept_out.values(), default=None)

    def _arrive(self, now: float) -> None:
        self._incarnation = self._worker_state.incarnation.id
        if not self._leader.sweeps:
            self._keep_out([queue.name for queue in self._worker_state.queues], now + ARRIVES_S)

    def _tell(self, now: float) -> None:
        """Tell the other workers of each backlog that is larger than the next batch, and how much of it this worker did."""
        long = [queue for queue in self._worker_state.parts if queue.long]
        if not long or now < self._next_told:
            return
        self._next_told = now + TELLS_EACH_S
        for queue in long:
            queue.long = False
        report = None if self._began is None else Report(self._worker_state.incarnation.id, self._rows, now - self._began)
        self._rows, self._began = 0, None
        if self._leader.size > 1:
            names = tuple(sorted({queue.name for queue in long}))
            if report is not None and self._keeps_the_door:
                self._gate.hear(report, names, now)
            self._say(Hint(reactions=names, rows=EVERYBODY, crew=self._leader.lock, did=report))

    def _publish_who_goes_on(self, now: float) -> None:
        me = self._worker_state.incarnation.id
        workers = sorted({*self._leader.workers, me})
        found = self._gate.look(me, workers, now)
        if found is not None:
            settled = 0 if found.workers is None else self._gate.climb.settled
            if settled not in (0, self._settled):
                words = "of %d workers %d go on with the backlog of %s, the others leave it to them: as many as did most so far"
                names = ", ".join(found.reactions)
                log.info(words, len(workers), settled, names, extra={"event": "backlog_left", "workers": settled, "reactions": names})
            self._settled = settled
            self._say(Hint(reactions=found.reactions, rows=EVERYBODY, crew=self._leader.lock, let_in=(me, found)))

    def _take(self, hint: Hint, at: float) -> None:
        if hint.did is not None:
            ours = [queue.name for queue in self._worker_state.queues if queue.name in hint.reactions]
            if ours and self._keeps_the_door and self._leader.knows(hint.did.incarnation, at):
                self._gate.hear(hint.did, ours, at)
        elif hint.let_in is not None and not self._leader.sweeps and self._leader.knows(hint.let_in[0], at):
            if _is_in(self._worker_state.incarnation.id, hint.let_in[1]):
                self._let_in(hint.reactions)
                for queue in self._worker_state.parts:
                    if queue.name in hint.reactions:
                        queue.hear_whole(spread=True)
            else:
                self._keep_out(hint.reactions, at + KEPT_OUT_S)

    def _keep_out(self, names: Iterable[str], until: float) -> None:
        """Exclude this worker from these backlogs for a while. Fresh rows are still carried out; the backlog is looked at again after
        that.
        """
        queues = [queue for queue in self._worker_state.parts if queue.name in names and queue.query.spec.call is None]
        for queue in queues:
            queue.leave_to_others()
        self._kept_out = self._kept_out | {queue.name: until for queue in queues}

    def _let_in(self, names: Iterable[str]) -> None:
        for queue in self._worker_state.parts:
            if queue.name in names:
                queue.left_to_others = False
        self._kept_out = {name: until for name, until in self._kept_out.items() if name not in set(names)}


def _is_in(incarnation: int, found: AdmittedWorkers) -> bool:
    return found.workers is None or incarnation in found.workers
