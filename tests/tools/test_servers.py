"""The tests' own PostgreSQL: what the tests lean on when they kill it, and that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool
from tools.servers.postgres import PostgresServer, ServerError
from tools.servers.watchdog import processes_in

from tests.patience import until

ROOT = Path(__file__).parents[2]


def ask(url: str, *statements: str) -> object:
    """Each statement in one transaction; the first column of the last one's first row, where it has one."""
    with create_engine(url, poolclass=NullPool).begin() as connection:
        results = [connection.execute(text(statement)) for statement in statements]
        return results[-1].scalar() if results[-1].returns_rows else None


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One that a test may kill, unlike the session's."""
    with PostgresServer() as server:
        yield server


def test_a_started_server_is_real_durable_and_on_loopback_alone(server: PostgresServer) -> None:
    assert str(ask(server.url(), "SELECT version()")).startswith("PostgreSQL 18")
    assert ask(server.url(), "SHOW fsync") == "on"
    assert ask(server.url(), "SHOW max_connections") == "100"
    assert ask(server.url(), "SHOW listen_addresses") == "127.0.0.1"


def test_committed_rows_outlive_a_kill_of_all_its_processes(server: PostgresServer) -> None:
    url = server.create_database()
    ask(url, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")

    server.kill()
    assert not server.running
    assert processes_in(server.folder) == []
    with pytest.raises(OperationalError):
        ask(url, "SELECT 1")

    server.start()
    assert ask(url, "SELECT n FROM kept") == 7


def test_an_open_transaction_does_not_outlive_a_kill(server: PostgresServer) -> None:
    url = server.create_database()
    ask(url, "CREATE TABLE kept (n int)")
    engine = create_engine(url, poolclass=NullPool)
    with closing(engine.connect()) as connection:
        connection.execute(text("INSERT INTO kept VALUES (7)"))
        server.kill()
        connection.invalidate()

    server.start()
    assert ask(url, "SELECT count(*) FROM kept") == 0


def test_a_restart_keeps_the_rows_and_the_port(server: PostgresServer) -> None:
    url = server.create_database()
    ask(url, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
    born = ask(url, "SELECT pg_postmaster_start_time()")

    server.restart()
    assert ask(url, "SELECT n FROM kept") == 7
    assert ask(url, "SELECT pg_postmaster_start_time()") != born


def test_a_dropped_database_is_gone_though_a_connection_was_open(server: PostgresServer) -> None:
    url = server.create_database()
    with closing(create_engine(url, poolclass=NullPool).connect()) as connection:
        connection.execute(text("SELECT 1"))
        server.drop_database(url)
        connection.invalidate()
    with pytest.raises(OperationalError, match="does not exist"):
        ask(url, "SELECT 1")


def test_a_database_can_be_made_from_one_with_tables_in_it(server: PostgresServer) -> None:
    first = server.create_database()
    ask(first, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
    second = server.create_database(template=first.rpartition("/")[2])
    assert ask(second, "SELECT n FROM kept") == 7


def test_two_servers_at_once_do_not_disturb_each_other(server: PostgresServer) -> None:
    with PostgresServer(fsync=False) as other:
        assert other.port != server.port
        assert ask(other.url(), "SHOW fsync") == "off"
        other.kill()
        assert ask(server.url(), "SELECT 1") == 1
        other.start()
        server.kill()
        assert ask(other.url(), "SELECT 1") == 1
        server.start()
    assert not other.folder.exists()
    assert ask(server.url(), "SELECT 1") == 1


def test_a_server_that_was_never_started_says_so() -> None:
    server = PostgresServer()
    with pytest.raises(ServerError, match="start"):
        server.url()
    server.close()
    assert not server.folder.exists()


def test_a_server_whose_port_was_taken_meanwhile_says_so() -> None:
    with PostgresServer(fsync=False) as first, PostgresServer(fsync=False) as second:
        second.stop()
        second.port = first.port
        with pytest.raises(ServerError, match="port"):
            second.start()


def test_nothing_is_left_where_the_starter_is_killed() -> None:
    program = (
        "from tools.servers.postgres import PostgresServer\n"
        "server = PostgresServer()\nserver.start()\nprint(server.folder, flush=True)\ninput()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        folder = Path(starter.stdout.readline().strip())
        assert processes_in(folder)
        os.kill(starter.pid, signal.SIGKILL)
    until(lambda: not folder.exists())
    assert processes_in(folder) == []


def test_each_test_gets_a_database_of_its_own(database_url: str) -> None:
    ask(database_url, "CREATE TABLE mine (n int)", "INSERT INTO mine VALUES (1)")
    assert ask(database_url, "SELECT count(*) FROM mine") == 1


def test_and_the_next_one_does_not_see_it(database_url: str) -> None:
    ask(database_url, "CREATE TABLE mine (n int)")
    assert ask(database_url, "SELECT count(*) FROM mine") == 0


def test_the_server_does_not_run_as_root(server: PostgresServer) -> None:
    owners = {Path(f"/proc/{pid}").stat().st_uid for pid in processes_in(server.data)}
    assert owners
    assert 0 not in owners
