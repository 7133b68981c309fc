"""`until`: waiting for one record, woken by hints and answered by SELECTs. Carries nothing out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import inspect, select
from sqlalchemy.exc import DBAPIError

from groundstate.app.telling import Messengers
from groundstate.engine import hints, trouble
from groundstate.rules import miscomputed
from groundstate.store.port import Database
from groundstate.values.errors import DeclarationError

LOOKS_S = 0.5  # how often `until` asks where no hint came: another process may have written
ASKS_S = 0.05  # and so long, at least, it waits for an answer
GAP_S = 0.02  # between two looks, whatever rings: a busy fleet tells of all that it does


def statement(record: type, key: object, clauses: Sequence[Any]) -> Any:
    """Gives a row once the clauses hold for the record. Raises DeclarationError where that is no key of it."""
    columns = _key_columns(record)
    values = key if isinstance(key, tuple) else (key,)
    if len(values) != len(columns):
        raise DeclarationError(f"until({record.__name__}, {key!r}): its primary key has {len(columns)} columns")
    return select(1).select_from(record).where(*[column == value for column, value in zip(columns, values, strict=True)], *clauses)


async def until(asked: Sequence[Asked], messengers: Messengers | None, timeout_s: float) -> bool:
    """Whether it held on one of these databases before the time was over. Raises what one of them met last, where none said so."""
    bell = _Bell(asyncio.get_running_loop())
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
            one.looking = True  # from here on: a thread may not be free for it yet
            looks.append(asyncio.ensure_future(asyncio.to_thread(one.look)))
    while looks and not any(one.holds for one in asked):
        wait = max(end - time.monotonic(), ASKS_S)
        done, _ = await asyncio.wait(looks, timeout=min(wait, LOOKS_S), return_when=asyncio.FIRST_COMPLETED)
        for look in done:
            look.result()
            looks.remove(look)
        if not done:
            return


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
