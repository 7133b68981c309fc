"""While a call, a find or `sends` runs, nothing that it does writes to the app's stores: refused before it reaches the database.

While a handler runs, its own session's connection writes, and no other: the two would wait for each other's locks.

A crash makes the call again, and what it wrote beside its outcome would be done twice (hazard 65, W14). Which code runs inside a call is
told by a context variable, which follows tasks, `asyncio.to_thread` and SQLAlchemy's greenlets. Which statements write is told by their
text, as SQLAlchemy hands it to the driver. A read-only transaction would see what a function writes, too. But it would have to be set on
connections of the user's, `call_writes` could not end it in the middle of a transaction, and it refuses SELECT ... FOR UPDATE.
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

from groundstate.rules.statements import what_it_writes
from groundstate.store.same_database import Place
from groundstate.values.errors import DeclarationError, StateRefused

if TYPE_CHECKING:
    from sqlalchemy import URL

    from groundstate.store.port import Database

log = logging.getLogger("groundstate")

CALL_CURE = (
    "that is outside the conclusion, and would be done again after a crash. Return it as the outcome, and let the handler write it; "
    'what must be written now, such as progress or a refreshed token, goes into `with call_writes("why it may be written twice"):`'
)
SENDS_CURE = "it may read any row and write none, since it runs again for each try and each find. Let the handler write it"

HANDLER_CURE = (
    "it is another connection than its session's: the two wait for each other's locks, and what is written there stays when the handler's"
    " own transaction is rolled back, and is written again. Use the session that is given, by a parameter `session: Session`; what must be"
    " written by itself belongs into a call, in a block of call_writes"
)
REDACT_CURE = "it makes one text of another, and writes nothing"


class Inside:
    """What runs: words for it, the cure, and the stores that it may not write to."""

    __slots__ = ("cure", "may_say", "own", "places", "runs", "what")

    def __init__(self, what: str, cure: str, places: Sequence[Place], *, may_say: bool, own: Connection | None) -> None:
        self.what = what
        self.cure = cure
        self.places = places
        self.own = own  # the one connection by which it may write
        self.may_say = may_say  # whether `call_writes` lets it write
        self.runs = True  # False at its end: a task that it left behind, or whatever it opened for others, has its context for ever


in_call: ContextVar[Inside | None] = ContextVar("groundstate_in_call", default=None)
_said: ContextVar[tuple[str, ...]] = ContextVar("groundstate_call_writes", default=())  # the `why` of each call_writes that is open

_places: dict[str, tuple[weakref.ref[Place], ...]] = {}  # by the name of the app
_changing = threading.Lock()


def watch(app: str, url: URL, database: Database | None = None) -> Place:
    """From now on calls of this app are kept from writing to this database, for as long as somebody holds what is returned."""
    place = Place(url, database)
    with _changing:
        _places[app] = (*(known for known in _places.get(app, ()) if known() is not None), weakref.ref(place))
        if not event.contains(Engine, "before_cursor_execute", _before_statement):
            event.listen(Engine, "before_cursor_execute", _before_statement)
    return place


@contextmanager
def inside(app: str, what: str, cure: str = CALL_CURE, *, may_say: bool = True, own: Connection | None = None) -> Iterator[None]:
    """While the block runs, this context may not write to the stores of the app, but by `own`.

    what: words for what runs, such as 'the call charge'.
    """
    places = [place for known in _places.get(app, ()) if (place := known()) is not None]
    here = Inside(what, cure, places, may_say=may_say, own=own)
    call, said = in_call.set(here), _said.set(())
    try:
        yield
    finally:
        here.runs = False
        with suppress(ValueError):  # a coroutine that nobody finished is closed in another context, to which none of this is known
            _said.reset(said)
            in_call.reset(call)


@contextmanager
def outside() -> Iterator[None]:
    """While the block runs, this context is in no call: for what a call reaches and that is not its own doing."""
    token = in_call.set(None)
    try:
        yield
    finally:
        in_call.reset(token)


class call_writes:  # noqa: N801  # used as a with statement's word
    """Lets a call, or a find, write to the app's own stores while the block runs; outside of such a block that is refused.

    After a crash the call may be made again, and then it writes again. `why` says what makes that right, such as "progress: the same
    percentage twice does no harm". Works in sync and async functions, may be nested, and does nothing outside of a call. What is written is
    committed by the session that writes it, and is no part of the call's conclusion. In `sends` it does not help.

    Raises:
        DeclarationError: `why` says nothing.
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


def _refusing() -> Inside | None:
    """What runs here and may not write just now; None nearly always."""
    here = in_call.get()
    return None if here is None or not here.runs or (here.may_say and _said.get()) else here


def _before_statement(connection: Connection, _cursor: Any, statement: str, *_more: Any) -> None:
    here = _refusing()
    if here is None or connection is here.own:
        return
    writes = what_it_writes(statement, postgres=connection.dialect.name == "postgresql")
    if writes is not None and any(place.is_behind(connection) for place in here.places):
        raise StateRefused(f"{here.what} sends {writes} to a store of its app: {here.cure}")


def refuse_flush(session: Session) -> None:
    """Refuses a flush as a whole, so that the session's transaction is still usable. What is not seen here, `_before_statement` sees.

    Raises:
        StateRefused: inside a call, and it would write to a store of the app.
    """
    here = _refusing()
    if here is None or (here.own is not None and session.bind is here.own):
        return
    for record in [*session.new, *session.deleted, *(one for one in session.dirty if session.is_modified(one))]:
        mapper = object_mapper(record)
        try:
            url = session.get_bind(mapper).engine.url
        except SQLAlchemyError:
            continue  # where it goes is known to the session's own flush alone
        if any(place.is_at(url) for place in here.places):
            raise StateRefused(f"{here.what} writes {getattr(mapper.local_table, 'fullname', '')}, of a store of its app: {here.cure}")
