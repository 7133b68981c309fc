"""Careful mode: who is suspected after unclean ends, and in how small a company."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from groundstate.rules.careful import STRETCH, TOGETHER, Care, care
from tests.rules.making import NOW, SECOND

MINUTE = 60 * SECOND


def test_one_unclean_end_is_a_deploy_or_a_power_cut() -> None:
    assert not care([], NOW).careful
    assert not care([NOW - SECOND], NOW).careful


def test_two_unclean_ends_within_ten_minutes_make_all_lives_careful() -> None:
    assert care([NOW - 9 * MINUTE, NOW], NOW).careful


def test_ten_clean_minutes_end_it() -> None:
    last = NOW - STRETCH
    assert not care([last - 2 * SECOND, last - SECOND, last], NOW).careful


def test_less_than_ten_clean_minutes_do_not_end_it() -> None:
    assert care([NOW - 10 * MINUTE, NOW - MINUTE], NOW).careful


def test_careful_mode_starts_with_a_small_batch_and_halves_it_at_each_death() -> None:
    sizes, size = [], 0
    for _ in range(9):
        size = Care(careful=True).together(size)
        sizes.append(size)
    assert sizes == [64, 32, 16, 8, 4, 2, 1, 1, 1]


@given(st.integers(1, 10_000))
def test_a_record_comes_again_in_at_most_half_the_company_and_never_in_none(before: int) -> None:
    again = Care(careful=True).together(before)
    assert 1 <= again <= max(before / 2, 1)
    assert Care(careful=True).together(0) == TOGETHER


@given(st.lists(st.integers(0, 3600), max_size=8))
def test_an_end_more_never_makes_it_less_careful(ago: list[int]) -> None:
    ends = [NOW - timedelta(seconds=seconds) for seconds in ago]
    for count in range(len(ends)):
        assert care(ends, NOW).careful >= care(ends[:count], NOW).careful
