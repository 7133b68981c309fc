"""What is to be done of a schedule's ticks, by its policy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundstate import Cron
from groundstate.rules.schedule import COUNTED_MOST, ON_TIME, Period, ScheduleSpec, Timing, decide_ticks
from groundstate.rules.specs import Function

MARK = datetime(2026, 11, 2, 6, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TIMINGS: list[Timing] = [
    Period(MINUTE),
    Period(timedelta(hours=5)),
    Cron("*/7 * * * *", "Europe/Berlin"),
    Cron("0 7 * * MON", "Asia/Tokyo"),
]


def spec(missed: Any, timing: Timing, most: int = 100) -> ScheduleSpec:
    return ScheduleSpec("shop", "report", timing, Function(lambda: None), missed=missed, max_missed=most)


@given(st.sampled_from(TIMINGS), st.sampled_from(["none", "latest", "all"]), st.integers(1, 5), st.integers(-60, 3000))
def test_each_tick_since_the_mark_is_carried_out_or_left_out(timing: Timing, missed: str, most: int, minutes: int) -> None:
    now = MARK + minutes * MINUTE
    ticks = []
    tick = timing.first_tick_after(MARK)
    while tick <= now:
        ticks.append(tick)
        tick = timing.first_tick_after(tick)
    decision = decide_ticks(spec(missed, timing, most), MARK, now)
    run = list(decision.run)
    wanted = ticks[-most:] if missed == "all" else ticks[-1:]
    assert run == ([] if missed == "none" and wanted and now - wanted[0] > ON_TIME else wanted)
    left_out = [tick for tick in ticks if tick not in run]
    if not left_out:
        assert decision.left_out is None
    else:
        told = decision.left_out
        assert told is not None
        assert (told.count, told.first, told.last, told.at_least) == (len(left_out), left_out[0], left_out[-1], False)
    assert decision.mark == (ticks[-1] if ticks and not run else None)


@pytest.mark.parametrize("timing", [Period(timedelta(seconds=1)), Cron("* * * * *", "America/Sao_Paulo")])
def test_of_very_many_ticks_the_latest_is_found_without_going_through_them(timing: Timing) -> None:
    decision = decide_ticks(spec("latest", timing), MARK, MARK + timedelta(days=3000))
    assert decision.run == (MARK + timedelta(days=3000),)
    assert decision.left_out is not None
    assert (decision.left_out.count, decision.left_out.at_least) == (COUNTED_MOST, True)
    assert decision.left_out.as_text.startswith("at least 10,000 ticks are left out, from ")


def test_a_mark_in_the_future_leaves_nothing_to_do() -> None:
    for timing in TIMINGS:
        assert decide_ticks(spec("all", timing), MARK, MARK - timedelta(days=9)) == decide_ticks(spec("all", timing), MARK, MARK)


def test_one_tick_that_is_left_out_is_told_in_its_zone() -> None:
    decision = decide_ticks(spec("none", Cron("0 7 * * MON", "Europe/Berlin")), MARK, MARK + timedelta(days=8))
    assert decision.left_out is not None
    assert decision.left_out.as_text == "1 tick is left out, of 2026-11-09 07:00+01:00"
