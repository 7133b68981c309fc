"""The database's clock leaps, ahead or back, when somebody or NTP sets it: noticed, and our own times are moved along. Settles nothing.

Attempts hold times by that clock: until when a call may still land, how old a key is, when to look again. What matters about them is how
long it is until then, or has been since: so they follow the clock. Users' own columns say what they say (hazards 5 and 42).
"""

from __future__ import annotations

import logging
import time
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


class Pace:
    """How the database's clock goes beside one that nobody sets: of one life."""

    def __init__(self) -> None:
        self._since: tuple[datetime, float] | None = None
        self._seen: tuple[datetime, float] | None = None

    def leapt(self, now: datetime) -> timedelta:
        """How far the database's clock, which shows this, went ahead of ours, or back, since it was followed; zero below `NOTICED`."""
        self._seen = (now, boot_s())
        if self._since is None:
            self._since = self._seen
        leapt = now - self._since[0] - timedelta(seconds=self._seen[1] - self._since[1])
        return leapt if abs(leapt) > NOTICED else timedelta()

    def followed(self) -> None:
        """What follows the clock has followed it to where it was last seen."""
        self._since = self._seen


def follow(tx: Transaction, life: int, by: timedelta) -> None:
    """Moves the times of this life's calls and doubts along with the clock; nobody else moves them."""
    which = f"leapt ahead by {by}" if by > timedelta() else f"went back by {-by}"
    log.warning("the database's clock %s: calls and doubts follow it, and what is due goes by it", which)
    mine = (table.c.worker == life, table.c.state.in_([State.BEGUN.value, State.DOUBT.value]))
    try:
        some = attempts.fetch(tx.connection, attempts.rows(*mine))
    except Illegible:  # they are mended after this: until then no doubt counts as older than it is
        tx.connection.execute(update(table).where(*mine, table.c.deadline < tx.now).values(deadline=tx.now))
    else:
        attempts.save(tx.connection, [(one, moved(one, by, tx.now)) for one in some])
