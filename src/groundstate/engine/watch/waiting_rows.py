"""The rows of one reaction that wait to be carried out, kept in memory: keys of fresh rows (from hints), and the backlog pass (a walk over
all rows that match the condition, begun by a sweep).

Fresh keys and the backlog are kept apart, so that a million old rows never delay a new row. If the memory is lost, the next sweep finds the
same work by a query.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, KeysView, Sequence

from groundstate.engine.sql.group_scan import GroupPasses
from groundstate.engine.sql.pass_cursors import PassCursor
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.rules.median_cost import UsualDuration

FRESH_MAX = 20_000  # the most fresh keys that are kept; if there are more, all are dropped, and a backlog pass finds their records
BATCH_FIRST = 200  # records in the first batch
BATCH_MAX = 500  # records in the largest batch
BATCH_LEAST = 50  # records in the smallest batch of fast records, so that they share the cost of a transaction
# Factor: a batch has slow records if it takes more than this many times its target duration; otherwise the machine may just be busy.
SLOW = 4
PREPARED_FIRST = 8  # records in the first batch of a reaction with `prepare`, since it is not known yet how long `prepare` takes
LONG = 50  # rows: if a batch of this size does not reach the end of the backlog, other workers may help


class WaitingRows:
    """The fresh keys, the hints and the backlog pass of one work queue. Only its own methods change its fields; ARCHITECTURE.md has a table
    of the states that the fields can reach. Other threads call only `note_keys` and `note_unknown_keys`.

    groups: backlog passes by groups, for a reaction with `per` or `in_order`; else None.
    has_call: whether the reaction has a call. has_prepare: whether it has `prepare`.
    """

    def __init__(self, groups: GroupPasses | None, *, has_call: bool, has_prepare: bool) -> None:
        self._groups = groups
        self._has_call = has_call
        self._fresh: dict[PrimaryKey, None] = {}
        self._backlog = False
        self._cursor: PassCursor | None = None
        self._crowded = False
        self._look_again = False  # a table that the condition reads was written during the pass, so another pass follows
        self._elsewhere = False
        self._long = False
        self._left_to_others = False
        self._probed = False
        self._newest = False
        self._aside = False
        self._query_duration = UsualDuration()
        self._batch = PREPARED_FIRST if has_prepare else BATCH_FIRST
        self._heard: dict[PrimaryKey, None] = {}  # keys of hints that are not in `fresh` yet; other threads add to it
        self._heard_whole = False  # some hint was about rows whose keys are not known
        self._spread = False  # some hint was about rows that many workers carry out together
        self._lock = threading.Lock()

    # ---- what is known -----------------------------------------------------------------------------------------------------------
    @property
    def groups(self) -> GroupPasses | None:
        """Return the backlog passes by groups, for a reaction with `per` or `in_order`; else None."""
        return self._groups

    @property
    def fresh(self) -> KeysView[PrimaryKey]:
        """Return the keys of the rows to be looked up next, in this order."""
        return self._fresh.keys()

    @property
    def has_hints(self) -> bool:
        """Return whether hints have arrived that `take_over_hints` has not handled yet."""
        return bool(self._heard or self._heard_whole)

    @property
    def backlog(self) -> bool:
        """Return whether a backlog pass is running."""
        return self._backlog

    @property
    def cursor(self) -> PassCursor | None:
        """Return the row after which the backlog pass goes on; None at the start."""
        return self._cursor

    @property
    def crowded(self) -> bool:
        """Return whether most rows of this pass have an attempt already, so that SQL has to leave such rows out."""
        return self._crowded

    @property
    def elsewhere(self) -> bool:
        """Return whether the next pass begins somewhere in the middle, since other workers begin at the start."""
        return self._elsewhere

    @property
    def long(self) -> bool:
        """Return whether the backlog is larger than this worker's next batch, so that other workers have to be asked to help."""
        return self._long

    @property
    def left_to_others(self) -> bool:
        """Return whether this worker is excluded from the backlog, since enough other workers carry it out."""
        return self._left_to_others

    @property
    def probed(self) -> bool:
        """Return whether a query showed that this pass has some row to take."""
        return self._probed

    @property
    def newest(self) -> bool:
        """Return whether the newest rows have to be queried now, since a long pass reaches them last."""
        return self._newest

    @property
    def aside(self) -> bool:
        """Return whether the condition takes so long that a separate thread queries it."""
        return self._aside

    @property
    def usual_query_s(self) -> float:
        """Return how many seconds one query of the condition usually takes."""
        return self._query_duration.seconds

    @property
    def batch(self) -> int:
        """Return the number of records in the next batch."""
        return self._batch

    # ---- hints, and fresh keys -----------------------------------------------------------------------------------------------------
    def note_keys(self, keys: Sequence[PrimaryKey]) -> None:
        """Note the keys of records that may have to be carried out. Any thread may call this."""
        if keys:
            with self._lock:
                self._heard.update(dict.fromkeys(keys))

    def note_unknown_keys(self, *, spread: bool = False) -> None:
        """Note that records with unknown keys may have to be carried out. Any thread may call this. spread: other workers look for the same
        records, so this worker begins its backlog pass at another place than they do.
        """
        with self._lock:
            self._spread |= spread
            self._heard_whole = True

    def take_over_hints(self) -> bool:
        """Move the record keys of new hints into `fresh`. Request a backlog pass if a hint had no keys. If `fresh` then has more than
        FRESH_MAX keys, drop all of them and request a backlog pass too. Return whether there was any hint.
        """
        with self._lock:
            has_keys = bool(self._heard)
            if has_keys:
                self._fresh.update(self._heard)
                self._heard = {}
            whole, self._heard_whole = self._heard_whole, False
            spread, self._spread = self._spread, False
        self._elsewhere |= spread and not self._backlog and self._groups is None
        if whole and spread and self._backlog:
            # This worker is asked to help while its own pass is running already, so it looks for new rows after this pass.
            self._look_again, whole = True, False
        if whole or len(self._fresh) > FRESH_MAX:
            if len(self._fresh) > FRESH_MAX:
                self._fresh.clear()
            self.request_pass()
        return has_keys or whole

    def add_fresh_keys(self, keys: Iterable[PrimaryKey]) -> None:
        """Append the keys of rows to the fresh keys."""
        self._fresh.update(dict.fromkeys(keys))

    def put_keys_first(self, keys: Iterable[PrimaryKey]) -> None:
        """Put these keys back before the other fresh keys. The keys were taken, but their records were not carried out."""
        self._fresh = dict.fromkeys(keys) | self._fresh

    def take_new_keys(self, most: int) -> list[PrimaryKey]:
        """Remove the first fresh keys from the queue, at most `most` of them, and return these keys."""
        taken = [key for key, _ in zip(self._fresh, range(most), strict=False)]
        for key in taken:
            del self._fresh[key]
        return taken

    def drop_fresh_keys(self) -> None:
        """Drop all fresh keys, and request a backlog pass, which finds their records."""
        self._fresh.clear()
        self.request_pass()

    # ---- the backlog pass ------------------------------------------------------------------------------------------------------------
    def request_pass(self) -> None:
        """Begin a backlog pass, which walks over all rows that match the condition. If one is running, the new pass begins after it."""
        if self._backlog:
            self._look_again, self._newest = True, self._groups is None and not self._aside
        else:
            self._backlog = True

    def request_pass_for_due_record(self) -> None:
        """Begin a backlog pass at once, since a record is due now. If a pass is running, the new pass follows it."""
        if self._backlog:
            self._look_again = True
        else:
            self.request_pass()
            self._probed = True

    def note_rows_found(self) -> None:
        """Note that a query showed that the running pass has some row to take."""
        self._probed = self._backlog and not self._left_to_others

    def note_newest_queried(self) -> None:
        """Note that the newest rows are queried now."""
        self._newest = False

    def begin_at_start(self) -> None:
        """Begin the following passes at the start, until a new hint asks for another place."""
        self._elsewhere = False

    def skip_rows_until(self, cursor: PassCursor) -> None:
        """Let the pass that begins now start with the row after `cursor`. Other workers, or the next pass, carry out the rows up to
        `cursor`.
        """
        if self._backlog:
            self._cursor, self._look_again = cursor, True

    def move_cursor(self, cursor: PassCursor | None) -> None:
        """Let the running pass go on after this row; None means that it goes on at the start."""
        if self._backlog:
            self._cursor = cursor

    def advance(self, cursor: PassCursor | None, *, read: int, limit: int, taken: int) -> None:
        """After a batch, let the backlog pass go on after the batch's last row, or end the pass if the batch reached the end of the
        backlog.

        cursor: the sort values of the batch's last row. limit: the most rows that the batch could read. read: the rows that it read. taken:
        the rows that it carried out.
        """
        self.move_cursor(cursor)
        self._long |= read >= limit >= (LONG if self._has_call else min(LONG, self._batch))
        if read < limit:
            self.end_pass()
        elif taken * 2 < read:
            self._crowded = self._backlog  # most rows have an attempt: for the rest of this pass SQL leaves such rows out (hazard 27)

    def end_pass(self, *, again: bool = False) -> None:
        """End the running backlog pass. again: begin the next pass at once, without a query that first checks for rows to take.

        If this worker is excluded from the backlog, a new pass is always planned, whatever `again` says. It begins once the worker is no
        longer excluded, with the query that checks for rows to take.
        """
        self._backlog = self._look_again or again or self._left_to_others
        self._probed = again and not self._left_to_others
        self._crowded &= self._backlog
        self._newest = self._look_again = False
        self._cursor = None

    # ---- who carries out the backlog -------------------------------------------------------------------------------------------------
    def note_long_backlog(self) -> None:
        """Note that the backlog is larger than this worker's next batch, so that other workers are asked to help."""
        self._long = True

    def note_long_backlog_reported(self) -> None:
        """Note that the other workers were asked to help with the backlog."""
        self._long = False

    def leave_backlog_to_others(self) -> None:
        """Exclude this worker from the reaction's backlog. When it may work at the backlog again, a query first checks for rows to take."""
        if not self._left_to_others:
            self.request_pass()
            self._left_to_others, self._newest, self._probed = True, False, False

    def rejoin_backlog(self) -> None:
        """Let this worker work at the reaction's backlog again."""
        self._left_to_others = False

    def move_query_aside(self) -> None:
        """Let a separate thread query the condition from now on, since it takes long."""
        self._aside, self._newest = True, False

    def return_query_to_own_thread(self) -> None:
        """Let the worker's own thread query the condition again."""
        self._aside = False

    def record_query_duration(self, seconds: float) -> float:
        """Record how many seconds one query of the condition took, and return how many it usually takes."""
        return self._query_duration.record(seconds)

    # ---- the size of a batch -----------------------------------------------------------------------------------------------------------
    def limit_next_batch(self, records: int) -> None:
        """After a batch took too long, set the size of the next batch to this many records, but at least one."""
        self._batch = max(records, 1)

    def adapt_batch_size(self, count: int, rows_s: float, seconds: float, hold_s: float, *, cut: bool = False) -> None:
        """Set the size of the next batch so that its transaction holds locks for about `hold_s` seconds: at once if the records are slow,
        else in small steps.

        count: records in the last batch. rows_s: seconds that these records took. seconds: duration of the batch's transaction. cut: the
        batch ended before its last record, since its time was used up.
        """
        least = 1 if self._aside else BATCH_LEAST  # not less, since the duration of a few fast records only shows how busy the machine is
        if cut or rows_s > SLOW * hold_s:
            self._batch = max(int(count * hold_s / rows_s), 1) if rows_s > hold_s else max(count, 1)
        elif seconds > hold_s and self._batch > least:
            self._batch = max(int(self._batch * max(hold_s / seconds, 0.7)), least)
        elif count * 2 >= self._batch and (seconds if self._batch >= least else rows_s) < hold_s / 2:
            self._batch = min(self._batch * 2, BATCH_MAX)
