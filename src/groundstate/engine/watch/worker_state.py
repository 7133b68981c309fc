"""The state that the modules of a running worker share: its database, its incarnation (the worker from taking its lock to losing it), its
work queues, and notes for the next loop iteration.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from groundstate.clock import Clock
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.watch.counters import Tally
from groundstate.engine.watch.trace_hooks import NOBODY, GuardedWatch
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.rules.attempt import Attempt
from groundstate.store.port import Database


@dataclass
class WorkerState:
    """The state of one worker, used by the worker's own thread. Times are seconds of the monotonic clock."""

    app: str
    database: Database
    incarnation: Incarnation
    store: str = ""  # name of the database in log lines
    queues: list[WorkQueue] = field(default_factory=list)  # one work queue for each reaction
    schedules: list[str] = field(default_factory=list)  # names of the schedules
    enrolled: bool = False  # whether the database's rows of schedules agree with the schedules that the application declares
    stopping: float | None = None  # time at which a stopping worker waits no longer for running calls; None: it is not stopping
    next_due: float | None = None  # time at which the next attempt is due; 0: query it; None: no attempt becomes due
    took: int = 0  # number of records and attempts that were carried out since the last sweep began
    took_last: str = ""  # name of the reaction of which a record was carried out last
    bounded: tuple[int, int] = (0, 0)  # (incarnation id, how often the clock went back) when `clamp_future` last shortened waits
    turn: int = 0  # number of calls of `rotate_queues`, by which each queue comes first at times
    left_begun: bool = False  # attempts may be begun for which no call or handler runs: the next loop iteration looks for them
    alone: Attempt | None = None  # in careful mode, the suspected attempt that runs next, alone; None if there is none
    others: bool = False  # whether other workers of this app are known to run on a database with row locks
    beside_others_until: float = 0.0  # time until which an embedded store counts as shared, since another process wrote to it
    unheard_s: float = 0.0  # seconds for which slow batches have locked an embedded store since other writers last had a chance
    tally: Tally = field(default_factory=Tally)
    watched: GuardedWatch = NOBODY

    def __post_init__(self) -> None:
        self.tally.swept_at = self.clock.monotonic()

    @property
    def clock(self) -> Clock:
        """Return the clock that times all that this worker does."""
        return self.database.clock

    @property
    def all_queues(self) -> list[WorkQueue]:
        """Return each reaction's work queue, followed by its queue of expired records if it has one."""
        return [part for queue in self.queues for part in (queue, queue.late) if part is not None]

    @property
    def is_embedded(self) -> bool:
        return not self.database.locks_rows

    def hold_back_reactions(self, names: frozenset[str]) -> None:
        """Stop carrying out these reactions until a person allows it, and note their names as the only ones that wait after a restore. The
        queues of the other reactions are not changed.
        """
        for queue in self.queues:
            if queue.name in names:
                for part in filter(None, (queue, queue.late)):
                    part.admitted = False
        self.incarnation.waiting = names

    def queue_named(self, name: str) -> WorkQueue:
        """Return the work queue of the reaction with this name, which has to be one of this worker's reactions."""
        return next(queue for queue in self.queues if queue.name == name)

    def request_due_query(self) -> None:
        """Let the next loop iteration query when the next attempt is due. Call it after an attempt may have got a due time."""
        self.next_due = 0.0

    @property
    def has_other_writers(self) -> bool:
        """Return whether another process wrote to the embedded store in the last OTHERS_S seconds."""
        if self.incarnation.others_wrote:
            self.beside_others_until = self.clock.monotonic() + OTHERS_S
        return self.clock.monotonic() < self.beside_others_until

    @property
    def target_hold_s(self) -> float:
        """Return how many seconds a batch's transaction aims to hold its locks at most."""
        if not self.is_embedded:
            return HOLD_S
        return HOLD_BESIDE_OTHERS_S if self.has_other_writers else HOLD_EMBEDDED_S

    def sleep_for_other_writers(self, took_s: float) -> None:
        """After a batch that took `took_s` seconds, sleep so that other writers get the lock of an embedded store (rules.md 18).

        SQLite does not queue waiting writers: each of them tries again only every tenth of a second, and would miss a short pause. So after
        slow batches the sleep is long enough for each writer to try once.
        """
        if not self.is_embedded:
            return
        if self.has_other_writers:
            self.clock.sleep(took_s)
            return
        self.unheard_s += took_s if took_s > HOLD_S else 0.0
        if self.unheard_s < UNHEARD_MOST_S:
            self.clock.sleep(took_s / 20)
        else:
            self.unheard_s = 0.0
            self.clock.sleep(BUSY_LOOKS_S)

    def rotate_queues(self, queues: list[WorkQueue]) -> list[WorkQueue]:
        """Return these queues in a new order: the queue that has not come first for the longest time comes first."""
        self.turn += 1
        ordered = sorted(queues, key=lambda queue: queue.first_at)
        if ordered:
            ordered[0].first_at = self.turn
        return ordered


HOLD_S = 0.05  # seconds that a batch aims to hold its row locks
HOLD_EMBEDDED_S = 0.012  # seconds that a batch aims to hold the lock of an embedded store, which covers all of it
HOLD_BESIDE_OTHERS_S = 0.004  # seconds that a batch aims to hold the lock of an embedded store to which others write (rules.md 18)
OTHERS_S = 5.0  # seconds after a write of another process in which this worker leaves an embedded store free half of the time
UNHEARD_MOST_S = 1.0  # seconds for which slow batches may lock an embedded store before this worker sleeps for BUSY_LOOKS_S
BUSY_LOOKS_S = 0.11  # seconds of sleep: a little more than the 0.1 s after which a waiting writer of SQLite tries again


LONG = 50  # rows: if a batch of this size does not reach the end of the backlog, other workers may help


def advance_pass(queue: WorkQueue, cursor: tuple[object, ...] | None, read: int, limit: int, taken: int) -> None:
    """After a batch, move a backlog pass on to the row behind the batch, or end the pass if the batch reached the end of the backlog.

    cursor: the sort values of the batch's last row. limit: the most rows that the batch could read. read: the rows that it read. taken: the
    rows that it carried out.
    """
    queue.cursor = cursor
    queue.long |= read >= limit >= (LONG if queue.query.spec.call is not None else min(LONG, queue.batch))
    if read < limit:
        queue.end_pass()
    elif taken * 2 < read:
        queue.crowded = True  # most rows have an attempt already: for the rest of this pass SQL leaves such rows out (hazard 27)


def postpone_queue(queue: WorkQueue) -> None:
    """Let one work queue wait after an error that concerns only this queue: 0.1 s, then twice as long after each error, up to 12.8 s."""
    queue.trouble = min(queue.trouble + 1, 8)
    queue.not_before = queue.query.database.clock.monotonic() + 0.05 * 2**queue.trouble
