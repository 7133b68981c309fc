"""The transport over core NATS, which stores nothing. It is refused if a JetStream stream stores the messages of its subject.

nats-py needs an event loop, so each connection has an event loop in a separate thread. The automatic reconnection of nats-py is off, since
reconnecting.py reconnects.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from groundstate.transport.port import Finding
from groundstate.transport.reconnecting import ReconnectingTransport

with suppress(ImportError):  # without nats-py, from_url.py raises an error that names the cure, before this module is used
    import nats
    from nats import errors

T = TypeVar("T")
WITHIN_S = 5.0  # seconds that connecting may take, and that the server may take for an answer
ASKED_WITHIN_S = 2.0  # seconds that JetStream may take to list the streams of a subject
UNHEARD_MOST = 1_000  # maximum number of received hints that wait to be read; further hints are dropped
_UNSEEN = (
    "let this user publish to $JS.API.STREAM.NAMES; or, if you know that nothing is stored, use `groundstate run --trust-transport` or"
    " `app.start(trust_transport=True)`"
)


class NatsTransport(ReconnectingTransport):
    """The transport over NATS. url: a nats:// or tls:// URL as nats-py reads it, or several URLs of one cluster, separated by commas."""

    def __init__(self, url: str) -> None:
        super().__init__("nats", _Driver(url))


class _Driver:
    def __init__(self, url: str) -> None:
        self._url = url

    def findings(self, subject: str) -> list[Finding]:
        connection = _Connection(self._url)
        try:
            return connection.run_in_loop(_findings_on_streams(connection.client, subject))
        finally:
            connection.close()

    def connect_subscriber(self, subject: str) -> _Subscriber:
        return _Subscriber(self._url, subject)

    def connect_publisher(self, subject: str) -> _Publisher:
        return _Publisher(self._url, subject)


async def _findings_on_streams(client: Any, subject: str) -> list[Finding]:
    asked = json.dumps({"subject": subject}).encode()
    try:
        answer = json.loads((await client.request("$JS.API.STREAM.NAMES", asked, timeout=ASKED_WITHIN_S)).data)
    except errors.NoRespondersError:
        return []  # nobody answers JetStream requests, so this server has no JetStream
    except (errors.TimeoutError, TimeoutError):
        return [Finding(False, f"it cannot be seen whether a stream of JetStream keeps what is said to {subject}", _UNSEEN)]
    if answer.get("error", {}).get("err_code") == _NOT_ENABLED:
        return []
    if "error" in answer:
        words = answer["error"].get("description")
        return [Finding(False, f"it cannot be seen whether a stream of JetStream keeps what is said to {subject} ({words})", _UNSEEN)]
    return [
        Finding(
            True,
            f"stream {name} of JetStream keeps what is said to {subject}",
            f"`nats stream edit {name} --subjects=...` without it, or `nats stream rm {name}`",
        )
        for name in answer.get("streams") or ()
    ]


_NOT_ENABLED = 10039  # error code of NATS that means: JetStream is not enabled for the account


class _Connection:
    """A NATS client, together with an event loop, and the thread in which the event loop runs."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="groundstate-nats-loop", daemon=True)
        self._thread.start()
        self.lost = threading.Event()
        self._refused = ""
        try:
            self.client: Any = self.run_in_loop(self._connect(url))
        except BaseException:
            self._stop_loop()
            raise

    async def _connect(self, url: str) -> Any:
        async def on_closed() -> None:
            self.lost.set()

        async def on_error(error: Exception) -> None:
            """Remember a permission error, which NATS reports only to this callback, before it answers the next PING.

            Other errors, such as the error of a slow consumer, are ignored: they only mean that hints were lost.
            """
            if "permissions violation" in str(error).lower():
                self._refused = str(error)

        # nats-py tries each server of the URL once, without waiting, since reconnecting.py decides when to connect again.
        return await nats.connect(
            url.split(","), name="groundstate hints", allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0,
            connect_timeout=int(WITHIN_S), ping_interval=5, max_outstanding_pings=2,
            closed_cb=on_closed, disconnected_cb=on_closed, error_cb=on_error,
        )  # fmt: skip

    def run_in_loop(self, asked: Coroutine[Any, Any, T]) -> T:
        answer = asyncio.run_coroutine_threadsafe(asked, self._loop)
        try:
            return answer.result(WITHIN_S + 1)
        finally:
            answer.cancel()

    async def wait_until_server_processed(self) -> None:
        """Wait until the server has processed everything that was sent before.

        It sends two PINGs and waits for their answers, since nats-py sends the first PING before the messages that still wait to be sent.
        """
        for _ in range(2):
            await self.client.flush(int(WITHIN_S))

    def raise_if_lost(self) -> None:
        """Raise ConnectionError if the connection is closed, and PermissionError if this user may not publish or subscribe."""
        if self._refused:
            raise PermissionError(self._refused)
        if self.lost.is_set():
            raise ConnectionError("NATS has closed the connection")

    def abort(self) -> None:
        self.lost.set()
        self._loop.call_soon_threadsafe(self._cancel_tasks)

    def _cancel_tasks(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    def close(self) -> None:
        with suppress(Exception):
            self.run_in_loop(self.client.close())
        self._stop_loop()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WITHIN_S)
        self._loop.close()


class _Subscriber:
    def __init__(self, url: str, subject: str) -> None:
        self._connection = _Connection(url)
        self._unheard: queue.Queue[bytes] = queue.Queue(UNHEARD_MOST)
        try:
            self._connection.run_in_loop(self._subscribe(subject))
            self._connection.raise_if_lost()
        except BaseException:
            self._connection.close()
            raise

    async def _subscribe(self, subject: str) -> None:
        await self._connection.client.subscribe(subject, cb=self._on_message)
        await self._connection.wait_until_server_processed()

    async def _on_message(self, said: Any) -> None:
        with suppress(queue.Full):
            self._unheard.put_nowait(said.data)

    def receive(self, wait_s: float) -> Sequence[bytes]:
        try:
            return [self._unheard.get(timeout=wait_s)]
        except queue.Empty:
            self._connection.raise_if_lost()
            return []

    def abort(self) -> None:
        self._connection.abort()

    def close(self) -> None:
        self._connection.close()


class _Publisher:
    def __init__(self, url: str, subject: str) -> None:
        self._connection = _Connection(url)
        self._subject = subject

    def publish(self, hints: Sequence[bytes]) -> None:
        self._connection.raise_if_lost()
        self._connection.run_in_loop(self._publish(hints))
        self._connection.raise_if_lost()

    async def _publish(self, hints: Sequence[bytes]) -> None:
        for hint in hints:
            await self._connection.client.publish(self._subject, hint)
        await self._connection.wait_until_server_processed()

    def abort(self) -> None:
        self._connection.abort()

    def close(self) -> None:
        self._connection.close()
