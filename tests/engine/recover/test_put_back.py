"""Real backups, snapshots, standbys and failovers of PostgreSQL, by its own programs: every row of hazard 46, and reading on a standby."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from tools.servers.postgres import PostgresServer

from groundstate import StoreRefusedError
from groundstate.engine.operate.pending import build_pending_report
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from tests.engine.charging import ASK, charging
from tests.engine.kit import Gateway, Order, World, until


@pytest.fixture
def put_back(postgres_server: PostgresServer, postgres_url: str) -> Iterator[PutBack]:
    """Two orders, and a backup of the time before their calls."""
    made = PutBack(postgres_server, postgres_url)
    yield made
    made.close()


class PutBack:
    """A shop that charges after its backup was made, and loses that."""

    def __init__(self, server: PostgresServer, url: str) -> None:
        self.server, self.url, self.database = server, url, url.rpartition("/")[2]
        self.world = World(url)
        self.gateway = charging(self.world, ASK)
        self.world.orders(2)
        self._others: list[PostgresServer] = []
        self._worlds = [self.world]

    def charged(self) -> None:
        """Both orders are charged; the worker is gone, cleanly."""
        self.world.settled()
        assert self.world.count(Order.status == "paid") == 2
        self.world.engine.dispose()

    def dump(self) -> str:
        file = str(self.server.folder / f"{self.database}.dump")
        self.server.run("pg_dump", *self._at, "--format=custom", "--file", file, self.database)
        return file

    def restore(self, file: str, *options: str) -> None:
        self.server.run("pg_restore", *self._at, *options, "--dbname", self.database, file)

    @property
    def _at(self) -> tuple[str, ...]:
        return ("--host=127.0.0.1", f"--port={self.server.port}", "--username=postgres")

    def copy(self, *, standby: bool = False) -> PostgresServer:
        made = self.server.create_copy(standby=standby)
        self._others.append(made)
        made.start()
        return made

    def world_on(self, server: PostgresServer, **store: Any) -> World:
        """The same shop on another server, with the same gateway."""
        world = World(server.url(self.database), **store)
        charging(world, ASK, gateway=self.gateway)
        self._worlds.append(world)
        return world

    def close(self) -> None:
        for world in reversed(self._worlds):
            world.close()
        for other in self._others:
            other.close()


def suspects_of(world: World) -> list[str]:
    with world.engine.connect() as connection:
        return list(connection.exec_driver_sql("select name from groundstate_reaction where suspect").scalars())


def settles_without_a_second_charge(world: World, gateway: Gateway, **options: Any) -> None:
    """Both calls of the lost time are asked after, and found."""
    cold = world.worker(**options)
    assert suspects_of(world) == ["paid"]
    world.forward(60)
    cold.quiet()
    assert set(gateway.asked) == {1, 2}
    assert world.count(Order.status == "paid") == 2
    assert [gateway.called(number) for number in (1, 2)] == [1, 1]


def test_hazard_46_a_dump_that_is_put_back_into_a_new_database_is_seen(put_back: PutBack) -> None:
    file = put_back.dump()
    put_back.charged()
    put_back.server.drop_database(put_back.url)
    put_back.server.run("createdb", *put_back._at, put_back.database)
    put_back.restore(file)
    settles_without_a_second_charge(put_back.world, put_back.gateway)


def test_hazard_46_a_dump_that_is_put_back_into_the_same_database_is_seen(put_back: PutBack) -> None:
    file = put_back.dump()
    put_back.charged()
    put_back.restore(file, "--clean")
    settles_without_a_second_charge(put_back.world, put_back.gateway)


def test_hazard_46_a_snapshot_that_is_started_cold_is_seen_by_a_witness(put_back: PutBack, tmp_path: Path) -> None:
    world = put_back.world_on(put_back.server, witness=tmp_path)
    put_back.gateway.plan(2, "done_hang")
    life = world.worker(start=False)
    snapshot = put_back.copy()
    life.worker.start()
    until(lambda: put_back.gateway.waiting == 1 and put_back.gateway.done(1) == 1)
    life.kill()
    settles_without_a_second_charge(put_back.world_on(snapshot, witness=tmp_path), put_back.gateway)


def test_hazard_46_a_snapshot_that_is_started_cold_without_a_witness_is_said_by_hand(put_back: PutBack) -> None:
    snapshot = put_back.copy()
    put_back.charged()
    settles_without_a_second_charge(put_back.world_on(snapshot), put_back.gateway, after_restore=True)


def test_hazard_46_a_standby_that_is_promoted_and_lost_commits_is_seen_by_its_timeline(put_back: PutBack) -> None:
    standby = put_back.copy(standby=True)
    _stop_following(standby)
    put_back.charged()
    _promote(standby)
    settles_without_a_second_charge(put_back.world_on(standby), put_back.gateway)


def test_hazard_46_a_failover_that_can_lose_nothing_is_not_suspected_where_that_was_said(put_back: PutBack) -> None:
    put_back.charged()
    standby = put_back.copy(standby=True)
    _promote(standby)
    world = put_back.world_on(standby, failover="lossless")
    world.worker().quiet()
    assert suspects_of(world) == []
    assert world.states() == []


def test_a_standby_is_read_and_not_worked_on(put_back: PutBack) -> None:
    put_back.gateway.plan(1, "hang")
    life = put_back.world.worker()
    until(lambda: put_back.gateway.waiting == 1)
    standby = put_back.copy(standby=True)
    world = put_back.world_on(standby)
    database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
    try:
        questions = [ConditionQuery(spec, database) for spec in world.app.reactions.values()]
        until(lambda: [one.record for one in build_pending_report(world.app.name, database, questions, make_lives()).in_doubt] == ["1"])
        report = build_pending_report(world.app.name, database, questions, make_lives())
    finally:
        database.close()
    assert report.standby
    assert [one.standing for one in report.in_doubt] == ["alive or in doubt"]
    with pytest.raises(StoreRefusedError, match="standby"):
        world.worker()
    put_back.gateway.gate.set()
    life.quiet()


def _command(server: PostgresServer, statement: str) -> None:
    engine = create_engine(server.url(), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))


def _stop_following(standby: PostgresServer) -> None:
    _command(standby, "alter system set primary_conninfo = ''")
    _command(standby, "select pg_reload_conf()")


def _promote(standby: PostgresServer) -> None:
    _command(standby, "select pg_promote()")
