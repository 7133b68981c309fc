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
