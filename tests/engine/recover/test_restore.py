"""Databases that go back in time, and commits of which nobody knows whether they landed (hazards 46 and 47)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from groundstate.rules.poison_suspects import DIED
from tests.engine.charging import ASK, SAME_KEY, charging, left_in_doubt
from tests.engine.kit import Order, World, until


@pytest.fixture
def witnessed(database_url: str, tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "witness"
    folder.mkdir()
    made = World(database_url, witness=folder)
    yield made
    made.close()


def _suspects(world: World) -> list[str]:
    with world.engine.connect() as connection:
        return list(connection.exec_driver_sql("select name from groundstate_reaction where suspect").scalars())


def test_hazard_46_a_count_below_the_remembered_one_stops_the_call_and_makes_doubts(world: World) -> None:
    gateway = charging(world, ASK)
    world.orders(3)
    life = world.worker()
    life.quiet()
    world.run("update groundstate_worker set begins = 0")
    world.set(1, status="placed", receipt=None)  # as it was in the backup
    life.sweep()
    until(lambda: world.states() == ["doubt"])
    assert gateway.called(1) == 1, "it was charged again though the gateway has its first charge"
    world.forward(60)
    until(lambda: world.order().status == "paid")
    assert world.order().receipt == "r1", "the gateway was asked, and remembered"
    assert gateway.called(1) == 1
    assert _suspects(world) == ["paid"]


def test_hazard_46_what_is_taken_while_suspect_starts_as_a_doubt(world: World) -> None:
    gateway = charging(world, ASK)
    world.orders(1)
    world.settled()
    life = world.worker(after_restore=True)
    world.orders_from(2, 2)
    until(lambda: [one.record for one in world.attempts()] == ["2"])
    assert world.attempt().unsure
    assert gateway.called(2) == 0
    world.forward(60)
    until(lambda: world.order(2).status == "paid")
    life.quiet()
    assert gateway.done(2) == 1


def test_a_doubt_whose_worker_had_died_before_a_restore_is_held_for_the_restore(world: World) -> None:
    gateway = charging(world, SAME_KEY)
    left_in_doubt(world, gateway, Order(id=1))
    world.worker().stop()
    assert str(world.attempt().why).startswith(DIED)
    life = world.worker(after_restore=True)
    until(lambda: world.states() == ["doubt"])
    world.forward(60)
    until(lambda: world.states() == ["held"])
    life.quiet()
    assert world.attempt().why == "in doubt, and the database went back in time: it may have been called in the lost time"
    assert gateway.called(1) == 1, "it was called again though nobody knows how old its key is"


def test_rows_that_a_person_left_alone_are_left_alone_after_a_restore_and_let_go_as_ever(world: World) -> None:
    gateway = charging(world, ASK)
    world.orders(2)
    world.app.init(baseline=["paid"])
    life = world.worker(after_restore=True)
    life.quiet()
    assert [(one.why, one.unsure) for one in world.attempts()] == [("baseline", False)] * 2
    world.set(1, status="cancelled")
    life.sweep()
    until(lambda: [one.record for one in world.attempts()] == ["2"])
    world.set(1, status="placed")
    life.sweep()
    until(lambda: {one.record: one.state.value for one in world.attempts()} == {"1": "doubt", "2": "held"})
    assert gateway.called(1) == 0, "it may have been charged in the lost time"


def test_hazard_46_a_cold_start_on_an_older_snapshot_is_seen_by_the_witness(witnessed: World) -> None:
    world = witnessed
    gateway = charging(world, ASK)
    gateway.plan(2, "hang")
    world.orders(2)
    life = world.worker()
    until(lambda: gateway.waiting == 1 and world.order(1).status == "paid")
    life.kill()
    world.run("update groundstate_worker set begins = 0")  # the snapshot is from before the two begins
    world.force("delete from groundstate_attempt")
    world.set(1, status="placed", receipt=None)
    cold = world.worker()
    assert world.states() == ["doubt", "doubt"]
    assert _suspects(world) == ["paid"]
    world.forward(60)
    until(lambda: world.count(Order.status == "paid") == 2)
    cold.quiet()
    assert gateway.called(1) == 1
    assert world.order(1).receipt == "r1"


def test_hazard_46_a_copied_sqlite_file_is_seen_by_the_witness_beside_it(sqlite_url: str, tmp_path: Path) -> None:
    world = World(sqlite_url)
    try:
        gateway = charging(world, ASK)
        world.orders(1)
        world.run("pragma wal_checkpoint(truncate)")
        world.engine.dispose()
        file = Path(sqlite_url.removeprefix("sqlite:///"))
        shutil.copy(file, tmp_path / "backup")
        gateway.plan(1, "done_hang")
        life = world.worker()
        until(lambda: gateway.waiting == 1)
        life.kill()
        world.engine.dispose()
        for beside in (f"{file}-wal", f"{file}-shm"):
            Path(beside).unlink(missing_ok=True)
        shutil.copy(tmp_path / "backup", file)
        cold = world.worker()
        assert world.states() == ["doubt"]
        world.forward(60)
        cold.quiet()
        assert gateway.called(1) == 1
        assert world.order().receipt == "r1"
    finally:
        world.close()


def test_hazard_46_a_backup_put_back_after_a_clean_end_shows_no_sign_and_is_said_by_hand(witnessed: World) -> None:
    world = witnessed
    gateway = charging(world, ASK)
    world.orders(1)
    life = world.worker()
    until(lambda: world.order().status == "paid")
    life.stop()  # which erases its witness
    world.set(1, status="placed", receipt=None)  # as it was in the backup
    cold = world.worker(after_restore=True)
    assert world.states() == ["doubt"]
    world.forward(60)
    cold.quiet()
    assert gateway.called(1) == 1
    assert world.order().receipt == "r1"


def test_hazard_46_tables_made_anew_in_postgres_are_another_database(postgres_url: str) -> None:
    world = World(postgres_url)
    try:
        gateway = charging(world, ASK)
        world.orders(1)
        world.settled()
        world.run("create table kept as select * from groundstate_attempt")
        world.run("drop table groundstate_attempt cascade")
        world.app.init()
        world.set(1, status="placed", receipt=None)
        cold = world.worker()
        assert world.states() == ["doubt"]
        world.forward(60)
        cold.quiet()
        assert gateway.called(1) == 1
    finally:
        world.close()


def test_hazard_46_a_clean_restart_suspects_nobody(witnessed: World) -> None:
    world = witnessed
    gateway = charging(world, ASK)
    world.orders(5)
    world.settled()
    world.orders_from(6, 9)
    world.settled()
    assert _suspects(world) == []
    assert len(gateway.ledger) == 9


def test_hazard_46_a_witness_that_its_adopter_had_no_time_to_erase_tells_of_no_restore_later(witnessed: World, tmp_path: Path) -> None:
    world = witnessed
    gateway = charging(world, ASK)
    gateway.plan(1, "done_hang")
    world.orders(1)
    first = world.worker()
    until(lambda: gateway.waiting == 1)
    first.kill()
    files = {file: file.read_bytes() for file in (tmp_path / "witness").iterdir()}
    assert len(files) == 1
    adopter = world.worker()
    adopter.kill()
    for file, content in files.items():
        file.write_bytes(content)  # as if the adopter had died after its commit, and before it erased
    world.worker().stop()  # and another adopts what that one took
    world.forward(3600)  # the unclean ends are long past: the next start forgets their rows
    world.settled()
    with world.engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from groundstate_worker").scalar_one() == 0
    world.settled()
    assert _suspects(world) == []
    assert gateway.called(1) == 1


def test_hazard_47_a_begin_that_landed_without_a_word_is_found_and_begun_again(world: World) -> None:
    gateway = charging(world, ASK)
    world.there()
    life = world.worker()
    life.quiet()
    life.lose_word_of = "insert into groundstate_attempt"
    world.orders(1)
    until(lambda: world.order().status == "paid")
    life.quiet()
    assert life.lost == 1
    assert gateway.done(1) == 1
    assert world.attempts() == []


def test_hazard_47_a_begin_that_landed_without_a_word_is_counted_by_the_next_one(world: World) -> None:
    gateway = charging(world, ASK)
    world.there()
    life = world.worker()
    life.quiet()
    life.lose_word_of = "insert into groundstate_attempt"
    world.orders(1)
    until(lambda: world.order().status == "paid")
    life.quiet()
    world.run("update groundstate_worker set begins = begins - 1")  # a backup is put back, from before the begin that charged
    world.set(1, status="placed", receipt=None)
    life.sweep()
    until(lambda: world.states() == ["doubt"] or gateway.called(1) == 2)
    assert gateway.called(1) == 1, "it was charged again: the worker remembered a begin less than the database had"
    world.forward(60)
    until(lambda: world.order().receipt == "r1")


def test_hazard_47_a_conclude_that_landed_without_a_word_is_its_own(world: World) -> None:
    gateway = charging(world, ASK)
    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    life.lose_word_of = "delete from groundstate_attempt"
    gateway.gate.set()
    until(lambda: life.lost == 1)
    life.quiet()
    assert world.order().receipt == "r1"
    assert world.attempts() == []
    assert gateway.called(1) == 1
