"""Writes a worker's report on itself into the column `says` of its row in groundstate_worker, when the report has changed, and at most once
a second.

No other work waits for a report. A report that cannot be written is written later; the worker's log has the same facts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import update

from groundstate.engine.call.limiter import ANSWER_LENGTH, Limits, Paused
from groundstate.engine.call.semaphore import LimitedScope
from groundstate.engine.rows.worker_report import Failing, HandlerLock, Lacks, Pause, Ring, Step, WorkerReport, report_to_json
from groundstate.engine.sql.record_cycles import Step as RingStep
from groundstate.engine.watch.backlog_sharing import BacklogSharing
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.store.tables import worker as table

EACH_S = 1.0  # seconds between two checks for changes of the report
NAMED_MOST = 100  # the most pauses, and the most cycles, that a report lists; it also says how many there are in all
STEPS_MOST = 10  # the most steps listed for one cycle
WHY_LENGTH = 500  # the most characters of a text that says what a reaction lacks, or for which lock it waits
TROUBLED_AFTER = 4  # after this many failures in a row a reaction is reported as troubled; its backoff is then about 0.8 s
WAIT = timedelta(milliseconds=100)  # the longest wait for the lock that the write needs


@dataclass(frozen=True)
class _ReportContent:
    """The content of a report, with times of the monotonic clock. The contents of two moments are equal if nothing has changed."""

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
    locks: tuple[HandlerLock, ...] = ()


class ReportPublisher:
    """Writes the reports of one worker, in the worker's own thread. waits_for_go: returns whether the worker waits for `begin_work`."""

    def __init__(self, worker_state: WorkerState, limits: Limits, sharing: BacklogSharing, waits_for_go: Callable[[], bool]) -> None:
        self._worker_state = worker_state
        self._limits = limits
        self._sharing = sharing
        self._waits_for_go = waits_for_go
        self._next = 0.0
        self._incarnation = 0
        self._written = _ReportContent()
        self._failing_since: dict[str, float] = {}
        self._drains_since: float | None = None

    def write_if_changed(self) -> None:
        """Write a new report if a second has passed and something has changed."""
        now, incarnation = self._worker_state.clock.monotonic(), self._worker_state.incarnation
        if now < self._next or not incarnation.sound:
            return
        self._next = now + EACH_S
        if self._incarnation != incarnation.id:
            self._incarnation, self._written = incarnation.id, _ReportContent()  # the new incarnation's row has no report yet
        seen = self._gather_content(now)
        if seen != self._written:
            # the write is tried again a second later; other work that needs the database logs the error
            with contextlib.suppress(Exception):
                self._write_report(seen)
                self._written = seen

    def _gather_content(self, now: float) -> _ReportContent:
        worker_state, paused = self._worker_state, self._limits.paused
        some = sorted(paused, key=lambda place: (place[0].name, place[1] is not None, place[1] or ""))
        rings = worker_state.incarnation.rings.recent_cycles(now)
        return _ReportContent(
            waits_for_go=self._waits_for_go(),
            drains=self._has_drained_for_a_second(now),
            paused=tuple((place, paused[place]) for place in some[:NAMED_MOST]),
            paused_count=len(some),
            rings=tuple((since, tuple(steps[:STEPS_MOST])) for since, steps in rings[:NAMED_MOST]),
            rings_count=len(rings),
            leaves=tuple(self._sharing.excluded_reactions),
            aside=_sorted_names(queue.name for queue in worker_state.queues if queue.rows.aside),
            failing=self._paused_reactions(now),
            troubled=_sorted_names(
                queue.name
                for queue in worker_state.queues
                if queue.postponement.trouble >= TROUBLED_AFTER and not queue.postponement.cannot_be_queried
            ),
            lacks=tuple(sorted((queue.name, lacks) for queue in worker_state.queues if (lacks := queue.postponement.lacks) is not None)),
            locks=tuple(self._locks_met_by_handlers()),
        )

    def _locks_met_by_handlers(self) -> Iterator[HandlerLock]:
        locks, shorten = self._worker_state.handler_locks, self._worker_state.incarnation.shorten
        for queue in self._worker_state.queues:
            if queue.postponement.barred is not None and locks.tables_met_locked(queue):
                yield HandlerLock(queue.name, shorten(queue.postponement.barred, WHY_LENGTH))
            some = list(locks.reasons_of_waiting_records(queue).items())[:NAMED_MOST]
            for why in dict.fromkeys(why for _, why in some):
                records = tuple(queue.query.keys.record_text(key) for key, reason in some if reason == why)
                yield HandlerLock(queue.name, shorten(why, WHY_LENGTH), records)

    def _has_drained_for_a_second(self, now: float) -> bool:
        """Return whether the worker was told to stop at least a second ago; a shorter wait for its last calls is not reported."""
        if self._worker_state.stopping is None:
            return False
        if self._drains_since is None:
            self._drains_since = now
        return now >= self._drains_since + EACH_S

    def _paused_reactions(self, now: float) -> tuple[tuple[str, float, float], ...]:
        until = {
            queue.name: queue.postponement.failing_until
            for queue in self._worker_state.queues
            if queue.query.spec.call is None and queue.postponement.is_failing
        }
        self._failing_since = {name: self._failing_since.get(name, now) for name in until}
        return tuple((name, self._failing_since[name], until[name]) for name in sorted(until))

    def _write_report(self, seen: _ReportContent) -> None:
        incarnation = self._worker_state.incarnation
        with incarnation.open_transaction(wait=WAIT) as tx:
            shown, clock = tx.now, self._worker_state.clock.monotonic()

            def at(seconds: float) -> datetime:
                return shown + timedelta(seconds=seconds - clock)

            says = WorkerReport(
                waits_for_go=seen.waits_for_go,
                drains=seen.drains,
                paused=tuple(self._build_pause(place, one, at) for place, one in seen.paused),
                paused_count=seen.paused_count,
                rings=tuple(Ring(at(since), tuple(_build_step(one) for one in steps)) for since, steps in seen.rings),
                rings_count=seen.rings_count,
                leaves=seen.leaves,
                aside=seen.aside,
                failing=tuple(Failing(name, at(since), at(until)) for name, since, until in seen.failing),
                troubled=seen.troubled,
                lacks=tuple(Lacks(name, incarnation.shorten(why, WHY_LENGTH)) for name, why in seen.lacks),
                locks=seen.locks,
            )
            tx.connection.execute(update(table).where(table.c.id == incarnation.id).values(says=report_to_json(says)))

    def _build_pause(self, place: LimitedScope, one: Paused, at: Callable[[float], datetime]) -> Pause:
        service, tenant = place
        answered = self._worker_state.incarnation.shorten(one.answered, ANSWER_LENGTH) if one.answered else ""
        return Pause(service.name, tenant[1:] if tenant else None, at(one.since), at(one.until), answered)


def _sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


def _build_step(one: RingStep) -> Step:
    query, key, occurrence = one
    return Step(query.spec.name, query.spec.table_name, query.keys.record_text(key), occurrence)
