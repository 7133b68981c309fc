"""When what failed is tried again, and when a lookup is asked again."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from groundstate.rules.policy import Retry
from groundstate.rules.retry import backoff, is_last_try_used, next_lookup_at, next_try_at, reason_of_last_try
from tests.rules.making import NOW, SECOND, moments

RETRY = Retry(times=10, first=SECOND, longest=60 * SECOND)
dice = st.floats(0, 1, exclude_max=True)
waits = st.integers(1, 10_000).map(lambda number: number * SECOND)
retries = st.builds(lambda first, more: Retry(first=first, longest=first + more), waits, waits)


def test_the_wait_doubles_from_first_to_longest() -> None:
    most = [backoff(RETRY, failures, dice=1.0) for failures in range(1, 9)]
    assert most == [number * SECOND for number in (1, 2, 4, 8, 16, 32, 60, 60)]


def test_the_dice_take_up_to_half_of_the_wait() -> None:
    assert backoff(RETRY, 3, dice=0.0) == 2 * SECOND
    assert backoff(RETRY, 3, dice=0.5) == 3 * SECOND


@given(retries, st.integers(0, 10**9), dice)
def test_a_wait_lies_between_half_of_first_and_longest(retry: Retry, failures: int, rolled: float) -> None:
    assert retry.first / 2 <= backoff(retry, failures, rolled) <= retry.longest


@given(retries, st.integers(0, 200), dice)
def test_one_failure_more_never_waits_less(retry: Retry, failures: int, rolled: float) -> None:
    assert backoff(retry, failures, rolled) <= backoff(retry, failures + 1, rolled)


def test_what_the_endpoint_asked_for_counts_where_it_is_later() -> None:
    assert next_try_at(RETRY, 1, NOW, 0.0, retry_after=90 * SECOND) == NOW + 90 * SECOND
    assert next_try_at(RETRY, 7, NOW, 0.0, retry_after=SECOND) == NOW + 30 * SECOND
    assert next_try_at(RETRY, 1, NOW, 0.0) == NOW + SECOND / 2


def test_the_last_try_is_used_when_so_many_failed() -> None:
    assert not is_last_try_used(Retry(times=3), 2, NOW, NOW)
    assert is_last_try_used(Retry(times=3), 3, NOW, NOW)
    assert not is_last_try_used(Retry(times=None), 10**9, NOW, NOW)


def test_the_last_try_is_used_when_the_first_begin_was_too_long_ago() -> None:
    retry = Retry(times=None, give_up_after=60 * SECOND)
    assert not is_last_try_used(retry, 0, NOW, NOW + 60 * SECOND - timedelta(microseconds=1))
    assert is_last_try_used(retry, 0, NOW, NOW + 60 * SECOND)


def test_the_reason_says_whether_the_tries_or_their_time_came_to_an_end() -> None:
    both = Retry(times=3, give_up_after=60 * SECOND)
    assert reason_of_last_try(both, 3) == "the last try was used"
    assert reason_of_last_try(both, 2) == "give_up_after=60 s had passed since its first try, so that no further one was made"


@given(retries, moments, waits, moments, moments, dice)
def test_a_find_is_asked_later_and_no_later_than_the_longest_wait(
    retry: Retry, deadline: datetime, settle_after: timedelta, since: datetime, now: datetime, rolled: float
) -> None:
    at = next_lookup_at(retry, deadline, settle_after, since, now, rolled)
    assert now < at <= now + retry.longest
    believable = deadline + settle_after
    if now <= believable:
        assert at <= believable + timedelta(milliseconds=1)


def test_a_find_is_asked_as_soon_as_absent_can_be_believed_and_not_just_before() -> None:
    soon = next_lookup_at(RETRY, NOW, SECOND, NOW - 600 * SECOND, NOW, 0.9)
    assert soon > NOW + SECOND
    assert soon - (NOW + SECOND) <= timedelta(milliseconds=1)
