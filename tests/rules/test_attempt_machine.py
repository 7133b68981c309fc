"""The rules in a world of crashes, lost locks, late answers and people: the protocol's invariants hold under each policy, and mistakes show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from groundstate.rules import attempt as rules
from groundstate.rules.attempt import Attempt, Keep, State, Terms
from groundstate.rules.policy import again, ask, hold, same_key
from tests.rules.making import SECOND, TIMEOUT
from tests.rules.world import TRIES, World

KEPT_FOR, SETTLE_AFTER = 60 * SECOND, 10 * SECOND
EXAMPLES = settings(max_examples=50, stateful_step_count=40, suppress_health_check=list(HealthCheck))


class UnderAgain(World):
    terms = Terms(again(), TRIES, TIMEOUT)


class UnderSameKey(World):
    terms = Terms(same_key(kept_for=KEPT_FOR, settle_after=SETTLE_AFTER), TRIES, TIMEOUT)


class UnderSameKeyWithFind(World):
    terms = Terms(same_key(kept_for=KEPT_FOR, settle_after=SETTLE_AFTER), TRIES, TIMEOUT, has_find=True)


class UnderAsk(World):
    terms = Terms(ask(settle_after=SETTLE_AFTER), TRIES, TIMEOUT, has_find=True)


class UnderAskWithThreads(UnderAsk):
    threads = True


class UnderHold(World):
    terms = Terms(hold(), TRIES, TIMEOUT)


WORLDS = [UnderAgain, UnderSameKey, UnderSameKeyWithFind, UnderAsk, UnderAskWithThreads, UnderHold]


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.__name__)
def test_the_invariants_hold(world: type[World]) -> None:
    run_state_machine_as_test(world, settings=EXAMPLES)


# ---- a world that cannot tell a mistake proves nothing -----------------------------------------------------------------------------
FAILED, HELD = State.FAILED, State.HELD
honest = {name: getattr(rules, name) for name in ("absent", "settle", "adopted", "unclear", "begun", "person_absent", "person_retry")}


def _sure(one: Attempt, **columns: Any) -> Keep:
    return Keep(replace(one, state=FAILED, unsure=False, **columns))


def _absent_by_the_time_of_its_answer(one: Attempt, terms: Terms, facts: Any, _asked: Any, now: Any, next_at: Any) -> Any:
    return honest["absent"](one, terms, facts, now, now, next_at)


def _absent_at_once(one: Attempt, terms: Terms, facts: Any, asked: Any, now: Any, next_at: Any) -> Any:
    return honest["absent"](replace(one, deadline=asked - 3600 * SECOND), terms, facts, asked, now, next_at)


def _settles_only_while_it_holds(one: Attempt, terms: Terms, facts: Any, now: Any) -> Any:
    return rules.Delete() if facts.gone else honest["settle"](one, terms, facts, now)


def _key_as_old_as_the_latest_call(one: Attempt, *, now: Any, **given: Any) -> Attempt:
    return replace(honest["begun"](one, now=now, **given), first_at=now)


def _deadline_stays(one: Attempt, *given: Any, **more: Any) -> Keep:
    return Keep(replace(honest["unclear" if len(given) == 3 else "adopted"](one, *given, **more).attempt, deadline=one.deadline))


def _retry_forgets_the_outcome(one: Attempt, terms: Terms, now: Any) -> Any:
    return honest["person_retry"](replace(one, outcome=None), terms, now)


def _person_need_not_wait(one: Attempt, terms: Terms, facts: Any, now: Any) -> Any:
    return honest["person_absent"](replace(one, deadline=now - 3600 * SECOND), terms, facts, now)


MISTAKES: list[tuple[str, type[World], str, Callable[..., Any]]] = [
    ("a later NotDone clears the doubt", UnderSameKey, "not_done", lambda one, _error, at, **_: _sure(one, next_at=at)),
    ("a stop clears the doubt", UnderSameKey, "did_not_go_out", lambda _one, _now: rules.Delete()),
    ("a dead worker's call has failed", UnderHold, "adopted", lambda one, adopter, now, **_: _sure(one, worker=adopter, next_at=now)),
    ("a handler that raises is a failed call", UnderHold, "outcome_refused", lambda one, *_: _sure(one)),
    ("Absent is believed at once", UnderAsk, "absent", _absent_at_once),
    ("Absent is as late as its answer", UnderAsk, "absent", _absent_by_the_time_of_its_answer),
    ("a doubt is settled only while its condition holds", UnderAsk, "settle", _settles_only_while_it_holds),
    ("a late outcome is dropped", UnderAsk, "late", lambda *_: rules.Drop("no")),
    ("a key is as old as the latest call", UnderSameKey, "begun", _key_as_old_as_the_latest_call),
    ("the deadline stays when a thread is given up", UnderAskWithThreads, "unclear", _deadline_stays),
    ("the deadline stays at adoption", UnderAskWithThreads, "adopted", _deadline_stays),
    ("retry forgets the outcome in hand", UnderHold, "person_retry", _retry_forgets_the_outcome),
    ("a person need not wait", UnderHold, "person_absent", _person_need_not_wait),
    ("what is held may be forgotten while it holds", UnderHold, "person_forget", lambda *_: rules.Delete()),
]


@pytest.mark.parametrize(("world", "function", "mistake"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_planted_mistake_is_found(world: type[World], function: str, mistake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, function, mistake)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(world, settings=settings(EXAMPLES, max_examples=5000, phases=[Phase.generate]))
