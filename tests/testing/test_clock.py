"""The lab's clock does what it is told: runs begin where it starts, the time of day leaps and nothing else does, a host is suspended."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any

import pytest
from sqlalchemy.orm import Session

from groundstate import App, DeclarationError, ReactionContext, Store
from groundstate.testing import Crashed, Lab, runner
from groundstate.testing.simulate.crash_plan import parse_schedule
from groundstate.testing.simulate.fake_environment import EPOCH, Stuck, Time
from groundstate.testing.simulate.simulation import Stage
from tests.testing import timed_apps as timed
from tests.testing.shops import NOWHERE, Order, calling
from tests.testing.timed_apps import BERLIN, DAY, HOUR, NOON, Bill


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def charging(lab: Lab, **how: Any) -> Any:
    made = calling("lookup", **how)
    ledger = lab.fake(made.call, lambda order: f"r{order.id}")
    return lab._build_trial(made.app, Order(id=1)), ledger


def where(stage: Stage, kind: str) -> int:
    return next(one.number for one in stage.crossings if one.kind == kind)


def test_a_run_begins_where_the_clock_starts_and_speaks_in_its_zone(lab: Lab) -> None:
    begins = datetime(2027, 3, 28, 1, 59, tzinfo=BERLIN)  # a minute before there is no 2 o'clock
    lab.clock.starts(begins)
    lab.clock.leaps(2 * timedelta(minutes=1))
    trial, _ = charging(lab)
    clean = trial.run(parse_schedule(""))
    assert lab.clock.now == begins
    stage = trial.run(parse_schedule(f"leap1@{where(clean, 'call')}"))
    assert timedelta() < stage.time.now() - begins < timedelta(minutes=3)
    told = next(line for line in stage.story if "the clock leaps" in line)
    assert "ahead by 0:02:00, before the call paid of 1: it shows 2027-03-28 03:01:00" in told


@pytest.mark.parametrize(("by", "words"), [(3 * HOUR, "leaps ahead by 3:00:00"), (-HOUR, "steps back by 1:00:00")])
def test_the_time_of_day_leaps_and_nothing_else_does(lab: Lab, by: timedelta, words: str) -> None:
    lab.clock.leaps(by)
    trial, ledger = charging(lab)
    clean = trial.run(parse_schedule(""))
    stage = trial.run(parse_schedule(f"leap1@{where(clean, 'answered')}"))
    assert abs(stage.time.now() - EPOCH - by) < timedelta(seconds=1)
    assert stage.time.monotonic_s == stage.time.now_s < 1
    assert len(ledger.effects) == 1
    assert sum(words in line for line in stage.story) == 1


def test_the_clock_of_a_server_is_not_that_of_its_workers() -> None:
    for own_clock in (False, True):
        time = Time(own_clock=own_clock)
        time.leap(HOUR)
        assert abs(time.wall() - EPOCH.timestamp() - (0 if own_clock else 3600)) < 1
        assert (time.now() - EPOCH) // HOUR == 1


def test_a_suspended_host_does_not_count_what_it_slept_and_what_has_left_it_arrives_meanwhile(lab: Lab) -> None:
    lab.clock.suspends(8 * HOUR)
    trial, ledger = charging(lab)
    late = trial.run(parse_schedule("call1=late"))
    stage = trial.run(parse_schedule(f"suspend1@{where(late, 'answered')} call1=late"))
    story = "\n".join(stage.story)
    assert story.index("the service has done paid of 1") < story.index("the host was suspended for 8:00:00") < story.index("'r1'")
    assert stage.time.suspended_s == pytest.approx(8 * 3600)
    assert stage.time.monotonic_s < 60 < stage.time.now_s
    assert len(ledger.effects) == 1


def test_it_is_moved_by_hand_in_somebody_elses_transaction(lab: Lab) -> None:
    passed: list[timedelta] = []

    @lab.meanwhile
    def the_clock_is_set(_session: Session) -> None:
        before = lab.clock.now
        lab.clock.leap(-HOUR)
        assert abs(before - lab.clock.now - HOUR) < timedelta(seconds=1)
        lab.clock.suspend(2 * HOUR)
        passed.append(lab.clock.passed)

    trial, _ = charging(lab)
    clean = trial.run(parse_schedule(""))
    stage = trial.run(parse_schedule(f"meanwhile@{where(clean, 'call')}"))
    assert abs(stage.time.now() - EPOCH - HOUR) < timedelta(seconds=10)
    assert [one // HOUR for one in passed] == [2]
    assert lab.clock.passed == timedelta()
    for move in (lab.clock.leap, lab.clock.suspend):
        with pytest.raises(Stuck, match="no run is under way"):
            move(HOUR)


def test_each_move_is_put_wherever_a_clock_was_looked_at_and_among_deaths_in_mixtures(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    until_idle = Stage.run_until_idle

    def listen(stage: Stage) -> None:
        ran.append(str(stage.schedule))
        until_idle(stage)

    monkeypatch.setattr(Stage, "run_until_idle", listen)
    app = App("clock-packs", Store(NOWHERE, timed.Base))

    @app.on(Bill, Bill.status == "open", due=Bill.due_at)
    def packed(one: Bill, ctx: ReactionContext) -> None:
        assert ctx.now >= ctx.due
        one.status = "packed"

    lab.clock.leaps(3 * DAY)
    lab.clock.suspends(HOUR)
    found = lab.crash_everywhere(app, Bill(id=1, due_at=NOON + DAY), budget=8, seed=3)
    singly = list(takewhile(lambda line: " " not in line, dict.fromkeys(ran)))
    counts = [sum(line.startswith(kind) for line in singly) for kind in ("leap1@", "suspend1@")]
    assert counts[0] == counts[1]
    assert 10 < counts[0] < found.crossings
    assert any("die@" in line and ("leap" in line or "suspend1@" in line) for line in ran)


def test_a_timer_that_sets_itself_anew_needs_an_end(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LOOKS_MOST", 40)
    app = App("clock-renews", Store(NOWHERE, timed.Base))

    @app.on(Bill, due=Bill.due_at)
    def renewed(one: Bill, ctx: ReactionContext) -> None:
        one.due_at, one.note = ctx.due + DAY, f"{int(one.note or 0) + 1}"

    def ten_days(session: Session) -> None:
        assert timed.bill(session).note == "11"

    with pytest.raises(Crashed, match=r"give lab\.clock\.ends"):
        lab.crash_everywhere(app, Bill(id=1, due_at=NOON), only="nothing")
    lab.clock.ends(NOON + 10 * DAY)
    lab.crash_everywhere(app, Bill(id=1, due_at=NOON), at_the_end=ten_days, only="die@200")


def test_what_is_no_time_is_refused_with_the_cure(lab: Lab) -> None:
    naive = datetime(2030, 1, 1)  # noqa: DTZ001  # what is refused
    for tell in (lab.clock.starts, lab.clock.ends):
        with pytest.raises(DeclarationError, match="give an aware datetime"):
            tell(naive)
    with pytest.raises(DeclarationError, match="give how far"):
        lab.clock.leaps(timedelta())
    with pytest.raises(DeclarationError, match="give for how long"):
        lab.clock.suspends(-HOUR)
    with pytest.raises(DeclarationError, match="time only goes forward"):
        lab.clock.suspend(-HOUR)
    assert lab.clock.now == EPOCH.astimezone(UTC)
