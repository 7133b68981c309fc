"""benchmarks/timers counts what is planted, meets all contenders with the same, and measures ours."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from benchmarks.crash.environment import REQUIREMENTS
from benchmarks.timers import __main__ as command
from benchmarks.timers.contenders import CONTENDERS, PEERS
from benchmarks.timers.measuring import Setting, count_timers


def test_what_is_late_early_doubled_and_missing_is_counted() -> None:
    found = count_timers(10, 6, [(0.2, 1), (0.1, 1), (-0.5, 1), (3.0, 2)])
    assert (found.median_s, found.p99_s, found.longest_s) == (0.2, 3.0, 3.0)
    assert (found.timers, found.early, found.doubled, found.missing) == (6, 1, 1, 2)


def test_a_contender_that_carries_nothing_out_has_no_lateness() -> None:
    found = count_timers(10, 6, [])
    assert found.missing == 6
    assert str(found.median_s) == "nan"


def test_ours_is_measured_through_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "QUICK", command.Size(killed=(50, 5)))
    monkeypatch.setattr(command, "Setting", partial(Setting, soon_s=1.5, up_s=2.0))
    file = tmp_path / "figures.json"
    assert command.main(["--quick", "--only", "ours", "--part", "killed", "--json", str(file)]) == 0
    [row] = json.loads(file.read_text())["killed"]
    assert (row["contender"], row["timers"], row["early"], row["doubled"], row["missing"]) == ("groundstate", 5, 0, 0, 0)
    assert 0 <= row["median_s"] <= row["longest_s"]
    assert "groundstate" in capsys.readouterr().out


def test_each_peer_is_pinned_and_has_its_script() -> None:
    pinned = {line.partition("==")[0].partition("[")[0] for line in REQUIREMENTS.read_text().splitlines() if "==" in line}
    peers = [contender for contender in CONTENDERS.values() if not contender.is_ours]
    assert {package for contender in peers for package in contender.packages} <= pinned
    assert all(contender.settings for contender in CONTENDERS.values())
    assert all((PEERS / f"{contender.packages[0]}_timers.py").exists() for contender in peers)
