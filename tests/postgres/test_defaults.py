"""What a DBA may have set for a role or a database: small time limits, another isolation, other ways to write dates, other encodings."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Interval, LargeBinary, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tools.servers.postgres import PostgresServer

from groundstate import ReactionContext, Retry, after
from groundstate.store import connect
from groundstate.store.tables import UtcDateTime
from tests.engine.charging import ASK, charging
from tests.engine.kit import QUICK, Base, Order, World, until
from tests.postgres.pairs import answer
from tests.postgres.roles import role

LIMITS = {
    "statement_timeout": "40",
    "lock_timeout": "10",
    "idle_in_transaction_session_timeout": "30",
    "idle_session_timeout": "60",
}
WORDS = {
    "TimeZone": "'Asia/Kathmandu'",
    "DateStyle": "'German, DMY'",
    "IntervalStyle": "'sql_standard'",
    "bytea_output": "'escape'",
    "standard_conforming_strings": "off",
    "client_encoding": "'LATIN1'",
    "application_name": "'somebody'",
}
MANNERS = {
    "default_transaction_isolation": "'serializable'",
    "default_transaction_read_only": "on",
    "synchronous_commit": "off",
}


PATIENCE = timedelta(hours=30, seconds=5)


class Own(DeclarativeBase):
    """Beside the kit's, whose tables every test has."""


class Parcel(Own):
    __tablename__ = "parcels"
    id: Mapped[int] = mapped_column(primary_key=True)
    sent_at: Mapped[datetime] = mapped_column(UtcDateTime)
    patience: Mapped[timedelta] = mapped_column(Interval)
    stamp: Mapped[bytes] = mapped_column(LargeBinary)
    words: Mapped[str]
    seen: Mapped[str | None]


def world_as(url: str, login: str) -> World:
    """The app's connections are that role's, and the test's own are not."""
    made = World(login, Base, Own)
    made.engine.dispose()
    made.engine = create_engine(url)
    return made


def works(world: World, words: str = "naïve \\ 'x'") -> None:
    """Calls, batches, retries and due times; and what comes back is what was written."""
    gateway = charging(world, ASK)
    gateway.plan(2, "refuse")

    @world.app.on(Parcel, Parcel.seen.is_(None), due=after(Parcel.sent_at, PATIENCE), retry=QUICK)
    def seen(parcel: Parcel, ctx: ReactionContext) -> None:
        assert ctx.due == datetime(2026, 1, 2, 12, tzinfo=UTC) + PATIENCE
        assert parcel.patience == PATIENCE
        assert parcel.stamp == b"\\\0\xff"
        parcel.seen = parcel.words

    world.orders(10)
    sent = datetime(2026, 1, 2, 12, tzinfo=UTC)
    world.add(*[Parcel(id=one, sent_at=sent, patience=PATIENCE, stamp=b"\\\0\xff", words=words) for one in (1, 2)])
    life = world.worker()
    first = life.worker.incarnation.id
    until(lambda: world.count(Order.status == "paid") == 10)
    until(lambda: world.get(Parcel, 1).seen == world.get(Parcel, 2).seen == words)
    life.quiet()
    assert life.worker.incarnation.id == first, "its lock was lost"
    assert [gateway.done(number) for number in range(1, 11)] == [1] * 10


@pytest.mark.parametrize("settings", [WORDS, MANNERS], ids=["words", "manners"])
def test_what_a_role_has_set_changes_nothing(settings: dict[str, str], postgres_url: str) -> None:
    with role(postgres_url, settings) as login:
        world = world_as(postgres_url, login)
        try:
            works(world)
        finally:
            world.close()


def limits(server: PostgresServer) -> dict[str, str]:
    newer = answer(server, "show server_version_num") >= "170000"
    return {**LIMITS, **({"transaction_timeout": "50"} if newer else {})}


def test_time_limits_of_others_are_not_ours(postgres_server: PostgresServer, postgres_url: str) -> None:
    with role(postgres_url, limits(postgres_server)) as login:
        world = world_as(postgres_url, login)
        try:

            @world.app.on(Order, Order.status == "slow")
            def slow(order: Order, session: Session) -> None:
                session.execute(text("select pg_sleep(0.15)"))  # a statement longer than theirs
                threading.Event().wait(0.15)  # and a pause
                order.status = "done"

            @world.app.on(Order, Order.note == "wait")
            def waits(order: Order, session: Session) -> None:
                session.execute(text("update parcels set words = 'mine' where id = 9"))
                order.note = "waited"

            works(world)
            world.add(Order(id=50, status="slow"), Parcel(id=9, sent_at=datetime.now(UTC), patience=PATIENCE, stamp=b"", words=""))
            until(lambda: world.order(50).status == "done")
            life = world.lives[0]
            first = life.worker.incarnation.id
            with world.engine.begin() as other:
                other.execute(text("set local idle_in_transaction_session_timeout = 0"))  # a busy machine is slower than theirs
                other.execute(text("update parcels set words = 'yours' where id = 9"))
                world.set(50, note="wait")
                assert not threading.Event().wait(0.5)  # longer than each of their limits: also those of connections that lie idle
            until(lambda: world.order(50).note == "waited")
            assert life.worker.incarnation.id == first, "its lock was lost"
            assert world.attempts() == []
        finally:
            world.close()


def test_a_stopped_process_keeps_a_row_for_minutes_at_most(postgres_url: str) -> None:
    world = World(postgres_url)
    try:
        database = world.worker().database
        wanted = {"idle_in_transaction_session_timeout": "5min", "statement_timeout": "30s", "lock_timeout": "5s"}
        with database.writing() as connection:
            assert {name: connection.exec_driver_sql(f"show {name}").scalar_one() for name in wanted} == wanted
        with database.reading() as connection:
            assert connection.exec_driver_sql("show statement_timeout").scalar_one() == "0"
            assert connection.exec_driver_sql("show lock_timeout").scalar_one() == "5s"
    finally:
        world.close()


@pytest.mark.parametrize(("failover", "wanted"), [("lossy", "local"), ("lossless", "on")])
def test_what_was_called_lossless_waits_for_the_standby_whatever_a_role_has_set(failover: str, wanted: str, postgres_url: str) -> None:
    with role(postgres_url, {"synchronous_commit": "local"}) as login:
        database = connect.open_store(connect.resolve_settings(login, failover=failover))[0]
        try:
            database.connect()
            with database.writing() as connection:
                assert connection.exec_driver_sql("show synchronous_commit").scalar_one() == wanted
        finally:
            database.close()


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
def other_encoding(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[str]:
    name = f"in_{request.param.lower()}"
    answer(postgres_server, f"create database {name} template template0 encoding '{request.param}' lc_collate 'C' lc_ctype 'C'")
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


def test_a_database_in_another_encoding_is_worked_on(other_encoding: str, caplog: pytest.LogCaptureFixture) -> None:
    world = World(other_encoding, Base, Own)
    world.engine.dispose()
    world.engine = create_engine(other_encoding, connect_args={"client_encoding": "utf8"})
    try:

        @world.app.on(Order, Order.status == "wrong", retry=QUICK)
        def fails(order: Order) -> None:
            raise ValueError("it costs 5 € — naïve: 円")

        works(world, "naïve")
        with caplog.at_level(logging.WARNING):
            world.set(1, status="wrong")
            until(lambda: [one.state.value for one in world.attempts() if one.reaction == "fails"] == ["held"])
        said = world.attempt().error or ""
        assert "ValueError: it costs 5 " in said
        assert "naïve" in said
    finally:
        world.close()


def test_in_sql_ascii_bytes_that_are_no_text_fail_their_record_alone_and_are_told(postgres_server: PostgresServer) -> None:
    answer(postgres_server, "create database in_no_encoding template template0 encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C'")
    world = World(postgres_server.url("in_no_encoding"), Base)
    world.engine.dispose()
    world.engine = create_engine(world.url, connect_args={"client_encoding": "utf8"})
    try:

        @world.app.on(Order, Order.status == "placed", retry=Retry(times=1))
        def packed(order: Order) -> None:
            order.status = "packed"

        world.there()
        world.orders(10)
        world.run(r"UPDATE orders SET note = E'M\xfcller' WHERE id = 1")
        world.worker()
        until(lambda: world.states() == ["held"], world.attempts)
        until(lambda: world.count(Order.status == "packed") == 9)
        assert r"(orders.note holds b'M\xfcller')" in str(world.attempt().error)
    finally:
        world.close()
        postgres_server.drop_database("in_no_encoding")
