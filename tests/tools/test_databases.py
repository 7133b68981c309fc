"""What a test gets is empty, whatever the one before it made, and nobody who knew it by its old name comes back to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from sqlalchemy import make_url
from tools.servers.postgres import PostgresServer

from tests.databases import Databases

OIDS = "SELECT oid FROM pg_database WHERE datname = current_database()"


@pytest.fixture
def some(postgres_server: PostgresServer) -> Iterator[Databases]:
    with closing(Databases(postgres_server)) as made:
        yield made


def connected(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(make_url(url).set(drivername="postgresql").render_as_string(), autocommit=True)


def answered(url: str, *statements: str) -> object:
    with connected(url) as connection:
        row = [connection.execute(statement.encode()) for statement in statements][-1].fetchone()
    assert row is not None
    return row[0]


def test_what_one_test_made_is_gone_for_the_next_and_a_session_that_is_left_over_is_cut(some: Databases) -> None:
    first = some.take()
    place = answered(first, "CREATE SCHEMA own; CREATE TABLE own.t (n int); CREATE TABLE t AS SELECT 1 AS n; CREATE SEQUENCE s", OIDS)
    left_over = connected(first)
    some.give_back(first)
    with pytest.raises(psycopg.OperationalError):
        left_over.execute("SELECT 1")
    second = some.take()
    assert second != first
    assert answered(second, OIDS) == place
    assert answered(second, "SELECT count(*) FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'S')") == 0
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        connected(first)
    some.give_back(second)


@pytest.mark.parametrize(
    "left",
    [
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''5MB''', current_database()); END $$",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT 3', current_database()); END $$",
        "CREATE PUBLICATION everything FOR ALL TABLES",
        "SELECT lo_create(4711)",
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
    ],
)
def test_one_that_cannot_be_emptied_to_what_it_was_is_removed(some: Databases, left: str) -> None:
    first = some.take()
    place = answered(first, left, OIDS)
    some.give_back(first)
    second = some.take()
    assert answered(second, OIDS) != place
    some.give_back(second)
