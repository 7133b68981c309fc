"""Notices a server that accepts data but never answers: it is stopped, stuck on its disk, or behind a proxy that passes nothing on.

TCP keepalive does not notice such a server, since the server's operating system still acknowledges every packet. A statement that runs
long does not prove it either, since a statement may need that time. So once a connection has waited some seconds for an answer, a probe is
sent on a separate connection. If the probe is not answered in time, the waiting connections are shut down, and no statement is begun until
a later probe is answered.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from groundstate.clock import SYSTEM_CLOCK
from groundstate.store import statement_timeouts

ASKS_AFTER_S = 4.0  # seconds for which a connection waits for an answer before a probe is sent
WITHIN_S = 4.0  # seconds within which the server must answer a probe
AGAIN_S = 1.0  # seconds between two probes while the server does not answer


class SilentServerWatch:
    """A SilentServerWatch watches whether a server answers the connections of one engine.

    connect: a function that makes a driver's connection; its argument is the timeout in seconds. silent: True if the server did not answer
    the last probe.
    """

    def __init__(self, engine: Engine, connect: Callable[[float], Any]) -> None:
        self.silent = False
        self._connect = connect
        self._errors = (engine.dialect.loaded_dbapi.Error, OSError)
        # by id: pairs (connection that waits for an answer, monotonic time at which the wait began)
        self._waiting: dict[int, tuple[Any, float]] = {}
        self._asking = threading.Lock()
        self._ask_at = 0.0
        event.listen(engine, "do_connect", self._on_connect)
        event.listen(engine, "before_cursor_execute", self._on_execute)
        event.listen(engine, "after_cursor_execute", self._on_answer)
        event.listen(engine, "handle_error", self._on_error)
        event.listen(engine, "commit", self._on_transaction_end)
        event.listen(engine, "rollback", self._on_transaction_end)
        event.listen(engine, "checkin", self._on_checkin)
        statement_timeouts.check_periodically(self)

    def raise_if_unusable(self) -> None:
        """Raise OperationalError if the last probe was not answered, so that no more threads wait for the server."""
        if self.silent:
            raise OperationalError("(nothing was sent)", None, _NoAnswer(_WORDS))

    # ---- connections that wait ---------------------------------------------------------------------------------------------------
    def _on_connect(self, *_: Any) -> None:
        self.raise_if_unusable()

    def _on_execute(self, _connection: Any, cursor: Any, *_: Any) -> None:
        self._note_waiting(cursor.connection)

    def _on_answer(self, _connection: Any, cursor: Any, *_: Any) -> None:
        self._waiting.pop(id(cursor.connection), None)

    def _on_error(self, context: Any) -> None:
        cursor = getattr(context.execution_context, "cursor", None)
        if cursor is not None:
            self._waiting.pop(id(cursor.connection), None)

    def _on_transaction_end(self, connection: Any) -> None:
        if not connection.invalidated:
            self._note_waiting(connection.connection.driver_connection)

    def _on_checkin(self, driver: Any, _record: Any) -> None:
        self._waiting.pop(id(driver), None)

    def _note_waiting(self, driver: Any) -> None:
        self._waiting[id(driver)] = (driver, SYSTEM_CLOCK.monotonic())

    # ---- called by the thread that checks limits ----------------------------------------------------------------------------------
    def do_due_check(self, now: float) -> None:
        """Start a probe if a connection has waited too long for an answer, or if the last probe was not answered.

        now: the monotonic time in seconds.
        """
        for key, (driver, _) in list(self._waiting.items()):
            if driver.closed:  # the connection broke before it was given back to the pool
                self._waiting.pop(key, None)
        late = self.silent or any(now - since >= ASKS_AFTER_S for _, since in list(self._waiting.values()))
        if late and now >= self._ask_at and self._asking.acquire(blocking=False):
            threading.Thread(target=self._send_probe, name="groundstate-silence", daemon=True).start()

    # ---- run in a separate thread -------------------------------------------------------------------------------------------------
    def _send_probe(self) -> None:
        try:
            self.silent = not self._is_probe_answered()
            now = SYSTEM_CLOCK.monotonic()
            self._ask_at = now + (AGAIN_S if self.silent else ASKS_AFTER_S)
            for driver, since in list(self._waiting.values()) if self.silent else ():
                if now - since >= ASKS_AFTER_S:
                    shut_down_socket(driver)
        finally:
            self._asking.release()

    def _is_probe_answered(self) -> bool:
        """Send a probe, and return whether the server answers it in time. If the server refuses the connection, that is an answer too."""
        began = SYSTEM_CLOCK.monotonic()
        try:
            with closing(self._connect(WITHIN_S)) as driver, statement_timeouts.time_limited(WITHIN_S, lambda: shut_down_socket(driver)):
                driver.execute("SELECT 1")
        except self._errors:
            return SYSTEM_CLOCK.monotonic() - began < WITHIN_S / 2
        return True


def shut_down_socket(driver: Any) -> None:
    """Shut down the socket of this connection. A thread that waits for an answer on the connection then gets an error at once."""
    with suppress(Exception), socket.socket(fileno=os.dup(driver.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


class _NoAnswer(Exception):
    """The `orig` of an OperationalError that groundstate raises itself, where SQLAlchemy would put the driver's error."""

    sqlstate = None


_WORDS = "the server accepts data and does not answer: it is stopped, stuck on its disk, or behind a proxy that passes nothing on"
