"""The database's clock leaps, ahead or back, when somebody or NTP sets it: noticed, and our own times are moved along. Settles nothing.

Attempts hold times by that clock: until when a call may still land, how old a key is, when to look again. What matters about them is how
long it is until then, or has been since: so they follow the clock. Users' own columns say what they say (hazards 5 and 42).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import and_, case, or_, update

from groundstate.engine import attempts
from groundstate.engine.transaction import Transaction
from groundstate.engine.trouble import Illegible
from groundstate.rules.attempt import State, Terms
from groundstate.rules.leap import NOTICED, moved
from groundstate.rules.policy import MARGIN
from groundstate.store.tables import attempt as table

log = logging.getLogger("groundstate")
LONG_AGO = datetime.fromisoformat("1970-01-01T00:00:00+00:00")  # how old a key is of which nothing is known: too old


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


def bound(tx: Transaction, app: str, life: int, terms: Mapping[str, Terms], *, went_back: bool) -> int:
    """Attempts whose times were told by a clock that stood too far ahead wait no longer than any could by the clock as it is.

    Failed ones, which are nobody's, and doubts of ours that another life left. Returns how many.

    went_back: it did so while we lived: then all that waits too long does for that reason. Else one is told by its other times, which lie
    ahead and cannot: an endpoint may have asked for a longer wait.
    """
    count = 0
    alike: dict[tuple[timedelta, timedelta], list[str]] = {}
    for name, one in terms.items():
        alike.setdefault((one.retry.longest, one.timeout), []).append(name)
    for (longest, timeout), names in alike.items():
        ours = and_(table.c.app == app, table.c.reaction.in_(names))
        ahead = or_(table.c.since > tx.now + NOTICED, table.c.first_at > tx.now + NOTICED)
        too_late = table.c.next_at > tx.now + longest
        failed = and_(ours, table.c.state == State.FAILED.value, too_late)
        last = tx.now + timeout + MARGIN
        doubt = and_(
            ours, table.c.worker == life, table.c.state == State.DOUBT.value, or_(table.c.deadline > last + MARGIN, and_(too_late, ahead))
        )
        past = {
            table.c.since: case((table.c.since > tx.now, tx.now), else_=table.c.since),
            table.c.next_at: case((too_late, tx.now + longest), else_=table.c.next_at),
        }
        age = {table.c.first_at: case((table.c.first_at > tx.now + NOTICED, LONG_AGO), else_=table.c.first_at)}
        deadline = {table.c.deadline: case((table.c.deadline > last, last), else_=table.c.deadline)}
        count += tx.connection.execute(update(table).where(failed if went_back else and_(failed, ahead)).values(past)).rowcount
        count += tx.connection.execute(update(table).where(doubt).values(past | age | deadline)).rowcount
    if count:
        log.warning("%d attempts were written by a clock that stood ahead: they are looked at again as if it had not", count)
    return count
