"""Shortens the waits of attempts that were written while the database's clock was too far ahead: afterwards no attempt waits longer than an
attempt that is written now.

Runs when a worker has begun, after it took over attempts of a dead worker, and after it noticed that the clock stepped back. Changes only
failed attempts, which belong to no worker, and this worker's own attempts in doubt.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta

from sqlalchemy import and_, case, or_, update

from groundstate.engine.rows import attempts
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules.attempt import State, Terms
from groundstate.rules.policy import LONG_AGO, MARGIN
from groundstate.store.tables import attempt as table

log = logging.getLogger("groundstate")


def shorten_future_waits(incarnation: Incarnation, terms: Mapping[str, Terms], *, went_back: bool) -> int:
    """Shorten the waits of attempts that were written while the clock was too far ahead; return how many attempts were changed.

    terms: the terms of each reaction, by the reaction's name.
    went_back: whether this worker saw the clock go back. If so, every wait that is too long is shortened. If not, an attempt with a late
        retry time is changed only if its other times are in the future too: the service itself may have asked for the late retry.
    """
    with incarnation.database.reading() as connection:
        if connection.execute(attempts.ANY).first() is None:
            return 0
    alike: dict[tuple[timedelta, timedelta], list[str]] = {}
    for name, one in terms.items():
        alike.setdefault((one.retry.longest, one.timeout), []).append(name)
    count = 0
    with incarnation.open_transaction() as tx:
        for (longest, timeout), names in alike.items():
            count += _shorten_waits_of(tx, incarnation, names, longest, timeout, went_back=went_back)
    if count:
        log.warning(
            "%d attempts were written by a clock that stood ahead: they wait as if it had not",
            count,
            extra={"event": "attempts_from_ahead", "count": count},
        )
    return count


def _shorten_waits_of(
    tx: Transaction, incarnation: Incarnation, names: Sequence[str], longest: timedelta, timeout: timedelta, *, went_back: bool
) -> int:
    now, column = tx.now, table.c
    some = and_(column.app == incarnation.app, column.reaction.in_(names))
    too_late = column.next_at > now + longest
    ahead = or_(column.since > now + MARGIN, column.first_at > now + MARGIN)
    last = now + timeout + MARGIN  # no call that runs now can still run after this
    failed = and_(some, column.state == State.FAILED.value, too_late)
    doubt = and_(some, column.worker == incarnation.id, column.state == State.DOUBT.value, or_(column.deadline > last + MARGIN, ahead))
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
