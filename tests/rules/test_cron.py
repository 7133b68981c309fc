"""Cron: against brute force in every zone, in the hard hours of each; and what is refused, with the cure."""

from __future__ import annotations

import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest

from groundstate import Cron, DeclarationError
from tests.docs.blocks import ROOT
from tests.patience import HANG_S
from tests.rules import brute, cron_check


def at(written: str) -> datetime:
    return datetime.fromisoformat(written).replace(tzinfo=UTC)


# ---- against brute force -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("zone", cron_check.HARD)
def test_hazard_44_in_a_hard_zone_each_policy_gives_what_brute_force_gives(zone: str) -> None:
    changes = brute.changes(ZoneInfo(zone), cron_check.FIRST, cron_check.LAST)
    dice = random.Random(zone)
    for change in dice.sample(changes[1:], min(2, len(changes) - 1)):
        cron_check.stretch(zone, *cron_check.around(change), dice, cron_check.POLICIES, a_day=100)


def test_in_zones_and_months_drawn_at_random_it_is_right_as_well() -> None:
    dice = random.Random(44)
    for zone in dice.sample(sorted(available_timezones() - {"localtime"}), 12):
        start = cron_check.FIRST + timedelta(days=dice.randrange(29_000))
        cron_check.stretch(zone, start, start + timedelta(days=12), dice, dice.sample(cron_check.POLICIES, 2))


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("Pacific/Kwajalein", "1993-08-21"), ("Pacific/Kiritimati", "1994-12-31"), ("Pacific/Enderbury", "1994-12-31"),
        ("Pacific/Apia", "2011-12-30"), ("Pacific/Fakaofo", "2011-12-30"),
    ],
)  # fmt: skip
def test_a_day_that_a_zone_skipped_is_one_tick_with_the_next_day_or_none(zone: str, day: str) -> None:
    skipped = datetime.fromisoformat(day).replace(tzinfo=UTC)
    cron_check.stretch(zone, skipped - timedelta(days=2), skipped + timedelta(days=3), random.Random(zone), cron_check.POLICIES, a_day=24)
    shifting, skipping = Cron("0 7 * * *", zone), Cron("0 7 * * *", zone, gap="skip")
    before = skipping.latest(skipped)
    assert before is not None
    assert shifting.next(before) == skipping.next(before), "07:00 of the day that was not is 07:00 of the next"
    assert skipping.next(before).day != skipped.day
    evening = Cron(f"0 7 {skipped.day} {skipped.month} *", zone)
    assert evening.next(before).date() == (skipped + timedelta(days=1)).date()


# ---- the policies, by example ----------------------------------------------------------------------------------------------------------
def test_a_wall_time_that_does_not_exist_is_shifted_or_skipped() -> None:
    night = at("2026-03-28T12:00")
    assert Cron("30 2 * * *", "Europe/Berlin").next(night).isoformat() == "2026-03-29T03:30:00+02:00"
    assert Cron("30 2 * * *", "Europe/Berlin", gap="skip").next(night).isoformat() == "2026-03-30T02:30:00+02:00"


def test_two_wall_times_on_one_instant_are_one_tick() -> None:
    both = Cron("30 2,3 * * *", "Europe/Berlin")
    assert list(islice(both.ticks_backwards(at("2026-03-29T12:00")), 2)) == [at("2026-03-29T01:30"), at("2026-03-28T02:30")]


@pytest.mark.parametrize(("fold", "wanted"), [("first", ["00:30"]), ("second", ["01:30"]), ("both", ["00:30", "01:30"])])
def test_a_wall_time_that_comes_twice_is_the_first_the_second_or_both(fold: Any, wanted: list[str]) -> None:
    cron = Cron("30 2 * * *", "Europe/Berlin", fold=fold)
    ticks = list(cron.ticks_between_latest_first(at("2026-10-24T12:00"), at("2026-10-25T12:00")))
    assert [tick.astimezone(UTC).strftime("%H:%M") for tick in ticks] == wanted[::-1]


def test_next_is_strictly_later_in_the_zone_and_naive_means_utc() -> None:
    cron = Cron("0 7 * * MON", "Europe/Berlin")
    monday = cron.next(datetime(2026, 11, 1, 12))  # noqa: DTZ001  # naive on purpose
    assert monday.isoformat() == "2026-11-02T07:00:00+01:00"
    assert str(monday.tzinfo) == "Europe/Berlin"
    assert cron.next(monday).isoformat() == "2026-11-09T07:00:00+01:00"
    assert cron.next(monday - timedelta(microseconds=1)) == monday
    assert cron.latest(monday) == monday
    assert cron.latest(monday - timedelta(microseconds=1)) != monday


def test_days_of_the_month_and_of_the_week_are_one_or_the_other_unless_one_has_a_star() -> None:
    start = at("2026-11-01T00:00")
    either, both = Cron("0 0 13 * FRI"), Cron("0 0 */13 * FRI")
    assert [tick.day for tick in (either.next(start), either.next(at("2026-11-06T00:00")))] == [6, 13]
    assert both.next(start) == at("2026-11-27T00:00"), "the days 1, 14 and 27, where they are a Friday"


def test_a_cron_is_a_value() -> None:
    one = Cron("0 7 * * mon", "Europe/Berlin")
    assert one == Cron(" 0  7 * * MON", "Europe/Berlin")
    assert hash(one) == hash(Cron("0 7 * * MON", "Europe/Berlin"))
    assert one != Cron("0 7 * * MON", "Europe/Berlin", gap="skip")
    assert str(one) == "0 7 * * MON in Europe/Berlin"
    assert Cron("@daily").expression == "0 0 * * *"
    with pytest.raises(AttributeError):
        one.zone = "UTC"  # type: ignore[misc]


def test_a_leap_day_on_a_sunday_is_found_and_so_is_the_end_of_the_calendar() -> None:
    assert Cron("0 0 29 2 */7", "Asia/Tokyo").next(at("2026-01-01T00:00")).isoformat() == "2032-02-29T00:00:00+09:00"
    with pytest.raises(OverflowError, match="before the calendar ends"):
        Cron("0 0 1 1 *").next(at("9999-06-01T00:00"))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("5-5/10 * * * *", "5 * * * *"),
        ("1,5-5/10,7-20/5 * * * *", "1,5,7-20/5 * * * *"),
        ("0 7-7/2 * * *", "0 7 * * *"),
        ("0 0 31-31/7 * *", "0 0 31 * *"),
        ("0 0 * MAR-3/2 *", "0 0 * MAR *"),
        ("0 0 * * 5-FRI/2", "0 0 * * 5"),
        ("0 0 13-13/2 * FRI", "0 0 13 * FRI"),
    ],
)
def test_a_range_of_one_value_is_that_value_whatever_its_step(written: str, meant: str) -> None:
    assert Cron(written) == Cron(meant)
    assert Cron(written).next(at("2026-01-31T23:59")) == Cron(meant).next(at("2026-01-31T23:59"))


FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


# ---- the ends of the calendar ----------------------------------------------------------------------------------------------------------
HOURLY = [ZoneInfo(name) for name in ("UTC", "America/New_York", "Asia/Tokyo", "Pacific/Kiritimati", "Pacific/Niue")]


def hours(zone: ZoneInfo, first: datetime) -> list[datetime]:
    """The full hours of the zone's clock in two days from `first` on, that are within the calendar there and in UTC: minute by minute."""
    found = []
    for minute in range(2 * 24 * 60):
        wall = first + timedelta(minutes=minute)
        if wall.minute == 0:
            try:
                found.append(wall.replace(tzinfo=zone).astimezone(UTC))
            except OverflowError:
                continue
    return found


@pytest.mark.parametrize("zone", HOURLY, ids=str)
@pytest.mark.parametrize("first", [datetime(1, 1, 1), datetime(9999, 12, 30)], ids=["first", "last"])  # noqa: DTZ001  # of a wall clock
def test_in_the_first_and_the_last_days_of_the_calendar_each_tick_is_found(zone: ZoneInfo, first: datetime) -> None:
    cron = Cron("0 * * * *", str(zone))
    wanted = hours(zone, first)
    for before, after in pairwise(wanted):
        assert cron.next(before) == after == cron.next(after - timedelta(microseconds=1))
        assert cron.latest(before) == before == cron.latest(after - timedelta(microseconds=1))
    if first.year == 1:
        assert cron.next(FIRST) == (wanted[0] if wanted[0] > FIRST else wanted[1])
        assert list(cron.ticks_backwards(wanted[2])) == wanted[2::-1]
        if wanted[0] > FIRST:
            assert cron.latest(FIRST) is None
            assert cron.latest(wanted[0] - timedelta(microseconds=1)) is None
    else:
        assert cron.latest(LAST) == wanted[-1]
        with pytest.raises(OverflowError, match="before the calendar ends"):
            cron.next(wanted[-1])


def test_a_moment_beyond_the_calendar_of_utc_has_the_ticks_of_its_end() -> None:
    far = LAST.replace(tzinfo=timezone(timedelta(hours=-12)))
    assert Cron("0 0 * * *").latest(far) == at("9999-12-31T00:00")
    assert Cron("0 7 * * *").latest(FIRST.replace(tzinfo=timezone(timedelta(hours=12)))) is None


# ---- what is refused -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("60 * * * *", "field 1, minute, is '60': give 0 to 59"),
        ("* 24 * * *", "field 2, hour, is '24': give 0 to 23"),
        ("* * 32 * *", "field 3, day of month, is '32'"),
        ("* * * FOO *", "field 4, month, is 'FOO'"),
        ("* * * * FRI-MON", "field 5, day of week, is 'FRI-MON': .*a range begins before it ends"),
        ("*/90 * * * *", "for each 90 of something give a timedelta"),
        ("*/0 * * * *", "field 1, minute"),
        ("5/15 * * * *", "field 1, minute, is '5/15', and 5/15 is 5-59/15 in some crons and 5 alone in others, such as Debian's"),
        ("0 1,4/6 * * *", "field 2, hour, is '1,4/6', and 4/6 is 4-23/6 in some"),
        ("0 0 * * MON/2", "field 5, day of week, .* MON/2 is MON-7/2 in some"),
        ("75/2 * * * *", "field 1, minute, is '75/2': give 0 to 59"),
        ("5-5/90 * * * *", "for each 90 of something give a timedelta"),
        ("0 0 L/2 * *", "field 3, day of month, .* L is a single day, which takes no step: leave /2 out"),
        ("0 0 1,LW/3 * *", "LW is a single day"),
        ("0 0 * * 5L/2", "field 5, day of week"),
        ("0 0 * * MON#2/2", "field 5, day of week"),
        ("* * * *", "has 4 fields, and it has to have 5"),
        ("0 * * * * *", "has 6 fields, .* for less than a minute give a timedelta"),
        ("0 0 30 2 *", "never comes: no day has 30 as day of month and 2 as month"),
        ("0 0 31 4,6 *", "never comes"),
        ("0 0 */30 * MON#3", "never comes: .* and MON#3 as day of week"),
        ("@reboot", "there are @hourly, @daily"),
        ("", "has 0 fields"),
        (7, "give its five fields as text"),
    ],
)
def test_an_expression_that_cannot_be_meant_is_refused_with_its_place_and_the_cure(expression: Any, told: str) -> None:
    with pytest.raises(DeclarationError, match=told):
        Cron(expression)


@pytest.mark.parametrize(
    ("zone", "told"),
    [
        ("Berlin", "did you mean Europe/Berlin?"),
        ("Europe/Berln", "did you mean Europe/Berlin"),
        ("New York", "did you mean America/New_York?"),
        ("/etc/passwd", "give a name of the IANA database"),
        ("Europe", "there is no time zone 'Europe'"),
        ("", "give a name of the IANA database"),
        (None, "give a name of the IANA database"),
    ],
)
def test_an_unknown_zone_is_refused_and_near_ones_are_named(zone: Any, told: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        Cron("* * * * *", zone)
    assert told in str(refused.value)


def test_other_policies_than_there_are_are_refused() -> None:
    with pytest.raises(DeclarationError, match="choose 'shift' or 'skip'"):
        Cron("* * * * *", gap="later")  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match="choose 'first' or 'second' or 'both'"):
        Cron("* * * * *", fold="twice")  # type: ignore[arg-type]


def test_an_app_without_a_cron_loads_neither_the_library_nor_zones() -> None:
    program = (
        "import sys\nfrom datetime import timedelta\nfrom sqlalchemy.orm import DeclarativeBase\nfrom groundstate import App, Store\n"
        "class Base(DeclarativeBase): pass\napp = App('shop', Store('sqlite:///shop.db', Base))\n"
        "app.every(timedelta(hours=1), name='hourly')(lambda: None)\n"
        "assert not {'cronsim', 'zoneinfo'} & set(sys.modules)\n"
        "app.every('0 * * * *', name='each')(lambda: None)\nassert 'cronsim' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr
