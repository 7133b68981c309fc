"""The transport over LISTEN and NOTIFY of PostgreSQL, on connections of its own.

A transaction that has called NOTIFY takes a server-wide lock when it commits, so hints are never sent in a transaction that does other
work. The server holds a notification in memory until each listener has read it; none survives a restart.
"""

from __future__ import annotations

import base64
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from groundstate.rules.hint_codec import ROWS, channel_of
from groundstate.transport.port import Finding
from groundstate.transport.reconnecting import ReconnectingTransport, cut_if_slower_than
from groundstate.values import keepalive
from groundstate.values.after_fork import forsake_in_child, hang_up
from groundstate.values.driver_arguments import from_asyncpg

with suppress(ImportError):  # from_url.py raises, with the cure, before anything here is used
    import psycopg
    from psycopg import sql

Connect = Callable[..., Any]  # a function that returns a psycopg connection
PROBE = "probe "
PROBED_WITHIN_S = 3.0  # seconds that a test notification may take to be sent, and again to arrive
ANSWERS_WITHIN_S = 5.0  # seconds for the statements that set up a connection; libpq's own timeout covers only connecting
_CLIENT = {**keepalive.CLIENT, "connect_timeout": 5, "application_name": "groundstate hints"}
_PAYLOAD_MOST = 7_999  # bytes: PostgreSQL's limit of a NOTIFY payload


class PostgresTransport(ReconnectingTransport):
    """The transport over LISTEN and NOTIFY.

    Args:
        arguments: Connection arguments of psycopg. They must lead to the server directly, not through a pooler.
        also: Further channels to listen on. Their payloads are passed on as hints with the prefix `rows:`.
        connect: The function to call with the arguments; None for `psycopg.connect`.
    """

    def __init__(self, arguments: Mapping[str, Any], also: Sequence[str] = (), connect: Connect | None = None) -> None:
        given = {**_CLIENT, **arguments, "application_name": _CLIENT["application_name"]}
        super().__init__("postgresql", _Driver(partial(connect or psycopg.connect, **given, autocommit=True), tuple(also)))


def of_url(url: str, *, by_asyncpg: bool = False) -> PostgresTransport:
    """Return the transport for a URL of libpq or, if `by_asyncpg`, for a URL with options of asyncpg.

    Raises:
        ValueError: libpq cannot read the URL. The message does not repeat it, since it may hold a password.
        StoreRefusedError: An option of asyncpg has no equivalent in libpq.
    """
    place, _, query = url.partition("?")
    by_words = from_asyncpg(dict(parse_qsl(query))) if by_asyncpg else {}
    try:
        return PostgresTransport({**psycopg.conninfo.conninfo_to_dict(place if by_asyncpg else url), **by_words})
    except psycopg.ProgrammingError:
        raise ValueError from None


class _Driver:
    def __init__(self, connect: Connect, also: tuple[str, ...]) -> None:
        self._connect = connect
        self._also = also

    def findings(self, subject: str) -> list[Finding]:  # noqa: ARG002  # the answer is the same for every subject
        """Return no findings: NOTIFY cannot store messages."""
        return []

    def listen(self, subject: str) -> _Listening:
        return _Listening(self._connect, channel_of(subject), self._also)

    def speak(self, subject: str) -> _Speaking:
        return _Speaking(self._connect, channel_of(subject))


class _Connection:
    """One connection of the transport. A forked child process does not use or end it."""

    def __init__(self, connect: Connect, channel: str) -> None:
        self._channel = channel
        self.connection: psycopg.Connection[Any] = connect()
        self._socket = socket.socket(fileno=os.dup(self.connection.fileno()))  # `cut` may shut it down while libpq waits
        forsake_in_child(self)

    def _settle(self) -> None:
        """Set the server's keepalive settings for this session, so that it ends soon after its client hangs or is gone.

        A listener that does not read would fill the notification queue that all databases of the server share, and commits fail once it is
        full. Called only after `_prove`: a pooler would later give this session, with our settings, to other clients.
        """
        for name, value in keepalive.SERVER.items():
            with suppress(psycopg.DatabaseError):
                self.connection.execute("SELECT set_config(%s, %s, false)", (name, value))

    def cut(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.connection.close()
        self._socket.close()

    def forsake(self) -> None:
        """Drop the connection in a forked child, without ending the parent's session."""
        self._socket.close()
        if not self.connection.closed:
            hang_up(self.connection.fileno())


class _Listening(_Connection):
    def __init__(self, connect: Connect, channel: str, also: tuple[str, ...]) -> None:
        super().__init__(connect, channel)
        try:
            with cut_if_slower_than(ANSWERS_WITHIN_S, self.cut):
                for one in (channel, *also):
                    self.connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(one)))
                self._prove(connect)
                self._settle()
        except BaseException:
            self.close()
            raise

    def heard(self, wait_s: float) -> list[bytes]:
        """Wait up to `wait_s` seconds for a notification, and return it together with those that arrived with it."""
        found = []
        for one in self.connection.notifies(timeout=wait_s, stop_after=1):
            if one.channel != self._channel:
                found.append(ROWS + one.payload.encode())
            elif not one.payload.startswith(PROBE):
                found.append(_read(one.payload))
        return found

    def _prove(self, connect: Connect) -> None:
        """Send one notification from a second connection, and raise ConnectionError unless it arrives within a few seconds.

        Behind a pooler in transaction mode LISTEN succeeds, but its notifications never reach this client.
        """
        mark = PROBE + secrets.token_hex(8)
        other = _Connection(connect, self._channel)
        try:
            with cut_if_slower_than(PROBED_WITHIN_S, other.cut):
                other.connection.execute("SELECT pg_notify(%s, %s)", (self._channel, mark))
        finally:
            other.close()
        end = time.monotonic() + PROBED_WITHIN_S
        while (left := end - time.monotonic()) > 0:
            if any(one.payload == mark for one in self.connection.notifies(timeout=left, stop_after=1)):
                return
        message = "what is notified does not come back, as behind a pooler in transaction mode: give Store(..., direct=) a URL past it"
        raise ConnectionError(message)


class _Speaking(_Connection):
    """A connection for NOTIFY. It is opened after a listening connection with the same arguments was proved to receive notifications."""

    def __init__(self, connect: Connect, channel: str) -> None:
        super().__init__(connect, channel)
        with cut_if_slower_than(ANSWERS_WITHIN_S, self.cut):
            self._settle()

    def say(self, hints: Sequence[bytes]) -> None:
        payloads = [payload for hint in hints if len(payload := _written(hint)) <= _PAYLOAD_MOST]
        if payloads:
            self.connection.execute("SELECT pg_notify(%s, said) FROM unnest(%s::text[]) AS said", (self._channel, payloads))


def _written(hint: bytes) -> str:
    """Return the hint as text for a payload: printable ASCII stays readable after `=`, anything else is Base64 after `~`."""
    if hint.isascii() and b"\0" not in hint:
        return "=" + hint.decode()
    return "~" + base64.b64encode(hint).decode()


def _read(payload: str) -> bytes:
    if payload.startswith("~"):
        with suppress(ValueError):
            return base64.b64decode(payload[1:], validate=True)
    return payload.removeprefix("=").encode()
