"""Attempts that a clock wrote which stood too far ahead and was put right: they wait no longer than any could by the clock as it is now.

Looked for when a life begins, when it adopts, and when it noticed a step back. Only failed ones, which are nobody's, and doubts of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta

from sqlalchemy import and_, case, or_, update

from groundstate.engine import attempts
from groundstate.engine.life import Life
from groundstate.engine.transaction import Transaction
from groundstate.rules.attempt import State, Terms
from groundstate.rules.policy import LONG_AGO, MARGIN
from groundstate.store.tables import attempt as table

log = logging.getLogger("groundstate")


def bound(life: Life, terms: Mapping[str, Terms], *, went_back: bool) -> int:
    """Returns how many there were.

    went_back: the clock did while this life lived, so that all that waits too long does for that reason. Else such an attempt is told by
    its other times, which lie ahead and cannot: what alone is to be looked at late may be what its endpoint asked for.
    """
    with life.database.reading() as connection:
        if connection.execute(attempts.ANY).first() is None:
            return 0
    alike: dict[tuple[timedelta, timedelta], list[str]] = {}
    for name, one in terms.items():
        alike.setdefault((one.retry.longest, one.timeout), []).append(name)
    count = 0
    with life.transaction() as tx:
        for (longest, timeout), names in alike.items():
            count += _bound(tx, life, names, longest, timeout, went_back=went_back)
    if count:
        log.warning(
            "%d attempts were written by a clock that stood ahead: they wait as if it had not",
            count,
            extra={"event": "attempts_from_ahead", "count": count},
        )
    return count


def _bound(tx: Transaction, life: Life, names: Sequence[str], longest: timedelta, timeout: timedelta, *, went_back: bool) -> int:
    now, column = tx.now, table.c
    some = and_(column.app == life.app, column.reaction.in_(names))
    too_late = column.next_at > now + longest
    ahead = or_(column.since > now + MARGIN, column.first_at > now + MARGIN)
    last = now + timeout + MARGIN  # no call can still be running after that
    failed = and_(some, column.state == State.FAILED.value, too_late)
    doubt = and_(some, column.worker == life.id, column.state == State.DOUBT.value, or_(column.deadline > last + MARGIN, ahead))
    sooner = {
        column.since: case((column.since > now, now), else_=column.since),
        column.next_at: case((too_late, now + longest), else_=column.next_at),
    }
    of_its_call = {
        column.first_at: case((column.first_at > now + MARGIN, LONG_AGO), else_=column.first_at),
        column.deadline: case((column.deadline > last, last), else_=column.deadline),
    }
    retried = tx.connection.execute(update(table).where(failed if went_back else and_(failed, ahead)).values(sooner))
    settled = tx.connection.execute(update(table).where(doubt).values(sooner | of_its_call))
    return retried.rowcount + settled.rowcount
