"""Databases that report every statement and commit to the run as a crossing, and show the time of the lab's clock.

The databases are reused from run to run, since a new engine would compile each statement again.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

from sqlalchemy import ColumnElement, bindparam, event
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.visitors import InternalTraversal

from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.transaction_time import transaction_time_of
from groundstate.rules.specs import ReactionSpec
from groundstate.store import connect
from groundstate.store.port import Database, StoreSettings
from groundstate.store.statement_timeouts import Limit
from groundstate.store.tables import UtcDateTime
from groundstate.testing.simulate import cooperative_threads
from groundstate.testing.simulate.cooperative_threads import DeadThreadExit
from groundstate.testing.simulate.crash_point import shorten_statement
from groundstate.testing.simulate.fake_environment import Time

_WRITE_NOTHING = ("SELECT", "SAVEPOINT", "RELEASE", "ROLLBACK", "SET", "PRAGMA", "EXPLAIN")


class DatabaseOwner(Protocol):
    """The attributes that a simulated process must have so that its database can be intercepted."""

    dead: bool
    connections: list[Any]


class CrossingReceiver(Protocol):
    """The attributes and methods that a run must have so that the databases of its processes can be intercepted."""

    time: Time

    def report_crossing(self, process: Any, kind: str, what: str, *, inside: bool = False) -> bool:
        """Report that this process reaches a crossing, at which it may be killed; return whether it is dead now. inside: whether it has a
        transaction open.
        """

    def let_other_process_run(self, process: Any) -> bool:
        """Let another process run, which may hold the write lock of SQLite that this process waits for. Return False if no other process
        can run.
        """


class SimulatedNow(ColumnElement[datetime]):
    """The lab's clock as an SQL expression.

    In SQL that is rendered with literal values, such as a stored condition, it appears as the database's own expression for the time.
    """

    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012  # declared in the way that SQLAlchemy expects
        ("moment", InternalTraversal.dp_clauseelement),
        ("real", InternalTraversal.dp_clauseelement),
    ]

    def __init__(self, moment: ColumnElement[datetime], real: ColumnElement[datetime]) -> None:
        self.moment = moment
        self.real = real
        self.type = UtcDateTime()


@compiles(SimulatedNow)
def _compile_simulated_now(element: SimulatedNow, compiler: Any, **options: Any) -> str:
    said: str = compiler.process(element.real if options.get("literal_binds") else element.moment, **options)
    return said


class InterceptedDatabase:
    """One opened database. transaction: the functions to call when the current transaction is committed."""

    def __init__(self, settings: StoreSettings) -> None:
        self.opened = connect.open_store(settings)
        self.transaction: list[Callable[[], None]] = []
        self.inside = False  # whether a transaction is open
        # The shortened writing statements of the transaction. A dict keeps each statement once, in the order of the first writes.
        self._wrote: dict[str, None] = {}
        self._warm = False
        self._stage: CrossingReceiver | None = None
        self._process: DatabaseOwner | None = None
        self._install_interception(self.opened[0])

    def assign(self, stage: CrossingReceiver, process: DatabaseOwner) -> None:
        """Let this process of the run, and no other, use the database from now on."""
        self._stage, self._process = stage, process
        self._reset_transaction(inside=False)
        if not self._warm:
            # SQLAlchemy sends queries on an engine's first connection. Connect once now, so that they are no crossings of the first run.
            self.opened[0].engine.connect().close()
            self.opened[0].engine.dispose()
            process.connections.clear()
            self._warm = True

    def release(self) -> None:
        """Close all connections, so that another process may use the database."""
        self.opened[0].close()
        self._stage = self._process = None

    def _reset_transaction(self, *, inside: bool) -> None:
        self.transaction.clear()
        self._wrote.clear()
        self.inside = inside

    def _assigned_stage_and_process(self) -> tuple[CrossingReceiver, DatabaseOwner]:
        assert self._stage is not None and self._process is not None  # noqa: S101, PT018  # a database is assigned before it is used
        return self._stage, self._process

    def _transaction_time(self, ahead: timedelta) -> datetime:
        """Return the time of the lab's clock plus `ahead`. Within a transaction, the lab's clock stands at the time when the transaction
        began, as on PostgreSQL.
        """
        return (transaction_time_of(self.opened[0]) or self._assigned_stage_and_process()[0].time.now()) + ahead

    # ---- interception ------------------------------------------------------------------------------------------------------------
    def _install_interception(self, database: Any) -> None:
        real = database.now
        database.now = lambda ahead=timedelta(): SimulatedNow(
            bindparam("lab_now", callable_=partial(self._transaction_time, ahead), type_=UtcDateTime(), unique=True), real(ahead)
        )
        database.limit = _without_time_limit
        engine, dialect = database.engine, database.engine.dialect
        event.listen(engine, "connect", partial(self._on_connect, embedded=not database.locks_rows))
        event.listen(engine, "do_connect", self._refuse_dead_process)
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            setattr(dialect, name, partial(self._intercept_execute, getattr(dialect, name)))
        dialect.do_commit = partial(self._intercept_commit, dialect.do_commit)
        dialect.do_rollback = partial(self._intercept_rollback, dialect.do_rollback)

    def _on_connect(self, connection: Any, _record: object, *, embedded: bool) -> None:
        self._assigned_stage_and_process()[1].connections.append(connection)
        if embedded:
            connection.execute("PRAGMA synchronous=OFF")  # safe here, since the lab never cuts the power

    def _refuse_dead_process(self, *_: object) -> None:
        if self._assigned_stage_and_process()[1].dead:
            raise DeadThreadExit

    def _intercept_execute(self, real: Callable[..., Any], cursor: Any, statement: str, *rest: Any) -> Any:
        if cooperative_threads.current_actor() is None:
            return real(cursor, statement, *rest)
        stage, process = self._assigned_stage_and_process()
        what = shorten_statement(statement)
        begins = what == "BEGIN"
        stage.report_crossing(process, "statement", what, inside=self.inside and not begins)
        if begins:
            self._reset_transaction(inside=True)
        elif not what.startswith(_WRITE_NOTHING):
            self._wrote[what] = None
        if not statement.startswith("BEGIN IMMEDIATE"):
            return real(cursor, statement, *rest)
        while True:
            cursor.execute("PRAGMA busy_timeout=0")
            try:
                return real(cursor, statement, *rest)
            except sqlite3.OperationalError:
                if not stage.let_other_process_run(process):
                    raise

    def _intercept_commit(self, real: Callable[[Any], None], connection: Any) -> None:
        if cooperative_threads.current_actor() is None:
            real(connection)
            return
        stage, process = self._assigned_stage_and_process()
        what = ", ".join(self._wrote) or "nothing"
        stage.report_crossing(process, "commit", what, inside=True)
        real(connection)
        done = list(self.transaction)
        self._reset_transaction(inside=False)
        for one in done:
            one()
        stage.report_crossing(process, "committed", what)

    def _intercept_rollback(self, real: Callable[[Any], None], connection: Any) -> None:
        self._reset_transaction(inside=False)
        real(connection)


@contextmanager
def _without_time_limit(_connection: Any, _seconds: float) -> Iterator[Limit]:
    """Stand in for `Database.limit_statement`, but never end a statement.

    Limits by the real clock would make a run depend on the speed of the machine. By the lab's clock, which jumps ahead, statements would
    exceed their limits.
    """
    yield Limit(math.inf, lambda: None)


class DatabasePool:
    """The intercepted databases of a lab and the condition queries built for these databases; all are reused from run to run."""

    def __init__(self) -> None:
        self._free: dict[int, list[InterceptedDatabase]] = {}
        self._out: list[tuple[int, InterceptedDatabase]] = []
        self._queries: dict[tuple[ReactionSpec, Database], ConditionQuery] = {}

    def take_database(self, number: int, settings: StoreSettings) -> InterceptedDatabase:
        """Return an intercepted database of this store that no process of the current run has used.

        number: the store's number in the app.
        """
        free = self._free.setdefault(number, [])
        wired = free.pop(0) if free else InterceptedDatabase(settings)
        self._out.append((number, wired))
        return wired

    def reuse_query(self, spec: ReactionSpec, database: Database) -> ConditionQuery:
        """Return the ConditionQuery for this reaction and database. It is built at the first call, and then reused."""
        known = self._queries.get((spec, database))
        if known is None:
            known = self._queries[(spec, database)] = ConditionQuery(spec, database)
        return known

    def release_all(self) -> Sequence[InterceptedDatabase]:
        """Take back all databases, and return them. Call it after the run, when all its threads have ended."""
        back = [wired for _, wired in self._out]
        for number, wired in self._out:
            wired.release()
            self._free[number].append(wired)
        self._out.clear()
        return back
