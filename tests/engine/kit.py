"""What the tests of the engine are made of: a world (a fresh database, an app, workers that can be killed) and a gateway with a ledger.

A killed worker is one of which nothing commits any more and whose lock is free; what it had in the air may still land.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, ClassVar, NoReturn
from unittest import mock

from sqlalchemy import Connection, Engine, Interval, bindparam, create_engine, event, func, select, text, type_coerce
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import Absent, App, NotDone, Retry, Store, Throttled, Unknown
from groundstate.clock import SYSTEM_CLOCK
from groundstate.engine.rows import attempts, clock_jumps
from groundstate.engine.sql.call_write_guard import outside_of_call
from groundstate.engine.watch import sweeps
from groundstate.engine.watch.hint_publisher import HintPublisher
from groundstate.engine.worker.options import Options
from groundstate.engine.worker.runtime import Runtime
from groundstate.engine.worker.worker import Worker
from groundstate.rules.attempt import Attempt
from groundstate.store import connect
from groundstate.store.tables import UtcDateTime, attempt, worker
from groundstate.testing.simulate.db_intercept import SimulatedNow
from tests.patience import HANG_S, LOOKS_S, until

__all__ = ["CALL_LIMIT", "HANG_S", "QUICK", "Base", "Gateway", "Killed", "Life", "Order", "World", "ms", "until"]


def ms(count: float) -> timedelta:
    return timedelta(milliseconds=count)


# The time limit of calls that a test holds up, which may take long. What is in doubt by it can be settled after `forward(60)`.
CALL_LIMIT = timedelta(seconds=50)
QUICK = Retry(times=10, first=ms(5), longest=ms(20))
sweeps.SWEEP_LONGEST_S = 2.0  # a busy machine makes sweeps dear, and tests wait for the next one


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    receipt: Mapped[str | None] = mapped_column(default=None)
    mailed: Mapped[str | None] = mapped_column(default=None)
    round: Mapped[int] = mapped_column(default=1)
    note: Mapped[str | None] = mapped_column(default=None)


class Killed(BaseException):
    """What ends a worker's thread with nothing of it committed, as SIGKILL would."""


def _die() -> None:
    raise Killed


class Gateway:
    """The service: a ledger of what was done, and for each record what the next calls are to meet (`ok` where nothing is planned).

    ok; refuse (NotDone); busy; raise (before it acts); done_raise (after it acted); hang (waits for the gate, then acts);
    done_hang (acts, then waits for the gate); unreachable (a ConnectionError before it acts).
    """

    def __init__(self) -> None:
        self.ledger: list[tuple[int, str]] = []
        self.calls: list[tuple[int, str]] = []
        self.asked: list[int] = []
        self.plans: dict[int, list[str]] = {}
        self.finds: dict[int, list[Any]] = {}
        self.gate = threading.Event()
        self.waiting = 0
        self.overlaps: list[int] = []  # records of which two calls were in the air at once
        self._in_air: set[int] = set()
        self.service: Any = None
        self.reaction: Any = None

    def plan(self, record: int, *steps: str) -> None:
        self.plans[record] = list(steps)

    def done(self, record: int) -> int:
        """How often it was done for this record."""
        return sum(1 for one, _ in self.ledger if one == record)

    def called(self, record: int) -> int:
        return sum(1 for one, _ in self.calls if one == record)

    async def act(self, record: int, key: str = "") -> str:
        if record in self._in_air:
            self.overlaps.append(record)
        self._in_air.add(record)
        try:
            return await self._act(record, key)
        finally:
            self._in_air.discard(record)

    async def _act(self, record: int, key: str) -> str:
        step = self._arrive(record, key)  # at once: a time limit of some milliseconds may be over before it is called again
        await asyncio.sleep(0)
        if step == "done_hang":
            self._land(record, key)
        if step in ("hang", "done_hang"):
            self.waiting += 1
            while not self.gate.is_set():  # noqa: ASYNC110  # an event of threads, looked at from any loop
                await asyncio.sleep(LOOKS_S)
        return self._answer(step, record, key)

    def act_sync(self, record: int, key: str = "") -> str:
        step = self._arrive(record, key)
        if step == "done_hang":
            self._land(record, key)
        if step in ("hang", "done_hang"):
            self.waiting += 1
            assert self.gate.wait(HANG_S)
        return self._answer(step, record, key)

    def find(self, record: int, key: str) -> Any:
        self.asked.append(record)
        planned = self.finds.get(record)
        if planned:
            answer = planned.pop(0)
            if answer is not None:
                return answer
        for number, (_, used) in enumerate(self.ledger):
            if used == key:
                return f"r{number + 1}"
        return Absent()

    def _arrive(self, record: int, key: str) -> str:
        self.calls.append((record, key))
        planned = self.plans.get(record)
        step = planned.pop(0) if planned else "ok"
        if step == "refuse":
            raise NotDone("refused")
        if step == "busy":
            raise Throttled(ms(10))
        if step == "raise":
            raise RuntimeError("the line went dead")
        if step == "unreachable":
            raise ConnectionRefusedError("no route")
        return step

    def _land(self, record: int, key: str) -> str:
        self.ledger.append((record, key))
        return f"r{len(self.ledger)}"

    def _answer(self, step: str, record: int, key: str) -> str:
        receipt = f"r{len(self.ledger)}" if step == "done_hang" else self._land(record, key)
        if step == "done_raise":
            raise RuntimeError("the answer was lost")
        return receipt


class Life:
    """A worker in this process that can be killed, cut off from its database, and looked into."""

    def __init__(
        self,
        world: World,
        specs: Sequence[Any],
        options: Options,
        redact: Callable[[str], str] | None,
        messenger: HintPublisher | None = None,
    ) -> None:
        opened = connect.open_store(world.app.stores[0].settings())
        self.database: Any = opened[0]
        self.transactions = 0
        self.dead = False
        self.dies_at = 0  # the number of the transaction before which it dies
        self.broken = False  # the database is in trouble
        self.lose_word_of = ""  # the commit of the next transaction with such a statement lands, and its word is lost
        self.lost = 0
        self._gate = threading.RLock()
        self._write = self.database.writing
        vars(self.database)["writing"] = self._writing
        world.clock_of(self.database)
        schedules = list(world.app.schedules.values())
        self.worker = Worker(
            world.app.name, specs, opened, schedules=schedules, options=options, redact=redact, publisher=messenger,
            runtime=Runtime(clock=world.clock),
        )  # fmt: skip
        self.words: list[str] = []

    @contextmanager
    def _writing(self, *, wait: timedelta | None = None) -> Iterator[Connection]:
        with self._gate:
            if self.dead or self.transactions + 1 == self.dies_at:
                raise Killed
            if self.broken:
                raise OperationalError("begin", None, sqlite3.OperationalError("database is locked"))
            self.transactions += 1
            said: list[str] = []

            def note_commit(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
                said.append(statement.lower())

            with self._write(wait=wait) as connection:
                if self.lose_word_of:
                    event.listen(connection, "after_cursor_execute", note_commit)
                yield connection
                if self.dead:  # in a handler of it
                    raise Killed
            if self.lose_word_of and any(one.startswith(self.lose_word_of) for one in said):
                self.lose_word_of = ""
                self.lost += 1
                raise OperationalError("commit", None, sqlite3.OperationalError("disk I/O error: the connection was lost in commit"))

    def kill(self) -> None:
        """From now on nothing of it commits; its lock is free."""
        with self._gate:
            self.dead = True
        vars(self.worker.loop.iteration)["run_iteration"] = _die  # it dies at its next step, wherever that is
        self.worker.components.signals.go.set()
        self.worker.components.signals.wake.set()
        if self.worker.thread.is_alive():
            self.worker.thread.join(HANG_S)
        self.worker.incarnation.liveness.release()  # of one that never started; a thread that died has let go of it
        self.database.close()

    def lose_lock(self, *, notices: bool = True, for_good: bool = False) -> None:
        """The lock is gone beneath the living worker, as by a reset connection. for_good: its number is not to be had again."""
        self.worker.incarnation.over = for_good
        self.worker.components.succession.next_check = 0.0 if notices else float("inf")
        self.worker.incarnation.liveness.release()
        self.worker.components.signals.wake.set()

    def sweep(self) -> None:
        """Waits until a sweep that began after this call has ended."""
        self.worker.components.sweeps.next = 0.0
        self.worker.components.signals.wake.set()
        until(lambda: self.worker.components.sweeps.next > 0)

    def turn(self) -> None:
        """Waits until another turn has begun: one that was on, or about to look, is over."""
        before = self.worker.components.leader.turned_at
        self.worker.components.signals.wake.set()
        until(lambda: self.worker.components.leader.turned_at > before)

    def sweep_no_more(self) -> None:
        """Until its `sweep`. A turn that is on, and just begins a sweep, would say when the next one is."""
        while self.worker.components.sweeps.next != float("inf"):
            self.worker.components.sweeps.next = float("inf")
            self.turn()

    def beat_no_more(self) -> None:
        """It looks no more who else is there, or died. A turn that is on, and just does so, would say when it does again."""
        while self.worker.components.leader.next_beat != float("inf"):
            self.worker.components.leader.next_beat = float("inf")
            self.turn()

    def hints_alone(self) -> None:
        """Nothing makes it look any more but hints and its own timers, until its `sweep`."""
        self.worker.components.sweeps.next_look = float("inf")
        self.sweep_no_more()
        self.beat_no_more()

    @property
    def ended(self) -> bool:
        return not self.worker.thread.is_alive()

    @property
    def pauses(self) -> bool:
        """Whether it pauses some outside."""
        return bool(self.worker.components.call_turns.limits.scopes_with_open_breaker)

    @property
    def in_trouble(self) -> bool:
        """Whether its database was in trouble more than once in a row."""
        return self.worker.components.trouble.errors_in_a_row >= 2

    def drain(self) -> None:
        """It is told to stop, and nobody waits for it yet."""
        self.worker.components.worker_state.begin_stop(time.monotonic() + HANG_S)
        self.worker.components.signals.wake.set()

    def quiet(self) -> None:
        assert self.worker.wait_until_idle(HANG_S), "it was not quiet in time"

    def stop(self, limit_s: float = 5.0) -> None:
        self.worker.stop(limit_s)


def _leapt(pace: clock_jumps.ClockComparison, now: datetime, asked_s: float, answered_s: float) -> timedelta:
    return _really_leapt(pace, now, asked_s, answered_s) if World.leaping else timedelta()


_really_leapt = clock_jumps.ClockComparison.measure_leap
_no_leaps = mock.patch.object(clock_jumps.ClockComparison, "measure_leap", _leapt)


class World:
    """One fresh database with one app on it.

    `forward` is as if so much time had passed, for all that reads the database's clock; with `leaping` it is that clock alone which leaps.
    """

    leaping = False
    _open: ClassVar[set[int]] = set()

    def __init__(self, url: Any, *bases: Any, **store: Any) -> None:
        if not World._open:
            _no_leaps.start()
        World._open.add(id(self))
        self.url = url
        ours = connect.resolve_settings(url, None, None, "lossy").url
        self.postgres = ours.drivername.startswith("postgresql")
        self.app = declared(url, *(bases or (Base,)), **store)
        self.engine = create_engine(ours)
        self.ahead = 0.0  # seconds by which the database's clock is ahead
        self.clock = SYSTEM_CLOCK  # the clock of its workers
        self.lives: list[Life] = []
        self.gateways: list[Gateway] = []
        self._there = False

    # ---- the clock -----------------------------------------------------------------------------------------------------------
    def clock_of(self, database: Any) -> None:
        """What a condition is remembered by is the real clock's text: else a clock that was moved would be another condition."""
        real = database.now
        database.now = lambda ahead=timedelta(): SimulatedNow(self._now(ahead), real(ahead))

    def _now(self, ahead: timedelta) -> Any:
        if self.postgres:
            moved = bindparam("ahead", type_=Interval(), callable_=lambda: timedelta(seconds=self.ahead) + ahead, unique=True)
            return type_coerce(func.now(type_=UtcDateTime()) + moved, UtcDateTime())
        seconds: Any = bindparam("ahead", callable_=lambda: f"{self.ahead + ahead.total_seconds():+.3f} seconds", unique=True)
        return type_coerce(func.strftime("%Y-%m-%d %H:%M:%f", "now", seconds).op("||")("000"), UtcDateTime())

    def forward(self, seconds: float) -> None:
        """Moves the database's clock, for every worker of this world: each looks soon, as if it had waited so long."""
        self.ahead += seconds
        for life in self.lives:
            if life.worker.components.sweeps.next != float("inf"):  # where a test says that no sweep helps
                life.worker.components.sweeps.next = 0.0
                life.worker.components.signals.wake.set()

    # ---- rows ----------------------------------------------------------------------------------------------------------------
    def there(self) -> World:
        """The tables are made, and every reaction declared so far is accepted."""
        self.app.init(tables=True, accept=True)
        self._there = True
        return self

    def session(self) -> Session:
        return Session(self.engine, expire_on_commit=False)

    def add(self, *records: Any) -> None:
        if not self._there:
            self.there()
        with outside_of_call(), self.session() as session, session.begin():
            session.add_all(records)

    def orders_from(self, first: int, last: int) -> None:
        self.add(*[Order(id=number) for number in range(first, last + 1)])

    def orders(self, count: int, **values: Any) -> None:
        self.add(*[Order(id=number + 1, **values) for number in range(count)])

    def order(self, number: int = 1) -> Any:
        return self.get(Order, number)

    def get(self, kind: type, key: Any) -> Any:
        with self.session() as session:
            return session.get(kind, key)

    def count(self, *clauses: Any) -> int:
        with self.session() as session:
            return session.execute(select(func.count()).select_from(Order).where(*clauses)).scalar_one()

    def set(self, number: int = 1, **values: Any) -> None:
        """An UPDATE by somebody of whom the engine hears nothing, also in the middle of a handler."""
        with outside_of_call(), self.engine.begin() as connection:
            table: Any = Order.__table__
            connection.execute(table.update().where(table.c.id == number).values(**values))

    def run(self, statement: str, **values: Any) -> None:
        with outside_of_call(), self.engine.begin() as connection:
            connection.execute(text(statement), values)

    def force(self, statement: str, **values: Any) -> None:
        """On rows of ours, against the trigger that refuses it on PostgreSQL: by the word that it asks for."""
        with outside_of_call(), forcing(self.engine) as connection:
            connection.execute(text(statement), values)

    def attempts(self) -> list[Attempt]:
        with self.engine.connect() as connection:
            return [
                attempts.attempt_from_row(row)
                for row in connection.execute(attempts.select_attempts().order_by(attempt.c.record, attempt.c.occurrence))
            ]

    def attempt(self) -> Attempt:
        found = self.attempts()
        assert len(found) == 1, found
        return found[0]

    def states(self) -> list[str]:
        return [one.state.value for one in self.attempts()]

    def lives_written(self) -> list[int]:
        """The lives that have a row."""
        with self.engine.connect() as connection:
            return list(connection.execute(select(worker.c.id)).scalars())

    # ---- workers -------------------------------------------------------------------------------------------------------------
    def worker(
        self, *, start: bool = True, redact: Callable[[str], str] | None = None, messenger: HintPublisher | None = None, **options: Any
    ) -> Life:
        if not self._there:
            self.there()
        self.app.check_declarations()
        life = Life(self, list(self.app.reactions.values()), Options(**options), redact, messenger)
        self.lives.append(life)
        if start:
            life.worker.start()
        return life

    def die(self) -> NoReturn:
        """In a handler: the worker that runs it dies, and nothing of its transaction is committed."""
        self.lives[-1].dead = True
        raise Killed

    def settled(self) -> None:
        """A worker that runs until all is quiet, and ends cleanly."""
        life = self.worker()
        life.quiet()
        life.stop()

    def gateway(self) -> Gateway:
        made = Gateway()
        self.gateways.append(made)
        return made

    def close(self) -> None:
        for gateway in self.gateways:
            gateway.gate.set()
        for life in self.lives:
            life.kill()
        self.engine.dispose()
        if id(self) in World._open:  # it may be closed twice
            World._open.remove(id(self))
            if not World._open:
                _no_leaps.stop()


@contextmanager
def forcing(engine: Engine) -> Iterator[Connection]:
    """A transaction in which somebody does to attempts what the trigger on PostgreSQL refuses."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL groundstate.ours = 'on'"))
        yield connection


def declared(url: Any, *bases: Any, **store: Any) -> App:
    """An app; all are declared in this one place, so that each is the same app, imported again."""
    return App("shop", Store(url, *bases, **store))


UNKNOWN = Unknown()
