"""A server, or a role, that takes no more connections: said with the cure, waited out at a start and later, and the life is kept."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

from groundstate.testing.servers import PostgresServer
from tests.engine.charging import ASK, charging
from tests.engine.kit import Order, World, until
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
    starting.join(20)
    until(lambda: world.count(Order.status == "paid") == 3)
    assert life.worker.failure is None


def test_a_server_that_is_full_later_costs_no_life(world: World) -> None:
    life = world.worker()
    until(lambda: world.count(Order.status == "paid") == 3)
    first = life.worker.life.id
    with world.engine.connect() as mine:
        world.engine.dispose()
        mine.exec_driver_sql("insert into orders (id, status, round) values (4, 'placed', 1)")
        mine.commit()
        with full(world.url):
            # Its connection for the work dies, and there is no other to be had.
            its_own = "application_name = 'groundstate' and datname = current_database()"
            mine.exec_driver_sql(f"select pg_terminate_backend(pid) from pg_stat_activity where {its_own}")
            mine.rollback()
            with full(world.url):
                until(lambda: life.in_trouble)
        until(lambda: mine.exec_driver_sql("select count(*) from orders where status = 'paid'").scalar_one() == 4)
    assert life.worker.life.id == first


def test_too_many_connections_of_a_role_are_told_and_waited_out(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with role(postgres_url, options="connection limit 2") as login:
        asked(postgres_url, "grant all on schema public to public")
        world = World(postgres_url)
        try:
            charging(world, ASK)
            world.orders(3)
            for table in ("orders", "groundstate_attempt", "groundstate_reaction", "groundstate_worker", "groundstate_rate"):
                asked(postgres_url, f"grant all on {table} to public")
            narrow = World(login)
            narrow._there = True
            charging(narrow, ASK)
            try:
                life = narrow.worker(start=False)
                starting = threading.Thread(target=life.worker.start)
                with caplog.at_level(logging.WARNING, "groundstate"):
                    starting.start()
                    until(lambda: "too many connections for role" in caplog.text and "limit of the role" in caplog.text)
                asked(postgres_url, f"alter role {narrow.engine.url.username} connection limit 3")
                starting.join(20)
                until(lambda: world.count(Order.status == "paid") == 3)
            finally:
                narrow.close()
        finally:
            world.close()
