"""One transaction of ours: its connection, its session, its one moment. Never spans a call, never outlives its block.

Inside it a handler may not commit, and what it writes past the unit of work is noticed, since that cannot be told from its record.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import Any, NoReturn

from sqlalchemy import Connection, MetaData, Table, bindparam, event, exists, func, inspect, literal_column, select, true
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.sql import visitors

from groundstate.engine import hints, one_moment, trouble, unheard
from groundstate.engine.air import Air
from groundstate.engine.beside import Beside
from groundstate.engine.by_key import ByKey
from groundstate.engine.guarded import user_code
from groundstate.engine.handler_times import HandlerTimes
from groundstate.engine.rings import Rings
from groundstate.engine.trouble import Row, TransactionEnded
from groundstate.rules.statements import what_it_writes
from groundstate.store import kept_open, left_behind
from groundstate.store.kept_open import KEPT_OPEN, refusal
from groundstate.store.naming import name_of
from groundstate.store.port import Database
from groundstate.store.tables import attempt as attempt_table
from groundstate.values.answers import Moment
from groundstate.values.errors import StateRefused

log = logging.getLogger("groundstate")

OURS = "groundstate"  # in session.info: a session of the engine, whose commits give their hints themselves
ELSEWHERE = "groundstate_elsewhere"  # in session.info: the tables of other stores
BY_KEY = "groundstate_by_key"  # in session.info: what was asked for by its key
BESIDE = "groundstate_beside"  # in session.info: the rows beside the records that are locked; None on SQLite


@dataclass
class Transaction:
    """What a handler runs in. `now` is the database's clock, one value for all of it."""

    database: Database
    connection: Connection
    session: OurSession
    now: datetime
    server: str | None = None  # what `Database.server` says where this runs
    air: Air | None = None  # for which records this worker has a call in the air; None: there is no worker
    rings: Rings | None = None  # which records this worker slows down; None: there is no worker
    touched: hints.Touched = field(default_factory=hints.Touched)
    strays: list[str] = field(default_factory=list)  # statements that wrote and that the unit of work did not send
    watching: bool = False
    handlers: HandlerTimes = field(default_factory=HandlerTimes)
    _moments: dict[tuple[int, bool, datetime | None], Moment] = field(default_factory=dict)
    beside: Beside | None = None  # None on SQLite, where nobody else writes meanwhile
    asked_s: float = 0.0  # how long the database took to answer its first statement
    some_attempts: bool = True  # whether any attempt row may be there: at the start, or by what this transaction inserted since
    is_over: Callable[[], bool] = lambda: False  # whether somebody's code ended it, past us
    put_back: Callable[[], None] = lambda: None  # the factories of the driver's connection, which somebody's code may have changed

    def claimed(self, records: Iterable[Any], tables: Iterable[Any]) -> None:
        """These are in our hands: they were locked, in these tables, before they were read."""
        if self.beside is not None:
            self.beside.claimed(records, tables)

    def lock_first(self, rows: frozenset[Row]) -> None:
        """Of a transaction that is done again: rows beside the records which somebody else had changed."""
        if self.beside is not None:
            self.beside.lock_first(self.session, rows)

    def moment(self, *, due: datetime | None = None, call_no: int = 0, restarted: bool = False) -> Moment:
        """The same for all records of a batch of which the same is known. due: None where nothing was due."""
        known = self._moments.get((call_no, restarted, due))
        if known is None:
            then = self.now if due is None else due
            known = Moment(self.now, then, late_by=max(self.now - then, timedelta()), call_no=call_no, restarted=restarted)
            self._moments[(call_no, restarted, due)] = known
        return known


class OurSession(Session):
    """A session inside a transaction of ours: a handler can neither commit it nor roll it back, nor reach into another store.

    Refused in the methods themselves: `commit` would first release the record's savepoint, and what was done in it could not be undone.
    """

    is_in_flush = False
    refused: Exception | None = None  # what the last flush that was refused met

    def commit(self) -> None:
        raise StateRefused("a handler runs inside our transaction and cannot commit it: remove session.commit() and let the handler return")

    def rollback(self) -> None:
        raise StateRefused(
            "a handler runs inside our transaction and cannot roll it back: remove session.rollback(), and raise what went wrong"
        )

    def get_transaction(self) -> NoReturn:
        raise refusal("session.get_transaction(), whose rollback() would undo what others did")

    def invalidate(self) -> NoReturn:
        raise refusal("session.invalidate(), which throws our connection away")

    def close(self) -> None:
        if KEPT_OPEN in self.info:
            raise refusal("session.close(), which forgets the other records of the batch as well")
        super().close()

    def reset(self) -> NoReturn:
        raise refusal("session.reset(), which forgets the other records of the batch as well")

    def get(self, entity: Any, ident: Any, **options: Any) -> Any:
        """As ever, but that a row which no flush could change is read without one, and is not forgotten after the next."""
        by_key: ByKey = self.info[BY_KEY]
        found = None
        if by_key.is_there(self, entity, ident):
            return super().get(entity, ident, **options)
        if not any(options.values()) and by_key.needs_no_flush(self, entity):
            with self.no_autoflush:
                found = super().get(entity, ident)
        if found is None:  # or it has this key by a change that is not flushed yet
            found = super().get(entity, ident, **options)
        if found is not None:
            by_key.keep(self, found)
        return found

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        """As ever, but that rows beside the records are locked and looked at first. Raises LostUpdate."""
        beside: Beside | None = self.info.get(BESIDE)
        if beside is not None:
            beside.before_flush(self)
        by_key: ByKey = self.info[BY_KEY]
        by_key.forget_what_a_flush_changes(self)
        self.is_in_flush = True
        try:
            super().flush(objects)
        except Exception as error:
            self.refused = error
            raise
        finally:
            self.is_in_flush = False

    @property
    def is_undone(self) -> bool:
        """Whether a flush was refused, and with it all was rolled back that this savepoint had, which whoever caught it did not say."""
        return self.refused is not None and not self.is_active

    def get_bind(self, mapper: Any = None, *, clause: Any = None, **more: Any) -> Any:
        """SQLAlchemy asks it where each statement goes. Raises StateRefused for a table of another store."""
        elsewhere: Mapping[MetaData, str] = self.info.get(ELSEWHERE) or {}
        if elsewhere:
            for table in _tables_of(mapper, clause):
                if table.metadata in elsewhere:
                    raise StateRefused(
                        f"{table.fullname} lies in another store ({elsewhere[table.metadata]}), and no transaction is over two databases:"
                        " let a reaction there answer it, or treat that store as an outside, with a call that writes there in a block"
                        " of call_writes"
                    )
        return super().get_bind(mapper, clause=clause, **more)


def _row_inserted(session: Session, record: Any) -> None:
    beside: Beside | None = session.info.get(BESIDE)
    if beside is not None:
        beside.row_inserted(record)


def _savepoint_rolled_back(session: Session, savepoint: SessionTransaction) -> None:
    beside: Beside | None = session.info.get(BESIDE)
    if beside is not None:
        beside.savepoint_rolled_back(savepoint)


event.listen(OurSession, "pending_to_persistent", _row_inserted)
event.listen(OurSession, "after_soft_rollback", _savepoint_rolled_back)


def _tables_of(mapper: Any, clause: Any) -> Iterator[Table]:
    if mapper is not None:
        yield from (one for one in inspect(mapper).tables if isinstance(one, Table))
    if clause is not None:
        yield from (one for one in visitors.iterate(clause) if isinstance(one, Table))


_elsewhere: weakref.WeakKeyDictionary[Database, Mapping[MetaData, str]] = weakref.WeakKeyDictionary()


def keep_out(database: Database, elsewhere: Mapping[MetaData, str]) -> None:
    """From now on sessions on this database refuse tables of these, which lie in other stores, by the words for them."""
    _elsewhere[database] = elsewhere


def _watch(connection: Connection, _cursor: Any, statement: str, *_more: Any) -> None:
    transaction: Transaction | None = connection.info.get(OURS)
    if transaction is None:
        return
    kept_open.refuse(statement, postgres=transaction.database.name == "postgresql")
    by_key: ByKey = transaction.session.info[BY_KEY]
    if transaction.session.is_in_flush or not (transaction.watching or by_key.keeps_any):
        return
    if what_it_writes(statement, postgres=transaction.database.name == "postgresql") is not None:
        by_key.forget()
        if transaction.watching:
            transaction.strays.append(statement)


def watch(database: Database) -> None:
    """Lets transactions notice what a handler writes with Core statements. Once an engine."""
    if not event.contains(database.engine, "before_cursor_execute", _watch):
        event.listen(database.engine, "before_cursor_execute", _watch)


_KEPT_FROM_HANDLERS = ("commit", "rollback", "close", "get_transaction", "get_nested_transaction")


@contextmanager
def _kept_open(connection: Connection, session: Session) -> Iterator[None]:
    """While the block runs, nobody ends the transaction by this connection, by its driver's, or by a statement."""
    # On the object itself: a transaction whose COMMIT is refused in an event is of no use to SQLAlchemy any more.
    kept = vars(connection)
    for name in _KEPT_FROM_HANDLERS:
        kept[name] = partial(_refuse, f"session.connection().{name}()")
    kept["invalidate"] = partial(_invalidate, connection)
    info = connection.info  # a connection that broke in the block gives it no more, and would hide by that what broke it
    info[KEPT_OPEN] = session.info[KEPT_OPEN] = True
    try:
        yield
    finally:
        info.pop(KEPT_OPEN, None)
        del session.info[KEPT_OPEN]
        for name in (*_KEPT_FROM_HANDLERS, "invalidate"):
            del kept[name]


def _invalidate(connection: Connection, broken_by: BaseException | None = None) -> None:
    """SQLAlchemy itself does so where the connection broke, and says by what."""
    if broken_by is None:
        raise refusal("session.connection().invalidate()")
    Connection.invalidate(connection, broken_by)


def _refuse(what: str, *_: Any) -> NoReturn:
    raise refusal(what)


@lru_cache(maxsize=128)
def _opening(database: Database) -> Any:
    """The first statement of each transaction: its moment, whether any attempt stands, and on which server. Triggers that tell who wrote
    (triggers.py) are told for which app it is.
    """
    told = [func.set_config("groundstate.app", bindparam("app"), true())] if database.name == "postgresql" else []
    return select(database.now(), exists(select(literal_column("1")).select_from(attempt_table)), database.server, *told)


@contextmanager
def writing(database: Database, app: str, *, wait: timedelta | None = None) -> Iterator[Transaction]:
    """A transaction that commits at the end of the block, and rolls back on any exception. Its hints go out after the commit."""
    touched = hints.Touched(ours=app)
    info = {OURS: True, ELSEWHERE: _elsewhere.get(database), BY_KEY: ByKey(database)}
    with database.writing(wait=wait) as connection, OurSession(bind=connection, expire_on_commit=False, info=info) as session:
        unheard.tell(session)
        beside = session.info[BESIDE] = Beside(database) if database.locks_rows else None
        resting = left_behind.resting(connection)
        is_over = kept_open.asks_if_over(resting.driver)
        asked = time.monotonic()
        now, some, server, *_ = connection.execute(_opening(database), {"app": app}).one()
        transaction = Transaction(
            database, connection, session, now, server=server, touched=touched, beside=beside, some_attempts=bool(some),
            asked_s=time.monotonic() - asked, is_over=is_over, put_back=resting.put_back,
        )  # fmt: skip
        marks = connection.info  # a connection that broke in the block gives them no more, and would hide by that what broke it
        marks[OURS] = transaction
        try:
            with one_moment.held(database, now), _kept_open(connection, session):
                yield transaction
                resting.put_back()
                with user_code():
                    session.flush()
                if is_over():
                    raise TransactionEnded
        except SQLAlchemyError as error:
            if trouble.transient(error) or not is_over():
                raise
            # Or a savepoint was missed that went with it. Its record may not be there to fail any more: so it is said here.
            ended = error if isinstance(error, TransactionEnded) else TransactionEnded(error=error)
            log.error("%s", ended, extra={"event": "transaction_ended"})  # noqa: TRY400  # what happened is in its words
            raise ended from error.__cause__ if ended is error else error
        finally:
            marks.pop(OURS, None)
        touched.merge(hints.collected(session))
    if touched:
        touched.place = name_of(database.settings.url)
        hints.tell(touched)
