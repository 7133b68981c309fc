"""Running a user's handler on records in our hands, and telling whether that was progress. Never commits."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from sqlalchemy import inspect, select
from sqlalchemy import null as sql_null
from sqlalchemy.sql import visitors
from sqlalchemy.sql.schema import Column

from groundstate.engine import changes, hints, in_place, trouble
from groundstate.engine.guarded import describe, place_of, text_of, user_code
from groundstate.engine.inside_call import HANDLER_CURE, inside
from groundstate.engine.question import PrimaryKey, Question
from groundstate.engine.transaction import Transaction
from groundstate.engine.trouble import TransactionEnded
from groundstate.rules import equality, overtaken
from groundstate.rules.reaction import Function, ReactionSpec
from groundstate.rules.schedule import ScheduleSpec

_FLUSH_APART = "let it raise that, or flush in `with session.begin_nested():`, which alone is undone then"


class HandlerFailed(Exception):
    """The handler raised, made no progress, or wrote what it may not. `error` says which."""

    def __init__(self, error: str, cause: BaseException | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.cause = cause


@dataclass(frozen=True)
class Work:
    """One record with what its handler is given."""

    key: PrimaryKey
    record: Any
    occurrence: str
    arguments: tuple[Any, ...]
    supplies: dict[str, Any]


def run_each(question: Question, tx: Transaction, function: Function, works: Sequence[Work], until_s: float = math.inf) -> int:
    """Runs the handler on each record, and on none after `until_s` of the monotonic clock but the first; returns on how many it did.

    What it raises comes out as it is, but as TransactionEnded where it ended the transaction. Raises HandlerFailed where a fact's handler
    wrote else, or a change of one would be lost.
    """
    if question.spec.fact is None:
        with writes_by_its_session(question.spec, function, tx), user_code():
            return _run_each(tx, function, works, until_s)
    with _watched(tx), writes_by_its_session(question.spec, function, tx), user_code():
        ran = _run_each(tx, function, works, until_s)
    for work in works[:ran]:
        _check_fact_columns(question, work)
    _check_nothing_else(question, tx, [work.record for work in works[:ran]])
    return ran


def _run_each(tx: Transaction, function: Function, works: Sequence[Work], until_s: float) -> int:
    try:
        for number, work in enumerate(works):
            if number and time.monotonic() >= until_s:
                return number
            _run(tx, function, work)
        return len(works)
    finally:
        tx.put_back()


def _named(function: Function, work: Work) -> str:
    """A handler and the table of its record, whose key follows."""
    return f"{function.plain_name} on {inspect(work.record).mapper.base_mapper.local_table}"


def _run(tx: Transaction, function: Function, work: Work) -> None:
    was = in_place.before(work.record)
    tx.handlers.began(work.key)
    try:
        function(work.record, *work.arguments, session=tx.session, **work.supplies)
    except Exception as error:
        if tx.is_over() and not trouble.transient(error):
            raise TransactionEnded(_named(function, work), work.key, error) from error
        raise
    finally:
        tx.handlers.ended()
    if tx.is_over():  # before another handler runs: what that one writes would be kept without its record
        raise TransactionEnded(_named(function, work), work.key)
    refuse_what_is_undone(tx)
    why = None if was is None else in_place.lost(tx, work.key, work.record, was)
    if why is not None:
        raise HandlerFailed(why)


def flush_all(question: Question, tx: Transaction, works: Sequence[Work]) -> list[dict[str, Any]] | None:
    """Writes what the handlers changed: the records by bulk UPDATEs where nothing else would have happened, the rest by the unit of work.

    Returns each record's new values where they are known, for the progress check and the hints.
    """
    found = take_out(question, tx, works)
    if found is None:
        with writes_by_its_session(question.spec, question.spec.handler, tx), user_code():
            tx.session.flush()
        return None
    changes.write(tx.database, tx.connection, question.mapper, [work.key for work in works], found)
    return found


def take_out(question: Question, tx: Transaction, works: Sequence[Work]) -> list[dict[str, Any]] | None:
    """Takes the records out of the session, and flushes what the handlers changed beside them.

    Returns what is to be written to each record; None, and nothing was done, where that is the unit of work's affair.
    """
    with writes_by_its_session(question.spec, question.spec.handler, tx), user_code():  # its types compare, its hooks hear of a flush
        found = changes.bulk_changes(question.mapper, [work.record for work in works], tx.session)
        if found is None:
            return None
        for work in works:  # of what goes by the unit of work, the session tells
            hints.add_parents(tx.touched, work.record)
            if work.record in tx.session:  # else another record of the batch has taken it along
                tx.session.expunge(work.record)
        tx.session.flush()  # rows beside the records, which are locked and compared before anything is written
    return found


def without_progress(question: Question, tx: Transaction, works: Sequence[Work], new: Sequence[dict[str, Any]] | None) -> list[PrimaryKey]:
    """Keys whose condition still holds for the same occurrence. Asked of the database unless the new values prove it false."""
    doubtful = list(works)
    if new is not None:
        demanded = question.constants
        doubtful = [work for work, values in zip(works, new, strict=True) if not equality.falsifies(demanded, values)]
    if not doubtful:
        return []
    rows = tx.connection.execute(question.still_holding([work.key for work in doubtful]))
    width = len(question.key_attributes)
    before = {work.key: work.occurrence for work in doubtful}
    return [tuple(row[:width]) for row in rows if question.is_round(before[tuple(row[:width])], question.round_text(row[width:]))]


def run_one(question: Question, tx: Transaction, function: Function, work: Work, *, progress: bool = True) -> None:
    """One record in a savepoint. Raises HandlerFailed, with the savepoint rolled back, where it is not to be kept."""
    with tx.session.begin_nested():
        call(question, tx, function, work)
        flush(question.spec, tx, function)
        if progress and without_progress(question, tx, [work], None):
            raise HandlerFailed(f"made no progress: {still_holds(question)}")


def still_holds(question: Question) -> str:
    return f"the condition still holds after the handler: {question.shown_text}"


def call(question: Question, tx: Transaction, function: Function, work: Work, *others: Any, looked_at: bool = False) -> None:
    """One record, not flushed by us. Raises HandlerFailed where it raises, or wrote what a fact's handler may not.

    others: records that were changed before, and are not flushed either. looked_at: what it wrote is looked at before anything of it is
    flushed, as that of a fact's handler always is.
    """
    writes_fact = question.spec.fact is not None and function is question.spec.handler
    try:
        with _watched(tx) if looked_at or writes_fact else nullcontext(), writes_by_its_session(question.spec, function, tx), user_code():
            _run(tx, function, work)
    except (HandlerFailed, TransactionEnded):
        raise
    except Exception as error:
        lost = None if tx.beside is None else tx.beside.lost  # what it made of a lost update is no failure of its own
        raise HandlerFailed(f"the handler raised {describe(error)}{place_of(error)}", lost or error) from error
    finally:
        tx.put_back()
    if writes_fact:
        _check_fact_columns(question, work)
        _check_nothing_else(question, tx, [work.record, *others])


def flush(spec: ReactionSpec | ScheduleSpec, tx: Transaction, function: Function) -> None:
    """Within its savepoint. Raises HandlerFailed."""
    try:
        with writes_by_its_session(spec, function, tx), user_code():
            tx.session.flush()
    except Exception as error:
        raise HandlerFailed(f"its flush was refused: {text_of(error)}", error) from error


def refuse_what_is_undone(tx: Transaction) -> None:
    """After a handler: one that caught what its flush raised would be taken for done, and nothing of it is left. Raises HandlerFailed."""
    refused = tx.session.refused
    if refused is not None and tx.session.is_undone:
        raise HandlerFailed(f"its flush was refused, and it went on ({_FLUSH_APART}): {text_of(refused)}", refused)


def writes_by_its_session(spec: ReactionSpec | ScheduleSpec, function: Function, tx: Transaction) -> AbstractContextManager[None]:
    """While it lasts, the handler writes to the stores of its app by its own session's connection alone."""
    return inside(spec.app, f"the handler {function.plain_name} of {spec.name}", HANDLER_CURE, may_say=False, own=tx.connection)


@contextmanager
def _watched(tx: Transaction) -> Iterator[None]:
    """While it lasts, statements that write past the unit of work are noticed, and nothing is flushed before it was looked at."""
    tx.strays.clear()
    tx.watching = True
    try:
        with tx.session.no_autoflush:
            yield
    finally:
        tx.watching = False


def _check_fact_columns(question: Question, work: Work) -> None:
    """A reaction with a fact writes that column alone; only so may it run alongside others on the same record."""
    fact = question.spec.fact
    others = sorted(set(changes.changed(work.record)) - {fact})
    if others:
        raise HandlerFailed(_wrote_more(fact, ", ".join(others)))


def _check_nothing_else(question: Question, tx: Transaction, records: Sequence[Any]) -> None:
    if wrote_else(tx, records):
        raise HandlerFailed(_wrote_more(question.spec.fact, "other rows"))


def _wrote_more(fact: str | None, what: str) -> str:
    return (
        f"a reaction with fact={fact} may write that column only, and its handler wrote {what} too: let a reaction of its own write that"
        f" where {fact} is not NULL, or leave fact= out"
    )


def wrote_else(tx: Transaction, records: Sequence[Any]) -> bool:
    """Whether the session holds, or sent past the unit of work, anything but changes of these records."""
    ours = {id(record) for record in records}
    others = [one for one in tx.session.dirty if id(one) not in ours and tx.session.is_modified(one)]
    return bool(tx.strays or tx.session.new or tx.session.deleted or others)


def run_overtaken(question: Question, tx: Transaction, work: Work, *, same_occurrence: bool) -> None:
    """The ordinary handler after its condition became false: kept only if it wrote a fact (rules.md 2). Raises HandlerFailed."""
    false = _false_clauses(question, tx, work.key)
    with tx.session.begin_nested():
        call(question, tx, question.spec.handler, work, looked_at=True)
        written = changes.changed(work.record)
        columns = {property_.key for property_ in question.mapper.column_attrs}
        why = overtaken.kept(
            set(written),
            _null_before(question, tx, work.key, written),
            false,
            wrote_else=wrote_else(tx, [work.record]) or not set(written) <= columns,
            same_occurrence=same_occurrence,
            fact=question.spec.fact is not None,
        )
        if why is not None:
            raise HandlerFailed(why)
        flush(question.spec, tx, question.spec.handler)


def _null_before(question: Question, tx: Transaction, key: PrimaryKey, written: Mapping[str, Any]) -> set[str]:
    """Those that were NULL. Asked of the database, before the flush, where the record does not tell: it is so after a change in place."""
    null = {name for name, old in written.items() if old is None}
    columns = question.mapper.column_attrs
    unknown = [name for name, old in written.items() if changes.unknown_before(old) and name in columns]
    if unknown:
        asked = [getattr(question.entity, name).is_(sql_null()) for name in unknown]
        row = tx.connection.execute(select(*asked).where(question.among([key]))).one()
        null |= {name for name, was_null in zip(unknown, row, strict=True) if was_null}
    return null


def _false_clauses(question: Question, tx: Transaction, key: PrimaryKey) -> list[overtaken.FalseClause]:
    row = tx.connection.execute(question.clause_truths(key)).first()
    truths = row if row is not None else [False] * len(question.spec.clauses)
    return [
        overtaken.FalseClause(_names(question, one), _own_columns_only(question, one))
        for one, holds in zip(question.spec.clauses, truths, strict=True)
        if not holds
    ]


def _names(question: Question, one: Any) -> set[str]:
    """The columns of this record that it names: another row's column of the same name is another column."""
    by_column = {column: property_.key for property_ in question.mapper.column_attrs for column in property_.columns}
    return {by_column[part] for part in visitors.iterate(one) if isinstance(part, Column) and part in by_column}


def _own_columns_only(question: Question, one: Any) -> bool:
    tables = set(question.mapper.tables)
    return all(part.table in tables for part in visitors.iterate(one) if isinstance(part, Column)) and not any(
        part.__visit_name__ in ("select", "subquery", "scalar_select") for part in visitors.iterate(one)
    )
