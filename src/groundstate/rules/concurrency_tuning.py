"""Decides how many workers share one backlog of rows: the number with the highest total throughput.

Too many workers wait for each other in the database, and do less together than a few workers would do. The slow pace of one worker does not
prove that there are too many workers: a slow disk, a distant database or a table with many indexes makes even a single worker slow. So each
worker reports how much it did, and one worker searches for the best number: it doubles the number while doubling raises the throughput
enough, and halves the number while halving costs little. This is hill climbing, as in the thread pool of .NET (Hellerstein, Morrison and
Eilebrecht, "Optimizing concurrency levels in the .NET ThreadPool", 2008). Times are seconds of one monotonic clock. The functions are pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

FEW = 2  # number of workers that first work on a new backlog, and the least number that is ever tried
GAIN = 1.15  # twice as many workers are kept only if the throughput rises at least by this factor
KEPT = 0.95  # half as many workers are kept only if at least this share of the throughput remains
TRIES_AFTER_S, TRIES_MOST_S = 5.0, 60.0  # shortest and longest wait between two trials, in seconds; each failed trial doubles the wait
WINDOWS = 2  # number of measurements before a trial; the best one is compared with the trial, so that one poor measurement does no harm
ENOUGH_S = 0.4  # seconds of each worker's work that a measurement must cover
SILENT_S = 2.0  # longest wait for a worker's report, in seconds
OVER_S = 1.0  # seconds without a report after which a backlog counts as done, unless its batches take longer
SAID_EACH_S = 0.5  # seconds after which the list of the workers that may go on is sent again
SLOW_S = 1.0  # a batch that takes this many seconds shows that its handler is slow, and not that there are too many workers
SLOW_FOR_S = 60.0  # seconds during which all workers may work on the backlog, after a batch that took SLOW_S or longer


@dataclass(frozen=True)
class Report:
    """A Report says what one worker did for a backlog since its last report: it handled `rows` rows, which took `seconds` seconds."""

    incarnation: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class AdmittedWorkers:
    """AdmittedWorkers are the worker incarnations that may go on with the backlog of these reactions; `workers` is None if all may."""

    workers: tuple[int, ...] | None
    reactions: tuple[str, ...]


@dataclass
class WorkerCountSearch:
    """A WorkerCountSearch searches for the number of workers with the highest throughput.

    at: how many workers may work on the backlog now; a trial is under way if it differs from `settled`. settled: the best number so far.
    """

    at: int = FEW
    settled: int = FEW
    # rows a second of all workers together, in the last WINDOWS measurements that were made while the number of workers was `settled`
    _paces: tuple[float, ...] = ()
    _most: int = 0  # how many workers existed at the last measurement
    _up: bool = True
    _next: float = 0.0
    _pause_s: float = TRIES_AFTER_S

    def record_measurement(self, pace: float, most: int, now: float) -> None:
        """Record a measurement of the throughput, and choose how many workers may work on the backlog from now on (`self.at`).

        pace: rows a second that the admitted workers did together. most: how many workers exist. now: the time in seconds.
        """
        if most > self._most:  # a worker was added and may be of use at once, so a trial with more workers may begin now
            self._up, self._next = True, now
        self._most = most
        if self.at == self.settled:
            self._paces = (*self._paces, pace)[-WINDOWS:]
        elif pace >= max(self._paces) * (GAIN if self.at > self.settled else KEPT):
            self.settled, self._paces = self.at, (pace,) * WINDOWS
            self._pause_s, self._next = TRIES_AFTER_S, now
        else:
            self._up = not self._up
            self._next, self._pause_s = now + self._pause_s, min(self._pause_s * 2, TRIES_MOST_S)
        self.at = self.settled = max(min(self.settled, most), FEW)
        if now >= self._next and len(self._paces) == WINDOWS:
            self.at = self._next_count_to_try(most)

    def forget_measurements(self) -> None:
        """Prepare for another backlog: abandon a trial in progress, and forget earlier measurements, but keep the best number."""
        self.at, self._paces = self.settled, ()

    def _next_count_to_try(self, most: int) -> int:
        more, fewer = max(min(self.settled * 2, most), FEW), max(self.settled // 2, FEW)
        first, second = (more, fewer) if self._up else (fewer, more)
        if first == self.settled:
            self._up = not self._up
            return second
        return first


@dataclass
class Gate:
    """A Gate receives the reports of all workers on a backlog, and decides which workers may go on. One worker runs the Gate for all."""

    search: WorkerCountSearch = field(default_factory=WorkerCountSearch)
    _in: tuple[int, ...] = ()
    _done: dict[int, list[Report]] = field(default_factory=dict)  # by incarnation: reports of the admitted workers since they were chosen
    _since: float = 0.0
    _told_at: dict[int, float] = field(default_factory=dict)
    _over_at: float = float("-inf")  # time, in seconds, at which the backlog counts as done if no report comes before
    _reactions: set[str] = field(default_factory=set)
    _next_said: float = 0.0
    _open: bool = True  # whether the last decision that was sent admits all workers because there is nothing to measure
    _slow_until: float = float("-inf")

    def record_report(self, report: Report, reactions: Iterable[str], now: float) -> None:
        """Record a worker's Report. reactions: the names of the reactions whose backlog the report is about. now: the time in seconds."""
        if now > self._over_at:
            self._start_new_backlog(now)
        self._over_at = max(self._over_at, now + max(OVER_S, 2 * report.seconds))
        self._told_at[report.incarnation] = now
        self._reactions.update(reactions)
        if report.incarnation in self._in:
            reports = self._done.setdefault(report.incarnation, [])
            reports.append(report)
            if len(reports) > 1 and report.seconds >= SLOW_S:
                self._slow_until = now + SLOW_FOR_S

    def decide_admission(self, me: int, workers: Sequence[int], now: float) -> AdmittedWorkers | None:
        """Return which workers may go on with the backlog. Return None if the workers need not be told now.

        me: the incarnation of the worker that runs this Gate; it may always go on. workers: the incarnations of all workers.
        """
        if now > self._over_at or now < self._slow_until or len(workers) <= FEW:
            return self._admit_all()
        changed = self._complete_measurement(len(workers), now) or me not in self._in or not set(self._in).issubset(workers)
        if changed:
            self._choose_admitted(me, workers, now)
        if not changed and now < self._next_said:
            return None
        self._next_said, self._open = now + SAID_EACH_S, False
        everybody = len(self._in) == len(workers)
        return AdmittedWorkers(None if everybody else self._in, tuple(sorted(self._reactions)))

    def _admit_all(self) -> AdmittedWorkers | None:
        if self._open:
            return None
        self._open, self._in = True, ()
        return AdmittedWorkers(None, tuple(sorted(self._reactions)))

    def _start_new_backlog(self, now: float) -> None:
        self._in, self._reactions, self._told_at, self._since = (), set(), {}, now
        self.search.forget_measurements()

    def _complete_measurement(self, most: int, now: float) -> bool:
        """Return whether the admitted workers must be chosen anew. If a measurement is complete, record its pace first.

        They must be chosen anew if no worker is admitted, or if the measurement is complete. It is complete once every admitted worker has
        reported for long enough, or the wait for reports is over.

        The first report of each worker is ignored, since it covers time before the worker was chosen.
        """
        if not self._in:
            return True
        known = {incarnation: reports[1:] for incarnation, reports in self._done.items()}
        enough = all(sum(one.seconds for one in known.get(incarnation, ())) >= ENOUGH_S for incarnation in self._in)
        if not enough and now - self._since < SILENT_S:
            return False
        paces = [_rows_per_second(reports) for reports in known.values() if reports]
        if paces:
            self.search.record_measurement(sum(paces), most, now)
        return True

    def _choose_admitted(self, me: int, workers: Sequence[int], now: float) -> None:
        """Choose the workers that may go on.

        The worker `me` is chosen first, then the admitted workers that report, and then other workers. Admitted workers that do not report
        are chosen last, since they may be dead.
        """
        told = {incarnation for incarnation, at in self._told_at.items() if now - at < SILENT_S}
        silent = {incarnation for incarnation in self._in if incarnation not in told}
        order = sorted(
            workers,
            key=lambda incarnation: (
                incarnation != me,
                incarnation in silent,
                incarnation not in self._in,
                incarnation not in told,
                incarnation,
            ),
        )
        self._in = tuple(order[: self.search.at])
        self._done, self._since = {}, now


def _rows_per_second(reports: Sequence[Report]) -> float:
    return sum(one.rows for one in reports) / max(sum(one.seconds for one in reports), 0.001)
