"""Opens a transaction of ours, with its connection, its session and its one clock reading. It never spans a call, and never outlives its
block.

Inside it a handler may not commit. Writes of a handler past the unit of work are noted, since its record does not show them.
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

from groundstate.engine.sql import commit_hooks, db_errors, transaction_time, unheard_listeners
from groundstate.engine.sql.batch_writes import BatchWrites
from groundstate.engine.sql.calls_in_air import CallsInAir
from groundstate.engine.sql.db_errors import Row, TransactionEnded
from groundstate.engine.sql.handler_times import HandlerTimes
from groundstate.engine.sql.record_cycles import RecordCycles
from groundstate.engine.sql.related_rows import RelatedRowLocks
from groundstate.engine.sql.rows_by_key import RowsByKey
from groundstate.engine.sql.safe_text import user_code
from groundstate.rules.sql_statements import what_it_writes
from groundstate.store import connection_reset, driver_guard
from groundstate.store.driver_guard import KEPT_OPEN, refusal
from groundstate.store.port import Database
from groundstate.store.safe_name import name_of
from groundstate.store.tables import attempt as attempt_table
from groundstate.values.answers import ReactionContext
from groundstate.values.errors import StateRefusedError

log = logging.getLogger("groundstate")

OURS = "groundstate"  # key in session.info: marks a session of the engine, whose commits send their own hints
ELSEWHERE = "groundstate_elsewhere"  # key in session.info: the tables of other stores
BY_KEY = "groundstate_by_key"  # key in session.info: the rows that were read by their key
TRANSACTION = "groundstate_transaction"  # key in session.info: the Transaction that the session belongs to
BESIDE = "groundstate_beside"  # key in session.info: the locks on rows other than the records' own; None on SQLite


@dataclass
class Transaction:
    """The transaction that handlers run in. `now` is the database's clock at its start, and stays the same until its end."""

    database: Database
    connection: Connection
    session: OurSession
    now: datetime
    server: str | None = None  # the server that it runs on, as `Database.server` selects it
    air: CallsInAir | None = None  # the records with an in-flight call of this worker; None: there is no worker
    rings: RecordCycles | None = None  # the records that this worker slows down; None: there is no worker
    touched: commit_hooks.Touched = field(default_factory=commit_hooks.Touched)
    strays: list[str] = field(default_factory=list)  # statements that write and were not sent by the unit of work
    watching: bool = False
    handlers: HandlerTimes = field(default_factory=HandlerTimes)
    writes: BatchWrites | None = None  # what handlers wrote that the conditions of the records after theirs may read
    _moments: dict[tuple[int, bool, datetime | None], ReactionContext] = field(default_factory=dict)
    beside: RelatedRowLocks | None = None  # None on SQLite, where no other transaction writes meanwhile
    asked_s: float = 0.0  # seconds that the database took to answer the first statement
    some_attempts: bool = True  # whether attempt rows may exist: at the start, or since this transaction inserted some
    is_over: Callable[[], bool] = lambda: False  # whether the user's code ended the transaction behind our back
    refuses: Callable[[], bool] = lambda: False  # PostgreSQL: whether a statement failed, so that every other one is refused
    failed: Exception | None = None  # the error of the last statement that failed, other than those that were refused after it
    put_back: Callable[[], None] = lambda: None  # restores the factories of the driver's connection, which the user's code may have changed

    def claimed(self, records: Iterable[Any], tables: Iterable[Any]) -> None:
        """Note that these records were locked, in these tables, before they were read."""
        if self.beside is not None:
            self.beside.claimed(records, tables)

    def lock_first(self, rows: frozenset[Row]) -> None:
        """Lock the rows that another transaction had changed, before anything else in a repeated transaction."""
        if self.beside is not None:
            self.beside.lock_first(self.session, rows)

    def moment(self, *, due: datetime | None = None, call_no: int = 0, restarted: bool = False) -> ReactionContext:
        """Return the ReactionContext of a record. Records with the same arguments share one. due: None where the record has no due time."""
        known = self._moments.get((call_no, restarted, due))
        if known is None:
            then = self.now if due is None else due
            known = ReactionContext(self.now, then, late_by=max(self.now - then, timedelta()), call_no=call_no, restarted=restarted)
            self._moments[(call_no, restarted, due)] = known
        return known


class OurSession(Session):
    """A session inside a transaction of ours: a handler can neither commit it nor roll it back, nor use tables of another store with it.

    The methods themselves refuse that: SQLAlchemy's `commit` would first release the record's savepoint, and its changes could not be
    undone.
    """

    is_in_flush = False
    refused: Exception | None = None  # the exception of the last flush that failed

    def commit(self) -> None:
        raise StateRefusedError(
            "a handler runs inside our transaction and cannot commit it: remove session.commit() and let the handler return"
        )

    def rollback(self) -> None:
        raise StateRefusedError(
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
        """Get a row as SQLAlchemy does, but without a flush where none could change the row, and keep the row in the session after later
        flushes.
        """
        by_key: RowsByKey = self.info[BY_KEY]
        found = None
        if by_key.is_there(self, entity, ident):
            return super().get(entity, ident, **options)
        if not any(options.values()) and by_key.needs_no_flush(self, entity):
            with self.no_autoflush:
                found = super().get(entity, ident)
        if found is None:  # a change that is not flushed yet may have given a row this key
            found = super().get(entity, ident, **options)
        if found is not None:
            by_key.keep(self, found)
        return found

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        """Flush as SQLAlchemy does, but first lock and check the rows that handlers changed in addition to their records. Raises
        LostUpdate.
        """
        beside: RelatedRowLocks | None = self.info.get(BESIDE)
        if beside is not None:
            beside.before_flush(self)
        by_key: RowsByKey = self.info[BY_KEY]
        by_key.forget_what_a_flush_changes(self)
        transaction: Transaction | None = self.info.get(TRANSACTION)
        writes = None if transaction is None else transaction.writes
        if writes is not None:
            writes.before_flush()
        self.is_in_flush = True
        try:
            super().flush(objects)
        except Exception as error:
            self.refused = error
            raise
        finally:
            self.is_in_flush = False
            if writes is not None:
                writes.after_flush()

    @property
    def is_undone(self) -> bool:
        """Whether a flush failed and rolled the savepoint back, and the code that caught its exception did not raise it again."""
        return self.refused is not None and not self.is_active

    def get_bind(self, mapper: Any = None, *, clause: Any = None, **more: Any) -> Any:
        """Return the connection that SQLAlchemy sends a statement to. Raises StateRefusedError for a table of another store."""
        elsewhere: Mapping[MetaData, str] = self.info.get(ELSEWHERE) or {}
        if elsewhere:
            for table in _tables_of(mapper, clause):
                if table.metadata in elsewhere:
                    raise StateRefusedError(
                        f"{table.fullname} lies in another store ({elsewhere[table.metadata]}), and no transaction is over two databases:"
                        " let a reaction there answer it, or treat that store as a service, with a call that writes there in a block"
                        " of call_writes"
                    )
        return super().get_bind(mapper, clause=clause, **more)


def _row_inserted(session: Session, record: Any) -> None:
    beside: RelatedRowLocks | None = session.info.get(BESIDE)
    if beside is not None:
        beside.row_inserted(record)


def _savepoint_rolled_back(session: Session, savepoint: SessionTransaction) -> None:
    beside: RelatedRowLocks | None = session.info.get(BESIDE)
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


def refuse_tables_of_other_stores(database: Database, elsewhere: Mapping[MetaData, str]) -> None:
    """Let sessions on this database refuse these tables from now on. elsewhere: the metadata of other stores, and each store's name."""
    _elsewhere[database] = elsewhere


def _watch(connection: Connection, _cursor: Any, statement: str, _parameters: Any, context: Any, _many: bool) -> None:
    transaction: Transaction | None = connection.info.get(OURS)
    if transaction is None:
        return
    driver_guard.refuse(statement, postgres=transaction.database.name == "postgresql")
    by_key: RowsByKey = transaction.session.info[BY_KEY]
    writes = transaction.writes
    if transaction.session.is_in_flush or not (transaction.watching or by_key.keeps_any or writes is not None):
        return
    if what_it_writes(statement, postgres=transaction.database.name == "postgresql") is not None:
        by_key.forget()
        if writes is not None:
            writes.statement(context)
        if transaction.watching:
            transaction.strays.append(statement)


def _note_error(context: Any) -> None:
    connection = context.connection
    if connection is None or connection.closed or connection.invalidated:
        return
    transaction: Transaction | None = connection.info.get(OURS)
    if transaction is not None and not db_errors.refused_after_another(context.original_exception):
        transaction.failed = context.sqlalchemy_exception or context.original_exception


def watch(database: Database) -> None:
    """Let transactions on this database note what a handler writes with Core statements, and which statement failed. The listeners are
    added once for each engine.
    """
    if not event.contains(database.engine, "handle_error", _note_error):
        event.listen(database.engine, "handle_error", _note_error)
    if not event.contains(database.engine, "before_cursor_execute", _watch):
        event.listen(database.engine, "before_cursor_execute", _watch)


_KEPT_FROM_HANDLERS = ("commit", "rollback", "close", "get_transaction", "get_nested_transaction")


@contextmanager
def _kept_open(connection: Connection, session: Session) -> Iterator[None]:
    """While the block runs, refuse to end the transaction by this connection, by its driver's connection, or by a statement."""
    # The methods of the object are replaced: SQLAlchemy cannot go on with a transaction whose COMMIT is refused in an event.
    kept = vars(connection)
    for name in _KEPT_FROM_HANDLERS:
        kept[name] = partial(_refuse, f"session.connection().{name}()")
    kept["invalidate"] = partial(_invalidate, connection)
    info = connection.info  # read before the block: `.info` of a broken connection raises, and would hide the first error
    info[KEPT_OPEN] = session.info[KEPT_OPEN] = True
    try:
        yield
    finally:
        info.pop(KEPT_OPEN, None)
        del session.info[KEPT_OPEN]
        for name in (*_KEPT_FROM_HANDLERS, "invalidate"):
            del kept[name]


def _invalidate(connection: Connection, broken_by: BaseException | None = None) -> None:
    """Refuse `invalidate()` of the user's code. SQLAlchemy itself calls it with the error where the connection broke."""
    if broken_by is None:
        raise refusal("session.connection().invalidate()")
    Connection.invalidate(connection, broken_by)


def _refuse(what: str, *_: Any) -> NoReturn:
    raise refusal(what)


@lru_cache(maxsize=128)
def _opening(database: Database) -> Any:
    """Build the first statement of each transaction: it selects the time, whether any attempt exists, and the server.

    On PostgreSQL it also sets the app's name, for the triggers that report who wrote (triggers.py).
    """
    told = [func.set_config("groundstate.app", bindparam("app"), true())] if database.name == "postgresql" else []
    return select(database.now(), exists(select(literal_column("1")).select_from(attempt_table)), database.server, *told)


@contextmanager
def writing(database: Database, app: str, *, wait: timedelta | None = None) -> Iterator[Transaction]:
    """Open a transaction that commits at the end of the block, and rolls back on any exception. Its hints are sent after the commit."""
    touched = commit_hooks.Touched(ours=app)
    info = {OURS: True, ELSEWHERE: _elsewhere.get(database), BY_KEY: RowsByKey(database)}
    with database.writing(wait=wait) as connection, OurSession(bind=connection, expire_on_commit=False, info=info) as session:
        unheard_listeners.warn_of_unheard_listeners(session)
        beside = session.info[BESIDE] = RelatedRowLocks(database) if database.locks_rows else None
        resting = connection_reset.resting(connection)
        is_over = driver_guard.asks_if_over(resting.driver)
        asked = time.monotonic()
        now, some, server, *_ = connection.execute(_opening(database), {"app": app}).one()
        transaction = Transaction(
            database, connection, session, now, server=server, touched=touched, beside=beside, some_attempts=bool(some),
            asked_s=time.monotonic() - asked, is_over=is_over, refuses=driver_guard.asks_if_refusing(resting.driver),
            put_back=resting.put_back,
        )  # fmt: skip
        marks = connection.info  # read before the block: `.info` of a broken connection raises, and would hide the first error
        marks[OURS] = session.info[TRANSACTION] = transaction
        try:
            with transaction_time.hold_transaction_time(database, now), _kept_open(connection, session):
                yield transaction
                resting.put_back()
                with user_code():
                    session.flush()
                if is_over():
                    raise TransactionEnded
        except SQLAlchemyError as error:
            if db_errors.transient(error) or not is_over():
                raise
            # The error may be that a savepoint is gone with the transaction. Its record may not exist any more to be marked as failed, so
            # it is logged here.
            ended = error if isinstance(error, TransactionEnded) else TransactionEnded(error=error)
            log.error("%s", ended, extra={"event": "transaction_ended"})  # noqa: TRY400  # its message says what happened
            raise ended from error.__cause__ if ended is error else error
        finally:
            marks.pop(OURS, None)
        touched.merge(commit_hooks.collected(session))
    if touched:
        touched.place = name_of(database.settings.url)
        commit_hooks.publish_hint(touched)
