"""Asks the condition of a batch's records again before their handlers run, where handlers before theirs may have made it false.

A handler may change or delete other records of its batch, by its session, by a statement, or by what a trigger or a foreign key does then.
Those for which the condition no longer holds are let go, as they would be if records were handled one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from groundstate.engine.rows import claim
from groundstate.engine.sql.batch_writes import BatchWrites
from groundstate.engine.sql.condition_query import ConditionQuery, PrimaryKey
from groundstate.engine.sql.transaction import Transaction


class Asked(Protocol):
    """A record whose handler is to run."""

    @property
    def key(self) -> PrimaryKey: ...
    @property
    def record(self) -> Any: ...
    @property
    def occurrence(self) -> str: ...
    @property
    def supplies(self) -> Mapping[str, Any]: ...


W = TypeVar("W", bound=Asked)
Asks = Callable[[ConditionQuery, Transaction, Sequence[Asked]], set[PrimaryKey]]


class AskedAgain(Generic[W]):
    """Tells before each handler of a batch whether its record is still to be handled.

    asks: returns the keys of those of some works that are. lines: the line of `in_order` that each record is in, if the reaction has such:
    the next records of a line wait where one of them may have been changed. stale: other handlers ran in this transaction before these.
    """

    def __init__(
        self,
        query: ConditionQuery,
        tx: Transaction,
        works: Sequence[W],
        asks: Asks,
        lines: Sequence[object] = (),
        *,
        stale: bool = False,
    ) -> None:
        self._query = query
        self._tx = tx
        self.works = works
        self._asks = asks
        self._writes = BatchWrites(query, tx.session, tx.connection)
        self.stale = stale  # whether something was written that may have changed the conditions of the records that follow
        self._asked_to = 0  # then the number of the first record that was not asked of since
        self._many = 1  # records to be asked of next: one where each handler writes what matters to others, else twice as many each time
        self._holding: set[PrimaryKey] = set()
        self._lines = lines
        self._begun: set[object] = set()  # lines of which a record was handled
        self._ended: set[object] = set()  # lines whose next records must wait

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Wrap the handlers of the batch: what they write is noted."""
        self._tx.writes = self._writes
        try:
            yield
        finally:
            self._tx.writes = None

    def holds(self, number: int, flush: Callable[[], None]) -> bool:
        """Whether the handler of this record may run."""
        if not self._lines:
            return self._still_holds(number, flush)
        line = self._lines[number]
        if line in self._begun and self._writes.may_matter_to(self.works[number].record):
            self._ended.add(line)
        if line not in self._ended and not self._still_holds(number, flush):
            self._ended.add(line)
        return line not in self._ended

    def _still_holds(self, number: int, flush: Callable[[], None]) -> bool:
        if self._writes.may_matter_to(self.works[number].record):
            flush()
            self._writes.asked()
            self.stale, self._asked_to, self._many = True, number, 1
        if not self.stale:
            return True
        if number >= self._asked_to:
            some = self.works[number : number + self._many]
            with self._tx.session.no_autoflush:
                self._holding = self._asks(self._query, self._tx, some)
            self._asked_to, self._many = number + len(some), self._many * 2
        return self.works[number].key in self._holding

    def begins(self, number: int) -> None:
        """Note that the handler of this record is about to run."""
        self._writes.begins(self.works[number].record)
        if self._lines:
            self._begun.add(self._lines[number])

    def ran(self, number: int) -> None:
        """Note that the handler of this record ran."""
        self._writes.ran(self.works[number].record)


def ready(query: ConditionQuery, tx: Transaction, works: Sequence[Asked]) -> set[PrimaryKey]:
    """Return the keys of those of these records that are still to be carried out as they were claimed, and load them anew."""
    records, _ = claim.readable(query, tx, [work.key for work in works])
    before = {work.key: work for work in works}
    found = set()
    for record, due in zip(records, claim.dues(query, tx, records), strict=True):
        work = before.get(query.key_of(record))
        if work is not None and claim.is_this_round(query, work.occurrence, record):
            ctx = work.supplies["ctx"]
            if due is None or due == ctx.due:
                found.add(work.key)
    return found


def concluded(query: ConditionQuery, tx: Transaction, works: Sequence[Asked]) -> set[PrimaryKey]:
    """Return the keys of those of these records whose outcome is not overtaken, and load them anew."""
    before = {work.key: work for work in works}
    found = set()
    for record, holds in claim.truths(query, tx, list(before)):
        work = before.get(query.key_of(record))
        if work is not None and holds and claim.is_this_round(query, work.occurrence, record):
            found.add(work.key)
    return found
