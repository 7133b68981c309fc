"""Finds an hour in which a cron has no ticks though it otherwise ticks at least hourly.

This happens where the clock shows an hour twice, and the cron has ticks only in the first or only in the second of the two hours. The
functions are pure.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from groundstate.rules.cron import Cron

_HOUR = timedelta(hours=1)
_YEAR = timedelta(days=366)


def first_silent_tick(cron: Cron, now: datetime) -> datetime | None:
    """Return the first tick, within a year from `now`, that is left out because the clock shows an hour twice.

    Return None where there is no such tick, or the cron does not tick at least hourly. The tick is a time of the cron's zone.
    """
    if cron.fold == "both":
        return None
    hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    offset = hour.astimezone(cron.tzinfo).utcoffset()
    for number in range(1, _YEAR // _HOUR):
        before, offset = offset, (hour + number * _HOUR).astimezone(cron.tzinfo).utcoffset()
        if before is not None and offset is not None and offset < before:
            found = _first_left_out_tick(cron, hour + number * _HOUR)
            if found is not None:
                return found
    return None


def _first_left_out_tick(cron: Cron, change: datetime) -> datetime | None:
    """Return the first tick that is left out within 3 hours of a change that set the clock back; None where there is none."""
    between = (change - 3 * _HOUR, change + 3 * _HOUR)
    kept = {tick.astimezone(UTC) for tick in cron.ticks_between_latest_first(*between)}
    for tick in reversed(list(replace(cron, fold="both").ticks_between_latest_first(*between))):
        if tick.astimezone(UTC) not in kept and _ticks_hourly_until(cron, tick):
            return tick
    return None


def _ticks_hourly_until(cron: Cron, left_out: datetime) -> bool:
    """Return whether the cron ticks at least hourly before a tick that is left out. The tick's first occurrence, when the clock showed the
    same time an hour earlier, is not the hourly tick before it: a daily cron has that one too.
    """
    at, last = left_out, cron.latest(left_out)
    if last is not None and last.replace(tzinfo=None) == left_out.replace(tzinfo=None):
        at, last = last, cron.latest(last.astimezone(UTC) - timedelta(microseconds=1))
    return last is not None and at.astimezone(UTC) - last.astimezone(UTC) <= _HOUR
