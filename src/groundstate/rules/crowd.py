"""How many workers are let at a backlog at once: as many as do most together. Pure.

Where more work at once than the database and the machines can bear, each waits for the others, and all together do less than a few would.
No worker can see that by itself: a slow disk, a database that is far away or a table with many indexes makes one wait that is alone. So
each tells how much it did, and one of them tries how many do best: twice as many where that brings enough, half as many where that costs
little. Hill climbing on the throughput itself, as the thread pool of .NET does it (Hellerstein, Morrison and Eilebrecht, "Optimizing
concurrency levels in the .NET ThreadPool", 2008). Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

FEW = 2  # so many begin, and never fewer are let in
GAIN = 1.15  # times as much is to be done by twice as many, else they are too many
KEPT = 0.95  # so much of it is to be done by half as many, else they are too few
TRIES_AFTER_S, TRIES_MOST_S = 5.0, 60.0  # between two trials, doubling while nothing is found
WINDOWS = 2  # measured before a trial; the better one counts, so that a poor one makes no other number look good
ENOUGH_S = 0.4  # so much work of each is measured before a number of workers is judged
SILENT_S = 2.0  # nobody waits longer for a report
OVER_S = 1.0  # a backlog of which nobody has told for so long is over, unless its batches take longer
SAID_EACH_S = 0.5  # how often it is said again who is let in
SLOW_S = 1.0  # a batch that takes so long, of few, is its handler's doing and no crowd's
SLOW_FOR_S = 60.0  # then all are let in, so long


@dataclass(frozen=True)
class Report:
    """What one worker did of a backlog since its last report: so many rows, in so many seconds."""

    life: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class LetIn:
    """Who goes on with the backlog of these reactions. lives: None where everybody is let in."""

    lives: tuple[int, ...] | None
    reactions: tuple[str, ...]


@dataclass
class Climb:
    """at: how many are let in now, on trial or not. settled: as many as do best, as far as it was tried."""

    at: int = FEW
    settled: int = FEW
    _paces: tuple[float, ...] = ()  # rows a second in the last windows, of as many as are settled on
    _most: int = 0  # as many as there were
    _up: bool = True
    _next: float = 0.0
    _pause_s: float = TRIES_AFTER_S

    def measured(self, pace: float, most: int, now: float) -> None:
        """So many rows a second were done by `at` workers; decides how many it is from now on, of as many as there are."""
        if most > self._most:  # whoever came may be of use at once
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
        """Another backlog: of a trial nothing more will be known, and paces are others."""
        self.at, self._paces = self.settled, ()

    def _other(self, most: int) -> int:
        more, fewer = max(min(self.settled * 2, most), FEW), max(self.settled // 2, FEW)
        first, second = (more, fewer) if self._up else (fewer, more)
        if first == self.settled:
            self._up = not self._up
            return second
        return first


@dataclass
class Door:
    """Kept by one worker for all: hears their reports, and says who goes on."""

    climb: Climb = field(default_factory=Climb)
    _in: tuple[int, ...] = ()
    _done: dict[int, list[Report]] = field(default_factory=dict)  # of those that are in, since that was said
    _since: float = 0.0
    _told_at: dict[int, float] = field(default_factory=dict)
    _over_at: float = float("-inf")  # unless somebody tells before
    _reactions: set[str] = field(default_factory=set)
    _next_said: float = 0.0
    _open: bool = True  # everybody was let in, as far as anybody was told
    _slow_until: float = float("-inf")

    def hear(self, report: Report, reactions: Iterable[str], now: float) -> None:
        """One that is at work on a backlog tells."""
        if now > self._over_at:
            self._begin_anew(now)
        self._over_at = max(self._over_at, now + max(OVER_S, 2 * report.seconds))
        self._told_at[report.life] = now
        self._reactions.update(reactions)
        if report.life in self._in:
            reports = self._done.setdefault(report.life, [])
            reports.append(report)
            if len(reports) > 1 and report.seconds >= SLOW_S:
                self._slow_until = now + SLOW_FOR_S

    def look(self, me: int, lives: Sequence[int], now: float) -> LetIn | None:
        """Who is let in, where that is to be said now. me: who keeps the door, always in."""
        if now > self._over_at or now < self._slow_until or len(lives) <= FEW:
            return self._let_all_in()
        changed = self._judge(len(lives), now) or me not in self._in or not set(self._in).issubset(lives)
        if changed:
            self._choose(me, lives, now)
        if not changed and now < self._next_said:
            return None
        self._next_said, self._open = now + SAID_EACH_S, False
        everybody = len(self._in) == len(lives)
        return LetIn(None if everybody else self._in, tuple(sorted(self._reactions)))

    def _let_all_in(self) -> LetIn | None:
        if self._open:
            return None
        self._open, self._in = True, ()
        return LetIn(None, tuple(sorted(self._reactions)))

    def _begin_anew(self, now: float) -> None:
        self._in, self._reactions, self._told_at, self._since = (), set(), {}, now
        self.climb.begin_anew()

    def _judge(self, most: int, now: float) -> bool:
        """Whether others are to be let in from now on. The first report of each began before it was let in, and says nothing."""
        if not self._in:
            return True
        known = {life: reports[1:] for life, reports in self._done.items()}
        enough = all(sum(one.seconds for one in known.get(life, ())) >= ENOUGH_S for life in self._in)
        if not enough and now - self._since < SILENT_S:
            return False
        paces = [_pace(reports) for reports in known.values() if reports]
        if paces:
            self.climb.measured(sum(paces), most, now)
        return True

    def _choose(self, me: int, lives: Sequence[int], now: float) -> None:
        """Those go on that are at it, and told of it; who was silent comes last, and may be gone."""
        told = {life for life, at in self._told_at.items() if now - at < SILENT_S}
        silent = {life for life in self._in if life not in told}
        order = sorted(lives, key=lambda life: (life != me, life in silent, life not in self._in, life not in told, life))
        self._in = tuple(order[: self.climb.at])
        self._done, self._since = {}, now


def _pace(reports: Sequence[Report]) -> float:
    return sum(one.rows for one in reports) / max(sum(one.seconds for one in reports), 0.001)
