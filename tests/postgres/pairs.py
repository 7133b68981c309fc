"""A primary and a streaming standby, one URL with both hosts, and what a failover does to them. Says nothing of groundstate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool
from tools.servers.postgres import PostgresServer

from tests.patience import until


class Pair:
    """Both run; the standby follows, at once or, after `stop_following`, no more."""

    def __init__(self, primary: PostgresServer, standby: PostgresServer) -> None:
        self.primary, self.standby = primary, standby

    def create_database(self, way: str = "libpq") -> str:
        """A fresh database; its URL names both hosts, in this way."""
        name = self.primary.create_database().rpartition("/")[2]
        hosts = [f"127.0.0.1:{server.port}" for server in (self.primary, self.standby)]
        if way == "sqlalchemy":
            return f"postgresql+asyncpg://postgres@/{name}?host={'&host='.join(hosts)}&target_session_attrs=primary"
        return f"postgresql://postgres@{','.join(hosts)}/{name}?target_session_attrs=primary"

    def is_synchronous(self) -> None:
        """From now on a commit waits for the standby."""
        command(self.primary, "alter system set synchronous_standby_names = '*'")
        command(self.primary, "select pg_reload_conf()")
        until(lambda: answer(self.primary, "select sync_state from pg_stat_replication") == "sync")

    def caught_up(self) -> None:
        """Waits until the standby has all that the primary has."""
        here = answer(self.primary, "select pg_current_wal_lsn()::text")
        until(lambda: answer(self.standby, f"select pg_last_wal_replay_lsn() >= '{here}'") is True)

    def stop_following(self) -> None:
        """What is committed from now on is on the primary alone."""
        self.caught_up()
        command(self.standby, "alter system set primary_conninfo = ''")
        command(self.standby, "select pg_reload_conf()")
        until(lambda: answer(self.primary, "select count(*) from pg_stat_replication") == 0)

    def fail_over(self) -> None:
        """The primary's machine loses its power, and the standby is promoted."""
        self.primary.kill()
        command(self.standby, "select pg_promote()")


@contextmanager
def pair(**settings: str) -> Iterator[Pair]:
    """With nothing in it."""
    with PostgresServer(max_connections=40, settings=settings) as primary:
        standby = primary.create_copy(standby=True)
        try:
            standby.start()
            yield Pair(primary, standby)
        finally:
            standby.kill()  # quicker than an orderly end, and nobody needs what is on it
            standby.close()
            primary.kill()


def command(server: PostgresServer, statement: str, database: str = "postgres") -> None:
    """Outside of any transaction."""
    answer(server, statement, database)


def answer(server: PostgresServer, question: str, database: str = "postgres") -> Any:
    """The first value of the first row; None where there are none."""
    engine = create_engine(server.url(database), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        result = connection.execute(text(question))
        return result.scalar() if result.returns_rows else None


def asked(url: str, question: str) -> Any:
    """The same, by a URL."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        result = connection.execute(text(question))
        return result.scalar() if result.returns_rows else None
