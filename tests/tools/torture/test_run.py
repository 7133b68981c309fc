"""The torture run itself, in its short form on each store; and with faults planted into its workers, which its verdict must name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tools.torture.plan import trouble_intervals

from tests.patience import LONG_RUN_S

ROOT = Path(__file__).parents[3]


def torture(folder: Path, *arguments: str, planted: str = "") -> tuple[int, dict[str, Any], str]:
    """The command, in a process of its own, since it may mount a disk of its own; its exit status, its report, and what it said."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "tools.torture", *arguments, "--report", str(report), "--seed", "7"]
    environment = os.environ | {"TORTURE_PLANTED": planted, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONG_RUN_S, check=False)
    said = done.stdout + done.stderr
    assert report.exists(), said
    return done.returncode, json.loads(report.read_text())["torture"][0], said


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_nothing_is_lost_doubled_or_unlisted_whatever_is_done_to_the_workers_and_the_database(store: str, tmp_path: Path) -> None:
    status, report, said = torture(tmp_path, "--store", store, "--kills", "8", "--workers", "3", "--orders", "24")
    assert not report["faults"], "\n".join(report["faults"])
    assert status == 0, said
    assert report["kills"] >= 8
    assert report["looked at"]["Listed"] > 50
    assert report["orders"]["placed"] >= 24
    assert all(row["effects"] > 0 for row in report["calls"].values()), report["calls"]
    possible = {name for name in trouble_intervals(store) if name != "fill the disk" or report["disk made full by"] != "not possible here"}
    assert possible <= report["troubles"].keys()
    assert report["looked at"]["OtherRounds"] > 10
    assert report["troubles"]["trusted after a copy was put back"] == 1
    if store == "postgres":
        assert report["looked at"]["NoSecondCall"] > 0


def test_a_worker_that_forgets_what_a_dead_one_had_begun_is_found_out(tmp_path: Path) -> None:
    arguments = ("--store", "sqlite", "--kills", "8", "--workers", "3", "--orders", "24", "--only", "drain")
    status, report, _ = torture(tmp_path, *arguments, planted="tests.tools.torture.planted_forgetting")
    assert status == 1
    named = {fault.split(":")[0] for fault in report["faults"]}
    assert named & {"Listed", "AtMostOnce"}, named  # which of them is seen first depends on when the judge looks


def test_a_key_for_each_call_is_found_out(tmp_path: Path) -> None:
    arguments = ("--store", "sqlite", "--kills", "8", "--workers", "3", "--orders", "24", "--only", "drain")
    status, report, _ = torture(tmp_path, *arguments, planted="tests.tools.torture.planted_keys")
    assert status == 1
    assert "OncePerKey" in {fault.split(":")[0] for fault in report["faults"]}
