"""Hints by LISTEN and NOTIFY of PostgreSQL, on connections of their own: never in anybody's transaction, which would hold a lock on all.

The server keeps a notification in memory until everybody who listens has read it, and nothing over a restart.
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

from groundstate.rules.hint import ROWS, channel_of
from groundstate.transport.connecting import Connecting, limited
from groundstate.transport.port import Finding
from groundstate.values import keepalive
from groundstate.values.arguments import from_asyncpg
from groundstate.values.forks import forsake_in_child, hang_up

with suppress(ImportError):  # `opening` refuses with the cure before anything here is used
    import psycopg
    from psycopg import sql

Connect = Callable[..., Any]  # which makes a connection of psycopg's
PROBE = "probe "
PROBED_WITHIN_S = 3.0
ANSWERS_WITHIN_S = 5.0  # so long each connection may take until it is as it is to be: libpq's own limit is for connecting alone
_CLIENT = {**keepalive.CLIENT, "connect_timeout": 5, "application_name": "groundstate hints"}
_PAYLOAD_MOST = 7_999  # bytes


class PostgresTransport(Connecting):
    """LISTEN/NOTIFY. arguments: psycopg's, for a connection past any pooler. also: further channels, whose payloads come after `rows:`.
    connect: what is called with the arguments; psycopg itself where None.
    """

    def __init__(self, arguments: Mapping[str, Any], also: Sequence[str] = (), connect: Connect | None = None) -> None:
        given = {**_CLIENT, **arguments, "application_name": _CLIENT["application_name"]}
        super().__init__("postgresql", _Driver(partial(connect or psycopg.connect, **given, autocommit=True), tuple(also)))


def of_url(url: str, *, by_asyncpg: bool = False) -> PostgresTransport:
    """By a URL of libpq's, or with options of asyncpg's.

    Raises:
        ValueError: libpq cannot read it; it is not repeated.
        StoreRefused: one of asyncpg's options cannot be said to libpq.
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

    def findings(self, subject: str) -> list[Finding]:  # noqa: ARG002  # whatever the subject
        """None: it cannot persist."""
        return []

    def listen(self, subject: str) -> _Listening:
        return _Listening(self._connect, channel_of(subject), self._also)

    def speak(self, subject: str) -> _Speaking:
        return _Speaking(self._connect, channel_of(subject))


class _Connection:
    """One connection of ours, which a forked child leaves alone."""

    def __init__(self, connect: Connect, channel: str) -> None:
        self._channel = channel
        self.connection: psycopg.Connection[Any] = connect()
        self._socket = socket.socket(fileno=os.dup(self.connection.fileno()))  # our own end of it, which libpq does not close
        forsake_in_child(self)

    def _settle(self) -> None:
        """Who listens and does not read (a frozen process, a host that is gone) must not stop the queue of notifications, which all
        databases of a server share, and whose end makes commits fail.

        Not before it is proved that this session is ours: a pooler would hand it to others with our settings on it.
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
        """In a forked child: so that nothing there ends the parent's session."""
        self._socket.close()
        if not self.connection.closed:
            hang_up(self.connection.fileno())


class _Listening(_Connection):
    def __init__(self, connect: Connect, channel: str, also: tuple[str, ...]) -> None:
        super().__init__(connect, channel)
        try:
            with limited(ANSWERS_WITHIN_S, self.cut):
                for one in (channel, *also):
                    self.connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(one)))
                self._prove(connect)
                self._settle()
        except BaseException:
            self.close()
            raise

    def heard(self, wait_s: float) -> list[bytes]:
        """Those of one wait; whatever comes meanwhile comes along."""
        found = []
        for one in self.connection.notifies(timeout=wait_s, stop_after=1):
            if one.channel != self._channel:
                found.append(ROWS + one.payload.encode())
            elif not one.payload.startswith(PROBE):
                found.append(_read(one.payload))
        return found

    def _prove(self, connect: Connect) -> None:
        """A pooler in transaction mode lets LISTEN go to one session and hears none: what is said once must come back."""
        mark = PROBE + secrets.token_hex(8)
        other = _Connection(connect, self._channel)
        try:
            with limited(PROBED_WITHIN_S, other.cut):
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
    """Opened where a listening one has been proved, in the same way."""

    def __init__(self, connect: Connect, channel: str) -> None:
        super().__init__(connect, channel)
        with limited(ANSWERS_WITHIN_S, self.cut):
            self._settle()

    def say(self, hints: Sequence[bytes]) -> None:
        payloads = [payload for hint in hints if len(payload := _written(hint)) <= _PAYLOAD_MOST]
        if payloads:
            self.connection.execute("SELECT pg_notify(%s, said) FROM unnest(%s::text[]) AS said", (self._channel, payloads))


def _written(hint: bytes) -> str:
    """As text: what is plain stays as it is, so that who looks can read it."""
    if hint.isascii() and b"\0" not in hint:
        return "=" + hint.decode()
    return "~" + base64.b64encode(hint).decode()


def _read(payload: str) -> bytes:
    if payload.startswith("~"):
        with suppress(ValueError):
            return base64.b64decode(payload[1:], validate=True)
    return payload.removeprefix("=").encode()
