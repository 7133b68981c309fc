"""Decides how many workers work on one backlog at once: as many as do the most together. Pure.

Where more workers run at once than the database and the machines can bear, each waits for the others, and all together do less than a few
would. No worker can see that by itself: a slow disk, a distant database or a table with many indexes makes even a single worker wait. So
each reports how much it did, and one of them tries how many do best: twice as many where that brings enough, half as many where that costs
little. This is hill climbing on the throughput, as in the thread pool of .NET (Hellerstein, Morrison and Eilebrecht, "Optimizing
concurrency levels in the .NET ThreadPool", 2008). Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

FEW = 2  # workers that begin on a backlog, and the fewest that are ever admitted
GAIN = 1.15  # twice as many workers must do this many times as much, else they are too many
KEPT = 0.95  # half as many workers must do this share of the work, else they are too few
TRIES_AFTER_S, TRIES_MOST_S = 5.0, 60.0  # seconds between two trials: the first wait, doubled up to the second while no trial succeeds
WINDOWS = 2  # measurements before a trial; the better one counts, so that a poor one makes no other number look good
ENOUGH_S = 0.4  # seconds of work of each worker that are measured before a number of workers is judged
SILENT_S = 2.0  # seconds: the longest wait for a worker's report
OVER_S = 1.0  # seconds without a report after which a backlog counts as over, unless its batches take longer
SAID_EACH_S = 0.5  # seconds after which the list of admitted workers is sent again
SLOW_S = 1.0  # seconds: a batch that takes this long with few workers is slow because of its handler, not of too many workers
SLOW_FOR_S = 60.0  # seconds for which all workers are admitted after such a batch


@dataclass(frozen=True)
class Report:
    """A Report says what one worker did of a backlog since its last report: `rows` rows in `seconds` seconds."""

    incarnation: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class AdmittedWorkers:
    """LetIn names the workers that go on with the backlog of these reactions; `workers` is None where all of them do."""

    workers: tuple[int, ...] | None
    reactions: tuple[str, ...]


@dataclass
class WorkerCountSearch:
    """A Climb searches for the number of workers that do best. at: how many are admitted now, on trial or not. settled: the best number so
    far.
    """

    at: int = FEW
    settled: int = FEW
    _paces: tuple[float, ...] = ()  # rows a second in the last measurements, with `settled` workers
    _most: int = 0  # how many workers there were at the last measurement
    _up: bool = True
    _next: float = 0.0
    _pause_s: float = TRIES_AFTER_S

    def measured(self, pace: float, most: int, now: float) -> None:
        """Record that `at` workers did `pace` rows a second together, and choose how many are admitted from now on. most: how many there
        are.
        """
        if most > self._most:  # an added worker may be of use at once, so a trial with more begins now
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
            self.at = self._other(most)

    def begin_anew(self) -> None:
        """Start over for another backlog: a trial in progress will get no result, and earlier paces do not apply."""
        self.at, self._paces = self.settled, ()

    def _other(self, most: int) -> int:
        more, fewer = max(min(self.settled * 2, most), FEW), max(self.settled // 2, FEW)
        first, second = (more, fewer) if self._up else (fewer, more)
        if first == self.settled:
            self._up = not self._up
            return second
        return first


@dataclass
class Gate:
    """A Gate is kept by one worker for all: it receives their reports on a backlog, and decides which workers go on with it."""

    climb: WorkerCountSearch = field(default_factory=WorkerCountSearch)
    _in: tuple[int, ...] = ()
    _done: dict[int, list[Report]] = field(default_factory=dict)  # reports of the admitted workers, since they were chosen
    _since: float = 0.0
    _told_at: dict[int, float] = field(default_factory=dict)
    _over_at: float = float("-inf")  # when the backlog counts as over, unless a report comes before
    _reactions: set[str] = field(default_factory=set)
    _next_said: float = 0.0
    _open: bool = True  # whether all workers are admitted, by the last decision that was sent
    _slow_until: float = float("-inf")

    def hear(self, report: Report, reactions: Iterable[str], now: float) -> None:
        """Record a worker's report on a backlog of these reactions."""
        if now > self._over_at:
            self._begin_anew(now)
        self._over_at = max(self._over_at, now + max(OVER_S, 2 * report.seconds))
        self._told_at[report.incarnation] = now
        self._reactions.update(reactions)
        if report.incarnation in self._in:
            reports = self._done.setdefault(report.incarnation, [])
            reports.append(report)
            if len(reports) > 1 and report.seconds >= SLOW_S:
                self._slow_until = now + SLOW_FOR_S

    def look(self, me: int, workers: Sequence[int], now: float) -> AdmittedWorkers | None:
        """Return which workers are admitted, if that is to be sent now; else None. me: the worker that keeps the gate, always admitted."""
        if now > self._over_at or now < self._slow_until or len(workers) <= FEW:
            return self._let_all_in()
        changed = self._judge(len(workers), now) or me not in self._in or not set(self._in).issubset(workers)
        if changed:
            self._choose(me, workers, now)
        if not changed and now < self._next_said:
            return None
        self._next_said, self._open = now + SAID_EACH_S, False
        everybody = len(self._in) == len(workers)
        return AdmittedWorkers(None if everybody else self._in, tuple(sorted(self._reactions)))

    def _let_all_in(self) -> AdmittedWorkers | None:
        if self._open:
            return None
        self._open, self._in = True, ()
        return AdmittedWorkers(None, tuple(sorted(self._reactions)))

    def _begin_anew(self, now: float) -> None:
        self._in, self._reactions, self._told_at, self._since = (), set(), {}, now
        self.climb.begin_anew()

    def _judge(self, most: int, now: float) -> bool:
        """Return whether the admitted workers are to be chosen again. A worker's first report covers time before it was admitted, so it is
        ignored.
        """
        if not self._in:
            return True
        known = {incarnation: reports[1:] for incarnation, reports in self._done.items()}
        enough = all(sum(one.seconds for one in known.get(incarnation, ())) >= ENOUGH_S for incarnation in self._in)
        if not enough and now - self._since < SILENT_S:
            return False
        paces = [_pace(reports) for reports in known.values() if reports]
        if paces:
            self.climb.measured(sum(paces), most, now)
        return True

    def _choose(self, me: int, workers: Sequence[int], now: float) -> None:
        """Choose the admitted workers: those at work that report go on, and silent ones come last, since they may be gone."""
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
        self._in = tuple(order[: self.climb.at])
        self._done, self._since = {}, now


def _pace(reports: Sequence[Report]) -> float:
    return sum(one.rows for one in reports) / max(sum(one.seconds for one in reports), 0.001)
