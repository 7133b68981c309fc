"""The work that waits for one reaction, kept in memory: keys of fresh rows (from hints), the backlog (old rows, found by sweeps), and
attempts that are due.

Fresh keys and the backlog are kept apart, so that a million old rows never delay a new row. If the memory is lost, the next sweep finds the
same work by a query.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from groundstate.engine.sql.commit_hooks import Touched
from groundstate.engine.sql.condition_query import ConditionQuery, Place, PrimaryKey
from groundstate.engine.sql.group_scan import GroupPasses, group_passes_for
from groundstate.engine.sql.raising_rows import RaisingRowSearch
from groundstate.engine.watch.routing import find_concerned_records
from groundstate.rules.circuit_breaker import Breaker
from groundstate.rules.median_cost import UsualDuration

FRESH_MAX = 20_000  # the most fresh keys that are kept; if there are more, all are dropped, and a backlog pass finds their records
BATCH_FIRST = 200  # records in the first batch
BATCH_MAX = 500  # records in the largest batch
BATCH_LEAST = 50  # records in the smallest batch of fast records, so that they share the cost of a transaction
SLOW = 4  # factor: a batch that takes more than this many times its target has slow records; below that, the machine may just be busy
FAILING_MOST = 20  # records: after the handler failed for so many different records in a row, the reaction pauses
PREPARED_FIRST = 8  # records in the first batch of a reaction with `prepare`, since it is not known yet how long `prepare` takes


@dataclass(eq=False)
class WorkQueue:
    """The work queue of one reaction. Other threads call only its `note_...` methods, the worker's own thread all of them."""

    query: ConditionQuery
    admitted: bool = True  # False while the reaction waits for a person, who has to accept it
    fresh: dict[PrimaryKey, None] = field(default_factory=dict)  # keys of rows to be looked up next, in this order
    backlog: bool = False  # a backlog pass (a walk over all rows that match) is running
    cursor: Place | None = None  # the row behind which the pass goes on; None at the start
    crowded: bool = False  # most rows of this pass have an attempt already, so SQL leaves such rows out
    look_again: bool = False  # a table that the condition reads was written during the pass, so another pass follows
    elsewhere: bool = False  # the next pass begins somewhere in the middle, since other workers begin at the start
    long: bool = False  # the backlog is larger than this worker's next batch, so other workers are asked to help
    left_to_others: bool = False  # this worker is excluded from the backlog, since enough other workers carry it out
    probed: bool = False  # a query showed that this pass has some row to take
    newest: bool = False  # the newest rows have to be queried now, since a long pass reaches them last
    due: bool = False  # attempts may be due, and have to be queried
    due_cursor: tuple[Any, ...] | None = None  # the attempt behind which the query for due attempts goes on; None at the start
    seen_full: bool = False  # since the pass over due attempts began, some attempt found no free slot (place under a limit) for its call
    batch: int = BATCH_FIRST  # number of records in the next batch
    aside: bool = False  # the condition takes so long that a separate thread queries it
    asking: UsualDuration = field(default_factory=UsualDuration)  # how long one query of the condition usually takes
    next_sweep: float = 0.0  # monotonic time from which the next sweep includes this queue
    first_at: int = 0  # value of `WorkerState.turn` when this queue last came first
    failing: Breaker = field(default_factory=lambda: Breaker(in_a_row=FAILING_MOST))  # pauses a reaction without a call (rules.md 15)
    told_failing: float | None = None  # monotonic time at which the log said that the reaction pauses; None if it does not
    not_before: float = 0.0  # monotonic time before which the queue is not tried again, after an error of the database
    trouble: int = 0  # number of errors in a row that concerned only this queue
    barred: str | None = None  # text on the transaction that has locked a table of this reaction; None if no table is locked
    barred_until: float = 0.0  # monotonic time at which the locked table is checked again; `not_before` is infinite until then
    lacks: str | None = None  # text on what the database lacks for the records, such as a column; None if nothing
    seen_lacking: bool = False  # the check, a statement that loads no record, showed what is lacking
    search: RaisingRowSearch | None = None  # a search for rows for which the condition raises; None if none is running
    plain_s: float = 0.0  # seconds from the last error of the condition until the condition is queried in its plain form again
    raised_at: float = 0.0  # monotonic time at which the condition last raised, or the search for such rows ended
    raises_until: float = 0.0  # monotonic time before which the condition is not queried, since it raises for too many rows
    asked_again: float = 0.0  # monotonic time at which some failing rows were last tried again
    groups: GroupPasses | None = field(init=False)  # backlog passes by groups, for a reaction with `per` or `in_order`; else None
    late: WorkQueue | None = None  # the queue of expired records, for a reaction with `valid_for`; else None
    timers: list[float] = field(default_factory=list)  # monotonic times at which the next records become due, the soonest first
    _heard: dict[PrimaryKey, None] = field(default_factory=dict)  # keys of hints that are not in `fresh` yet; other threads add to it
    _heard_whole: bool = False  # some hint was about rows whose keys are not known
    _spread: bool = False  # some hint was about rows at which many workers work together
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.groups = group_passes_for(self.query)
        if self.query.spec.prepare is not None:
            self.batch = PREPARED_FIRST

    @property
    def name(self) -> str:
        return self.query.spec.name

    @property
    def is_enabled(self) -> bool:
        """Return whether this worker carries out the reaction at all: not before a person accepted it, and not if the application's
        listener that filters rows raised an error at the start.
        """
        return self.admitted and self.query.filter_raised is None

    def note_commit(self, touched: Touched, *, shared: bool = False) -> bool:
        """Note which records a commit touched; return True if the commit concerns this reaction.

        shared: other workers of the app run on this database. If the commit was a batch of a backlog, only the fact that there is work is
        noted, and no keys: the workers would all try to lock the same records, whereas their backlog passes begin at different places.
        """
        found = find_concerned_records(self.query, touched)
        if shared and touched.of_a_backlog and found.keys:
            self.note_unknown_keys(spread=True)
        else:
            self.note_keys(found.keys)
        if found.whole:
            self.note_unknown_keys()
        return bool(found)

    def note_keys(self, keys: Sequence[PrimaryKey]) -> None:
        """Note the keys of records that may have to be carried out."""
        if keys:
            with self._lock:
                self._heard.update(dict.fromkeys(keys))

    def note_unknown_keys(self, *, spread: bool = False) -> None:
        """Note that records with unknown keys may have to be carried out. spread: other workers look for the same records, so this worker
        begins its backlog pass at another place than they do.
        """
        self._spread |= spread
        self._heard_whole = True

    def take_over_hints(self) -> bool:
        """Add the record keys of the hints that came since the last call to `fresh`. Request a backlog pass if a hint had no keys, or if
        `fresh` has more than FRESH_MAX keys now, which are then dropped. Return whether there was any hint.
        """
        with self._lock:
            has_keys = bool(self._heard)
            if has_keys:
                self.fresh.update(self._heard)
                self._heard = {}
            whole, self._heard_whole = self._heard_whole, False
            spread, self._spread = self._spread, False
        self.elsewhere |= spread and not self.backlog and self.groups is None
        if whole and spread and self.backlog:
            self.look_again, whole = True, False  # this worker only helps with a pass, so it looks for new rows after the pass
        if whole or len(self.fresh) > FRESH_MAX:
            if len(self.fresh) > FRESH_MAX:
                self.fresh.clear()
            self.request_pass()
        return has_keys or whole

    def request_pass(self) -> None:
        """Begin a backlog pass, which walks over all rows that match the condition. If one is running, the new pass begins after it."""
        if self.backlog:
            self.look_again, self.newest = True, self.groups is None and not self.aside
        else:
            self.backlog, self.cursor, self.crowded, self.probed = True, None, False, False

    def leave_backlog_to_others(self) -> None:
        """Exclude this worker from the reaction's backlog. When it may work at the backlog again, a query first checks for rows to take."""
        if not self.left_to_others:
            self.request_pass()
            self.left_to_others, self.newest, self.probed = True, False, False

    def skip_batches(self, connection: Connection, batches: int) -> None:
        """Let the backlog pass that begins now skip a number of batches: other workers, or the next pass, carry out the skipped rows."""
        self.elsewhere = False
        row = connection.execute(self.query.select_cursors_after(None, 1, crowded=True).offset(batches * self.batch)).first()
        if row is not None:
            self.cursor, self.look_again = tuple(row), True

    def end_pass(self, *, again: bool = False) -> None:
        """End the running backlog pass. again: begin the next pass at once, without first checking by a query for rows to take."""
        self.newest, self.probed = False, again
        self.backlog = self.look_again or again
        self.look_again = False
        self.cursor = None

    def find_row_to_take(self, connection: Connection) -> Sequence[Any]:
        """Return a list with one row that a backlog pass would carry out, or an empty list if there is none. Locks nothing."""
        if self.groups is not None:
            return self.groups.probe_one_row(connection)
        return connection.execute(self.query.select_cursors_after(None, 1, crowded=True)).all()

    def admit(self) -> None:
        """Let this worker carry out the reaction and its expired records from now on, and begin a backlog pass for each. Call it when a
        person has accepted the reaction, or nobody has to.
        """
        self.admitted = True
        self.request_pass()
        if self.late is not None:
            self.late.admit()

    def begin_due_pass(self, now: float) -> None:
        """Begin a backlog pass at once, since a record is due now, and drop the timers up to the monotonic time `now`. If a pass is
        running, the new pass follows it.
        """
        self.timers = [at for at in self.timers if at > now]
        if self.backlog:
            self.look_again = True
        else:
            self.request_pass()
            self.probed = True

    def take_new_keys(self, most: int) -> list[PrimaryKey]:
        """Remove the first fresh keys from the queue, at most `most` of them, and return these keys."""
        taken = [key for key, _ in zip(self.fresh, range(most), strict=False)]
        for key in taken:
            del self.fresh[key]
        return taken

    @property
    def has_pass(self) -> bool:
        """Return whether the worker's own thread has a backlog pass to go on with."""
        return self.is_enabled and self.backlog and not (self.left_to_others or self.aside or self.search)

    @property
    def has_work(self) -> bool:
        return self.has_pass or (self.is_enabled and bool(self.fresh or self.due or self._heard or self._heard_whole))

    def adapt_batch_size(self, count: int, rows_s: float, seconds: float, hold_s: float, *, cut: bool = False) -> None:
        """Set the size of the next batch so that its transaction holds locks for about `hold_s` seconds: at once if the records are slow,
        else in small steps.

        count: records in the last batch. rows_s: seconds that these records took. seconds: duration of the batch's transaction. cut: the
        batch ended before its last record, since its time was used up.
        """
        least = 1 if self.aside else BATCH_LEAST  # not less: the duration of a few fast records only shows how busy the machine is
        if cut or rows_s > SLOW * hold_s:
            self.batch = max(int(count * hold_s / rows_s), 1) if rows_s > hold_s else max(count, 1)
        elif seconds > hold_s and self.batch > least:
            self.batch = max(int(self.batch * max(hold_s / seconds, 0.7)), least)
        elif count * 2 >= self.batch and (seconds if self.batch >= least else rows_s) < hold_s / 2:
            self.batch = min(self.batch * 2, BATCH_MAX)


def build_work_queue(query: ConditionQuery) -> WorkQueue:
    """Return a new work queue for a reaction. If its records can expire, `late` of the result is a queue for the expired records."""
    return WorkQueue(query, late=None if query.query_for_expired is None else WorkQueue(query.query_for_expired))
