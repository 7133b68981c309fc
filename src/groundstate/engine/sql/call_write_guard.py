"""Refuses writes to the app's stores while a call, a lookup or `prepare` runs. A refused write does not reach the database.

After a crash a call may be made again. Anything that the call writes in addition to its outcome would then be written twice (hazard 65,
W14). While a handler runs, only the connection of its own session may write, since two connections would wait for each other's locks.

A context variable tells whether code runs inside a call; it follows tasks, `asyncio.to_thread` and SQLAlchemy's greenlets. Whether a
statement writes is read from its text, as SQLAlchemy passes the text to the driver. A read-only transaction would also refuse the writes of
database functions, but it is not used: it would have to be set on the user's connections, `call_writes` could not lift it within a
transaction, and it refuses SELECT ... FOR UPDATE.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, object_mapper

from groundstate.rules.sql_statements import describe_write
from groundstate.store.same_database import StoreLocation
from groundstate.values.errors import DeclarationError, StateRefusedError

if TYPE_CHECKING:
    from sqlalchemy import URL

    from groundstate.store.port import Database

log = logging.getLogger("groundstate")

CALL_CURE = (
    "that is outside the conclusion, and would be done again after a crash. Return it as the outcome, and let the handler write it; "
    'what must be written now, such as progress or a refreshed token, goes into `with call_writes("why it may be written twice"):`'
)
PREPARE_CURE = "it may read any row and write none, since it runs again for each try and each lookup. Let the handler write it"

HANDLER_CURE = (
    "it is another connection than its session's: the two wait for each other's locks, and what is written there stays when the handler's"
    " own transaction is rolled back, and is written again. Use the session that is given, by a parameter `session: Session`; what must be"
    " written by itself belongs into a call, in a block of call_writes"
)
REDACT_CURE = "it makes one text of another, and writes nothing"


class GuardedCode:
    """A piece of user code whose writes are refused while it runs.

    `what` describes the code, and `cure` says what to do instead; both are for error messages. `places` are the stores that the code may
    not write to.
    """

    __slots__ = ("cure", "may_say", "own", "places", "runs", "what")

    def __init__(self, what: str, cure: str, places: Sequence[StoreLocation], *, may_say: bool, own: Connection | None) -> None:
        self.what = what
        self.cure = cure
        self.places = places
        self.own = own  # the only connection that may write; None if no connection may
        self.may_say = may_say  # whether the code may write inside a block of `call_writes`
        # Set to False when the guarded code ends. Tasks that the code started inherit its context, and may run longer than the code. From
        # its end on, the guard must not apply to these tasks.
        self.runs = True


in_call: ContextVar[GuardedCode | None] = ContextVar("groundstate_in_call", default=None)
# the argument `why` of each block of `call_writes` that is open in this context
_said: ContextVar[tuple[str, ...]] = ContextVar("groundstate_call_writes", default=())

_places: dict[str, tuple[weakref.ref[StoreLocation], ...]] = {}  # the locations of each app's stores, by the app's name
_changing = threading.Lock()


def guard_store(app: str, url: URL, database: Database | None = None) -> StoreLocation:
    """Refuse from now on that calls of this app write to this database. The caller must keep the returned StoreLocation: the guard ends
    when this object is garbage-collected.
    """
    place = StoreLocation(url, database)
    with _changing:
        _places[app] = (*(known for known in _places.get(app, ()) if known() is not None), weakref.ref(place))
        if not event.contains(Engine, "before_cursor_execute", _refuse_writing_statement):
            event.listen(Engine, "before_cursor_execute", _refuse_writing_statement)
    return place


@contextmanager
def refusing_writes(app: str, what: str, cure: str = CALL_CURE, *, may_say: bool = True, own: Connection | None = None) -> Iterator[None]:
    """While the block runs, refuse writes of this context to the app's stores, except through the connection `own`.

    what: A description of the code that runs, such as 'the call charge'.
    cure: What the code should do instead, for the error message.
    may_say: Whether the code may write inside a block of `call_writes`.
    """
    places = [place for known in _places.get(app, ()) if (place := known()) is not None]
    here = GuardedCode(what, cure, places, may_say=may_say, own=own)
    call, said = in_call.set(here), _said.set(())
    try:
        yield
    finally:
        here.runs = False
        with suppress(ValueError):  # a coroutine that did not finish is closed in another context, where these tokens are not valid
            _said.reset(said)
            in_call.reset(call)


@contextmanager
def outside_of_call() -> Iterator[None]:
    """While the block runs, let this context write as if it were outside of any call. It is for work that a call triggers and that is not
    part of the call.
    """
    token = in_call.set(None)
    try:
        yield
    finally:
        in_call.reset(token)


class call_writes:  # noqa: N801  # in lower case, since it reads like a function in `with call_writes(...)`
    """Lets a call, or a lookup, write to the app's own stores while the block runs; outside of such a block these writes are refused.

    After a crash the call may be made again, and then it writes again. Works in sync and async functions, may be nested, and does nothing
    outside of a call. The session that writes must commit by itself: its writes are not part of the transaction that concludes the call.
    Inside `prepare` such a block has no effect: writes stay refused.

    Args:
        why: what makes a second write harmless, such as "progress: the same percentage twice does no harm". It is logged at DEBUG.

    Raises:
        DeclarationError: `why` is empty.
    """

    def __init__(self, why: str) -> None:
        if not str(why or "").strip():
            raise DeclarationError(f'call_writes({why!r}): say why a crash may make it write twice, as in call_writes("a progress row")')
        self._why = why

    def __enter__(self) -> None:
        here = in_call.get()
        if here is not None and here.runs:
            log.debug("%s writes: %s", here.what, self._why, extra={"event": "call_writes", "why": self._why})
        _said.set((*_said.get(), self._why))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _said.set(_said.get()[:-1])


def _code_that_must_not_write() -> GuardedCode | None:
    """Return the code that runs in this context and may not write now; None if writing is allowed, as in nearly all cases."""
    here = in_call.get()
    return None if here is None or not here.runs or (here.may_say and _said.get()) else here


def _refuse_writing_statement(connection: Connection, _cursor: Any, statement: str, *_more: Any) -> None:
    """Before a statement is sent, raise StateRefusedError if it writes to a store to which the code that runs now may not write."""
    here = _code_that_must_not_write()
    if here is None or connection is here.own:
        return
    writes = describe_write(statement, postgres=connection.dialect.name == "postgresql")
    if writes is not None and any(place.is_behind(connection) for place in here.places):
        raise StateRefusedError(f"{here.what} sends {writes} to a store of its app: {here.cure}")


def refuse_flush_in_call(session: Session) -> None:
    """Refuse a flush inside a call before its first statement is sent, so that the session's transaction stays usable.
    `_refuse_writing_statement` refuses the writes that this function misses.

    Raises:
        StateRefusedError: The flush is inside a call, and would write to a store of the app.
    """
    here = _code_that_must_not_write()
    if here is None or (here.own is not None and session.bind is here.own):
        return
    for record in [*session.new, *session.deleted, *(one for one in session.dirty if session.is_modified(one))]:
        mapper = object_mapper(record)
        try:
            url = session.get_bind(mapper).engine.url
        except SQLAlchemyError:
            continue  # the engine of this mapper is known only to the session's own flush
        if any(place.is_at(url) for place in here.places):
            raise StateRefusedError(f"{here.what} writes {getattr(mapper.local_table, 'fullname', '')}, of a store of its app: {here.cure}")
