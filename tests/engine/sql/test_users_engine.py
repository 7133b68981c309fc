"""A store that is made of the user's engine works as that engine does: by its listeners, its creator, its JSON and its schema."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from ipaddress import IPv4Address
from typing import Any

import psycopg
import pytest
from psycopg.adapt import AdaptersMap, Loader
from sqlalchemy import JSON, CheckConstraint, Engine, create_engine, event, make_url, select, text
from sqlalchemy.dialects.postgresql import INET
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import App, NotInitialisedError, Store, StoreRefusedError
from groundstate.engine.operate.check import check_database
from groundstate.store.connect import open_store, resolve_settings
from groundstate.store.engine_settings import dialect_arguments
from tests.patience import HANG, until


class OwnBase(DeclarativeBase):
    pass


class Parcel(OwnBase):
    __tablename__ = "parcels"
    __table_args__ = (CheckConstraint("note <> 'refused by the table'"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="packed")
    data: Mapped[Any] = mapped_column(JSON, default=None, nullable=True)
    note: Mapped[str | None]


def shipped(engine: Any, handler: Callable[[Parcel, Session], None], *, writer: Engine | None = None, **columns: Any) -> App:
    """An app whose handler ships a parcel, and one parcel that is packed. writer: writes it, where the engine is an async one."""
    app = App("parcels", Store(engine, OwnBase))

    @app.on(Parcel, Parcel.status == "packed", name="shipped")
    def ship(parcel: Parcel, session: Session) -> None:
        parcel.status = "shipped"
        handler(parcel, session)

    app.init(tables=True)
    with Session(writer or engine) as session, session.begin():
        session.add(Parcel(id=1, **columns))
    return app


def carried_out(engine: Engine, handler: Callable[[Parcel, Session], None], **columns: Any) -> Parcel:
    app = shipped(engine, handler, **columns)
    app.run_until_idle(HANG)
    with Session(engine) as session:
        return session.get_one(Parcel, 1)


def leaves_it(_parcel: Parcel, _session: Session) -> None:
    """All that is to happen has happened."""


def asks(question: str) -> tuple[list[Any], Callable[[Parcel, Session], None]]:
    """Answers that a handler gets to this SQL."""
    answers: list[Any] = []
    return answers, lambda _parcel, session: answers.append(session.scalar(text(question)))


# ---- what the dialect has ----------------------------------------------------------------------------------------------------------
def test_json_is_read_and_written_by_the_functions_of_the_engine(database_url: str) -> None:
    engine = create_engine(
        database_url,
        json_serializer=partial(json.dumps, default=float),
        json_deserializer=partial(json.loads, parse_float=Decimal),
    )

    def add(parcel: Parcel, _session: Session) -> None:
        parcel.data = {"price": parcel.data["price"] + Decimal("0.25")}

    parcel = carried_out(engine, add, data={"price": Decimal("1.5")})
    assert parcel.data == {"price": Decimal("1.75")}


def test_json_of_an_async_engine_as_well(database_url: str) -> None:
    driver = "sqlite+aiosqlite" if database_url.startswith("sqlite") else "postgresql+asyncpg"
    engine = create_async_engine(make_url(database_url).set(drivername=driver), json_deserializer=partial(json.loads, parse_float=Decimal))
    found: list[Any] = []
    app = App("parcels", Store(engine, OwnBase))

    @app.on(Parcel, Parcel.status == "packed")
    def ship(parcel: Parcel) -> None:
        parcel.status = "shipped"
        found.append(parcel.data)

    app.init(tables=True)
    with Session(create_engine(database_url)) as session, session.begin():
        session.add(Parcel(id=1, data=[1.5]))
    app.run_until_idle(HANG)
    assert found == [[Decimal("1.5")]]
    assert isinstance(found[0][0], Decimal)


@pytest.mark.parametrize(("driver", "given", "read"), [
    ("asyncpg", {}, IPv4Address), ("asyncpg", {"native_inet_types": False}, str), ("psycopg", {"native_inet_types": False}, str),
    ("psycopg_async", {"native_inet_types": False}, str),
])  # fmt: skip
def test_addresses_are_read_as_by_the_engine(postgres_url: str, driver: str, given: dict[str, Any], read: type) -> None:
    make: Any = create_async_engine if driver in {"asyncpg", "psycopg_async"} else create_engine
    engine = make(make_url(postgres_url).set(drivername=f"postgresql+{driver}"), **given)

    class Base(DeclarativeBase):
        pass

    class Host(Base):
        __tablename__ = "hosts"
        id: Mapped[int] = mapped_column(primary_key=True)
        address: Mapped[Any] = mapped_column(INET)
        seen: Mapped[bool] = mapped_column(default=False)

    app, found = App("hosts", Store(engine, Base)), list[Any]()

    @app.on(Host, Host.seen.is_(False))
    def see(host: Host) -> None:
        found.append(host.address)
        host.seen = True

    app.init(tables=True)
    with create_engine(postgres_url).begin() as connection:
        connection.exec_driver_sql("insert into hosts values (1, '10.0.0.1', false)")
    app.run_until_idle(HANG)
    assert [type(address) for address in found] == [read]


def test_addresses_are_text_where_the_engine_reads_them_by_psycopg2() -> None:
    make: Any = PGDialect_psycopg2
    assert dialect_arguments(make(), "postgresql") == {"native_inet_types": False}


class LoadsText(Loader):
    def load(self, data: Any) -> str:
        return f"loaded {bytes(data).decode()}"


def test_how_psycopg_is_told_to_load_values_holds_for_an_async_engine_too(postgres_url: str) -> None:
    adapters = AdaptersMap(psycopg.adapters)
    adapters.register_loader("date", LoadsText)
    url = make_url(postgres_url).set(drivername="postgresql+psycopg_async")
    answers, ask = list[Any](), lambda _parcel, session: answers.append(session.scalar(text("select date '2026-11-30'")))
    engine = create_async_engine(url, connect_args={"context": adapters})
    shipped(engine, ask, writer=create_engine(postgres_url)).run_until_idle(HANG)
    assert answers == ["loaded 2026-11-30"]


def test_what_an_engine_hides_is_in_no_error_of_ours(database_url: str) -> None:
    engine = create_engine(database_url, hide_parameters=True)

    def refused(parcel: Parcel, _session: Session) -> None:
        parcel.note = "refused by the table"

    shipped(engine, refused).run_until_idle(HANG)
    with engine.connect() as connection:
        (error,) = connection.execute(text("select error from groundstate_attempt")).scalars()
    assert "hidden due to hide_parameters" in error
    assert "[parameters:" not in error


def test_an_isolation_of_the_engine_is_for_its_own_connections(database_url: str) -> None:
    for isolation in ("AUTOCOMMIT", "SERIALIZABLE"):
        engine = create_engine(database_url, isolation_level=isolation)
        assert carried_out(engine, leaves_it).status == "shipped"
        with Session(engine) as session, session.begin():
            session.delete(session.get_one(Parcel, 1))
        assert carried_out(create_engine(database_url).execution_options(isolation_level=isolation), leaves_it).status == "shipped"
        with Session(engine) as session, session.begin():
            session.delete(session.get_one(Parcel, 1))


# ---- schemas -----------------------------------------------------------------------------------------------------------------------
def test_the_rows_of_the_tenants_schema_are_carried_out_and_those_of_another_are_left(postgres_url: str) -> None:
    plain = create_engine(postgres_url)
    with plain.begin() as connection:
        connection.execute(text('create schema "The Tenant"'))
    shipped(plain, leaves_it)  # the public schema has tables of ours and a parcel of its own
    tenant = plain.execution_options(schema_translate_map={None: "The Tenant"})
    assert carried_out(tenant, leaves_it).status == "shipped"
    with plain.connect() as connection:
        assert connection.scalar(select(Parcel.status)) == "packed"
        of_ours = "select count(*) from pg_tables where tablename like 'groundstate%' group by schemaname order by schemaname"
        ours = connection.execute(text(of_ours)).scalars().all()
    assert len(ours) == 2
    assert ours[0] == ours[1]


def test_what_is_missing_in_the_tenants_schema_is_not_found_in_another(postgres_url: str) -> None:
    plain = create_engine(postgres_url)
    with plain.begin() as connection:
        connection.execute(text("create schema tenant"))
    shipped(plain, leaves_it)
    tenant = plain.execution_options(schema_translate_map={None: "tenant"})
    with pytest.raises(NotInitialisedError, match="groundstate init"):
        App("parcels", Store(tenant, OwnBase)).start()


@pytest.mark.parametrize("schemas", [{"per_tenant": "one"}, {"public": None}])
def test_a_translation_of_a_named_schema_is_refused(postgres_url: str, schemas: Any) -> None:
    with pytest.raises(StoreRefusedError, match="translate None"):
        resolve_settings(create_engine(postgres_url).execution_options(schema_translate_map=schemas))


def test_a_translation_to_an_attached_file_is_refused(sqlite_url: str) -> None:
    with pytest.raises(StoreRefusedError, match="own schema"):
        resolve_settings(create_engine(sqlite_url).execution_options(schema_translate_map={None: "attached"}))
    resolve_settings(create_engine(sqlite_url).execution_options(schema_translate_map={None: "main"}))


# ---- how connections are made ------------------------------------------------------------------------------------------------------
def test_what_a_listener_prepares_a_connection_with_holds_for_handlers(database_url: str) -> None:
    engine = create_engine(database_url)
    postgres = engine.dialect.name == "postgresql"
    prepares, question = (
        ("SET parcels.tenant = 'theirs'", "SHOW parcels.tenant") if postgres else ("PRAGMA foreign_keys=ON", "PRAGMA foreign_keys")
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.execute(prepares)  # and no commit: the listener is none of ours

    answers, ask = asks(question)
    carried_out(engine, ask)
    assert answers == ["theirs" if postgres else 1]


def test_a_listener_that_says_with_what_to_connect_is_asked_for_each_connection_of_ours(postgres_url: str) -> None:
    """As one that knows today's token does: for the lock of a life and for hints as well."""
    engine = create_engine(make_url(postgres_url).set(username="nobody who is there"))
    asked: list[str] = []

    @event.listens_for(engine, "do_connect")
    def say(_dialect: Any, _record: Any, _cargs: Any, cparams: dict[str, Any]) -> None:
        asked.append(cparams.get("application_name", "theirs"))
        cparams["user"] = make_url(postgres_url).username

    answers, ask = asks("select count(*) from pg_stat_activity where application_name = 'groundstate worker'")
    app = shipped(engine, ask)
    asked.clear()
    app.start()
    try:
        until(lambda: answers)
    finally:
        app.stop()
    assert answers == [1]
    assert len(asked) > 3  # of the pool, for the lock and its proof, and for hints


def test_an_engine_connects_for_its_owner_as_before(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    carried_out(engine, leaves_it)
    with engine.connect() as connection:
        assert connection.scalar(text("show application_name")) == ""
        driver: Any = connection.connection.driver_connection
        assert driver.autocommit is False


def test_a_creator_makes_our_connections(database_url: str) -> None:
    made: list[Any] = []
    url = make_url(database_url)

    def connect() -> Any:
        if url.get_backend_name() == "sqlite":
            made.append(sqlite3.connect(str(url.database), check_same_thread=False))
        else:
            made.append(psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)))
        return made[-1]

    engine = create_engine(url, creator=connect)
    app = shipped(engine, leaves_it)
    before = len(made)
    app.run_until_idle(HANG)
    assert len(made) > before
    with Session(engine) as session:
        assert session.get_one(Parcel, 1).status == "shipped"


def test_a_pool_that_is_used_up_keeps_nobody_of_ours_waiting(database_url: str) -> None:
    engine = create_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    app = shipped(engine, leaves_it)
    with engine.connect():
        app.run_until_idle(HANG)
    with Session(engine) as session:
        assert session.get_one(Parcel, 1).status == "shipped"


def test_a_listener_on_an_engine_whose_driver_we_do_not_use_is_refused_by_name(database_url: str) -> None:
    driver = "sqlite+aiosqlite" if database_url.startswith("sqlite") else "postgresql+asyncpg"
    engine = create_async_engine(make_url(database_url).set(drivername=driver))
    resolve_settings(engine)

    @event.listens_for(engine.sync_engine, "connect")
    def prepare_connections(_connection: Any, _record: Any) -> None:
        raise AssertionError

    with pytest.raises(StoreRefusedError, match=r"prepare_connections listens to 'connect'"):
        resolve_settings(engine)


def test_a_creator_and_a_way_past_the_pooler_do_not_go_together(postgres_url: str) -> None:
    engine = create_engine(postgres_url, creator=lambda: None)
    with pytest.raises(StoreRefusedError, match="no direct="):
        resolve_settings(engine, direct=postgres_url)


@pytest.mark.parametrize("url", ["postgresql+psycopg://", "postgresql+psycopg://host"])
def test_a_creator_beside_a_url_that_names_no_database_is_refused(url: str) -> None:
    with pytest.raises(StoreRefusedError, match="names no database"):
        resolve_settings(create_engine(url, creator=lambda: None))


def test_listeners_that_no_transaction_of_ours_calls_are_named_by_check(database_url: str) -> None:
    engine = create_engine(database_url)
    shipped(engine, leaves_it)
    assert _unheard(Store(engine, OwnBase)) == []
    event.listen(engine, "begin", prepares)
    event.listen(engine, "engine_connect", prepares)
    named = f"{prepares.__module__}.{prepares.__qualname__}"
    expected = [f"{named} ('engine_connect')"] + ([] if database_url.startswith("sqlite") else [f"{named} ('begin')"])
    told = _unheard(Store(engine, OwnBase))
    assert [words.split(" is not called")[0].removeprefix("the engine's listener ") for words in told] == expected


def prepares(_connection: Any) -> None:
    """Sets up something."""


def _unheard(store: Store) -> list[str]:
    database = open_store(store.settings())[0]
    try:
        return [one.words for one in check_database(database, [], []) if one.kind == "listener"]
    finally:
        database.close()
