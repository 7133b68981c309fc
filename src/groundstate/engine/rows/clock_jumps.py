"""Notices when the database's clock is set ahead or back (by a person or NTP), and moves the times in our own rows by as much.

Attempts store times of the database's clock, such as the time of the next retry, or the time until which a call may still arrive at its
service. These times are meant as durations from now, so they have to be moved with the clock. Users' own columns are left unchanged
(hazards 5 and 42).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import update

from groundstate.engine.rows import attempts
from groundstate.engine.sql.db_errors import Illegible
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules.attempt import State
from groundstate.rules.clock_jump import NOTICED, with_times_adjusted
from groundstate.store.tables import attempt as table

log = logging.getLogger("groundstate")


@dataclass(frozen=True)
class _ClockReading:
    """One reading of the database's clock (`shown`), with `Clock.uptime_s` before the query was sent and after its answer."""

    shown: datetime
    asked_s: float
    answered_s: float

    @property
    def duration_s(self) -> float:
        return self.answered_s - self.asked_s

    def least_and_most_gain_since(self, before: _ClockReading) -> tuple[timedelta, timedelta]:
        """Return a pair: the least and the most time by which the database's clock may have been set ahead since the earlier reading
        `before`. The two differ because a query takes time.
        """
        by = self.shown - before.shown
        return by - timedelta(seconds=self.answered_s - before.asked_s), by - timedelta(seconds=self.asked_s - before.answered_s)


class ClockComparison:
    """Compares the database's clock with one that cannot be set (`Clock.uptime_s`), for one worker incarnation."""

    def __init__(self) -> None:
        self._since: _ClockReading | None = None
        self._seen: _ClockReading | None = None

    def measure_leap(self, now: datetime, asked_s: float, answered_s: float) -> timedelta:
        """Return by how much the database's clock was set ahead (or, if negative, back) since the latest call of `note_times_moved`. Return
        zero for less than `NOTICED`.

        now: the time that the database's clock shows. asked_s, answered_s: `Clock.uptime_s` before the query for `now` and after its
            answer. A pause of this process during the query does not count.
        """
        self._seen = _ClockReading(now, asked_s, answered_s)
        if self._since is None:
            self._since = self._seen
        least, most = self._seen.least_and_most_gain_since(self._since)
        if least > NOTICED or most < -NOTICED:
            return most  # the leap is known only within bounds; with the largest value, no wait ends too early
        if self._seen.duration_s < self._since.duration_s:
            self._since = self._seen  # the query took less time than the earlier one, so this reading is more exact
        return timedelta()

    def note_times_moved(self) -> None:
        """Record that the times in our rows were moved by the leap that `measure_leap` returned last."""
        self._since = self._seen


def move_times_with_clock(tx: Transaction, incarnation: int, by: timedelta) -> None:
    """Move the times of this incarnation's attempts that are begun or in doubt by the amount of the leap. No other worker moves these
    times.
    """
    which = f"leapt ahead by {by}" if by > timedelta() else f"went back by {-by}"
    log.warning(
        "the database's clock %s: the times of calls and of attempts in doubt are moved by the same amount; due times follow the new clock",
        which,
        extra={"event": "clock_leapt", "by_s": by.total_seconds()},
    )
    mine = (table.c.worker == incarnation, table.c.state.in_([State.BEGUN.value, State.DOUBT.value]))
    try:
        some = attempts.fetch_attempts(tx.connection, attempts.select_attempts(*mine))
    except Illegible:  # some row is unreadable until it is mended; for now, move only deadlines that are in the past
        tx.connection.execute(update(table).where(*mine, table.c.deadline < tx.now).values(deadline=tx.now))
    else:
        attempts.update_attempts(tx.connection, [(one, with_times_adjusted(one, by, tx.now)) for one in some])
