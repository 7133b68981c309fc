"""The database's clock is set ahead or back: what is left of each wait stays, on the real databases."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from groundstate import InDoubt, Retry
from groundstate.rules.attempt import State
from groundstate.rules.clock_jump import NOTICED, with_times_adjusted
from groundstate.rules.poison_suspects import Care, care_from_ends
from groundstate.rules.policy import MARGIN
from tests.engine.charging import SAME_KEY, charging
from tests.engine.kit import World, ms, until
from tests.rules.making import attempt

YEAR = timedelta(days=365)
YEAR_S = YEAR.total_seconds()
SOON = Retry(first=ms(50), longest=ms(100))


@pytest.fixture(autouse=True)
def leaping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "leaping", True)


def test_hazard_5_absent_is_not_believed_because_the_clock_leapt_ahead(world: World) -> None:
    gateway = charging(world, InDoubt.lookup(settle_after=timedelta(hours=1)), retry=SOON)
    gateway.plan(1, "hang")
    world.orders(1)
    first = world.worker()
    until(lambda: gateway.waiting == 1)
    first.kill()
    started = time.monotonic()
    world.worker()
    until(lambda: world.states() == ["doubt"])
    before = world.attempts()[0]
    world.forward(YEAR_S)
    asked = len(gateway.asked)
    until(lambda: len(gateway.asked) >= asked + 3)  # of which one, at most, was asked before it leapt
    [after] = world.attempts()
    assert (after.state, gateway.called(1)) == (State.DOUBT, 1)
    took = timedelta(seconds=time.monotonic() - started)  # whoever looks at two clocks may be wrong by what his looks took
    assert timedelta() <= after.deadline - before.deadline - YEAR <= NOTICED + took


def test_what_failed_while_the_clock_stood_ahead_does_not_wait_for_it_when_it_is_set_right(world: World) -> None:
    gateway = charging(world, SAME_KEY, retry=SOON)
    gateway.plan(1, "refuse", "refuse")
    world.there()
    life = world.worker()
    world.forward(YEAR_S)
    world.orders(1)
    until(lambda: gateway.called(1) >= 1)
    world.forward(-YEAR_S)
    until(lambda: world.order().status == "paid")
    life.quiet()
    assert world.attempts() == []


def test_a_doubt_of_a_clock_that_stood_ahead_is_bounded_by_who_adopts_it_though_it_was_set_right_meanwhile(world: World) -> None:
    gateway = charging(world, SAME_KEY, timeout=timedelta(seconds=20), retry=Retry(first=timedelta(hours=1)))
    gateway.plan(1, "hang")
    world.forward(YEAR_S)
    world.orders(1)
    first = world.worker()
    until(lambda: gateway.waiting == 1)
    first.kill()
    world.forward(-YEAR_S)
    second = world.worker()
    second.quiet()
    [left] = world.attempts()
    now = datetime.now(UTC)
    assert left.unsure
    assert left.deadline <= now + timedelta(seconds=20) + MARGIN
    assert left.since <= now
    assert left.first_at.year == 1970  # nobody knows how old its key is
    assert left.state is State.HELD
    assert gateway.called(1) == 1


def test_an_attempts_times_move_with_the_clock_and_its_deadline_is_not_before_now() -> None:
    one = attempt(state=State.DOUBT)
    for by in (YEAR, -YEAR):
        now = one.deadline + by - timedelta(seconds=3)
        after = with_times_adjusted(one, by, now)
        assert after.deadline - one.deadline == by + NOTICED
        assert after.since - one.since == after.first_at - one.first_at == min(by, timedelta())  # no key becomes younger by it
    assert with_times_adjusted(one, -YEAR, one.deadline).deadline == one.deadline


def test_ends_that_lie_ahead_make_nobody_careful() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    close = [now - timedelta(minutes=2), now - timedelta(minutes=1)]
    assert care_from_ends(close, now) == Care(careful=True)
    assert care_from_ends([end + YEAR for end in close], now) == Care(careful=False)
    assert care_from_ends([*close, now + YEAR], now) == Care(careful=True)
