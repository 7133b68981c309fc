"""Where the clock is set back, a schedule of each hour is silent for an hour; a daily one came that day, as it was meant."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from groundstate.rules.cron import Cron, Fold
from groundstate.rules.cron_silence import first_silent_tick

NOW = datetime(2027, 1, 1, tzinfo=UTC)  # on 2027-10-31 Berlin's clock shows the hour from 2:00 twice
BERLIN = "Europe/Berlin"


@pytest.mark.parametrize("fold", ["first", "second"])
@pytest.mark.parametrize(("expression", "minute"), [("5 * * * *", 5), ("*/15 * * * *", 0), ("0 1-4 * * *", 0), ("59 * 31 10 *", 59)])
def test_a_schedule_of_each_hour_is_silent_where_an_hour_comes_twice(expression: str, minute: int, fold: Fold) -> None:
    silent = first_silent_tick(Cron(expression, BERLIN, fold=fold), NOW)
    assert silent is not None
    assert (silent.date().isoformat(), silent.hour, silent.minute) == ("2027-10-31", 2, minute)


@pytest.mark.parametrize("fold", ["first", "second"])
@pytest.mark.parametrize("expression", ["0 2 * * *", "30 2 * * *", "0 2 * * SUN", "0 2 L * *", "0 2 31 10 *", "0 */2 * * *", "0 5,6 * * *"])
def test_a_schedule_that_comes_more_rarely_is_not_silent(expression: str, fold: Fold) -> None:
    assert first_silent_tick(Cron(expression, BERLIN, fold=fold), NOW) is None


def test_where_both_hours_count_or_the_clock_is_never_set_back_none_is_silent() -> None:
    assert first_silent_tick(Cron("5 * * * *", BERLIN, fold="both"), NOW) is None
    assert first_silent_tick(Cron("5 * * * *", "UTC"), NOW) is None
