"""Each workload of benchmarks/ does its work, in the smallest form. What it measures is nowhere asserted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.__main__ import WORKLOADS, create_places, describe_machine, main, run_workload
from benchmarks.harness import NotDone, Place, Size, require_count

TINY = Size(
    rounds=1, orders=300, calls=200, limits=(50,), samples=10, finished=(500,), unfinished=60, backlog=100_000, failed=300, line=300,
    idle_s=0.2, beside_s=0.3, snapshot_s=0.5, timers=2_000, rates=(200,), rate_s=0.2, shards=(2,), written_before_s=0.5,
    workers=(1,), tenants=(4,),
)  # fmt: skip
WORK = {
    "T": 900,
    "E": 200,
    "L": 10,
    "R": 60,
    "I": 500,
    "B": 400,
    "K": 300,
    "D": 2_000,
    "H": 900,
    "J": 300,
}  # the rest: as much as the time allowed
COUNTS = {"rows", "bytes", "errors", "% of a core", "statements/s"}  # may be 0


@pytest.fixture(scope="module")
def sqlite_place() -> Iterator[Place]:
    with create_places(["sqlite"]) as (_, [place]):
        yield place


@pytest.fixture(scope="module")
def postgres_place() -> Iterator[Place]:
    with create_places(["postgres"]) as (_, [place]):
        yield place


@pytest.mark.parametrize(
    ("name", "store"),
    [
        pytest.param(name, store, marks=[] if store == "sqlite" or name == "Q" else [pytest.mark.thorough])
        for name, workload in WORKLOADS.items()
        for store in workload.STORES
    ],
)
def test_a_workload_does_its_work(name: str, store: str, request: pytest.FixtureRequest) -> None:
    rows = run_workload(name, request.getfixturevalue(f"{store}_place"), TINY)
    assert rows
    for row in rows:
        assert (row.workload, row.store) == (name, store)
        assert row.work == WORK[name] if name in WORK else row.work > 0
        for value in (row.ours, *row.beside.values()):
            assert math.isfinite(value)
            assert value > 0 or (value == 0 and row.unit in COUNTS)


def test_nothing_of_ours_is_left_for_finished_orders(sqlite_place: Place) -> None:
    rows = run_workload("B", sqlite_place, TINY)
    assert [row.ours for row in rows if row.unit == "rows"] == [0]


def test_the_command_writes_its_figures_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("benchmarks.__main__.QUICK", TINY)
    file = tmp_path / "figures.json"
    assert main(["--quick", "--store", "sqlite", "--only", "T", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert [(row["workload"], row["store"], row["work"]) for row in written["rows"]] == [("T", "sqlite", 900)]
    assert set(written["machine"]) == set(describe_machine(tmp_path))
    assert "3-step orders" in capsys.readouterr().out


def test_a_figure_for_work_that_was_not_done_is_refused() -> None:
    with pytest.raises(NotDone, match="orders shipped: 999 of 1,000"):
        require_count("orders shipped", 999, 1000)
