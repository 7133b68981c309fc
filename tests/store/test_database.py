"""What every driver promises as a `Database`, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import psycopg
import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, event, inspect, select
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError, OperationalError
from tools.servers.postgres import PostgresServer

from groundstate.store import tables
from groundstate.store.connect import open_store, resolve_settings
from groundstate.store.port import Database
from groundstate.store.tables import UtcDateTime
from groundstate.values.errors import StoppedError, StoreRefusedError
from tests.patience import until
from tests.store.children import forked

metadata = MetaData()
thing = Table("thing", metadata, Column("id", Integer, primary_key=True), Column("at", UtcDateTime))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = open_store(resolve_settings(database_url))[0]
    opened.connect()
    with opened.writing() as connection:
        metadata.create_all(connection)
    yield opened
    opened.close()
    assert opened.engine.pool.status().count("Connections in pool: 0") == 1


def count(database: Database) -> int:
    with database.reading() as connection:
        return len(connection.execute(select(thing)).all())


def test_what_is_written_is_there_afterwards(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(thing.insert().values(id=1))
    assert count(database) == 1


def test_an_exception_takes_everything_back(database: Database) -> None:
    def fails() -> None:
        with database.writing() as connection:
            connection.execute(thing.insert().values(id=1))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert count(database) == 0


deferring = Table(
    "deferring",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("thing", Integer, ForeignKey("thing.id", deferrable=True, initially="DEFERRED")),
)


def keeps_foreign_keys(database: Database) -> None:
    """On SQLite from now on, as PostgreSQL does."""
    if database.name == "sqlite":
        with database.engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.execute("PRAGMA foreign_keys=ON")


def raises(*_: object) -> NoReturn:
    raise RuntimeError("enough")


def refuse_commit(database: Database) -> None:
    keeps_foreign_keys(database)
    with database.writing() as connection:
        connection.execute(thing.insert().values(id=1))
        connection.execute(deferring.insert().values(id=1, thing=404))


def fail_before_commit(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(thing.insert().values(id=1))
        event.listen(database.engine, "commit", raises)


def fail_in_rollback(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(thing.insert().values(id=1))
        event.listen(database.engine, "rollback", raises)
        raise KeyError("what went wrong")


def fail_as_a_reader_ends(database: Database) -> None:
    event.listen(database.engine, "rollback" if database.name == "sqlite" else "commit", raises)
    with database.reading() as connection:
        connection.execute(select(thing)).all()


ENDS: dict[str, tuple[Any, Any]] = {
    "its commit is refused": (refuse_commit, IntegrityError),
    "a listener raises before its commit": (fail_before_commit, RuntimeError),
    "its rollback fails": (fail_in_rollback, KeyError),
    "a reader does not end": (fail_as_a_reader_ends, RuntimeError),
}


@pytest.mark.parametrize("how", ENDS)
def test_after_a_transaction_that_ends_badly_nothing_of_it_is_there_and_the_next_ones_begin(database: Database, how: str) -> None:
    ends_badly, error = ENDS[how]
    try:
        with pytest.raises(error):
            ends_badly(database)
    finally:
        for name in ("rollback", "commit"):
            if event.contains(database.engine, name, raises):
                event.remove(database.engine, name, raises)
    assert count(database) == 0
    for number in (1, 2, 3):
        with database.writing() as connection:
            connection.execute(thing.insert().values(id=number))
    assert count(database) == 3


def test_a_block_that_ends_its_own_transaction_is_told_so(database: Database) -> None:
    def ends_it() -> None:
        with database.writing() as connection:
            connection.execute(thing.insert().values(id=1))
            connection.rollback()

    with pytest.raises(InvalidRequestError):
        ends_it()
    assert count(database) == 0


def test_a_savepoint_is_taken_back_alone(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(thing.insert().values(id=1))
        savepoint = connection.begin_nested()
        connection.execute(thing.insert().values(id=2))
        savepoint.rollback()
    assert count(database) == 1


def test_a_reader_that_writes_is_refused_and_the_next_writer_is_not(database: Database) -> None:
    for _ in range(3):
        with pytest.raises(DBAPIError, match=r"read-?only"), database.reading() as connection:
            connection.execute(thing.insert().values(id=1))
    with database.writing() as connection:
        connection.execute(thing.insert().values(id=1))
    assert count(database) == 1


def test_many_transactions_begin_alike(database: Database) -> None:
    # More than psycopg needs to make a prepared statement of what it sees again and again.
    for number in range(12):
        with database.writing() as connection:
            connection.execute(thing.insert().values(id=number))
        assert count(database) == number + 1


def test_the_clock_advances_and_compares_with_columns(database: Database) -> None:
    before = datetime.now(UTC)
    with database.writing() as connection:
        first = connection.execute(select(database.now())).scalar_one()
        after = datetime.now(UTC)
        second = timedelta(seconds=1)
        connection.execute(thing.insert(), [{"id": 1, "at": first - second}, {"id": 2, "at": first + timedelta(days=1)}])
        connection.execute(thing.insert().values(id=3, at=database.now()))
    assert first.tzinfo is UTC
    assert before - second < first < after + second

    def later() -> bool:
        with database.reading() as connection:
            return connection.execute(select(database.now())).scalar_one() > first

    until(later)
    with database.reading() as connection:
        past = select(thing.c.id).where(thing.c.at <= database.now()).order_by(thing.c.id)
        assert connection.execute(past).scalars().all() == [1, 3]
        assert connection.execute(select(thing.c.at).where(thing.c.id == 3)).scalar_one() >= first


def test_connecting_twice_and_after_a_close_is_fine(database: Database) -> None:
    database.connect()
    database.close()
    database.connect()
    assert count(database) == 0


def test_our_tables_can_be_created(database: Database) -> None:
    with database.writing() as connection:
        tables.metadata.create_all(connection)
        assert {"groundstate_attempt", "groundstate_reaction", "groundstate_worker", "groundstate_rate"} <= set(
            inspect(connection).get_table_names()
        )


def test_a_forked_child_is_refused_and_the_parent_goes_on(database: Database) -> None:
    def child() -> str:
        try:
            count(database)
        except StoppedError as refusal:
            database.close()
            return str(refusal)
        return "not refused"

    with database.writing() as connection:
        connection.execute(thing.insert().values(id=1))
        with forked(child) as said:
            assert "after the fork" in said
            connection.execute(thing.insert().values(id=2))
    assert count(database) == 2


# PostgreSQL alone


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Database]:
    opened = open_store(resolve_settings(postgres_url))[0]
    opened.connect()
    with opened.writing() as connection:
        metadata.create_all(connection)
        connection.execute(thing.insert(), [{"id": 1}, {"id": 2}])
    yield opened
    opened.close()


def test_rows_that_others_lock_are_skipped(postgres: Database) -> None:
    ids = select(thing.c.id).order_by(thing.c.id)
    with postgres.writing() as one, postgres.writing() as other:
        assert one.execute(postgres.with_row_locks(ids.where(thing.c.id == 1), thing)).scalars().all() == [1]
        assert other.execute(postgres.with_row_locks(ids, thing)).scalars().all() == [2]
        # The lock leaves others free to refer to the row.
        assert other.exec_driver_sql("SELECT id FROM thing WHERE id = 1 FOR KEY SHARE NOWAIT").scalars().all() == [1]


def test_a_lock_that_does_not_come_is_given_up(postgres: Database) -> None:
    with postgres.writing() as one:
        one.execute(thing.update().where(thing.c.id == 1).values(at=None))
        with pytest.raises(OperationalError, match="lock timeout"), postgres.writing(wait=timedelta(milliseconds=20)) as other:
            other.execute(thing.update().where(thing.c.id == 1).values(at=None))


def test_a_transaction_says_what_it_needs_whatever_the_servers_defaults(postgres: Database) -> None:
    with postgres.engine.connect() as connection:
        name = connection.exec_driver_sql("SELECT current_database()").scalar_one()
        for default in ("timezone = 'Asia/Kathmandu'", "synchronous_commit = off", "default_transaction_isolation = serializable"):
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET {default}")
        connection.commit()
    postgres.close()
    postgres.connect()
    wanted = {
        "timezone": "UTC",
        "synchronous_commit": "on",
        "transaction_isolation": "read committed",
        "lock_timeout": "5s",
        "statement_timeout": "30s",
        "application_name": "groundstate",
    }
    with postgres.writing() as connection:
        found = {name: connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in wanted}
    assert found == wanted


def test_connections_that_died_in_the_pool_are_not_noticed(postgres: Database, postgres_url: str) -> None:
    with postgres.writing() as one, postgres.writing() as other:
        pids = [each.exec_driver_sql("SELECT pg_backend_pid()").scalar_one() for each in (one, other)]
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as killer:
        for pid in pids:
            assert killer.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,)).fetchone() == (True,)
    with postgres.writing() as connection:
        connection.execute(thing.insert().values(id=3))
    assert count(postgres) == 3


def test_the_identity_changes_when_tables_are_made_anew(postgres: Database) -> None:
    assert postgres.identity() is None
    with postgres.writing() as connection:
        tables.metadata.create_all(connection)
    first = postgres.identity()
    assert first is not None
    assert first == postgres.identity()
    assert json.loads(first)["timeline"] == "00000001"
    with postgres.writing() as connection:
        tables.metadata.drop_all(connection)
        tables.metadata.create_all(connection)
    second = json.loads(postgres.identity() or "")
    assert {name for name in second if second[name] != json.loads(first)[name]} == {"tables"}


def test_somebody_always_may_have_written(postgres: Database) -> None:
    assert postgres.has_someone_written()
    assert postgres.has_someone_written()


def test_tables_that_a_crash_would_empty_are_refused(postgres: Database) -> None:
    with postgres.writing() as connection:
        tables.metadata.create_all(connection)
        connection.exec_driver_sql("ALTER TABLE groundstate_attempt SET UNLOGGED")
    postgres.close()
    with pytest.raises(StoreRefusedError, match="ALTER TABLE groundstate_attempt SET LOGGED"):
        postgres.connect()


def test_a_server_without_fsync_is_refused() -> None:
    with PostgresServer(fsync=False) as server:
        opened = open_store(resolve_settings(server.url()))[0]
        with pytest.raises(StoreRefusedError, match="set fsync = on"):
            opened.connect()
        opened.close()
