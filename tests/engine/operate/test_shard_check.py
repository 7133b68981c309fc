"""The same tables in several databases: each shard a point of persistence of its own, and keys that no two of them give out."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import create_engine, make_url, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tools.servers.postgres import PostgresServer

from groundstate import (
    Absent,
    App,
    DeclarationError,
    ExternalService,
    IdempotencyKey,
    InDoubt,
    ReactionContext,
    Store,
    StoreRefusedError,
    UtcDateTime,
)
from groundstate.app.declared import databases_of, reactions_of
from groundstate.engine.operate import shard_check
from groundstate.engine.sql.commit_hooks import TouchedRecords
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch.hint_publisher import subject_of_app
from groundstate.engine.watch.shard_routing import names_by_url_text
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.rules.hint_codec import Hint, decode_hint
from groundstate.store import connect
from groundstate.store.connect import resolve_settings
from groundstate.store.safe_name import label_of_url
from groundstate.transport.memory import MemoryTransport
from tests.databases import Databases
from tests.engine.operate.test_several_stores import count, unused_url, write
from tests.patience import HANG, until


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    status: Mapped[str] = mapped_column(default="placed")
    receipt: Mapped[str | None] = mapped_column(default=None)


class Ticket(Base):
    __tablename__ = "tickets"
    id: Mapped[int] = mapped_column(primary_key=True)
    sold: Mapped[bool] = mapped_column(default=False)


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    read: Mapped[bool] = mapped_column(default=False)
    at: Mapped[Any | None] = mapped_column(UtcDateTime, default=None)


def named(store: Store) -> App:
    return App(f"shards-{uuid.uuid4().hex[:8]}", store)


def packing(store: Store) -> App:
    app = named(store)

    @app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"

    return app


def charging(store: Store, ledger: Path, name: str | None = None) -> App:
    """Each call appends its key to the ledger."""
    app = named(store) if name is None else App(name, store)
    bank = ExternalService("bank", limit=20)

    @bank.call(in_doubt=InDoubt.lookup(settle_after=timedelta(milliseconds=50)), timeout=timedelta(seconds=2))
    async def charge(order: Order, key: IdempotencyKey) -> str:
        with ledger.open("a") as file:
            file.write(f"{order.id} {key}\n")
        await asyncio.sleep(0.005)
        return str(key)

    @charge.lookup
    def _(order: Order, key: IdempotencyKey) -> str | Absent:
        return str(key) if ledger.exists() and str(key) in ledger.read_text() else Absent()

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, receipt: str) -> None:
        order.status, order.receipt = "paid", receipt

    return app


def selling(store: Store, record: type = Ticket) -> App:
    """Tickets, which the database numbers, with a call for each; or notes, which the app numbers."""
    app = named(store)
    service = ExternalService("window")

    @service.call(in_doubt=InDoubt.lookup(settle_after=timedelta(seconds=1)), timeout=timedelta(seconds=5))
    async def sell(one: Any, key: IdempotencyKey) -> str:
        return str(key)

    @sell.lookup
    def _(one: Any, key: IdempotencyKey) -> str | Absent:
        return Absent()

    if record is Ticket:

        @app.on(Ticket, Ticket.sold.is_(False), call=sell)
        def sold(ticket: Ticket, outcome: str) -> None:
            ticket.sold = True

    else:

        @app.on(Note, Note.read.is_(False), call=sell)
        def read(note: Note, outcome: str) -> None:
            note.read = True

    return app


def files(tmp_path: Path, number: int = 2) -> list[str]:
    return [f"sqlite:///{tmp_path / f'shard{one}.db'}" for one in range(number)]


@pytest.fixture
def servers_databases(databases: Databases) -> Iterator[list[str]]:
    """Two databases on one server."""
    made = [databases.take() for _ in range(2)]
    yield made
    for url in made:
        databases.give_back(url)


def sql(url: str, *statements: str) -> None:
    engine = create_engine(resolve_settings(url).url)
    with engine.begin() as connection:
        for one in statements:
            connection.execute(text(one))
    engine.dispose()


# ---- carrying out --------------------------------------------------------------------------------------------------------------
def test_a_reaction_is_carried_out_on_each_shard(tmp_path: Path, postgres_url: str) -> None:
    urls = [*files(tmp_path), postgres_url]
    app = packing(Store.shards(urls, Base))
    assert [one.name for one in databases_of(app)] == ["shard-1", "shard-2", "shard-3"]
    app.init(tables=True, accept=True)
    for url in urls:
        write(url, *[Order() for _ in range(5)])
    app.run_until_idle(HANG)
    assert [count(url, "SELECT count(*) FROM orders WHERE status = 'packed'") for url in urls] == [5, 5, 5]
    assert [count(url, "SELECT count(*) FROM groundstate_reaction WHERE name = 'packed'") for url in urls] == [1, 1, 1]


@contextlib.contextmanager
def heard_by_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The databases of whose workers a lane was told something."""
    heard: list[str] = []
    really = WorkQueue.note_commit

    def note_commit(lane: WorkQueue, touched: TouchedRecords, **how: Any) -> bool:
        heard.append(label_of_url(lane.query.database.settings.url))
        return really(lane, touched, **how)

    with monkeypatch.context() as patched:
        patched.setattr(WorkQueue, "note_commit", note_commit)
        yield heard


@pytest.mark.parametrize("kind", ["files", "servers"])
def test_a_commit_on_one_shard_wakes_no_worker_of_another(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = files(request.getfixturevalue("tmp_path")) if kind == "files" else request.getfixturevalue("servers_databases")
    app = packing(Store.shards(urls, Base))
    app.init(tables=True, accept=True)
    places = [label_of_url(resolve_settings(url).url) for url in urls]
    app.start()
    try:
        app.run_until_idle(HANG)
        with heard_by_workers(monkeypatch) as heard:
            for number, url in enumerate(urls):
                write(url, Order(), Order())
                app.run_until_idle(HANG)
                assert set(heard) == {places[number]}  # the commit by the test's session, and that of the handler
                heard.clear()
            engines = [create_engine(resolve_settings(url).url) for url in urls]
            with Session(engines[0]) as session, session.begin():
                session.add(Order())
                session.flush()
                session.execute(update(Order).values(receipt="none"), bind_arguments={"bind": engines[1]})
            assert set(heard[:2]) == set(places)  # one commit to two of them: nobody can say which
            for engine in engines:
                engine.dispose()
    finally:
        app.stop()


class Routed(Session):
    def get_bind(self, *given: Any, **more: Any) -> Any:
        return super().get_bind(*given, **more)


def test_a_session_that_routes_by_itself_wakes_the_workers_of_all_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = files(tmp_path)
    app = packing(Store.shards(urls, Base))
    app.init(tables=True, accept=True)
    engine = create_engine(urls[1])
    app.start()
    try:
        app.run_until_idle(HANG)
        with heard_by_workers(monkeypatch) as heard, Routed(engine) as session, session.begin():
            session.add(Order())
            session.commit()
            assert set(heard) >= {label_of_url(resolve_settings(url).url) for url in urls}
    finally:
        app.stop()
        engine.dispose()


def test_what_is_told_to_other_processes_names_the_shard_and_its_workers_alone_look(tmp_path: Path) -> None:
    urls = files(tmp_path)
    app = packing(Store.shards({"north": urls[0], "south": urls[1]}, Base))
    app.transport = "memory:shards"
    app.init(tables=True, accept=True)
    said: list[Hint] = []
    line = MemoryTransport("shards")
    line.open(f"groundstate.{subject_of_app(app.name)}", lambda words: said.append(decode_hint(words) or Hint()))
    app.start(hints_only=True)
    try:
        for url in urls:
            before = len(said)
            write(url, Order())
            until(lambda before=before: len(said) > before)  # type: ignore[misc]
    finally:
        app.stop()
        line.close()
    assert [(one.store, one.reactions) for one in said] == [("north", ("packed",)), ("south", ("packed",))]
    app.start()
    try:
        app.run_until_idle(HANG)
        workers = app._running_workers()
        for hint in said:
            hears = [worker.incarnation.id for worker in workers if _hears(worker, hint)]
            assert hears == [worker.incarnation.id for worker in workers if worker.part.name == hint.store]
    finally:
        app.stop()


def _hears(worker: Any, hint: Hint) -> bool:
    heard: list[Hint] = []
    with mock.patch.object(worker.components.sharing, "receive_message", heard.append):
        worker.receive_remote_hint(hint)
    return bool(heard)


def test_two_shards_that_cannot_be_told_apart_by_their_urls_both_look() -> None:
    url = make_url("postgresql://app@db/app")
    names = names_by_url_text(
        [("north", url), ("south", url.set(username="other")), ("west", url.set(port=6432)), (None, url.set(host="x"))]
    )
    assert names == {"postgresql://db:6432/app": "west"}


def test_until_asks_all_shards_or_the_one_that_is_named(tmp_path: Path) -> None:
    urls = files(tmp_path)
    app = packing(Store.shards({"north": urls[0], "south": urls[1]}, Base))
    app.init(tables=True, accept=True)
    key = uuid.uuid4()
    write(urls[1], Order(id=key))
    app.start()
    try:
        held = Order.status == "packed"
        assert asyncio.run(app.wait_for(Order, key, held, timeout=HANG))
        assert asyncio.run(app.wait_for(Order, key, held, timeout=HANG, shard="south"))
        assert not asyncio.run(app.wait_for(Order, key, held, timeout=timedelta(milliseconds=1), shard="north"))
        with pytest.raises(DeclarationError, match="there is no shard 'west': there are north, south"):
            asyncio.run(app.wait_for(Order, key, held, timeout=HANG, shard="west"))
    finally:
        app.stop()


def test_one_shard_that_is_down_leaves_the_others_going(tmp_path: Path) -> None:
    urls = files(tmp_path)
    packing(Store.shards(urls, Base)).init(tables=True, accept=True)
    app = packing(Store.shards({"a": urls[0], "dead": unused_url(), "b": urls[1]}, Base))
    for url in urls:
        write(url, Order())
    app.start(accept=True)
    try:
        until(lambda: [count(url, "SELECT count(*) FROM orders WHERE status = 'packed'") for url in urls] == [1, 1])
        assert list(app.down) == ["dead"]
    finally:
        app.stop()


def test_a_schedule_ticks_on_each_shard_or_on_the_one_that_is_named(tmp_path: Path) -> None:
    urls = files(tmp_path)
    store = Store.shards({"north": urls[0], "south": urls[1]}, Base)
    app = named(store)

    def note(session: Session, ctx: ReactionContext) -> None:
        session.add(Note(id=int(ctx.due.timestamp()), read=True))

    def order(session: Session, ctx: ReactionContext) -> None:
        session.add(Order(status=f"from {ctx.due}"))

    app.every(timedelta(seconds=1))(note)
    app.every(timedelta(seconds=1), store=store.shard("south"))(order)
    app.init(tables=True, accept=True)
    app.start()
    try:
        until(lambda: all(count(url, "SELECT count(*) FROM notes") > 0 for url in urls))
        until(lambda: count(urls[1], "SELECT count(*) FROM orders") > 0)
        assert count(urls[0], "SELECT count(*) FROM orders") == 0
    finally:
        app.stop()


# ---- keys ----------------------------------------------------------------------------------------------------------------------
def test_a_record_that_moved_to_another_shard_keeps_the_key_of_its_calls(tmp_path: Path) -> None:
    urls, ledger, number = files(tmp_path), tmp_path / "ledger", uuid.uuid4()
    app = charging(Store.shards(urls, Base), ledger)
    app.init(tables=True, accept=True)
    for url in urls:  # moved away between the two, as if it had to be charged anew
        write(url, Order(id=number))
        app.run_until_idle(HANG)
        sql(url, "DELETE FROM orders")
    first, second = ledger.read_text().splitlines()
    assert first == second


def test_shards_of_sqlite_that_number_records_of_calls_are_refused(tmp_path: Path) -> None:
    app = selling(Store.shards(files(tmp_path), Base))
    app.init(tables=True, accept=True)
    with pytest.raises(
        StoreRefusedError, match=r"same numbers to rows of tickets, and sold's calls.*default=uuid.uuid4.*autoincrement=False"
    ):
        app.start()


def test_sequences_that_meet_are_refused_and_those_that_do_not_are_not(servers_databases: list[str]) -> None:
    app = selling(Store.shards(servers_databases, Base))
    app.init(tables=True, accept=True)
    with pytest.raises(StoreRefusedError, match=r"ALTER SEQUENCE .* INCREMENT BY 2 RESTART WITH"):
        app.start()
    for number, url in enumerate(servers_databases):
        sql(url, f"ALTER SEQUENCE tickets_id_seq INCREMENT BY 2 RESTART WITH {101 + number}")
        write(url, Ticket(), Ticket(), Ticket())
    app.run_until_idle(HANG)
    assert [count(url, "SELECT sum(id) FROM tickets WHERE sold") for url in servers_databases] == [101 + 103 + 105, 102 + 104 + 106]
    sql(servers_databases[0], "ALTER SEQUENCE tickets_id_seq RESTART WITH 200")
    with pytest.raises(StoreRefusedError, match=r"shard-\d and shard-\d give the same numbers"):
        app.start()


def test_numbers_of_the_apps_own_and_tables_without_calls_are_taken_as_they_are(tmp_path: Path) -> None:
    app = selling(Store.shards(files(tmp_path), Base), Note)

    @app.on(Ticket, Ticket.sold.is_(False))
    def sold(ticket: Ticket) -> None:
        ticket.sold = True

    app.init(tables=True, accept=True)
    app.run_until_idle(HANG)


def test_check_finds_keys_that_two_shards_have(tmp_path: Path) -> None:
    urls = files(tmp_path)
    app = selling(Store.shards(urls, Base), Note)

    @app.on(Ticket, Ticket.sold.is_(False))
    def sold(ticket: Ticket) -> None:
        ticket.sold = True

    app.init(tables=True, accept=True)
    write(urls[0], *[Note(id=one) for one in (1, 5, 7)], Ticket(id=1))
    write(urls[1], *[Note(id=one) for one in (2, 5, 7)])
    shards = {}
    for part in databases_of(app):
        database = connect.open_store(part.settings())[0]
        database.connect()
        shards[part.label] = (database, [ConditionQuery(spec, database) for spec in reactions_of(app, part)])
    found = shard_check.check_shards(shards)
    assert [(one.level, one.subject) for one in found] == [("problem", "notes"), ("advice", "tickets")]
    assert "shard-1 and shard-2 both have a record 5, and 1 more of a sample: read's calls for both go out under one key" in found[0].words
    assert "give the same numbers to their rows" in found[1].words
    for database, _ in shards.values():
        database.close()


def test_numbers_meet_where_they_leave_the_same_remainder() -> None:
    assert shard_check.NumberSeries(1, 1).has_common_number(shard_check.NumberSeries(1, 10**12))
    assert shard_check.NumberSeries(4, 1).has_common_number(shard_check.NumberSeries(4, 101))
    assert not shard_check.NumberSeries(4, 1).has_common_number(shard_check.NumberSeries(4, 102))
    assert shard_check.NumberSeries(4, 1).has_common_number(shard_check.NumberSeries(2, 3))
    assert shard_check.NumberSeries(3, 1).has_common_number(shard_check.NumberSeries(2, 2))  # at 4


@pytest.mark.parametrize("given", [[], {}, "sqlite:///one.db"])
def test_no_databases_are_no_shards(given: Any) -> None:
    with pytest.raises(DeclarationError, match="takes several databases"):
        Store.shards(given, Base)


def test_a_sharded_store_is_no_single_database(tmp_path: Path) -> None:
    store = Store.shards(files(tmp_path), Base, name="eu", witness=tmp_path / "witness")
    assert [one.label for one in store.databases] == ["eu-1", "eu-2"]
    assert [one.settings().witness for one in store.databases] == [str(tmp_path / "witness" / one) for one in ("eu-1", "eu-2")]
    with pytest.raises(DeclarationError, match=r"a sharded store is 2 databases: take one of its parts \(eu-1, eu-2\)"):
        store.settings()
    with pytest.raises(DeclarationError, match="there is no such shard; there are shard-1, shard-2"):
        Store.shards(files(tmp_path), Base, direct={"us": "postgresql://db/app"})


def test_a_database_that_is_given_as_two_shards_is_refused(tmp_path: Path) -> None:
    url = files(tmp_path)[0]
    app = packing(Store.shards([url, url], Base))
    app.init(tables=True, accept=True)
    with pytest.raises(StoreRefusedError, match="are one database"):
        app.start()


# ---- crashes -------------------------------------------------------------------------------------------------------------------
ORDERS = 150


def work(name: str, urls: list[str], ledger: str) -> None:
    """A worker process, until it is killed."""
    app = charging(Store.shards(urls, Base), Path(ledger), name)
    app.start()
    signal.pause()


def charged(ledger: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in ledger.read_text().splitlines()) if ledger.exists() else Counter()


def test_nothing_is_lost_or_doubled_when_a_worker_and_one_shards_server_are_killed(tmp_path: Path, postgres_url: str) -> None:
    ledger, name = tmp_path / "ledger", f"shards-{uuid.uuid4().hex[:8]}"
    with PostgresServer() as server, contextlib.ExitStack() as stack:
        urls = [*files(tmp_path, 1), postgres_url, server.url("postgres")]
        charging(Store.shards(urls, Base), ledger, name).init(tables=True, accept=True)
        orders = {url: [uuid.uuid4() for _ in range(ORDERS)] for url in urls}
        for url, numbers in orders.items():
            write(url, *[Order(id=one) for one in numbers])

        def started() -> Any:
            process = multiprocessing.get_context("spawn").Process(target=work, args=(name, urls, str(ledger)))
            process.start()
            stack.callback(process.kill)
            return process

        def paid(url: str) -> int:
            return count(url, "SELECT count(*) FROM orders WHERE status = 'paid'")

        first = started()
        until(lambda: len(charged(ledger)) > 30)
        first.kill()  # in the middle, on all shards at once
        first.join()
        second = started()
        until(lambda: paid(urls[2]) > 0)
        server.kill()
        until(lambda: [paid(url) for url in urls[:2]] == [ORDERS, ORDERS])
        server.start()
        until(lambda: paid(urls[2]) == ORDERS)
        second.kill()
        second.join()
        assert charged(ledger) == Counter(str(one) for numbers in orders.values() for one in numbers)
        assert [count(url, "SELECT count(*) FROM groundstate_attempt") for url in urls] == [0, 0, 0]
