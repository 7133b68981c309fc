"""Poolers in transaction mode: refused for the lock, good for the work. One of the tests' own, and the real PgBouncer where it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
from sqlalchemy import NullPool, create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from tools.servers.postgres import PostgresServer

from groundstate import StoreRefusedError
from groundstate.store.postgres import PostgresDatabase
from groundstate.transport.from_url import make_transport
from groundstate.values import keepalive
from tests.engine.charging import ASK, charging
from tests.engine.kit import Order, World, until
from tests.postgres import bouncers
from tests.postgres.pairs import answer
from tests.postgres.pooler import pooling


@contextmanager
def through(kind: str, server: PostgresServer) -> Iterator[int]:
    port = server.port or 0
    with pooling(port) if kind == "ours" else bouncers.bouncing(port, kind) as own:
        yield own


IN_TRANSACTION_MODE = ["ours", *(kind for kind in bouncers.KINDS if "transaction" in kind)]
IN_SESSION_MODE = [kind for kind in bouncers.KINDS if "session" in kind]


def at(url: str, port: int) -> str:
    return make_url(url).set(port=port).render_as_string(hide_password=False)


@pytest.fixture(params=IN_TRANSACTION_MODE)
def pooled(request: pytest.FixtureRequest, postgres_server: PostgresServer, postgres_url: str) -> Iterator[tuple[str, str]]:
    """The URL through the pooler, and the one past it."""
    with through(request.param, postgres_server) as port:
        yield at(postgres_url, port), postgres_url


def test_hazard_33_a_lock_through_a_pooler_is_refused_with_the_cure(pooled: tuple[str, str]) -> None:
    world = World(pooled[0])
    try:
        charging(world, ASK)
        world.orders(1)
        with pytest.raises(StoreRefusedError, match="direct='postgresql://"):
            world.worker()
        assert world.order().status == "placed"
    finally:
        world.close()


def test_the_work_goes_through_the_pooler_and_the_lock_past_it(pooled: tuple[str, str], postgres_server: PostgresServer) -> None:
    world = World(pooled[0], direct=pooled[1])
    try:
        gateway = charging(world, ASK)

        @world.app.on(Order, Order.status == "paid")
        def packed(order: Order) -> None:
            order.status = "packed"

        world.orders(30)
        life = world.worker()
        until(lambda: world.count(Order.status == "packed") == 30)
        for number in range(31, 51):  # one by one, so that statements come often enough to be prepared
            world.orders_from(number, number)
            until(lambda number=number: world.order(number).status == "packed")  # type: ignore[misc]
        assert life.worker.incarnation.liveness.has_lock()
        life.quiet()
        assert [gateway.done(number) for number in range(1, 51)] == [1] * 50
        past = (
            f"select count(*) from pg_stat_activity where datname = '{world.engine.url.database}'"
            " and application_name = 'groundstate worker'"
        )
        assert answer(postgres_server, past) == 1
        life.stop()
    finally:
        world.close()


def test_hints_through_a_pooler_are_not_up_say_why_and_leave_no_setting_to_other_clients(
    pooled: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    transport = make_transport(pooled[0])
    try:
        transport.open("groundstate.pooled", lambda _hint: None)
        until(lambda: "direct=" in caplog.text)
        assert not transport.is_usable
        # The tests' own pooler gives a session to who greets it alike.
        engine = create_engine(pooled[0], poolclass=NullPool, connect_args={"application_name": "groundstate hints"})
        for _ in range(6):  # as many as the pooler has sessions, and one
            with engine.connect() as connection:
                set_by_others = connection.scalars(text("SELECT name FROM pg_settings WHERE source = 'session'"))
                assert not set(keepalive.SERVER) & set(set_by_others)
    finally:
        transport.close()


@pytest.mark.parametrize("kind", ["none", *IN_SESSION_MODE])
def test_where_each_client_has_a_session_of_its_own_no_direct_url_is_needed(
    kind: str, postgres_server: PostgresServer, postgres_url: str
) -> None:
    with through(kind, postgres_server) if kind != "none" else nullcontext(postgres_server.port or 0) as port:
        world = World(at(postgres_url, port))
        try:
            gateway = charging(world, ASK)
            world.orders(20)
            world.settled()
            assert [gateway.done(number) for number in range(1, 21)] == [1] * 20
        finally:
            world.close()


def test_a_direct_url_that_leads_to_another_server_is_refused(postgres_server: PostgresServer, postgres_url: str) -> None:
    with PostgresServer(max_connections=20) as other:
        world = World(postgres_url, direct=other.url())
        try:
            charging(world, ASK)
            world.orders(1)
            with pytest.raises(StoreRefusedError, match="another server than the tables"):
                world.worker()
        finally:
            world.close()
            other.kill()


@pytest.mark.parametrize("kind", ["its words", *(["pgbouncer-statement"] if bouncers.PROGRAM else [])])
def test_a_pooler_in_statement_mode_is_refused_at_once_with_the_cure(
    kind: str, postgres_server: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_database: object) -> None:
        raise OperationalError("BEGIN", None, Exception("FATAL: transaction blocks not allowed in statement pooling mode"))

    if kind == "its words":
        monkeypatch.setattr(PostgresDatabase, "connect", refuse)
    with nullcontext(postgres_server.port or 0) if kind == "its words" else bouncers.bouncing(postgres_server.port or 0, kind) as port:
        world = World(at(postgres_url, port))
        try:
            charging(world, ASK)
            with pytest.raises(StoreRefusedError, match="pool_mode = session"):
                world.app.start()
        finally:
            world.close()
