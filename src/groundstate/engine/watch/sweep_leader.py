"""Elects the worker of an app that sweeps for all workers on one database (the sweep leader), and decides which workers follow a hint.

While hints arrive, only the sweep leader queries every condition each second. It is the worker that has the leader lock; the lock is freed
when that worker ends. A hint about a few rows wakes one worker, and a moment later a second worker, in case the first worker is gone. Hints
may be lost, so each worker also sweeps for itself once a minute.

A suspended process keeps its lock. So the sweep leader sends a message each second, and while no message arrives the other workers sweep.
A forged message can delay these sweeps, but not beyond a worker's own sweep each minute.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import select

from groundstate.engine.watch.idle_probe import IdleProbe
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules import hint_codec
from groundstate.rules.concurrency_tuning import FEW
from groundstate.rules.hint_codec import Hint
from groundstate.store.tables import worker as table

log = logging.getLogger("groundstate")
BEAT_S = 1.5  # seconds, to be multiplied by the number of workers: the time between two checks whether a worker has to sweep
BEAT_MOST_S = 60.0  # seconds: the longest time between two checks of a worker whether it has to sweep
BACKUP_S = 0.05  # seconds after a hint until a second worker follows it
# Seconds after a hint about many rows until more workers follow it. A worker that was excluded from the work by then does not.
HELPS_AFTER_S = 0.15
JITTER_S = 0.05  # seconds: the longest random delay that is added to HELPS_AFTER_S
STRANGERS_MOST = 1_000  # the most unknown worker ids (ids in messages that this database does not list) that are remembered
STRANGERS_S = 0.5  # seconds: the least pause between two probes of groundstate's tables for an unknown worker id
CUT_OFF_S = 3.0  # seconds: if hints have not worked for this long, the sweep leader resigns, and sweeps only for itself
LEADS_EACH_S = 1.0  # seconds between two messages by which the sweep leader says that it runs
SILENT_S = 3.0  # seconds: if the sweep leader has sent no message for this long, the other workers sweep
OWN_PAUSE_S = 2.0  # seconds: if a worker's own loop stood still for this long, the worker cannot tell whether the leader was silent
STUCK_S = 3.0  # seconds: if the loop of the sweep leader has stood still for this long, the sweep leader resigns


@dataclass
class SweepLeader:
    """What one worker knows of the other workers, and whether it is the sweep leader itself.

    hints: returns whether hints can be sent and received now. workers: ids of the app's workers that have not ended.
    """

    worker_state: WorkerState
    hints: Callable[[], bool]
    workers: tuple[int, ...] = ()
    has_other_workers: bool = False  # other workers of this app are known to run on a database with row locks
    leads: bool = False  # this worker is the sweep leader
    lock: int = 0  # number of the leader lock, set at the start; workers with other conditions or schedules use another number
    turned_at: float = 0.0  # monotonic time at which the worker's latest loop iteration began
    next_beat: float = 0.0  # monotonic time of the next check whether this worker has to sweep
    silent: bool = False  # another worker has the leader lock, but sends no messages any more
    _led_by: int = 0  # id of the worker that sent the latest message of a sweep leader; 0 before the first
    _said_at: float = 0.0  # monotonic time at which this worker last sent the leader's message
    _heard_at: float = 0.0  # monotonic time of the latest sign that another leader runs; any thread may write it
    _listened_at: float = 0.0  # monotonic time at which this worker last looked for the leader's messages
    _beat_at: float = 0.0  # monotonic time of the latest probe of groundstate's tables
    _alone_since: float | None = None  # monotonic time at which hints stopped working; None while they work
    _incarnation: tuple[int, int] = (0, 0)  # this worker's id, and how often it took its lock; if either changes, the leader lock is lost
    _strangers: set[int] = field(default_factory=set)  # worker ids in messages that this database does not list

    @property
    def is_without_leader(self) -> bool:
        """Return whether this worker sweeps for itself: hints do not work now, or the store is embedded, where queries are cheap."""
        return self.worker_state.is_embedded or not self.hints()

    @property
    def has_to_sweep(self) -> bool:
        """Return whether this worker queries every condition each second."""
        return self.is_without_leader or self.silent or (self.leads and self._incarnation == self.worker_state.incarnation.lock_holder_key)

    @property
    def worker_count(self) -> int:
        return len({*self.workers, self.worker_state.incarnation.id})

    def is_probe_due(self, now: float) -> bool:
        return not self.is_without_leader and (now >= self.next_beat or self._incarnation != self.worker_state.incarnation.lock_holder_key)

    def update_from_probe(self, pulse: IdleProbe, now: float) -> None:
        """Update the list of workers from a probe of groundstate's tables, and become the sweep leader if the leader lock is free."""
        self.workers, self._beat_at = pulse.workers, now
        self.has_other_workers = self.worker_count > 1 and not self.worker_state.is_embedded
        incarnation = self.worker_state.incarnation
        if self._incarnation != incarnation.lock_holder_key:
            self._incarnation, self.leads = incarnation.lock_holder_key, False
        if not self.is_without_leader:
            self._alone_since = None
            if not self.leads and self.worker_state.stopping is None:
                self.leads = self.lock in incarnation.liveness.take_slots([(1, [self.lock])])
        elif self._alone_since is None:
            self._alone_since = now
        elif now - self._alone_since > CUT_OFF_S:
            self.resign()  # other workers may still receive hints; they need a leader that can send messages
        self.next_beat = now + min(BEAT_S * self.worker_count, BEAT_MOST_S) * (0.75 + incarnation.dice.random() / 2)

    def announce_or_watch_leader(self, now: float, say: Callable[[Hint], None]) -> None:
        """If this worker is the sweep leader, send a message each second that the leader runs. Otherwise check whether this message still
        arrives, and set `silent` if it does not. Call it in each loop iteration.
        """
        if self.leads and self.worker_count > 1 and not self.is_without_leader and now - self._said_at >= LEADS_EACH_S:
            self._said_at = now
            say(Hint(crew=self.lock, leads=self.worker_state.incarnation.id))
        if self.leads or self.is_without_leader or self.worker_count == 1 or now - self._listened_at > OWN_PAUSE_S:
            self._heard_at = now
        self._listened_at = now
        over = self._heard_at + SILENT_S
        if self.is_without_leader or self.worker_state.stopping is not None:
            self.silent = False
        elif now < over:
            if self.silent:
                self.silent = False
                log.info("the worker that sweeps for all reports again", extra={"event": "sweep_leader_silent", "silent": False})
        elif self._beat_at < over:
            self.next_beat = min(self.next_beat, now)  # the leader lock may be free: probe now, and so try to take it
        elif not self.silent:
            which, self.silent = self._describe_leader(), True
            log.warning(
                "the worker that sweeps for all sent nothing for %.0f s, and keeps its lock: %s; until it reports this worker sweeps too",
                now - self._heard_at,
                which,
                extra={"event": "sweep_leader_silent", "silent": True},
            )

    def note_leader_message(self, hint: Hint) -> None:
        """Note that another worker sent the message that it runs as the sweep leader. Any thread may call this."""
        if hint.crew == self.lock and hint.leads != self.worker_state.incarnation.id:
            self._led_by, self._heard_at = hint.leads, self.worker_state.clock.monotonic()

    def _describe_leader(self) -> str:
        with self.worker_state.database.reading() as connection:
            row = connection.execute(select(table.c.host, table.c.pid).where(table.c.id == self._led_by)).first()
        if row is None:
            return "it is not known which process that is"
        return f"process {row.pid} on {row.host}, which is suspended, or in a transaction that takes long"

    def is_known_worker(self, incarnation: int, now: float) -> bool:
        """Return whether this worker id is known in this app and database. If it is not, let the next probe of the tables come soon. now:
        monotonic time.
        """
        if incarnation in self.workers:
            return True
        if incarnation not in self._strangers and len(self._strangers) < STRANGERS_MOST:
            self._strangers.add(incarnation)
            self.next_beat = min(self.next_beat, max(now, self._beat_at + STRANGERS_S))
        return False

    def resign_if_stuck(self) -> None:
        """Resign as sweep leader if this worker's loop stands still, as in a handler that hangs. Another thread calls this."""
        if self.worker_state.clock.monotonic() - self.turned_at > STUCK_S:
            self.resign()

    def resign(self) -> None:
        """Free the leader lock, so that another worker can sweep for all. Call it when this worker stops, hangs, or receives no hints."""
        if self.leads and not self.worker_state.is_embedded:
            self.leads = False
            self.worker_state.incarnation.liveness.give_slots_back([self.lock])

    def seconds_until_wake(self, dice: int, rows: int) -> float | None:
        """Return the number of seconds after which this worker has to query for the rows of a hint; None if only other workers have to.

        dice: the random number in the hint, which gives all workers the same order. rows: number of rows that the hint is about.
        """
        wanted = max(-(-rows // hint_codec.ROWS_EACH), 1)
        before = hint_codec.rank_in_worker_ring(self.worker_state.incarnation.id, self.workers, dice)
        if before < min(wanted, FEW):
            return 0.0
        if before < wanted:
            return HELPS_AFTER_S + self.worker_state.incarnation.dice.random() * JITTER_S
        return BACKUP_S if before == wanted else None
