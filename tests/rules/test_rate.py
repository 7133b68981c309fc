"""How many calls may be begun in a span, by counts of slices: against a plain list of moments, and for clocks that step."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as some

from groundstate.rules import rate as rules
from groundstate.rules.rate import Rate

SECOND = 1_000_000
rates = some.builds(
    Rate, times=some.integers(1, 5), each=some.sampled_from([timedelta(microseconds=1), timedelta(seconds=1), timedelta(days=1)])
)


class Counter:
    """A place at which calls are begun, whose counts go through their text each time."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.written: str | None = None

    def begin(self, now: int, wanted: int) -> int:
        found = rules.read_call_count(self.written, self.rate, now)
        got = min(wanted, rules.calls_left(found, self.rate))
        self.written = rules.count_as_json(rules.count_with_more_calls(found, self.rate, now, got))
        return got

    def free_at(self, now: int) -> int | None:
        return rules.next_call_allowed_at(rules.read_call_count(self.written, self.rate, now), self.rate)


@given(rates, some.lists(some.tuples(some.floats(0, 1.5), some.integers(1, 6)), max_size=40))
def test_no_span_has_more_than_the_rate_and_no_token_is_lost_for_good(rate: Rate, steps: list[tuple[float, int]]) -> None:
    span = rate.each // timedelta(microseconds=1)
    counter, now, begun = Counter(rate), 10 * SECOND, []
    for step, wanted in steps:
        now += int(step * span)
        begun += [now] * counter.begin(now, wanted)
    for first in begun:
        assert sum(1 for other in begun if first <= other < first + span) <= rate.times
    at = counter.free_at(now)
    if at is None:
        assert counter.begin(now, 1) == 1
    else:
        assert now < at <= now + span + max(span // rules.SLICES, 1)
        assert counter.begin(at - 1, 1) == 0
        assert counter.begin(at, 1) == 1


def test_a_clock_set_back_by_an_hour_counts_all_as_begun_just_now() -> None:
    counter = Counter(Rate(3, timedelta(seconds=10)))
    assert counter.begin(3600 * SECOND, 3) == 3
    assert counter.begin(0, 1) == 0
    assert counter.begin(10 * SECOND - 1, 1) == 0
    assert counter.begin(10 * SECOND + SECOND // 2, 3) == 3


def test_another_workers_reading_that_is_a_little_ahead_counts_from_there() -> None:
    counter = Counter(Rate(1, timedelta(seconds=1)))
    assert counter.begin(SECOND // 2, 1) == 1
    assert counter.begin(0, 1) == 0
    assert counter.begin(SECOND + SECOND // 2, 1) == 0
    assert counter.begin(SECOND + SECOND // 2 + SECOND // 20, 1) == 1


def test_another_span_in_new_code_reads_the_counts_of_the_old() -> None:
    counter = Counter(Rate(4, timedelta(seconds=60)))
    assert counter.begin(0, 4) == 4
    counter.rate = Rate(4, timedelta(seconds=1))
    assert counter.begin(SECOND // 2, 1) == 0
    assert counter.begin(3 * SECOND, 1) == 1


def test_what_cannot_be_read_counts_in_full_for_one_span() -> None:
    for nonsense in ("", "[]", '{"a": 1}', '{"1": "x"}', "null", "[" * 100_000):
        counter = Counter(Rate(2, timedelta(seconds=1)))
        counter.written = nonsense
        assert counter.begin(0, 1) == 0
        counter.written = nonsense if nonsense != "null" else counter.written
        assert rules.calls_left(rules.read_call_count(counter.written, counter.rate, 0), counter.rate) == 0
