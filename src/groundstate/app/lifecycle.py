"""The base class of `App`: it starts, stops and waits for the app's workers in this process, and sets up the app's databases."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy.sql.elements import SQLCoreOperations

from groundstate.app import initialise, wait_for
from groundstate.app.declared import databases_of, reactions_of, schedules_of, tables_of_other_stores
from groundstate.app.store import Store
from groundstate.app.transports import Chosen, HintPublishers
from groundstate.app.worker_group import DatabaseWorkerSlot, WorkerGroup
from groundstate.clock import SYSTEM_CLOCK, Clock
from groundstate.engine.health import WorkerHealth
from groundstate.engine.recover.startup import WHILE_IT_CAME_UP
from groundstate.engine.rows import reaction_registry
from groundstate.engine.sql import call_write_guard, transaction
from groundstate.engine.watch.shard_routing import DatabasePart, names_by_url_text
from groundstate.engine.watch.trace_hooks import Watch
from groundstate.engine.worker.options import Options
from groundstate.engine.worker.runtime import Runtime
from groundstate.engine.worker.shut_down import StopResult
from groundstate.engine.worker.worker import Worker
from groundstate.rules.acceptance import Accept, parse_acceptance, refuse_contradiction
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.store import connect
from groundstate.store.port import Database
from groundstate.store.same_database import StoreLocation
from groundstate.values.errors import DeclarationError, StoppedError

log = logging.getLogger("groundstate")
DRAIN = timedelta(seconds=10)  # how long calls in flight may take to end when the app is stopped
NOT_IDLE_SHOWN = 5  # the largest number of busy reactions, calls and databases that a timeout's message names
_one_start = threading.Lock()  # held while `start` checks that its app neither runs nor is being started


@dataclass(frozen=True)
class Remaining:
    """Counts of what remains when nothing more can be done now: attempts and records that wait for a time, or for a person."""

    in_doubt: int = 0
    failed: int = 0
    held: int = 0
    timers: int = 0  # number of records that become due later; for each reaction at most 100,000 are counted


class Running:
    """The methods of `App` that run the app in a process. This base class is not used by itself."""

    name: str
    stores: tuple[Store, ...]
    reactions: dict[str, ReactionSpec]
    schedules: dict[str, ScheduleSpec]
    transport: Chosen
    keys: bool
    _publishers: HintPublishers | None = None
    _group: WorkerGroup | None = None
    _starting_group: WorkerGroup | None = None  # the workers that a call of `start` is bringing up now; otherwise None
    _watch: Watch | None = None
    _clock: Clock = SYSTEM_CLOCK  # the clock that workers, hints and waits of the app use in this process
    _starting: bool = False
    _watched: Sequence[StoreLocation] = ()

    def check_declarations(self) -> None:
        """Check all declarations together, once everything is declared. Raises DeclarationError."""
        raise NotImplementedError

    # ---- in this process -------------------------------------------------------------------------------------------------------
    def start(
        self,
        *,
        accept: Accept = False,
        after_restore: bool = False,
        wait: bool = False,
        hints_only: bool = False,
        trust_transport: bool = False,
        leave_undeclared: bool = False,
    ) -> None:
        """Start the app's workers, in threads of their own.

        Returns once the database knows each reaction. From then on reactions find each new row, except for the reactions in `refused` and
        `waiting`. This does not wait for slow counts of rows. If one of several databases cannot be reached, work starts on the others; the
        unreachable database is tried again until it can be reached, and `down` names it.

        Args:
            accept: the new and changed reactions to start as well, given as in `init`. All other new and changed reactions are left out,
                and `refused` names them. A reaction that would make calls for rows that exist is left out if `accept` does not say whether
                these calls were made before.
            after_restore: says that a backup was restored: calls that were made after the backup are in doubt.
            wait: start the workers, but carry out nothing until `go`.
            hints_only: carry out nothing in this process, but send hints about commits of this process to workers elsewhere, and let hints
                of these workers wake `wait_for`.
            trust_transport: use a transport that does not show whether it persists messages.
            leave_undeclared: for a rollback: start although there are open attempts of reactions that this version of the application does
                not declare, and leave these attempts as they are. Otherwise the start is refused.

        Raises:
            StoppedError: the app runs already, or another thread stopped it during the start.
            DeclarationError, StoreRefusedError, NotInitialisedError, TransportRefusedError: the app cannot start; the message names the
                cure.
        """
        with _one_start:
            if self._group is not None or self._starting:
                raise StoppedError(f"{self!r} runs in this process already")
            self._starting = True
        try:
            options = Options(accept=accept, after_restore=after_restore, wait_for_go=wait, leave_undeclared=leave_undeclared)
            self._start(options, hints_only=hints_only, trusted=trust_transport)
        finally:
            self._starting = False

    def _start(self, options: Options, *, hints_only: bool, trusted: bool) -> None:
        self.check_declarations()
        if not hints_only and self.declares_nothing is not None:
            log.warning("%s", self.declares_nothing, extra={"event": "nothing_declared", "app": self.name})
        # All databases are watched, also those whose worker is not up yet: a call of one store must not write to another store.
        self._watched = [call_write_guard.guard_store(self.name, part.settings().url) for part in databases_of(self)]
        told = {part: reactions_of(self, part) for part in databases_of(self)}
        names = names_by_url_text((part.name, part.settings().url) for part in databases_of(self))
        publishers = HintPublishers(self.name, told, names, self.transport, with_keys=self.keys, clock=self._clock)
        group = WorkerGroup(
            [] if hints_only else self._make_slots(),
            partial(self._make_worker, options, publishers, names),
            publishers.pass_hints_to,
            wait=options.wait_for_go,
            clock=self._clock,
        )
        self._starting_group = group
        try:
            publishers.start(trusted=trusted)
            group.start()
            self._group, self._publishers = group, publishers
            if group.is_stopped():  # `stop` may have come before `self._group` was set
                raise StoppedError(WHILE_IT_CAME_UP)
        except BaseException:
            self._group = self._publishers = None
            group.stop(0)
            publishers.stop()
            raise
        finally:
            self._starting_group = None

    @property
    def _has_workers(self) -> bool:
        """Whether workers run, or are coming up, in this process. Such workers know only what was declared before they started."""
        group = self._group or self._starting_group
        return group is not None and bool(group.slots)

    @property
    def declares_nothing(self) -> str | None:
        """A sentence to log if the app declares neither a reaction nor a schedule, and so carries out nothing. Otherwise it is None."""
        if self.reactions or self.schedules:
            return None
        return f"app {self.name} declares no reaction: is the module that declares them imported?"

    def _make_slots(self) -> list[DatabaseWorkerSlot]:
        return [
            DatabaseWorkerSlot(
                part,
                reactions_of(self, part) if len(store.databases) > 1 else (),
                [one.label for one in store.databases],
                [spec.name for spec in reactions_of(self, part)],
            )
            for store in self.stores
            for part in store.databases
        ]

    def _make_worker(
        self, options: Options, publishers: HintPublishers, names: Mapping[str, str], store: Store, wait: bool, again: bool
    ) -> Worker:
        """Return a worker for one database, not started yet.

        again: whether the new worker replaces one that ended. The ended worker has carried out `after_restore`, so the new one does not.
        """
        opened = connect.open_store(store.settings())
        transaction.refuse_tables_of_other_stores(opened[0], tables_of_other_stores(self, store))
        return Worker(
            self.name,
            reactions_of(self, store),
            opened,
            schedules=schedules_of(self, store),
            options=replace(options, wait_for_go=wait, after_restore=options.after_restore and not again),
            redact=store.redact,
            publisher=publishers.publisher_of(store),
            watch=self._watch,
            part=DatabasePart(store.name or "", names, several=len(databases_of(self)) > 1),
            runtime=Runtime(clock=self._clock),
        )

    def set_watch(self, watch: Watch | None) -> None:
        """Set the object whose methods are called for each call and transaction, from the app's next start on. None removes the object.

        `groundstate.telemetry.traces.trace` uses this.
        """
        self._watch = watch

    def worker_health(self) -> list[WorkerHealth]:
        """Return the health of each store's worker, as its threads last reported it. Runs no query.

        The list is empty if no worker runs in this process.
        """
        return [worker.worker_health() for worker in self._workers or ()]

    @property
    def down(self) -> dict[str, str]:
        """The databases on which nothing is carried out now, by name, each with the reason. groundstate tries to use each of them again,
        until that succeeds.

        Raises StoppedError if the app does not run.
        """
        if self._group is None:
            self._running_workers()
        return {} if self._group is None else self._group.down

    def go(self) -> None:
        """Let the workers that were started by `start(wait=True)` carry out reactions from now on. Raises StoppedError if the app does not
        run.
        """
        self._running_workers()
        if self._group is not None:
            self._group.go()

    def stop(self, limit: timedelta = DRAIN) -> StopResult:
        """Stop the app: begin nothing new, and wait up to `limit` for calls in flight to end. Does nothing if the app is stopped already.

        Calls that have not ended within `limit` are in doubt.

        If another thread is starting the app, that start ends at once with StoppedError.

        Args:
            limit: how long calls in flight may take to end.

        Returns:
            The number of calls that are left in doubt, and whether all workers ended cleanly.
        """
        limit_s = _to_seconds("limit", limit)
        group, self._group = self._group or self._starting_group, None
        ended = StopResult()
        if group is not None:
            ended = group.stop(limit_s)
            self._forget_group(group)  # a start in another thread may have set `self._group` after it was read above
        publishers, self._publishers = self._publishers, None
        if publishers is not None:
            publishers.stop()
        for database in self.__dict__.pop("_opened", {}).values():
            database.close()
        return ended

    def _forget_group(self, group: WorkerGroup) -> None:
        if self._group is group:
            self._group = None

    @property
    def transports(self) -> dict[str, bool]:
        """For each transport in use, by name: whether hints can be sent and received now. Raises StoppedError if the app does not run."""
        self._running_workers()
        return {} if self._publishers is None else self._publishers.find_usable_transports

    @property
    def refused(self) -> list[reaction_registry.UnacceptedReaction]:
        """The new and changed reactions that were not started because their conditions hold for rows that were written before the start.

        Raises StoppedError if the app does not run.
        """
        return [newcomer for worker in self._running_workers() for newcomer in worker.refused_reactions]

    @property
    def waiting(self) -> dict[str, str]:
        """The reactions that are not carried out now, by name, each with the reason.

        The reaction's database is down or in trouble, or the reaction waits for a migration or for a person. Raises StoppedError if the app
        does not run.
        """
        self._running_workers()
        return {} if self._group is None else self._group.waiting

    @property
    def failure(self) -> BaseException | None:
        """The error that ended a worker which has not been replaced yet: a bug of groundstate, or a fault of the machine.

        It is None if all workers run. Raises StoppedError if the app does not run.
        """
        self._running_workers()
        return None if self._group is None else self._group.failure

    @property
    def expired(self) -> dict[str, int]:
        """For each reaction, by name: how many records were not carried out before `valid_for` had passed, counted since the start. Raises
        StoppedError if the app does not run.
        """
        total: Counter[str] = Counter()
        for worker in self._running_workers():
            total.update(worker.counts_of_expired)
        return dict(total)

    @asynccontextmanager
    async def running(
        self,
        *,
        accept: Accept = False,
        hints_only: bool = False,
        trust_transport: bool = False,
        leave_undeclared: bool = False,
        limit: timedelta = DRAIN,
    ) -> AsyncIterator[None]:
        """Run the app while the `async with` block runs, as for the lifespan of a web application. The app works in its own threads, never
        on the caller's event loop.

        Args:
            accept: the new and changed reactions to start as well, as for `start`.
            hints_only: carry out nothing in this process, and only send and receive hints, as for `start`.
            trust_transport: use a transport that does not show whether it persists messages.
            leave_undeclared: start although there are open attempts of undeclared reactions, as for `start`.
            limit: how long calls in flight may take to end when the block ends.
        """
        _to_seconds("limit", limit)
        wait_for.running_asyncio_loop("app.running()")
        begin = partial(
            self.start, accept=accept, hints_only=hints_only, trust_transport=trust_transport, leave_undeclared=leave_undeclared
        )
        start = wait_for.run_in_own_thread_pool(begin)
        try:
            await asyncio.shield(start)
        except asyncio.CancelledError:
            await wait_for.run_in_own_thread_pool(partial(self.stop, timedelta()))
            await asyncio.wait([start])
            if start.exception() is None:  # the stop above came too early or too late, so the app has started: stop it again
                await wait_for.run_in_own_thread_pool(partial(self.stop, timedelta()))
            raise
        try:
            yield
        finally:
            await wait_for.run_in_own_thread_pool(partial(self.stop, limit))

    def run_until_idle(self, timeout: timedelta | None = None) -> Remaining:
        """Carry out everything that can be done now, and return what remains: for scripts and tests.

        If the app does not run, it is started, and stopped again at the end. If a database is down, this waits until the database is up
        again, since work may be left in it.

        Args:
            timeout: how long this may take; None for no limit.

        Raises:
            TimeoutError: something was still to be done after the timeout. The message names the busy reactions and calls, and says which
                databases are down and why.
        """
        timeout_s = None if timeout is None else _to_seconds("timeout", timeout)
        mine = self._group is None
        if mine:
            self.start()
        try:
            if self._group is not None and not self._group.slots:
                raise StoppedError(f"{self!r} runs for hints alone in this process (hints_only), and carries nothing out here")
            end = None if timeout_s is None else self._clock.monotonic() + timeout_s
            group = self._group
            for slot in () if group is None else sorted(group.slots, key=lambda slot: not slot.is_up):
                left = None if end is None else end - self._clock.monotonic()
                worker = None if group is None else group.wait_for_worker(slot, left)
                if worker is None or not worker.wait_until_idle(None if end is None else end - self._clock.monotonic()):
                    raise TimeoutError(f"{self!r} was not quiet within {timeout}: {self._describe_not_idle(worker)}")
            rests = [worker.count_remaining() for worker in self._running_workers()]
            return Remaining(*(sum(counts) for counts in zip(*map(astuple, rests), strict=True)))
        finally:
            if mine:
                self.stop()

    def _describe_not_idle(self, worker: Worker | None) -> str:
        """Return, for an error message, why the worker is not idle, and which databases are down; at most `NOT_IDLE_SHOWN` reasons."""
        found = [*([] if worker is None else worker.reasons_not_idle), *(f"{label} is down: {why}" for label, why in self.down.items())]
        more = len(found) - NOT_IDLE_SHOWN
        return "; ".join([*found[:NOT_IDLE_SHOWN], *([f"and {more} more"] if more > 0 else [])])

    def wait_for(
        self, record: type, key: object, *clauses: SQLCoreOperations[bool], timeout: timedelta, shard: str | None = None
    ) -> Coroutine[Any, Any, bool]:
        """Wait until the clauses hold for one record, or until the timeout: for web requests. A SELECT decides; hints only make it run
        sooner.

        Await the returned coroutine. If the arguments are wrong, the call of `wait_for` itself raises an error, before anything is awaited.
        `wait_for` also checks the source code of its call.

        Args:
            record: the mapped class of the record.
            key: the primary key, or its text, as in a URL; if the key has several columns, a tuple or a list of them, or the text of a JSON
                array.
            clauses: SQL conditions on the record, all of which must hold; they are checked like clauses of `App.on`. Without clauses, this
                waits until the record exists.
            timeout: how long to wait.
            shard: the name of the shard that has the record. If it is left out, all shards are queried.

        Returns:
            Whether the clauses hold. If a database cannot be reached, the query is tried again, and its last error is raised after the
            timeout.

        Raises:
            DeclarationError: `key` is no primary key of the record, a clause does not use the record's columns, or no event loop of asyncio
                runs here, as under trio.
        """
        timeout_s = _to_seconds("timeout", timeout)
        statement = wait_for.make_statement(record, key, clauses)
        asked = [
            wait_for.PolledDatabase(partial(self._open_database, part), statement) for part in self._databases_of_record(record, shard)
        ]
        return wait_for.wait_for(asked, self._publishers, timeout_s, self._clock)

    # ---- setting up --------------------------------------------------------------------------------------------------------------
    def init(  # the parameters are the options of `groundstate init`
        self,
        *,
        tables: bool = False,
        accept: Accept = (),
        baseline: Sequence[str] = (),
        after_restore: bool = False,
        new_database: bool = False,
        progress: Callable[[str, int], None] | None = None,
    ) -> list[str]:
        """Create groundstate's four tables where they are missing, and start reactions on rows that exist. You may call this again at any
        time.

        Args:
            tables: also create missing tables of your own application. This is meant for a first try; use migrations later.
            accept: the reactions to start on rows that exist: their names, or True for all. If a reaction would make calls for such rows,
                say whether these calls were made before: 'NAME=call' (surely never made) or 'NAME=doubt' (each row's attempt is in doubt,
                and is settled by its policy). 'call' or 'doubt' without a name applies to all reactions. A mapping of names to 'call' or
                'doubt' is also accepted.
            baseline: names of reactions that leave out the rows that match now and start with new rows, and of schedules that start now and
                leave out earlier ticks.
            after_restore: say True if groundstate's tables vanished, or if a backup was restored. Each call that would be made for an
                existing row then starts in doubt, and so does each later call until `groundstate trust` is run.
            new_database: say True if this database is new. The witness files (counts of begun calls) that were found then belong to another
                database: they are erased, and each erased file is logged.
            progress: a function that is called while attempts are written for `baseline` and 'doubt', with the name of a reaction and the
                number of attempts that were written for it so far.

        Returns:
            The names of the tables that were created. If there are several databases, each name is preceded by its database's label.

        Raises:
            StoreRefusedError: groundstate's tables vanished, and neither `after_restore` nor `new_database` was given.
            StateRefusedError: accepted reactions would make calls for rows that exist, and nothing was said about these calls.
            DeclarationError: there is no reaction of a given name, or what was said of it is neither 'call' nor 'doubt'.
        """
        self.check_declarations()
        if after_restore and new_database:
            raise DeclarationError("after_restore and new_database contradict each other: give one")
        known = {**self.reactions, **self.schedules}
        said = parse_acceptance(accept, known)
        for name in (*said.named, *baseline):
            if name not in known:
                raise DeclarationError(
                    f"App({self.name!r}) has no reaction {name!r}, and no schedule of that name: there are {', '.join(sorted(known))}"
                )
        refuse_contradiction(said, baseline)
        places = [initialise.DatabaseToSetUp(store, reactions_of(self, store), schedules_of(self, store)) for store in databases_of(self)]
        return initialise.set_up_databases(
            self.name, places, initialise.InitOptions(tables, said, baseline, after_restore, new_database, progress)
        )

    @property
    def _workers(self) -> list[Worker] | None:
        """The workers that are up. It is None if the app does not run in this process."""
        return None if self._group is None else self._group.workers

    def _running_workers(self) -> list[Worker]:
        if self._workers is None:
            raise StoppedError(f"{self!r} does not run in this process: start it with app.start(), app.running() or `groundstate run`")
        return self._workers

    def _databases_of_record(self, record: type, shard: str | None) -> Sequence[Store]:
        """Return the databases in which a record of this class may be."""
        for store in self.stores:
            if store.owns_class(record):
                return store.databases if shard is None else [store.shard(shard)]
        raise DeclarationError(f"{record.__name__} is in no store of {self!r}")

    def _open_database(self, part: Store) -> Database:
        """Return the open database of the running worker. If no worker runs, the first call opens the database, which stays open until
        `stop`.
        """
        for slot in self._group.slots if self._group is not None else ():
            if slot.store is part and slot.worker is not None:
                return slot.worker.database
        opened: dict[Store, Database] = self.__dict__.setdefault("_opened", {})
        if part not in opened:
            database = connect.open_store(part.settings())[0]
            database.connect()
            if opened.setdefault(part, database) is not database:
                database.close()  # another thread has opened this database meanwhile
        return opened[part]


def _to_seconds(name: str, given: timedelta) -> float:
    if not isinstance(given, timedelta):
        raise DeclarationError(f"{name}={given!r}: give a timedelta, for example timedelta(seconds=30)")
    return given.total_seconds()
