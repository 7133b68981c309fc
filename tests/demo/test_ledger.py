"""A ledger must be what its owner answered for: whole lines, on the disk, across the lives of its process."""

from __future__ import annotations

from pathlib import Path

from groundstate.demo.ledger import Ledger, read_entries


def test_a_ledger_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_entries(tmp_path / "none.jsonl") == []


def test_each_entry_is_read_back_in_order_before_the_ledger_is_closed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new" / "book.jsonl")
    ledger.write({"n": 1, "who": "Zoë\n"})
    ledger.write({"n": 2})
    assert read_entries(ledger.path) == [{"n": 1, "who": "Zoë\n"}, {"n": 2}]
    ledger.close()


def test_a_half_written_line_is_no_entry_and_is_cut_by_the_next_life(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    path.write_bytes(b'{"n":1}\n{"n":')
    assert read_entries(path) == [{"n": 1}]
    ledger = Ledger(path)
    ledger.write({"n": 2})
    ledger.close()
    assert path.read_bytes() == b'{"n":1}\n{"n":2}\n'
