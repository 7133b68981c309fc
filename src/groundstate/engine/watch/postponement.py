"""The time before which a work queue is not tried, and the reasons: a person has not accepted the reaction, a table is locked, a column is
missing, the condition raises, the database reported an error, or the handler fails for record after record.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from groundstate.engine.sql.raising_rows import RaisingRowSearch
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.rules.circuit_breaker import Breaker

FAILING_MOST = 20  # records: after the handler failed for so many different records in a row, the reaction pauses
TROUBLE_MOST = 8  # errors in a row after which the pause of a queue does not become longer


class Postponement:
    """Keeps why one work queue waits, and until when. Only its own methods change its fields; ARCHITECTURE.md has a table of the states
    that the fields can reach. Times are seconds of the monotonic clock.
    """

    def __init__(self) -> None:
        self._admitted = True
        self._not_before = 0.0
        self._trouble = 0
        self._barred: str | None = None
        self._barred_until = 0.0
        self._lacks: str | None = None
        self._seen_lacking = False
        self._search: RaisingRowSearch | None = None
        self._plain_s = 0.0
        self._raised_at = 0.0  # time at which the condition last raised an error, or at which the search for the failing rows ended
        self._raises_until = 0.0
        self._asked_again = 0.0
        self._failing = Breaker(in_a_row=FAILING_MOST)  # pauses a reaction without a call (rules.md 15)
        # Time at which the running pause of the reaction was logged; None: no running pause is logged.
        self._told_failing: float | None = None

    # ---- what is known -----------------------------------------------------------------------------------------------------------
    @property
    def admitted(self) -> bool:
        """Return False while the reaction waits for a person, who has to accept it."""
        return self._admitted

    @property
    def not_before(self) -> float:
        """Return the time before which the queue is not tried again. It is infinite while a table is locked, so that the queue does not go
        on by itself: `locked_tables.recheck_barred_queues` checks the table at `barred_until`.
        """
        return self._not_before if self._barred is None else math.inf

    @property
    def trouble(self) -> int:
        """Return the number of errors in a row that concerned only this queue, at most TROUBLE_MOST."""
        return self._trouble

    @property
    def barred(self) -> str | None:
        """Return a text about the transaction that has locked a table of this reaction; None if no table is locked."""
        return self._barred

    @property
    def barred_until(self) -> float:
        """Return the time at which the locked table is checked again; 0 if no table is locked."""
        return self._barred_until

    @property
    def lacks(self) -> str | None:
        """Return a text about what the database lacks for the records, such as a column; None if it lacks nothing."""
        return self._lacks

    @property
    def seen_lacking(self) -> bool:
        """Return whether the check, a statement that loads no record, showed what is lacking."""
        return self._seen_lacking

    @property
    def search(self) -> RaisingRowSearch | None:
        """Return the search for rows for which the condition raises; None if none is running."""
        return self._search

    @property
    def plain_s(self) -> float:
        """Return for how many seconds the condition must raise no error before it is queried in its plain form again (clauses in any
        order). 0 if no search for failing rows ran yet.
        """
        return self._plain_s

    @property
    def plain_again_at(self) -> float:
        """Return the time from which the condition may be queried in its plain form (clauses in any order) again."""
        return self._raised_at + self._plain_s

    @property
    def raises_until(self) -> float:
        """Return the time before which the condition is not queried, since it raises for too many rows; 0 if it never did."""
        return self._raises_until

    @property
    def asked_again(self) -> float:
        """The condition raises an error for some rows. Return the time at which any of these rows were last tried again."""
        return self._asked_again

    @property
    def is_failing(self) -> bool:
        """Return whether the reaction pauses, and then tries one record at a time, since its handler failed for many records in a row."""
        return self._failing.is_open

    @property
    def failing_until(self) -> float:
        """Return the time until which a failing reaction tries no record."""
        return self._failing.until

    def limit_records(self, most: int, now: float) -> int:
        """Return how many of `most` records may be tried at the time `now`: fewer, or none, if the handler fails for many in a row."""
        return self._failing.calls_allowed(most, 0, now)

    # ---- acceptance --------------------------------------------------------------------------------------------------------------
    def admit(self) -> None:
        """Let the worker carry out the reaction. Call it when a person has accepted the reaction, or nobody has to."""
        self._admitted = True

    def wait_for_acceptance(self) -> None:
        """Let the queue wait until a person accepts the reaction."""
        self._admitted = False

    # ---- errors --------------------------------------------------------------------------------------------------------------------
    def postpone(self, now: float, longest_s: float = math.inf) -> float:
        """Let the queue wait after an error that concerns only this queue: 0.1 s, then twice as long after each error, up to 12.8 s, and
        never longer than `longest_s` seconds. Return the end of this wait; while a table is locked, the queue waits longer.
        """
        self._trouble = min(self._trouble + 1, TROUBLE_MOST)
        self._not_before = now + min(0.05 * 2**self._trouble, longest_s)
        return self._not_before

    def postpone_until(self, at: float) -> None:
        """Let the queue wait at least until the time `at`."""
        self._not_before = max(self._not_before, at)

    def try_next_at(self, at: float) -> None:
        """Let the queue wait until the time `at`, and no longer. 0: try it at once."""
        self._not_before = at

    def note_success(self) -> None:
        """Note that rows of the queue were carried out, or that a check no longer shows its error, so that the next pause is short."""
        self._trouble = 0

    # ---- a locked table ------------------------------------------------------------------------------------------------------------
    def wait_for_lock(self, by: str, now: float, longest_s: float) -> None:
        """Let the queue wait since one of its tables is locked, and let the table be checked again in at most `longest_s` seconds.

        by: a text about the transaction that has the lock.
        """
        self._barred, self._barred_until = by, self.postpone(now, longest_s)

    def end_wait_for_lock(self) -> None:
        """Let the queue be tried at once, if it waits for a locked table."""
        if self._barred is not None:
            self._barred, self._barred_until, self._not_before = None, 0.0, 0.0

    # ---- what the database lacks ---------------------------------------------------------------------------------------------------
    def note_lack(self, lacks: str) -> None:
        """Note what the database lacks for the records, as a text."""
        self._lacks = lacks

    def confirm_lack(self) -> None:
        """Record that the check has confirmed what the database lacks."""
        self._seen_lacking = self._lacks is not None

    def end_lack(self) -> None:
        """Note that the database lacks nothing any more."""
        self._lacks, self._seen_lacking = None, False

    @property
    def cannot_be_queried(self) -> bool:
        """Return whether the condition cannot be queried now: a table is locked, or the database lacks something."""
        return self._barred is not None or self._lacks is not None

    # ---- a condition that raises -----------------------------------------------------------------------------------------------------
    def begin_search(self, search: RaisingRowSearch, now: float, plain_s: float) -> None:
        """Begin to search for the rows for which the condition raised at the time `now`.

        plain_s: seconds without an error, more than 0, after which the condition is queried in its plain form (clauses in any order) again.
        """
        self._search, self._raised_at, self._plain_s = search, now, plain_s

    def end_search(self, now: float, raises_until: float | None) -> None:
        """End the search for rows for which the condition raises.

        raises_until: time until which the queue is not tried, since the condition raises for too many rows; None if it can be queried.
        """
        if self._search is None:
            return
        self._search, self._raised_at, self._asked_again = None, now, now
        if raises_until is not None:
            self._raises_until = self._not_before = raises_until

    def note_failing_rows_tried(self, now: float) -> None:
        """Note that some of the rows for which the condition raises are tried again at the time `now`."""
        self._asked_again = now

    # ---- a handler that fails --------------------------------------------------------------------------------------------------------
    def count_handler_results(self, done: int, failed: Iterable[PrimaryKey], now: float) -> float | None:
        """Count the results of a batch, which may begin or end a pause of the reaction.

        done: number of records carried out. failed: the keys of the records whose handler failed.

        If a pause that was logged is over now, return the time at which it was logged; otherwise return None.
        """
        if done:
            # The handler works, so the failures of this batch are faults of their records: do not count them.
            self._failing.record_success(now, done)
        else:
            for key in failed:
                if key not in self._failing.failed:  # a record that fails again says nothing about the others
                    self._failing.record_failure(key, now)
        if self._failing.is_open:
            return None
        logged_at, self._told_failing = self._told_failing, None
        return logged_at

    def note_pause_logged(self, now: float) -> None:
        """Note that the running pause of the reaction was logged at the time `now`, so that the end of the pause is logged too."""
        if self._failing.is_open:
            self._told_failing = now
