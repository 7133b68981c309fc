"""An endpoint that fails is given a pause, and then one probe at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from groundstate.rules.circuit_breaker import FIRST_S, IN_A_ROW, LONGEST_S, Breaker


def opened(now: float = 100.0) -> Breaker:
    breaker = Breaker()
    for record in range(IN_A_ROW):
        breaker.record_failure(record, now)
    return breaker


def test_five_records_in_a_row_pause_the_outside_for_a_second() -> None:
    breaker = Breaker()
    for record in range(4):
        breaker.record_failure(record, 100.0)
    assert breaker.calls_allowed(8, 0, 100.0) == 8
    breaker.record_failure(4, 100.0)
    assert breaker.is_open
    assert breaker.calls_allowed(8, 0, 100.0) == 0
    assert breaker.calls_allowed(8, 0, 100.99) == 0


def test_one_record_that_fails_again_and_again_is_not_the_endpoint() -> None:
    breaker = Breaker()
    for _ in range(50):
        breaker.record_failure("the same", 100.0)
    assert not breaker.is_open


def test_a_record_that_fails_after_the_endpoint_wanted_a_pause_is_one_of_a_row() -> None:
    breaker = Breaker()
    breaker.record_throttled(100.0, 2.0)
    assert breaker.calls_allowed(8, 0, 101.0) == 0
    breaker.record_failure("a broken one", 102.0)
    assert not breaker.is_open
    assert breaker.calls_allowed(8, 0, 102.0) == 2
    for record in range(IN_A_ROW - 1):
        breaker.record_failure(record, 102.0)
    assert breaker.is_open


def test_an_endpoint_that_failed_and_then_wants_a_pause_is_probed_as_one_that_fails() -> None:
    breaker = opened()
    breaker.record_throttled(101.0, 2.0)
    breaker.record_failure("probe", 103.0)
    assert breaker.is_open
    assert breaker.calls_allowed(8, 0, 104.0) == 0


def test_a_success_in_between_is_no_row() -> None:
    breaker = Breaker()
    for record in range(40):
        breaker.record_failure(record, 100.0)
        if record % 4 == 3:
            breaker.record_success(100.0)
    assert not breaker.is_open


def test_a_find_that_is_answered_does_not_end_a_pause_of_calls_nor_a_row_of_their_failures() -> None:
    breaker, now = opened(), 101.0
    for pause_s in (2, 4, 8):
        breaker.record_lookup_answer(now)
        breaker.record_failure("probe", now)
        assert breaker.pause_s == pause_s
        now = breaker.until
    assert breaker.is_open
    other = Breaker()
    for record in range(IN_A_ROW):
        other.record_failure(record, 100.0)
        other.record_lookup_answer(100.0)
    assert other.is_open
    other.record_success(101.0)
    assert not other.is_open


def test_a_find_that_is_answered_ends_a_pause_that_finds_alone_began() -> None:
    breaker = Breaker()
    for record in range(IN_A_ROW):
        breaker.record_failure(record, 100.0, lookup=True)
    assert breaker.is_open
    breaker.record_lookup_answer(101.0)
    assert not breaker.is_open


def test_after_the_pause_one_probe_goes_out_at_a_time() -> None:
    breaker = opened()
    assert breaker.calls_allowed(8, 0, 101.0) == 1
    assert breaker.calls_allowed(8, 1, 101.0) == 0
    assert breaker.calls_allowed(0, 0, 101.0) == 0


def test_a_probe_that_fails_doubles_the_pause_up_to_a_quarter_of_a_minute() -> None:
    breaker, now, pauses = opened(), 100.0, []
    for _ in range(8):
        pauses.append(breaker.until - now)
        now = breaker.until
        breaker.record_failure("probe", now)
    assert pauses == [1, 2, 4, 8, 15, 15, 15, 15]


def test_records_that_were_begun_before_the_pause_do_not_double_it() -> None:
    breaker = opened()
    for record in range(100, 120):
        breaker.record_failure(record, 100.5)
    assert breaker.until == 101.0
    assert breaker.pause_s == FIRST_S


def test_a_probe_that_succeeds_opens_the_way_and_the_next_pause_is_short_again() -> None:
    breaker = opened()
    breaker.record_failure("probe", 101.0)
    breaker.record_success(103.0)
    assert not breaker.is_open
    assert breaker.calls_allowed(5, 3, 103.0) == 0
    assert breaker.calls_allowed(8, 0, 103.0) == 2
    assert breaker.more_allowed_at(103.0) == 104.0
    for record in range(IN_A_ROW):
        breaker.record_failure(record, 200.0)
    assert breaker.until == 200.0 + FIRST_S


def test_after_a_pause_each_answer_makes_room_for_one_more_until_all_slots_are_given_again() -> None:
    breaker, flying, rounds = opened(), 1, []
    breaker.record_success(101.0)
    while (room := breaker.calls_allowed(64, 0, 101.0)) < 64:
        rounds.append(room)
        flying = room
        for _ in range(flying):
            breaker.record_success(101.0)
    assert rounds == [2, 4, 8, 16, 32]
    assert breaker.calls_allowed(64, 0, 101.0) == 64


def test_after_a_pause_there_may_be_twice_as_many_calls_each_second_though_none_is_answered_yet() -> None:
    breaker, now = opened(), 102.0
    together: list[int] = []
    breaker.record_success(now)
    while (room := breaker.calls_allowed(100 - sum(together), sum(together), now)) < 100 - sum(together):
        together.append(room)
        assert breaker.calls_allowed(100 - sum(together), sum(together), now + 0.99) == 0, "more before a second is over"
        now = breaker.more_allowed_at(now) or 0.0
    assert together == [2, 2, 4, 8, 16, 32]
    assert now == 108.0
    assert breaker.more_allowed_at(now) is None
    assert breaker == Breaker(), "of an endpoint at its full pace something is remembered"


def test_a_failure_while_slots_are_given_back_by_degrees_pauses_all_again() -> None:
    breaker = opened()
    breaker.record_success(101.0)
    for record in range(IN_A_ROW):
        breaker.record_failure(record, 150.0)
    assert breaker.calls_allowed(8, 0, 150.5) == 0
    assert breaker.calls_allowed(8, 0, 151.0) == 1


def test_busy_pauses_for_as_long_as_the_endpoint_asks_and_then_probes() -> None:
    breaker = Breaker()
    breaker.record_throttled(100.0, 30.0)
    assert breaker.calls_allowed(8, 0, 129.0) == 0
    assert breaker.calls_allowed(8, 0, 130.0) == 1
    breaker.record_throttled(100.0, 5.0)
    assert breaker.calls_allowed(8, 0, 129.0) == 0


def test_a_reaction_may_want_more_in_a_row() -> None:
    breaker = Breaker(in_a_row=20)
    for record in range(19):
        breaker.record_failure(record, 100.0)
    assert breaker.calls_allowed(8, 0, 100.0) == 8
    breaker.record_failure(19, 100.0)
    assert breaker.calls_allowed(8, 0, 100.0) == 0


happenings = st.lists(st.tuples(st.sampled_from(["wrong", "right"]), st.integers(0, 9), st.floats(0, 30)), max_size=40)


@given(happenings, st.integers(0, 100), st.integers(0, 100))
def test_whatever_happens_no_pause_is_longer_than_a_quarter_of_a_minute_and_then_there_is_room(
    story: list[tuple[str, int, float]], free: int, flying: int
) -> None:
    breaker, now = Breaker(), 0.0
    for what, record, later in story:
        now += later
        if what == "wrong":
            breaker.record_failure(record, now)
        else:
            breaker.record_success(now)
        assert breaker.until <= now + LONGEST_S
        assert 0 <= breaker.calls_allowed(free, flying, now) <= free
        assert breaker.calls_allowed(1, 0, now + LONGEST_S) == 1


def test_probes_are_in_turn_of_a_record_that_was_not_tried_yet_and_of_any() -> None:
    breaker, wants_new = opened(), []

    def probe(record: str, *, again: bool = False) -> None:
        wants_new.append(breaker.wants_untried_record)
        breaker.record_failure(record, breaker.until, again=again)

    probe("new")
    probe("tried", again=True)
    probe("tried", again=True)
    probe("new, since that was the only one there")
    probe("tried", again=True)
    breaker.record_throttled(breaker.until, 1.0)
    wants_new.append(breaker.wants_untried_record)
    breaker.record_lookup_answer(breaker.until)
    wants_new.append(breaker.wants_untried_record)
    breaker.record_success(breaker.until)
    wants_new.append(breaker.wants_untried_record)
    assert wants_new == [True, False, True, True, False, False, True, False]
