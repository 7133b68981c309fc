"""Databases whose every statement and commit is a crossing, and whose clock is the lab's.

They are kept from run to run, since a new engine would compile each statement again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

from sqlalchemy import ColumnElement, bindparam, event
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.visitors import InternalTraversal

from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.transaction_time import moment_of
from groundstate.rules.specs import ReactionSpec
from groundstate.store import connect
from groundstate.store.port import Database, Settings
from groundstate.store.tables import UtcDateTime
from groundstate.testing.simulate import cooperative_threads
from groundstate.testing.simulate.cooperative_threads import Buried
from groundstate.testing.simulate.crash_point import in_short
from groundstate.testing.simulate.fake_environment import Time

_WRITE_NOTHING = ("SELECT", "SAVEPOINT", "RELEASE", "ROLLBACK", "SET", "PRAGMA", "EXPLAIN")


class Owner(Protocol):
    """The process that uses a database."""

    dead: bool
    connections: list[Any]


class Crossed(Protocol):
    """The interface of the run's stage that the wired databases use."""

    time: Time

    def cross(self, process: Any, kind: str, what: str, *, inside: bool = False) -> bool:
        """Report that a crossing is reached; `inside` says whether the process has a transaction open."""

    def gives_way(self, process: Any) -> bool:
        """Let another process run while it holds the write lock; return whether it went on."""


class SimulatedNow(ColumnElement[datetime]):
    """The lab's clock as an SQL expression.

    Rendered with literal values, as for a remembered condition, it is the database's own expression.
    """

    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012  # as SQLAlchemy declares it
        ("moment", InternalTraversal.dp_clauseelement),
        ("real", InternalTraversal.dp_clauseelement),
    ]

    def __init__(self, moment: ColumnElement[datetime], real: ColumnElement[datetime]) -> None:
        self.moment = moment
        self.real = real
        self.type = UtcDateTime()


@compiles(SimulatedNow)
def _compiled(element: SimulatedNow, compiler: Any, **options: Any) -> str:
    said: str = compiler.process(element.real if options.get("literal_binds") else element.moment, **options)
    return said


class Wired:
    """One opened database. `transaction` holds callbacks for what the current transaction did; they are called when it commits."""

    def __init__(self, settings: Settings) -> None:
        self.opened = connect.open_store(settings)
        self.transaction: list[Callable[[], None]] = []
        self.inside = False  # whether a transaction is open
        self._wrote: dict[str, None] = {}  # what the statements that wrote in the transaction did, shortened
        self._warm = False
        self._stage: Crossed | None = None
        self._process: Owner | None = None
        self._wire(self.opened[0])

    def use(self, stage: Crossed, process: Owner) -> None:
        """Assign the database to this process."""
        self._stage, self._process = stage, process
        self._cleared(inside=False)
        if not self._warm:
            # The queries that SQLAlchemy sends on an engine's first connection would otherwise be crossings of the first run only.
            self.opened[0].engine.connect().close()
            self.opened[0].engine.dispose()
            process.connections.clear()
            self._warm = True

    def rest(self) -> None:
        """Close all connections and release the database from its process."""
        self.opened[0].close()
        self._stage = self._process = None

    def _cleared(self, *, inside: bool) -> None:
        self.transaction.clear()
        self._wrote.clear()
        self.inside = inside

    def _of(self) -> tuple[Crossed, Owner]:
        assert self._stage is not None and self._process is not None  # noqa: S101, PT018  # a database is assigned before it is used
        return self._stage, self._process

    def _now(self, ahead: timedelta) -> datetime:
        """Return the lab's time, or within a transaction the time at which it began, as on PostgreSQL: all its statements see one time."""
        return (moment_of(self.opened[0]) or self._of()[0].time.now()) + ahead

    # ---- interception ------------------------------------------------------------------------------------------------------------
    def _wire(self, database: Any) -> None:
        real = database.now
        database.now = lambda ahead=timedelta(): SimulatedNow(
            bindparam("lab_now", callable_=partial(self._now, ahead), type_=UtcDateTime(), unique=True), real(ahead)
        )
        engine, dialect = database.engine, database.engine.dialect
        event.listen(engine, "connect", partial(self._connected, embedded=not database.locks_rows))
        event.listen(engine, "do_connect", self._connecting)
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            setattr(dialect, name, partial(self._execute, getattr(dialect, name)))
        dialect.do_commit = partial(self._commit, dialect.do_commit)
        dialect.do_rollback = partial(self._roll_back, dialect.do_rollback)

    def _connected(self, connection: Any, _record: object, *, embedded: bool) -> None:
        self._of()[1].connections.append(connection)
        if embedded:
            connection.execute("PRAGMA synchronous=OFF")  # the lab never cuts the power

    def _connecting(self, *_: object) -> None:
        if self._of()[1].dead:
            raise Buried

    def _execute(self, real: Callable[..., Any], cursor: Any, statement: str, *rest: Any) -> Any:
        if cooperative_threads.current() is None:
            return real(cursor, statement, *rest)
        stage, process = self._of()
        what = in_short(statement)
        begins = what == "BEGIN"
        stage.cross(process, "statement", what, inside=self.inside and not begins)
        if begins:
            self._cleared(inside=True)
        elif not what.startswith(_WRITE_NOTHING):
            self._wrote[what] = None
        if not statement.startswith("BEGIN IMMEDIATE"):
            return real(cursor, statement, *rest)
        while True:
            cursor.execute("PRAGMA busy_timeout=0")
            try:
                return real(cursor, statement, *rest)
            except sqlite3.OperationalError:
                if not stage.gives_way(process):
                    raise

    def _commit(self, real: Callable[[Any], None], connection: Any) -> None:
        if cooperative_threads.current() is None:
            real(connection)
            return
        stage, process = self._of()
        what = ", ".join(self._wrote) or "nothing"
        stage.cross(process, "commit", what, inside=True)
        real(connection)
        done = list(self.transaction)
        self._cleared(inside=False)
        for one in done:
            one()
        stage.cross(process, "committed", what)

    def _roll_back(self, real: Callable[[Any], None], connection: Any) -> None:
        self._cleared(inside=False)
        real(connection)


class Kept:
    """The wired databases of a lab's runs and the condition queries that were built for them, kept from run to run."""

    def __init__(self) -> None:
        self._free: dict[int, list[Wired]] = {}
        self._out: list[tuple[int, Wired]] = []
        self._queries: dict[tuple[ReactionSpec, Database], ConditionQuery] = {}

    def take(self, number: int, settings: Settings) -> Wired:
        """Return a database of this store that no process of the run has used."""
        free = self._free.setdefault(number, [])
        wired = free.pop(0) if free else Wired(settings)
        self._out.append((number, wired))
        return wired

    def query(self, spec: ReactionSpec, database: Database) -> ConditionQuery:
        """Return the ConditionQuery of this reaction and database, built once and then reused; it stands in for the class."""
        known = self._queries.get((spec, database))
        if known is None:
            known = self._queries[(spec, database)] = ConditionQuery(spec, database)
        return known

    def take_back(self) -> Sequence[Wired]:
        """Take back all databases after the run, when all its threads have ended."""
        back = [wired for _, wired in self._out]
        for number, wired in self._out:
            wired.rest()
            self._free[number].append(wired)
        self._out.clear()
        return back
