"""The choices a user declares, and those that are refused with their cure."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from groundstate.rules.policy import InDoubt, Retry
from groundstate.values.errors import DeclarationError
from tests.rules.making import SECOND


def test_each_policy_says_what_becomes_of_a_doubt() -> None:
    assert InDoubt.repeat() == InDoubt("repeat")
    assert InDoubt.hold() == InDoubt("hold")
    assert InDoubt.lookup(settle_after=SECOND) == InDoubt("lookup", settle_after=SECOND)
    assert InDoubt.same_key(kept_for=3 * SECOND) == InDoubt("same_key", kept_for=3 * SECOND)
    assert InDoubt.same_key(kept_for=3 * SECOND, settle_after=SECOND) == InDoubt("same_key", kept_for=3 * SECOND, settle_after=SECOND)


def test_nothing_has_to_settle_where_an_outside_answers_at_once() -> None:
    assert InDoubt.lookup(settle_after=timedelta()).settle_after == timedelta()


@pytest.mark.parametrize("wrong", [timedelta(seconds=-1), 30, "30 s", None], ids=str)
def test_a_settle_after_that_is_no_duration_is_refused(wrong: Any) -> None:
    with pytest.raises(DeclarationError, match="settle_after"):
        InDoubt.lookup(settle_after=wrong)


@pytest.mark.parametrize("wrong", [timedelta(), timedelta(seconds=-1), 24, None], ids=str)
def test_a_key_that_is_kept_for_no_time_is_refused(wrong: Any) -> None:
    with pytest.raises(DeclarationError, match="kept_for"):
        InDoubt.same_key(kept_for=wrong)


def test_a_retry_makes_ten_tries_within_an_hour_each_unless_it_is_said() -> None:
    assert Retry() == Retry(times=10, first=SECOND, longest=3600 * SECOND, give_up_after=None)


def test_no_limit_is_said_by_none() -> None:
    assert Retry(times=None).times is None
    with pytest.raises(DeclarationError, match="use None for no limit"):
        Retry(times=0)


@pytest.mark.parametrize("name", ["first", "longest", "give_up_after"])
@pytest.mark.parametrize("wrong", [timedelta(), timedelta(seconds=-1), 5], ids=str)
def test_a_wait_that_is_no_duration_is_refused(name: str, wrong: Any) -> None:
    with pytest.raises(DeclarationError, match=name):
        Retry(**{name: wrong})


def test_the_choices_cannot_be_changed_afterwards() -> None:
    with pytest.raises(AttributeError):
        Retry().times = 3  # type: ignore[misc]  # that is what is refused
