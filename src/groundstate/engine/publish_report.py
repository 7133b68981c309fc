"""Writes a worker's report on itself (column `says`) into its own row in groundstate_worker, when it has changed, and at most once a
second.

Nothing waits for a report. If it cannot be written, it is tried again later; the worker's log says the same things.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import update

from groundstate.engine.call.limiter import ANSWER_LENGTH, Limits, Paused
from groundstate.engine.call.semaphore import LimitedScope
from groundstate.engine.rows.worker_report import Failing, Lacks, Pause, Ring, Step, WorkerReport, report_to_json
from groundstate.engine.sql.record_cycles import Step as RingStep
from groundstate.engine.watch.backlog_sharing import BacklogSharing
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.store.tables import worker as table

EACH_S = 1.0  # seconds between two checks whether the report has changed
NAMED_MOST = 100  # the most pauses, and the most cycles, that a report lists; it counts all
STEPS_MOST = 10  # the most steps listed for one cycle
WHY_LENGTH = 500  # characters: the longest text on what a reaction lacks
TROUBLED_AFTER = 4  # failures in a row from which a reaction is reported as troubled; its backoff is then about 0.8 s
WAIT = timedelta(milliseconds=100)  # the longest wait for the lock that the write needs


@dataclass(frozen=True)
class _Seen:
    """The content of a report, with times of the monotonic clock. Two of them are equal as long as nothing has changed."""

    waits_for_go: bool = False
    drains: bool = False
    paused: tuple[tuple[LimitedScope, Paused], ...] = ()
    paused_count: int = 0
    rings: tuple[tuple[float, tuple[RingStep, ...]], ...] = ()
    rings_count: int = 0
    leaves: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    failing: tuple[tuple[str, float, float], ...] = ()
    troubled: tuple[str, ...] = ()
    lacks: tuple[tuple[str, str], ...] = ()


class ReportPublisher:
    """The report writer of one worker. Only the worker's own thread calls it. waits_for_go: called for each report."""

    def __init__(self, worker_state: WorkerState, limits: Limits, sharing: BacklogSharing, waits_for_go: Callable[[], bool]) -> None:
        self._worker_state = worker_state
        self._limits = limits
        self._sharing = sharing
        self._waits_for_go = waits_for_go
        self._next = 0.0
        self._incarnation = 0
        self._written = _Seen()
        self._failing_since: dict[str, float] = {}
        self._drains_since: float | None = None

    def turn(self) -> None:
        """Write a new report if a second has passed and something has changed."""
        now, incarnation = time.monotonic(), self._worker_state.incarnation
        if now < self._next or not incarnation.sound:
            return
        self._next = now + EACH_S
        if self._incarnation != incarnation.id:
            self._incarnation, self._written = incarnation.id, _Seen()  # the new incarnation's row has no report yet
        seen = self._look(now)
        if seen != self._written:
            with contextlib.suppress(Exception):  # the next iteration tries again, and whatever needs the database logs the error
                self._write(seen)
                self._written = seen

    def _look(self, now: float) -> _Seen:
        worker_state, paused = self._worker_state, self._limits.paused
        some = sorted(paused, key=lambda place: (place[0].name, place[1] is not None, place[1] or ""))
        rings = worker_state.incarnation.rings.going(now)
        return _Seen(
            waits_for_go=self._waits_for_go(),
            drains=self._drains(now),
            paused=tuple((place, paused[place]) for place in some[:NAMED_MOST]),
            paused_count=len(some),
            rings=tuple((since, tuple(steps[:STEPS_MOST])) for since, steps in rings[:NAMED_MOST]),
            rings_count=len(rings),
            leaves=tuple(self._sharing.kept_out),
            aside=_names(queue.name for queue in worker_state.queues if queue.aside),
            failing=self._failing(now),
            troubled=_names(
                queue.name for queue in worker_state.queues if queue.trouble >= TROUBLED_AFTER and not (queue.barred or queue.lacks)
            ),
            lacks=tuple(sorted((queue.name, queue.lacks) for queue in worker_state.queues if queue.lacks is not None)),
        )

    def _drains(self, now: float) -> bool:
        """Return whether the worker has been stopping for at least a second: a shorter drain is not reported."""
        if self._worker_state.stopping is None:
            return False
        if self._drains_since is None:
            self._drains_since = now
        return now >= self._drains_since + EACH_S

    def _failing(self, now: float) -> tuple[tuple[str, float, float], ...]:
        until = {
            queue.name: queue.failing.until for queue in self._worker_state.queues if queue.query.spec.call is None and queue.failing.open
        }
        self._failing_since = {name: self._failing_since.get(name, now) for name in until}
        return tuple((name, self._failing_since[name], until[name]) for name in sorted(until))

    def _write(self, seen: _Seen) -> None:
        incarnation = self._worker_state.incarnation
        with incarnation.transaction(wait=WAIT) as tx:
            shown, clock = tx.now, time.monotonic()

            def at(seconds: float) -> datetime:
                return shown + timedelta(seconds=seconds - clock)

            says = WorkerReport(
                waits_for_go=seen.waits_for_go,
                drains=seen.drains,
                paused=tuple(self._pause(place, one, at) for place, one in seen.paused),
                paused_count=seen.paused_count,
                rings=tuple(Ring(at(since), tuple(_step(one) for one in steps)) for since, steps in seen.rings),
                rings_count=seen.rings_count,
                leaves=seen.leaves,
                aside=seen.aside,
                failing=tuple(Failing(name, at(since), at(until)) for name, since, until in seen.failing),
                troubled=seen.troubled,
                lacks=tuple(Lacks(name, incarnation.shorten(why, WHY_LENGTH)) for name, why in seen.lacks),
            )
            tx.connection.execute(update(table).where(table.c.id == incarnation.id).values(says=report_to_json(says)))

    def _pause(self, place: LimitedScope, one: Paused, at: Callable[[float], datetime]) -> Pause:
        service, tenant = place
        answered = self._worker_state.incarnation.shorten(one.answered, ANSWER_LENGTH) if one.answered else ""
        return Pause(service.name, tenant[1:] if tenant else None, at(one.since), at(one.until), answered)


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


def _step(one: RingStep) -> Step:
    query, key, occurrence = one
    return Step(query.spec.name, query.spec.table_name, query.record_text(key), occurrence)
