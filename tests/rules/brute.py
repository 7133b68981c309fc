"""Cron by brute force: every minute is looked at, and nothing is computed. What `Cron` is held against; shares no code with it.

A field is a set of numbers here, and the clock of a zone is what `zoneinfo` shows at each half minute.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)
MARGIN = timedelta(hours=30)  # a clock change moves no clock further
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAMES = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


@dataclass(frozen=True)
class Fields:
    """A cron expression with what it means. days and weekdays (Monday is 0) both restrict where one is written with a star."""

    text: str
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    both: bool

    def match(self, wall: datetime) -> bool:
        if wall.minute not in self.minutes or wall.hour not in self.hours or wall.month not in self.months:
            return False
        day, weekday = wall.day in self.days, wall.weekday() in self.weekdays
        return (day and weekday) if self.both else (day or weekday)


def drawn(dice: random.Random) -> Fields:
    """An expression at random, of those that fire often enough to be looked at."""
    minute, minutes = _field(dice, 0, 59)
    hour, hours = _field(dice, 0, 23)
    day, days = _field(dice, 1, 31) if dice.random() < 0.3 else ("*", frozenset(range(1, 32)))
    month, months = _month(dice) if dice.random() < 0.2 else ("*", frozenset(range(1, 13)))
    weekday, weekdays = _weekday(dice) if dice.random() < 0.4 else ("*", frozenset(range(7)))
    both = day.startswith("*") or weekday.startswith("*")
    return Fields(f"{minute} {hour} {day} {month} {weekday}", minutes, hours, days, months, weekdays, both)


def _field(dice: random.Random, least: int, most: int) -> tuple[str, frozenset[int]]:
    match dice.randrange(6):
        case 0:
            return "*", frozenset(range(least, most + 1))
        case 1:
            step = dice.choice([2, 5, 7, 10, 15])
            return f"*/{step}", frozenset(range(least, most + 1, step))
        case 2:
            first = dice.randint(least, most)
            last = dice.randint(first, most)
            return f"{first}-{last}", frozenset(range(first, last + 1))
        case 3:
            first = dice.randint(least, most)
            last, step = dice.randint(first, most), dice.randint(2, 9)
            return f"{first}-{last}/{step}", frozenset(range(first, last + 1, step))
        case 4:
            some = sorted(dice.sample(range(least, most + 1), dice.randint(2, 4)))
            return ",".join(map(str, some)), frozenset(some)
        case _:
            one = dice.randint(least, most)
            return str(one), frozenset({one})


def _month(dice: random.Random) -> tuple[str, frozenset[int]]:
    some = sorted(dice.sample(range(12), dice.randint(3, 8)))
    return ",".join(dice.choice([_MONTHS[one], str(one + 1)]) for one in some), frozenset(one + 1 for one in some)


def _weekday(dice: random.Random) -> tuple[str, frozenset[int]]:
    some = sorted(dice.sample(range(7), dice.randint(1, 4)))
    written = [dice.choice([_NAMES[one], str((one + 1) % 7), *(["7"] if one == 6 else [])]) for one in some]
    return ",".join(written), frozenset(some)


# ---- what the clock on the wall shows --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Wall:
    """A minute of a wall clock: the instants at which the zone's clock shows it, and what it is taken for where it shows none."""

    wall: datetime
    shown: tuple[datetime, ...]
    shifted: datetime | None = None

    def ticks(self, gap: str, fold: str) -> tuple[datetime, ...]:
        if not self.shown:
            return (self.shifted,) if gap == "shift" and self.shifted is not None else ()
        return {"first": self.shown[:1], "second": self.shown[-1:], "both": self.shown}[fold]


def walls(zone: ZoneInfo, start: datetime, end: datetime) -> list[Wall]:
    """Every minute of the wall clock that the zone shows, or skips, around [start, end)."""
    shown: dict[datetime, list[datetime]] = {}
    skipped: dict[datetime, datetime] = {}
    before: tuple[datetime, timedelta] | None = None
    for moment, wall in _shown(zone, start - MARGIN, end + MARGIN):
        offset = wall - moment.replace(tzinfo=None)
        shown.setdefault(wall, []).append(moment)
        if before is not None:
            missing = before[0] + MINUTE
            while missing < wall:
                skipped.setdefault(missing, (missing - before[1]).replace(tzinfo=UTC))
                missing += MINUTE
        before = (wall, offset)
    made = [Wall(wall, tuple(moments)) for wall, moments in shown.items()]
    made += [Wall(wall, (), moment) for wall, moment in skipped.items() if wall not in shown]
    return made


def _shown(zone: ZoneInfo, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The moments at which the clock shows a whole minute, looked for at each half minute: some offsets have half minutes in them."""
    moment = max(start, EPOCH - MARGIN).replace(second=0, microsecond=0)
    halves = timedelta(seconds=30)
    while moment < end:
        wall = moment.astimezone(zone).replace(tzinfo=None, fold=0)
        if wall.second == 0:
            yield moment, wall
            moment += MINUTE if (moment + MINUTE).astimezone(zone).second == 0 else halves
        else:
            moment += halves


def ticks(some: Iterable[Wall], fields: Fields, gap: str, fold: str, start: datetime, end: datetime) -> list[datetime]:
    """The instants in [start, end), by these walls."""
    found = {tick for one in some if fields.match(one.wall) for tick in one.ticks(gap, fold)}
    return sorted(tick for tick in found if start <= tick < end)


def changes(zone: ZoneInfo, start: datetime, end: datetime) -> list[datetime]:
    """The hours in which the zone's offset changes; of those within one day, one."""
    found, moment, before = [], start, start.astimezone(zone).utcoffset()
    while moment < end:
        day, moment = moment, moment + timedelta(days=1)
        offset = moment.astimezone(zone).utcoffset()
        if offset != before:
            hours = (day + timedelta(hours=number) for number in range(1, 25))
            found.append(next(hour for hour in hours if hour.astimezone(zone).utcoffset() != before))
            before = offset
    return found
