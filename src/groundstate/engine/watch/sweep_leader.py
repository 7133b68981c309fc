"""Which worker of an app sweeps for all on one database, and which workers follow a hint.

While hints arrive, one worker asks every condition for all; a lock that is freed with its incarnation elects it. A hint about a few rows
wakes one worker, and a second one a moment later in case the first is gone. Hints may be lost, so each worker also sweeps by itself,
rarely.

A suspended process keeps its lock. So the sweep leader says each second that it is there, and while it is silent the others sweep. A forged
message of it delays this, and by no more than the pause until the sweep that each worker does for itself.
"""

from __future__ import annotations

import logging
import time
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
BEAT_S = 1.5  # seconds, times the number of workers: how often a worker that does not sweep checks whether it has to
BEAT_MOST_S = 60.0
BACKUP_S = 0.05  # seconds after which a second worker looks where a hint said
HELPS_AFTER_S = 0.15  # seconds after which more workers look if a hint is about many rows, unless they are excluded by then
JITTER_S = 0.05
STRANGERS_MOST = 1_000  # the most incarnations remembered that report and are not known on this database
STRANGERS_S = 0.5  # seconds: the least pause between two probes for an unknown incarnation
CUT_OFF_S = 3.0  # seconds without hints after which a sweep leader resigns, and sweeps only for itself
LEADS_EACH_S = 1.0  # seconds: how often the sweep leader says that it is there
SILENT_S = 3.0  # seconds without such a message after which the others sweep
OWN_PAUSE_S = 2.0  # seconds: a worker whose own loop has not iterated for so long cannot tell whether the leader was silent
STUCK_S = 3.0  # seconds without a loop iteration after which a sweep leader resigns


@dataclass
class SweepLeader:
    """What one worker knows of the others, and whether it is the sweep leader. hints: returns whether hints arrive from other processes
    now.
    """

    worker_state: WorkerState
    hints: Callable[[], bool]
    workers: tuple[int, ...] = ()
    leads: bool = False  # this worker is the sweep leader
    lock: int = 0  # number of the leader lock; it differs for other code, and is set when the worker starts
    turned_at: float = 0.0
    next_beat: float = 0.0
    silent: bool = False  # another one has the lock, and says nothing any more
    _led_by: int = 0  # the incarnation that said last that it sweeps for all
    _said_at: float = 0.0
    _heard_at: float = 0.0  # written by any thread
    _listened_at: float = 0.0
    _beat_at: float = 0.0
    _alone_since: float | None = None
    _incarnation: tuple[int, int] = (0, 0)  # with how often its lock was taken: a lost lock frees the leader lock too
    _strangers: set[int] = field(default_factory=set)

    @property
    def alone(self) -> bool:
        """Return whether no other worker sweeps for this one: an embedded store is cheap to query, or there are no hints."""
        return self.worker_state.embedded or not self.hints()

    @property
    def sweeps(self) -> bool:
        """Return whether this worker asks every condition each second."""
        return self.alone or self.silent or (self.leads and self._incarnation == self.worker_state.incarnation.holder)

    @property
    def size(self) -> int:
        return len({*self.workers, self.worker_state.incarnation.id})

    def beat_is_due(self, now: float) -> bool:
        return not self.alone and (now >= self.next_beat or self._incarnation != self.worker_state.incarnation.holder)

    def heard(self, pulse: IdleProbe, now: float) -> None:
        """Update the list of workers from a probe of groundstate's tables, and become the sweep leader if the leader lock is free."""
        self.workers, self._beat_at = pulse.workers, now
        self.worker_state.others = self.size > 1 and not self.worker_state.embedded
        incarnation = self.worker_state.incarnation
        if self._incarnation != incarnation.holder:
            self._incarnation, self.leads = incarnation.holder, False
        if not self.alone:
            self._alone_since = None
            if not self.leads and self.worker_state.stopping is None:
                self.leads = self.lock in incarnation.liveness.take_slots([(1, [self.lock])])
        elif self._alone_since is None:
            self._alone_since = now
        elif now - self._alone_since > CUT_OFF_S:
            self.resign()  # others may still get hints, and need a leader that can send some
        self.next_beat = now + min(BEAT_S * self.size, BEAT_MOST_S) * (0.75 + incarnation.dice.random() / 2)

    def turn(self, now: float, say: Callable[[Hint], None]) -> None:
        """At each turn: says that it sweeps for all; or looks whether who does so is silent."""
        if self.leads and self.size > 1 and not self.alone and now - self._said_at >= LEADS_EACH_S:
            self._said_at = now
            say(Hint(crew=self.lock, leads=self.worker_state.incarnation.id))
        if self.leads or self.alone or self.size == 1 or now - self._listened_at > OWN_PAUSE_S:
            self._heard_at = now
        self._listened_at = now
        over = self._heard_at + SILENT_S
        if self.alone or self.worker_state.stopping is not None:
            self.silent = False
        elif now < over:
            if self.silent:
                self.silent = False
                log.info("who sweeps for all workers says so again", extra={"event": "sweep_leader_silent", "silent": False})
        elif self._beat_at < over:
            self.next_beat = min(self.next_beat, now)  # its lock may be free: who gets it sweeps
        elif not self.silent:
            which, self.silent = self._who(), True
            log.warning(
                "who sweeps for all workers has said nothing for %.0f s, and keeps its lock: %s; until it does this worker sweeps too",
                now - self._heard_at,
                which,
                extra={"event": "sweep_leader_silent", "silent": True},
            )

    def leads_says(self, hint: Hint) -> None:
        """From any thread: the word of who sweeps for all."""
        if hint.crew == self.lock and hint.leads != self.worker_state.incarnation.id:
            self._led_by, self._heard_at = hint.leads, time.monotonic()

    def _who(self) -> str:
        with self.worker_state.database.reading() as connection:
            row = connection.execute(select(table.c.host, table.c.pid).where(table.c.id == self._led_by)).first()
        if row is None:
            return "it is not known which process that is"
        return f"process {row.pid} on {row.host}, which is suspended, or in a transaction that takes long"

    def knows(self, incarnation: int, now: float) -> bool:
        """Return whether this incarnation belongs to this app and database. One that is not known yet causes a new probe soon."""
        if incarnation in self.workers:
            return True
        if incarnation not in self._strangers and len(self._strangers) < STRANGERS_MOST:
            self._strangers.add(incarnation)
            self.next_beat = min(self.next_beat, max(now, self._beat_at + STRANGERS_S))
        return False

    def stand_down(self) -> None:
        """Resign as sweep leader if this worker hangs in a handler. Another thread calls this."""
        if time.monotonic() - self.turned_at > STUCK_S:
            self.resign()

    def resign(self) -> None:
        """Let another worker sweep for all, when this one stops, hangs, or gets no hints."""
        if self.leads and not self.worker_state.embedded:
            self.leads = False
            self.worker_state.incarnation.liveness.give_slots_back([self.lock])

    def wakes(self, dice: int, rows: int) -> float | None:
        """Return in how many seconds this worker has to look where a hint says, or None if others do."""
        wanted = max(-(-rows // hint_codec.ROWS_EACH), 1)
        before = hint_codec.rank_in_worker_ring(self.worker_state.incarnation.id, self.workers, dice)
        if before < min(wanted, FEW):
            return 0.0
        if before < wanted:
            return HELPS_AFTER_S + self.worker_state.incarnation.dice.random() * JITTER_S
        return BACKUP_S if before == wanted else None
