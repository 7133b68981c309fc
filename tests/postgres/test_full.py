"""A server, or a role, that takes no more connections: said with the cure, waited out at a start and later, and the life is kept."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url
from tools.servers.postgres import PostgresServer

from tests.engine.charging import ASK, charging
from tests.engine.kit import HANG_S, Order, World, until
from tests.postgres.pairs import asked
from tests.postgres.roles import role


@pytest.fixture(scope="module")
def small() -> Iterator[PostgresServer]:
    """For eight connections that are no superuser's."""
    with PostgresServer(max_connections=8, settings={"superuser_reserved_connections": "0", "max_wal_senders": "0"}) as made:
        yield made
        made.kill()


@pytest.fixture
def world(small: PostgresServer) -> Iterator[World]:
    made = World(small.create_database())
    charging(made, ASK)
    made.orders(3)
    yield made
    made.close()


@contextmanager
def full(url: str) -> Iterator[None]:
    """Every connection that the server has left is somebody's."""
    with ExitStack() as stack:
        while (one := _connected(url)) is not None:
            stack.enter_context(one)
        yield


def _connected(url: str) -> psycopg.Connection[Any] | None:
    """None: it is full."""
    try:
        return psycopg.connect(url.replace("+psycopg", ""))
    except psycopg.OperationalError as error:
        if "too many" in str(error) or "remaining connection" in str(error):
            return None
        raise


def test_a_start_on_a_full_server_is_told_the_cure_and_waits(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.engine.dispose()
    life = world.worker(start=False)
    starting = threading.Thread(target=life.worker.start)
    with caplog.at_level(logging.WARNING, "groundstate"), full(world.url):
        starting.start()
        until(lambda: "raise max_connections" in caplog.text)
    starting.join(HANG_S)
    until(lambda: world.count(Order.status == "paid") == 3)
    assert life.worker.failure is None


@pytest.fixture
def narrow(postgres_url: str) -> Iterator[World]:
    """A shop whose worker is a role that may have so many connections and no more; the test's own are not."""
    with role(postgres_url, options="connection limit 2") as login:
        owner = World(postgres_url)
        charging(owner, ASK)
        owner.orders(3)
        name = make_url(login).username
        for table in ("orders", "groundstate_attempt", "groundstate_reaction", "groundstate_worker", "groundstate_rate"):
            asked(postgres_url, f"grant all on {table} to {name}")
        made = World(login)
        made.engine.dispose()
        made.engine = owner.engine
        made._there = True
        charging(made, ASK)
        yield made
        made.close()
        owner.close()


def may_have(world: World, most: int) -> None:
    world.run(f"alter role {make_url(world.url).username} connection limit {most}")


def test_too_many_connections_of_a_role_are_told_and_waited_out(narrow: World, caplog: pytest.LogCaptureFixture) -> None:
    life = narrow.worker(start=False)
    starting = threading.Thread(target=life.worker.start)
    with caplog.at_level(logging.WARNING, "groundstate"):
        starting.start()
        until(lambda: "too many connections for role" in caplog.text and "limit of the role" in caplog.text)
    may_have(narrow, 3)
    starting.join(HANG_S)
    until(lambda: narrow.count(Order.status == "paid") == 3)


def test_no_connection_for_the_work_costs_no_life_and_no_outcome(narrow: World, caplog: pytest.LogCaptureFixture) -> None:
    may_have(narrow, 3)
    gateway = narrow.gateways[0]
    gateway.plan(3, "done_hang")
    life = narrow.worker()
    until(lambda: narrow.count(Order.status == "paid") == 2 and gateway.waiting == 1)
    first = life.worker.incarnation.id
    may_have(narrow, 1)  # which is its lock's
    work = "application_name = 'groundstate' and datname = current_database()"
    with caplog.at_level(logging.WARNING, "groundstate"):
        narrow.run(f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where {work}")
        gateway.gate.set()
        until(lambda: life.in_trouble)
    assert "the server takes no more connections" in caplog.text
    may_have(narrow, 3)
    until(lambda: narrow.count(Order.status == "paid") == 3)
    assert gateway.called(3) == 1
    assert life.worker.incarnation.id == first
