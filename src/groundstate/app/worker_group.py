"""Starts and stops the workers of an app, one for each of its databases.

If a database cannot be reached, it is tried again, and the workers of the other databases go on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy.exc import DBAPIError

from groundstate.app.store import Store
from groundstate.clock import SYSTEM_CLOCK, Clock
from groundstate.engine.operate.shard_check import AdmittedDatabases
from groundstate.engine.recover.startup import WHILE_IT_CAME_UP
from groundstate.engine.sql import db_errors
from groundstate.engine.sql.safe_text import describe_exception
from groundstate.engine.worker.shut_down import StopResult
from groundstate.engine.worker.worker import Worker
from groundstate.rules.specs import ReactionSpec
from groundstate.values.errors import StoppedError

log = logging.getLogger("groundstate")
FIRST_S = 0.5  # seconds before a database is tried again; the pause then doubles each time
LONGEST_S = 30.0  # seconds: the longest pause between two tries to reach a database
# seconds: the longest wait of `start` until all workers are up, and the longest wait until a worker has registered its reactions
START_S = 10.0


@dataclass
class DatabaseWorkerSlot:
    """One database of the app, and the worker that runs on it."""

    store: Store
    sharded: Sequence[ReactionSpec]
    shards: Sequence[str]  # the names of all shards of the store
    reactions: Sequence[str] = ()
    worker: Worker | None = None
    starting_worker: Worker | None = None  # the worker that is being started now; otherwise None
    error: BaseException | None = None
    tried: bool = field(default=False)
    ended: BaseException | None = None  # the error that ended the last worker of this database; None once another worker is up
    pause_s: float = 0.0  # length in seconds of the last pause between the end of a worker and the start of another
    since: float = 0.0  # monotonic time, in seconds, when the worker came up

    @property
    def is_up(self) -> bool:
        """Whether the worker of this database is up."""
        return self.worker is not None

    @property
    def reason_of_standstill(self) -> str | None:
        """The reason why nothing is carried out on this database now. It is None if all is well."""
        if self.worker is not None:
            return self.worker.current_trouble
        if self.error is None:
            return "its database did not answer yet"
        return f"its worker ended by itself: {_describe_error(self.error)}" if self.error is self.ended else _describe_error(self.error)


class WorkerGroup:
    """All workers of a running app. It may be used from any thread.

    make(store, wait, replaces): returns a worker that is not started yet; `wait` says whether the worker waits for `go`, and `replaces`
    whether an earlier worker of the store has ended. greet(store, worker): is called when a worker has come up.
    """

    def __init__(
        self,
        slots: Sequence[DatabaseWorkerSlot],
        make: Callable[[Store, bool, bool], Worker],
        greet: Callable[[Store, Worker], None],
        *,
        wait: bool,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.slots = slots
        self._clock = clock
        self._make = make
        self._when_up = greet
        self._waits = wait
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._starting = True  # whether `start` still waits for the first try of each database
        self._admitted = AdmittedDatabases()

    @property
    def workers(self) -> list[Worker]:
        """The workers that are up."""
        return [slot.worker for slot in self.slots if slot.worker is not None]

    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    @property
    def failure(self) -> BaseException | None:
        """The error that ended a worker which has not been replaced yet. It is None if there is no such worker."""
        return next((slot.ended for slot in self.slots if slot.ended is not None), None)

    @property
    def down(self) -> dict[str, str]:
        """The databases on which nothing is carried out now, by name, each with the reason."""
        return {slot.store.label: slot.reason_of_standstill for slot in self.slots if slot.reason_of_standstill is not None}

    @property
    def waiting(self) -> dict[str, str]:
        """The reactions that are not carried out on some database now, by name, each with the reason."""
        found: dict[str, str] = {}
        for slot in self.slots:
            if slot.worker is not None:
                found |= slot.worker.reasons_of_waiting_reactions
            else:
                found |= dict.fromkeys(slot.reactions, f"{slot.store.label} is down: {slot.reason_of_standstill}")
        return found

    # ---- coming up -------------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start the workers. Returns once all are up, or once one is up and the other databases cannot be reached.

        Raises:
            StoppedError: `stop` was called meanwhile.
            BaseException: the error of a database that was reached and cannot be used; or, if no database can be reached, the first error.
        """
        if len(self.slots) == 1:
            self._starting = False
            self._start_worker(self.slots[0])
            return
        for slot in self.slots:
            threading.Thread(
                target=self._start_until_up, args=(slot,), name=f"groundstate-reaching-{slot.store.label}", daemon=True
            ).start()
        end = self._clock.monotonic() + START_S
        with self._changed:
            self._changed.wait_for(lambda: self._is_start_decided(end), START_S)
            self._changed.wait_for(lambda: self._is_start_decided(end))
            self._starting = False
        if self.is_stopped():
            raise StoppedError(WHILE_IT_CAME_UP)
        standing = [slot.error for slot in self.slots if slot.error is not None and not db_errors.is_no_fault_of_record(slot.error)]
        if not standing and not self.workers:
            standing = [slot.error for slot in self.slots if slot.error is not None]
        if standing:
            self.stop(0)
            raise standing[0]

    def _is_start_decided(self, end: float) -> bool:
        """Whether `start` can return: each database was tried, a database cannot be used, or a worker is up and the monotonic time is past
        `end`.
        """
        if self.is_stopped():
            return True
        if any(slot.error is not None and not db_errors.is_no_fault_of_record(slot.error) for slot in self.slots):
            return True
        return all(slot.tried for slot in self.slots) or (self._clock.monotonic() >= end and bool(self.workers))

    def _start_until_up(self, slot: DatabaseWorkerSlot) -> None:
        wait = FIRST_S
        while not self.is_stopped():
            try:
                self._start_worker(slot)
            except BaseException as error:  # noqa: BLE001  # the error is raised by `start`, or logged
                with self._changed:
                    said, slot.error, slot.tried = self._starting, error, True
                    self._changed.notify_all()
                if self.is_stopped() or (said and not db_errors.is_no_fault_of_record(error)):
                    return  # `start` raises the error
                self._log_database_down(slot.store.label, wait, _describe_error(error))
                self._stopped.wait(wait)
                wait = min(wait * 2, LONGEST_S)
            else:
                return

    def _log_database_down(self, store: str, wait_s: float, error: str) -> None:
        words = "%s: nothing is carried out on this database; it is tried again in %.1f s: %s"
        log.warning(words, store, wait_s, error, extra={"event": "store_down", "store": store, "wait_s": wait_s, "error": error})

    def _start_worker(self, slot: DatabaseWorkerSlot) -> None:
        worker = self._make(slot.store, self._waits, slot.ended is not None)
        worker.when_ended = partial(self._replace_ended_worker, slot)
        with self._changed:
            if self.is_stopped():
                raise StoppedError(WHILE_IT_CAME_UP)
            slot.starting_worker = worker
        if len(self.slots) > 1:
            self._refuse_same_database(slot, worker)
        worker.start()
        self._when_up(slot.store, worker)
        worker.wait_until_registered(START_S)
        with self._changed:
            late, replaced = slot.tried and slot.ended is None, slot.ended is not None
            slot.worker, slot.starting_worker, slot.error, slot.ended, slot.tried = worker, None, None, None, True
            slot.since = self._clock.monotonic()
            over = self.is_stopped()
            self._changed.notify_all()
        if over:
            worker.stop(0)  # the app was stopped while the worker came up
        elif not self._waits:
            worker.begin_work()
        if late:
            words = "%s: the database can be reached, and its reactions are carried out"
            log.warning(words, slot.store.label, extra={"event": "store_reached", "store": slot.store.label})
        if replaced:
            words = "%s: a new worker replaces the one that ended"
            log.warning(words, slot.store.label, extra={"event": "worker_replaced", "store": slot.store.label})

    def _replace_ended_worker(self, slot: DatabaseWorkerSlot, worker: Worker) -> None:
        """Start another worker in place of one that ended by itself. This runs in the ended worker's own thread, since the operating system
        may refuse to start a new thread.
        """
        with self._changed:
            self._changed.wait_for(lambda: slot.worker is worker or slot.starting_worker is not worker or self.is_stopped())
            if slot.worker is not worker or self.is_stopped():
                return
            slot.worker, slot.error, slot.ended = None, worker.failure, worker.failure
            lasted = self._clock.monotonic() - slot.since
            slot.pause_s = FIRST_S if lasted > 2 * LONGEST_S else min(max(slot.pause_s * 2, FIRST_S), LONGEST_S)
        self._stopped.wait(slot.pause_s)
        self._start_until_up(slot)

    def _refuse_same_database(self, slot: DatabaseWorkerSlot, worker: Worker) -> None:
        try:
            worker.database.connect()
            with self._changed:
                self._admitted.add_and_compare(slot.store.label, worker.database, slot.sharded, slot.shards)
        except BaseException:
            worker.database.close()
            raise

    # ---- running and stopping -----------------------------------------------------------------------------------------------------
    def go(self) -> None:
        """Let all workers carry out reactions from now on, also those that come up later."""
        with self._changed:
            self._waits = False
            workers = self.workers
        for worker in workers:
            worker.begin_work()

    def wait_for_worker(self, slot: DatabaseWorkerSlot, timeout_s: float | None) -> Worker | None:
        """Return the worker of this database once it is up. Returns None if it was not up in time."""
        with self._changed:
            self._changed.wait_for(lambda: slot.is_up or self.is_stopped(), timeout_s)
            return slot.worker

    def stop(self, limit_s: float) -> StopResult:
        """Stop all workers at the same time, and wait up to `limit_s` seconds for each. Does nothing if all workers are stopped already.

        From now on nothing tries to reach a database that is down. A start in progress ends.
        """
        with self._changed:
            if self.is_stopped():
                return StopResult()
            self._stopped.set()
            self._changed.notify_all()
            workers = [worker for slot in self.slots if (worker := slot.worker or slot.starting_worker) is not None]
        if len(workers) == 1:
            return workers[0].stop(limit_s)
        ends: list[StopResult] = []
        threads = [threading.Thread(target=_stop_worker, args=(worker, limit_s, ends), name="groundstate-stopping") for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return StopResult(
            sum(one.in_doubt for one in ends),
            clean=self.failure is None and all(one.clean for one in ends),
            hangs=any(one.hangs for one in ends),
        )


def _stop_worker(worker: Worker, limit_s: float, ends: list[StopResult]) -> None:
    ends.append(worker.stop(limit_s))


def _describe_error(error: BaseException) -> str:
    return db_errors.error_in_one_line(error) if isinstance(error, DBAPIError) else describe_exception(error)
