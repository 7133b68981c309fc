"""The transport over LISTEN and NOTIFY of PostgreSQL, on separate connections.

A transaction that has called NOTIFY takes a server-wide lock when it commits, so hints are never sent in a transaction that does other
work. The server keeps a notification in memory until each session that listens has read it; a restart loses it.
"""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from groundstate.clock import SYSTEM_CLOCK, SYSTEM_DICE, Clock
from groundstate.rules.hint_codec import ROWS, postgres_channel_name
from groundstate.transport.port import Finding
from groundstate.transport.reconnecting import ReconnectingTransport, abort_if_slower_than
from groundstate.values import keepalive
from groundstate.values.after_fork import abandon_in_child, redirect_to_devnull
from groundstate.values.driver_arguments import translate_asyncpg_arguments

with suppress(ImportError):  # without psycopg, from_url.py raises an error that names the cure, before this module is used
    import psycopg
    from psycopg import sql

Connect = Callable[..., Any]  # type of a function that returns a psycopg connection
PROBE = "probe "
PROBED_WITHIN_S = 3.0  # seconds that a test notification may take to be sent, and as many seconds to arrive
ANSWERS_WITHIN_S = 5.0  # seconds that the statements which set up a connection may take; libpq's timeout covers only connecting
_CLIENT = {**keepalive.CLIENT, "connect_timeout": 5, "application_name": "groundstate hints"}
_PAYLOAD_MOST = 7_999  # maximum size of a NOTIFY payload in bytes, set by PostgreSQL


class PostgresTransport(ReconnectingTransport):
    """The transport over LISTEN and NOTIFY.

    Args:
        arguments: Connection arguments of psycopg. They must lead to the server directly, not through a pooler.
        also: Names of further channels to listen on. A payload that is received there becomes a hint with the prefix `rows:`.
        connect: The function to call with the arguments; None for `psycopg.connect`.
    """

    def __init__(self, arguments: Mapping[str, Any], also: Sequence[str] = (), connect: Connect | None = None) -> None:
        given = {**_CLIENT, **arguments, "application_name": _CLIENT["application_name"]}
        super().__init__("postgresql", _Driver(partial(connect or psycopg.connect, **given, autocommit=True), tuple(also)))


def make_transport(url: str, *, by_asyncpg: bool = False) -> PostgresTransport:
    """Return the transport for a URL of libpq or, if `by_asyncpg`, for a URL with options of asyncpg.

    Raises:
        ValueError: libpq cannot read the URL. The error does not show the URL, which may hold a password.
        StoreRefusedError: An option of asyncpg has no equivalent in libpq.
    """
    place, _, query = url.partition("?")
    by_words = translate_asyncpg_arguments(dict(parse_qsl(query))) if by_asyncpg else {}
    try:
        return PostgresTransport({**psycopg.conninfo.conninfo_to_dict(place if by_asyncpg else url), **by_words})
    except psycopg.ProgrammingError:
        raise ValueError from None


class _Driver:
    def __init__(self, connect: Connect, also: tuple[str, ...]) -> None:
        self._connect = connect
        self._also = also

    def findings(self, subject: str) -> list[Finding]:  # noqa: ARG002  # `subject` is unused, since the result is always the same
        """Return an empty list (no reasons against the server), since NOTIFY cannot store messages."""
        return []

    def connect_subscriber(self, subject: str) -> _Subscriber:
        return _Subscriber(self._connect, postgres_channel_name(subject), self._also)

    def connect_publisher(self, subject: str) -> _Publisher:
        return _Publisher(self._connect, postgres_channel_name(subject))


class _Connection:
    """One connection of the transport. A forked child process neither uses the connection nor ends its session."""

    def __init__(self, connect: Connect, channel: str) -> None:
        self._channel = channel
        self.connection: psycopg.Connection[Any] = connect()
        # `abort` needs a socket object, with which it can shut down the connection while libpq waits.
        self._socket = socket.socket(fileno=os.dup(self.connection.fileno()))
        abandon_in_child(self)

    def _set_keepalive(self) -> None:
        """Set the server's keepalive settings for this session, so that the session ends soon after its client hangs or is gone.

        A session that does not read would fill the notification queue of the server, and commits in all its databases fail once the queue
        is full. Call it only after `_prove_notifications_arrive`: a pooler would later give the changed session to other clients.
        """
        for name, value in keepalive.SERVER.items():
            with suppress(psycopg.DatabaseError):
                self.connection.execute("SELECT set_config(%s, %s, false)", (name, value))

    def abort(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.connection.close()
        self._socket.close()

    def abandon_after_fork(self) -> None:
        """Close the inherited connection in a forked child, but let the parent's session go on."""
        self._socket.close()
        if not self.connection.closed:
            redirect_to_devnull(self.connection.fileno())


class _Subscriber(_Connection):
    def __init__(self, connect: Connect, channel: str, also: tuple[str, ...]) -> None:
        super().__init__(connect, channel)
        try:
            with abort_if_slower_than(ANSWERS_WITHIN_S, self.abort):
                for one in (channel, *also):
                    self.connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(one)))
                self._prove_notifications_arrive(connect)
                self._set_keepalive()
        except BaseException:
            self.close()
            raise

    def receive(self, wait_s: float) -> list[bytes]:
        """Wait up to `wait_s` seconds for a notification, and return the messages that have arrived by then; an empty list if none has."""
        found = []
        for one in self.connection.notifies(timeout=wait_s, stop_after=1):
            if one.channel != self._channel:
                found.append(ROWS + one.payload.encode())
            elif not one.payload.startswith(PROBE):
                found.append(_decode_payload(one.payload))
        return found

    def _prove_notifications_arrive(self, connect: Connect, clock: Clock = SYSTEM_CLOCK) -> None:
        """Send one notification from a second connection, and raise ConnectionError unless this connection receives it in a few seconds.

        Behind a pooler in transaction mode LISTEN succeeds, but notifications never reach this client.
        """
        mark = PROBE + SYSTEM_DICE.randbytes(8).hex()
        other = _Connection(connect, self._channel)
        try:
            with abort_if_slower_than(PROBED_WITHIN_S, other.abort):
                other.connection.execute("SELECT pg_notify(%s, %s)", (self._channel, mark))
        finally:
            other.close()
        end = clock.monotonic() + PROBED_WITHIN_S
        while (left := end - clock.monotonic()) > 0:
            if any(one.payload == mark for one in self.connection.notifies(timeout=left, stop_after=1)):
                return
        message = "notifications do not arrive, as behind a pooler in transaction mode: give Store(..., direct=) a URL that bypasses it"
        raise ConnectionError(message)


class _Publisher(_Connection):
    """A connection for NOTIFY. Open it only after a _Subscriber with equal arguments, which proves that there is no pooler."""

    def __init__(self, connect: Connect, channel: str) -> None:
        super().__init__(connect, channel)
        with abort_if_slower_than(ANSWERS_WITHIN_S, self.abort):
            self._set_keepalive()

    def publish(self, hints: Sequence[bytes]) -> None:
        payloads = [payload for hint in hints if len(payload := _encode_payload(hint)) <= _PAYLOAD_MOST]
        if payloads:
            self.connection.execute("SELECT pg_notify(%s, said) FROM unnest(%s::text[]) AS said", (self._channel, payloads))


def _encode_payload(hint: bytes) -> str:
    """Return the payload text for a hint: '=' and the hint if it is ASCII without NUL, else '~' and the hint in Base64."""
    if hint.isascii() and b"\0" not in hint:
        return "=" + hint.decode()
    return "~" + base64.b64encode(hint).decode()


def _decode_payload(payload: str) -> bytes:
    if payload.startswith("~"):
        with suppress(ValueError):
            return base64.b64decode(payload[1:], validate=True)
    return payload.removeprefix("=").encode()
