"""An app of several stores: each with a worker of its own, on SQLite and PostgreSQL mixed, and none kept from its work by another."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tools.servers.postgres import PostgresServer

from groundstate import App, DeclarationError, NotInitialisedError, ReactionContext, StoppedError, Store, StoreRefusedError
from groundstate.app import wait_for, worker_group
from groundstate.engine.worker.worker import Worker
from groundstate.store.connect import resolve_settings
from tests.patience import HANG, HANG_S, until


class Shop(DeclarativeBase): ...


class Bank(DeclarativeBase): ...


class Order(Shop):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")


class Payment(Bank):
    __tablename__ = "payments"
    id: Mapped[int] = mapped_column(primary_key=True)
    booked: Mapped[bool] = mapped_column(default=False)
    note: Mapped[str | None] = mapped_column(default=None)


def unused_url() -> str:
    """Of a server that is not there."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"postgresql://nobody@127.0.0.1:{probe.getsockname()[1]}/nowhere"


def write(url: str, *records: object) -> None:
    engine = create_engine(resolve_settings(url).url)
    with Session(engine) as session, session.begin():
        session.add_all(records)
    engine.dispose()


def count(url: str, statement: str) -> int:
    engine = create_engine(resolve_settings(url).url)
    with engine.connect() as connection:
        found = int(connection.execute(text(statement)).scalar_one())
    engine.dispose()
    return found


def declared(shop_url: str, bank_url: str) -> App:
    app = App(f"stores-{uuid.uuid4().hex[:8]}", Store(shop_url, Shop, name="shop"), Store(bank_url, Bank, name="bank"))

    @app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"

    @app.on(Payment, Payment.booked.is_(False))
    def booked(payment: Payment) -> None:
        payment.booked = True

    return app


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is down is tried again soon."""
    monkeypatch.setattr(worker_group, "FIRST_S", 0.05)
    monkeypatch.setattr(worker_group, "LONGEST_S", 0.1)


@pytest.fixture
def both(sqlite_url: str, postgres_url: str) -> Iterator[App]:
    """Orders in a file, payments on a server."""
    app = declared(sqlite_url, postgres_url)
    app.init(tables=True, accept=True)
    yield app
    app.stop()


def test_each_store_is_carried_out_by_a_worker_of_its_own(both: App, sqlite_url: str, postgres_url: str) -> None:
    write(sqlite_url, *[Order() for _ in range(20)])
    write(postgres_url, *[Payment() for _ in range(20)])
    rested = both.run_until_idle(HANG)
    assert (rested.failed, rested.held) == (0, 0)
    assert count(sqlite_url, "SELECT count(*) FROM orders WHERE status = 'packed'") == 20
    assert count(postgres_url, "SELECT count(*) FROM payments WHERE booked") == 20


def test_until_asks_the_store_of_the_record(both: App, sqlite_url: str, postgres_url: str) -> None:
    write(sqlite_url, Order(id=1))
    write(postgres_url, Payment(id=1))
    both.start()
    assert both.down == {}
    assert asyncio.run(both.wait_for(Order, 1, Order.status == "packed", timeout=HANG))
    assert asyncio.run(both.wait_for(Payment, 1, Payment.booked, timeout=HANG))
    assert not asyncio.run(both.wait_for(Payment, 2, Payment.booked, timeout=timedelta(milliseconds=1)))


def test_a_handlers_session_refuses_the_tables_of_the_other_store(sqlite_url: str, postgres_url: str) -> None:
    app = App(f"stores-{uuid.uuid4().hex[:8]}", Store(sqlite_url, Shop, name="shop"), Store(postgres_url, Bank, name="bank"))
    tried: list[str] = []

    @app.on(Order, Order.status == "written")
    def adds(order: Order, session: Session) -> None:
        tried.append("adds")
        order.status = "done"
        session.add(Payment())

    @app.on(Order, Order.status == "read")
    def reads(order: Order, session: Session) -> None:
        tried.append("reads")
        order.status = "done"
        session.scalars(select(Payment)).all()

    @app.on(Order, Order.status == "core")
    def by_core(order: Order, session: Session) -> None:
        tried.append("core")
        order.status = "done"
        session.execute(Payment.__table__.delete())  # type: ignore[attr-defined]

    app.init(tables=True, accept=True)
    write(sqlite_url, *[Order(status=status) for status in ("written", "read", "core")])
    assert app.run_until_idle(HANG).failed == 3
    assert set(tried) == {"adds", "reads", "core"}
    assert count(sqlite_url, "SELECT count(*) FROM orders WHERE status = 'done'") == 0
    assert count(sqlite_url, "SELECT count(*) FROM groundstate_attempt WHERE error LIKE '%payments lies in another store (bank)%'") == 3


@pytest.mark.usefixtures("quick")
def test_a_store_that_cannot_be_reached_at_the_start_keeps_no_other_from_its_work(
    sqlite_url: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = postgres_url
    app = declared(sqlite_url, wanted)
    monkeypatch.setattr(wait_for, "ASKS_S", HANG_S)  # whoever asks has his answer, or his refusal, on a busy machine too
    app.init(tables=True, accept=True)
    write(sqlite_url, Order(id=1))
    write(wanted, Payment(id=1))
    led_to = [unused_url()]
    app.stores[1].settings = lambda: resolve_settings(led_to[0])  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, "groundstate"):
        app.start()
        try:
            assert asyncio.run(app.wait_for(Order, 1, Order.status == "packed", timeout=HANG))
            assert list(app.down) == ["bank"]
            assert "OperationalError" in app.down["bank"]
            with pytest.raises(TimeoutError, match="bank is down: OperationalError"):
                app.run_until_idle(timedelta(milliseconds=300))
            with pytest.raises(OperationalError):  # whether it holds there could not be asked
                asyncio.run(app.wait_for(Payment, 1, Payment.booked, timeout=timedelta(milliseconds=10)))
            led_to[0] = wanted
            app.run_until_idle(HANG)
            assert app.down == {}
        finally:
            app.stop()
    assert count(wanted, "SELECT count(*) FROM payments WHERE booked") == 1
    assert "bank: nothing is carried out on this database; it is tried again in" in caplog.text
    assert "bank: the database can be reached, and its reactions are carried out" in caplog.text


@pytest.mark.usefixtures("quick")
def test_an_app_can_be_stopped_while_one_of_its_stores_is_down(sqlite_url: str) -> None:
    alone = App(f"stores-{uuid.uuid4().hex[:8]}", Store(sqlite_url, Shop))
    alone.init(tables=True)
    app = declared(sqlite_url, unused_url())
    app.start(wait=True)
    assert list(app.down) == ["bank"]
    assert set(app.waiting) == {name for name, spec in app.reactions.items() if spec.store.name == "bank"}
    app.go()
    app.stop()
    app.start()  # and started again
    assert list(app.down) == ["bank"]
    app.stop()


def test_a_stop_ends_a_start_that_waits_for_one_of_several_stores_and_the_life_of_another(sqlite_url: str) -> None:
    App(f"stores-{uuid.uuid4().hex[:8]}", Store(sqlite_url, Shop)).init(tables=True)
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:  # it takes connections and never answers
        app = declared(sqlite_url, f"postgresql://nobody@127.0.0.1:{mute.getsockname()[1]}/nowhere?connect_timeout=3600")
        ended: list[BaseException] = []

        def start() -> None:
            try:
                app.start(accept=True)
            except StoppedError as error:
                ended.append(error)

        starting = threading.Thread(target=start)
        starting.start()
        until(lambda: app._starting_group is not None and len(app._starting_group.workers) == 1)
        app.stop()
        starting.join(HANG_S)
        assert not starting.is_alive(), "it waits for a server that never answers"
    assert [str(one) for one in ended] == ["told to stop while it started: nothing was carried out"]
    assert count(sqlite_url, "SELECT count(*) FROM groundstate_worker") == 0, "the one that was up did not end its life"
    with pytest.raises(StoppedError):
        app.down  # noqa: B018  # a property


def test_where_no_store_can_be_reached_the_start_is_refused() -> None:
    single = App(f"stores-{uuid.uuid4().hex[:8]}", Store(unused_url(), Shop))
    with pytest.raises(OperationalError):
        single.start()
    app = declared(unused_url(), unused_url())
    with pytest.raises(OperationalError):
        app.start()
    app.stop()


def test_a_store_that_is_refused_keeps_the_app_from_starting(sqlite_url: str, tmp_path: Path) -> None:
    App(f"stores-{uuid.uuid4().hex[:8]}", Store(sqlite_url, Shop)).init(tables=True)
    app = declared(sqlite_url, f"sqlite:///{tmp_path / 'bare.db'}")
    with pytest.raises(NotInitialisedError):
        app.start()
    with pytest.raises(NotInitialisedError):
        app.start()  # it does not run, and leaves nothing that runs


@pytest.mark.usefixtures("quick")
def test_a_store_that_is_refused_once_the_start_is_over_is_told_and_tried_again(
    both: App, postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_group, "START_S", 0.3)
    write(postgres_url, Payment(id=1))
    started, really, tries = threading.Event(), Worker.start, list[str]()

    def start(worker: Worker) -> None:
        if worker.database.settings.url.drivername.startswith("postgresql") and not tries:
            tries.append("one")
            assert started.wait(HANG_S)  # as where somebody holds a lock on our tables
            worker.database.close()
            raise StoreRefusedError("somebody has held rows that must be looked at first")
        really(worker)

    monkeypatch.setattr(Worker, "start", start)
    with caplog.at_level(logging.WARNING, "groundstate"):
        both.start()
        assert list(both.down) == ["bank"]
        started.set()
        until(lambda: count(postgres_url, "SELECT count(*) FROM payments WHERE booked") == 1)
    assert both.down == {}
    assert (
        "bank: nothing is carried out on this database; it is tried again in 0.1 s: StoreRefusedError: somebody has held rows"
        in caplog.text
    )


def test_a_second_start_at_the_same_moment_is_refused(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App(f"stores-{uuid.uuid4().hex[:8]}", Store(sqlite_url, Shop))
    app.init(tables=True)
    begun, goes_on = _blocked_start(app, monkeypatch)
    first = threading.Thread(target=app.start)
    first.start()
    assert begun.wait(HANG_S)
    with pytest.raises(StoppedError, match="runs in this process already"):
        app.start()
    goes_on.set()
    first.join(HANG_S)
    app.stop()
    app.start()
    app.stop()


def test_a_lifespan_that_is_cancelled_while_it_starts_leaves_nothing_that_runs(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App(f"stores-{uuid.uuid4().hex[:8]}", Store(sqlite_url, Shop))
    app.init(tables=True)
    begun, goes_on = _blocked_start(app, monkeypatch)

    async def served() -> None:
        async with app.running():
            raise AssertionError

    async def cancelled() -> None:
        task = asyncio.create_task(served())
        await asyncio.to_thread(begun.wait, HANG_S)
        task.cancel()
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    with pytest.raises(StoppedError):
        app.down  # noqa: B018
    assert count(sqlite_url, "SELECT count(*) FROM groundstate_worker") == 0


def _blocked_start(app: App, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Its next start begins, and waits for the second event."""
    begun, goes_on, really = threading.Event(), threading.Event(), app.check_declarations

    def check() -> None:
        begun.set()
        assert goes_on.wait(HANG_S)
        really()

    monkeypatch.setattr(app, "check_declarations", check)
    return begun, goes_on


def test_databases_that_until_opens_are_few_and_closed_by_the_stop(both: App, postgres_url: str) -> None:
    write(postgres_url, Payment(id=1, booked=True))

    async def many() -> list[bool]:
        return await asyncio.gather(*[both.wait_for(Payment, 1, Payment.booked, timeout=HANG) for _ in range(20)])

    both.start(hints_only=True)
    assert all(asyncio.run(many()))
    both.stop()
    here = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
    until(lambda: count(postgres_url, here) == 1)  # who asks


def test_two_stores_of_one_database_are_refused(database_url: str) -> None:
    app = declared(database_url, database_url + ("?connect_timeout=5" if database_url.startswith("postgres") else ""))
    app.init(tables=True, accept=True)
    with pytest.raises(StoreRefusedError, match=r"are one database.*give both to one store"):
        app.start()


def test_a_schedule_writes_to_the_store_that_it_names(sqlite_url: str, postgres_url: str) -> None:
    app = declared(sqlite_url, postgres_url)

    @app.every(timedelta(seconds=1), store=app.stores[1])
    def opened(session: Session, ctx: ReactionContext) -> None:
        session.add(Payment(note=str(ctx.due)))

    app.init(tables=True, accept=True)
    app.start()
    try:
        until(lambda: count(postgres_url, "SELECT count(*) FROM payments WHERE note IS NOT NULL") > 0)
    finally:
        app.stop()


def test_two_databases_of_one_name_are_refused() -> None:
    with pytest.raises(DeclarationError, match="two of its databases are named 'a'"):
        App("twice", Store("sqlite:///a.db", Shop, name="a"), Store("sqlite:///b.db", Bank, name="a"))


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", ".x"])
def test_a_name_that_no_command_line_could_say_is_refused(name: str) -> None:
    with pytest.raises(DeclarationError, match="a store's name is made of"):
        Store("sqlite:///a.db", Shop, name=name)


def test_a_server_that_dies_later_leaves_the_others_going_and_comes_back(sqlite_url: str) -> None:
    with PostgresServer() as server:
        app = declared(sqlite_url, server.url("postgres"))
        app.init(tables=True, accept=True)
        app.start()
        try:
            server.kill()
            write(sqlite_url, *[Order() for _ in range(10)])
            until(lambda: count(sqlite_url, "SELECT count(*) FROM orders WHERE status = 'packed'") == 10)
            until(lambda: list(app.down) == ["bank"])
            server.start()
            write(server.url("postgres"), Payment())
            until(lambda: count(server.url("postgres"), "SELECT count(*) FROM payments WHERE booked") == 1)
            until(lambda: app.down == {})
            assert app.failure is None
        finally:
            app.stop()
