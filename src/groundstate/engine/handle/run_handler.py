"""Runs a user's handler on claimed records, and checks whether it made progress. Never commits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import inspect, select
from sqlalchemy import null as sql_null
from sqlalchemy.sql import visitors
from sqlalchemy.sql.schema import Column

from groundstate.engine.handle.asked_again import AskedAgain
from groundstate.engine.sql import bulk_update, commit_hooks, db_errors, in_place_changes
from groundstate.engine.sql.call_write_guard import HANDLER_CURE, inside
from groundstate.engine.sql.condition_query import ConditionQuery, PrimaryKey
from groundstate.engine.sql.db_errors import TransactionEnded
from groundstate.engine.sql.safe_text import describe, place_of, text_of, user_code
from groundstate.engine.sql.session_guards import AT_WORK
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules import constant_clauses, overtaken
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import Function, ReactionSpec
from groundstate.values.unawaited import unawaited

_FLUSH_APART = "let it raise that, or flush in `with session.begin_nested():`, which alone is undone then"


class HandlerFailed(Exception):
    """The handler raised, made no progress, or wrote what it may not. `error` says which."""

    def __init__(self, error: str, cause: BaseException | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.cause = cause


@dataclass(frozen=True)
class Work:
    """One record with the arguments for its handler."""

    key: PrimaryKey
    record: Any
    occurrence: str
    arguments: tuple[Any, ...]
    supplies: dict[str, Any]


def run_each(query: ConditionQuery, tx: Transaction, function: Function, again: AskedAgain[Work], until_s: float = math.inf) -> Ran:
    """Run the handler on each record of `again`, starting none but the first after `until_s` (monotonic seconds).

    A record is passed over where a handler before it made its condition false. An exception of the handler is raised as it is, or as
    TransactionEnded if the handler ended the transaction.

    Raises:
        HandlerFailed: The handler of a done column wrote something else, or an in-place change would be lost.
    """
    ran = Ran()
    if query.spec.done_column is None:
        with again.watching(), writes_by_its_session(query.spec, function, tx), user_code():
            _run_each(tx, function, again, until_s, ran, tx.session.flush)
        return ran

    def check() -> None:
        for work in ran.works:
            _check_fact_columns(query, work)
        _check_nothing_else(query, tx, [work.record for work in ran.works])

    def flush() -> None:
        check()  # what a flush wrote is in no record any more
        tx.session.flush()

    with _watched(tx), again.watching(), writes_by_its_session(query.spec, function, tx), user_code():
        _run_each(tx, function, again, until_s, ran, flush)
    check()
    return ran


@dataclass
class Ran:
    """The records of a batch whose handlers ran, and those that were passed over; those that were not reached in time are in neither."""

    works: list[Work] = field(default_factory=list)
    passed_over: list[Work] = field(default_factory=list)

    @property
    def reached(self) -> int:
        return len(self.works) + len(self.passed_over)


def _run_each(tx: Transaction, function: Function, again: AskedAgain[Work], until_s: float, ran: Ran, flush: Callable[[], None]) -> None:
    try:
        for number, work in enumerate(again.works):
            if ran.works and time.monotonic() >= until_s:
                return
            if (ran.works or again.stale) and not again.holds(number, flush):
                ran.passed_over.append(work)
                continue
            again.begins(number)
            _run(tx, function, work)
            again.ran(number)
            ran.works.append(work)
    finally:
        tx.put_back()


def _named(function: Function, work: Work) -> str:
    """Return the handler's name with the table of its record; the caller appends the key."""
    return f"{function.plain_name} on {inspect(work.record).mapper.base_mapper.local_table}"


def _run(tx: Transaction, function: Function, work: Work) -> None:
    was = in_place_changes.copy_mutable_values(work.record)
    tx.handlers.began(work.key)
    tx.session.info[AT_WORK] = (work.record, work.key)
    try:
        returned = function(work.record, *work.arguments, session=tx.session, **work.supplies)
    except Exception as error:
        if tx.is_over() and not db_errors.transient(error):
            raise TransactionEnded(_named(function, work), work.key, error) from error
        refuse_what_came_after(tx, error)
        raise
    finally:
        tx.handlers.ended()
        tx.session.info.pop(AT_WORK, None)
    if tx.is_over():  # checked before another handler runs, whose writes would be committed apart from its record
        raise TransactionEnded(_named(function, work), work.key)
    refuse_what_is_undone(tx)
    refuse_what_was_swallowed(tx)
    refuse_unawaited(returned)
    why = None if was is None else in_place_changes.why_change_would_be_lost(tx, work.key, work.record, was)
    if why is not None:
        raise HandlerFailed(why)


def flush_all(query: ConditionQuery, tx: Transaction, works: Sequence[Work]) -> list[dict[str, Any]] | None:
    """Write what the handlers changed: records by bulk UPDATEs where a flush would do nothing else, the rest by the unit of work.

    Returns each record's new values, for the progress check and the hints; None if they are not known.
    """
    found = take_out(query, tx, works)
    if found is None:
        with writes_by_its_session(query.spec, query.spec.handler, tx), user_code():
            tx.session.flush()
        return None
    bulk_update.write(tx.database, tx.connection, query.mapper, [work.key for work in works], found)
    return found


def take_out(query: ConditionQuery, tx: Transaction, works: Sequence[Work]) -> list[dict[str, Any]] | None:
    """Take the records out of the session, and flush what the handlers changed in other rows.

    Returns the new values to write to each record; None, having done nothing, if the unit of work has to write them.
    """
    with writes_by_its_session(query.spec, query.spec.handler, tx), user_code():  # the user's column types and flush hooks run here
        found = bulk_update.bulk_changes(query.mapper, [work.record for work in works], tx.session)
        if found is None:
            return None
        for work in works:  # the session does not report expunged records, so their parents are noted here
            commit_hooks.add_parents(tx.touched, work.record)
            if work.record in tx.session:  # it may have been expunged with another record of the batch (a cascade)
                tx.session.expunge(work.record)
        tx.session.flush()  # flushes other rows that were changed, which are locked and compared before anything is written
    return found


def without_progress(
    query: ConditionQuery, tx: Transaction, works: Sequence[Work], new: Sequence[dict[str, Any]] | None
) -> list[PrimaryKey]:
    """Return the keys of records whose condition still holds for the same occurrence. The database is asked unless the new values prove the
    condition false.
    """
    doubtful = list(works)
    if new is not None:
        demanded = query.constants
        doubtful = [work for work, values in zip(works, new, strict=True) if not constant_clauses.falsifies(demanded, values)]
    if not doubtful:
        return []
    rows = tx.connection.execute(query.still_holding([work.key for work in doubtful]))
    width = len(query.key_attributes)
    before = {work.key: work.occurrence for work in doubtful}
    return [tuple(row[:width]) for row in rows if query.is_round(before[tuple(row[:width])], query.round_text(row[width:]))]


def run_one(query: ConditionQuery, tx: Transaction, function: Function, work: Work, *, progress: bool = True) -> None:
    """Run the handler on one record in a savepoint. Raises HandlerFailed, with the savepoint rolled back, if its work must not be kept."""
    with tx.session.begin_nested():
        call(query, tx, function, work)
        flush(query.spec, tx, function)
        if progress and without_progress(query, tx, [work], None):
            raise HandlerFailed(f"made no progress: {still_holds(query)}")


def still_holds(query: ConditionQuery) -> str:
    return f"the condition still holds after the handler: {query.shown_text}"


def call(query: ConditionQuery, tx: Transaction, function: Function, work: Work, *others: Any, looked_at: bool = False) -> None:
    """Run the handler on one record, without a flush. Raises HandlerFailed if it raises, or wrote what the handler of a done column may
    not.

    `others` are records that were changed before and are not flushed yet. With `looked_at`, nothing is flushed before its writes were
    checked, as is always so for the handler of a done column.
    """
    writes_done_column = query.spec.done_column is not None and function is query.spec.handler
    try:
        with (
            _watched(tx) if looked_at or writes_done_column else nullcontext(),
            writes_by_its_session(query.spec, function, tx),
            user_code(),
        ):
            _run(tx, function, work)
    except (HandlerFailed, TransactionEnded):
        raise
    except Exception as error:
        lost = None if tx.beside is None else tx.beside.lost  # an error caused by a lost update is not the handler's own failure
        raise HandlerFailed(f"the handler raised {describe(error)}{place_of(error)}", lost or error) from error
    finally:
        tx.put_back()
    if writes_done_column:
        _check_fact_columns(query, work)
        _check_nothing_else(query, tx, [work.record, *others])


def flush(spec: ReactionSpec | ScheduleSpec, tx: Transaction, function: Function) -> None:
    """Flush what a handler changed, within its savepoint. Raises HandlerFailed."""
    try:
        with writes_by_its_session(spec, function, tx), user_code():
            tx.session.flush()
    except Exception as error:
        raise HandlerFailed(f"its flush was refused: {text_of(error)}", error) from error


def refuse_what_was_swallowed(tx: Transaction) -> None:
    """Raise HandlerFailed if the handler caught the error of a statement after which PostgreSQL refuses every other one."""
    if tx.refuses():
        raise HandlerFailed(swallowed(tx), tx.failed)


def refuse_what_came_after(tx: Transaction, error: Exception) -> None:
    """Raise HandlerFailed if the handler's error is only that an earlier one was caught, of which the error says nothing."""
    if tx.failed is not None and db_errors.refused_after_another(error):
        raise HandlerFailed(swallowed(tx), tx.failed) from error


def swallowed(tx: Transaction) -> str:
    """Say which error was caught, and what to do."""
    error = tx.failed
    which = "" if error is None else f": {describe(getattr(error, 'orig', None) or error)}{place_of(error)}"
    return (
        "it caught the error of a statement and went on, and PostgreSQL refuses every other statement of the transaction after that (put"
        f" what may fail into `with session.begin_nested():`, which alone is undone then){which}"
    )


def refuse_unawaited(returned: Any) -> None:
    """Raise HandlerFailed if the handler returned something that was still to be awaited or iterated, and so did not do it."""
    lost = None if returned is None else unawaited(returned)
    if lost is not None:
        raise HandlerFailed(
            f"the handler returned {lost}: nothing is awaited in a transaction. Do what must be awaited in the reaction's call"
        )


def refuse_what_is_undone(tx: Transaction) -> None:
    """Raise HandlerFailed if the handler caught the error of a flush of its own: it would count as done, though the error has undone its
    work.
    """
    refused = tx.session.refused
    if refused is not None and tx.session.is_undone:
        raise HandlerFailed(f"its flush was refused, and it went on ({_FLUSH_APART}): {text_of(refused)}", refused)


def writes_by_its_session(spec: ReactionSpec | ScheduleSpec, function: Function, tx: Transaction) -> AbstractContextManager[None]:
    """Return a context in which the handler may write to the stores of its app only through its own session's connection."""
    return inside(spec.app, f"the handler {function.plain_name} of {spec.name}", HANDLER_CURE, may_say=False, own=tx.connection)


@contextmanager
def _watched(tx: Transaction) -> Iterator[None]:
    """Return a context in which statements that write past the unit of work are noticed, and autoflush is off until the writes were
    checked.
    """
    tx.strays.clear()
    tx.watching = True
    try:
        with tx.session.no_autoflush:
            yield
    finally:
        tx.watching = False


def _check_fact_columns(query: ConditionQuery, work: Work) -> None:
    """Check that a reaction with a done column wrote only that column, since only then may it run beside others on the same record."""
    done_column = query.spec.done_column
    others = sorted(set(bulk_update.changed(work.record)) - {done_column})
    if others:
        raise HandlerFailed(_wrote_more(done_column, ", ".join(others)))


def _check_nothing_else(query: ConditionQuery, tx: Transaction, records: Sequence[Any]) -> None:
    if wrote_else(tx, records):
        raise HandlerFailed(_wrote_more(query.spec.done_column, "other rows"))


def _wrote_more(done_column: str | None, what: str) -> str:
    return (
        f"a reaction with done_column={done_column} may write that column only, and its handler wrote {what} too: let a reaction of its"
        " own write that"
        f" where {done_column} is not NULL, or leave done_column= out"
    )


def wrote_else(tx: Transaction, records: Sequence[Any]) -> bool:
    """Whether the session holds changes of anything but these records, or a statement wrote past the unit of work."""
    ours = {id(record) for record in records}
    others = [one for one in tx.session.dirty if id(one) not in ours and tx.session.is_modified(one)]
    return bool(tx.strays or tx.session.new or tx.session.deleted or others)


def run_overtaken(query: ConditionQuery, tx: Transaction, work: Work, *, same_occurrence: bool) -> None:
    """Run the ordinary handler after its condition became false; its work is kept only if it wrote a done column (rules.md 2). Raises
    HandlerFailed.
    """
    false = _false_clauses(query, tx, work.key)
    with tx.session.begin_nested():
        call(query, tx, query.spec.handler, work, looked_at=True)
        written = bulk_update.changed(work.record)
        columns = {property_.key for property_ in query.mapper.column_attrs}
        why = overtaken.reason_to_hold_overtaken(
            set(written),
            _null_before(query, tx, work.key, written),
            false,
            wrote_else=wrote_else(tx, [work.record]) or not set(written) <= columns,
            same_occurrence=same_occurrence,
            done_column=query.spec.done_column is not None,
        )
        if why is not None:
            raise HandlerFailed(why)
        flush(query.spec, tx, query.spec.handler)


def _null_before(query: ConditionQuery, tx: Transaction, key: PrimaryKey, written: Mapping[str, Any]) -> set[str]:
    """Return which of the written attributes were NULL before. If the record cannot tell (after an in-place change), the database is asked,
    before the flush.
    """
    null = {name for name, old in written.items() if old is None}
    columns = query.mapper.column_attrs
    unknown = [name for name, old in written.items() if bulk_update.unknown_before(old) and name in columns]
    if unknown:
        asked = [getattr(query.entity, name).is_(sql_null()) for name in unknown]
        row = tx.connection.execute(select(*asked).where(query.among([key]))).one()
        null |= {name for name, was_null in zip(unknown, row, strict=True) if was_null}
    return null


def _false_clauses(query: ConditionQuery, tx: Transaction, key: PrimaryKey) -> list[overtaken.FalseClause]:
    row = tx.connection.execute(query.clause_truths(key)).first()
    truths = row if row is not None else [False] * len(query.spec.clauses)
    return [
        overtaken.FalseClause(_names(query, one), _own_columns_only(query, one))
        for one, holds in zip(query.spec.clauses, truths, strict=True)
        if not holds
    ]


def _names(query: ConditionQuery, one: Any) -> set[str]:
    """Return the attributes of this record whose columns a clause names; a column of the same name in another table is not one of them."""
    by_column = {column: property_.key for property_ in query.mapper.column_attrs for column in property_.columns}
    return {by_column[part] for part in visitors.iterate(one) if isinstance(part, Column) and part in by_column}


def _own_columns_only(query: ConditionQuery, one: Any) -> bool:
    tables = set(query.mapper.tables)
    return all(part.table in tables for part in visitors.iterate(one) if isinstance(part, Column)) and not any(
        part.__visit_name__ in ("select", "subquery", "scalar_select") for part in visitors.iterate(one)
    )
