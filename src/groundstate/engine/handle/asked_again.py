"""Checks the conditions of a batch's records again before their handlers run, if an earlier handler of the batch may have made them false.

A handler may change or delete other records of its batch: by its session, by a statement, or through a trigger or a foreign key. A record
whose condition no longer holds is passed over, as it would be if each record were handled in a batch of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from groundstate.engine.rows import claim
from groundstate.engine.sql.batch_writes import BatchWrites
from groundstate.engine.sql.condition_query import ConditionQuery, PrimaryKey
from groundstate.engine.sql.transaction import Transaction


class RecordToHandle(Protocol):
    """A record of a batch on which the handler is to run, with the handler's arguments."""

    @property
    def key(self) -> PrimaryKey: ...
    @property
    def record(self) -> Any: ...
    @property
    def occurrence(self) -> str: ...
    @property
    def supplies(self) -> Mapping[str, Any]: ...


W = TypeVar("W", bound=RecordToHandle)
RecheckFunction = Callable[[ConditionQuery, Transaction, Sequence[RecordToHandle]], set[PrimaryKey]]


class RecheckBeforeHandlers(Generic[W]):
    """Tells, before each handler of a batch runs, whether its record is still to be handled.

    asks: Is called with some of the works, and returns the keys of the records that are still to be handled.
    lines: The value of `in_order` for each work; empty if the reaction has no `in_order`. Once a handler may have changed a later record
        with its own value, all later records with that value wait for the next batch.
    stale: Whether handlers of other works have already run in this transaction.
    """

    def __init__(
        self,
        query: ConditionQuery,
        tx: Transaction,
        works: Sequence[W],
        asks: RecheckFunction,
        lines: Sequence[object] = (),
        *,
        stale: bool = False,
    ) -> None:
        self._query = query
        self._tx = tx
        self.works = works
        self._asks = asks
        self._writes = BatchWrites(query, tx.session, tx.connection)
        self.stale = stale  # whether a handler may have changed the conditions of later records, so that they must be checked
        self._asked_to = 0  # if `stale`: the index in `works` of the first record that is not checked yet
        self._many = 1  # how many records the next check covers; doubled by each check, and 1 again after a write that may matter
        self._holding: set[PrimaryKey] = set()
        self._lines = lines
        self._begun: set[object] = set()  # `in_order` values with at least one record whose handler has started
        self._ended: set[object] = set()  # `in_order` values whose remaining records must wait for the next batch

    @contextmanager
    def noting_writes(self) -> Iterator[None]:
        """While this context is open, note what the batch's handlers write, so that `may_run_handler` knows which conditions may have
        changed.
        """
        self._tx.writes = self._writes
        try:
            yield
        finally:
            self._tx.writes = None

    def may_run_handler(self, number: int, flush: Callable[[], None]) -> bool:
        """Return whether the handler may run on the record with this index in `works`. Calls `flush` first if earlier handlers may have
        changed the record's condition.
        """
        if not self._lines:
            return self._condition_still_holds(number, flush)
        line = self._lines[number]
        if line in self._begun and self._writes.may_affect_condition_of(self.works[number].record):
            self._ended.add(line)
        if line not in self._ended and not self._condition_still_holds(number, flush):
            self._ended.add(line)
        return line not in self._ended

    def _condition_still_holds(self, number: int, flush: Callable[[], None]) -> bool:
        if self._writes.may_affect_condition_of(self.works[number].record):
            flush()
            self._writes.forget_writes()
            self.stale, self._asked_to, self._many = True, number, 1
        if not self.stale:
            return True
        if number >= self._asked_to:
            some = self.works[number : number + self._many]
            with self._tx.session.no_autoflush:
                self._holding = self._asks(self._query, self._tx, some)
            self._asked_to, self._many = number + len(some), self._many * 2
        return self.works[number].key in self._holding

    def note_handler_begins(self, number: int) -> None:
        """Note that the handler of the record with this index in `works` is about to run."""
        self._writes.note_handler_started(self.works[number].record)
        if self._lines:
            self._begun.add(self._lines[number])

    def note_handler_ran(self, number: int) -> None:
        """Note that the handler of the record with this index in `works` has run."""
        self._writes.note_handler_finished(self.works[number].record)


def keys_still_to_handle(query: ConditionQuery, tx: Transaction, works: Sequence[RecordToHandle]) -> set[PrimaryKey]:
    """Reload these records, and return the keys of those that are still ready, and have the occurrence and due time they had when they were
    locked.
    """
    records, _ = claim.load_ready_records(query, tx, [work.key for work in works])
    before = {work.key: work for work in works}
    found = set()
    for record, due in zip(records, claim.due_times(query, tx, records), strict=True):
        work = before.get(query.key_of_record(record))
        if work is not None and claim.is_present_occurrence(query, work.occurrence, record):
            ctx = work.supplies["ctx"]
            if due is None or due == ctx.due:
                found.add(work.key)
    return found


def keys_not_overtaken(query: ConditionQuery, tx: Transaction, works: Sequence[RecordToHandle]) -> set[PrimaryKey]:
    """Reload these records, and return the keys of those whose condition still holds for the occurrence for which their call was made."""
    before = {work.key: work for work in works}
    found = set()
    for record, holds in claim.load_with_condition(query, tx, list(before)):
        work = before.get(query.key_of_record(record))
        if work is not None and holds and claim.is_present_occurrence(query, work.occurrence, record):
            found.add(work.key)
    return found
