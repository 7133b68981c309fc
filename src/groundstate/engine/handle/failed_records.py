"""Finds the records that made a batch fail, so that only these records need a savepoint each when the batch runs again.

The search runs after a batch has failed, in a transaction of its own that is always rolled back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from groundstate.engine.handle import run_handler
from groundstate.engine.handle.recheck_conditions import RecheckBeforeHandlers, RecheckFunction, Work
from groundstate.engine.handle.run_handler import HandlerFailed
from groundstate.engine.sql import bulk_update, db_errors
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules.specs import Function

# The search for refused values ends after this many seconds, since other transactions may wait for its locks. A wait of this length is too
# short to be logged.
WRITING_S = 0.25
_Change = tuple[Work, dict[str, Any]]


class _FailingRecordUnknown(Exception):
    """Raised if the database refused one flush with the changes of several handlers, so that nobody knows which handler is at fault."""


class SearchResult(Exception):
    """The result of a search for failing records. It is an exception, because raising it rolls back the transaction of the search.

    Attributes:
        failed: The keys of records that fail even when they are handled alone.
        others: The keys of records for which no failure was found. A record that was not reached in time is in neither set.
    """

    def __init__(self, failed: set[PrimaryKey], others: set[PrimaryKey]) -> None:
        super().__init__()
        self.failed = failed
        self.others = others - failed


def find_failing_records(
    query: ConditionQuery, tx: Transaction, function: Function, works: Sequence[Work], asks: RecheckFunction, hold_s: float = math.inf
) -> SearchResult:
    """Run the handlers one by one, then write their changes, to find which records fail. Return a SearchResult, which the caller must raise
    to roll the transaction back.

    No further handler starts after `hold_s` seconds; the first handler always runs.
    """
    failed, ran = _run_handlers(query, tx, function, works, asks, tx.database.clock.monotonic() + hold_s)
    new = None if ran is None else _take_records_out_of_session_if_possible(query, tx, ran)
    if ran is None or new is None:
        return SearchResult(failed, {work.key for work in (works if ran is None else ran)})
    fine: list[_Change] = []
    _write_by_halves(query, tx, list(zip(ran, new, strict=True)), tx.database.clock.monotonic() + WRITING_S, (fine, failed))
    failed |= set(run_handler.keys_without_progress(query, tx, [work for work, _ in fine], [change for _, change in fine]))
    return SearchResult(failed, {work.key for work, _ in fine})


def _run_handlers(
    query: ConditionQuery, tx: Transaction, function: Function, works: Sequence[Work], asks: RecheckFunction, until_s: float
) -> tuple[set[PrimaryKey], list[Work] | None]:
    """Run the handlers one by one. Return the pair (keys of the records whose handler failed, works whose handler succeeded). The second
    item is None if the database refused a statement, since the transaction is then unusable.
    """
    failed: set[PrimaryKey] = set()
    ran: list[Work] = []
    recheck = RecheckBeforeHandlers(query, tx, works, asks)
    flush, monotonic = partial(_flush_changes_of_several, query, tx, function), tx.database.clock.monotonic
    for number, work in enumerate(works):
        if (ran or failed) and monotonic() >= until_s:
            break
        try:
            if (ran or failed) and not recheck.may_run_handler(number, flush):
                continue  # the record's condition no longer holds, so the record is in neither result
            recheck.note_handler_begins(number)
            with recheck.noting_writes():
                run_handler.run_without_flush(query, tx, function, work, *(earlier.record for earlier in ran))
            recheck.note_handler_ran(number)
        except _FailingRecordUnknown:
            return failed, None
        except HandlerFailed as failure:
            if failure.cause is not None and db_errors.is_no_fault_of_record(failure.cause):
                raise failure.cause from None
            failed.add(work.key)
            if isinstance(failure.cause, SQLAlchemyError) or tx.session.is_undone:
                return failed, None
            if work.record in tx.session:
                tx.session.expunge(work.record)
        else:
            ran.append(work)
    return failed, ran


def _flush_changes_of_several(query: ConditionQuery, tx: Transaction, function: Function) -> None:
    try:
        run_handler.flush_changes(query.spec, tx, function)
    except HandlerFailed as failure:
        if failure.cause is not None and db_errors.is_no_fault_of_record(failure.cause):
            raise failure.cause from None
        raise _FailingRecordUnknown from None


def _take_records_out_of_session_if_possible(query: ConditionQuery, tx: Transaction, ran: Sequence[Work]) -> list[dict[str, Any]] | None:
    """Take the records out of the session, and return the new values of each record. Return None if only a flush of the session can write
    the records, or if the database refused the handlers' changes of other rows.
    """
    try:
        return run_handler.take_out_records(query, tx, ran)
    except Exception as error:
        if db_errors.is_no_fault_of_record(error):
            raise
        return None


def _write_by_halves(
    query: ConditionQuery, tx: Transaction, some: Sequence[_Change], until_s: float, told: tuple[list[_Change], set[PrimaryKey]]
) -> None:
    """Write these changes in one savepoint; if the database refuses them, write each half in the same way. Append each change that the
    database accepts to the list `told[0]`, and the key of each record whose change it refuses to the set `told[1]`.
    """
    fine, refused = told
    if not some or ((fine or refused) and tx.database.clock.monotonic() >= until_s):
        return
    try:
        with tx.connection.begin_nested():
            bulk_update.write_changes(
                tx.database, tx.connection, query.mapper, [work.key for work, _ in some], [change for _, change in some]
            )
    except Exception as error:
        if db_errors.is_no_fault_of_record(error):
            raise
        if len(some) == 1:
            refused.add(some[0][0].key)
            return
        half = len(some) // 2
        _write_by_halves(query, tx, some[:half], until_s, told)
        _write_by_halves(query, tx, some[half:], until_s, told)
    else:
        fine += some
