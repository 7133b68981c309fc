"""A server that takes what is sent to it and never answers, and locks on our own tables: trouble, told of, and not ready; never dead."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, make_url, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tools.servers import watchdog
from tools.servers.postgres import PostgresServer

from groundstate import App, Store
from groundstate.cli.health import Health, StuckLog
from groundstate.store import postgres, silent_server, statement_timeouts
from tests.engine.kit import Order, World
from tests.patience import until


class Shop(DeclarativeBase): ...


class Bank(DeclarativeBase): ...


class Item(Shop):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    sold: Mapped[bool] = mapped_column(default=False)


class Payment(Bank):
    __tablename__ = "payments"
    id: Mapped[int] = mapped_column(primary_key=True)
    booked: Mapped[bool] = mapped_column(default=False)


class Muffler:
    """A proxy before a server: takes all that is sent, and passes it on while it is open."""

    def __init__(self, port: int) -> None:
        self.open = threading.Event()
        self.open.set()
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._wires: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def before(self, url: str) -> str:
        """The same URL through this proxy."""
        return make_url(url).set(port=self._listening.getsockname()[1]).render_as_string(hide_password=False)

    def close(self) -> None:
        self.open.set()
        for wire in [self._listening, *self._wires]:
            with suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)
            wire.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._wires += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.open.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes some seconds takes less."""
    monkeypatch.setattr(statement_timeouts, "LOOKS_S", 0.05)
    monkeypatch.setattr(silent_server, "ASKS_AFTER_S", 0.5)
    monkeypatch.setattr(silent_server, "WITHIN_S", 2.0)  # psycopg waits no less for a connection
    monkeypatch.setattr(silent_server, "AGAIN_S", 0.1)


@contextmanager
def stopped(server: PostgresServer) -> Iterator[None]:
    """Every process of the server, by SIGSTOP."""
    some = watchdog.processes_in(server.data)
    for pid in some:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in some:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def muffled(muffler: Muffler) -> Iterator[None]:
    muffler.open.clear()
    try:
        yield
    finally:
        muffler.open.set()


@pytest.mark.parametrize("how", ["stopped", "muffled"])
def test_a_server_that_does_not_answer_is_trouble_and_the_other_store_goes_on(
    postgres_server: PostgresServer, postgres_url: str, sqlite_url: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        muffler = Muffler(make_url(postgres_url).port or 0)
        stack.callback(muffler.close)
        app = App(
            f"silent-{uuid.uuid4().hex[:8]}", Store(sqlite_url, Shop, name="shop"), Store(muffler.before(postgres_url), Bank, name="bank")
        )

        @app.on(Item, Item.sold.is_(False))
        def sold(item: Item) -> None:
            item.sold = True

        @app.on(Payment, Payment.booked.is_(False))
        def booked(payment: Payment) -> None:
            payment.booked = True

        app.init(tables=True, accept=True)
        shop, bank = (stack.enter_context(_engine(url)) for url in (sqlite_url, postgres_url))
        app.start()
        stack.callback(app.stop)
        health = Health(app)
        health.started = True
        stuck = StuckLog(app, health, 60.0)
        until(lambda: all(one.ready for one in health.check_stores(60.0)))
        with stopped(postgres_server) if how == "stopped" else muffled(muffler):
            until(lambda: not health.check_stores(60.0)[1].ready)
            until(lambda: "does not answer" in (health.check_stores(60.0)[1].why or ""), lambda: health.check_stores(60.0))
            _write(shop, Item(id=1))
            until(lambda: _holds(shop, Item))
            first = health.check_stores(60.0)[0]
            assert (first.ready, health.find_stuck_workers(60.0)) == (True, [])
            stuck.log_changes()
            events = [getattr(one, "event", "") for one in caplog.records]
            assert "database_trouble" in events
            assert "worker_stuck" not in events
        until(lambda: health.check_stores(60.0)[1].ready)
        _write(bank, Payment(id=1))
        until(lambda: _holds(bank, Payment))


def test_a_stop_waits_for_no_server_that_does_not_answer(postgres_url: str) -> None:
    with ExitStack() as stack:
        muffler = Muffler(make_url(postgres_url).port or 0)
        stack.callback(muffler.close)
        world = World(muffler.before(postgres_url))
        stack.callback(world.close)

        @world.app.on(Order, Order.status == "placed")
        def paid(order: Order) -> None:
            order.status = "paid"

        life = world.worker()
        life.quiet()
        stack.enter_context(muffled(muffler))
        until(lambda: "does not answer" in (life.worker.current_trouble or ""))
        assert not life.worker.stop(1.0).hangs


def test_a_statement_that_takes_long_is_not_taken_for_silence(postgres_url: str) -> None:
    database = postgres.PostgresDatabase(Store(postgres_url, Bank).settings())
    with database.writing() as connection:
        assert connection.exec_driver_sql("SELECT pg_sleep(1.5), 1").scalar_one_or_none() is not None  # it was asked for meanwhile
    assert not database._silence.silent
    database.close()


@pytest.mark.parametrize("mode", ["ACCESS EXCLUSIVE", "SHARE"])
def test_a_lock_on_our_own_tables_is_told_with_who_has_it_and_nothing_is_ready(
    postgres_url: str, mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(postgres, "WAIT", timedelta(milliseconds=200))
    world = World(postgres_url)

    @world.app.on(Order, Order.status == "placed")
    def paid(order: Order) -> None:
        raise ValueError("so that an attempt is written")

    world.there()
    life = world.worker()
    life.quiet()
    with create_engine(world.engine.url, connect_args={"application_name": "vacuum full"}).begin() as theirs:
        pid = theirs.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        theirs.exec_driver_sql(f"LOCK TABLE groundstate_attempt IN {mode} MODE")
        world.orders(1)
        until(
            lambda: (
                f"pid {pid} (vacuum full, idle in transaction) has locked the table groundstate_attempt"
                in (life.worker.worker_health().trouble or "")
            )
        )
        until(lambda: [one for one in caplog.records if _is_trouble(one) and f"pid {pid}" in one.getMessage()])
        assert not [one for one in caplog.records if getattr(one, "event", "") == "reaction_barred"]
    until(lambda: life.worker.current_trouble is None)
    until(lambda: world.states() == ["failed"])
    world.close()


def _is_trouble(line: logging.LogRecord) -> bool:
    return getattr(line, "event", "") == "database_trouble"


@contextmanager
def _engine(url: str) -> Iterator[Engine]:
    engine = create_engine(url)
    yield engine
    engine.dispose()


def _write(engine: Engine, record: Any) -> None:
    with Session(engine) as session, session.begin():
        session.add(record)


def _holds(engine: Engine, kind: Any) -> bool:
    """Whether its record was carried out."""
    with Session(engine) as session:
        found = session.scalars(select(kind)).one()
        return bool(found.sold if isinstance(found, Item) else found.booked)
