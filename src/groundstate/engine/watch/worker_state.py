"""What the modules of a running worker share: the database, the incarnation, the work queues, and what the next loop iteration depends on.
Carries nothing out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.watch.counters import Tally
from groundstate.engine.watch.trace_hooks import NOBODY, Watched
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.rules.attempt import Attempt
from groundstate.store.port import Database


@dataclass
class WorkerState:
    """The state of one worker, for its own thread. Times are seconds of the monotonic clock."""

    app: str
    database: Database
    incarnation: Incarnation
    store: str = ""  # the database's name in log lines
    queues: list[WorkQueue] = field(default_factory=list)  # one work queue for each reaction
    schedules: list[str] = field(default_factory=list)  # names of the schedules
    enrolled: bool = False  # whether the rows of schedules agree with this code
    stopping: float | None = None  # when waiting for running calls ends; None: the worker is not stopping
    next_due: float | None = None  # when the next attempt is due; 0: ask the database; None: there is none
    took: int = 0  # how much was done since the last sweep began
    took_last: str = ""  # the reaction of which a record was carried out last
    bounded: tuple[int, int] = (0, 0)  # incarnation id and its number of clock steps back when `clamp_future` last ran
    turn: int = 0  # counts calls of `in_turn`, so that each queue comes first sometimes
    left_begun: bool = False  # begun attempts may exist that no thread carries out: the next loop iteration looks for them
    alone: Attempt | None = None  # careful mode: the suspected attempt that is carried out next, before anything else begins
    others: bool = False  # whether other workers of this app are known to run on a database with row locks
    beside_others_until: float = 0.0  # until when an embedded store counts as shared, since another process wrote to it
    unheard_s: float = 0.0  # seconds that slow batches held an embedded store since other writers last had a chance
    tally: Tally = field(default_factory=Tally)
    watched: Watched = NOBODY

    @property
    def parts(self) -> list[WorkQueue]:
        """Return the work queues, each followed by its queue of expired records if it has one."""
        return [part for queue in self.queues for part in (queue, queue.late) if part is not None]

    @property
    def embedded(self) -> bool:
        return not self.database.locks_rows

    def hold_back(self, names: frozenset[str]) -> None:
        """Let these reactions wait for a person, and leave the queues of the others as they are."""
        for queue in self.queues:
            if queue.name in names:
                for part in filter(None, (queue, queue.late)):
                    part.admitted = False
        self.incarnation.waiting = names

    def queue(self, name: str) -> WorkQueue:
        """Return the work queue of the reaction with this name. Raises KeyError if there is none."""
        return next(queue for queue in self.queues if queue.name == name)

    def look_for_due(self) -> None:
        """Make the next loop iteration ask for the next due attempt, since an attempt may have a due time now."""
        self.next_due = 0.0

    @property
    def beside_others(self) -> bool:
        """Return whether another process has lately written to an embedded store."""
        if self.incarnation.others_wrote:
            self.beside_others_until = time.monotonic() + OTHERS_S
        return time.monotonic() < self.beside_others_until

    @property
    def hold_s(self) -> float:
        """Return for how many seconds a transaction aims to hold its locks."""
        if not self.embedded:
            return HOLD_S
        return HOLD_BESIDE_OTHERS_S if self.beside_others else HOLD_EMBEDDED_S

    def stay_out(self, took_s: float) -> None:
        """Sleep after a batch, so that other writers get the lock of an embedded store: its busy handler is unfair to waiters (rules.md
        18).

        A waiter tries only each tenth of a second, and would miss a short pause: after slow batches the sleep is long enough for one try.
        """
        if not self.embedded:
            return
        if self.beside_others:
            time.sleep(took_s)
            return
        self.unheard_s += took_s if took_s > HOLD_S else 0.0
        if self.unheard_s < UNHEARD_MOST_S:
            time.sleep(took_s / 20)
        else:
            self.unheard_s = 0.0
            time.sleep(BUSY_LOOKS_S)

    def in_turn(self, queues: list[WorkQueue]) -> list[WorkQueue]:
        """Return these queues, with the one first that came first the longest ago."""
        self.turn += 1
        ordered = sorted(queues, key=lambda queue: queue.first_at)
        if ordered:
            ordered[0].first_at = self.turn
        return ordered


HOLD_S = 0.05  # seconds that a batch aims to hold its row locks
HOLD_EMBEDDED_S = 0.012  # seconds that a batch aims to hold the lock of an embedded store, which covers all of it
HOLD_BESIDE_OTHERS_S = 0.004  # seconds that a batch aims to hold that lock while another process writes (rules.md 18)
OTHERS_S = 5.0  # seconds after a write of another process in which an embedded store is left free half of the time
UNHEARD_MOST_S = 1.0
BUSY_LOOKS_S = 0.11  # seconds: just longer than SQLite's busy handler sleeps, which is up to 0.1 s


LONG = 50  # rows: a batch of this size with more rows behind it is a backlog in which others may help


def moved_on(queue: WorkQueue, cursor: tuple[object, ...] | None, read: int, limit: int, taken: int) -> None:
    """Set where a backlog pass goes on after a batch: after the cursor, or nowhere if it has ended."""
    queue.cursor = cursor
    queue.long |= read >= limit >= (LONG if queue.query.spec.call is not None else min(LONG, queue.batch))
    if read < limit:
        queue.swept()
    elif taken * 2 < read:
        queue.crowded = True  # most rows have an attempt already: SQL leaves those out for the rest of this pass (hazard 27)


def postpone(queue: WorkQueue) -> None:
    """Let one work queue wait after trouble that concerns it only, with a backoff that doubles up to 12.8 s."""
    queue.trouble = min(queue.trouble + 1, 8)
    queue.not_before = time.monotonic() + 0.05 * 2**queue.trouble
