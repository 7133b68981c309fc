"""How a leap of the database's clock is told from an answer that was long on its way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from groundstate.engine.rows import clock_jumps
from groundstate.engine.rows.clock_jumps import ClockComparison

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
S = timedelta(seconds=1)


def look(pace: ClockComparison, shown: datetime, asked_s: float, answered_s: float) -> timedelta:
    return clock_jumps.ClockComparison.measure_leap(pace, shown, asked_s, answered_s)


def test_a_clock_that_goes_as_ours_does_leaps_nowhere() -> None:
    pace = ClockComparison()
    assert [look(pace, NOON + n * S, 100.0 + n, 100.001 + n) for n in range(5)] == [timedelta()] * 5


@pytest.mark.parametrize("by", [timedelta(hours=3), timedelta(seconds=-2)])
def test_a_leap_is_told_once_and_then_followed(by: timedelta) -> None:
    pace = ClockComparison()
    look(pace, NOON, 100.0, 100.0)
    assert look(pace, NOON + 10 * S + by, 110.0, 110.0) == by
    assert look(pace, NOON + 11 * S + by, 111.0, 111.0) == by  # until its commit has landed
    pace.note_times_moved()
    assert look(pace, NOON + 12 * S + by, 112.0, 112.0) == timedelta()


def test_a_worker_that_was_stopped_between_asking_and_having_the_answer_sees_no_leap() -> None:
    pace = ClockComparison()
    look(pace, NOON, 100.0, 100.0)
    assert look(pace, NOON + S, 101.0, 161.0) == timedelta()  # the answer waited a minute for it
    assert look(pace, NOON + 62 * S, 162.0, 162.0) == timedelta()


def test_a_first_look_that_took_long_is_replaced_by_a_closer_one() -> None:
    pace = ClockComparison()
    look(pace, NOON, 100.0, 130.0)
    look(pace, NOON + 31 * S, 131.0, 131.0)
    assert look(pace, NOON + 36 * S, 134.0, 134.0) == 2 * S
