"""The witness files: what is remembered, and that trouble with them troubles nobody."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from groundstate.store.begin_counter_file import FileWitness
from groundstate.store.connect import open_store, resolve_settings


def test_the_last_count_of_each_life_is_remembered(tmp_path: Path) -> None:
    witness = FileWitness(str(tmp_path / "made" / "here"), "shop")
    assert witness.read() == {}
    witness.write(2**62 - 1, 1)
    witness.write(2**62 - 1, 7)
    witness.write(5, 2**40)
    witness.close()
    assert FileWitness(str(tmp_path / "made" / "here"), "shop").read() == {2**62 - 1: 7, 5: 2**40}
    assert {file.stat().st_size for file in (tmp_path / "made" / "here").iterdir()} == {16}


def test_an_erased_life_is_forgotten_and_another_database_is_not_ours(tmp_path: Path) -> None:
    witness = FileWitness(str(tmp_path), "shop")
    witness.write(1, 1)
    witness.write(2, 2)
    FileWitness(str(tmp_path), "bank").write(3, 3)
    witness.delete_count_of(1)
    witness.delete_count_of(1)
    assert witness.read() == {2: 2}


def test_a_file_that_is_cut_short_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "shop-groundstate-witness-1").write_bytes(b"\1")
    (tmp_path / "shop-groundstate-witness-x").write_bytes(b"\1" * 16)
    assert FileWitness(str(tmp_path), "shop").read() == {}


def test_a_witness_that_cannot_be_written_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    witness = FileWitness(str(tmp_path / "file"), "shop")
    with caplog.at_level(logging.WARNING):
        witness.write(1, 1)
        witness.write(1, 2)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_sqlite_has_its_witness_beside_it_and_postgres_where_it_is_told(tmp_path: Path) -> None:
    beside = open_store(resolve_settings(f"sqlite:///{tmp_path}/shop.db"))[2]
    assert beside is not None
    beside.write(255, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["shop.db-groundstate-witness-ff"]
    assert open_store(resolve_settings("postgresql://host/shop"))[2] is None
    told = open_store(resolve_settings("postgresql://host/shop", witness=str(tmp_path / "told")))[2]
    assert told is not None
    told.write(1, 4)
    assert told.read() == {1: 4}


def test_a_folder_in_place_of_a_witness_tells_nothing_and_is_left_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "shop-groundstate-witness-7").mkdir()
    witness = FileWitness(str(tmp_path), "shop")
    assert witness.read() == {}
    with caplog.at_level(logging.WARNING):
        witness.delete_count_of(7)
        assert FileWitness(str(tmp_path / "shop-groundstate-witness-7" / "file"), "shop").read() == {}
    assert "erased" in caplog.text


def test_a_file_in_place_of_the_witness_folder_is_said_and_read_as_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert FileWitness(str(tmp_path / "file"), "shop").read() == {}
    assert "can be read in" in caplog.text
