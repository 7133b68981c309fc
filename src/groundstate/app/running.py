"""An app in a process: starting, stopping, waiting until all is quiet. The same engine for a worker, a web application and a script."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass, replace
from datetime import timedelta
from functools import partial

from sqlalchemy import MetaData
from sqlalchemy.sql.elements import SQLCoreOperations

from groundstate.app import founding, waiting
from groundstate.app.crew import Crew, Post
from groundstate.app.store import Store
from groundstate.app.telling import Chosen, Messengers
from groundstate.engine import inside_call, registry, transaction
from groundstate.engine.part import Part, names_by_place
from groundstate.engine.succession import WHILE_IT_CAME_UP
from groundstate.engine.vitals import Vitals
from groundstate.engine.watching import Watch
from groundstate.engine.worker import Ended, Options, Worker
from groundstate.rules.acceptance import Accept, acceptance
from groundstate.rules.reaction import ReactionSpec
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store import opening
from groundstate.store.port import Database
from groundstate.store.same_database import Place
from groundstate.values.errors import DeclarationError, Stopped

log = logging.getLogger("groundstate")
DRAIN = timedelta(seconds=10)
_one_start = threading.Lock()  # held for a look at whether an app runs


@dataclass(frozen=True)
class Rested:
    """What remains when nothing can be done now: what waits for its time, and what for a person."""

    in_doubt: int = 0
    failed: int = 0
    held: int = 0
    timers: int = 0  # records that are still to become due; at most 100,000 are counted for each reaction


class Running:
    """The part of an App that carries out. Not used by itself."""

    name: str
    stores: tuple[Store, ...]
    reactions: dict[str, ReactionSpec]
    schedules: dict[str, ScheduleSpec]
    transport: Chosen
    keys: bool
    _messengers: Messengers | None = None
    _crew: Crew | None = None
    _coming: Crew | None = None  # that is to be it
    _watch: Watch | None = None
    _starting: bool = False
    _watched: Sequence[Place] = ()

    def check_declarations(self) -> None:
        """Checks what can be known only when everything is declared. Raises DeclarationError."""
        raise NotImplementedError

    # ---- in this process -------------------------------------------------------------------------------------------------------
    def start(
        self,
        *,
        accept: Accept = False,
        after_restore: bool = False,
        held: bool = False,
        hints_only: bool = False,
        trust_transport: bool = False,
        leave_undeclared: bool = False,
    ) -> None:
        """Starts carrying out, in threads of its own. Returns once each reaction is registered, so that rows which are written from then
        on are its rows, or refused, or waits for something: see `waiting`. What takes long to count is not waited for.

        Of several databases one that cannot be reached keeps no other from its work: it is tried again until it can be, see `down`.

        accept: starts new and changed reactions too (else they are left out, and `refused` names them): which, as for `init`. One that
        would make calls for rows that are there is left out where nothing was said of those. after_restore: a backup was put back: calls of
        the lost time are in doubt. held: comes up, and waits for `go`. hints_only: carries nothing out, but tells the workers
        elsewhere what this process commits, and `until` hears of what they do. trust_transport: a transport that does not let it be seen
        whether it persists is used all the same. leave_undeclared: open attempts of reactions that this code does not declare, which else
        refuse the start, stay as they are: for a rollback.

        Raises:
            Stopped: it runs already, or another thread stopped it meanwhile.
            DeclarationError, StoreRefused, NotInitialised, TransportRefused: what stands in the way, with the cure.
        """
        with _one_start:
            if self._crew is not None or self._starting:
                raise Stopped(f"{self!r} runs in this process already")
            self._starting = True
        try:
            options = Options(accept=accept, after_restore=after_restore, held=held, leave_undeclared=leave_undeclared)
            self._start(options, hints_only=hints_only, trusted=trust_transport)
        finally:
            self._starting = False

    def _start(self, options: Options, *, hints_only: bool, trusted: bool) -> None:
        self.check_declarations()
        if not hints_only and self.declares_nothing is not None:
            log.warning("%s", self.declares_nothing, extra={"event": "nothing_declared", "app": self.name})
        # Those too of which no worker runs here, or whose worker is not up yet: a call of one store may not write to another.
        self._watched = [inside_call.watch(self.name, part.settings().url) for part in self.parts]
        told = {part: self.reactions_of(part) for part in self.parts}
        names = names_by_place((part.name, part.settings().url) for part in self.parts)
        messengers = Messengers(self.name, told, names, self.transport, with_keys=self.keys)
        crew = Crew(
            [] if hints_only else self._posts(), partial(self._worker, options, messengers, names), messengers.serve, held=options.held
        )
        self._coming = crew
        try:
            messengers.start(trusted=trusted)
            crew.start()
            self._crew, self._messengers = crew, messengers
            if crew.is_over():  # by `stop`, which may not have seen that this is the crew now
                raise Stopped(WHILE_IT_CAME_UP)
        except BaseException:
            self._crew = self._messengers = None
            crew.stop(0)
            messengers.stop()
            raise
        finally:
            self._coming = None

    @property
    def _carries_out(self) -> bool:
        """Whether workers run in this process, or come up: they know what was declared before."""
        crew = self._crew or self._coming
        return crew is not None and bool(crew.posts)

    @property
    def declares_nothing(self) -> str | None:
        """Why nothing will ever be carried out, where this is so: the module that declares reactions was not imported."""
        if self.reactions or self.schedules:
            return None
        return f"app {self.name} declares no reaction: is the module that declares them imported?"

    def _posts(self) -> list[Post]:
        return [
            Post(
                part,
                self.reactions_of(part) if len(store.parts) > 1 else (),
                [one.label for one in store.parts],
                [spec.name for spec in self.reactions_of(part)],
            )
            for store in self.stores
            for part in store.parts
        ]

    def _worker(self, options: Options, messengers: Messengers, names: Mapping[str, str], store: Store, held: bool, again: bool) -> Worker:
        """Of one database, not started yet: for the crew. again: in the place of another, which looked back when it came up."""
        opened = opening.open_store(store.settings())
        transaction.keep_out(opened[0], self.elsewhere(store))
        return Worker(
            self.name,
            self.reactions_of(store),
            opened,
            schedules=self.schedules_of(store),
            options=replace(options, held=held, after_restore=options.after_restore and not again),
            redact=store.redact,
            messenger=messengers.of(store),
            watch=self._watch,
            part=Part(store.name or "", names, several=len(self.parts) > 1),
        )

    def elsewhere(self, store: Store) -> dict[MetaData, str]:
        """The tables that lie in other stores than this one, and which those are."""
        others = [other for other in self.stores if store not in other.parts]
        return {metadata: other.label for other in others for metadata in other.metadatas}

    def observe(self, watch: Watch | None) -> None:
        """Who watches the work from the next start on, for traces; None: nobody. `groundstate.telemetry.traces.trace` gives one."""
        self._watch = watch

    def vitals(self) -> list[Vitals]:
        """How the worker of each store does, as its threads last said; nothing where none runs in this process. Asks no database."""
        return [worker.vitals() for worker in self._workers or ()]

    @property
    def down(self) -> dict[str, str]:
        """Databases on which nothing is carried out just now, and why; each is tried again. Raises Stopped where it does not run."""
        if self._crew is None:
            self._running_workers()
        return {} if self._crew is None else self._crew.down

    def go(self) -> None:
        """After `start(held=True)`: carries out from now on. Raises Stopped where it does not run."""
        self._running_workers()
        if self._crew is not None:
            self._crew.go()

    def stop(self, limit: timedelta = DRAIN) -> Ended:
        """Begins nothing new, lets calls end within the limit, and leaves the rest in doubt. Idempotent. Returns what that left.

        While another thread starts it: that start ends at once, by Stopped.
        """
        limit_s = _seconds("limit", limit)
        crew, self._crew = self._crew or self._coming, None
        ended = Ended()
        if crew is not None:
            ended = crew.stop(limit_s)
            self._forget(crew)  # it may have been up a moment later
        messengers, self._messengers = self._messengers, None
        if messengers is not None:
            messengers.stop()
        for database in self.__dict__.pop("_opened", {}).values():
            database.close()
        return ended

    def _forget(self, crew: Crew) -> None:
        if self._crew is crew:
            self._crew = None

    @property
    def transports(self) -> dict[str, bool]:
        """Of each transport in use, by the name of its kind, whether hints come and go just now. Raises Stopped where it does not run."""
        self._running_workers()
        return {} if self._messengers is None else self._messengers.up

    @property
    def refused(self) -> list[registry.Newcomer]:
        """New and changed reactions that were not started, since they match rows that were there before."""
        return [newcomer for worker in self._running_workers() for newcomer in worker.refused]

    @property
    def waiting(self) -> dict[str, str]:
        """By the name of each reaction that is not carried out just now, why: its database is down or in trouble, it waits for a migration,
        or for a person. Raises Stopped where it does not run.
        """
        self._running_workers()
        return {} if self._crew is None else self._crew.waiting

    @property
    def failure(self) -> BaseException | None:
        """What ended a worker by itself, a fault of ours or of the machine, in whose place no other one has come up yet; None while all go
        on. Raises Stopped where it does not run.
        """
        self._running_workers()
        return None if self._crew is None else self._crew.failure

    @property
    def expired(self) -> dict[str, int]:
        """How many records were too late, by `valid_for`, for each reaction since the start. Raises Stopped where it does not run."""
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
        """Carries out while the block runs: for a web application's lifespan. Its work is in threads, never on this loop.

        hints_only: leaves the work to workers elsewhere, tells them what is committed here, and lets `until` hear of theirs. The others:
        see `start`.
        """
        _seconds("limit", limit)
        waiting.asyncio_loop("app.running()")
        begin = partial(
            self.start, accept=accept, hints_only=hints_only, trust_transport=trust_transport, leave_undeclared=leave_undeclared
        )
        start = waiting.in_a_thread(begin)
        try:
            await asyncio.shield(start)
        except asyncio.CancelledError:
            await waiting.in_a_thread(partial(self.stop, timedelta()))
            await asyncio.wait([start])
            if start.exception() is None:  # it was over already, or not to be ended yet
                await waiting.in_a_thread(partial(self.stop, timedelta()))
            raise
        try:
            yield
        finally:
            await waiting.in_a_thread(partial(self.stop, limit))

    def run_until_quiet(self, timeout: timedelta | None = None) -> Rested:
        """Carries out all that can be now, and returns what remains: for scripts and tests. Starts and stops the app if it does not run.

        A database that is down is waited for: what is left there is not known.

        Raises:
            TimeoutError: it was not quiet within the timeout.
        """
        timeout_s = None if timeout is None else _seconds("timeout", timeout)
        mine = self._crew is None
        if mine:
            self.start()
        try:
            if self._crew is not None and not self._crew.posts:
                raise Stopped(f"{self!r} runs for hints alone in this process (hints_only), and carries nothing out here")
            end = None if timeout_s is None else time.monotonic() + timeout_s
            crew = self._crew
            for post in () if crew is None else sorted(crew.posts, key=lambda post: not post.up):
                left = None if end is None else end - time.monotonic()
                worker = None if crew is None else crew.wait_for(post, left)
                if worker is None or not worker.until_quiet(None if end is None else end - time.monotonic()):
                    down = "".join(f"; {label} is down: {why}" for label, why in self.down.items())
                    raise TimeoutError(f"{self!r} was not quiet within {timeout}{down}")
            rests = [worker.rest() for worker in self._running_workers()]
            return Rested(*(sum(counts) for counts in zip(*map(astuple, rests), strict=True)))
        finally:
            if mine:
                self.stop()

    async def until(
        self, record: type, key: object, *clauses: SQLCoreOperations[bool], timeout: timedelta, shard: str | None = None
    ) -> bool:
        """Waits until the clauses hold for one record, or the timeout is over: for web requests. Woken by hints, answered by SELECTs.

        key: the primary key, or its text, as in a URL; a tuple where it has several columns. shard: where the record is, by name; else all
        shards are asked.
        Returns whether they hold. A database that cannot be reached is asked again, and its error raised once the timeout is over.

        Raises:
            DeclarationError: that is no primary key of it, or no loop of asyncio runs here, as under trio.
        """
        timeout_s = _seconds("timeout", timeout)
        statement = waiting.statement(record, key, clauses)
        asked = [waiting.Asked(partial(self._open, part), statement) for part in self._parts_of(record, shard)]
        return await waiting.until(asked, self._messengers, timeout_s)

    # ---- setting up --------------------------------------------------------------------------------------------------------------
    def init(  # what a person may say of it
        self,
        *,
        tables: bool = False,
        accept: Accept = (),
        baseline: Sequence[str] = (),
        after_restore: bool = False,
        new_database: bool = False,
        progress: Callable[[str, int], None] | None = None,
    ) -> list[str]:
        """Creates our four tables where they are missing; returns what was created, of several databases each with its name. Idempotent.

        Args:
            tables: the user's own tables too, where missing (for a first try; migrations later).
            accept: reactions to start on the rows that are there: their names, or True for all. Where one of them makes a call, and would
                make it for such rows, it must be said what is known of those: 'NAME=call' (surely never called) or 'NAME=doubt' (each is
                put in doubt, and settled by its policy); 'call' or 'doubt' alone for all; or a mapping of names to these.
            baseline: reactions that leave the rows that match now, and start with new ones, and schedules that start with now.
            after_restore: our tables vanished, or a backup was put back: each row that would be called is in doubt, and what is taken from
                now on is so as well until `trust`.
            new_database: this is a new database, and witnesses of begun calls that are there are another one's: they are erased, and told
                of in the log.
            progress: is told each reaction of `baseline`, or accepted as a doubt, and how many of its rows were written down so far.

        Raises:
            StoreRefused: our tables vanished, and neither `after_restore` nor `new_database` was said.
            StateRefused: reactions were accepted that would make calls for rows that are there, and nothing was said of those.
            DeclarationError: no such reaction, or not such a word for one.
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
        places = [founding.Place(store, self.reactions_of(store), self.schedules_of(store)) for store in self.parts]
        return founding.found(self.name, places, founding.Wishes(tables, said, baseline, after_restore, new_database, progress))

    @property
    def parts(self) -> tuple[Store, ...]:
        """Every database of the app: its stores, and of a sharded one each shard."""
        return tuple(part for store in self.stores for part in store.parts)

    def reactions_of(self, store: Store) -> list[ReactionSpec]:
        """The reactions on records of this store, or of this shard."""
        return [spec for spec in self.reactions.values() if spec.store is store or store in spec.store.parts]

    def schedules_of(self, store: Store) -> list[ScheduleSpec]:
        """The schedules that write to this store, or to this shard."""
        return [spec for spec in self.schedules.values() if spec.store is store or store in spec.store.parts]

    @property
    def _workers(self) -> list[Worker] | None:
        """Those that are up; None where the app does not run in this process."""
        return None if self._crew is None else self._crew.workers

    def _running_workers(self) -> list[Worker]:
        if self._workers is None:
            raise Stopped(f"{self!r} does not run in this process: start it with app.start(), app.running() or `groundstate run`")
        return self._workers

    def _parts_of(self, record: type, shard: str | None) -> Sequence[Store]:
        """The databases in which a record may be."""
        for store in self.stores:
            if store.owns_class(record):
                return store.parts if shard is None else [store.shard(shard)]
        raise DeclarationError(f"{record.__name__} is in no store of {self!r}")

    def _open(self, part: Store) -> Database:
        """A database: the running worker's, or one of our own that is kept."""
        for post in self._crew.posts if self._crew is not None else ():
            if post.store is part and post.worker is not None:
                return post.worker.database
        opened: dict[Store, Database] = self.__dict__.setdefault("_opened", {})
        if part not in opened:
            database = opening.open_store(part.settings())[0]
            database.connect()
            if opened.setdefault(part, database) is not database:
                database.close()  # another thread was quicker
        return opened[part]


def _seconds(name: str, given: timedelta) -> float:
    if not isinstance(given, timedelta):
        raise DeclarationError(f"{name}={given!r}: give a timedelta, for example timedelta(seconds=30)")
    return given.total_seconds()
