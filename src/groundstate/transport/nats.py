"""The transport over core NATS, which stores nothing. It is refused if a JetStream stream stores the messages of our subject.

nats-py needs an event loop, so each connection has one in a thread of its own. Its automatic reconnection is off: reconnecting.py does
that.
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

with suppress(ImportError):  # from_url.py raises, with the cure, before anything here is used
    import nats
    from nats import errors

T = TypeVar("T")
WITHIN_S = 5.0  # seconds that connecting, or one answer of the server, may take
ASKED_WITHIN_S = 2.0  # seconds that JetStream may take to list the streams of a subject
UNHEARD_MOST = 1_000  # received hints that may wait to be read; beyond this new ones are dropped
_UNSEEN = (
    "let this user publish to $JS.API.STREAM.NAMES, or say that you know it: `groundstate run --trust-transport`,"
    " `app.start(trust_transport=True)`"
)


class NatsTransport(ReconnectingTransport):
    """The transport over NATS. `url` is a nats:// or tls:// URL of nats-py, or several of one cluster, separated by commas."""

    def __init__(self, url: str) -> None:
        super().__init__("nats", _Driver(url))


class _Driver:
    def __init__(self, url: str) -> None:
        self._url = url

    def findings(self, subject: str) -> list[Finding]:
        connection = _Connection(self._url)
        try:
            return connection.ask(_streams(connection.client, subject))
        finally:
            connection.close()

    def listen(self, subject: str) -> _Listening:
        return _Listening(self._url, subject)

    def speak(self, subject: str) -> _Speaking:
        return _Speaking(self._url, subject)


async def _streams(client: Any, subject: str) -> list[Finding]:
    asked = json.dumps({"subject": subject}).encode()
    try:
        answer = json.loads((await client.request("$JS.API.STREAM.NAMES", asked, timeout=ASKED_WITHIN_S)).data)
    except errors.NoRespondersError:
        return []  # this server has no JetStream
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


_NOT_ENABLED = 10039  # NATS error code: JetStream is not enabled for the account


class _Connection:
    """A NATS client, with the event loop and the thread that it runs in."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="groundstate-nats-loop", daemon=True)
        self._thread.start()
        self.lost = threading.Event()
        self._refused = ""
        try:
            self.client: Any = self.ask(self._connected(url))
        except BaseException:
            self._end()
            raise

    async def _connected(self, url: str) -> Any:
        async def closed() -> None:
            self.lost.set()

        async def said(error: Exception) -> None:
            """Keep a permission error, which NATS reports only here, before its next PONG.

            Other errors, such as that of a slow consumer, are ignored: they only mean that hints were lost.
            """
            if "permissions violation" in str(error).lower():
                self._refused = str(error)

        # Each server of the URL is tried once, without waiting: reconnecting.py decides when to try again.
        return await nats.connect(
            url.split(","), name="groundstate hints", allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0,
            connect_timeout=int(WITHIN_S), ping_interval=5, max_outstanding_pings=2,
            closed_cb=closed, disconnected_cb=closed, error_cb=said,
        )  # fmt: skip

    def ask(self, asked: Coroutine[Any, Any, T]) -> T:
        answer = asyncio.run_coroutine_threadsafe(asked, self._loop)
        try:
            return answer.result(WITHIN_S + 1)
        finally:
            answer.cancel()

    async def wait_until_server_processed(self) -> None:
        """Wait until the server has processed everything that was sent before.

        That takes two PINGs: nats-py sends the first one before the messages that still wait to be sent.
        """
        for _ in range(2):
            await self.client.flush(int(WITHIN_S))

    def refuse_lost(self) -> None:
        """Raise if the connection is closed, or if this user lacks the permission to publish or subscribe."""
        if self._refused:
            raise PermissionError(self._refused)
        if self.lost.is_set():
            raise ConnectionError("NATS has closed the connection")

    def cut(self) -> None:
        self.lost.set()
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    def close(self) -> None:
        with suppress(Exception):
            self.ask(self.client.close())
        self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WITHIN_S)
        self._loop.close()


class _Listening:
    def __init__(self, url: str, subject: str) -> None:
        self._connection = _Connection(url)
        self._unheard: queue.Queue[bytes] = queue.Queue(UNHEARD_MOST)
        try:
            self._connection.ask(self._subscribed(subject))
            self._connection.refuse_lost()
        except BaseException:
            self._connection.close()
            raise

    async def _subscribed(self, subject: str) -> None:
        await self._connection.client.subscribe(subject, cb=self._take)
        await self._connection.wait_until_server_processed()

    async def _take(self, said: Any) -> None:
        with suppress(queue.Full):
            self._unheard.put_nowait(said.data)

    def heard(self, wait_s: float) -> Sequence[bytes]:
        try:
            return [self._unheard.get(timeout=wait_s)]
        except queue.Empty:
            self._connection.refuse_lost()
            return []

    def cut(self) -> None:
        self._connection.cut()

    def close(self) -> None:
        self._connection.close()


class _Speaking:
    def __init__(self, url: str, subject: str) -> None:
        self._connection = _Connection(url)
        self._subject = subject

    def say(self, hints: Sequence[bytes]) -> None:
        self._connection.refuse_lost()
        self._connection.ask(self._published(hints))
        self._connection.refuse_lost()

    async def _published(self, hints: Sequence[bytes]) -> None:
        for hint in hints:
            await self._connection.client.publish(self._subject, hint)
        await self._connection.wait_until_server_processed()

    def cut(self) -> None:
        self._connection.cut()

    def close(self) -> None:
        self._connection.close()
