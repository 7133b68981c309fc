"""The database's clock leaps, ahead or back, when somebody or NTP sets it: noticed, and our own times are moved along. Settles nothing.

Attempts hold times by that clock: until when a call may still land, how old a key is, when to look again. What matters about them is how
long it is until then, or has been since: so they follow the clock. Users' own columns say what they say (hazards 5 and 42).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import update

from groundstate.engine import attempts
from groundstate.engine.transaction import Transaction
from groundstate.engine.trouble import Illegible
from groundstate.rules.attempt import State
from groundstate.rules.leap import NOTICED, moved
from groundstate.store.tables import attempt as table

log = logging.getLogger("groundstate")


def boot_s() -> float:
    """Seconds by a clock that nobody sets, and that goes on while the host is suspended where there is such a one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class _Look:
    """What the database's clock showed, at some moment between asking and having the answer, by `boot_s`."""

    shown: datetime
    asked_s: float
    answered_s: float

    @property
    def took_s(self) -> float:
        return self.answered_s - self.asked_s

    def ahead_of(self, before: _Look) -> tuple[timedelta, timedelta]:
        """How far the clock went ahead of ours since, at least and at most: either answer may have been long on its way."""
        by = self.shown - before.shown
        return by - timedelta(seconds=self.answered_s - before.asked_s), by - timedelta(seconds=self.asked_s - before.answered_s)


class Pace:
    """How the database's clock goes beside one that nobody sets: of one life."""

    def __init__(self) -> None:
        self._since: _Look | None = None
        self._seen: _Look | None = None

    def leapt(self, now: datetime, asked_s: float) -> timedelta:
        """How far the database's clock, which shows this, went ahead of ours, or back, since it was followed; zero below `NOTICED`.

        asked_s: when it was asked, by `boot_s`. A worker that was stopped between asking and having the answer takes that for no leap.
        """
        self._seen = _Look(now, asked_s, boot_s())
        if self._since is None:
            self._since = self._seen
        least, most = self._seen.ahead_of(self._since)
        if least > NOTICED or most < -NOTICED:
            return most  # of what it may have been that by which less counts as over
        if self._seen.took_s < self._since.took_s:
            self._since = self._seen  # the closer look
        return timedelta()

    def followed(self) -> None:
        """What follows the clock has followed it to where it was last seen."""
        self._since = self._seen


def follow(tx: Transaction, life: int, by: timedelta) -> None:
    """Moves the times of this life's calls and doubts along with the clock; nobody else moves them."""
    which = f"leapt ahead by {by}" if by > timedelta() else f"went back by {-by}"
    log.warning(
        "the database's clock %s: calls and doubts follow it, and what is due goes by it",
        which,
        extra={"event": "clock_leapt", "by_s": by.total_seconds()},
    )
    mine = (table.c.worker == life, table.c.state.in_([State.BEGUN.value, State.DOUBT.value]))
    try:
        some = attempts.fetch(tx.connection, attempts.rows(*mine))
    except Illegible:  # they are mended after this: until then no doubt counts as older than it is
        tx.connection.execute(update(table).where(*mine, table.c.deadline < tx.now).values(deadline=tx.now))
    else:
        attempts.save(tx.connection, [(one, moved(one, by, tx.now)) for one in some])
