"""Runs a user's handler on locked records, and checks that it made progress (that the condition no longer holds). Never commits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import inspect, select
from sqlalchemy import null as sql_null
from sqlalchemy.sql import visitors
from sqlalchemy.sql.schema import Column

from groundstate.engine.handle.recheck_conditions import RecheckBeforeHandlers, Work
from groundstate.engine.sql import bulk_update, commit_hooks, db_errors, in_place_changes
from groundstate.engine.sql.call_write_guard import HANDLER_CURE, refusing_writes
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.db_errors import TransactionEnded
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.sql.safe_text import describe_exception, running_user_code, safe_str, where_raised
from groundstate.engine.sql.session_guards import AT_WORK
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules import constant_clauses, overtaken
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import Function, ReactionSpec
from groundstate.values.unawaited import describe_unawaited

_FLUSH_APART = "let it raise that, or flush in `with session.begin_nested():`, which alone is undone then"


class HandlerFailed(Exception):
    """Raised if a handler raised an exception, made no progress, or wrote what it may not write. `error` says in words what happened."""

    def __init__(self, error: str, cause: BaseException | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.cause = cause


def run_for_each_record(
    query: ConditionQuery, tx: Transaction, function: Function, recheck: RecheckBeforeHandlers, until_s: float = math.inf
) -> HandlerRuns:
    """Run the handler on each record of `recheck`, without savepoints. After `until_s` (monotonic seconds) no further handler starts; the
    first handler always runs.

    A record is passed over if an earlier handler made its condition false. An exception of the handler is raised unchanged, or as
    TransactionEnded if the handler ended the transaction.

    Raises:
        HandlerFailed: A reaction with a done column wrote something else, an in-place change would be lost, or the handler hid an error.
    """
    runs = HandlerRuns()
    if query.spec.done_column is None:
        with recheck.noting_writes(), allow_writes_by_session_only(query.spec, function, tx), running_user_code():
            _run_handlers_until(tx, function, recheck, until_s, runs, tx.session.flush)
        return runs

    def check_writes() -> None:
        for work in runs.works:
            _check_only_done_column_written(query, work)
        _check_no_other_rows_written(query, tx, [work.record for work in runs.works])

    def check_writes_and_flush() -> None:
        check_writes()  # before the flush, since after a flush the records no longer show what was changed
        tx.session.flush()

    with _noting_stray_writes(tx), recheck.noting_writes(), allow_writes_by_session_only(query.spec, function, tx), running_user_code():
        _run_handlers_until(tx, function, recheck, until_s, runs, check_writes_and_flush)
    check_writes()
    return runs


@dataclass
class HandlerRuns:
    """The records of a batch on which the handler ran (`works`), and the records that were passed over. A record that was not reached in
    time is in neither list.
    """

    works: list[Work] = field(default_factory=list)
    passed_over: list[Work] = field(default_factory=list)

    @property
    def number_reached(self) -> int:
        return len(self.works) + len(self.passed_over)


def _run_handlers_until(
    tx: Transaction, function: Function, recheck: RecheckBeforeHandlers, until_s: float, runs: HandlerRuns, flush: Callable[[], None]
) -> None:
    monotonic = tx.database.clock.monotonic
    try:
        for number, work in enumerate(recheck.works):
            if runs.works and monotonic() >= until_s:
                return
            if (runs.works or recheck.stale) and not recheck.may_run_handler(number, flush):
                runs.passed_over.append(work)
                continue
            recheck.note_handler_begins(number)
            _call_handler(tx, function, work)
            recheck.note_handler_ran(number)
            runs.works.append(work)
    finally:
        tx.put_back()


def _name_handler_and_table(function: Function, work: Work) -> str:
    """Return "<handler> on <table>" for the text of a TransactionEnded, which appends the record's key."""
    return f"{function.plain_name} on {inspect(work.record).mapper.base_mapper.local_table}"


def _call_handler(tx: Transaction, function: Function, work: Work) -> None:
    was = in_place_changes.copy_mutable_values(work.record)
    tx.handlers.note_handler_start(work.key)
    tx.session.info[AT_WORK] = (work.record, work.key)
    try:
        returned = function(work.record, *work.arguments, session=tx.session, **work.supplies)
    except Exception as error:
        if tx.is_over() and not db_errors.is_no_fault_of_record(error):
            raise TransactionEnded(_name_handler_and_table(function, work), work.key, error) from error
        raise_if_caused_by_swallowed_error(tx, error)
        raise
    finally:
        tx.handlers.note_handler_end()
        tx.session.info.pop(AT_WORK, None)
    if tx.is_over():  # checked before the next handler runs, since that handler would write outside of the transaction
        raise TransactionEnded(_name_handler_and_table(function, work), work.key)
    raise_if_refused_flush_was_caught(tx)
    raise_if_error_was_swallowed(tx)
    raise_if_result_is_unawaited(returned)
    why = None if was is None else in_place_changes.why_change_would_be_lost(tx, work.key, work.record, was)
    if why is not None:
        raise HandlerFailed(why)


def write_changes(query: ConditionQuery, tx: Transaction, works: Sequence[Work]) -> list[dict[str, Any]] | None:
    """Write what the handlers changed. The records are written by bulk UPDATEs if a flush would do nothing more for them; other rows are
    written by a flush.

    Return one dict of new values per record, for the check of progress and for hints. Return None if a flush wrote the records, so that the
    new values are not known.
    """
    found = take_out_records(query, tx, works)
    if found is None:
        with allow_writes_by_session_only(query.spec, query.spec.handler, tx), running_user_code():
            tx.session.flush()
        return None
    bulk_update.write_changes(tx.database, tx.connection, query.mapper, [work.key for work in works], found)
    return found


def take_out_records(query: ConditionQuery, tx: Transaction, works: Sequence[Work]) -> list[dict[str, Any]] | None:
    """Take the records out of the session, and flush what the handlers changed in other rows.

    Return one dict per record, with the new values that the caller must write. If only a flush can write the records, do nothing and return
    None.
    """
    with (
        allow_writes_by_session_only(query.spec, query.spec.handler, tx),
        running_user_code(),
    ):  # the user's column types and flush hooks run here
        found = bulk_update.new_values_for_bulk_update(query.mapper, [work.record for work in works], tx.session)
        if found is None:
            return None
        for work in works:  # the session no longer reports expunged records as changed, so note their parents here
            commit_hooks.add_parents_of(tx.touched, work.record)
            if work.record in tx.session:  # a cascade from another record may have expunged it already
                tx.session.expunge(work.record)
        tx.session.flush()  # writes the other rows, after they are locked and compared with what was loaded
    return found


def keys_without_progress(
    query: ConditionQuery, tx: Transaction, works: Sequence[Work], new: Sequence[dict[str, Any]] | None
) -> list[PrimaryKey]:
    """Return the keys of records whose condition still holds, for the occurrence they had before the handler ran. The database is not asked
    about a record whose new values (`new`) already show that its condition is false.
    """
    doubtful = list(works)
    if new is not None:
        demanded = query.demanded_constants
        doubtful = [work for work, values in zip(works, new, strict=True) if not constant_clauses.makes_a_clause_false(demanded, values)]
    if not doubtful:
        return []
    rows = tx.connection.execute(query.selects.select_due_occurrences([work.key for work in doubtful]))
    width = len(query.keys.key_attributes)
    before = {work.key: work.occurrence for work in doubtful}
    return [
        tuple(row[:width])
        for row in rows
        if query.occurrences.means_occurrence(before[tuple(row[:width])], query.occurrences.occurrence_text_of_values(row[width:]))
    ]


def run_in_savepoint(query: ConditionQuery, tx: Transaction, function: Function, work: Work, *, progress: bool = True) -> None:
    """Run the handler on one record in a savepoint, and flush. If the handler fails, roll the savepoint back and raise HandlerFailed. If
    `progress` is true, do the same if the handler made no progress.
    """
    with tx.session.begin_nested():
        run_without_flush(query, tx, function, work)
        flush_changes(query.spec, tx, function)
        if progress and keys_without_progress(query, tx, [work], None):
            raise HandlerFailed(f"made no progress: {still_holds_message(query)}")


def still_holds_message(query: ConditionQuery) -> str:
    return f"the condition still holds after the handler: {query.texts.condition_for_people}"


def run_without_flush(
    query: ConditionQuery, tx: Transaction, function: Function, work: Work, *others: Any, looked_at: bool = False
) -> None:
    """Run the handler on one record, without a flush. Raises HandlerFailed if the handler raises, or if the reaction has a done column and
    its handler writes anything but this column.

    others: Records that earlier handlers changed, and whose changes are not flushed yet.
    looked_at: Whether the caller checks what the handler wrote, so that autoflush must be off. If the reaction has a done column, autoflush
        is off in any case.
    """
    writes_done_column = query.spec.done_column is not None and function is query.spec.handler
    try:
        with (
            _noting_stray_writes(tx) if looked_at or writes_done_column else nullcontext(),
            allow_writes_by_session_only(query.spec, function, tx),
            running_user_code(),
        ):
            _call_handler(tx, function, work)
    except (HandlerFailed, TransactionEnded):
        raise
    except Exception as error:
        lost = None if tx.beside is None else tx.beside.lost  # a lost update is reported as the cause, since the handler is not to blame
        raise HandlerFailed(f"the handler raised {describe_exception(error)}{where_raised(error)}", lost or error) from error
    finally:
        tx.put_back()
    if writes_done_column:
        _check_only_done_column_written(query, work)
        _check_no_other_rows_written(query, tx, [work.record, *others])


def flush_changes(spec: ReactionSpec | ScheduleSpec, tx: Transaction, function: Function) -> None:
    """Flush what a handler changed, within its savepoint. Raises HandlerFailed if the database refuses the flush."""
    try:
        with allow_writes_by_session_only(spec, function, tx), running_user_code():
            tx.session.flush()
    except Exception as error:
        raise HandlerFailed(f"its flush was refused: {safe_str(error)}", error) from error


def raise_if_error_was_swallowed(tx: Transaction) -> None:
    """Raise HandlerFailed if the handler caught the error of a statement and returned as if nothing had happened: PostgreSQL refuses every
    later statement of the transaction.
    """
    if tx.refuses():
        raise HandlerFailed(swallowed_error_message(tx), tx.failed)


def raise_if_caused_by_swallowed_error(tx: Transaction, error: Exception) -> None:
    """Raise HandlerFailed with an earlier error that the handler caught, if the handler's exception `error` is only PostgreSQL's refusal of
    a later statement.
    """
    if tx.failed is not None and db_errors.is_refusal_after_failure(error):
        raise HandlerFailed(swallowed_error_message(tx), tx.failed) from error


def swallowed_error_message(tx: Transaction) -> str:
    """Return the error text for a handler that caught the error of a statement. The text names the error, and says what to do instead."""
    error = tx.failed
    which = "" if error is None else f": {describe_exception(getattr(error, 'orig', None) or error)}{where_raised(error)}"
    return (
        "it caught the error of a statement and went on, and PostgreSQL refuses every other statement of the transaction after that (put"
        f" what may fail into `with session.begin_nested():`, which alone is undone then){which}"
    )


def raise_if_result_is_unawaited(returned: Any) -> None:
    """Raise HandlerFailed if the handler returned a coroutine, a generator or the like: nobody runs it, so the handler's work was not
    done.
    """
    lost = None if returned is None else describe_unawaited(returned)
    if lost is not None:
        raise HandlerFailed(
            f"the handler returned {lost}: nothing is awaited in a transaction. Do what must be awaited in the reaction's call"
        )


def raise_if_refused_flush_was_caught(tx: Transaction) -> None:
    """Raise HandlerFailed if the handler caught the error of its own flush, and that error undid what the handler had changed."""
    refused = tx.session.refused
    if refused is not None and tx.session.is_undone:
        raise HandlerFailed(f"its flush was refused, and it went on ({_FLUSH_APART}): {safe_str(refused)}", refused)


def allow_writes_by_session_only(spec: ReactionSpec | ScheduleSpec, function: Function, tx: Transaction) -> AbstractContextManager[None]:
    """Return a context in which writes to the databases of the app are refused, except through the connection of the handler's session."""
    return refusing_writes(spec.app, f"the handler {function.plain_name} of {spec.name}", HANDLER_CURE, may_say=False, own=tx.connection)


@contextmanager
def _noting_stray_writes(tx: Transaction) -> Iterator[None]:
    """While this context is open, collect in `tx.strays` the writing statements that bypass the unit of work, and keep autoflush off, so
    that the handler's changes can be checked before they are flushed.
    """
    tx.strays.clear()
    tx.watching = True
    try:
        with tx.session.no_autoflush:
            yield
    finally:
        tx.watching = False


def _check_only_done_column_written(query: ConditionQuery, work: Work) -> None:
    """Raise HandlerFailed if the handler wrote any column of its record except the reaction's done column. The reaction runs beside other
    reactions on the same record, so it may write no other column.
    """
    done_column = query.spec.done_column
    others = sorted(set(bulk_update.changed_attributes(work.record)) - {done_column})
    if others:
        raise HandlerFailed(_wrote_more_message(done_column, ", ".join(others)))


def _check_no_other_rows_written(query: ConditionQuery, tx: Transaction, records: Sequence[Any]) -> None:
    if has_written_other_rows(tx, records):
        raise HandlerFailed(_wrote_more_message(query.spec.done_column, "other rows"))


def _wrote_more_message(done_column: str | None, what: str) -> str:
    return (
        f"a reaction with done_column={done_column} may write that column only, and its handler wrote {what} too: let a reaction of its"
        " own write that"
        f" where {done_column} is not NULL, or leave done_column= out"
    )


def has_written_other_rows(tx: Transaction, records: Sequence[Any]) -> bool:
    """Return whether the session has changes of rows other than these records, or whether a writing statement bypassed the unit of work."""
    ours = {id(record) for record in records}
    others = [one for one in tx.session.dirty if id(one) not in ours and tx.session.is_modified(one)]
    return bool(tx.strays or tx.session.new or tx.session.deleted or others)


def run_overtaken(query: ConditionQuery, tx: Transaction, work: Work, *, same_occurrence: bool) -> None:
    """Run the ordinary handler on a record whose condition no longer holds. Raises HandlerFailed, and keeps none of its work, if the
    handler wrote anything but columns of the record that were NULL (rules.md 2).
    """
    false = _false_clauses(query, tx, work.key)
    with tx.session.begin_nested():
        run_without_flush(query, tx, query.spec.handler, work, looked_at=True)
        written = bulk_update.changed_attributes(work.record)
        columns = {property_.key for property_ in query.mapper.column_attrs}
        why = overtaken.reason_to_hold_overtaken(
            set(written),
            _attributes_null_before(query, tx, work.key, written),
            false,
            wrote_else=has_written_other_rows(tx, [work.record]) or not set(written) <= columns,
            same_occurrence=same_occurrence,
            done_column=query.spec.done_column is not None,
        )
        if why is not None:
            raise HandlerFailed(why)
        flush_changes(query.spec, tx, query.spec.handler)


def _attributes_null_before(query: ConditionQuery, tx: Transaction, key: PrimaryKey, written: Mapping[str, Any]) -> set[str]:
    """Return the names of the written attributes that were NULL before the handler ran. If an old value is not known, as after an in-place
    change, ask the database for it. Call it before the flush.
    """
    null = {name for name, old in written.items() if old is None}
    columns = query.mapper.column_attrs
    unknown = [name for name, old in written.items() if bulk_update.is_old_value_unknown(old) and name in columns]
    if unknown:
        asked = [getattr(query.entity, name).is_(sql_null()) for name in unknown]
        row = tx.connection.execute(select(*asked).where(query.keys.has_key_among([key]))).one()
        null |= {name for name, was_null in zip(unknown, row, strict=True) if was_null}
    return null


def _false_clauses(query: ConditionQuery, tx: Transaction, key: PrimaryKey) -> list[overtaken.FalseClause]:
    row = tx.connection.execute(query.selects.select_clause_truths(key)).first()
    truths = row if row is not None else [False] * len(query.spec.clauses)
    return [
        overtaken.FalseClause(_attributes_in_clause(query, one), _reads_own_columns_only(query, one))
        for one, holds in zip(query.spec.clauses, truths, strict=True)
        if not holds
    ]


def _attributes_in_clause(query: ConditionQuery, one: Any) -> set[str]:
    """Return the names of the record's attributes whose columns occur in this clause. Columns of other tables are left out."""
    by_column = {column: property_.key for property_ in query.mapper.column_attrs for column in property_.columns}
    return {by_column[part] for part in visitors.iterate(one) if isinstance(part, Column) and part in by_column}


def _reads_own_columns_only(query: ConditionQuery, one: Any) -> bool:
    tables = set(query.mapper.tables)
    return all(part.table in tables for part in visitors.iterate(one) if isinstance(part, Column)) and not any(
        part.__visit_name__ in ("select", "subquery", "scalar_select") for part in visitors.iterate(one)
    )
