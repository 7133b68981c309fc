"""The work that waits for one reaction, as far as memory knows: fresh keys (hinted), the backlog (swept), and attempts that are due.

Fresh keys and the backlog are apart, so that a million old rows never delay a new one. All of it may be lost: the next sweep finds the same
work by a query.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from groundstate.engine.sql.commit_hooks import Touched
from groundstate.engine.sql.condition_query import ConditionQuery, Place, PrimaryKey
from groundstate.engine.sql.group_scan import GroupPasses, round_of
from groundstate.engine.sql.raising_rows import Search
from groundstate.engine.watch.routing import concern
from groundstate.rules.circuit_breaker import Breaker
from groundstate.rules.median_cost import Usual

FRESH_MAX = 20_000  # the most fresh keys; beyond this a backlog pass finds the records
BATCH_FIRST = 200
BATCH_MAX = 500
BATCH_LEAST = 50  # the smallest batch of fast records, which share the cost of a transaction
SLOW = 4  # a batch that takes this many times its aim has slow records; a shorter one may be due to a busy machine
FAILING_MOST = 20  # different records in a row for which a handler fails until its reaction pauses
PREPARED_FIRST = 8  # the first batch of a reaction with `prepare`, whose duration is not known yet


@dataclass(eq=False)
class WorkQueue:
    """The work queue of one reaction. Any thread may call `hear`; only the worker's own thread calls the rest."""

    query: ConditionQuery
    admitted: bool = True  # False until a person accepts the reaction
    fresh: dict[PrimaryKey, None] = field(default_factory=dict)
    backlog: bool = False
    cursor: Place | None = None
    crowded: bool = False
    look_again: bool = False  # a table that the condition reads was touched during the pass, so another one follows
    elsewhere: bool = False  # the next pass begins somewhere in the middle, since other workers begin at the start
    long: bool = False  # the backlog is larger than this worker's next batch, so others are asked to help
    left_to_others: bool = False  # this worker is excluded from the backlog, at which enough others work
    probed: bool = False  # a read showed that this pass has something to take
    newest: bool = False  # during a long pass, the newest rows have to be looked up at its far end
    due: bool = False
    due_cursor: tuple[Any, ...] | None = None
    seen_full: bool = False  # in this pass over due attempts, no slot was free for one
    batch: int = BATCH_FIRST
    aside: bool = False  # its condition takes so long that a separate thread asks it
    asking: Usual = field(default_factory=Usual)  # the usual duration of one query of its condition
    next_sweep: float = 0.0
    first_at: int = 0  # `WorkerState.turn` when this queue last came first
    failing: Breaker = field(default_factory=lambda: Breaker(in_a_row=FAILING_MOST))  # the breaker of a DB-only reaction (rules.md 15)
    told_failing: float | None = None  # monotonic time at which the log said that the reaction pauses
    not_before: float = 0.0  # monotonic time before which it is not tried again, after an error of the database
    trouble: int = 0
    barred: str | None = None  # a text on the transaction that keeps a table of it locked
    barred_until: float = 0.0  # when the locked table is checked again; `not_before` is infinite meanwhile
    lacks: str | None = None  # a text on what the database lacks for its records, such as a column
    seen_lacking: bool = False  # a statement that loads no record shows what is lacking
    search: Search | None = None  # searches the rows for which its condition raises; other queries of the condition wait
    plain_s: float = 0.0  # seconds from the last error until the condition is asked as a whole again
    raised_at: float = 0.0
    raises_until: float = 0.0  # monotonic time before which it is not asked, since it raises for too many rows
    asked_again: float = 0.0  # monotonic time at which some failing rows were last tried again
    groups: GroupPasses | None = field(init=False)  # passes by the values of `per` or `in_order`; None without these
    late: WorkQueue | None = None  # the queue of expired records, for a reaction with valid_for
    timers: list[float] = field(default_factory=list)  # monotonic times at which its next records become due, the soonest first
    _heard: dict[PrimaryKey, None] = field(default_factory=dict)
    _heard_whole: bool = False
    _spread: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.groups = round_of(self.query)
        if self.query.spec.prepare is not None:
            self.batch = PREPARED_FIRST

    @property
    def name(self) -> str:
        return self.query.spec.name

    @property
    def on(self) -> bool:
        """Return whether this worker carries out the reaction's records at all: it is admitted, and no listener raised when it was asked at
        the start which rows it hides.
        """
        return self.admitted and self.query.filter_raised is None

    def hear(self, touched: Touched, *, shared: bool = False) -> bool:
        """Receive what a commit touched; return True if it concerns this reaction.

        shared: other workers are at the same backlog. They also find the records that follow from it, and would collide with this worker at
        single keys. So these records are left to backlog passes, which begin at different places.
        """
        found = concern(self.query, touched)
        if shared and touched.of_a_backlog and found.keys:
            self.hear_whole(spread=True)
        else:
            self.hear_keys(found.keys)
        if found.whole:
            self.hear_whole()
        return bool(found)

    def hear_keys(self, keys: Sequence[PrimaryKey]) -> None:
        """Note the keys of records that may have to be carried out."""
        if keys:
            with self._lock:
                self._heard.update(dict.fromkeys(keys))

    def hear_whole(self, *, spread: bool = False) -> None:
        """Note that records with unknown keys may have to be carried out. spread: others go through the same backlog, and begin
        elsewhere.
        """
        self._spread |= spread
        self._heard_whole = True

    def listen(self) -> bool:
        """Take over what was hinted since the last call; return whether anything was."""
        with self._lock:
            some = bool(self._heard)
            if some:
                self.fresh.update(self._heard)
                self._heard = {}
            whole, self._heard_whole = self._heard_whole, False
            spread, self._spread = self._spread, False
        self.elsewhere |= spread and not self.backlog and self.groups is None
        if whole and spread and self.backlog:
            self.look_again, whole = True, False  # new rows are for the worker that was hinted of them, not for all that help
        if whole or len(self.fresh) > FRESH_MAX:
            if len(self.fresh) > FRESH_MAX:
                self.fresh.clear()
            self.sweep()
        return some or whole

    def sweep(self) -> None:
        """Begin a new backlog pass, over all rows that match the condition. If a pass is running, it goes to its end, and then another
        begins.
        """
        if self.backlog:
            self.look_again, self.newest = True, self.groups is None and not self.aside
        else:
            self.backlog, self.cursor, self.crowded, self.probed = True, None, False, False

    def leave_to_others(self) -> None:
        """Keep this worker out of the backlog. When it may join again, a query first checks whether there are rows to take."""
        if not self.left_to_others:
            self.sweep()
            self.left_to_others, self.newest, self.probed = True, False, False

    def begin_elsewhere(self, connection: Connection, batches: int) -> None:
        """Let the backlog pass that begins skip some batches, and leave those to other workers and to the next pass."""
        self.elsewhere = False
        row = connection.execute(self.query.places_after(None, 1, crowded=True).offset(batches * self.batch)).first()
        if row is not None:
            self.cursor, self.look_again = tuple(row), True

    def swept(self, *, again: bool = False) -> None:
        """End a backlog pass. again: another pass follows at once, without a query first whether there are rows to take."""
        self.newest, self.probed = False, again
        self.backlog = self.look_again or again
        self.look_again = False
        self.cursor = None

    def probe(self, connection: Connection) -> Sequence[Any]:
        """Return one row that a backlog pass would look at, if there is any. This only reads."""
        if self.groups is not None:
            return self.groups.probe(connection)
        return connection.execute(self.query.places_after(None, 1, crowded=True)).all()

    def start(self) -> None:
        """Carry out this reaction, and its expired records, from now on: a person accepted it, or no acceptance is needed."""
        self.admitted = True
        self.sweep()
        if self.late is not None:
            self.late.start()

    def ring(self, now: float) -> None:
        """Begin a backlog pass for a record that is due now, without a query first whether there are rows to take. A pass that is running
        reaches the record by itself, since it goes by due time.
        """
        self.timers = [at for at in self.timers if at > now]
        if self.backlog:
            self.look_again = True
        else:
            self.sweep()
            self.probed = True

    def take_new_keys(self, most: int) -> list[PrimaryKey]:
        taken = [key for key, _ in zip(self.fresh, range(most), strict=False)]
        for key in taken:
            del self.fresh[key]
        return taken

    @property
    def passes(self) -> bool:
        """Return whether a backlog pass is running that the worker's own thread has to go on with."""
        return self.on and self.backlog and not (self.left_to_others or self.aside or self.search)

    @property
    def wants(self) -> bool:
        return self.passes or (self.on and bool(self.fresh or self.due or self._heard or self._heard_whole))

    def took(self, count: int, rows_s: float, seconds: float, hold_s: float, *, cut: bool = False) -> None:
        """Adapt the batch size so that a write lock is held for about `hold_s` seconds: at once if the records are slow, else by degrees.

        count: number of records, which took `rows_s` seconds. seconds: duration of their transaction. cut: it ended before its last record.
        """
        least = 1 if self.aside else BATCH_LEAST  # the duration of a few fast records shows how busy the machine is, not how slow they are
        if cut or rows_s > SLOW * hold_s:
            self.batch = max(int(count * hold_s / rows_s), 1) if rows_s > hold_s else max(count, 1)
        elif seconds > hold_s and self.batch > least:
            self.batch = max(int(self.batch * max(hold_s / seconds, 0.7)), least)
        elif count * 2 >= self.batch and (seconds if self.batch >= least else rows_s) < hold_s / 2:
            self.batch = min(self.batch * 2, BATCH_MAX)


def lanes_of(query: ConditionQuery) -> WorkQueue:
    """Return a new work queue for a reaction, with one for its expired records if there can be any."""
    return WorkQueue(query, late=None if query.late is None else WorkQueue(query.late))
