"""The state that the modules of a running worker share: its database, its incarnation (the worker from taking its lock to losing it), its
work queues, and notes for the next loop iteration.

Each field has one writer. Only the methods of `WorkerState` write its fields. It also holds objects (`Progress`, `BatchLocks`,
`QueueRotation`, `Tally`, `HandlerLocks`); only the methods of each object write the fields of that object. All other modules only read
the fields.
tests/engine/watch/test_field_owners.py checks that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from groundstate.clock import Clock
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.watch.batch_locks import BatchLocks
from groundstate.engine.watch.counters import Tally
from groundstate.engine.watch.handler_locks import HandlerLocks
from groundstate.engine.watch.progress import Progress
from groundstate.engine.watch.queue_rotation import QueueRotation
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
    schedules: Sequence[str] = ()  # names of the schedules
    watched: GuardedWatch = NOBODY
    queues: list[WorkQueue] = field(default_factory=list, init=False)  # one work queue for each reaction
    stopping: float | None = field(default=None, init=False)  # time until which a stopping worker waits for running calls; else None
    # Time at which the next attempt is due; 0: the time has to be queried; None: no attempt becomes due.
    next_due: float | None = field(default=None, init=False)
    waits_shortened_for: tuple[int, int] = field(default=(0, 0), init=False)  # see `note_waits_shortened`
    left_begun: bool = field(default=False, init=False)  # whether there may be begun attempts whose call or handler does not run
    alone: Attempt | None = field(default=None, init=False)  # in careful mode, the suspected attempt that runs next, alone; else None
    progress: Progress = field(default_factory=Progress, init=False)
    rotation: QueueRotation = field(default_factory=QueueRotation, init=False)
    handler_locks: HandlerLocks = field(default_factory=HandlerLocks, init=False)
    tally: Tally = field(init=False)
    batch_locks: BatchLocks = field(init=False)

    def __post_init__(self) -> None:
        self.tally = Tally(swept_at=self.clock.monotonic())
        self.batch_locks = BatchLocks(self.database, lambda: self.incarnation.others_wrote)

    @property
    def clock(self) -> Clock:
        """Return the clock from which this worker reads every time."""
        return self.database.clock

    @property
    def all_queues(self) -> list[WorkQueue]:
        """Return each reaction's work queue, followed by its queue of expired records if it has one."""
        return [part for queue in self.queues for part in (queue, queue.late) if part is not None]

    @property
    def is_embedded(self) -> bool:
        return not self.database.locks_rows

    def queue_named(self, name: str) -> WorkQueue:
        """Return the work queue of the reaction with this name, which has to be one of this worker's reactions."""
        return next(queue for queue in self.queues if queue.name == name)

    def set_queues(self, queues: list[WorkQueue]) -> None:
        """Set the work queues, one for each reaction. The start of the worker calls this once."""
        self.queues = queues

    def replace_incarnation(self, fresh: Incarnation) -> None:
        """Let the worker go on as this incarnation, which replaces the present one."""
        self.incarnation = fresh

    def begin_stop(self, wait_until: float) -> None:
        """Note that the worker stops: it begins nothing new, and waits for running calls until the time `wait_until`. Any thread may call
        this.
        """
        self.stopping = wait_until

    def hold_back_reactions(self, names: frozenset[str]) -> None:
        """Stop carrying out these reactions until a person allows it after a restore. Their names replace all names in the incarnation's
        `waiting`. The queues of the other reactions are not changed.
        """
        for queue in self.queues:
            if queue.name in names:
                for part in filter(None, (queue, queue.late)):
                    part.postponement.wait_for_acceptance()
        self.incarnation.waiting = names

    def request_due_query(self) -> None:
        """Let the next loop iteration query when the next attempt is due. Call it after an attempt may have got a due time."""
        self.next_due = 0.0

    def set_next_due(self, at: float | None) -> None:
        """Set the time at which the next attempt is due, as a query found it; None if no attempt becomes due."""
        self.next_due = at

    def note_waits_shortened(self) -> None:
        """Note that waits of attempts were shortened, since a wrong clock had made them too long. `waits_shortened_for` keeps the id of the
        incarnation that shortened waits last. It also keeps how often this incarnation had by then seen that the database's clock was set
        back.
        """
        self.waits_shortened_for = (self.incarnation.id, self.incarnation.steps_back)

    def note_begun_attempts_left(self, *, left: bool) -> None:
        """Note whether there may be begun attempts whose call or handler does not run. If so, the next loop iteration looks for them."""
        self.left_begun = left

    def choose_attempt_to_run_alone(self, attempt: Attempt | None) -> None:
        """Set the suspected attempt that runs next while nothing else runs (careful mode); None if there is none."""
        self.alone = attempt
