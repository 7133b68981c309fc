"""What is the same run as one that was tried is not run again, and is really the same; and a budget in seconds takes a fair sample."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from itertools import islice

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from groundstate.clock import SeededDice
from groundstate.testing import Lab, NeverTaken
from groundstate.testing.runner import Trial
from groundstate.testing.search import schedule_search
from groundstate.testing.search.tried_plans import Length, Tried
from groundstate.testing.simulate.crash_plan import Move, Schedule, parse_schedule
from groundstate.testing.simulate.restarts import Restarts
from groundstate.testing.simulate.simulation import Stage
from groundstate.testing.verdict.invariants import Check
from tests.engine.clocks import Turned
from tests.testing.searching import at, limited_to, sampled
from tests.testing.shops import Order, cancel, plain, shop


def shopping(made: Lab, always: Check | None = None) -> Trial:
    app = shop()
    made.fake(app.charge, lambda order: f"r{order.id}")
    made.fake(app.send, lambda order: f"m{order.id}")
    made.meanwhile(cancel)
    return made._build_trial(app.app, Order(id=1), always=always)


def drawn(clean: Stage, *, locks_rows: bool) -> list[Schedule]:
    seen = schedule_search.summarise_clean_run(clean, locks_rows=locks_rows)
    return [*schedule_search.single_schedules(seen, 1), *islice(schedule_search.mixed_schedules(seen, 1, SeededDice(1)), 100)]


def what_came_of(stage: Stage) -> tuple[list[object], list[str]]:
    """The rows at the end, and the story but for the others' transactions that wrote nothing."""
    with stage.place.session() as session:
        rows: list[object] = [tuple(row) for row in session.execute(select(Order.id, Order.status, Order.receipt, Order.mailed))]
    return rows, [line.partition(" s  ")[2] for line in stage.story if "meanwhile, " not in line]


def test_what_is_skipped_is_the_same_run_as_the_one_that_was_tried() -> None:
    with Lab() as made:
        trial = shopping(made)
        clean = trial.run_clean()
        skipped = []
        for one in drawn(clean, locks_rows=False):
            same = trial._tried.find_same_run(one)
            if same is None and one.sort == "die":
                trial.run_unless_repeated(one)
            elif same is not None:
                skipped.append((one, same))
        assert {one.sort for one, _ in skipped} >= {"meanwhile", "mixtures"}
        for one, same in skipped[::2]:
            assert what_came_of(trial.run(one)) == what_came_of(trial.run(same)), f"{one} is not {same}"


def test_on_postgresql_others_that_write_nothing_inside_transactions_are_skipped_too(postgres_url: str) -> None:
    with Lab(postgres=postgres_url) as made:
        trial = shopping(made)
        clean = trial.run_clean()
        between = schedule_search.summarise_clean_run(clean, locks_rows=True).between
        idle = [number for number in between if (1, number) in clean.idle]
        assert 0 < len(idle) < len(between)
        assert any(clean.crossings[number - 1].inside for number in idle)
        one = Schedule((Move(idle[0], "meanwhile", 1),))
        assert trial._tried.find_same_run(one) == Schedule()
        assert what_came_of(trial.run(one)) == what_came_of(trial.run(Schedule()))


def test_the_findings_say_how_many_were_skipped() -> None:
    with Lab() as made:
        app = shop()
        made.fake(app.charge, lambda order: f"r{order.id}")
        made.fake(app.send, lambda order: f"m{order.id}")
        made.meanwhile(cancel)
        with limited_to(at("meanwhile", "committed", which=1)):
            found = made.crash_everywhere(app.app, Order(id=1), budget=0, seed=1)
    assert 3 < found.skipped < found.skipped + found.runs
    assert f"skipped {found.skipped} more, each of which would repeat an earlier run" in str(found)


# ---- restarts ---------------------------------------------------------------------------------------------------------------------
def what_went_on(stage: Stage) -> list[str]:
    """The story after the last death, whoever it is told of."""
    lines = [re.sub(r"worker \d+", "worker", line.partition(" s  ")[2]) for line in stage.story]
    deaths = [number for number, line in enumerate(lines) if " is killed " in line]
    return lines[deaths[-1] + 1 :] if deaths else lines


def looks(session: Session) -> None:
    session.scalars(select(Order)).all()


@pytest.mark.parametrize("always", [None, looks], ids=["plain", "always"])
def test_a_run_ends_at_a_restart_that_was_tried_and_would_have_gone_on_as_that_did(always: Check | None) -> None:
    with Lab() as made:
        trial = shopping(made, always=always)
        clean = trial.run_clean()
        commits = [one.number for one in clean.crossings if one.kind == "committed" and one.what != "nothing"]
        pairs = [f"die@{commits[3]} die@{commits[3] + after}" for after in range(1, 50, 6)]
        ended, went_on = [], []
        for one in map(parse_schedule, [f"die@{commits[3]}", *pairs]):
            stage = trial.run(one, joins=True)
            if stage.joined:
                ended.append(one)
            else:
                went_on.append(what_went_on(stage))
        assert 1 < len(ended) < len(pairs)
        assert trial.findings.joined == len(ended)
        for one in ended[::3]:
            assert what_went_on(trial.run(one)) in went_on, f"{one} went on in its own way"


def test_a_restart_on_the_same_is_the_same_at_nearly_the_same_time() -> None:
    restarts = Restarts()
    assert not restarts.was_tried(("rows", [1]), 10.0)
    assert not restarts.was_tried(("rows", [2]), 10.0)
    assert restarts.was_tried(("rows", [1]), 10.05)
    assert not restarts.was_tried(("rows", [1]), 11.0)


def test_where_the_schedule_has_more_to_come_no_run_ends_early() -> None:
    with Lab() as made:
        trial = shopping(made)
        calls = [one.number for one in trial.run_clean().crossings if one.kind == "call"]
        for line in (f"die@{calls[0]}", f"die@{calls[0]} die@{calls[0] + 500}", f"die@{calls[0]} call2=lost", f"die@{calls[0]} hints=lost"):
            assert not trial.run(parse_schedule(line), joins=True).joined, line
        assert trial.run(parse_schedule(f"die@{calls[0]}"), joins=True).joined


def mails_by_itself(sent: list[int]) -> Callable[[Order], None]:
    def packed(order: Order) -> None:
        sent.append(order.id)
        order.status = "packed"

    return packed


def test_a_death_after_a_handler_ran_is_no_death_before_it() -> None:
    with Lab() as made:
        trial = made._build_trial(plain("ran", mails_by_itself([])), Order(id=1))
        clean = trial.run_clean()
        writes = next(one.number for one in clean.crossings if one.kind == "commit" and "UPDATE orders" in one.what)
        begins = max(one.number for one in clean.crossings if one.number < writes and not one.inside)
        assert not trial.run(parse_schedule(f"die@{begins}"), joins=True).joined
        assert not trial.run(parse_schedule(f"die@{writes}"), joins=True).joined
        assert trial.run(parse_schedule(f"die@{writes}"), joins=True).joined


def test_the_findings_say_how_many_runs_ended_so() -> None:
    with Lab() as made, limited_to(sampled(at("die", "statement"), 3)):
        found = made.crash_everywhere(plain("ended", never_mind), Order(id=1), budget=0, seed=1)
    assert found.joined > 1
    assert f"ended {found.joined} of them early, at a restart from the same state as in an earlier run" in str(found)


# ---- what is the same -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def tried() -> Tried:
    """Of a clean run of 100 crossings and two calls, and a death at 40 whose run has 150."""
    made = Tried()
    made.record(Schedule(), Length(100, 2))
    made.record(parse_schedule("die@40"), Length(150, 3))
    made.idle = {(1, 60)}
    return made


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("die@40", "die@40"),
        ("die@101", "nothing"),
        ("die@101 switch@120", "nothing"),
        ("die@40 die@151", "die@40"),
        ("call3=lost", "nothing"),
        ("die@40 call4=lost call5=busy", "die@40"),
        ("meanwhile1@60", "nothing"),
        ("meanwhile1@60 die@101", "nothing"),
    ],
)
def test_what_is_never_reached_changes_nothing(tried: Tried, line: str, same: str) -> None:
    assert str(tried.find_same_run(parse_schedule(line))) == same


@pytest.mark.parametrize(
    "line",
    [
        "die@41",
        "die@100",
        "die@40 die@150",
        "call2=lost",
        "die@40 call3=lost",
        "leap1@101",  # the service is told at the begin whether a clock leaps
        "meanwhile1@61",
        "meanwhile2@60",
        "call1=lost meanwhile1@60",
        "die@40 meanwhile1@60",
        "hints=lost",
        "hints=lost meanwhile1@60",
        "die@41 die@160",
    ],
)
def test_what_could_be_another_run_is_run(tried: Tried, line: str) -> None:
    assert tried.find_same_run(parse_schedule(line)) is None


# ---- whether others would write -------------------------------------------------------------------------------------------------
def writes_by_a_statement(session: Session) -> None:
    session.execute(text("UPDATE orders SET count = 7"))


def writes_and_lets_nobody_hear(session: Session) -> None:
    try:
        session.execute(text("UPDATE orders SET count = 7"))
    except BaseException:  # noqa: BLE001  # as some do
        session.rollback()


def adds(session: Session) -> None:
    session.add(Order(id=9))


def asks_nothing(_session: Session) -> None: ...


def raises(session: Session) -> None:
    looks(session)
    raise ValueError("not now")


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_others_are_idle_where_they_read_and_write_nothing_and_what_would_be_written_is_not(
    store: str, request: pytest.FixtureRequest
) -> None:
    with Lab(postgres=request.getfixturevalue("postgres_url") if store == "postgres" else None) as made:
        place = made._build_trial(plain(f"idle-{store}", never_mind), Order(id=1))._place
        place.reset()
        assert place.would_write_nothing(looks)
        for act in (writes_by_a_statement, writes_and_lets_nobody_hear, adds, asks_nothing, raises, cancel):
            assert not place.would_write_nothing(act), act.__name__
        with place.session() as session:
            assert [(one.id, one.count, one.status) for one in session.scalars(select(Order))] == [(1, 0, "placed")]


def never_mind(order: Order) -> None:
    order.status = "packed"


def test_others_who_move_the_clock_are_not_idle_and_the_clock_stays_where_it_is() -> None:
    with Lab() as made:

        def waits(session: Session) -> None:
            looks(session)
            made.clock.forward(timedelta(hours=1))

        def leaps(session: Session) -> None:
            looks(session)
            made.clock.leap(timedelta(hours=1))

        def tells(session: Session) -> None:
            looks(session)
            assert made.clock.passed < timedelta(minutes=1)

        for act in (waits, leaps, tells):
            made.meanwhile(act)
        clean = made._build_trial(plain("clocks", never_mind), Order(id=1)).run_clean()
    assert {which for which, _ in clean.idle} == {3}
    assert clean.time.now_s < 60


# ---- a budget in seconds ----------------------------------------------------------------------------------------------------------
class Ticking(Turned):
    """A clock that shows a second more each time it is looked at."""

    def monotonic(self) -> float:
        self.ahead += 1
        return self.ahead


def test_with_seconds_a_part_is_run_and_what_was_left_out_is_said() -> None:
    with Lab() as made:
        made._real = Ticking()
        app = shop()
        made.fake(app.charge, lambda order: f"r{order.id}")
        made.fake(app.send, lambda order: f"m{order.id}")
        made.meanwhile(cancel)
        found = made.crash_everywhere(app.app, Order(id=1), budget=40, seconds=12, seed=1)
    assert found.runs + found.skipped == 12  # each looks at the clock once, and the clean run beside
    assert set(found.left_out) >= {"die", "meanwhile", "calls", "mixtures"}
    assert all(0 < left <= count for left, count in found.left_out.values())
    left, count = found.left_out["meanwhile"]
    assert f"{left} of {count} meanwhile" in str(found)


def test_with_seconds_enough_nothing_is_left_out() -> None:
    with Lab() as made:
        every = made.crash_everywhere(plain("enough", never_mind), Order(id=1), budget=5, seed=1)
        found = made.crash_everywhere(plain("enough too", never_mind), Order(id=1), budget=5, seconds=10_000, seed=1)
    assert not found.left_out
    assert found.runs + found.skipped == every.runs + every.skipped
    assert "left out" not in str(found)


def test_what_was_not_reached_in_the_seconds_is_told_as_never_taken() -> None:
    with Lab() as made:
        made._real = Ticking()
        app = shop()
        made.fake(app.charge, lambda order: f"r{order.id}")
        made.fake(app.send, lambda order: f"m{order.id}")
        with pytest.raises(NeverTaken, match="not all were tried: give it more seconds"):
            made.crash_everywhere(app.app, Order(id=1, status="cancelled", receipt="r1"), seconds=3, seed=1)


def test_each_beginning_of_the_order_is_a_fair_sample() -> None:
    deaths = [Schedule((Move(number, "die"),)) for number in range(1, 61)]
    others = [Schedule((Move(number, "meanwhile", 1),)) for number in range(1, 241)]
    order = schedule_search.order_evenly([*deaths, *others], SeededDice(7))
    assert sorted(map(str, order)) == sorted(map(str, [*deaths, *others]))
    for many in (30, 60, 150):
        begun = [one.moves[0].crossing for one in order[:many] if one.sort == "die"]
        assert abs(len(begun) - many / 5) <= 1
        early = sum(1 for crossing in begun if crossing <= 30)
        assert abs(early - len(begun) / 2) <= 2, f"{early} of {len(begun)} deaths are in the first half"


def test_the_seed_draws_the_same_order() -> None:
    some = [Schedule((Move(number, "die"),)) for number in range(1, 31)]
    assert (
        schedule_search.order_evenly(some, SeededDice(1))
        == schedule_search.order_evenly(some, SeededDice(1))
        != schedule_search.order_evenly(some, SeededDice(2))
    )
