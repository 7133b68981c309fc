"""Holds `Cron` against brute force, over stretches of time. The suite takes a sample; as a program this takes as much as there is.

python -m tests.rules.cron_check changes [ZONE ...]    each clock change from 1970 to 2050 in each zone, by every policy
python -m tests.rules.cron_check minutes [ZONE ...]    each minute from 1970 to 2050 in each zone, a policy at a time
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise, takewhile
from zoneinfo import ZoneInfo, available_timezones

from groundstate import Cron
from tests.rules import brute
from tests.rules.brute import Fields, Wall

FIRST, LAST = datetime(1970, 1, 3, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)
POLICIES = [(gap, fold) for gap in ("shift", "skip") for fold in ("first", "second", "both")]
CHAINED_MOST = 1500  # ticks of a stretch that are gone through one by one; of more some are drawn
HARD = (
    "Africa/Casablanca", "Africa/Monrovia", "America/Santiago", "America/Sao_Paulo", "Antarctica/Troll", "Asia/Kathmandu",
    "Atlantic/Azores", "Australia/Lord_Howe", "Europe/Berlin", "Pacific/Apia", "Pacific/Chatham", "Pacific/Enderbury",
    "Pacific/Kiritimati", "Pacific/Kwajalein",
)  # fmt: skip


def stretch(
    name: str, start: datetime, end: datetime, dice: random.Random, policies: Sequence[tuple[str, str]], *, a_day: int = 1440
) -> int:
    """An expression at random, of at most so many ticks a day, over [start, end) by each of these policies; returns how many ticks."""
    some = brute.walls(ZoneInfo(name), start, end)
    fields = next(one for one in iter(lambda: brute.drawn(dice), None) if len(one.minutes) * len(one.hours) <= a_day)
    return sum(_one(name, some, fields, policy, (start, end), dice) for policy in policies)


def _one(
    name: str, some: list[Wall], fields: Fields, policy: tuple[str, str], between: tuple[datetime, datetime], dice: random.Random
) -> int:
    gap, fold = policy
    cron = Cron(fields.text, name, gap=gap, fold=fold)  # type: ignore[arg-type]
    start, end = between
    wanted = brute.ticks(some, fields, gap, fold, start, end)
    said = f"{cron} gap={gap} fold={fold} from {start} to {end}"
    if len(wanted) <= CHAINED_MOST:
        assert list(_forwards(cron, start, end)) == wanted, said
        ticks_backwards = map(_utc, cron.ticks_backwards(end - timedelta(microseconds=1)))
        assert list(takewhile(lambda tick: tick >= start, ticks_backwards)) == wanted[::-1], said
        return len(wanted)
    for before, after in dice.sample(list(pairwise(wanted)), 100):
        between_them = before + (after - before) * dice.random()
        assert _utc(cron.next(before)) == after == _utc(cron.next(between_them)), f"{said}: after {before}"
        assert _utc(cron.latest(before)) == before == _utc(cron.latest(between_them)), f"{said}: until {before}"
    return len(wanted)


def _forwards(cron: Cron, start: datetime, end: datetime) -> Iterator[datetime]:
    tick = _utc(cron.next(start - timedelta(microseconds=1)))
    while tick < end:
        yield tick
        tick = _utc(cron.next(tick))


def _utc(tick: datetime | None) -> datetime:
    """Python never takes times of two zones for equal where one of them is shown twice by its clock."""
    assert tick is not None
    return tick.astimezone(UTC)


def around(change: datetime) -> tuple[datetime, datetime]:
    return change - timedelta(hours=40), change + timedelta(hours=40)


def zones() -> list[str]:
    """One name for each clock: two that change at the same hours to the same offsets are one."""
    found: dict[tuple[datetime, ...], str] = {}
    for name in [*HARD, *sorted(available_timezones() - {"localtime", "posixrules"})]:
        zone = ZoneInfo(name)
        changed = brute.changes(zone, FIRST, LAST)
        shown = tuple(moment.astimezone(zone).replace(tzinfo=UTC) for moment in (FIRST, *changed))
        found.setdefault(shown, name)
    return list(found.values())


def changes_of(name: str) -> int:
    count = 0
    for change in brute.changes(ZoneInfo(name), FIRST, LAST):
        if change > FIRST + timedelta(days=2):
            dice = random.Random(f"{name} {change}")
            count += stretch(name, *around(change), dice, POLICIES, a_day=dice.choice([24, 24, 24, 300]))
    return count


def minutes_of(name: str) -> int:
    count, start, dice = 0, FIRST, random.Random(name)
    while start < LAST:
        end = min(start + timedelta(days=dice.randint(20, 40)), LAST)
        count += stretch(name, start, end, dice, [dice.choice(POLICIES)], a_day=dice.choice([24, 24, 24, 1440]))
        start = end
    return count


def main() -> None:
    what, *names = sys.argv[1:]
    check = {"changes": changes_of, "minutes": minutes_of}[what]
    wanted = names or zones()
    print(f"{len(wanted)} zones", flush=True)
    for number, name in enumerate(wanted, start=1):
        started = time.monotonic()
        ticks = check(name)
        print(f"{number} {name}: {ticks} ticks are right, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
