"""The short form of the kill test: a dozen kills on each store. The long one: `python -m tests.kill.loop --kills 1000`."""

from __future__ import annotations

from pathlib import Path

from tests.kill.loop import Plan, run


def test_workers_killed_at_random_lose_double_and_hide_nothing(database_url: str, tmp_path: Path) -> None:
    outcome = run(Plan(database_url, kills=12, under_way=20, pace_s=0.35, settles_within_s=60), tmp_path)

    assert outcome.faults == []
    assert outcome.kills == 12
    assert outcome.orders > 20, outcome.figures
    assert outcome.looked_at > 100, outcome.figures
