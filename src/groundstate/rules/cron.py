"""Computes when a cron expression comes: five fields on the wall clock of a zone, which describe a set of instants. Pure: the time is an
argument, and nothing here waits.

The library cronsim reads the fields and iterates over their wall times without a zone. What becomes of wall times that do not exist or come
twice is decided here, since no library offers these choices (docs/time.md). All comparing is done in UTC, because Python compares two times
of one zone by what its clock shows.
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
_AROUND = timedelta(hours=40)  # hours around a day: a zone is at most 15 hours from UTC, and no change moves its clock by more than 24
_DAY = timedelta(days=1)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_ANY_DAY = datetime(2000, 1, 1)  # noqa: DTZ001  # a time on a wall clock has no zone


@dataclass(frozen=True)
class Cron:
    """A Cron describes points in time that come again in a time zone, as `Cron("0 7 * * MON", "Europe/Berlin")` does.

    Two wall times that fall on one instant are one tick. Ticks are returned as times of the zone. Python never treats two times of
    different zones as equal where one lies in an hour that comes twice: compare `tick.astimezone(UTC)`, and store ticks in `UtcDateTime`
    columns.

    Args:
        expression: minute, hour, day of month, month, day of week; names (JAN, MON), ranges, lists, steps of a star or a range, `L`, `LW`,
            `5L`, `MON#2`, or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`. Where one of the two day fields begins with a star both
            must match, else one of them, as in Debian's cron.
        zone: a name of the IANA time zone database.
        gap: what becomes of a wall time that the clock skips. "shift" takes it with the offset before the change, as RFC 5545 3.3.5
            specifies, so that 02:30 comes at 03:30, which is when it would have come without the change; with "skip" it does not come.
        fold: which tick is meant where the clock shows a wall time twice: "first", "second" or "both".

    Raises:
        DeclarationError: the expression is invalid or never comes, or there is no such zone; the message names the cure.
    """

    expression: str
    zone: str = "UTC"
    gap: Gap = "shift"
    fold: Fold = "first"

    def __post_init__(self) -> None:
        object.__setattr__(self, "expression", _checked(self.expression))
        _check_choice("gap", self.gap, _GAPS)
        _check_choice("fold", self.fold, _FOLDS)
        if not isinstance(self.zone, str):
            raise DeclarationError(f"zone={self.zone!r}: give a name of the IANA database, as 'Europe/Berlin'")
        _zone(self.zone)

    def __str__(self) -> str:
        return f"{self.expression} in {self.zone}"

    @property
    def tzinfo(self) -> tzinfo:
        """Return the time zone as a tzinfo object."""
        return _zone(self.zone)

    def next(self, after: datetime) -> datetime:
        """Return the first tick that is later than `after`, in the zone. A naive `after` means UTC.

        Raises:
            OverflowError: the tick would come after the year 9999.
        """
        found = self._nearest(_utc(after), forwards=True)
        if found is None:
            raise OverflowError(f"{self} has no tick after {after} before the calendar ends")
        return found.astimezone(self.tzinfo)

    def latest(self, until: datetime) -> datetime | None:
        """Return the last tick at or before `until`, in the zone; None where there is none since the year 1. A naive `until` means UTC."""
        found = self._nearest(_utc(until), forwards=False)
        return None if found is None else found.astimezone(self.tzinfo)

    def backwards(self, until: datetime) -> Iterator[datetime]:
        """Yield the ticks at or before `until`, latest first, in the zone. A naive `until` means UTC."""
        at = _utc(until)
        while (found := self._nearest(at, forwards=False)) is not None:
            yield found.astimezone(self.tzinfo)
            if found == _FIRST:
                return
            at = found - _INSTANT

    def following(self, mark: datetime) -> datetime:
        """Return the first tick later than `mark`: it is `next` under the name that a schedule calls."""
        return self.next(mark)

    def since(self, mark: datetime, now: datetime) -> Iterator[datetime]:
        """Return an iterator over the ticks later than `mark` and not later than `now`, latest first."""
        return takewhile(lambda tick: tick > mark, self.backwards(now))

    # ---- from wall times to instants -----------------------------------------------------------------------------------------------
    def _nearest(self, at: datetime, *, forwards: bool) -> datetime | None:
        """Return the tick nearest to `at` on one side: later than `at` if `forwards`, else not later.

        Wall times are walked in their order. Instants come in the same order except around a change of the clock, where shifted ones lie
        among others. So the walk goes on until no further wall time can give a nearer instant.
        """
        best: datetime | None = None
        try:
            lowest, highest = _offsets(self.zone, at.date())
            start = _moved(at, lowest if forwards else highest).replace(tzinfo=None)
            for wall in _walls(self.expression, start, forwards=forwards):
                low, high = _offsets(self.zone, wall.date())
                if best is not None and _is_nearer(best, _at(wall, high if forwards else low), forwards=forwards):
                    return best
                for tick in self._ticks(wall):
                    beside = tick > at if forwards else tick <= at
                    if beside and (best is None or _is_nearer(tick, best, forwards=forwards)):
                        best = tick
                if best is not None and low == high:
                    return best
        except (OverflowError, ValueError):  # the library has passed an end of the calendar
            pass
        return best

    def _ticks(self, wall: datetime) -> Iterator[datetime]:
        """Yield the instants that a wall time stands for, by the policies `gap` and `fold`."""
        zone = self.tzinfo
        try:
            first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        except OverflowError:  # a wall time on the first or last day of the calendar may lie outside of it in UTC
            return
        if first == second:
            yield first
        elif first > second:  # the clock skips this wall time; fold 0 is read with the offset before the change
            if self.gap == "shift":
                yield first
        else:
            if self.fold != "second":
                yield first
            if self.fold != "first":
                yield second


def _is_nearer(one: datetime, other: datetime, *, forwards: bool) -> bool:
    return one < other if forwards else one > other


def _at(wall: datetime, offset: timedelta) -> datetime:
    return _moved(wall.replace(tzinfo=UTC), -offset)


def _utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    return _moved(moment.replace(tzinfo=UTC), -(moment.utcoffset() or timedelta()))


def _moved(moment: datetime, by: timedelta) -> datetime:
    """Return `moment` moved by `by`, or the end of the calendar on that side where the result lies beyond it."""
    try:
        return moment + by
    except OverflowError:
        return _FIRST if by < timedelta() else _LAST


def _walls(expression: str, start: datetime, *, forwards: bool) -> Iterator[datetime]:
    """Return an iterator over the wall times of the expression after `start`, or over those not after it, latest first. It raises
    OverflowError or ValueError at an end of the calendar.

    Where `start` is the first moment of the calendar, a wall time at that moment is included: no earlier start could reach it.
    """
    from cronsim import CronSim

    if not forwards:  # the library treats a fraction of a second as later than that second
        return CronSim(expression, start if start.microsecond else start + _INSTANT, reverse=True)
    if start == _FIRST.replace(tzinfo=None):
        return _with_the_first(expression, start)
    return CronSim(expression, start)


def _with_the_first(expression: str, start: datetime) -> Iterator[datetime]:
    from cronsim import CronSim

    with suppress(OverflowError, ValueError):
        yield next(CronSim(expression, start + _INSTANT, reverse=True))
    yield from CronSim(expression, start)


@lru_cache(maxsize=4096)
def _offsets(zone: str, day: date) -> tuple[timedelta, timedelta]:
    """Return the lowest and the highest offset from UTC that the zone has around this day. Probing each hour is enough: changes are further
    apart.
    """
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    hours = range(-(_AROUND // _HOUR), (_AROUND + _DAY) // _HOUR + 1)
    found = {offset for number in hours if (offset := _offset(midnight, number, zone)) is not None}
    return min(found), max(found)


def _offset(midnight: datetime, hours: int, zone: str) -> timedelta | None:
    """Return the zone's offset from UTC so many hours after `midnight`; None where that is outside the calendar, in UTC or in the zone."""
    try:
        return (midnight + hours * _HOUR).astimezone(_zone(zone)).utcoffset() or timedelta()
    except OverflowError:
        return None


# ---- checks of an expression and a zone --------------------------------------------------------------------------------------------
@lru_cache(maxsize=512)
def _zone(name: str) -> tzinfo:
    """Return the zone of this name, or raise DeclarationError that suggests zones with similar names."""
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise DeclarationError(f"there is no time zone {name!r}{_near(name)}") from None


def _near(name: str) -> str:
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


def _checked(expression: Any) -> str:
    """Return the expression in its canonical form, or raise DeclarationError."""
    if not isinstance(expression, str):
        raise DeclarationError(f"cron {expression!r}: give its five fields as text, as '0 7 * * MON'")
    return _read(expression)


@lru_cache(maxsize=1024)
def _read(expression: str) -> str:
    written = expression.upper().split()
    if len(written) == 1 and written[0].startswith("@"):
        return _of_alias(expression)
    if len(written) != 5:
        cure = "; for less than a minute give a timedelta" if len(written) == 6 else ""
        raise DeclarationError(
            f"cron {expression!r} has {len(written)} fields, and it has to have 5: {', '.join(_FIELDS)}, as in '0 7 * * MON'{cure}"
        )
    for number, field in enumerate(written):
        _check_field(f"cron {expression!r}: field {number + 1}, {_FIELDS[number]}, is {field!r}", number, field)
    joined = " ".join(_OF_ONE.sub(partial(_one, number), field) for number, field in enumerate(written))
    if not _comes(joined):
        raise DeclarationError(
            f"cron {expression!r} never comes: no day has {written[2]} as day of month and {written[3]} as month"
            f"{'' if written[4] == '*' else f' and {written[4]} as day of week'}; L is the last day of a month"
        )
    return joined


def _of_alias(expression: str) -> str:
    try:
        return _ALIASES[expression.strip().lower()]
    except KeyError:
        known = ", ".join(_ALIASES)
        raise DeclarationError(f"cron {expression!r}: there are {known}, and else five fields, as '0 7 * * MON'") from None


_OF_ONE = re.compile(r"(?<![^,])(\w+)-(\w+)/\d+(?![^,])")  # a range with a step
_FROM = re.compile(r"(?<![^,])(\w+)/(\d+)(?![^,])")  # a step after one value
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_ENDS = (59, 23, 31, 12, 7)
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


def _one(number: int, found: re.Match[str]) -> str:
    """Replace a range of one value by that value, whatever its step: the library would let it go on to the field's end."""
    first, last = found.group(1), found.group(2)
    return first if _number(number, first) == _number(number, last) else found.group()


def _number(number: int, written: str) -> int | None:
    """Return the number that a number or a name stands for in this field; None for anything else."""
    if number == 3 and written in _MONTHS:
        return _MONTHS.index(written) + 1
    if number == 4 and written in _DAYS:
        return _DAYS.index(written)
    return int(written) if written.isascii() and written.isdigit() else None


def _check_step(where: str, number: int, start: str, step: str) -> None:
    """Refuse a step after one value: Quartz and most libraries count on to the field's end, but Vixie's and Debian's cron do not."""
    if start in ("L", "LW"):
        raise DeclarationError(f"{where}, and {start} is one day, from which no step goes on: leave /{step} out")
    first = _number(number, start)
    if first is not None and first <= _ENDS[number]:
        range_ = f"{start}-{_ENDS[number]}/{step}"
        raise DeclarationError(
            f"{where}, and {start}/{step} is {range_} in some crons and {start} alone in others, such as Debian's: write which is meant"
        )


def _check_field(where: str, number: int, field: str) -> None:
    for start, step in _FROM.findall(field):
        _check_step(where, number, start, step)
    for step in re.findall(r"/(\d+)", field):
        if int(step[:9]) > _SIZES[number]:
            raise DeclarationError(f"{where}, and a step goes on within the field: for each {step} of something give a timedelta")
    others = ["*"] * 5
    others[number] = field
    if not _comes(" ".join(others)):
        raise DeclarationError(f"{where}: {_MAY_BE[number]}")


def _comes(expression: str) -> bool:
    """Return whether the expression is valid and has a tick at all: the library searches fifty years, and 29 February is a Monday within
    forty.
    """
    from cronsim import CronSimError

    try:
        return next(_walls(expression, _ANY_DAY, forwards=True), None) is not None
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
