"""A call, a lookup and `prepare` write nothing to the stores of their app, by no path, but for what their author says by `call_writes`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, delete, insert, make_url, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, object_session

from groundstate import (
    Absent,
    App,
    DeclarationError,
    ExternalService,
    IdempotencyKey,
    InDoubt,
    NotDone,
    Retry,
    StateRefusedError,
    Store,
    Unknown,
    call_writes,
)
from tests.databases import Databases
from tests.engine.kit import QUICK, Base, Order, World, ms, until
from tests.patience import HANG


class Own(DeclarativeBase):
    """Tables that no condition reads."""


class Note(Own):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    words: Mapped[str] = mapped_column(default="")


class Beside(DeclarativeBase):
    """What the app does not know."""


class Later(Beside):
    __tablename__ = "later"
    id: Mapped[int] = mapped_column(primary_key=True)


Way = Callable[[Engine], object]
AsyncWay = Callable[[AsyncEngine], Awaitable[object]]


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = noted(database_url)
    yield made
    made.close()


@pytest.fixture
def postgres_world(postgres_url: str) -> Iterator[World]:
    made = noted(postgres_url)
    yield made
    made.close()


@pytest.fixture
def sqlite_world(sqlite_url: str) -> Iterator[World]:
    made = noted(sqlite_url)
    yield made
    made.close()


def noted(url: str) -> World:
    """A world with one note, and one placed order that is to be charged."""
    made = World(url, Base, Own)
    made.add(Note(id=1, words="first"))
    return made


def notes(world: World) -> list[str]:
    with world.session() as session:
        return list(session.scalars(select(Note.words).order_by(Note.id)))


def async_url(world: World) -> URL:
    return world.engine.url.set(drivername="postgresql+asyncpg" if world.postgres else "sqlite+aiosqlite")


class Tried:
    """What became of something that was tried inside a call: what was raised, or what it returned."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.value: object = None

    def run(self, way: Callable[[], object]) -> None:
        try:
            self.value = way()
        except Exception as error:
            self.error = error
            raise

    async def await_(self, way: Callable[[], Awaitable[object]]) -> None:
        try:
            self.value = await way()
        except Exception as error:
            self.error = error
            raise

    @property
    def refusal(self) -> str:
        assert isinstance(self.error, StateRefusedError), repr(self.error)
        return str(self.error)


def in_a_call(world: World, way: Callable[[], object]) -> Tried:
    """Runs it inside a sync call of one order."""
    tried = Tried()

    @ExternalService("bank").call(in_doubt=InDoubt.hold(), retry=QUICK)
    def charge(order: Order) -> str:
        tried.run(way)
        return "r1"

    carried_out(world, charge)
    return tried


def in_an_async_call(world: World, way: Callable[[], Awaitable[object]]) -> Tried:
    """Awaits it inside an async call of one order."""
    tried = Tried()

    @ExternalService("bank").call(in_doubt=InDoubt.hold(), retry=QUICK)
    async def charge(order: Order) -> str:
        await tried.await_(way)
        return "r1"

    carried_out(world, charge)
    return tried


def carried_out(world: World, charge: Any, **options: Any) -> None:
    @world.app.on(Order, Order.status == "placed", call=charge, **options)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    world.there()
    world.orders(1)
    world.settled()


# ---- every way to write ------------------------------------------------------------------------------------------------------------
def adds_by_the_orm(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Note(id=2, words="second"))
        session.commit()


def edits_by_the_orm(engine: Engine) -> None:
    with Session(engine) as session:
        session.get_one(Note, 1).words = "edited"
        session.commit()


def deletes_by_the_orm(engine: Engine) -> None:
    with Session(engine) as session:
        session.delete(session.get_one(Note, 1))
        session.commit()


def edits_by_an_autoflush(engine: Engine) -> None:
    with Session(engine) as session:
        session.get_one(Note, 1).words = "edited"
        session.scalars(select(Note)).all()


def updates_by_a_session(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.execute(update(Note).values(words="edited"))


def inserts_many_by_a_session(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.execute(insert(Note), [{"id": number, "words": ""} for number in range(2, 20)])


def inserts_and_returns_by_a_session(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.scalars(insert(Note).returning(Note.id), [{"id": number, "words": ""} for number in range(2, 20)]).all()


def deletes_by_a_query(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.query(Note).filter(Note.id == 1).delete()


def inserts_by_a_bulk_method(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.bulk_insert_mappings(Note.__mapper__, [{"id": 2, "words": ""}])


def deletes_by_core(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(delete(Note))


def updates_by_text(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("update notes set words = :words"), {"words": "edited"})


def updates_each_by_itself(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("update notes set words = 'edited'"))


def updates_by_the_drivers_sql(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("/* select */ UPDATE notes SET words = 'edited'")


def inserts_from_a_cte(engine: Engine) -> None:
    some = select(Note.id + 1, Note.words).cte("some")
    with engine.begin() as connection:
        connection.execute(insert(Note).from_select(["id", "words"], select(some)))


def makes_a_table(engine: Engine) -> None:
    Beside.metadata.create_all(engine)


def drops_a_table(engine: Engine) -> None:
    Own.metadata.drop_all(engine)


def alters_a_table(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE notes ADD COLUMN more INTEGER"))


WAYS: list[Way] = [
    adds_by_the_orm, edits_by_the_orm, deletes_by_the_orm, edits_by_an_autoflush, updates_by_a_session, inserts_many_by_a_session,
    inserts_and_returns_by_a_session, deletes_by_a_query, inserts_by_a_bulk_method, deletes_by_core, updates_by_text,
    updates_each_by_itself, updates_by_the_drivers_sql, inserts_from_a_cte, makes_a_table, drops_a_table, alters_a_table,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_call_that_writes_is_refused_before_it_reaches_the_database(world: World, way: Way) -> None:
    tried = in_a_call(world, lambda: way(world.engine))
    assert "the call" in tried.refusal
    assert "call_writes" in tried.refusal, "the cure is not named"
    assert notes(world) == ["first"]
    way(world.engine)  # after its end the same is allowed: it was the guard that refused it, and nothing else


ON_POSTGRES = {
    "WITH new AS (INSERT INTO notes (id, words) VALUES (2, '') RETURNING id) SELECT id FROM new": "INSERT INTO notes",
    "WITH gone AS (DELETE FROM notes RETURNING id) SELECT id FROM gone": "DELETE FROM notes",
    "MERGE INTO notes USING (SELECT 1 AS id) AS one ON notes.id = one.id WHEN MATCHED THEN DELETE": "MERGE INTO notes",
    "COPY notes (id, words) FROM PROGRAM 'echo 2,second' (FORMAT csv)": "COPY notes",
    "TRUNCATE notes": "TRUNCATE notes",
    "SELECT id INTO copied FROM notes": "SELECT INTO copied",
    "DO $$ BEGIN UPDATE notes SET words = ''; END $$": "DO",
    "EXPLAIN ANALYZE UPDATE notes SET words = ''": "UPDATE notes",
    "SELECT 1; UPDATE notes SET words = ''": "UPDATE notes",
    "GRANT SELECT ON notes TO public": "GRANT",
    "CREATE INDEX notes_words ON notes (words)": "CREATE INDEX notes_words",
    "COMMENT ON TABLE notes IS 'words'": "COMMENT",
    "SELECT setval(pg_get_serial_sequence('notes', 'id'), 100)": "setval()",
}


@pytest.mark.parametrize("statement", ON_POSTGRES)
def test_a_statement_of_postgresql_that_writes_is_refused(postgres_world: World, statement: str) -> None:
    def way() -> None:
        with postgres_world.engine.begin() as connection:
            connection.exec_driver_sql(statement)

    tried = in_a_call(postgres_world, way)
    assert f"sends {ON_POSTGRES[statement]} to a store" in tried.refusal
    way()


@pytest.mark.parametrize("statement", ["REPLACE INTO notes (id, words) VALUES (1, '')", "PRAGMA user_version = 7", "VACUUM"])
def test_a_statement_of_sqlite_that_writes_is_refused(sqlite_world: World, statement: str) -> None:
    def way() -> None:
        with sqlite_world.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(statement)

    assert f"sends {' '.join(statement.split()[:2])}" in in_a_call(sqlite_world, way).refusal
    way()


# ---- every path --------------------------------------------------------------------------------------------------------------------
async def adds_by_an_async_session(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        session.add(Note(id=2, words="second"))


async def updates_by_an_async_session(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(update(Note).values(words="edited"))


async def updates_by_an_async_connection(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE notes SET words = 'edited'"))


async def updates_in_run_sync(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: sync.exec_driver_sql("UPDATE notes SET words = 'edited'"))


async def updates_in_a_task(engine: AsyncEngine) -> None:
    await asyncio.create_task(updates_by_an_async_connection(engine))


ASYNC_WAYS: list[AsyncWay] = [
    adds_by_an_async_session, updates_by_an_async_session, updates_by_an_async_connection, updates_in_run_sync, updates_in_a_task,
]  # fmt: skip


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite", "postgresql+asyncpg", "postgresql+psycopg"])
@pytest.mark.parametrize("way", ASYNC_WAYS, ids=lambda way: way.__name__)
def test_an_async_call_that_writes_by_an_async_driver_is_refused(request: pytest.FixtureRequest, way: AsyncWay, driver: str) -> None:
    world: World = request.getfixturevalue("sqlite_world" if driver.startswith("sqlite") else "postgres_world")

    async def tries() -> None:
        engine = create_async_engine(make_url(world.engine.url).set(drivername=driver))
        try:
            await way(engine)
        finally:
            await engine.dispose()

    assert "the call" in in_an_async_call(world, tries).refusal
    assert notes(world) == ["first"]
    asyncio.run(tries())
    assert notes(world) != ["first"]


async def by_to_thread(write: Callable[[], object]) -> None:
    await asyncio.to_thread(write)


async def by_the_loops_own_threads(write: Callable[[], object]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, write)


async def by_threads_of_its_own(write: Callable[[], object]) -> None:
    with ThreadPoolExecutor() as pool:
        await asyncio.get_running_loop().run_in_executor(pool, write)


PATHS = [by_to_thread, by_the_loops_own_threads, by_threads_of_its_own]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_a_thread_that_an_async_call_uses_may_not_write_either(world: World, path: Callable[..., Awaitable[None]]) -> None:
    tried = in_an_async_call(world, lambda: path(lambda: updates_by_text(world.engine)))
    assert "sends UPDATE notes" in tried.refusal
    assert notes(world) == ["first"]


def test_a_call_that_makes_many_and_writes_is_refused(world: World) -> None:
    tried = Tried()

    @ExternalService("bank").call_many(in_doubt=InDoubt.hold(), retry=QUICK, size=10)
    def charge(orders: Sequence[Order]) -> Sequence[str | NotDone]:
        tried.run(lambda: updates_by_a_session(world.engine))
        return ["r1"] * len(orders)

    carried_out(world, charge)
    assert "sends UPDATE notes" in tried.refusal
    assert notes(world) == ["first"]


def test_an_async_call_that_makes_many_and_writes_is_refused(world: World) -> None:
    tried = Tried()

    @ExternalService("bank").call_many(in_doubt=InDoubt.hold(), retry=QUICK, size=10)
    async def charge(orders: Sequence[Order]) -> Sequence[str | NotDone]:
        tried.run(lambda: updates_by_a_session(world.engine))
        return ["r1"] * len(orders)

    carried_out(world, charge)
    assert "sends UPDATE notes" in tried.refusal
    assert notes(world) == ["first"]


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
def test_a_find_that_writes_is_refused_and_says_unknown(world: World, sync: bool) -> None:
    tried = Tried()

    @ExternalService("bank").call(in_doubt=InDoubt.lookup(settle_after=ms(50)), timeout=ms(5000), retry=Retry(first=ms(5), longest=ms(20)))
    def charge(order: Order, key: IdempotencyKey) -> str:
        raise RuntimeError("the line went dead")

    if sync:

        @charge.lookup
        def _(order: Order, key: IdempotencyKey) -> str | Absent | Unknown:
            tried.run(lambda: updates_by_a_session(world.engine))
            return "r1"

    else:

        @charge.lookup
        async def _(order: Order, key: IdempotencyKey) -> str | Absent | Unknown:
            tried.run(lambda: updates_by_a_session(world.engine))
            return "r1"

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    world.there()
    world.orders(1)
    world.worker()
    until(lambda: tried.error is not None)
    assert "the lookup" in tried.refusal
    assert notes(world) == ["first"]
    assert world.states() == ["doubt"]


# ---- which databases ---------------------------------------------------------------------------------------------------------------
@pytest.fixture
def other_url(world: World, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a second database on the same store."""
    if not world.postgres:
        yield f"sqlite:///{tmp_path / 'other.db'}"
        return
    databases: Databases = request.getfixturevalue("databases")
    url = databases.take()
    yield url
    databases.give_back(url)


def test_another_database_is_an_outside_and_may_be_written_to(world: World, other_url: str) -> None:
    other = create_engine(make_url(other_url).set(drivername=world.engine.url.drivername))
    Own.metadata.create_all(other)
    tried = in_a_call(world, lambda: adds_by_the_orm(other))
    assert tried.error is None
    with Session(other) as session:
        assert session.scalars(select(Note.id)).all() == [2]
    assert world.order().receipt == "r1"
    other.dispose()


def test_another_store_of_the_app_is_no_outside(world: World, other_url: str) -> None:
    class Elsewhere(DeclarativeBase):
        pass

    class Entry(Elsewhere):
        __tablename__ = "entries"
        id: Mapped[int] = mapped_column(primary_key=True)

    app = App("two-stores", *world.app.stores, Store(other_url, Elsewhere))
    other = create_engine(make_url(other_url).set(drivername=world.engine.url.drivername))
    tried = Tried()

    def way() -> None:
        with other.begin() as connection:
            connection.execute(insert(Entry))

    @ExternalService("bank").call(in_doubt=InDoubt.hold(), retry=QUICK)
    def charge(order: Order) -> str:
        tried.run(way)
        return "r1"

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    app.init(tables=True, accept=True)
    world.orders(1)
    app.run_until_idle()
    assert "sends INSERT INTO entries" in tried.refusal
    way()
    other.dispose()


def test_the_store_is_known_by_what_it_says_of_itself(world: World, tmp_path: Path) -> None:
    """An engine that connects by a function of its author's, whose URL says nothing."""
    driver = world.engine.dialect.import_dbapi()
    if world.postgres:
        arguments = world.engine.dialect.create_connect_args(world.engine.url)[1]
        engine = create_engine("postgresql+psycopg://", creator=lambda: driver.connect(**arguments))
    else:
        engine = create_engine("sqlite://", creator=lambda: driver.connect(world.engine.url.database))
    tried = in_a_call(world, lambda: updates_by_text(engine))
    assert "sends UPDATE notes" in tried.refusal
    updates_by_text(engine)
    assert notes(world) == ["edited"]
    engine.dispose()


def test_a_pooler_at_another_address_is_seen_through_and_the_transaction_goes_on(postgres_world: World) -> None:
    """Here the server's other address stands for it. What is asked of it must not end the user's own transaction."""
    world = postgres_world
    with world.engine.connect() as connection:
        port = connection.exec_driver_sql("SHOW port").scalar_one()
        folder = connection.exec_driver_sql("SHOW unix_socket_directories").scalar_one().partition(",")[0]
    assert world.engine.url.host == "127.0.0.1"
    by_socket = world.engine.url.set(host=None, port=None, query={"host": folder, "port": str(port)})
    engine = create_engine(by_socket if folder else world.engine.url.set(host="localhost"))
    seen: list[object] = []

    def way() -> None:
        with engine.begin() as connection:
            connection.execute(text("SELECT 1"))
            with pytest.raises(StateRefusedError):
                connection.execute(text("UPDATE notes SET words = 'edited'"))
            seen.append(connection.execute(text("SELECT words FROM notes")).scalar_one())

    assert in_a_call(world, way).error is None
    assert seen == ["first"]
    engine.dispose()


def test_an_attached_file_of_the_app_is_not_written_to(sqlite_world: World, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'mine.db'}")

    def way() -> None:
        with engine.begin() as connection:
            connection.execute(text("ATTACH :path AS shop"), {"path": sqlite_world.engine.url.database})
            connection.execute(text("UPDATE shop.notes SET words = 'edited'"))

    assert "sends UPDATE shop.notes" in in_a_call(sqlite_world, way).refusal
    assert notes(sqlite_world) == ["first"]
    engine.dispose()


def test_a_link_to_the_file_is_the_file(sqlite_world: World, tmp_path: Path) -> None:
    (tmp_path / "link.db").hardlink_to(sqlite_world.engine.url.database or "")
    engine = create_engine(f"sqlite:///{tmp_path / 'link.db'}")
    assert "writes notes" in in_a_call(sqlite_world, lambda: adds_by_the_orm(engine)).refusal
    engine.dispose()


# ---- what is allowed ---------------------------------------------------------------------------------------------------------------
def test_a_call_may_read(world: World) -> None:
    def reads() -> object:
        with Session(world.engine) as session, session.begin():
            note = session.scalars(select(Note).with_for_update()).one()
            session.execute(text("SELECT 'insert into notes', words FROM notes -- ; delete from notes")).all()
            some = select(Note).cte()
            session.execute(select(some)).all()
            with session.begin_nested():
                session.get_one(Note, 1)
            note.words = "first"  # what it was: nothing is to be written
            return note.words

    tried = in_a_call(world, reads)
    assert (tried.error, tried.value) == (None, "first")
    assert world.order().receipt == "r1"


def test_a_call_may_wait_for_another_record_of_the_app(world: World) -> None:
    async def waits() -> bool:
        return await world.app.wait_for(Order, 1, Order.status == "placed", timeout=HANG)

    tried = in_an_async_call(world, waits)
    assert (tried.error, tried.value) == (None, True)
    world.app.stop()


def test_a_refused_flush_leaves_the_session_as_it_can_go_on(world: World) -> None:
    def goes_on() -> object:
        with Session(world.engine) as session:
            note = Note(id=2, words="second")
            session.add(note)
            with pytest.raises(StateRefusedError):
                session.flush()
            session.expunge(note)
            return session.scalars(select(Note.words)).all()

    assert in_a_call(world, goes_on).value == ["first"]


def test_call_writes_lets_a_call_write_to_any_table_until_its_block_ends(world: World) -> None:
    def way() -> None:
        with call_writes("progress: the same words twice do no harm"):
            updates_by_a_session(world.engine)
            with call_writes("nested"):
                adds_by_the_orm(world.engine)
            with Session(world.engine) as session, session.begin():  # still, and of a table that conditions read
                session.get_one(Order, 1).note = "half done"
        with pytest.raises(StateRefusedError):
            deletes_by_core(world.engine)

    assert in_a_call(world, way).error is None
    assert notes(world) == ["edited", "second"]
    assert (world.order().note, world.order().receipt) == ("half done", "r1")


def test_call_writes_goes_on_in_a_session_that_has_read(world: World) -> None:
    def way() -> None:
        with Session(world.engine) as session:
            note = session.get_one(Note, 1)
            with call_writes("a token: the last one counts"):
                note.words = "refreshed"
                session.commit()

    assert in_a_call(world, way).error is None
    assert notes(world) == ["refreshed"]


def test_call_writes_in_an_async_call_is_for_its_own_task_and_its_threads(world: World) -> None:
    engine = create_async_engine(async_url(world))
    other_may: list[bool] = []

    async def other(opened: asyncio.Event) -> None:
        await opened.wait()
        with pytest.raises(StateRefusedError):
            await updates_by_an_async_connection(engine)
        other_may.append(False)

    async def way() -> None:
        opened = asyncio.Event()
        task = asyncio.create_task(other(opened))
        with call_writes("progress"):
            opened.set()
            await task
            await adds_by_an_async_session(engine)
            await asyncio.to_thread(updates_by_text, world.engine)
        await engine.dispose()

    assert in_an_async_call(world, way).error is None
    assert other_may == [False]
    assert notes(world) == ["edited", "edited"]


def test_call_writes_lets_a_find_write(world: World) -> None:
    @ExternalService("bank").call(in_doubt=InDoubt.lookup(settle_after=ms(50)), timeout=ms(5000), retry=QUICK)
    def charge(order: Order, key: IdempotencyKey) -> str:
        raise RuntimeError("the line went dead")

    @charge.lookup
    def _(order: Order, key: IdempotencyKey) -> str | Absent | Unknown:
        with call_writes("a token is refreshed: the last one counts"):
            updates_by_a_session(world.engine)
        return "r1"

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    world.there()
    world.orders(1)
    world.worker()
    until(lambda: world.order().status == "paid")
    assert notes(world) == ["edited"]


@pytest.mark.parametrize("why", ["", "  ", None])
def test_call_writes_must_say_why(why: Any) -> None:
    with pytest.raises(DeclarationError, match="say why"):
        call_writes(why)


def test_call_writes_does_nothing_outside_of_a_call(world: World) -> None:
    with call_writes("a web request that shares this function"):
        updates_by_a_session(world.engine)
    assert notes(world) == ["edited"]
    with call_writes("whoever waits is not the call"):
        tried = in_a_call(world, lambda: deletes_by_core(world.engine))
    assert "sends DELETE FROM notes" in tried.refusal


def test_what_a_call_left_behind_may_write_when_it_has_ended(world: World) -> None:
    go, written = threading.Event(), threading.Event()

    async def later() -> None:
        await asyncio.to_thread(go.wait)
        await asyncio.to_thread(updates_by_text, world.engine)
        written.set()

    left: list[asyncio.Task[None]] = []

    @ExternalService("bank").call(in_doubt=InDoubt.hold(), retry=QUICK)
    async def charge(order: Order) -> str:
        left.append(asyncio.create_task(later()))
        return "r1"

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    world.there()
    world.orders(1)
    world.worker().quiet()
    go.set()
    until(written.is_set)
    assert notes(world) == ["edited"]


# ---- sends -------------------------------------------------------------------------------------------------------------------------
def changes_the_record(order: Order, session: Session) -> str:
    order.note = "by sends"
    return "words"


def changes_the_record_without_a_session(order: Order) -> str:
    order.note = "by sends"
    return "words"


def changes_another(order: Order, session: Session) -> str:
    session.get_one(Note, 1).words = "by sends"
    return "words"


def adds_another(order: Order, session: Session) -> str:
    session.add(Note(id=2, words="by sends"))
    return "words"


def adds_by_the_records_session(order: Order) -> str:
    session = object_session(order)
    assert session is not None
    session.add(Note(id=2, words="by sends"))
    return "words"


def deletes_another(order: Order, session: Session) -> str:
    session.delete(session.get_one(Note, 1))
    return "words"


def flushes(order: Order, session: Session) -> str:
    order.note = "by sends"
    session.flush()
    return "words"


def flushes_without_a_session(order: Order) -> str:
    order.note = "by sends"
    session = object_session(order)
    assert session is not None
    session.flush()
    return "words"


def updates_by_a_statement(order: Order, session: Session) -> str:
    session.execute(update(Note).values(words="by sends"))
    return "words"


def updates_by_the_drivers_words(order: Order, session: Session) -> str:
    session.connection().exec_driver_sql("UPDATE notes SET words = 'by sends'")
    return "words"


def updates_as_its_author_said(order: Order, session: Session) -> str:
    with call_writes("this is no call"):
        session.execute(update(Note).values(words="by sends"))
    return "words"


WRITING_SENDS: list[Any] = [
    changes_the_record, changes_the_record_without_a_session, changes_another, adds_another, adds_by_the_records_session, deletes_another,
    flushes, flushes_without_a_session, updates_by_a_statement, updates_by_the_drivers_words, updates_as_its_author_said,
]  # fmt: skip


@pytest.mark.parametrize("sends", WRITING_SENDS, ids=lambda sends: sends.__name__)
def test_sends_that_writes_is_refused_and_nothing_of_it_is_kept(world: World, sends: Any) -> None:
    sent: list[int] = []

    def for_one_order(order: Order, session: Session) -> str:
        if order.id == 1:
            return str(sends(order, session) if sends.__code__.co_argcount == 2 else sends(order))
        return order.status

    def for_one_order_without_a_session(order: Order) -> str:
        return str(sends(order)) if order.id == 1 else order.status

    @ExternalService("bank").call(in_doubt=InDoubt.hold(), retry=Retry(first=ms(3_600_000)))
    def charge(words: str) -> str:
        sent.append(1)
        return "r1"

    prepare: Any = for_one_order if sends.__code__.co_argcount == 2 else for_one_order_without_a_session

    @world.app.on(Order, Order.status == "placed", call=charge, prepare=prepare)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    world.there()
    world.orders(3)
    world.settled()
    assert notes(world) == ["first"]
    assert (world.order(1).status, world.order(1).note) == ("placed", None)
    assert sent == [1, 1], "the others of its batch go on"
    attempt = world.attempt()
    assert (attempt.record, attempt.state, attempt.unsure) == ("1", "failed", False)
    assert "it may read any row and write none" in (attempt.error or "")
