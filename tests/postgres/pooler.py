"""A small pooler in transaction mode: each transaction of a client is given a server's session, which goes on to the next client after it.

It reads as much of PostgreSQL's protocol as that takes: the startup, the frames, and ReadyForQuery, whose status tells when a transaction
is over. It keeps no statement of a client, as PgBouncer without max_prepared_statements.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.patience import HANG_S

SSL_REQUEST = 80877103
GSS_REQUEST = 80877104
READY = b"Z"
SYNC, QUERY, TERMINATE = b"S", b"Q", b"X"
IDLE = b"I"


class Server:
    """A session of PostgreSQL, with what it said at its start."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.greeting = b""

    async def greet(self, startup: bytes) -> None:
        self.writer.write(startup)
        while True:
            kind, body = await frame(self.reader)
            if kind == b"E":
                raise ConnectionError(body)
            self.greeting += framed(kind, body)
            if kind == READY:
                return


class Pooler:
    """Before one server. Sessions are given in turn, never the one that was given last where there is another: as on a busy pooler."""

    def __init__(self, port: int, size: int) -> None:
        self._port, self._size = port, size
        self._free: dict[bytes, list[Server]] = {}
        self._made: dict[bytes, int] = {}
        self._opened: set[Server] = set()
        self._given_back = asyncio.Condition()
        self.transactions = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, until it leaves."""
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                startup = await startup_of(reader, writer)
                first = await self._take(startup)
                writer.write(first.greeting)
                await self._give_back(startup, first)
                await self._serve(startup, reader, writer)
        finally:
            writer.transport.abort()

    def close(self) -> None:
        """Ends all sessions."""
        for server in self._opened:
            server.writer.transport.abort()

    async def _serve(self, startup: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            kind, body = await frame(reader)
            if kind == TERMINATE:
                return
            server = await self._take(startup)
            whole = False
            try:
                await self._transaction(framed(kind, body), server, reader, writer)
                whole = True
            finally:
                if whole:
                    await self._give_back(startup, server)
                else:
                    self._end(server)
                    await self._note_lost(startup)

    async def _transaction(self, first: bytes, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes on what is said until a ReadyForQuery tells that no transaction is open."""
        self.transactions += 1
        said, kind = first, first[:1]
        while True:
            while kind not in (SYNC, QUERY):
                kind, body = await frame(reader)
                if kind == TERMINATE:
                    raise ConnectionError
                said += framed(kind, body)
            server.writer.write(said)
            while True:
                kind, body = await frame(server.reader)
                writer.write(framed(kind, body))
                if kind == READY:
                    break
            if body == IDLE:
                return
            kind, body = await frame(reader)
            if kind == TERMINATE:
                raise ConnectionError
            said = framed(kind, body)

    async def _take(self, startup: bytes) -> Server:
        free = self._free.setdefault(startup, [])
        async with self._given_back:
            for gone in [one for one in free if one.reader.at_eof()]:  # its server ended: no client hears of it
                free.remove(gone)
                self._end(gone)
                self._made[startup] -= 1
            while not free:
                if self._made.get(startup, 0) < self._size:
                    self._made[startup] = self._made.get(startup, 0) + 1
                    break
                await self._given_back.wait()
            if free and (len(free) > 1 or self._made[startup] >= self._size):
                return free.pop(0)
            if free:
                self._made[startup] += 1
        try:
            return await self._open(startup)
        except BaseException:
            await self._note_lost(startup)
            raise

    async def _open(self, startup: bytes) -> Server:
        server = Server(*await asyncio.open_connection("127.0.0.1", self._port))
        self._opened.add(server)
        try:
            await server.greet(startup)
        except BaseException:  # PostgreSQL is starting or stopping, or the client has left meanwhile
            self._end(server)
            raise
        return server

    def _end(self, server: Server) -> None:
        server.writer.transport.abort()
        self._opened.discard(server)

    async def _note_lost(self, startup: bytes) -> None:
        async with self._given_back:
            self._made[startup] -= 1
            self._given_back.notify_all()

    async def _give_back(self, startup: bytes, server: Server) -> None:
        async with self._given_back:
            self._free[startup].append(server)
            self._given_back.notify_all()


async def frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    kind = await reader.readexactly(1)
    length = int.from_bytes(await reader.readexactly(4), "big")
    return kind, await reader.readexactly(length - 4)


def framed(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


async def startup_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The startup message, as it is to be passed on. No TLS."""
    while True:
        length = await reader.readexactly(4)
        body = await reader.readexactly(int.from_bytes(length, "big") - 4)
        if int.from_bytes(body[:4], "big") not in {SSL_REQUEST, GSS_REQUEST}:
            return length + body
        writer.write(b"N")


@contextmanager
def pooling(port: int, size: int = 4) -> Iterator[int]:
    """A pooler of its own before 127.0.0.1:port; its port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    pooler = Pooler(port, size)

    async def begin() -> asyncio.Server:
        return await asyncio.start_server(pooler.connected, "127.0.0.1", 0)

    async def end(server: asyncio.Server) -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        pooler.close()
        await asyncio.sleep(0)  # in which transports are closed

    server = asyncio.run_coroutine_threadsafe(begin(), loop).result(10)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(end(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(HANG_S)
        loop.close()
