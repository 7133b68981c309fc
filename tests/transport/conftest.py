"""Servers of each transport, one of each for the whole session, and a transport on each in turn."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tools.servers import watchdog
from tools.servers.brokers import NatsServer, RedisServer
from tools.servers.postgres import PostgresServer

from groundstate.transport.from_url import make_transport
from tests.patience import until
from tests.transport import rabbitmq
from tests.transport.rabbitmq import AmqpServer


class Place:
    """A server, and transports on it. `stop` and `start` are SIGKILL and a start on the same port."""

    def __init__(
        self,
        url: str,
        folder: Path | None = None,
        stop: Callable[[], object] | None = None,
        start: Callable[[], object] | None = None,
        cut: Callable[[], object] | None = None,
    ) -> None:
        self.url, self.start, self._folder, self._stop, self.cut = url, start, folder, stop, cut
        self.transports: list[Any] = []

    @property
    def has_server(self) -> bool:
        return self._stop is not None

    def stop(self) -> None:
        assert self._stop is not None
        self._stop()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Its server keeps every connection, takes new ones, and does nothing."""
        assert self._folder is not None
        of_it = watchdog.processes_in(self._folder)
        assert of_it
        for one in of_it:
            os.kill(one, signal.SIGSTOP)
        try:
            yield
        finally:
            for one in of_it:
                os.kill(one, signal.SIGCONT)

    def open(
        self, subject: str = "groundstate.test", *, trusted: bool = False, hear: Callable[[bytes], None] | None = None
    ) -> tuple[Any, Heard]:
        """A transport that is open, and what it heard."""
        made, heard = make_transport(self.url), Heard()
        self.transports.append(made)
        made.open(subject, hear or heard, trusted=trusted)
        return made, heard

    def close(self) -> None:
        for one in self.transports:
            one.close()


class Heard:
    """All that came."""

    def __init__(self) -> None:
        self.all: list[bytes] = []
        self.any = threading.Event()

    def __call__(self, hint: bytes) -> None:
        self.all.append(hint)
        self.any.set()

    def wait_for(self, hint: bytes) -> None:
        until(lambda: hint in self.all, lambda: self.all)


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def amqp_server() -> Iterator[AmqpServer]:
    with rabbitmq.made() as server:
        yield server


@pytest.fixture(scope="session")
def other_postgres() -> Iterator[PostgresServer]:
    """One that may be killed: that of the session is not to be."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=["memory", "postgresql", "nats", "redis", "amqp"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    made = _place(request)
    yield made
    made.close()


@pytest.fixture(params=["postgresql", "nats", "redis", "amqp"])
def served(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Of those with a server."""
    made = _place(request)
    yield made
    made.close()


def _place(request: pytest.FixtureRequest) -> Place:
    if request.param == "memory":
        return Place("memory:tests")
    if request.param == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("other_postgres")
        postgres.start()
        return Place(postgres.url(), postgres.data, postgres.kill, postgres.start, lambda: _cut_postgres(postgres))
    broker = request.getfixturevalue(f"{request.param}_server")
    if broker._process is None:
        broker.start()
    return Place(broker.url, broker.folder, broker.kill, broker.start)


def _cut_postgres(server: PostgresServer) -> None:
    """Ends every connection of a transport, as an administrator does."""
    with psycopg.connect(server.url().replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'groundstate hints'")
