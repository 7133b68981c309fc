"""Processes of one app tell each other: real ones, over each PostgreSQL's own hints and over a transport that was chosen."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from tools.servers.brokers import NatsServer

from groundstate.app.app import App
from groundstate.cli.common import find_app
from groundstate.values.errors import StoppedError, TransportRefusedError
from tests.patience import HANG, until
from tests.transport.test_must_forget import STREAMS, stream

APP = """
from __future__ import annotations
import os
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from groundstate import App, Store

class Base(DeclarativeBase): ...

class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")

app = App("together{number}", Store({url!r}, Base), transport={transport!r})

@app.on(Order, Order.status == "placed")
def packed(order: Order) -> None:
    order.status = "packed"
"""
WORKER = """
import sys
sys.path.insert(0, {folder!r})
from together_{number} import app
from groundstate.engine.watch import sweeps
sweeps.SWEEP_S = sweeps.SWEEP_LED_S = 3600.0  # after the first one no sweep helps
app.start()
print("up", flush=True)
sys.stdin.read()
app.stop()
"""
_numbers = iter(range(1_000_000))


class Together:
    """An app in this process, and a worker of it in another one."""

    def __init__(self, folder: Path, url: str, transport: str | None) -> None:
        self.number = next(_numbers)
        (folder / f"together_{self.number}.py").write_text(textwrap.dedent(APP).format(url=url, transport=transport, number=self.number))
        self.folder = folder
        self.app: App = find_app(f"together_{self.number}:app")
        self.app.init(tables=True, accept=True)
        self.module: Any = sys.modules[f"together_{self.number}"]
        self.engine = create_engine(url)

    @contextmanager
    def worker(self) -> Iterator[None]:
        words = textwrap.dedent(WORKER).format(folder=str(self.folder), number=self.number)
        with subprocess.Popen([sys.executable, "-c", words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
            try:
                assert running.stdout is not None
                assert running.stdout.readline() == "up\n"
                yield
            finally:
                running.kill()

    def place(self) -> int:
        with Session(self.engine) as session:
            order = self.module.Order()
            session.add(order)
            session.commit()
            return int(order.id)

    async def packed(self, number: int) -> bool:
        return await self.app.wait_for(self.module.Order, number, self.module.Order.status == "packed", timeout=HANG)


@pytest.fixture(scope="module")
def streams() -> Iterator[NatsServer]:
    with NatsServer(STREAMS) as server:
        yield server


@pytest.fixture(params=["postgresql", "nats"])
def together(request: pytest.FixtureRequest, tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Together]:
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    transport = None
    if request.param == "nats":
        server: NatsServer = request.getfixturevalue("streams")
        transport = server.url.replace("nats://", "nats://boss:boss@")
    made = Together(tmp_path, postgres_url, transport)
    yield made
    made.app.stop()
    made.engine.dispose()
    sys.path[:] = before


def test_a_process_for_hints_alone_tells_its_commits_and_hears_of_what_became_of_them(together: Together) -> None:
    async def web() -> None:
        async with together.app.running(hints_only=True):
            await asyncio.to_thread(until, lambda: all(together.app.transports.values()))
            for _ in range(10):
                number = await asyncio.to_thread(together.place)
                assert await together.packed(number)

    with together.worker():
        asyncio.run(web())  # the worker does not sweep: what came was hinted


def test_a_process_for_hints_alone_carries_nothing_out(together: Together) -> None:
    together.app.start(hints_only=True)
    number = together.place()
    with pytest.raises(StoppedError, match="hints alone"):
        together.app.run_until_idle()
    together.app.stop()
    with Session(together.engine) as session:
        order: Any = session.get(together.module.Order, number)
        assert order.status == "placed"


def test_hints_that_persist_are_refused_at_the_start(
    tmp_path: Path, postgres_url: str, streams: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = Together(tmp_path, postgres_url, streams.url.replace("nats://", "nats://boss:boss@"))
    with stream(streams, "groundstate.>"):
        with pytest.raises(TransportRefusedError, match="stream KEEPS"):
            made.app.start()
        with pytest.raises(TransportRefusedError, match="stream KEEPS"):
            made.app.start(trust_transport=True)
    made.app.start()
    made.app.stop()
    made.engine.dispose()


def test_a_transport_that_is_not_there_costs_latency_and_nothing_else(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = Together(tmp_path, postgres_url, "nats://127.0.0.1:1")
    made.app.start()
    try:
        assert made.app.transports == {"nats": False}
        with made.engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO orders (status) VALUES ('placed')")  # of which nobody hears
        assert asyncio.run(made.packed(1))
    finally:
        made.app.stop()
        made.engine.dispose()
