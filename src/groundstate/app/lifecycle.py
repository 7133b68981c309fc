"""Starts, stops and awaits an app's workers in this process. Workers, web applications and scripts use the same engine."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy.sql.elements import SQLCoreOperations

from groundstate.app import initialise, wait_for
from groundstate.app.declared import databases_of, reactions_of, schedules_of, tables_elsewhere
from groundstate.app.store import Store
from groundstate.app.transports import Chosen, HintPublishers
from groundstate.app.worker_group import DatabaseWorkerSlot, WorkerGroup
from groundstate.engine.health import WorkerHealth
from groundstate.engine.recover.startup import WHILE_IT_CAME_UP
from groundstate.engine.rows import reaction_registry
from groundstate.engine.sql import call_write_guard, transaction
from groundstate.engine.watch.shard_routing import Part, names_by_place
from groundstate.engine.watch.trace_hooks import Watch
from groundstate.engine.worker import Ended, Options, Worker
from groundstate.rules.acceptance import Accept, acceptance, refuse_contradiction
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.store import connect
from groundstate.store.port import Database
from groundstate.store.same_database import StoreLocation
from groundstate.values.errors import DeclarationError, StoppedError

log = logging.getLogger("groundstate")
DRAIN = timedelta(seconds=10)  # how long calls in flight may take to end at a stop
NOT_IDLE_SHOWN = 5  # how many of the things that were not idle an error names
_one_start = threading.Lock()  # guards the check whether an app runs, or starts, already


@dataclass(frozen=True)
class Rested:
    """The counts of what remains when nothing can be done now: attempts and records that wait for their time, or for a person."""

    in_doubt: int = 0
    failed: int = 0
    held: int = 0
    timers: int = 0  # records that become due later; for each reaction at most 100,000 are counted


class Running:
    """The part of `App` that runs it in a process. It is not used by itself."""

    name: str
    stores: tuple[Store, ...]
    reactions: dict[str, ReactionSpec]
    schedules: dict[str, ScheduleSpec]
    transport: Chosen
    keys: bool
    _publishers: HintPublishers | None = None
    _crew: WorkerGroup | None = None
    _coming: WorkerGroup | None = None  # the crew that a start is bringing up
    _watch: Watch | None = None
    _starting: bool = False
    _watched: Sequence[StoreLocation] = ()

    def check_declarations(self) -> None:
        """Check what can be known only when everything is declared. Raises DeclarationError."""
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

        Returns once each reaction is registered: a row that is written after this is taken by its reaction, unless the reaction is in
        `refused` or in `waiting`. It does not wait for counts of rows that take long. If the app has several databases, one that cannot be
        reached does not keep the others from starting: it is tried again until it can be reached, and `down` names it.

        Args:
            accept: the new and changed reactions to start as well, given as in `init`. The others are left out, and `refused` names them. A
                reaction that would make calls for rows that exist is left out if `accept` does not say what is known of these calls.
            after_restore: a backup was restored: calls of the lost time are in doubt.
            wait: start the workers, but carry out nothing until `go`.
            hints_only: carry out nothing in this process, but send hints about its commits to workers elsewhere; `wait_for` gets their
                hints.
            trust_transport: use a transport that does not show whether it persists messages.
            leave_undeclared: leave open attempts of reactions that this code does not declare as they are, for a rollback. Otherwise such
                attempts refuse the start.

        Raises:
            StoppedError: the app runs already, or another thread stopped it during the start.
            DeclarationError, StoreRefusedError, NotInitialisedError, TransportRefusedError: the app cannot start; the message names the
                cure.
        """
        with _one_start:
            if self._crew is not None or self._starting:
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
        # Also databases without a worker here, or whose worker is not up yet: a call of one store must not write to another.
        self._watched = [call_write_guard.watch(self.name, part.settings().url) for part in databases_of(self)]
        told = {part: reactions_of(self, part) for part in databases_of(self)}
        names = names_by_place((part.name, part.settings().url) for part in databases_of(self))
        publishers = HintPublishers(self.name, told, names, self.transport, with_keys=self.keys)
        crew = WorkerGroup(
            [] if hints_only else self._posts(),
            partial(self._worker, options, publishers, names),
            publishers.serve,
            wait=options.wait_for_go,
        )
        self._coming = crew
        try:
            publishers.start(trusted=trusted)
            crew.start()
            self._crew, self._publishers = crew, publishers
            if crew.is_over():  # `stop` may have come before `self._crew` was set
                raise StoppedError(WHILE_IT_CAME_UP)
        except BaseException:
            self._crew = self._publishers = None
            crew.stop(0)
            publishers.stop()
            raise
        finally:
            self._coming = None

    @property
    def _carries_out(self) -> bool:
        """Whether workers run, or are coming up, in this process. Such workers know only what was declared before they started."""
        crew = self._crew or self._coming
        return crew is not None and bool(crew.posts)

    @property
    def declares_nothing(self) -> str | None:
        """The reason why the app will never carry out anything, if it declares no reaction and no schedule. It is None otherwise."""
        if self.reactions or self.schedules:
            return None
        return f"app {self.name} declares no reaction: is the module that declares them imported?"

    def _posts(self) -> list[DatabaseWorkerSlot]:
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

    def _worker(
        self, options: Options, publishers: HintPublishers, names: Mapping[str, str], store: Store, wait: bool, again: bool
    ) -> Worker:
        """Return a worker for one database, not started yet.

        again: whether it replaces another worker, which has already done what `after_restore` asks for.
        """
        opened = connect.open_store(store.settings())
        transaction.refuse_tables_of_other_stores(opened[0], tables_elsewhere(self, store))
        return Worker(
            self.name,
            reactions_of(self, store),
            opened,
            schedules=schedules_of(self, store),
            options=replace(options, wait_for_go=wait, after_restore=options.after_restore and not again),
            redact=store.redact,
            publisher=publishers.of(store),
            watch=self._watch,
            part=Part(store.name or "", names, several=len(databases_of(self)) > 1),
        )

    def observe(self, watch: Watch | None) -> None:
        """Set the observer that traces the work, from the next start on; None removes it.

        `groundstate.telemetry.traces.trace` makes such an observer and sets it.
        """
        self._watch = watch

    def worker_health(self) -> list[WorkerHealth]:
        """Return the health of each store's worker, as its threads last reported it. Runs no query.

        The list is empty if no worker runs in this process.
        """
        return [worker.worker_health() for worker in self._workers or ()]

    @property
    def down(self) -> dict[str, str]:
        """The databases on which nothing is carried out now, each with the reason. They are tried again.

        Raises StoppedError if the app does not run.
        """
        if self._crew is None:
            self._running_workers()
        return {} if self._crew is None else self._crew.down

    def go(self) -> None:
        """Let the workers that were started by `start(wait=True)` carry out from now on. Raises StoppedError if the app does not run."""
        self._running_workers()
        if self._crew is not None:
            self._crew.go()

    def stop(self, limit: timedelta = DRAIN) -> Ended:
        """Stop the app: begin nothing new, let calls end within the limit, and leave the rest in doubt. It is idempotent.

        If another thread is starting the app, that start ends at once with StoppedError.

        Args:
            limit: how long calls in flight may take to end.

        Returns:
            What was left behind, such as the number of calls in doubt.
        """
        limit_s = _seconds("limit", limit)
        crew, self._crew = self._crew or self._coming, None
        ended = Ended()
        if crew is not None:
            ended = crew.stop(limit_s)
            self._forget(crew)  # a start in another thread may have set `self._crew` after it was read above
        publishers, self._publishers = self._publishers, None
        if publishers is not None:
            publishers.stop()
        for database in self.__dict__.pop("_opened", {}).values():
            database.close()
        return ended

    def _forget(self, crew: WorkerGroup) -> None:
        if self._crew is crew:
            self._crew = None

    @property
    def transports(self) -> dict[str, bool]:
        """Whether hints can be sent and received now, by the name of each transport in use. Raises StoppedError if the app does not run."""
        self._running_workers()
        return {} if self._publishers is None else self._publishers.up

    @property
    def refused(self) -> list[reaction_registry.Newcomer]:
        """The new and changed reactions that were not started because they match rows that existed before.

        Raises StoppedError if the app does not run.
        """
        return [newcomer for worker in self._running_workers() for newcomer in worker.refused]

    @property
    def waiting(self) -> dict[str, str]:
        """The reactions that are not carried out now, by name, each with the reason.

        The reaction's database is down or in trouble, or the reaction waits for a migration or for a person. Raises StoppedError if the app
        does not run.
        """
        self._running_workers()
        return {} if self._crew is None else self._crew.waiting

    @property
    def failure(self) -> BaseException | None:
        """The error that ended a worker which has not been replaced yet: a bug of groundstate, or a fault of the machine.

        It is None if all workers run. Raises StoppedError if the app does not run.
        """
        self._running_workers()
        return None if self._crew is None else self._crew.failure

    @property
    def expired(self) -> dict[str, int]:
        """How many records of each reaction were too late, by `valid_for`, since the start. Raises StoppedError if the app does not run."""
        total: Counter[str] = Counter()
        for worker in self._running_workers():
            total.update(worker.expired)
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
        """Run the app while the block runs, for the lifespan of a web application. It works in threads of its own, never on this event
        loop.

        Args:
            accept: the new and changed reactions to start as well, as for `start`.
            hints_only: leave the work to workers elsewhere, send them hints about commits of this process, and let `wait_for` get their
                hints.
            trust_transport: use a transport that does not show whether it persists messages.
            leave_undeclared: start beside open attempts of reactions that this code does not declare.
            limit: how long calls in flight may take to end when the block ends.
        """
        _seconds("limit", limit)
        wait_for.asyncio_loop("app.running()")
        begin = partial(
            self.start, accept=accept, hints_only=hints_only, trust_transport=trust_transport, leave_undeclared=leave_undeclared
        )
        start = wait_for.run_in_own_thread_pool(begin)
        try:
            await asyncio.shield(start)
        except asyncio.CancelledError:
            await wait_for.run_in_own_thread_pool(partial(self.stop, timedelta()))
            await asyncio.wait([start])
            if start.exception() is None:  # the app runs: the stop above came too early or too late to end its start
                await wait_for.run_in_own_thread_pool(partial(self.stop, timedelta()))
            raise
        try:
            yield
        finally:
            await wait_for.run_in_own_thread_pool(partial(self.stop, limit))

    def run_until_idle(self, timeout: timedelta | None = None) -> Rested:
        """Carry out everything that can be done now, and return what remains: for scripts and tests.

        If the app does not run, it is started, and stopped again at the end. A database that is down is waited for, since it is not known
        what is left there.

        Args:
            timeout: how long this may take; None for no limit.

        Raises:
            TimeoutError: something was still to be done after the timeout; the message names the reactions, calls and databases, and why.
        """
        timeout_s = None if timeout is None else _seconds("timeout", timeout)
        mine = self._crew is None
        if mine:
            self.start()
        try:
            if self._crew is not None and not self._crew.posts:
                raise StoppedError(f"{self!r} runs for hints alone in this process (hints_only), and carries nothing out here")
            end = None if timeout_s is None else time.monotonic() + timeout_s
            crew = self._crew
            for post in () if crew is None else sorted(crew.posts, key=lambda post: not post.up):
                left = None if end is None else end - time.monotonic()
                worker = None if crew is None else crew.wait_for(post, left)
                if worker is None or not worker.until_idle(None if end is None else end - time.monotonic()):
                    raise TimeoutError(f"{self!r} was not quiet within {timeout}: {self._not_idle(worker)}")
            rests = [worker.rest() for worker in self._running_workers()]
            return Rested(*(sum(counts) for counts in zip(*map(astuple, rests), strict=True)))
        finally:
            if mine:
                self.stop()

    def _not_idle(self, worker: Worker | None) -> str:
        """Return a few of the things for which this worker, or a database that is down, was not idle."""
        found = [*([] if worker is None else worker.not_idle), *(f"{label} is down: {why}" for label, why in self.down.items())]
        more = len(found) - NOT_IDLE_SHOWN
        return "; ".join([*found[:NOT_IDLE_SHOWN], *([f"and {more} more"] if more > 0 else [])])

    def wait_for(
        self, record: type, key: object, *clauses: SQLCoreOperations[bool], timeout: timedelta, shard: str | None = None
    ) -> Coroutine[Any, Any, bool]:
        """Wait until the clauses hold for one record, or until the timeout: for web requests. Hints wake it, and a SELECT decides.

        It is awaited. What is wrong with its arguments is raised where it is called, since the source of that call is read.

        Args:
            record: the mapped class of the record.
            key: the primary key, or its text, as in a URL; if the key has several columns, a tuple or a list of them, or the text of a JSON
                array.
            clauses: SQL conditions on the record, all of which must hold, and of which the same is refused as by `App.on`. Without any,
                it waits until the record exists.
            timeout: how long to wait.
            shard: the name of the shard that has the record. If it is left out, all shards are queried.

        Returns:
            Whether the clauses hold. A database that cannot be reached is tried again, and its error is raised after the timeout.

        Raises:
            DeclarationError: `key` is no primary key of the record, a clause asks nothing of it, or no event loop of asyncio runs here, as
                under trio.
        """
        timeout_s = _seconds("timeout", timeout)
        statement = wait_for.statement(record, key, clauses)
        asked = [wait_for.PolledDatabase(partial(self._open, part), statement) for part in self._parts_of(record, shard)]
        return wait_for.wait_for(asked, self._publishers, timeout_s)

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
        """Create groundstate's four tables where they are missing, and start reactions on rows that exist. It is idempotent.

        Args:
            tables: create missing tables of your own too: for a first try; use migrations later.
            accept: the reactions to start on rows that exist: their names, or True for all. If one of them would make a call for such rows,
                say what is known of these calls: 'NAME=call' (surely never made) or 'NAME=doubt' (each row's attempt is in doubt, and is
                settled by its policy); 'call' or 'doubt' alone for all; or a mapping of names to these.
            baseline: reactions that leave out the rows that match now and start with new ones, and schedules that start with now.
            after_restore: groundstate's tables vanished, or a backup was restored: each row for which a call would be made is in doubt, and
                so is each row that is taken from now on, until `trust`.
            new_database: this database is new, and witness files of begun calls that exist belong to another one: they are erased, and
                logged.
            progress: called with the name of a reaction and the number of its rows written so far, for `baseline` and for 'doubt'.

        Returns:
            The names of what was created, each with its database's name if there are several.

        Raises:
            StoreRefusedError: groundstate's tables vanished, and neither `after_restore` nor `new_database` was given.
            StateRefusedError: accepted reactions would make calls for rows that exist, and nothing was said about these calls.
            DeclarationError: there is no reaction of a given name, or what was said of it is neither 'call' nor 'doubt'.
        """
        self.check_declarations()
        if after_restore and new_database:
            raise DeclarationError("after_restore and new_database contradict each other: say one")
        known = {**self.reactions, **self.schedules}
        said = acceptance(accept, known)
        for name in (*said.named, *baseline):
            if name not in known:
                raise DeclarationError(
                    f"App({self.name!r}) has no reaction {name!r}, and no schedule of that name: there are {', '.join(sorted(known))}"
                )
        refuse_contradiction(said, baseline)
        places = [initialise.Place(store, reactions_of(self, store), schedules_of(self, store)) for store in databases_of(self)]
        return initialise.set_up_databases(
            self.name, places, initialise.InitOptions(tables, said, baseline, after_restore, new_database, progress)
        )

    @property
    def _workers(self) -> list[Worker] | None:
        """The workers that are up. It is None if the app does not run in this process."""
        return None if self._crew is None else self._crew.workers

    def _running_workers(self) -> list[Worker]:
        if self._workers is None:
            raise StoppedError(f"{self!r} does not run in this process: start it with app.start(), app.running() or `groundstate run`")
        return self._workers

    def _parts_of(self, record: type, shard: str | None) -> Sequence[Store]:
        """Return the databases in which the record may be."""
        for store in self.stores:
            if store.owns_class(record):
                return store.databases if shard is None else [store.shard(shard)]
        raise DeclarationError(f"{record.__name__} is in no store of {self!r}")

    def _open(self, part: Store) -> Database:
        """Return a connected database: that of the running worker, or else one that is opened here and kept until `stop`."""
        for post in self._crew.posts if self._crew is not None else ():
            if post.store is part and post.worker is not None:
                return post.worker.database
        opened: dict[Store, Database] = self.__dict__.setdefault("_opened", {})
        if part not in opened:
            database = connect.open_store(part.settings())[0]
            database.connect()
            if opened.setdefault(part, database) is not database:
                database.close()  # another thread has opened this database meanwhile
        return opened[part]


def _seconds(name: str, given: timedelta) -> float:
    if not isinstance(given, timedelta):
        raise DeclarationError(f"{name}={given!r}: give a timedelta, for example timedelta(seconds=30)")
    return given.total_seconds()
