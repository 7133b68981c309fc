"""The work that waits for one reaction, kept in memory.

A work queue has three parts: the rows that wait for the reaction (`rows`), why and until when the queue waits (`postponement`), and what is
due (`due_work`). Only the methods of a part write its fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from groundstate.engine.sql.commit_hooks import TouchedRecords
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.group_scan import group_passes_for
from groundstate.engine.watch.due_work import DueWork
from groundstate.engine.watch.postponement import Postponement
from groundstate.engine.watch.routing import find_concerned_records
from groundstate.engine.watch.waiting_rows import WaitingRows


class WorkQueue:
    """The work queue of one reaction. The worker's own thread may call every method. Another thread may call only `note_commit`, and the
    methods of `rows` whose docstrings permit any thread.

    late: the queue of expired records, for a reaction with `valid_for`; else None.
    """

    def __init__(self, query: ConditionQuery, late: WorkQueue | None = None) -> None:
        self.query = query
        self.rows = WaitingRows(group_passes_for(query), has_call=query.spec.call is not None, has_prepare=query.spec.prepare is not None)
        self.postponement = Postponement()
        self.due_work = DueWork()
        self.late = late
        self._first_at = 0

    @property
    def name(self) -> str:
        return self.query.spec.name

    @property
    def first_at(self) -> int:
        """Return the number of the turn in which this queue last came first; 0 if it never did."""
        return self._first_at

    def note_first(self, turn: int) -> None:
        """Note that this queue comes first in this turn."""
        self._first_at = turn

    @property
    def is_enabled(self) -> bool:
        """Return whether this worker carries out the reaction at all. Return False while the reaction waits until a person accepts it, or
        if the application's listener that filters rows raised an error at the start.
        """
        return self.postponement.admitted and self.query.filter_raised is None

    def note_commit(self, touched: TouchedRecords, *, shared: bool = False) -> bool:
        """Note which records a commit touched; return True if the commit concerns this reaction.

        shared: other workers of the app run on this database. In this case the keys that a backlog batch touched are not noted; it is only
        noted that there is work. With the keys, all workers would try to lock the same records. Without the keys, each worker begins its
        backlog pass at another place.
        """
        found = find_concerned_records(self.query, touched)
        if shared and touched.of_a_backlog and found.keys:
            self.rows.note_unknown_keys(spread=True)
        else:
            self.rows.note_keys(found.keys)
        if found.whole:
            self.rows.note_unknown_keys()
        return bool(found)

    def skip_batches(self, connection: Connection, batches: int) -> None:
        """Let the backlog pass that begins now skip a number of batches: other workers, or the next pass, carry out the skipped rows."""
        self.rows.begin_at_start()
        row = connection.execute(self.query.selects.select_cursors_after(None, 1, crowded=True).offset(batches * self.rows.batch)).first()
        if row is not None:
            self.rows.skip_rows_until(tuple(row))

    def find_row_to_take(self, connection: Connection) -> Sequence[Any]:
        """Return a list with one row that a backlog pass would carry out, or an empty list if there is none. The row is not locked."""
        if self.rows.groups is not None:
            return self.rows.groups.probe_one_row(connection)
        return connection.execute(self.query.selects.select_cursors_after(None, 1, crowded=True)).all()

    def admit(self) -> None:
        """Let this worker carry out the reaction and its expired records from now on, and begin a backlog pass for each. Call it when a
        person has accepted the reaction, or if no person has to accept it.
        """
        self.postponement.admit()
        self.rows.request_pass()
        if self.late is not None:
            self.late.admit()

    def begin_due_pass(self, now: float) -> None:
        """Begin a backlog pass at once, since a record is due now, and drop the timers up to the monotonic time `now`. If a pass is
        running, the new pass follows it.
        """
        self.due_work.drop_timers_until(now)
        self.rows.request_pass_for_due_record()

    def postpone_after_error(self) -> None:
        """Let this queue wait after an error that concerns no other queue. Each further error in a row makes the wait longer."""
        self.postponement.postpone(self.query.database.clock.monotonic())

    def wake_times(self, now: float) -> list[float]:
        """Return the monotonic times at which this queue may be tried again, one for each reason to wait. If a table of the reaction is
        locked, the time is that of the next check of the table.
        """
        waits, found = self.postponement, []
        if (self.has_work or waits.lacks) and waits.not_before > now:
            found.append(waits.not_before)
        if waits.barred is not None:
            found.append(waits.barred_until)
        if self.has_work and waits.failing_until > now:
            found.append(waits.failing_until)
        return found

    @property
    def has_pass(self) -> bool:
        """Return whether the worker's own thread has a backlog pass to go on with."""
        return self.is_enabled and self.rows.backlog and not (self.rows.left_to_others or self.rows.aside or self.postponement.search)

    @property
    def has_work(self) -> bool:
        return self.has_pass or (self.is_enabled and bool(self.rows.fresh or self.due_work.has_due_attempts or self.rows.has_hints))


def build_work_queue(query: ConditionQuery) -> WorkQueue:
    """Return a new work queue for a reaction. If its records can expire, `late` of the result is a queue for the expired records."""
    return WorkQueue(query, late=None if query.query_for_expired is None else WorkQueue(query.query_for_expired))
