"""Notices when the database's clock is set, ahead or back (by a person or NTP), and moves our own times along with it. Settles nothing.

Attempts hold times by that clock: until when a call may still land, how old a key is, when to look again. What counts is the duration from
or until then, so these times move with the clock. Users' own columns are left as they are (hazards 5 and 42).
"""

from __future__ import annotations

import logging
import time
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


def boot_s() -> float:
    """Return seconds of a clock that cannot be set and, where the system has one, goes on while the host is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class _Look:
    """One reading of the database's clock, with the seconds of `boot_s` before the question and after the answer."""

    shown: datetime
    asked_s: float
    answered_s: float

    @property
    def took_s(self) -> float:
        return self.answered_s - self.asked_s

    def ahead_of(self, before: _Look) -> tuple[timedelta, timedelta]:
        """Return the least and the most that the database's clock has gained on ours since `before`; they differ because either answer may
        have taken long.
        """
        by = self.shown - before.shown
        return by - timedelta(seconds=self.answered_s - before.asked_s), by - timedelta(seconds=self.asked_s - before.answered_s)


class Pace:
    """Compares the database's clock with one that cannot be set, for one worker incarnation."""

    def __init__(self) -> None:
        self._since: _Look | None = None
        self._seen: _Look | None = None

    def leapt(self, now: datetime, asked_s: float) -> timedelta:
        """Return by how much the database's clock leapt ahead (or, negative, back) since `followed` was called; zero below `NOTICED`.

        `now` is what that clock shows, and `asked_s` when it was asked, by `boot_s`. A pause of this process between question and answer
        does not count as a leap.
        """
        self._seen = _Look(now, asked_s, boot_s())
        if self._since is None:
            self._since = self._seen
        least, most = self._seen.ahead_of(self._since)
        if least > NOTICED or most < -NOTICED:
            return most  # the estimate under which the fewest waits count as over
        if self._seen.took_s < self._since.took_s:
            self._since = self._seen  # the answer came faster, so this reading is more exact
        return timedelta()

    def followed(self) -> None:
        """Record that our times were moved along up to the latest reading of the clock."""
        self._since = self._seen


def move_times_with_clock(tx: Transaction, incarnation: int, by: timedelta) -> None:
    """Move the times of this incarnation's begun attempts and attempts in doubt along with the clock; no other worker moves them."""
    which = f"leapt ahead by {by}" if by > timedelta() else f"went back by {-by}"
    log.warning(
        "the database's clock %s: calls and doubts follow it, and what is due goes by it",
        which,
        extra={"event": "clock_leapt", "by_s": by.total_seconds()},
    )
    mine = (table.c.worker == incarnation, table.c.state.in_([State.BEGUN.value, State.DOUBT.value]))
    try:
        some = attempts.fetch(tx.connection, attempts.select_attempts(*mine))
    except Illegible:  # unreadable rows are mended later; until then no attempt in doubt may count as older than it is
        tx.connection.execute(update(table).where(*mine, table.c.deadline < tx.now).values(deadline=tx.now))
    else:
        attempts.save(tx.connection, [(one, with_times_adjusted(one, by, tx.now)) for one in some])
