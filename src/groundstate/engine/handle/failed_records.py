"""Finds the records that made a batch fail, so that only they get a savepoint each, while the others are carried out together again.

The search runs in a transaction of its own that is always rolled back, and only after a batch has failed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from groundstate.engine.handle import run_handler
from groundstate.engine.handle.asked_again import AskedAgain, Asks
from groundstate.engine.handle.run_handler import HandlerFailed, Work
from groundstate.engine.sql import bulk_update, db_errors
from groundstate.engine.sql.condition_query import ConditionQuery, PrimaryKey
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules.specs import Function

WRITING_S = 0.25  # seconds: the search for refused values may take this long, less than others wait for a lock before that is logged
_Change = tuple[Work, dict[str, Any]]


class _NobodyKnows(Exception):
    """A flush was refused, of what several handlers had changed."""


class Looked(Exception):
    """Raised to roll back the transaction of the search, with its result.

    `failed` are the records that fail by themselves; `others` those for which no failure was found. A record that was not reached in time
    is in neither.
    """

    def __init__(self, failed: set[PrimaryKey], others: set[PrimaryKey]) -> None:
        super().__init__()
        self.failed = failed
        self.others = others - failed


def find_failing_records(
    query: ConditionQuery, tx: Transaction, function: Function, works: Sequence[Work], asks: Asks, hold_s: float = math.inf
) -> Looked:
    """Run the handlers one by one, then write their changes by halves, to find which records fail. Returns a Looked for the caller to
    raise.

    No further handler starts after `hold_s` seconds; the first one always runs.
    """
    failed, ran = _run(query, tx, function, works, asks, time.monotonic() + hold_s)
    new = None if ran is None else _taken_out(query, tx, ran)
    if ran is None or new is None:
        return Looked(failed, {work.key for work in (works if ran is None else ran)})
    fine: list[_Change] = []
    _by_halves(query, tx, list(zip(ran, new, strict=True)), time.monotonic() + WRITING_S, (fine, failed))
    failed |= set(run_handler.without_progress(query, tx, [work for work, _ in fine], [change for _, change in fine]))
    return Looked(failed, {work.key for work, _ in fine})


def _run(
    query: ConditionQuery, tx: Transaction, function: Function, works: Sequence[Work], asks: Asks, until_s: float
) -> tuple[set[PrimaryKey], list[Work] | None]:
    """Return the records whose handler raises, and the work that does not; None for the latter if a statement was refused, since the
    transaction is then unusable.
    """
    failed: set[PrimaryKey] = set()
    ran: list[Work] = []
    again = AskedAgain(query, tx, works, asks)
    flush = partial(_flush, query, tx, function)
    for number, work in enumerate(works):
        if (ran or failed) and time.monotonic() >= until_s:
            break
        try:
            if (ran or failed) and not again.holds(number, flush):
                continue  # as one that was not reached
            again.begins(number)
            with again.watching():
                run_handler.call(query, tx, function, work, *(one.record for one in ran))
            again.ran(number)
        except _NobodyKnows:
            return failed, None
        except HandlerFailed as failure:
            if failure.cause is not None and db_errors.transient(failure.cause):
                raise failure.cause from None
            failed.add(work.key)
            if isinstance(failure.cause, SQLAlchemyError) or tx.session.is_undone:
                return failed, None
            if work.record in tx.session:
                tx.session.expunge(work.record)
        else:
            ran.append(work)
    return failed, ran


def _flush(query: ConditionQuery, tx: Transaction, function: Function) -> None:
    try:
        run_handler.flush(query.spec, tx, function)
    except HandlerFailed as failure:
        if failure.cause is not None and db_errors.transient(failure.cause):
            raise failure.cause from None
        raise _NobodyKnows from None


def _taken_out(query: ConditionQuery, tx: Transaction, ran: Sequence[Work]) -> list[dict[str, Any]] | None:
    """Return the new values of the records; None if the unit of work has to write them, or the database refused other rows that were
    changed.
    """
    try:
        return run_handler.take_out(query, tx, ran)
    except Exception as error:
        if db_errors.transient(error):
            raise
        return None


def _by_halves(
    query: ConditionQuery, tx: Transaction, some: Sequence[_Change], until_s: float, told: tuple[list[_Change], set[PrimaryKey]]
) -> None:
    """Write these changes, halving a batch that the database refuses. `told` collects the changes that it accepts and the keys that it
    refuses.
    """
    fine, refused = told
    if not some or ((fine or refused) and time.monotonic() >= until_s):
        return
    try:
        with tx.connection.begin_nested():
            bulk_update.write(tx.database, tx.connection, query.mapper, [work.key for work, _ in some], [change for _, change in some])
    except Exception as error:
        if db_errors.transient(error):
            raise
        if len(some) == 1:
            refused.add(some[0][0].key)
            return
        half = len(some) // 2
        _by_halves(query, tx, some[:half], until_s, told)
        _by_halves(query, tx, some[half:], until_s, told)
    else:
        fine += some
