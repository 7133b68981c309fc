"""An app in a process: starting, stopping, waiting until all is quiet. The same engine for a worker, a web application and a script."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import astuple, dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, inspect, select

from groundstate.app.store import Store
from groundstate.app.telling import Chosen, Messengers
from groundstate.engine import hints, marks, registry, restore, schema
from groundstate.engine.life import Life
from groundstate.engine.question import Question
from groundstate.engine.vitals import Vitals
from groundstate.engine.watching import Watch
from groundstate.engine.worker import Options, Worker
from groundstate.rules.reaction import ReactionSpec
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store import opening
from groundstate.store.port import Database
from groundstate.values.errors import DeclarationError, Stopped

DRAIN = timedelta(seconds=10)


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
    _workers: list[Worker] | None = None
    _watch: Watch | None = None

    def check_declarations(self) -> None:
        """Checks what can be known only when everything is declared. Raises DeclarationError."""
        raise NotImplementedError

    # ---- in this process -------------------------------------------------------------------------------------------------------
    def start(
        self,
        *,
        accept: bool = False,
        after_restore: bool = False,
        held: bool = False,
        hints_only: bool = False,
        trust_transport: bool = False,
    ) -> None:
        """Starts carrying out, in threads of its own, and returns once it is under way.

        accept: starts new and changed reactions too, whatever rows they match (else they are left out, and `refused` names them).
        after_restore: a backup was put back: calls of the lost time are in doubt. held: comes up, and waits for `go`. hints_only: carries
        nothing out, but tells the workers elsewhere what this process commits, and `until` hears of what they do. trust_transport: a
        transport that does not let it be seen whether it persists is used all the same.

        Raises:
            DeclarationError, StoreRefused, NotInitialised, TransportRefused: what stands in the way, with the cure.
        """
        if self._workers is not None:
            raise Stopped(f"{self!r} runs in this process already")
        self.check_declarations()
        options = Options(accept=accept, after_restore=after_restore, held=held)
        started: list[Worker] = []
        messengers = Messengers(self.name, {store: self.reactions_of(store) for store in self.stores}, self.transport, with_keys=self.keys)
        try:
            messengers.start(trusted=trust_transport)
            for store in () if hints_only else self.stores:
                specs = self.reactions_of(store)
                opened, schedules = opening.open_store(store.settings()), self.schedules_of(store)
                told = messengers.of(store)
                worker = Worker(
                    self.name,
                    specs,
                    opened,
                    schedules=schedules,
                    options=options,
                    redact=store.redact,
                    messenger=told,
                    watch=self._watch,
                )
                started.append(worker)
                worker.start()
                messengers.serve(store, worker)
        except BaseException:
            for worker in started:
                worker.stop(0)
            messengers.stop()
            raise
        self._workers, self._messengers = started, messengers

    def observe(self, watch: Watch | None) -> None:
        """Who watches the work from the next start on, for traces; None: nobody. `groundstate.telemetry.traces.trace` gives one."""
        self._watch = watch

    def vitals(self) -> list[Vitals]:
        """How the worker of each store does, as its threads last said; nothing where none runs in this process. Asks no database."""
        return [worker.vitals() for worker in self._workers or ()]

    def go(self) -> None:
        """After `start(held=True)`: carries out from now on. Raises Stopped where it does not run."""
        for worker in self._running_workers():
            worker.go()

    def stop(self, limit: timedelta = DRAIN) -> None:
        """Begins nothing new, lets calls end within the limit, and leaves the rest in doubt. Idempotent."""
        workers, self._workers = self._workers, None
        for worker in workers or ():
            worker.stop(limit.total_seconds())
        messengers, self._messengers = self._messengers, None
        if messengers is not None:
            messengers.stop()

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
    def failure(self) -> BaseException | None:
        """What ended a worker by itself, a fault of ours or of the machine; None while all go on. Raises Stopped where it does not run."""
        return next((worker.failure for worker in self._running_workers() if worker.failure is not None), None)

    @property
    def expired(self) -> dict[str, int]:
        """How many records were too late, by `valid_for`, for each reaction since the start. Raises Stopped where it does not run."""
        total: Counter[str] = Counter()
        for worker in self._running_workers():
            total.update(worker.expired)
        return dict(total)

    @asynccontextmanager
    async def running(
        self, *, accept: bool = False, hints_only: bool = False, trust_transport: bool = False, limit: timedelta = DRAIN
    ) -> AsyncIterator[None]:
        """Carries out while the block runs: for a web application's lifespan. Its work is in threads, never on this loop.

        hints_only: leaves the work to workers elsewhere, tells them what is committed here, and lets `until` hear of theirs.
        """
        await asyncio.to_thread(self.start, accept=accept, hints_only=hints_only, trust_transport=trust_transport)
        try:
            yield
        finally:
            await asyncio.to_thread(self.stop, limit)

    def run_until_quiet(self, timeout: timedelta | None = None) -> Rested:
        """Carries out all that can be now, and returns what remains: for scripts and tests. Starts and stops the app if it does not run.

        Raises:
            TimeoutError: it was not quiet within the timeout.
        """
        mine = self._workers is None
        if mine:
            self.start()
        try:
            if not self._running_workers():
                raise Stopped(f"{self!r} runs for hints alone in this process (hints_only), and carries nothing out here")
            end = None if timeout is None else time.monotonic() + timeout.total_seconds()
            for worker in self._running_workers():
                if not worker.until_quiet(None if end is None else end - time.monotonic()):
                    raise TimeoutError(f"{self!r} was not quiet within {timeout}")
            rests = [worker.rest() for worker in self._running_workers()]
            return Rested(*(sum(counts) for counts in zip(*map(astuple, rests), strict=True)))
        finally:
            if mine:
                self.stop()

    async def until(self, record: type, key: object, *clauses: ColumnElement[bool], timeout: timedelta) -> bool:
        """Waits until the clauses hold for one record, or the timeout is over: for web requests. Woken by hints, answered by SELECTs.

        key: the primary key; a tuple where it has several columns. Returns whether they hold.
        """
        statement = select(1).select_from(record)
        key_columns = _key_columns(record)
        values = key if isinstance(key, tuple) else (key,)
        if len(values) != len(key_columns):
            raise DeclarationError(f"until({record.__name__}, {key!r}): its primary key has {len(key_columns)} columns")
        statement = statement.where(*[column == value for column, value in zip(key_columns, values, strict=True)], *clauses)
        database = await asyncio.to_thread(self._open_for, record)
        bell = _Bell(asyncio.get_running_loop())
        hints.listen(bell)
        messengers = self._messengers
        if messengers is not None:
            messengers.ring(bell.ring)
        try:
            end = time.monotonic() + timeout.total_seconds()
            while True:
                bell.event.clear()
                if messengers is not None:
                    messengers.wait()
                if await asyncio.to_thread(_holds, database, statement):
                    return True
                left = end - time.monotonic()
                if left <= 0:
                    return False
                with suppress(TimeoutError):
                    await asyncio.wait_for(bell.event.wait(), min(left, UNTIL_LOOKS_S))
        finally:
            hints.stop_listening(bell)
            if messengers is not None:
                messengers.ring_no_more(bell.ring)

    # ---- setting up --------------------------------------------------------------------------------------------------------------
    def init(
        self,
        *,
        tables: bool = False,
        accept: Sequence[str] | bool = (),
        baseline: Sequence[str] = (),
        progress: Callable[[str, int], None] | None = None,
    ) -> list[str]:
        """Creates our four tables where they are missing; returns what was created. Idempotent.

        tables: the user's own tables too, where missing (for a first try; migrations later). accept: reactions (True: all) to start on
        the rows that are there; baseline: reactions that leave the rows that match now, and start with new ones, and schedules that start
        with now. progress: is told each reaction of `baseline` and how many of its rows are held so far.
        """
        self.check_declarations()
        for name in (*(accept if not isinstance(accept, bool) else ()), *baseline):
            if name not in self.reactions and name not in self.schedules:
                known = ", ".join(sorted({**self.reactions, **self.schedules}))
                raise DeclarationError(f"App({self.name!r}) has no reaction {name!r}, and no schedule of that name: there are {known}")
        created: list[str] = []
        for store in self.stores:
            opened = opening.open_store(store.settings())
            database, make_lives, witness = opened
            database.connect()
            try:
                new = schema.create(database, *(store.metadatas if tables else ()))
                created += new
                if "groundstate_worker" in new and witness:
                    for gone in witness.read():
                        witness.erase(gone)  # of a database that was here before this one
                database.connect()
                schema.check(database)
                life = Life(self.name, database, make_lives(), None)
                if restore.remembered(life) is None:
                    restore.remember(life)
                self._settle_newcomers(life, store, accept, baseline, progress)
            finally:
                database.close()
        return created

    def _settle_newcomers(
        self,
        life: Life,
        store: Store,
        accept: Sequence[str] | bool,
        baseline: Sequence[str],
        progress: Callable[[str, int], None] | None,
    ) -> None:
        questions = [Question(spec, life.database) for spec in self.reactions_of(store)]
        accepted = {name for name in self.reactions if accept is True or (not isinstance(accept, bool) and name in accept)}
        for question in questions:
            if question.spec.name in baseline:
                registry.baseline(life, question, tell=None if progress is None else partial(progress, question.spec.name))
                accepted.add(question.spec.name)
        registry.write(life, [question for question in questions if question.spec.name in accepted])
        marks.baseline(life, [spec for spec in self.schedules_of(store) if spec.name in baseline])
        life.database.connect()
        with life.database.reading() as connection:
            silent, _loud = registry.newcomers(connection, questions, registry.known(connection, self.name))
        registry.write(life, silent)

    def reactions_of(self, store: Store) -> list[ReactionSpec]:
        """The reactions on records of this store."""
        return [spec for spec in self.reactions.values() if spec.store is store]

    def schedules_of(self, store: Store) -> list[ScheduleSpec]:
        """The schedules that write to this store."""
        return [spec for spec in self.schedules.values() if spec.store is store]

    def _running_workers(self) -> list[Worker]:
        if self._workers is None:
            raise Stopped(f"{self!r} does not run in this process: start it with app.start(), app.running() or `groundstate run`")
        return self._workers

    def _open_for(self, record: type) -> Database:
        """The database of a record: the running worker's, or one of our own that is kept."""
        for number, store in enumerate(self.stores):
            if store.owns_class(record):
                if self._workers:
                    return self._workers[number].database
                opened: dict[int, Database] = self.__dict__.setdefault("_opened", {})
                if number not in opened:
                    database = opening.open_store(store.settings())[0]
                    database.connect()
                    opened[number] = database
                return opened[number]
        raise DeclarationError(f"{record.__name__} is in no store of {self!r}")


UNTIL_LOOKS_S = 0.5  # how often `until` asks where no hint came: another process may have written


class _Bell:
    """Rings in a loop when anything was committed in this process, or another one tells of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.event = asyncio.Event()
        self._loop = loop

    def hear(self, touched: hints.Touched) -> None:  # noqa: ARG002  # which rows does not matter: it asks
        self.ring()

    def ring(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.event.set)


def _holds(database: Database, statement: Any) -> bool:
    with database.reading() as connection:
        return connection.execute(statement).first() is not None


def _key_columns(record: type) -> list[Any]:

    mapper: Any = inspect(record)
    return [getattr(record, mapper.get_property_by_column(column).key) for column in mapper.primary_key]
