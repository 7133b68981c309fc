"""`until`: waiting for one record, woken by hints and answered by SELECTs. Carries nothing out."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from sqlalchemy import inspect, select
from sqlalchemy.exc import DBAPIError

from groundstate.app.telling import Messengers
from groundstate.engine import hints, trouble
from groundstate.engine.threads import Threads
from groundstate.rules import miscomputed, rounds
from groundstate.store.port import Database
from groundstate.values import keys
from groundstate.values.errors import DeclarationError

LOOKS_S = 0.5  # how often `until` asks where no hint came: another process may have written
ASKS_S = 0.05  # and so long, at least, it waits for an answer
GAP_S = 0.02  # between two looks, whatever rings: a busy fleet tells of all that it does
_threads = Threads("groundstate-beside-a-loop")


def statement(record: type, key: object, clauses: Sequence[Any]) -> Any:
    """Gives a row once the clauses hold for the record. Raises DeclarationError where that is no key of it."""
    columns = _key_columns(record)
    values = key if isinstance(key, tuple) else (key,)
    if len(values) != len(columns):
        raise DeclarationError(f"until({record.__name__}, {key!r}): its primary key has {len(columns)} columns")
    try:
        key_is = [column == _as_its_type(column, value) for column, value in zip(columns, values, strict=True)]
    except ValueError as error:
        raise DeclarationError(f"until({record.__name__}, {key!r}): that is no primary key of it: {error}") from None
    return select(1).select_from(record).where(*key_is, *clauses)


def _as_its_type(column: Any, value: object) -> object:
    """A text stands for the value that it is the text of, as in a URL: some databases take it for that, and others refuse it."""
    kind = rounds.python_type(column.type)
    return keys.value_of(value, kind) if isinstance(value, str) and not issubclass(kind, str) else value


def asyncio_loop(what: str) -> asyncio.AbstractEventLoop:
    """The loop that runs here. Raises DeclarationError where none of asyncio's does, as under trio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise DeclarationError(
            f"{what} needs asyncio's loop, and none runs here: under trio, start the app by app.start() and app.stop(), and ask for a"
            " record by a SELECT of your own, again and again"
        ) from None


async def until(asked: Sequence[Asked], messengers: Messengers | None, timeout_s: float) -> bool:
    """Whether it held on one of these databases before the time was over. Raises what one of them met last, where none said so."""
    bell = _Bell(asyncio_loop("until"))
    hints.listen(bell)
    if messengers is not None:
        messengers.ring(bell.ring)
    try:
        end = time.monotonic() + timeout_s
        while True:
            bell.event.clear()
            if messengers is not None:
                messengers.wait()
            next_look = time.monotonic() + GAP_S
            await _look(asked, end)
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
        hints.stop_listening(bell)
        if messengers is not None:
            messengers.ring_no_more(bell.ring)


async def _look(asked: Sequence[Asked], end: float) -> None:
    """Asks all, until it holds on one. One that does not answer is not waited for: the others are asked again meanwhile."""
    looks = []
    for one in asked:
        if not one.looking:
            one.looking = True
            looks.append(in_a_thread(one.look))
    while looks and not any(one.holds for one in asked):
        wait = max(end - time.monotonic(), ASKS_S)
        done, _ = await asyncio.wait(looks, timeout=min(wait, LOOKS_S), return_when=asyncio.FIRST_COMPLETED)
        for look in done:
            look.result()
            looks.remove(look)
        if not done:
            return


def in_a_thread(act: Callable[[], object]) -> asyncio.Future[None]:
    """In one of our own: those of the loop may all wait for something, and then it would never be done."""
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
        except BaseException as met:  # noqa: BLE001  # raised by who waits for it
            error = met
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, error)

    _threads.run(partial(contextvars.copy_context().run, work))
    return done


class _Bell:
    """Rings in a loop when anything was committed in this process, or another one tells of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.event = asyncio.Event()
        self._loop = loop

    def hear(self, touched: hints.Touched) -> None:  # noqa: ARG002  # which rows does not matter: it asks
        self.ring()

    def ring(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.event.set)


class Asked:
    """A database that `until` asks, and what it said last."""

    def __init__(self, open_: Callable[[], Database], statement: Any) -> None:
        self._open = open_
        self._statement = statement
        self.looking = False
        self.holds = False
        self.error: DBAPIError | None = None

    def look(self) -> None:
        """Asks. What says nothing about the record is kept in `error`; the rest is raised."""
        try:
            database = self._open()
            why = miscomputed.refused(self._statement.whereclause, database.engine.dialect)
            if why is not None:
                raise DeclarationError(f"until(...): {why}")
            with database.reading() as connection:
                self.holds = connection.execute(self._statement).first() is not None
            self.error = None
        except DBAPIError as error:
            if not trouble.transient(error):
                raise
            self.error = error
        finally:
            self.looking = False


def _key_columns(record: type) -> list[Any]:
    mapper: Any = inspect(record)
    return [getattr(record, mapper.get_property_by_column(column).key) for column in mapper.primary_key]
