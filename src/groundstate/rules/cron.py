"""Computes the ticks (instants) of a cron expression, whose five fields describe times on the wall clock of a time zone.

The library cronsim parses the fields and iterates over their wall times without a zone. When the clock is changed, it may skip a wall time
or show it twice. This module decides at which instants such a wall time is a tick, since no library lets its user choose these instants
(docs/time.md). All comparisons are done in UTC, because Python compares two times of one zone by their wall times. The functions are pure.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache, partial
from itertools import islice, takewhile
from typing import Any, Literal

from groundstate.values.errors import DeclarationError

Gap = Literal["shift", "skip"]
Fold = Literal["first", "second", "both"]

_GAPS: tuple[Gap, ...] = ("shift", "skip")
_FOLDS: tuple[Fold, ...] = ("first", "second", "both")
_FIELDS = ("minute", "hour", "day of month", "month", "day of week")
_SIZES = (60, 24, 31, 12, 7)
_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_INSTANT = timedelta(microseconds=1)
_HOUR = timedelta(hours=1)
# Span before and after a day in which the offset from UTC is looked up. The offset of a zone is at most 15 hours, and a change of the clock
# moves it by at most 24 hours.
_AROUND = timedelta(hours=40)
_DAY = timedelta(days=1)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_ANY_DAY = datetime(2000, 1, 1)  # noqa: DTZ001  # without a zone, since it is a time on a wall clock


@dataclass(frozen=True)
class Cron:
    """A Cron describes recurring points in time, its ticks, in a time zone: `Cron("0 7 * * MON", "Europe/Berlin")`.

    Two wall times that fall on one instant are one tick. Ticks are returned as times of the zone. Compare ticks by `tick.astimezone(UTC)`,
    and store them in `UtcDateTime` columns: if the clock shows an hour twice, Python never treats a time in that hour as equal to a time of
    another zone.

    Args:
        expression: the five fields minute, hour, day of month, month and day of week, with names (JAN, MON), ranges, lists, steps of a
            star or a range, `L`, `LW`, `5L` and `MON#2`; or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`. A day must match both
            day fields if either begins with a star, and otherwise at least one of the two, as in Debian's cron.
        zone: a name of the IANA time zone database.
        gap: what becomes of a wall time that the clock skips. With "shift" the tick comes when it would have come without the change of
            the clock, as RFC 5545 3.3.5 specifies, so that 02:30 comes at 03:30; with "skip" there is no tick.
        fold: which instant is a tick if the clock shows a wall time twice: "first", "second" or "both".

    Raises:
        DeclarationError: the expression is invalid or never comes, or there is no such zone; the message names the cure.
    """

    expression: str
    zone: str = "UTC"
    gap: Gap = "shift"
    fold: Fold = "first"

    def __post_init__(self) -> None:
        object.__setattr__(self, "expression", _canonical_expression(self.expression))
        _check_choice("gap", self.gap, _GAPS)
        _check_choice("fold", self.fold, _FOLDS)
        if not isinstance(self.zone, str):
            raise DeclarationError(f"zone={self.zone!r}: give a name of the IANA database, as 'Europe/Berlin'")
        _load_zone(self.zone)

    def __str__(self) -> str:
        return f"{self.expression} in {self.zone}"

    @property
    def tzinfo(self) -> tzinfo:
        """Return the Cron's time zone as a tzinfo object."""
        return _load_zone(self.zone)

    def next(self, after: datetime) -> datetime:
        """Return the first tick later than `after`, as a time of the Cron's zone. If `after` has no zone, it is taken as UTC.

        Raises:
            OverflowError: the tick would come after the year 9999.
        """
        found = self._nearest_tick(_as_utc(after), forwards=True)
        if found is None:
            raise OverflowError(f"{self} has no tick after {after} before the calendar ends")
        return found.astimezone(self.tzinfo)

    def latest(self, until: datetime) -> datetime | None:
        """Return the last tick at or before `until`, as a time of the Cron's zone; None if there is none since the year 1.

        If `until` has no zone, it is taken as UTC.
        """
        found = self._nearest_tick(_as_utc(until), forwards=False)
        return None if found is None else found.astimezone(self.tzinfo)

    def ticks_backwards(self, until: datetime) -> Iterator[datetime]:
        """Yield the ticks at or before `until`, latest first, as times of the Cron's zone. If `until` has no zone, it is taken as UTC."""
        at = _as_utc(until)
        while (found := self._nearest_tick(at, forwards=False)) is not None:
            yield found.astimezone(self.tzinfo)
            if found == _FIRST:
                return
            at = found - _INSTANT

    def first_tick_after(self, mark: datetime) -> datetime:
        """Return the first tick later than the time `mark`, as `next` does. Schedules call this method, and a Period has it too."""
        return self.next(mark)

    def ticks_between_latest_first(self, mark: datetime, now: datetime) -> Iterator[datetime]:
        """Return an iterator over the ticks later than the time `mark` and not later than `now`, latest first."""
        return takewhile(lambda tick: tick > mark, self.ticks_backwards(now))

    # ---- from wall times to instants -----------------------------------------------------------------------------------------------
    def _nearest_tick(self, at: datetime, *, forwards: bool) -> datetime | None:
        """Return the first tick later than `at` if `forwards`, else the last tick not later than `at`; None where there is none.

        The loop goes through the wall times in their order. Their instants have the same order, except around a change of the clock. So the
        loop goes on until no further wall time can give a nearer instant.
        """
        best: datetime | None = None
        try:
            lowest, highest = _offset_range_around(self.zone, at.date())
            start = _add_within_calendar(at, lowest if forwards else highest).replace(tzinfo=None)
            for wall in _wall_times(self.expression, start, forwards=forwards):
                low, high = _offset_range_around(self.zone, wall.date())
                if best is not None and _is_nearer(best, _instant_at_offset(wall, high if forwards else low), forwards=forwards):
                    return best
                for tick in self._instants_of_wall_time(wall):
                    beside = tick > at if forwards else tick <= at
                    if beside and (best is None or _is_nearer(tick, best, forwards=forwards)):
                        best = tick
                if best is not None and low == high:
                    return best
        except (OverflowError, ValueError):  # the loop reached the first or the last day of the calendar
            pass
        return best

    def _instants_of_wall_time(self, wall: datetime) -> Iterator[datetime]:
        """Yield the instants (0 to 2, in UTC) at which a tick with this wall time comes, by the choices `gap` and `fold`."""
        zone = self.tzinfo
        try:
            first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        except OverflowError:  # a wall time on the first or last day of the calendar may be beyond the calendar in UTC
            return
        if first == second:
            yield first
        elif first > second:  # the clock skips this wall time; `first` is computed with the offset before the change
            if self.gap == "shift":
                yield first
        else:
            if self.fold != "second":
                yield first
            if self.fold != "first":
                yield second


def _is_nearer(one: datetime, other: datetime, *, forwards: bool) -> bool:
    return one < other if forwards else one > other


def _instant_at_offset(wall: datetime, offset: timedelta) -> datetime:
    return _add_within_calendar(wall.replace(tzinfo=UTC), -offset)


def _as_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    return _add_within_calendar(moment.replace(tzinfo=UTC), -(moment.utcoffset() or timedelta()))


def _add_within_calendar(moment: datetime, by: timedelta) -> datetime:
    """Return `moment` plus `by`; if the result is beyond the calendar, return the calendar's first or last moment instead."""
    try:
        return moment + by
    except OverflowError:
        return _FIRST if by < timedelta() else _LAST


def _wall_times(expression: str, start: datetime, *, forwards: bool) -> Iterator[datetime]:
    """Return an iterator over wall times of the expression.

    If `forwards`, it yields the wall times later than `start`, earliest first. Otherwise it yields the wall times not later than `start`,
    latest first.

    The iterator raises OverflowError or ValueError at an end of the calendar. If `start` is the first moment of the calendar, a wall time
    at that moment is included even if `forwards`, since there is no earlier start.
    """
    from cronsim import CronSim

    if not forwards:  # going backwards, cronsim includes the second of `start` only if `start` has a fraction of a second
        return CronSim(expression, start if start.microsecond else start + _INSTANT, reverse=True)
    if start == _FIRST.replace(tzinfo=None):
        return _wall_times_from_calendar_start(expression, start)
    return CronSim(expression, start)


def _wall_times_from_calendar_start(expression: str, start: datetime) -> Iterator[datetime]:
    from cronsim import CronSim

    with suppress(OverflowError, ValueError):
        yield next(CronSim(expression, start + _INSTANT, reverse=True))
    yield from CronSim(expression, start)


@lru_cache(maxsize=4096)
def _offset_range_around(zone: str, day: date) -> tuple[timedelta, timedelta]:
    """Return a pair (lowest offset from UTC, highest offset) of the zone around this day.

    It asks for the offset at each full hour, since no zone changes its clock twice within one hour.
    """
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    hours = range(-(_AROUND // _HOUR), (_AROUND + _DAY) // _HOUR + 1)
    found = {offset for number in hours if (offset := _offset_at(midnight, number, zone)) is not None}
    return min(found), max(found)


def _offset_at(midnight: datetime, hours: int, zone: str) -> timedelta | None:
    """Return the zone's offset from UTC at `midnight` plus `hours`; None if that time is outside the calendar, in UTC or in the zone."""
    try:
        return (midnight + hours * _HOUR).astimezone(_load_zone(zone)).utcoffset() or timedelta()
    except OverflowError:
        return None


# ---- checks of an expression and a zone --------------------------------------------------------------------------------------------
@lru_cache(maxsize=512)
def _load_zone(name: str) -> tzinfo:
    """Return the zone of this name. If there is none, raise a DeclarationError that suggests zones with similar names."""
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise DeclarationError(f"there is no time zone {name!r}{_suggest_zones(name)}") from None


def _suggest_zones(name: str) -> str:
    from zoneinfo import available_timezones

    zones = {zone.casefold(): zone for zone in available_timezones()}
    if not zones:
        return ": this Python finds no time zones at all; install the package tzdata"
    wanted = name.casefold().replace(" ", "_")
    by_city = [zone for key, zone in zones.items() if key.rpartition("/")[2] == wanted.rpartition("/")[2]]
    near = [*sorted(by_city), *(zones[key] for key in difflib.get_close_matches(wanted, zones, n=3, cutoff=0.6))]
    meant = " or ".join(islice(dict.fromkeys(near), 3))
    return f": did you mean {meant}?" if meant else ": give a name of the IANA database, as 'Europe/Berlin'"


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise DeclarationError(f"{name}={value!r}: choose {' or '.join(map(repr, choices))}")


def _canonical_expression(expression: Any) -> str:
    """Return the cron expression as five fields in capital letters, without an alias; raise DeclarationError if it is invalid."""
    if not isinstance(expression, str):
        raise DeclarationError(f"cron {expression!r}: give its five fields as text, as '0 7 * * MON'")
    return _parse_expression(expression)


@lru_cache(maxsize=1024)
def _parse_expression(expression: str) -> str:
    written = expression.upper().split()
    if len(written) == 1 and written[0].startswith("@"):
        return _expand_alias(expression)
    if len(written) != 5:
        cure = "; for less than a minute give a timedelta" if len(written) == 6 else ""
        raise DeclarationError(
            f"cron {expression!r} has {len(written)} fields, and it has to have 5: {', '.join(_FIELDS)}, as in '0 7 * * MON'{cure}"
        )
    for number, field in enumerate(written):
        _check_field(f"cron {expression!r}: field {number + 1}, {_FIELDS[number]}, is {field!r}", number, field)
    joined = " ".join(_OF_ONE.sub(partial(_replace_range_of_one_value, number), field) for number, field in enumerate(written))
    if not _has_a_tick(joined):
        raise DeclarationError(
            f"cron {expression!r} never comes: no day has {written[2]} as day of month and {written[3]} as month"
            f"{'' if written[4] == '*' else f' and {written[4]} as day of week'}; L is the last day of a month"
        )
    return joined


def _expand_alias(expression: str) -> str:
    try:
        return _ALIASES[expression.strip().lower()]
    except KeyError:
        known = ", ".join(_ALIASES)
        raise DeclarationError(f"cron {expression!r}: there are {known}, and else five fields, as '0 7 * * MON'") from None


_OF_ONE = re.compile(r"(?<![^,])(\w+)-(\w+)/\d+(?![^,])")  # matches a range with a step, such as 5-9/2
_FROM = re.compile(r"(?<![^,])(\w+)/(\d+)(?![^,])")  # matches one value with a step, such as 5/2
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_ENDS = (59, 23, 31, 12, 7)
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


def _replace_range_of_one_value(number: int, found: re.Match[str]) -> str:
    """Return the text of a range with a step, or only its value if the range has one value, as in 5-5/2.

    The library cronsim would extend a range of one value to the end of the field.
    """
    first, last = found.group(1), found.group(2)
    return first if _field_value(number, first) == _field_value(number, last) else found.group()


def _field_value(number: int, written: str) -> int | None:
    """Return the number that this text means in the field; None if the text is neither a number nor a name such as MON."""
    if number == 3 and written in _MONTHS:
        return _MONTHS.index(written) + 1
    if number == 4 and written in _DAYS:
        return _DAYS.index(written)
    return int(written) if written.isascii() and written.isdigit() else None


def _refuse_step_after_one_value(where: str, number: int, start: str, step: str) -> None:
    """Raise DeclarationError for one value with a step, such as 5/2, since cron programs disagree about its meaning.

    Quartz and most libraries repeat the step until the end of the field, but Vixie's and Debian's cron do not.
    """
    if start in ("L", "LW"):
        raise DeclarationError(f"{where}, and {start} is a single day, which takes no step: leave /{step} out")
    first = _field_value(number, start)
    if first is not None and first <= _ENDS[number]:
        range_ = f"{start}-{_ENDS[number]}/{step}"
        raise DeclarationError(
            f"{where}, and {start}/{step} is {range_} in some crons and {start} alone in others, such as Debian's: write which is meant"
        )


def _check_field(where: str, number: int, field: str) -> None:
    for start, step in _FROM.findall(field):
        _refuse_step_after_one_value(where, number, start, step)
    for step in re.findall(r"/(\d+)", field):
        if int(step[:9]) > _SIZES[number]:
            raise DeclarationError(f"{where}, and a step goes on within the field: for each {step} of something give a timedelta")
    others = ["*"] * 5
    others[number] = field
    if not _has_a_tick(" ".join(others)):
        raise DeclarationError(f"{where}: {_MAY_BE[number]}")


def _has_a_tick(expression: str) -> bool:
    """Return whether the expression is valid and has any tick. The library cronsim searches fifty years, which is enough: the rarest day,
    29 February on a given weekday, comes at least every forty years.
    """
    from cronsim import CronSimError

    try:
        return next(_wall_times(expression, _ANY_DAY, forwards=True), None) is not None
    except (CronSimError, AssertionError, ValueError):
        return False


_STEPS = "with ranges (1-5), lists (1,3), steps (*/2) and *"
_MAY_BE = (
    f"give 0 to 59, {_STEPS}",
    f"give 0 to 23, {_STEPS}",
    f"give 1 to 31, L for the last day or LW for the last working day, {_STEPS}",
    f"give 1 to 12 or JAN to DEC, {_STEPS}",
    f"give 0 to 7 or SUN to SAT, as MON-FRI (a range begins before it ends: SUN is 0 and 7), MON#2, 5L, {_STEPS}",
)
