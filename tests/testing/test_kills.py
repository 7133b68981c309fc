"""A death in process leaves what a SIGKILL leaves: the same schedules, once each way, and the databases compared row by row."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.docs.blocks import ROOT
from tests.patience import LONG_RUN_S


def compared(*arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.testing.killed", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONG_RUN_S, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def assert_alike(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["killed"], f"the child was not killed {one['crossing']}"
        assert one["here"] == one["there"], f"killed {one['crossing']}"


def states(found: list[dict[str, Any]]) -> set[str]:
    """What the deaths left, as text: that they were at places which differ."""
    return {json.dumps(one["here"]) for one in found}


def test_at_the_crossings_of_a_shop_on_sqlite_a_death_in_process_leaves_what_a_sigkill_leaves() -> None:
    found = compared("4")
    assert len(found) > 25
    assert_alike(found)
    assert len(states(found)) > 5


def test_and_so_it_does_on_postgresql(postgres_url: str) -> None:
    found = compared("9", postgres_url)
    assert len(found) > 10
    assert_alike(found)
    assert len(states(found)) > 3
