"""`App.wait_for`: waits until clauses hold for one record. A hint makes it query at once; only the query decides."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from groundstate.app import validate_condition
from groundstate.app.declaration import mapper_of
from groundstate.app.transports import HintPublishers
from groundstate.clock import SYSTEM_CLOCK, Clock
from groundstate.engine.call.thread_pool import Threads
from groundstate.engine.sql import commit_hooks, db_errors
from groundstate.rules import occurrences, sqlite_pitfalls
from groundstate.store.port import Database
from groundstate.values import keys
from groundstate.values.errors import DeclarationError

LOOKS_S = 0.5  # seconds after which the query is repeated even without a hint, since other processes may write without sending hints
ASKS_S = 0.05  # seconds that each query may take, even if less is left of the timeout
GAP_S = 0.02  # shortest time in seconds between two queries, since many workers may send many hints
_threads = Threads("groundstate-beside-a-loop")


def make_statement(record: type, key: object, clauses: Sequence[Any]) -> Any:
    """Return a SELECT that yields a row once the clauses hold for the record; without clauses, once the record exists.

    Raises:
        DeclarationError: `key` is no primary key of the record, or a clause does not use the record's columns.
    """
    mapper = mapper_of(record)
    what = f"wait_for({record.__name__}, {key!r})"
    clauses = validate_condition.check_clauses_of_wait_for(what, mapper, clauses)
    columns = [getattr(record, mapper.get_property_by_column(column).key) for column in mapper.primary_key]
    try:
        values = _key_values(key, len(columns))
        if len(values) != len(columns):
            raise DeclarationError(
                f"{what}: its primary key has {len(columns)} columns: give a tuple of their values"
                if len(columns) > 1
                else f"{what}: its primary key has one column: give its value"
            )
        key_is = [column == _convert_to_column_type(column, value) for column, value in zip(columns, values, strict=True)]
    except ValueError as error:
        raise DeclarationError(f"{what}: that is no primary key of it: {error}") from None
    return select(1).select_from(record).where(*key_is, *clauses)


def _key_values(key: object, columns: int) -> Sequence[object]:
    """Return the values of a primary key's columns. The key of several columns is a tuple, a list, or the text of a JSON array."""
    if isinstance(key, str) and columns > 1:
        return keys.split_record_text(key, columns)
    return list(key) if isinstance(key, (tuple, list)) else (key,)


def _convert_to_column_type(column: Any, value: object) -> object:
    """Convert a text, such as a key in a URL, to the column's Python type, since not every database accepts a text for it."""
    kind = occurrences.python_type(column.type)
    return keys.parse_value(value, kind) if isinstance(value, str) and not issubclass(kind, str) else value


def running_asyncio_loop(what: str) -> asyncio.AbstractEventLoop:
    """Return the running event loop of asyncio. Raises DeclarationError if none runs, as under trio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise DeclarationError(
            f"{what} needs asyncio's loop, and none runs here: under trio, start the app by app.start() and app.stop(), and query a record"
            " repeatedly by a SELECT of your own"
        ) from None


async def wait_for(
    asked: Sequence[PolledDatabase], publishers: HintPublishers | None, timeout_s: float, clock: Clock = SYSTEM_CLOCK
) -> bool:
    """Return whether the clauses held on one of these databases before the timeout.

    If the clauses did not hold, and the last query of a database failed, the error of that query is raised.
    """
    wake_up = _WakeUp(running_asyncio_loop("wait_for"))
    commit_hooks.add_listener(wake_up)
    if publishers is not None:
        publishers.add_hint_listener(wake_up.wake)
    try:
        end = clock.monotonic() + timeout_s
        while True:
            wake_up.event.clear()
            if publishers is not None:
                publishers.request_hints()
            next_look = clock.monotonic() + GAP_S
            await _poll_databases_until_one_holds(asked, end, clock)
            if any(one.holds for one in asked):
                return True
            left = end - clock.monotonic()
            if left <= 0:
                error = next((one.error for one in asked if one.error is not None), None)
                if error is not None:
                    raise error
                return False
            with suppress(TimeoutError):
                await asyncio.wait_for(wake_up.event.wait(), min(left, LOOKS_S))
            await asyncio.sleep(min(next_look, end) - clock.monotonic())
    finally:
        commit_hooks.remove_listener(wake_up)
        if publishers is not None:
            publishers.remove_hint_listener(wake_up.wake)


async def _poll_databases_until_one_holds(asked: Sequence[PolledDatabase], end: float, clock: Clock) -> None:
    """Query all databases, until the clauses hold on one of them or `LOOKS_S` seconds have passed. A query that takes longer goes on, and
    does not delay the next queries of the other databases.
    """
    looks = []
    for one in asked:
        if not one.is_queried:
            one.is_queried = True
            looks.append(run_in_own_thread_pool(one.run_query))
    while looks and not any(one.holds for one in asked):
        wait = max(end - clock.monotonic(), ASKS_S)
        done, _ = await asyncio.wait(looks, timeout=min(wait, LOOKS_S), return_when=asyncio.FIRST_COMPLETED)
        for look in done:
            look.result()
            looks.remove(look)
        if not done:
            return


def run_in_own_thread_pool(act: Callable[[], object]) -> asyncio.Future[None]:
    """Run `act` in a thread of groundstate's own pool. In the event loop's pool all threads may be blocked, and `act` would never run."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def set_result(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run_act() -> None:
        error = None
        try:
            act()
        except BaseException as met:  # noqa: BLE001  # the error is raised where the future is awaited
            error = met
        with suppress(RuntimeError):  # raised if the event loop is closed already
            loop.call_soon_threadsafe(set_result, error)

    _threads.run(partial(contextvars.copy_context().run, run_act))
    return done


class _WakeUp:
    """Sets an event of an asyncio loop when this process commits anything, or when another process sends a hint."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.event = asyncio.Event()
        self._loop = loop

    def note_commit(self, touched: commit_hooks.TouchedRecords) -> None:  # noqa: ARG002  # which rows were touched does not matter: the query decides
        self.wake()

    def wake(self) -> None:
        with suppress(RuntimeError):  # raised if the event loop is closed already
            self._loop.call_soon_threadsafe(self.event.set)


class PolledDatabase:
    """A database that `wait_for` queries, and the result of the last query."""

    def __init__(self, open_: Callable[[], Database], statement: Any) -> None:
        self._open = open_
        self._statement = statement
        self.is_queried = False
        self.holds = False
        self.error: DBAPIError | None = None

    def run_query(self) -> None:
        """Run the query. A transient database error, such as a lost connection, is kept in `error`; any other error is raised."""
        try:
            database = self._open()
            why = sqlite_pitfalls.reason_to_refuse_expression(self._statement.whereclause, database.engine.dialect)
            if why is not None:
                raise DeclarationError(f"wait_for(...): {why}")
            with database.reading() as connection:
                self.holds = connection.execute(self._statement).first() is not None
            self.error = None
        except DBAPIError as error:
            if not db_errors.is_no_fault_of_record(error):
                raise
            self.error = error
        finally:
            self.is_queried = False
