"""SQLite files and folders that are put back: what shows it, and what is no sign (hazard 46)."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from groundstate import InDoubt
from groundstate.engine.rows.begin_count import StoreBegins
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql.commit_hooks import TouchedRecords
from groundstate.values.errors import StoreRefusedError
from tests.engine.charging import ASK, charging
from tests.engine.kit import Gateway, Order, World, until

MANY = 20
HOUR_S = 3600.0


class Shop:
    """Orders that are charged, in a folder with nothing else; what is outside of it is the user's state."""

    def __init__(self, base: Path, in_doubt: Any = ASK) -> None:
        self.base, self.folder, self.state = base, base / "shop", base / "state"
        self.folder.mkdir()
        self.file = self.folder / "shop.db"
        self._in_doubt = in_doubt
        self._worlds: list[World] = []
        self.world = self.another(self.file)
        self.gateway = charging(self.world, in_doubt)

    def another(self, file: Path, state: Path | None = None, gateway: Gateway | None = None) -> World:
        world = World(f"sqlite:///{file}", state=state or self.state)
        if gateway is not None:
            charging(world, self._in_doubt, gateway=gateway)
        self._worlds.append(world)
        return world

    def snapshot(self) -> Path:
        """The folder as it is now, with no connection open that could write to it."""
        self.world.engine.dispose()
        made = self.base / f"snapshot-{len(list(self.base.iterdir()))}"
        shutil.copytree(self.folder, made)
        return made

    def put_folder_back(self, snapshot: Path) -> None:
        self.world.engine.dispose()
        shutil.rmtree(self.folder)
        shutil.copytree(snapshot, self.folder)

    def put_file_back(self, copy: Path) -> None:
        self.world.engine.dispose()
        for beside in ("-wal", "-shm"):
            Path(f"{self.file}{beside}").unlink(missing_ok=True)
        shutil.copy(copy, self.file)

    def suspects(self, world: World | None = None) -> list[str]:
        with (world or self.world).engine.connect() as connection:
            return list(connection.exec_driver_sql("select name from groundstate_reaction where suspect").scalars())

    def store(self) -> tuple[str, int]:
        """The store's id and its count of begins."""
        with sqlite3.connect(self.file) as connection:
            said, begins = connection.execute("select condition, begins from groundstate_reaction where app = ''").fetchone()
        connection.close()
        return json.loads(said)["store"], begins

    def charged_once_each(self, count: int = MANY) -> bool:
        return [self.gateway.called(number + 1) for number in range(count)] == [1] * count

    def close(self) -> None:
        for world in self._worlds:
            world.close()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path)
    made.world.orders(MANY)
    yield made
    made.close()


def _charge_and_kill(shop: Shop) -> None:
    life = shop.world.worker()
    life.quiet()
    life.kill()
    assert shop.world.count(Order.status == "paid") == MANY


def _all_in_doubt_and_settled_by_their_finds(shop: Shop) -> None:
    cold = shop.world.worker()
    assert shop.suspects() == ["paid"]
    shop.world.forward(60)
    cold.quiet()
    assert shop.charged_once_each()
    assert shop.world.count(Order.status == "paid") == MANY
    cold.stop()


def test_a_snapshot_of_the_folder_takes_the_witness_back_and_is_seen_all_the_same(shop: Shop) -> None:
    snapshot = shop.snapshot()
    _charge_and_kill(shop)
    shop.put_folder_back(snapshot)
    _all_in_doubt_and_settled_by_their_finds(shop)


def test_a_file_that_is_put_back_after_a_clean_stop_is_seen(shop: Shop) -> None:
    snapshot = shop.snapshot()
    shop.world.settled()
    shop.put_file_back(snapshot / "shop.db")
    _all_in_doubt_and_settled_by_their_finds(shop)


def test_a_folder_that_is_put_back_while_all_is_stopped_is_seen(shop: Shop) -> None:
    shop.world.settled()
    snapshot = shop.snapshot()
    shop.world.orders_from(MANY + 1, MANY + 5)
    shop.world.settled()
    shop.put_folder_back(snapshot)
    shop.world.orders_from(MANY + 1, MANY + 5)  # their numbers come again
    cold = shop.world.worker()
    assert shop.suspects() == ["paid"]
    shop.world.forward(60)
    cold.quiet()
    assert shop.charged_once_each(MANY + 5)


def test_a_vacuumed_copy_at_the_old_path_is_seen(shop: Shop) -> None:
    _vacuum_into(shop.file, shop.base / "copy.db")
    shop.world.settled()
    shop.put_file_back(shop.base / "copy.db")
    _all_in_doubt_and_settled_by_their_finds(shop)


def test_a_backup_that_is_restored_into_the_open_file_is_seen_by_a_worker_that_began_nothing(shop: Shop) -> None:
    """As by sqlite3's .restore: the living worker that looks on has no count of its own to compare."""
    idle = shop.world.worker(wait_for_go=True)
    backup = shop.base / "backup.db"
    _copy(shop.file, backup)
    busy = shop.world.worker()
    until(lambda: shop.world.count(Order.status == "paid") == MANY)
    busy.kill()
    shop.world.engine.dispose()
    _copy(backup, shop.file)
    idle.worker.begin_work()
    until(lambda: shop.suspects() == ["paid"] or not shop.charged_once_each())
    assert shop.charged_once_each(), "the living worker charged again"
    shop.world.forward(60)
    until(lambda: shop.world.count(Order.status == "paid") == MANY)
    assert shop.charged_once_each()


def test_under_hold_each_call_of_the_lost_time_waits_for_a_person(tmp_path: Path) -> None:
    shop = Shop(tmp_path, InDoubt.hold())
    try:
        shop.world.orders(MANY)
        snapshot = shop.snapshot()
        _charge_and_kill(shop)
        shop.put_folder_back(snapshot)
        cold = shop.world.worker()
        cold.quiet()
        assert shop.world.states() == ["held"] * MANY
        assert shop.charged_once_each()
    finally:
        shop.close()


def test_the_same_backup_put_back_once_more_is_a_sign_once_more(shop: Shop) -> None:
    snapshot = shop.snapshot()
    _charge_and_kill(shop)
    for _ in range(2):  # the second time nothing was begun since the first: each doubt was settled by its lookup
        shop.put_folder_back(snapshot)
        _all_in_doubt_and_settled_by_their_finds(shop)


def test_a_restore_that_was_answered_is_no_sign_at_the_next_start(shop: Shop) -> None:
    snapshot = shop.snapshot()
    _charge_and_kill(shop)
    shop.put_folder_back(snapshot)
    _all_in_doubt_and_settled_by_their_finds(shop)
    shop.world.run("update groundstate_reaction set suspect = false")
    shop.world.orders_from(MANY + 1, MANY + 3)
    shop.world.settled()
    assert shop.suspects() == []
    assert shop.charged_once_each(MANY + 3)


def test_a_restore_that_a_person_told_of_is_no_sign_later(shop: Shop) -> None:
    snapshot = shop.snapshot()
    _charge_and_kill(shop)
    shop.put_folder_back(snapshot)
    cold = shop.world.worker(after_restore=True)
    shop.world.forward(60)
    cold.quiet()
    cold.stop()
    shop.world.run("update groundstate_reaction set suspect = false")
    shop.world.settled()
    assert shop.suspects() == []
    assert shop.charged_once_each()


def test_a_start_that_dies_while_it_answers_is_made_good_by_the_next(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = shop.snapshot()
    _charge_and_kill(shop)
    shop.put_folder_back(snapshot)
    with monkeypatch.context() as patch:
        patch.setattr(StoreBegins, "write_id_and_count", _dies)
        with pytest.raises(RuntimeError, match="dies before"):
            shop.world.worker()
    shop.world.force("delete from groundstate_attempt")  # as if it had died before its doubts were written
    shop.world.run("update groundstate_reaction set suspect = false")
    _all_in_doubt_and_settled_by_their_finds(shop)


def _dies(*_: object) -> None:
    raise RuntimeError("it dies before it has answered")


# ---- no sign ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("removed", [False, True], ids=["replaced", "removed"])
def test_a_file_that_is_replaced_or_removed_under_a_running_worker_is_told_and_nothing_is_carried_out(
    shop: Shop, removed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    shop.world.there()
    backup = shop.base / "backup.db"
    _copy(shop.file, backup)
    life = shop.world.worker()
    life.quiet()
    shop.world.engine.dispose()
    (shop.base / "old").mkdir()
    for file in list(shop.folder.glob("shop.db*")):
        if "groundstate" not in file.name:
            file.rename(shop.base / "old" / file.name)
    if not removed:
        shutil.copy(backup, shop.file)
    life.worker.components.signals.wake.set()
    until(lambda: "while it was open" in caplog.text)
    what = "was removed" if removed else "was replaced by another file"
    assert f"{shop.file} {what} while it was open" in caplog.text
    until(lambda: what in life.worker.reasons_of_waiting_reactions.get("paid", ""))
    if not removed:
        shop.world.add(Order(id=900))
        life.worker.note_commit(TouchedRecords(whole={Order}))
        with pytest.raises(StoreRefusedError, match="replaced"), life.database.writing():
            raise AssertionError
        life.stop(0)
        assert shop.gateway.called(900) == 0
        next_life = shop.world.worker()
        until(lambda: 900 in shop.gateway.asked)
        shop.world.forward(HOUR_S)  # a call of the lost time can be on its way no more
        next_life.quiet()
        assert shop.gateway.called(900) == 1


def test_a_copy_at_another_path_is_no_sign_there_nor_here(shop: Shop) -> None:
    old = shop.snapshot() / "shop.db"
    shop.world.settled()
    elsewhere = shop.base / "elsewhere.db"
    shutil.copy(old, elsewhere)
    copy = shop.another(elsewhere, gateway=Gateway())
    copy.settled()
    assert shop.suspects(copy) == []
    shop.world.settled()
    assert shop.suspects() == []


@pytest.mark.parametrize("removed", ["the mark", "the folder"])
def test_where_no_mark_is_there_is_no_sign(shop: Shop, removed: str) -> None:
    """As in a container with a fresh home, and on another host."""
    shop.world.settled()
    if removed == "the mark":
        for file in shop.state.iterdir():
            file.unlink()
    else:
        shutil.rmtree(shop.state)
    shop.world.orders_from(MANY + 1, MANY + 1)
    shop.world.settled()
    assert shop.suspects() == []
    assert len(list(shop.state.iterdir())) == 1


def test_a_start_keeps_the_count_also_of_calls_that_were_begun_by_another_user(shop: Shop) -> None:
    snapshot = shop.snapshot()
    other = shop.another(shop.file, state=shop.base / "another user's", gateway=shop.gateway)
    other.settled()
    other.engine.dispose()
    shop.world.settled()  # which begins nothing, and sees the count
    shop.put_folder_back(snapshot)
    _all_in_doubt_and_settled_by_their_finds(shop)


def test_a_database_made_anew_at_the_same_path_is_another_store(shop: Shop) -> None:
    shop.world.settled()
    before = shop.store()[0]
    shop.world.engine.dispose()
    for file in shop.folder.iterdir():
        file.unlink()
    shop.world.app.init(tables=True, accept=True)
    shop.world.orders(1)
    shop.world.settled()
    assert shop.store()[0] != before
    assert shop.suspects() == []


def test_a_template_that_is_begun_anew_is_another_store(shop: Shop) -> None:
    template = shop.snapshot() / "shop.db"
    shop.world.settled()
    shop.put_file_back(template)
    life = shop.world.worker(start=False)
    _begin_anew(life)
    life.worker.start()
    life.quiet()
    assert shop.suspects() == []


def _begin_anew(life: Any) -> None:
    ours: Incarnation = life.worker.incarnation
    assert ours.store_begins is not None
    with ours.open_transaction() as tx:
        ours.store_begins.reset_id_and_count(tx)


@pytest.mark.parametrize(
    "edited",
    [
        "delete from groundstate_reaction where app = ''",
        "update groundstate_reaction set begins = null where app = ''",
        "update groundstate_reaction set begins = 'none' where app = ''",
        "update groundstate_reaction set condition = '[]' where app = ''",
    ],
)
def test_a_row_without_an_id_or_a_count_says_nothing_and_is_written_at_the_next_start(shop: Shop, edited: str) -> None:
    """As of a database of an older version, and of one that somebody edited; under a living worker too."""
    life = shop.world.worker()
    life.quiet()
    shop.world.run(edited)
    shop.world.orders_from(MANY + 1, MANY + 2)
    until(lambda: shop.world.count(Order.status == "paid") == MANY + 2)
    life.stop()
    shop.world.settled()
    shop.world.orders_from(MANY + 3, MANY + 3)
    shop.world.settled()
    assert shop.suspects() == []
    assert shop.store()[1] > 0
    assert shop.charged_once_each(MANY + 3)


def test_every_begin_is_counted_for_the_store_and_kept(shop: Shop) -> None:
    shop.world.settled()
    store, begins = shop.store()
    assert begins == MANY
    assert shop.world.lives[0].database.high_water.highest_count(store) == MANY


def test_several_workers_count_together(shop: Shop) -> None:
    lives = [shop.world.worker() for _ in range(3)]
    shop.world.orders_from(MANY + 1, 3 * MANY)
    for life in lives:
        life.quiet()
    store, begins = shop.store()
    assert begins == 3 * MANY
    assert lives[0].database.high_water.highest_count(store) == 3 * MANY
    assert shop.suspects() == []


def test_a_folder_that_cannot_be_written_keeps_nobody_from_work_and_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop(tmp_path)
    try:
        shop.world.orders(3)
        shop.state.write_text("a file where the folder should be")
        with caplog.at_level(logging.WARNING):
            life = shop.world.worker()
            life.quiet()
            shop.world.orders_from(4, 6)
            until(lambda: shop.world.count(Order.status == "paid") == 6)
            life.stop()
        said = [record for record in caplog.records if getattr(record, "event", "") == "high_water_failed"]
        assert len(said) == 1
        assert "GROUNDSTATE_STATE" in said[0].getMessage()
    finally:
        shop.close()


def _vacuum_into(file: Path, copy: Path) -> None:
    _on(file, lambda connection: connection.execute(f"vacuum into '{copy}'"))


def _copy(source: Path, target: Path) -> None:
    """By SQLite's own backup, as its shell's .backup and .restore do it."""

    def back_up(into: sqlite3.Connection) -> None:
        _on(source, lambda connection: connection.backup(into))

    _on(target, back_up)


def _on(file: Path, act: Callable[[sqlite3.Connection], object]) -> None:
    connection = sqlite3.connect(file, timeout=20)
    try:
        act(connection)
    finally:
        connection.close()
