"""The proxy cuts a connection at the byte that it was told, and changes none before it."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from tools.torture.proxy import Proxy

from tools.torture import proxy as proxying

SENT = bytes(range(256)) * 40


async def _heard_through(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, list[str]]:
    """What a client receives of SENT through the proxy, and what the proxy said."""
    said: list[str] = []
    monkeypatch.setattr(proxying, "_print_line", said.append)
    joined, ready = asyncio.Event(), asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        joined.set()
        await ready.wait()
        writer.write(SENT)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy = Proxy(server.sockets[0].getsockname()[1], Random(3))
    before = await asyncio.start_server(proxy.forward_connection, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", before.sockets[0].getsockname()[1])
    await joined.wait()
    for words in commands:
        proxy.execute_command(words)
    ready.set()
    heard = b""
    try:
        while data := await reader.read(65536):
            heard += data
    except ConnectionError:
        pass
    writer.close()
    before.close()
    server.close()
    return heard, said


def test_what_is_not_cut_passes_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    heard, said = asyncio.run(_heard_through([], monkeypatch))
    assert heard == SENT
    assert said == []


def test_a_cut_comes_after_so_many_bytes_and_none_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Random, "choice", lambda _self, pair: pair[1])  # the direction to the client
    monkeypatch.setattr(Random, "randint", lambda _self, _low, _high: 1234)
    heard, said = asyncio.run(_heard_through([["cut", "1"]], monkeypatch))
    assert said == ["cut"]
    assert heard == SENT[:1234]


def test_a_stall_delays_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Random, "choice", lambda _self, pair: pair[1])
    heard, said = asyncio.run(_heard_through([["stall", "1", "0.05"]], monkeypatch))
    assert said == ["stall"]
    assert heard == SENT
