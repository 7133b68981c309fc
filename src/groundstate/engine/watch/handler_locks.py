"""Keeps which locks of other transactions the handlers of one worker have met on PostgreSQL, so that what needs the same locks waits, and
everything else goes on.

A record whose handler met a lock, for example on a row of another table, is left out of the batches of its reaction, and is tried alone
after a pause. If another transaction has locked a whole table, `locked_tables` lets the work queue wait.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from groundstate.engine.sql import lock_waits
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.watch.work_queue import WorkQueue

FIRST_S = 0.5  # seconds: the first pause of a record whose handler met a lock; each later pause is twice as long as the one before
LONGEST_S = 5.0  # seconds: the longest pause
SHORT_FOR_S = 30.0  # seconds after a handler met a lock in which all batches of its queue use the short lock timeout
RECORDS_MOST = 1_000  # how many records of one queue are left out; sweeps find the others


@dataclass
class _WaitingRecord:
    """A record whose handler met a lock `tries` times in a row. It is tried again at the monotonic time `until`."""

    why: str
    tries: int = 0
    until: float = 0.0


@dataclass
class _LocksOfQueue:
    """What the handler of one work queue has met. Until `short_until` (monotonic seconds) its batches wait only shortly for locks."""

    tables: set[str] = field(default_factory=set)
    records: dict[PrimaryKey, _WaitingRecord] = field(default_factory=dict)
    short_until: float = 0.0


class HandlerLocks:
    """The locks that the handlers of one worker have met. Only the worker's own thread calls its methods; other threads may read
    `has_waiting_records`. Times are seconds of the monotonic clock.
    """

    def __init__(self) -> None:
        self.met: dict[WorkQueue, _LocksOfQueue] = {}  # empty until the first handler meets a lock

    @property
    def has_waiting_records(self) -> bool:
        """Return whether a record waits until it is tried again."""
        return any(met.records for met in list(self.met.values()))

    def end_of_next_pause(self) -> float | None:
        """Return when the next record is tried again; None if no record waits."""
        return min((record.until for met in self.met.values() for record in met.records.values()), default=None)

    def wait_of_batch(self, queue: WorkQueue, now: float) -> timedelta | None:
        """Return how long a statement of the queue's next batch waits for a lock; None: as long as the store lets it."""
        return lock_waits.SHORT_WAIT if queue in self.met and now < self.met[queue].short_until else None

    # ---- tables ------------------------------------------------------------------------------------------------------------------
    def tables_met_locked(self, queue: WorkQueue) -> Collection[str]:
        """Return the names of the tables that the queue's handler met locked."""
        return self.met[queue].tables if queue in self.met else ()

    def note_tables_met_locked(self, queue: WorkQueue, tables: Iterable[str]) -> None:
        """Note that the queue's handler met these tables locked."""
        self.met.setdefault(queue, _LocksOfQueue()).tables.update(tables)

    def forget_tables(self, queue: WorkQueue) -> None:
        """Forget the tables that the queue's handler met locked. Call it when they are free."""
        if queue in self.met:
            self.met[queue].tables.clear()

    # ---- records -----------------------------------------------------------------------------------------------------------------
    def keys_of_waiting_records(self, queue: WorkQueue) -> frozenset[PrimaryKey]:
        """Return the keys of the queue's records whose handler met a lock. Batches leave these records out."""
        return frozenset(self.met[queue].records) if queue in self.met else frozenset()

    def reasons_of_waiting_records(self, queue: WorkQueue) -> dict[PrimaryKey, str]:
        """Return why each of the queue's records waits whose handler met a lock, as a text by key."""
        return {key: record.why for key, record in self.met[queue].records.items()} if queue in self.met else {}

    def keys_after_pause(self, queue: WorkQueue, now: float) -> list[PrimaryKey]:
        """Return the keys of the queue's records that are to be tried again at the time `now`."""
        return [key for key, record in self.met[queue].records.items() if record.until <= now] if queue in self.met else []

    def note_records_met_locks(self, queue: WorkQueue, reasons: Mapping[PrimaryKey, str], now: float) -> list[PrimaryKey]:
        """Let these records wait, since their handler met a lock, each longer after each time. Return the keys of those that did not wait
        before. reasons: a text about the lock, by the record's key.
        """
        met = self.met.setdefault(queue, _LocksOfQueue())
        met.short_until = now + SHORT_FOR_S
        new = [key for key in reasons if key not in met.records]
        for key in new[: max(RECORDS_MOST - len(met.records), 0)]:
            met.records[key] = _WaitingRecord("")
        for key in reasons.keys() & met.records.keys():
            record = met.records[key]
            record.why, record.tries = reasons[key], record.tries + 1
            record.until = now + min(FIRST_S * 2 ** min(record.tries - 1, 10), LONGEST_S)
        return new

    def forget_records(self, queue: WorkQueue, keys: Iterable[PrimaryKey]) -> None:
        """Stop leaving these records out: from now on the batches of the queue may carry them out."""
        for key in keys if queue in self.met else ():
            self.met[queue].records.pop(key, None)
