"""The rules in a world of crashes, lost locks, late answers and people: the invariants hold under each policy, and mistakes show."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from groundstate.rules import attempt as rules
from groundstate.rules.attempt import Attempt, Keep, State, Terms
from groundstate.rules.policy import InDoubt
from tests.rules.making import SECOND, TIMEOUT
from tests.rules.moves import comes_to_rest, moves
from tests.rules.world import TRIES, World

KEPT_FOR, SETTLE_AFTER = 60 * SECOND, 10 * SECOND


@dataclass(frozen=True)
class Kind:
    """A kind of world. threads: its calls are threads that can hang before they send. valid_for: how long a round is worth doing."""

    name: str
    terms: Terms
    threads: bool = False
    valid_for: timedelta | None = None

    def world(self, *, has_overtaken: bool) -> World:
        return World(self.terms, threads=self.threads, has_overtaken=has_overtaken, valid_for=self.valid_for)


AGAIN = Kind("repeat", Terms(InDoubt.repeat(), TRIES, TIMEOUT))
SAME_KEY = Kind("same_key", Terms(InDoubt.same_key(kept_for=KEPT_FOR, settle_after=SETTLE_AFTER), TRIES, TIMEOUT))
SAME_KEY_AND_LOOKUP = Kind("same_key with a lookup", replace(SAME_KEY.terms, has_lookup=True))
ASK = Kind("lookup", Terms(InDoubt.lookup(settle_after=SETTLE_AFTER), TRIES, TIMEOUT, has_lookup=True))
ASK_WITH_THREADS = Kind("ask, with threads", ASK.terms, threads=True)
HOLD = Kind("hold", Terms(InDoubt.hold(), TRIES, TIMEOUT))
HOLD_WITH_THREADS = Kind("hold, with threads", HOLD.terms, threads=True)
NOT_FOR_LONG = [
    replace(kind, name=f"{kind.name}, not for long", valid_for=8 * SECOND) for kind in (AGAIN, SAME_KEY, SAME_KEY_AND_LOOKUP, ASK, HOLD)
]
AGAIN_LATE, SAME_KEY_LATE, _, ASK_LATE, _ = NOT_FOR_LONG
KINDS = [AGAIN, SAME_KEY, SAME_KEY_AND_LOOKUP, ASK, ASK_WITH_THREADS, HOLD, HOLD_WITH_THREADS, *NOT_FOR_LONG]


class Machine(RuleBasedStateMachine):
    """Hypothesis chooses among the moves, and makes the story of an error short."""

    kind: ClassVar[Kind]

    @initialize(has_overtaken=st.booleans())
    def declared(self, has_overtaken: bool) -> None:
        self.world = self.kind.world(has_overtaken=has_overtaken)

    @rule(which=st.integers(0, 2**16))
    def something_happens(self, which: int) -> None:
        found = moves(self.world)
        move = found[which % len(found)]
        note(repr(move))
        move()
        self.world.check()

    def teardown(self) -> None:
        comes_to_rest(self.world)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_invariants_hold(kind: Kind) -> None:
    machine = type("MachineOfThisKind", (Machine,), {"kind": kind})
    run_state_machine_as_test(machine, settings=settings(max_examples=30, stateful_step_count=30))


def walk(kind: Kind, seed: int, steps: int = 60) -> None:
    """A story at random: many more of them in a second than hypothesis can tell."""
    dice = random.Random(seed)
    world = kind.world(has_overtaken=dice.random() < 0.5)
    for _ in range(steps):
        if world.idle:
            break
        dice.choice(moves(world))()
        world.check()
    comes_to_rest(world)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_invariants_hold_in_many_stories(kind: Kind) -> None:
    many_walks(kind, 300)


def many_walks(kind: Kind, count: int) -> None:
    for seed in range(count):
        walk(kind, seed)


# ---- a world that cannot tell a mistake proves nothing -----------------------------------------------------------------------------
FAILED, HELD = State.FAILED, State.HELD
honest = {
    name: getattr(rules, name)
    for name in (
        "on_lookup_absent",
        "decide_attempt_in_doubt",
        "decide_failed_attempt",
        "adopt_attempt",
        "attempt_with_new_call",
        "apply_settle_absent_command",
        "apply_retry_command",
    )
}


def _sure(one: Attempt, **columns: Any) -> Keep:
    return Keep(replace(one, state=FAILED, unsure=False, **columns))


def _absent_by_the_time_of_its_answer(one: Attempt, terms: Terms, facts: Any, _asked: Any, now: Any, next_at: Any) -> Any:
    return honest["on_lookup_absent"](one, terms, facts, now, now, next_at)


def _absent_at_once(one: Attempt, terms: Terms, facts: Any, asked: Any, now: Any, next_at: Any) -> Any:
    return honest["on_lookup_absent"](replace(one, deadline=asked - 3600 * SECOND), terms, facts, asked, now, next_at)


def _settles_only_while_it_holds(one: Attempt, terms: Terms, facts: Any, now: Any) -> Any:
    return rules.Delete() if facts.no_longer_holds else honest["decide_attempt_in_doubt"](one, terms, facts, now)


def _key_as_old_as_the_latest_call(one: Attempt, *, now: Any, **given: Any) -> Attempt:
    after: Attempt = honest["attempt_with_new_call"](one, now=now, **given)
    return replace(after, first_at=now)


def _deadline_stays(one: Attempt, *given: Any, **more: Any) -> Keep:
    return Keep(replace(honest["adopt_attempt"](one, *given, **more).attempt, deadline=one.deadline))


def _retry_forgets_the_outcome(one: Attempt, terms: Terms, now: Any) -> Any:
    return honest["apply_retry_command"](replace(one, outcome=None), terms, now)


def _person_need_not_wait(one: Attempt, terms: Terms, facts: Any, now: Any) -> Any:
    return honest["apply_settle_absent_command"](replace(one, deadline=now - 3600 * SECOND), terms, facts, now)


def _settles_however_late(one: Attempt, terms: Terms, facts: Any, now: Any) -> Any:
    return honest["decide_attempt_in_doubt"](one, terms, replace(facts, expired=False), now)


def _tries_again_however_late(one: Attempt, terms: Terms, facts: Any, now: Any, *, blocked: bool) -> Any:
    return honest["decide_failed_attempt"](one, terms, replace(facts, expired=False), now, blocked=blocked)


def _expires_in_doubt(one: Attempt, terms: Terms, facts: Any, now: Any) -> Any:
    late = facts.holds and facts.expired
    return rules.Expired(unsure=True) if late else honest["decide_attempt_in_doubt"](one, terms, facts, now)


MISTAKES: list[tuple[str, Kind, str, Callable[..., Any]]] = [
    ("a later NotDone clears the doubt", SAME_KEY, "on_call_not_done", lambda one, _error, at, **_: _sure(one, next_at=at)),
    ("a stop clears the doubt", SAME_KEY, "on_call_not_sent", lambda _one, _now: rules.Delete()),
    ("a dead worker's call has failed", HOLD, "adopt_attempt", lambda one, adopter, now, **_: _sure(one, worker=adopter, next_at=now)),
    ("a handler that raises is a failed call", HOLD, "hold_refused_outcome", lambda one, *_: _sure(one)),
    ("Absent is believed at once", ASK, "on_lookup_absent", _absent_at_once),
    ("Absent is as late as its answer", ASK, "on_lookup_absent", _absent_by_the_time_of_its_answer),
    ("a doubt is settled only while its condition holds", ASK, "decide_attempt_in_doubt", _settles_only_while_it_holds),
    ("a late outcome is dropped", ASK, "decide_late_outcome", lambda *_, **__: rules.Drop("no")),
    ("retry forgets the outcome in hand", HOLD, "apply_retry_command", _retry_forgets_the_outcome),
    ("a person need not wait", HOLD, "apply_settle_absent_command", _person_need_not_wait),
    ("a failed attempt is tried again however late", ASK_LATE, "decide_failed_attempt", _tries_again_however_late),
    ("a doubt is called again under its key however late", SAME_KEY_LATE, "decide_attempt_in_doubt", _settles_however_late),
    ("a doubt is called again under InDoubt.repeat() however late", AGAIN_LATE, "decide_attempt_in_doubt", _settles_however_late),
    ("the expired handler answers for a doubt", ASK_LATE, "decide_attempt_in_doubt", _expires_in_doubt),
    ("what is held may be forgotten while it holds", HOLD, "apply_forget_command", lambda *_: rules.Delete()),
]


INVARIANTS = r"NothingStale|ExpiredSure|Listed|AtMostOnce|StickyDoubt|OutcomeKept|NotLost|NothingAtRest|BoundedCalls|NoWorkLost"


@pytest.mark.parametrize(("kind", "function", "mistake"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_planted_mistake_is_found(kind: Kind, function: str, mistake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, function, mistake)
    with pytest.raises(AssertionError, match=INVARIANTS):
        many_walks(kind, 4000)


# ---- two mistakes that chance finds too seldom: their stories are told ---------------------------------------------------------------
def a_third_call_under_a_key_that_is_forgotten_soon(world: World) -> None:
    world.takes(0)
    for how in ("landed", "lost"):
        call = world.calls[-1]
        world.goes_out_or_not(call)
        world.request_ends(call, how)
        world.times_out(call, listens=False)
        world.time_passes(26)
        world.settles(0, 0)
    if world.calls[-1].task == "begun":
        world.goes_out_or_not(world.calls[-1])
        world.time_passes(6)
        world.time_passes(6)
        world.request_ends(world.calls[-1], "landed")


def a_thread_that_hung_sends_just_before_its_process_dies(world: World) -> None:
    world.takes(0)
    world.hangs(world.calls[0])
    world.time_passes(26)
    world.sends_after_all(world.calls[0])
    world.is_killed(0)
    world.sweeps(1)
    world.settles(1, 0)
    world.outside_answers(world.queries[0])
    world.answer_is_applied(world.queries[0])


STORIES = [
    (SAME_KEY, a_third_call_under_a_key_that_is_forgotten_soon, "attempt_with_new_call", _key_as_old_as_the_latest_call, "AtMostOnce"),
    (ASK_WITH_THREADS, a_thread_that_hung_sends_just_before_its_process_dies, "adopt_attempt", _deadline_stays, "StickyDoubt"),
]


@pytest.mark.parametrize(("kind", "story", "function", "mistake", "broken"), STORIES, ids=["key", "deadline"])
def test_a_story_ends_well_but_for_a_mistake(
    kind: Kind, story: Callable[[World], None], function: str, mistake: Callable[..., Any], broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = kind.world(has_overtaken=False)
    story(world)
    world.check()
    comes_to_rest(world)
    monkeypatch.setattr(rules, function, mistake)
    world = kind.world(has_overtaken=False)
    story(world)
    with pytest.raises(AssertionError, match=broken):
        world.check()
