"""Opens a transaction of groundstate, with its connection, its session, and the time at its start. No transaction spans a call.

A handler that runs in the transaction may not commit. Writes of a handler that bypass the unit of work are noted, since its record does not
show them.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import Any, NoReturn, Protocol

from sqlalchemy import Connection, MetaData, Table, bindparam, event, exists, func, inspect, literal_column, select, true
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.sql import visitors

from groundstate.clock import SYSTEM_CLOCK
from groundstate.engine.sql import commit_hooks, db_errors, transaction_time
from groundstate.engine.sql.calls_in_air import InFlightCalls
from groundstate.engine.sql.db_errors import RelatedRow, TransactionEnded
from groundstate.engine.sql.record_cycles import RecordCycles
from groundstate.engine.sql.related_rows import RelatedRowLocks
from groundstate.engine.sql.rows_by_key import RowsByKey
from groundstate.engine.sql.safe_text import running_user_code
from groundstate.rules.sql_statements import describe_write
from groundstate.store import connection_reset, driver_guard
from groundstate.store.driver_guard import KEPT_OPEN, transaction_end_refusal
from groundstate.store.port import Database
from groundstate.store.safe_name import label_of_url
from groundstate.store.tables import attempt as attempt_table
from groundstate.values.answers import ReactionContext
from groundstate.values.errors import StateRefusedError

log = logging.getLogger("groundstate")

OURS = "groundstate"  # key in session.info of groundstate's own sessions, which send their own hints (which records a commit touched)
ELSEWHERE = "groundstate_elsewhere"  # key in session.info, for the tables of other stores
BY_KEY = "groundstate_by_key"  # key in session.info, for the rows that were loaded by key
TRANSACTION = "groundstate_transaction"  # key in session.info, for the Transaction to which the session belongs
BESIDE = "groundstate_beside"  # key in session.info, for the locks on rows other than the records' own; None on SQLite


@dataclass(slots=True)
class HandlerTimes:
    """How long the handlers of one transaction ran, and for which record the handler ran longest, for messages about slow transactions.
    Measuring costs two clock reads per record; texts are made only when they are needed.
    """

    monotonic: Callable[[], float] = SYSTEM_CLOCK.monotonic  # the clock, in seconds
    total_s: float = 0.0
    longest_s: float = 0.0
    _longest: tuple[Any, ...] | None = None
    _now: tuple[Any, ...] | None = None
    _since: float = 0.0

    def note_handler_start(self, key: tuple[Any, ...]) -> None:
        """Note that the handler starts on the record with this key."""
        self._now, self._since = key, self.monotonic()

    def note_handler_end(self) -> None:
        """Note that the handler that started last has ended."""
        took_s = self.monotonic() - self._since
        self.total_s += took_s
        if took_s >= self.longest_s:
            self.longest_s, self._longest = took_s, self._now
        self._now = None

    @property
    def any_ran(self) -> bool:
        """Whether any handler has run in this transaction."""
        return self._longest is not None

    @property
    def current_record(self) -> str | None:
        """The key, as text, of the record on which a handler runs now; None if no handler runs."""
        return _key_text(self._now)

    @property
    def longest_record(self) -> str | None:
        """The key, as text, of the record on which a handler ran longest; None before the first handler has run."""
        return _key_text(self._longest)

    def describe_slow_transaction(self, took_s: float) -> str:
        """Return a phrase that says where the time of a slow transaction went: into its handlers, or into statements that waited. took_s:
        The duration of the transaction in seconds.
        """
        if self.total_s * 2 < took_s:
            waits = "the rest waited, as for a row that another transaction had locked, or for the disk"
            return f"{self.total_s:.1f} s of it in handlers: {waits}"
        on = f"{self.longest_s:.1f} s of them on record {self.longest_record}"
        return f"{self.total_s:.1f} s of it in handlers, {on}: a handler that waits for something blocks others: move the wait into a call"


def _key_text(key: tuple[Any, ...] | None) -> str | None:
    return None if key is None else ",".join(map(str, key))


class WriteNotes(Protocol):
    """Notes what the handlers of a batch write: by flushes, and by statements that the unit of work does not send."""

    def before_flush(self) -> None: ...
    def after_flush(self) -> None: ...
    def note_statement(self, context: Any) -> None: ...


@dataclass
class Transaction:
    """A transaction in which handlers run. `now` is the time by the database's clock at its start, and does not change until its end."""

    database: Database
    connection: Connection
    session: OurSession
    now: datetime
    server: str | None = None  # the server on which the transaction runs, as `Database.server_id_sql` selects it; None if unknown
    air: InFlightCalls | None = None  # the records of this worker with a call in flight; None outside of a worker
    rings: RecordCycles | None = None  # the cycles of reactions that this worker slows down; None outside of a worker
    touched: commit_hooks.TouchedRecords = field(default_factory=commit_hooks.TouchedRecords)
    strays: list[str] = field(default_factory=list)  # writing statements that bypassed the unit of work
    watching: bool = False
    handlers: HandlerTimes = field(default_factory=HandlerTimes)
    writes: WriteNotes | None = None  # notes what the handlers of the batch write; None while no batch is handled
    _moments: dict[tuple[int, bool, datetime | None], ReactionContext] = field(default_factory=dict)
    beside: RelatedRowLocks | None = None  # locks on other rows that handlers change; None on SQLite
    asked_s: float = 0.0  # seconds: how long the first statement took, as a measure for one round trip
    some_attempts: bool = True  # whether any attempts may exist: they were found at the start, or this transaction inserted them
    is_over: Callable[[], bool] = lambda: False  # tells whether the user's code has ended the transaction by other means than its session
    refuses: Callable[[], bool] = lambda: False  # tells whether a statement failed, after which PostgreSQL refuses all later statements
    failed: Exception | None = None  # the last error of a statement; refusals that follow an earlier error do not count
    put_back: Callable[[], None] = lambda: None  # undoes what the user's code has set on the driver's connection

    def note_claimed(self, records: Iterable[Any], tables: Iterable[Any]) -> None:
        """Note that these records were locked in these tables before they were read."""
        if self.beside is not None:
            self.beside.note_claimed(records, tables)

    def lock_first(self, rows: frozenset[RelatedRow]) -> None:
        """In a transaction that is repeated after a lost update, lock the rows that another transaction had changed. Call it before any
        other statement.
        """
        if self.beside is not None:
            self.beside.lock_first(self.session, rows)

    def context_for(self, *, due: datetime | None = None, call_no: int = 0, restarted: bool = False) -> ReactionContext:
        """Return the ReactionContext for the handler of a record. Calls with the same arguments return the same object. due: The record's
        due time; None if it has none.
        """
        known = self._moments.get((call_no, restarted, due))
        if known is None:
            then = self.now if due is None else due
            known = ReactionContext(self.now, then, late_by=max(self.now - then, timedelta()), call_no=call_no, restarted=restarted)
            self._moments[(call_no, restarted, due)] = known
        return known


class OurSession(Session):
    """A session in a transaction of groundstate. With it a handler can neither commit the transaction, nor roll it back, nor use tables of
    another store.

    The methods themselves refuse this. An event would come too late: SQLAlchemy's `commit` would first release the record's savepoint, and
    then the record's changes could not be undone any more.
    """

    is_in_flush = False
    refused: Exception | None = None  # the exception of the last flush that failed; None if none failed

    def commit(self) -> None:
        raise StateRefusedError(
            "a handler runs inside our transaction and cannot commit it: remove session.commit() and let the handler return"
        )

    def rollback(self) -> None:
        raise StateRefusedError(
            "a handler runs inside our transaction and cannot roll it back: remove session.rollback(), and raise what went wrong"
        )

    def get_transaction(self) -> NoReturn:
        raise transaction_end_refusal("session.get_transaction(), whose rollback() would undo what others did")

    def invalidate(self) -> NoReturn:
        raise transaction_end_refusal("session.invalidate(), which throws our connection away")

    def close(self) -> None:
        if KEPT_OPEN in self.info:
            raise transaction_end_refusal("session.close(), which forgets the other records of the batch as well")
        super().close()

    def reset(self) -> NoReturn:
        raise transaction_end_refusal("session.reset(), which forgets the other records of the batch as well")

    def get(self, entity: Any, ident: Any, **options: Any) -> Any:
        """Get a row as SQLAlchemy does, but without a flush if no flush could change the row. Keep the row in the session after later
        flushes.
        """
        by_key: RowsByKey = self.info[BY_KEY]
        found = None
        if by_key.is_loaded(self, entity, ident):
            return super().get(entity, ident, **options)
        if not any(options.values()) and by_key.can_read_without_flush(self, entity):
            with self.no_autoflush:
                found = super().get(entity, ident)
        if found is None:  # a change that is not flushed yet may give some row this key
            found = super().get(entity, ident, **options)
        if found is not None:
            by_key.keep_record(self, found)
        return found

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        """First lock and check the rows that handlers changed in addition to their records, and then flush as SQLAlchemy does.

        Raises LostUpdate if another transaction has changed such a row.
        """
        beside: RelatedRowLocks | None = self.info.get(BESIDE)
        if beside is not None:
            beside.lock_and_check_before_flush(self)
        by_key: RowsByKey = self.info[BY_KEY]
        by_key.forget_records_before_flush(self)
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
        """Whether a flush failed and rolled the savepoint back, and the user's code caught the exception and went on."""
        return self.refused is not None and not self.is_active

    def get_bind(self, mapper: Any = None, *, clause: Any = None, **more: Any) -> Any:
        """Return the connection to which SQLAlchemy sends a statement. Raises StateRefusedError if the statement uses a table of another
        store.
        """
        elsewhere: Mapping[MetaData, str] = self.info.get(ELSEWHERE) or {}
        if elsewhere:
            for table in _tables_to_bind(mapper, clause):
                if table.metadata in elsewhere:
                    raise StateRefusedError(
                        f"{table.fullname} lies in another store ({elsewhere[table.metadata]}), and no transaction is over two databases:"
                        " let a reaction there answer it, or treat that store as a service, with a call that writes there in a block"
                        " of call_writes"
                    )
        return super().get_bind(mapper, clause=clause, **more)


def _note_row_inserted(session: Session, record: Any) -> None:
    beside: RelatedRowLocks | None = session.info.get(BESIDE)
    if beside is not None:
        beside.note_inserted(record)


def _forget_locks_after_rollback(session: Session, savepoint: SessionTransaction) -> None:
    beside: RelatedRowLocks | None = session.info.get(BESIDE)
    if beside is not None:
        beside.forget_locks_of_savepoint(savepoint)


event.listen(OurSession, "pending_to_persistent", _note_row_inserted)
event.listen(OurSession, "after_soft_rollback", _forget_locks_after_rollback)


def _tables_to_bind(mapper: Any, clause: Any) -> Iterator[Table]:
    if mapper is not None:
        yield from (one for one in inspect(mapper).tables if isinstance(one, Table))
    if clause is not None:
        yield from (one for one in visitors.iterate(clause) if isinstance(one, Table))


_elsewhere: weakref.WeakKeyDictionary[Database, Mapping[MetaData, str]] = weakref.WeakKeyDictionary()


def refuse_tables_of_other_stores(database: Database, elsewhere: Mapping[MetaData, str]) -> None:
    """From now on, refuse these tables in groundstate's sessions on this database. elsewhere: The metadata of each other store, with that
    store's name.
    """
    _elsewhere[database] = elsewhere


def _note_or_refuse_statement(connection: Connection, _cursor: Any, statement: str, _parameters: Any, context: Any, _many: bool) -> None:
    """Before a statement is sent in a transaction of groundstate, refuse it if it would end the transaction, and note it if it writes."""
    transaction: Transaction | None = connection.info.get(OURS)
    if transaction is None:
        return
    driver_guard.refuse_statement(statement, postgres=transaction.database.name == "postgresql")
    by_key: RowsByKey = transaction.session.info[BY_KEY]
    writes = transaction.writes
    if transaction.session.is_in_flush or not (transaction.watching or by_key.has_kept_records or writes is not None):
        return
    if describe_write(statement, postgres=transaction.database.name == "postgresql") is not None:
        by_key.forget_records()
        if writes is not None:
            writes.note_statement(context)
        if transaction.watching:
            transaction.strays.append(statement)


def _note_error(context: Any) -> None:
    """Note the error of a statement in its transaction, unless it is only a refusal that follows an earlier error: PostgreSQL's refusal of
    a later statement, or ours of the rollback by which SQLAlchemy ends a failed flush.
    """
    connection = context.connection
    if connection is None or connection.closed or connection.invalidated:
        return
    transaction: Transaction | None = connection.info.get(OURS)
    if transaction is None or (transaction.failed is not None and isinstance(context.original_exception, StateRefusedError)):
        return
    if not db_errors.is_refusal_after_failure(context.original_exception):
        transaction.failed = context.sqlalchemy_exception or context.original_exception


def watch_statements(database: Database) -> None:
    """From now on, let transactions on this database note which Core statements of handlers write, and which statement failed.

    The listeners are added once per engine.
    """
    if not event.contains(database.engine, "handle_error", _note_error):
        event.listen(database.engine, "handle_error", _note_error)
    if not event.contains(database.engine, "before_cursor_execute", _note_or_refuse_statement):
        event.listen(database.engine, "before_cursor_execute", _note_or_refuse_statement)


_KEPT_FROM_HANDLERS = ("commit", "rollback", "close", "get_transaction", "get_nested_transaction")


@contextmanager
def _refusing_to_end(connection: Connection, session: Session) -> Iterator[None]:
    """While the block runs, refuse to end the transaction: through this connection, through its driver's connection, or by a statement."""
    # Methods of the connection are replaced, since an event listener does not suffice: after a listener has refused a COMMIT, SQLAlchemy
    # cannot go on with the transaction.
    kept = vars(connection)
    for name in _KEPT_FROM_HANDLERS:
        kept[name] = partial(_raise_refusal, f"session.connection().{name}()")
    kept["invalidate"] = partial(_refuse_invalidate, connection)
    info = connection.info  # read before the block: after it, `.info` of a broken connection would raise and hide the first error
    info[KEPT_OPEN] = session.info[KEPT_OPEN] = True
    try:
        yield
    finally:
        info.pop(KEPT_OPEN, None)
        del session.info[KEPT_OPEN]
        for name in (*_KEPT_FROM_HANDLERS, "invalidate"):
            del kept[name]


def _refuse_invalidate(connection: Connection, broken_by: BaseException | None = None) -> None:
    """Refuse `invalidate()` if the user's code calls it. SQLAlchemy itself calls it with the error that broke the connection, and is not
    refused.
    """
    if broken_by is None:
        raise transaction_end_refusal("session.connection().invalidate()")
    Connection.invalidate(connection, broken_by)


def _raise_refusal(what: str, *_: Any) -> NoReturn:
    raise transaction_end_refusal(what)


_UNHEARD_EVENTS = ("before_commit", "after_commit")
_logged_unheard: set[tuple[str, str]] = set()


def _warn_of_unheard_listeners(session: Session) -> None:
    """Log a warning, once per listener, that the user's listeners to a session's commits are not called for changes that handlers make.

    Groundstate commits through the connection, once for all handlers of a batch, after their changes were flushed. So the session has no
    changes left to show to such a listener, and an error that the listener raised would belong to no single record. Listeners to flushes
    are called for all changes.
    """
    dispatch: Any = session.dispatch
    for name_of_event in _UNHEARD_EVENTS:
        for function in getattr(dispatch, name_of_event):
            module = getattr(function, "__module__", type(function).__module__)
            name = f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"
            if name.startswith("groundstate.") or (name_of_event, name) in _logged_unheard:
                continue
            _logged_unheard.add((name_of_event, name))
            log.warning(
                "%s listens to %s of sessions, and is not called for what handlers change: listen to after_flush, which comes before the"
                " commit, or let a reaction do it, which comes after it",
                name,
                name_of_event,
                extra={"event": "listener_unheard"},
            )


@lru_cache(maxsize=128)
def _first_statement(database: Database) -> Any:
    """Build the first statement of each transaction. It selects the time, whether any attempt exists, and the server.

    On PostgreSQL it also sets the app's name, so that triggers can report who wrote (triggers.py).
    """
    told = [func.set_config("groundstate.app", bindparam("app"), true())] if database.name == "postgresql" else []
    return select(database.now(), exists(select(literal_column("1")).select_from(attempt_table)), database.server_id_sql, *told)


@contextmanager
def writing_transaction(database: Database, app: str, *, wait: timedelta | None = None) -> Iterator[Transaction]:
    """Open a transaction that commits at the end of the block, and rolls back on any exception. Its hints (which records it touched) are
    sent after the commit.
    """
    touched = commit_hooks.TouchedRecords(ours=app)
    info = {OURS: True, ELSEWHERE: _elsewhere.get(database), BY_KEY: RowsByKey(database)}
    with database.writing(wait=wait) as connection, OurSession(bind=connection, expire_on_commit=False, info=info) as session:
        _warn_of_unheard_listeners(session)
        beside = session.info[BESIDE] = RelatedRowLocks(database) if database.locks_rows else None
        resting = connection_reset.initial_state(connection)
        is_over = driver_guard.make_idle_check(resting.driver)
        asked = database.clock.monotonic()
        now, some, server, *_ = connection.execute(_first_statement(database), {"app": app}).one()
        transaction = Transaction(
            database, connection, session, now, server=server, touched=touched, beside=beside, some_attempts=bool(some),
            asked_s=database.clock.monotonic() - asked, is_over=is_over, refuses=driver_guard.make_failed_check(resting.driver),
            put_back=resting.restore_factories, handlers=HandlerTimes(database.clock.monotonic),
        )  # fmt: skip
        marks = connection.info  # read before the block: after it, `.info` of a broken connection would raise and hide the first error
        marks[OURS] = session.info[TRANSACTION] = transaction
        try:
            with transaction_time.hold_transaction_time(database, now), _refusing_to_end(connection, session):
                yield transaction
                resting.restore_factories()
                with running_user_code():
                    session.flush()
                if is_over():
                    raise TransactionEnded
        except SQLAlchemyError as error:
            if db_errors.is_no_fault_of_record(error) or not is_over():
                raise
            # Log here that the transaction was ended, since the error may say only that a savepoint is gone. If the record is gone too, no
            # failed attempt can be written for it.
            ended = error if isinstance(error, TransactionEnded) else TransactionEnded(error=error)
            log.error("%s", ended, extra={"event": "transaction_ended"})  # noqa: TRY400  # its message says what happened
            raise ended from error.__cause__ if ended is error else error
        finally:
            marks.pop(OURS, None)
        touched.merge(commit_hooks.touched_in_session(session))
    if touched:
        touched.place = label_of_url(database.settings.url)
        commit_hooks.publish_hint(touched)
