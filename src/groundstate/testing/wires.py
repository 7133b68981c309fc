"""Databases of which each statement and commit is a crossing, and whose clock is the lab's. Says nothing of what happens there.

They are kept from run to run, so that a statement is compiled once: an engine that is new knows none.
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

from groundstate.engine.one_moment import moment_of
from groundstate.engine.question import Question
from groundstate.rules.reaction import ReactionSpec
from groundstate.store import opening
from groundstate.store.port import Database, Settings
from groundstate.store.tables import Instant
from groundstate.testing import actors
from groundstate.testing.actors import Buried
from groundstate.testing.ambient import Time
from groundstate.testing.crossing import in_short

_WRITE_NOTHING = ("SELECT", "SAVEPOINT", "RELEASE", "ROLLBACK", "SET", "PRAGMA", "EXPLAIN")


class Owner(Protocol):
    """Whose database it is."""

    dead: bool
    connections: list[Any]


class Crossed(Protocol):
    """Who is told of crossings."""

    time: Time

    def cross(self, process: Any, kind: str, what: str, *, inside: bool = False) -> bool:
        """A crossing is reached; inside: in a transaction of the process's own."""

    def gives_way(self, process: Any) -> bool:
        """While another has the write lock: whether it went on."""


class Moment(ColumnElement[datetime]):
    """The lab's clock in a statement; written out as text, as a condition is to be remembered, it is the database's own expression."""

    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012  # as SQLAlchemy has it
        ("moment", InternalTraversal.dp_clauseelement),
        ("real", InternalTraversal.dp_clauseelement),
    ]

    def __init__(self, moment: ColumnElement[datetime], real: ColumnElement[datetime]) -> None:
        self.moment = moment
        self.real = real
        self.type = Instant()


@compiles(Moment)
def _compiled(element: Moment, compiler: Any, **options: Any) -> str:
    said: str = compiler.process(element.real if options.get("literal_binds") else element.moment, **options)
    return said


class Wired:
    """One opened database. `transaction` holds what the transaction under way has done that counts once it commits."""

    def __init__(self, settings: Settings) -> None:
        self.opened = opening.open_store(settings)
        self.transaction: list[Callable[[], None]] = []
        self.inside = False  # a transaction is under way
        self._wrote: dict[str, None] = {}  # what wrote in it, in short
        self._warm = False
        self._stage: Crossed | None = None
        self._process: Owner | None = None
        self._wire(self.opened[0])

    def use(self, stage: Crossed, process: Owner) -> None:
        """From now on it is this process's."""
        self._stage, self._process = stage, process
        self._cleared(inside=False)
        if not self._warm:
            # What SQLAlchemy asks a server on an engine's first connection would be crossings of the first run alone.
            self.opened[0].engine.connect().close()
            self.opened[0].engine.dispose()
            process.connections.clear()
            self._warm = True

    def rest(self) -> None:
        """Nobody's: no connection stays open."""
        self.opened[0].close()
        self._stage = self._process = None

    def _cleared(self, *, inside: bool) -> None:
        self.transaction.clear()
        self._wrote.clear()
        self.inside = inside

    def _of(self) -> tuple[Crossed, Owner]:
        assert self._stage is not None and self._process is not None  # noqa: S101, PT018  # who uses it has taken it
        return self._stage, self._process

    def _now(self, ahead: timedelta) -> datetime:
        """In a transaction one moment for all of its statements, whatever the lab's clock does meanwhile, as on PostgreSQL."""
        return (moment_of(self.opened[0]) or self._of()[0].time.now()) + ahead

    # ---- wires -------------------------------------------------------------------------------------------------------------------
    def _wire(self, database: Any) -> None:
        real = database.now
        database.now = lambda ahead=timedelta(): Moment(
            bindparam("lab_now", callable_=partial(self._now, ahead), type_=Instant(), unique=True), real(ahead)
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
            connection.execute("PRAGMA synchronous=OFF")  # no power is cut here

    def _connecting(self, *_: object) -> None:
        if self._of()[1].dead:
            raise Buried

    def _execute(self, real: Callable[..., Any], cursor: Any, statement: str, *rest: Any) -> Any:
        if actors.current() is None:
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
        if actors.current() is None:
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
    """The wired databases of a lab's runs, and the statements that were built for them."""

    def __init__(self) -> None:
        self._free: dict[int, list[Wired]] = {}
        self._out: list[tuple[int, Wired]] = []
        self._questions: dict[tuple[ReactionSpec, Database], Question] = {}

    def take(self, number: int, settings: Settings) -> Wired:
        """A database of this store that no process of the run has used."""
        free = self._free.setdefault(number, [])
        wired = free.pop(0) if free else Wired(settings)
        self._out.append((number, wired))
        return wired

    def question(self, spec: ReactionSpec, database: Database) -> Question:
        """Stands in for the class: as it was built before for this database."""
        known = self._questions.get((spec, database))
        if known is None:
            known = self._questions[(spec, database)] = Question(spec, database)
        return known

    def take_back(self) -> Sequence[Wired]:
        """The run is over, and all its threads have ended."""
        back = [wired for _, wired in self._out]
        for number, wired in self._out:
            wired.rest()
            self._free[number].append(wired)
        self._out.clear()
        return back
