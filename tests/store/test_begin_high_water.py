"""The high-water mark: what is kept, where, for how long, and that trouble with it troubles nobody."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
from pathlib import Path

import pytest

from groundstate import Store
from groundstate.store import begin_high_water
from groundstate.store.begin_high_water import HighWaterFile, state_folder
from groundstate.store.connect import open_store, resolve_settings
from groundstate.values.errors import DeclarationError
from tests.app.models import Base

CONTEXT = multiprocessing.get_context("spawn")
EACH = 300


def _kept(folder: Path, database: str = "/data/shop.db") -> HighWaterFile:
    return HighWaterFile(folder, database)


def test_the_highest_count_is_kept_and_a_lower_one_changes_nothing(tmp_path: Path) -> None:
    kept = _kept(tmp_path / "made" / "here")
    assert kept.highest_count("a") is None
    for count in (1, 7, 3):
        kept.keep_if_higher("a", count)
    kept.close()
    assert _kept(tmp_path / "made" / "here").highest_count("a") == 7


def test_each_store_and_each_path_has_a_file_of_its_own_whose_name_tells_neither(tmp_path: Path) -> None:
    _kept(tmp_path).keep_if_higher("a", 1)
    _kept(tmp_path).keep_if_higher("b", 2)
    _kept(tmp_path, "/data/other.db").keep_if_higher("a", 3)
    assert [
        _kept(tmp_path).highest_count("a"),
        _kept(tmp_path).highest_count("b"),
        _kept(tmp_path, "/data/other.db").highest_count("a"),
    ] == [1, 2, 3]
    names = [file.name for file in tmp_path.iterdir()]
    assert len(names) == 3
    assert not any("shop" in name for name in names)


def test_nobody_else_may_read_what_is_kept(tmp_path: Path) -> None:
    _kept(tmp_path / "state").keep_if_higher("a", 1)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert [file.stat().st_mode & 0o777 for file in (tmp_path / "state").iterdir()] == [0o600]


def _count_up(folder: Path, first: int, ready: object) -> None:
    kept = _kept(folder)
    ready.wait()  # type: ignore[attr-defined]  # a barrier of multiprocessing's, whose class is not public
    for count in range(first, EACH * 4, 4):
        kept.keep_if_higher("a", count)


def test_several_processes_never_let_it_go_backwards(tmp_path: Path) -> None:
    ready = CONTEXT.Barrier(4)
    writers = [CONTEXT.Process(target=_count_up, args=(tmp_path, first, ready)) for first in range(1, 5)]
    for writer in writers:
        writer.start()
    kept, seen, lowered = _kept(tmp_path), 0, False
    while any(writer.is_alive() for writer in writers):
        now = kept.highest_count("a") or 0
        lowered |= now < seen
        seen = max(seen, now)
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert not lowered
    kept.keep_if_higher("a", EACH * 4)  # one of them may have met the lock of another at its very last
    assert kept.highest_count("a") == EACH * 4


def test_a_process_that_is_stopped_under_the_lock_keeps_nobody_from_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = _kept(tmp_path)
    kept.keep_if_higher("a", 1)
    stopped = os.open(next(tmp_path.iterdir()), os.O_RDWR)
    fcntl.flock(stopped, fcntl.LOCK_EX)
    monkeypatch.setattr(begin_high_water, "LOCK_WAITS_S", 0.0)
    kept.keep_if_higher("a", 2)
    assert kept.highest_count("a") == 1, "it was written beside who holds the lock"
    os.close(stopped)
    kept.keep_if_higher("a", 3)
    assert kept.highest_count("a") == 3


def test_a_file_that_was_removed_is_made_again(tmp_path: Path) -> None:
    kept = _kept(tmp_path)
    kept.keep_if_higher("a", 5)
    next(tmp_path.iterdir()).unlink()
    assert kept.highest_count("a") is None
    kept.keep_if_higher("a", 6)
    assert _kept(tmp_path).highest_count("a") == 6


@pytest.mark.parametrize("content", [b"", b"\1", b"\xff" * 40, b"\0" * 40, b"x" * 16])
def test_bytes_of_something_else_are_no_count(tmp_path: Path, content: bytes) -> None:
    _kept(tmp_path).keep_if_higher("a", 5)
    next(tmp_path.iterdir()).write_bytes(content)
    assert _kept(tmp_path).highest_count("a") is None
    _kept(tmp_path).keep_if_higher("a", 6)
    assert _kept(tmp_path).highest_count("a") == 6


def test_trouble_is_said_once_and_names_the_cure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    kept = _kept(tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        kept.keep_if_higher("a", 1)
        kept.keep_if_higher("a", 2)
        assert kept.highest_count("a") is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "GROUNDSTATE_STATE" in caplog.text


def test_a_home_on_a_network_file_system_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(f"1 2 0:1 / / rw - ext4 disk rw\n3 1 0:2 / {tmp_path / 'home'} rw - nfs4 server:/home rw\n")
    kept = HighWaterFile(tmp_path / "home" / "state", "/data/shop.db", mountinfo=table)
    with caplog.at_level(logging.WARNING):
        kept.keep_if_higher("a", 1)
        kept.keep_if_higher("a", 2)
    assert not (tmp_path / "home").exists()
    assert "network file system" in caplog.text
    assert len(caplog.records) == 1


def test_a_volume_that_is_mounted_at_the_folder_is_used(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(f"1 2 0:1 / / rw - overlay overlay rw\n3 1 0:2 / {tmp_path / 'state'} rw - ext4 disk rw\n")
    kept = HighWaterFile(tmp_path / "state", "/data/shop.db", mountinfo=table)
    kept.keep_if_higher("a", 4)
    assert kept.highest_count("a") == 4


def test_the_folder_is_the_users_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert state_folder({"GROUNDSTATE_STATE": "/state", "XDG_STATE_HOME": "/xdg", "HOME": "/home/ada"}, "linux") == Path("/state")
    assert state_folder({"XDG_STATE_HOME": "/xdg", "HOME": "/home/ada"}, "linux") == Path("/xdg/groundstate")
    assert state_folder({"XDG_STATE_HOME": "xdg", "HOME": "/home/ada"}, "linux") == Path("/home/ada/.local/state/groundstate")
    assert state_folder({"HOME": "/Users/ada"}, "darwin") == Path("/Users/ada/Library/Application Support/groundstate")
    assert state_folder({"XDG_STATE_HOME": "/xdg", "HOME": "/Users/ada"}, "darwin") == Path("/xdg/groundstate")
    assert state_folder({"HOME": "nowhere"}, "linux") is None
    with caplog.at_level(logging.WARNING):
        HighWaterFile(None, "/data/shop.db").keep_if_higher("a", 1)
    assert "no home folder" in caplog.text


def test_a_store_says_where_it_is_and_the_environment_where_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDSTATE_STATE", str(tmp_path / "by environment"))
    for store, folder in (
        (Store(f"sqlite:///{tmp_path}/a.db", Base), "by environment"),
        (Store(f"sqlite:///{tmp_path}/b.db", Base, state=tmp_path / "by store"), "by store"),
        (Store.shards([f"sqlite:///{tmp_path}/c.db"], Base, state=tmp_path / "by shards").databases[0], "by shards"),
    ):
        database = open_store(store.settings())[0]
        assert database.high_water is not None
        database.high_water.keep_if_higher("a", 1)
        assert len(list((tmp_path / folder).iterdir())) == 1
        database.close()


def test_postgres_has_none_and_says_so() -> None:
    assert open_store(resolve_settings("postgresql://host/shop"))[0].high_water is None
    with pytest.raises(DeclarationError, match="state="):
        resolve_settings("postgresql://host/shop", state="/state")


def test_of_very_many_files_the_oldest_whose_databases_are_gone_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(begin_high_water, "FILES_MOST", 10)
    monkeypatch.setattr(begin_high_water, "FILES_LEFT", 5)
    folder, there = tmp_path / "state", tmp_path / "there.db"
    there.write_text("")
    _kept(folder, str(there)).keep_if_higher("a", 1)
    os.utime(next(folder.iterdir()), (0, 0))
    for number in range(1, 10):
        _kept(folder, f"/gone/{number}.db").keep_if_higher("a", number)
        newest = HighWaterFile(folder, f"/gone/{number}.db")._path("a")
        os.utime(newest, (number, number))
    assert len(list(folder.iterdir())) == 10
    _kept(folder, "/gone/10.db").keep_if_higher("a", 10)
    left = [number for number in range(1, 11) if _kept(folder, f"/gone/{number}.db").highest_count("a") == number]
    assert left == [5, 6, 7, 8, 9, 10]
    assert _kept(folder, str(there)).highest_count("a") == 1, "its database is there"
