"""Finds where a cron that fires at least hourly is silent for an hour: the clock shows that hour twice, and the cron uses it once. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from groundstate.rules.cron import Cron

_HOUR = timedelta(hours=1)
_YEAR = timedelta(days=366)


def silent_from(cron: Cron, now: datetime) -> datetime | None:
    """Return the first tick within a year from `now` that does not come because the clock shows its hour twice, in the cron's zone; None
    where there is none.
    """
    if cron.fold == "both":
        return None
    hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    offset = hour.astimezone(cron.tzinfo).utcoffset()
    for number in range(1, _YEAR // _HOUR):
        before, offset = offset, (hour + number * _HOUR).astimezone(cron.tzinfo).utcoffset()
        if before is not None and offset is not None and offset < before:
            found = _left_out(cron, hour + number * _HOUR)
            if found is not None:
                return found
    return None


def _left_out(cron: Cron, change: datetime) -> datetime | None:
    """Return the first tick that is left out in the hours around a change that set the clock back; None where there is none."""
    between = (change - 3 * _HOUR, change + 3 * _HOUR)
    kept = {tick.astimezone(UTC) for tick in cron.since(*between)}
    for tick in reversed(list(replace(cron, fold="both").since(*between))):
        last = cron.latest(tick)
        if tick.astimezone(UTC) not in kept and last is not None and tick - last <= _HOUR:
            return tick
    return None
