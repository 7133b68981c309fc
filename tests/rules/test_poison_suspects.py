"""Careful mode: who is suspected after unclean ends, and carried out alone."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundstate.rules.poison_suspects import DIED, STRETCH, Care, care_from_ends, why_for_ended_workers, worker_ends_in_why
from tests.rules.making import NOW, SECOND

MINUTE = 60 * SECOND


def test_one_unclean_end_is_a_deploy_or_a_power_cut() -> None:
    assert not care_from_ends([], NOW).careful
    assert not care_from_ends([NOW - SECOND], NOW).careful


def test_two_unclean_ends_within_ten_minutes_make_all_lives_careful() -> None:
    assert care_from_ends([NOW - 9 * MINUTE, NOW], NOW).careful


def test_ten_clean_minutes_end_it() -> None:
    last = NOW - STRETCH
    assert not care_from_ends([last - 2 * SECOND, last - SECOND, last], NOW).careful


def test_less_than_ten_clean_minutes_do_not_end_it() -> None:
    assert care_from_ends([NOW - 10 * MINUTE, NOW - MINUTE], NOW).careful


ENDS = frozenset([1, 2, 3])


def test_a_call_that_was_under_way_at_two_ends_is_alone_at_its_next_try() -> None:
    care = Care(careful=True, ends=ENDS)
    assert [care.must_run_alone(why_for_ended_workers(ends), has_call=True) for ends in ([1], [1, 2], [1, 2, 3])] == [False, True, True]


def test_what_makes_no_call_is_alone_after_the_first_end_that_tells_of_it() -> None:
    care = Care(careful=True, ends=ENDS)
    assert [care.must_run_alone(why, has_call=False) for why in (None, "another reason (workers 1)", why_for_ended_workers([1]))] == [
        False,
        False,
        True,
    ]


def test_ends_that_are_forgotten_make_nobody_suspected_and_nor_do_any_once_careful_mode_is_over() -> None:
    assert not Care(careful=True, ends=ENDS).must_run_alone(why_for_ended_workers([1, 8]), has_call=True)
    assert not Care(ends=ENDS).must_run_alone(why_for_ended_workers([1, 2, 3]), has_call=True)


@given(st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=20), st.booleans())
def test_what_an_attempt_says_of_ends_is_read_back(ends: list[int], alone: bool) -> None:
    assert worker_ends_in_why(why_for_ended_workers(ends, alone=alone)) == ends[-8:]


@pytest.mark.parametrize("why", [None, "", DIED, f"{DIED} (workers )", f"{DIED} (workers 1,, 2)", f"{DIED} (workers x)", "(workers 1)"])
def test_what_somebody_edited_tells_of_no_end(why: str | None) -> None:
    assert worker_ends_in_why(why) == []


@given(st.lists(st.integers(0, 3600), max_size=8))
def test_an_end_more_never_makes_it_less_careful(ago: list[int]) -> None:
    ends = [NOW - timedelta(seconds=seconds) for seconds in ago]
    for count in range(len(ends)):
        assert care_from_ends(ends, NOW).careful >= care_from_ends(ends[:count], NOW).careful
