"""Hints by core NATS, which keeps nothing; and refused where a JetStream stream writes down what goes over our subject.

nats-py wants an event loop: each connection has one in a thread of its own. It does not connect again by itself, that is ours.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from groundstate.transport.connecting import Connecting
from groundstate.transport.port import Finding

with suppress(ImportError):  # `opening` refuses with the cure before anything here is used
    import nats
    from nats import errors

T = TypeVar("T")
WITHIN_S = 5.0
ASKED_WITHIN_S = 2.0
UNHEARD_MOST = 1_000  # beyond this, of a slow listener, hints are lost
_UNSEEN = (
    "let this user publish to $JS.API.STREAM.NAMES, or say that you know it: `groundstate run --trust-transport`,"
    " `app.start(trust_transport=True)`"
)


class NatsTransport(Connecting):
    """PUB and SUB. url: nats:// or tls://, as nats-py reads it; several of one cluster with commas between them."""

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
        return []  # no JetStream here
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


_NOT_ENABLED = 10039  # JetStream not enabled for the account


class _Connection:
    """A client, and the loop that it lives in."""

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
            """A slow listener loses hints, which is no matter; who may not say or hear is told so here alone, before the next PONG."""
            if "permissions violation" in str(error).lower():
                self._refused = str(error)

        # Each server is tried at once and no more: when to try again is ours to say.
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

    async def heard_by_server(self) -> None:
        """Until the server has answered all that was said. By two PINGs: nats-py sends the first before what still waits to be sent."""
        for _ in range(2):
            await self.client.flush(int(WITHIN_S))

    def refuse_lost(self) -> None:
        """Raises where it is closed, or where this user may not do what it is for."""
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
        await self._connection.heard_by_server()

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
        await self._connection.heard_by_server()

    def cut(self) -> None:
        self._connection.cut()

    def close(self) -> None:
        self._connection.close()
