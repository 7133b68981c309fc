"""Notices a server that takes what is sent to it and never answers: stopped, stuck on its disk, or behind a proxy that passes nothing on.

Keepalive does not show that, since the other end's system acknowledges everything. A statement of ours may take long, so its time does not
show it either. So once an answer has been awaited for some seconds, a probe is sent on a separate connection. Where that brings no answer
in time, the connections that wait are shut down, and nothing is begun until an answer came.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from groundstate.store import statement_timeouts

ASKS_AFTER_S = 4.0  # seconds of waiting for an answer, after which a probe is sent
WITHIN_S = 4.0  # seconds in which a probe must be answered
AGAIN_S = 1.0  # seconds between two probes while the server is silent


class SilentServerWatch:
    """Watches whether one server answers the connections of one engine. connect: makes a driver's connection, within so many seconds.

    silent: whether the server is known not to answer.
    """

    def __init__(self, engine: Engine, connect: Callable[[float], Any]) -> None:
        self.silent = False
        self._connect = connect
        self._errors = (engine.dialect.loaded_dbapi.Error, OSError)
        self._waiting: dict[int, tuple[Any, float]] = {}  # connections that wait for an answer, and since when (monotonic)
        self._asking = threading.Lock()
        self._ask_at = 0.0
        event.listen(engine, "do_connect", self._connects)
        event.listen(engine, "before_cursor_execute", self._asked)
        event.listen(engine, "after_cursor_execute", self._answered)
        event.listen(engine, "handle_error", self._failed)
        event.listen(engine, "commit", self._ends)
        event.listen(engine, "rollback", self._ends)
        event.listen(engine, "checkin", self._given_back)
        statement_timeouts.look_at(self)

    def refuse(self) -> None:
        """Raise OperationalError while the server is known not to answer, so that no more threads wait for it."""
        if self.silent:
            raise OperationalError("(nothing was sent)", None, _NoAnswer(_WORDS))

    # ---- connections that wait ---------------------------------------------------------------------------------------------------
    def _connects(self, *_: Any) -> None:
        self.refuse()

    def _asked(self, _connection: Any, cursor: Any, *_: Any) -> None:
        self._wait(cursor.connection)

    def _answered(self, _connection: Any, cursor: Any, *_: Any) -> None:
        self._waiting.pop(id(cursor.connection), None)

    def _failed(self, context: Any) -> None:
        cursor = getattr(context.execution_context, "cursor", None)
        if cursor is not None:
            self._waiting.pop(id(cursor.connection), None)

    def _ends(self, connection: Any) -> None:
        if not connection.invalidated:
            self._wait(connection.connection.driver_connection)

    def _given_back(self, driver: Any, _record: Any) -> None:
        self._waiting.pop(id(driver), None)

    def _wait(self, driver: Any) -> None:
        self._waiting[id(driver)] = (driver, time.monotonic())

    # ---- called by the thread that checks limits ----------------------------------------------------------------------------------
    def look(self, now: float) -> None:
        """Start a probe of the server where an answer has been awaited for long, and again and again while the server is silent."""
        for key, (driver, _) in list(self._waiting.items()):
            if driver.closed:  # it broke, and was not given back to the pool
                self._waiting.pop(key, None)
        late = self.silent or any(now - since >= ASKS_AFTER_S for _, since in list(self._waiting.values()))
        if late and now >= self._ask_at and self._asking.acquire(blocking=False):
            threading.Thread(target=self._ask, name="groundstate-silence", daemon=True).start()

    # ---- run in a separate thread -------------------------------------------------------------------------------------------------
    def _ask(self) -> None:
        try:
            self.silent = not self._answers()
            now = time.monotonic()
            self._ask_at = now + (AGAIN_S if self.silent else ASKS_AFTER_S)
            for driver, since in list(self._waiting.values()) if self.silent else ():
                if now - since >= ASKS_AFTER_S:
                    hang_up(driver)
        finally:
            self._asking.release()

    def _answers(self) -> bool:
        """Return whether the server answers a probe in time. A refused connection is an answer too."""
        began = time.monotonic()
        try:
            with closing(self._connect(WITHIN_S)) as driver, statement_timeouts.limited(WITHIN_S, lambda: hang_up(driver)):
                driver.execute("SELECT 1")
        except self._errors:
            return time.monotonic() - began < WITHIN_S / 2
        return True


def hang_up(driver: Any) -> None:
    """Shut down the socket of this connection: that breaks it, and ends the wait of the thread that uses it."""
    with suppress(Exception), socket.socket(fileno=os.dup(driver.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


class _NoAnswer(Exception):
    """Takes the place of a driver's error."""

    sqlstate = None


_WORDS = "the server takes what is sent to it, and does not answer: stopped, stuck on its disk, or behind a proxy that passes nothing on"
