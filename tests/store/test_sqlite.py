"""What the SQLite driver does by itself: its pragmas, its patience, and the files that it refuses."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from groundstate.store.connect import resolve_settings
from groundstate.store.sqlite import SqliteDatabase
from groundstate.values.errors import StoreRefusedError
from tests.store.children import forked

MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:50 / /srv/my\040files rw - {type} server:/export rw
41 40 8:1 / /srv/my\040files/local rw - xfs /dev/sdb rw
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
def database(path: Path) -> Iterator[SqliteDatabase]:
    opened = SqliteDatabase(resolve_settings(f"sqlite:///{path}"))
    opened.connect()
    yield opened
    opened.close()


def refused(url: str, **options: Path) -> str:
    database = SqliteDatabase(resolve_settings(url), **options)
    with pytest.raises(StoreRefusedError) as caught:
        database.connect()
    database.close()
    return str(caught.value)


def test_a_commit_is_on_disk_when_it_returns(database: SqliteDatabase) -> None:
    with database.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 5000


def test_a_writer_has_the_lock_from_its_first_moment(database: SqliteDatabase) -> None:
    with database.writing(), pytest.raises(OperationalError, match="database is locked"), database.writing(wait=timedelta(milliseconds=20)):
        pass
    with database.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 5000


def test_a_reader_does_not_wait_for_a_writer(database: SqliteDatabase) -> None:
    with database.writing() as writer:
        writer.exec_driver_sql("CREATE TABLE thing (id)")
        with database.reading() as reader:
            assert reader.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one() == 0


def test_the_select_is_left_as_it_is(database: SqliteDatabase) -> None:
    question = select(database.now())
    assert database.with_row_locks(question) is question
    assert database.identity() is None


def test_another_writer_is_noticed_once(database: SqliteDatabase, path: Path) -> None:
    assert database.has_someone_written()
    assert not database.has_someone_written()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE thing (id)")
    other.close()
    assert database.has_someone_written()
    assert not database.has_someone_written()


def test_closing_leaves_no_file_open(database: SqliteDatabase, path: Path) -> None:
    database.has_someone_written()
    database.close()
    links = list(Path("/proc/self/fd").iterdir())
    assert not [link for link in links if link.is_symlink() and str(link.readlink()).startswith(str(path))]


def test_a_forked_child_may_not_open_what_its_parent_had_open(database: SqliteDatabase, path: Path) -> None:
    def child() -> str:
        try:
            SqliteDatabase(resolve_settings(f"sqlite:///{path}")).connect()
        except StoreRefusedError as refusal:
            return str(refusal)
        return "not refused"

    with forked(child) as said:
        assert "'spawn'" in said


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"the folder {tmp_path / 'nowhere'} does not exist: create it" in refused(f"sqlite:///{tmp_path}/nowhere/shop.db")


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    assert "is a folder, not a database file" in refused(f"sqlite:///{tmp_path}")


def test_another_kind_of_file_is_no_database(path: Path) -> None:
    path.write_text("It was a dark and stormy night. " * 100)
    assert "is not a SQLite database" in refused(f"sqlite:///{path}")


def test_a_damaged_database_is_told_from_a_good_one(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE thing (id)")
    connection.close()
    content = bytearray(path.read_bytes())
    content[100:200] = b"\xff" * 100
    path.write_bytes(content)
    assert "is damaged" in refused(f"sqlite:///{path}")


def test_a_read_only_database_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE thing (id)")
    connection.close()
    assert "is read-only: let this user write" in refused(f"sqlite:///file:{path}?mode=ro&uri=true")


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs"])
def test_hazard_36_a_network_file_system_is_refused(tmp_path: Path, kind: str) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS.format(type=kind))
    assert f"network file system ({kind}, mounted at /srv/my files)" in refused("sqlite:////srv/my files/shop.db", mountinfo=table)
    assert "does not exist" in refused("sqlite:////srv/my files/local/shop.db", mountinfo=table)
    assert "does not exist" in refused("sqlite:////srv/my filesystem/shop.db", mountinfo=table)


def test_hazard_36_a_file_that_is_mounted_alone_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 22 8:1 /x /app/shop.db rw - ext4 /dev/sda1 rw\n")
    assert "mount the folder /app instead" in refused("sqlite:////app/shop.db", mountinfo=table)
