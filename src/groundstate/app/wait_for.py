"""`wait_for`: waits for one record. Hints wake it, and a SELECT decides. It runs no reaction."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from groundstate.app import validate_condition
from groundstate.app.declaration import mapper_of
from groundstate.app.transports import HintPublishers
from groundstate.engine.call.thread_pool import Threads
from groundstate.engine.sql import commit_hooks, db_errors
from groundstate.rules import occurrences, sqlite_pitfalls
from groundstate.store.port import Database
from groundstate.values import keys
from groundstate.values.errors import DeclarationError

LOOKS_S = 0.5  # seconds between two queries if no hint came, since another process may have written without one
ASKS_S = 0.05  # seconds that a query is waited for at least, even if the timeout is nearly over
GAP_S = 0.02  # seconds between two queries at least, since a busy fleet sends many hints
_threads = Threads("groundstate-beside-a-loop")


def statement(record: type, key: object, clauses: Sequence[Any]) -> Any:
    """Return a SELECT that yields a row once the clauses hold for the record; without clauses, once the record exists.

    Raises:
        DeclarationError: `key` is no primary key of the record, or a clause is none that asks something of it.
    """
    mapper = mapper_of(record)
    what = f"wait_for({record.__name__}, {key!r})"
    clauses = validate_condition.clauses_now(what, mapper, clauses)
    columns = [getattr(record, mapper.get_property_by_column(column).key) for column in mapper.primary_key]
    try:
        values = _values(key, len(columns))
        if len(values) != len(columns):
            raise DeclarationError(
                f"{what}: its primary key has {len(columns)} columns: give a tuple of their values"
                if len(columns) > 1
                else f"{what}: its primary key has one column: give its value"
            )
        key_is = [column == _as_its_type(column, value) for column, value in zip(columns, values, strict=True)]
    except ValueError as error:
        raise DeclarationError(f"{what}: that is no primary key of it: {error}") from None
    return select(1).select_from(record).where(*key_is, *clauses)


def _values(key: object, columns: int) -> Sequence[object]:
    """The key's values: of several columns a tuple or a list, or the text of a JSON array, as the command line takes it."""
    if isinstance(key, str) and columns > 1:
        return keys.record_texts(key, columns)
    return list(key) if isinstance(key, (tuple, list)) else (key,)


def _as_its_type(column: Any, value: object) -> object:
    """Convert a text, such as a key in a URL, to the column's type: some databases accept a text for it, and others refuse it."""
    kind = occurrences.python_type(column.type)
    return keys.value_of(value, kind) if isinstance(value, str) and not issubclass(kind, str) else value


def asyncio_loop(what: str) -> asyncio.AbstractEventLoop:
    """Return the running event loop of asyncio. Raises DeclarationError if none runs, as under trio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise DeclarationError(
            f"{what} needs asyncio's loop, and none runs here: under trio, start the app by app.start() and app.stop(), and ask for a"
            " record by a SELECT of your own, again and again"
        ) from None


async def wait_for(asked: Sequence[PolledDatabase], publishers: HintPublishers | None, timeout_s: float) -> bool:
    """Return whether the clauses held on one of these databases before the timeout.

    If they did not, and a database could not be read in the last query, its error is raised.
    """
    bell = _CommitAlarm(asyncio_loop("wait_for"))
    commit_hooks.listen(bell)
    if publishers is not None:
        publishers.ring(bell.ring)
    try:
        end = time.monotonic() + timeout_s
        while True:
            bell.event.clear()
            if publishers is not None:
                publishers.wait()
            next_look = time.monotonic() + GAP_S
            await _poll_databases_until_one_holds(asked, end)
            if any(one.holds for one in asked):
                return True
            left = end - time.monotonic()
            if left <= 0:
                error = next((one.error for one in asked if one.error is not None), None)
                if error is not None:
                    raise error
                return False
            with suppress(TimeoutError):
                await asyncio.wait_for(bell.event.wait(), min(left, LOOKS_S))
            await asyncio.sleep(min(next_look, end) - time.monotonic())
    finally:
        commit_hooks.stop_listening(bell)
        if publishers is not None:
            publishers.ring_no_more(bell.ring)


async def _poll_databases_until_one_holds(asked: Sequence[PolledDatabase], end: float) -> None:
    """Query all databases, until the clauses hold on one. A database that does not answer is left behind while the others are queried
    again.
    """
    looks = []
    for one in asked:
        if not one.looking:
            one.looking = True
            looks.append(run_in_own_thread_pool(one.look))
    while looks and not any(one.holds for one in asked):
        wait = max(end - time.monotonic(), ASKS_S)
        done, _ = await asyncio.wait(looks, timeout=min(wait, LOOKS_S), return_when=asyncio.FIRST_COMPLETED)
        for look in done:
            look.result()
            looks.remove(look)
        if not done:
            return


def run_in_own_thread_pool(act: Callable[[], object]) -> asyncio.Future[None]:
    """Run `act` in a thread of our own pool. All threads of the event loop's own pool may be waiting, and then `act` would never run."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def work() -> None:
        error = None
        try:
            act()
        except BaseException as met:  # noqa: BLE001  # raised in the coroutine that waits for it
            error = met
        with suppress(RuntimeError):  # raised if the event loop is closed already
            loop.call_soon_threadsafe(tell, error)

    _threads.run(partial(contextvars.copy_context().run, work))
    return done


class _CommitAlarm:
    """Wakes a coroutine when this process commits anything, or when another process sends a hint."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.event = asyncio.Event()
        self._loop = loop

    def hear(self, touched: commit_hooks.Touched) -> None:  # noqa: ARG002  # which rows does not matter: the query decides
        self.ring()

    def ring(self) -> None:
        with suppress(RuntimeError):  # raised if the event loop is closed already
            self._loop.call_soon_threadsafe(self.event.set)


class PolledDatabase:
    """A database that `wait_for` queries, and the result of the last query."""

    def __init__(self, open_: Callable[[], Database], statement: Any) -> None:
        self._open = open_
        self._statement = statement
        self.looking = False
        self.holds = False
        self.error: DBAPIError | None = None

    def look(self) -> None:
        """Run the query. A transient database error, such as a lost connection, is kept in `error`; any other error is raised."""
        try:
            database = self._open()
            why = sqlite_pitfalls.refused(self._statement.whereclause, database.engine.dialect)
            if why is not None:
                raise DeclarationError(f"wait_for(...): {why}")
            with database.reading() as connection:
                self.holds = connection.execute(self._statement).first() is not None
            self.error = None
        except DBAPIError as error:
            if not db_errors.transient(error):
                raise
            self.error = error
        finally:
            self.looking = False
