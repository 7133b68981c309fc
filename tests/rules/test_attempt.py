"""Each row of the transition table once, by an example: begun, in doubt and failed. Late words and persons: test_attempt_late.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from groundstate.rules import attempt as rules
from groundstate.rules.attempt import (
    EXPIRED_HANDLER_FAILED,
    AskLookup,
    Attempt,
    Begin,
    Conclude,
    Delete,
    Expired,
    GaveUp,
    Keep,
    Overtaken,
    State,
    Terms,
    Wait,
)
from groundstate.rules.poison_suspects import DIED, why_for_ended_workers, worker_ends_in_why
from groundstate.rules.policy import LONG_AGO, MARGIN, InDoubt, Retry
from tests.rules.making import (
    AGAIN,
    ASK,
    DELETED,
    GONE,
    HOLD,
    HOLDS,
    KEPT_FOR,
    LATE,
    LATE_AND_GONE,
    NO_CALL,
    NOW,
    SAME_KEY,
    SAME_KEY_AND_LOOKUP,
    SECOND,
    SETTLE_AFTER,
    TIMEOUT,
    attempt,
    terms,
)

BEGUN, DOUBT, FAILED, HELD = State
LATER = NOW + 4 * SECOND


def kept(decision: object) -> Attempt:
    assert isinstance(decision, Keep), decision
    return decision.attempt


def held(decision: object) -> str:
    """Why it is held; unsure as it was."""
    one = kept(decision)
    assert (one.state, one.unsure, one.next_at) == (HELD, True, None)
    assert one.why is not None
    return one.why


# ---- taken ---------------------------------------------------------------------------------------------------------------------
def test_taken_it_is_begun_with_a_new_call_number_one_and_is_not_unsure() -> None:
    fresh = attempt(FAILED, call_no=0)
    one = rules.attempt_with_new_call(fresh, worker=3, call=55, now=NOW, deadline=NOW + TIMEOUT)
    assert (one.state, one.worker, one.call, one.call_no, one.unsure) == (BEGUN, 3, 55, 1, False)
    assert (one.first_at, one.deadline) == (NOW, NOW + TIMEOUT)


# ---- begun ---------------------------------------------------------------------------------------------------------------------
def test_the_call_returned_and_its_condition_holds_so_the_handler_runs() -> None:
    assert rules.on_call_returned(HOLDS) == Conclude()


def test_the_call_returned_and_its_condition_no_longer_holds_so_it_is_overtaken() -> None:
    assert rules.on_call_returned(GONE) == Overtaken()
    assert rules.on_call_returned(DELETED) == Overtaken()


@pytest.mark.parametrize("one", [attempt(BEGUN), attempt(BEGUN, unsure=True), attempt(DOUBT)], ids=["sure", "unsure", "doubt"])
def test_an_outcome_whose_handler_raised_is_held_and_is_no_doubt_any_more(one: Attempt) -> None:
    after = kept(rules.hold_refused_outcome(one, "the handler raised", "KeyError: 'total'", '["ch_1"]'))
    assert (after.state, after.unsure, after.outcome, after.why) == (HELD, False, '["ch_1"]', "the handler raised")


def test_a_call_that_was_surely_not_done_has_failed_and_is_tried_again_by_backoff() -> None:
    after = kept(rules.on_call_not_done(attempt(BEGUN), "declined", LATER, counts=True))
    assert (after.state, after.unsure, after.failures, after.next_at, after.error) == (FAILED, False, 1, LATER, "declined")


def test_a_busy_endpoint_is_no_failure_of_the_record() -> None:
    assert kept(rules.on_call_not_done(attempt(BEGUN, failures=2), "busy", LATER, counts=False)).failures == 2
    assert kept(rules.on_call_not_done(attempt(BEGUN, failures=2, unsure=True), "busy", LATER, counts=False)).state is DOUBT


def test_a_call_that_was_surely_not_done_says_nothing_of_an_earlier_one() -> None:
    after = kept(rules.on_call_not_done(attempt(BEGUN, unsure=True), "declined", LATER, counts=True))
    assert (after.state, after.unsure, after.failures, after.next_at) == (DOUBT, True, 1, LATER)


def test_a_call_that_timed_out_is_in_doubt_and_its_thread_may_have_sent_until_now() -> None:
    after = kept(rules.put_in_doubt(attempt(BEGUN), "TimeoutError", LATER, NOW))
    assert (after.state, after.unsure, after.failures, after.next_at, after.deadline) == (DOUBT, True, 1, LATER, NOW)


def test_a_call_that_raised_before_its_deadline_can_still_be_running_until_then() -> None:
    one = attempt(BEGUN, deadline=NOW + TIMEOUT)
    assert kept(rules.put_in_doubt(one, "ReadError", LATER, NOW)).deadline == NOW + TIMEOUT


def test_a_call_whose_worker_is_no_more_is_in_doubt_and_belongs_to_the_adopter() -> None:
    after = kept(rules.adopt_attempt(attempt(BEGUN), 8, NOW, alone=False))
    assert (after.state, after.unsure, after.failures, after.worker, after.deadline, after.next_at) == (DOUBT, True, 1, 8, NOW, NOW)


def test_in_careful_mode_only_the_call_that_was_alone_counts_for_its_worker_s_death() -> None:
    among_others = kept(rules.adopt_attempt(attempt(BEGUN, together=4), 8, NOW, alone=False))
    alone = kept(rules.adopt_attempt(attempt(BEGUN, together=1), 8, NOW, alone=True))
    assert (among_others.state, among_others.failures) == (DOUBT, 0)
    assert (alone.state, alone.failures) == (DOUBT, 1)


def test_a_batch_without_calls_whose_worker_is_no_more_has_failed_and_is_never_unsure() -> None:
    one = attempt(BEGUN, call_no=0, together=4)
    after = kept(rules.adopt_attempt(one, 8, NOW, alone=False))
    assert (after.state, after.unsure, after.failures, after.next_at) == (FAILED, False, 0, NOW)


def test_what_makes_no_call_is_held_after_two_unclean_ends_the_second_with_it_alone() -> None:
    once = kept(rules.adopt_attempt(attempt(BEGUN, call_no=0, together=4), 8, NOW, alone=False, ends=[5]))
    assert (once.state, worker_ends_in_why(once.why)) == (FAILED, [5])
    in_company = kept(rules.adopt_attempt(replace(once, state=BEGUN), 9, NOW, alone=False, ends=[5, 6]))
    assert (in_company.state, worker_ends_in_why(in_company.why)) == (FAILED, [5, 6])
    alone = kept(rules.adopt_attempt(replace(once, state=BEGUN, together=1), 9, NOW, alone=True, ends=[5, 6]))
    assert (alone.state, alone.failures, alone.unsure, alone.worker, worker_ends_in_why(alone.why)) == (HELD, 1, False, 9, [5, 6])


def test_a_call_is_held_after_three_unclean_ends_the_last_with_it_alone() -> None:
    twice = kept(rules.adopt_attempt(attempt(BEGUN), 8, NOW, alone=False, ends=[5, 6]))
    assert (twice.state, worker_ends_in_why(twice.why)) == (DOUBT, [5, 6])
    in_company = kept(rules.adopt_attempt(replace(twice, state=BEGUN, together=4), 9, NOW, alone=False, ends=[5, 6, 7]))
    assert in_company.state is DOUBT
    second = kept(rules.adopt_attempt(attempt(BEGUN, together=1), 8, NOW, alone=True, ends=[5, 6]))
    assert second.state is DOUBT
    alone = kept(rules.adopt_attempt(replace(twice, state=BEGUN, together=1), 9, NOW, alone=True, ends=[5, 6, 7]))
    assert (alone.state, alone.unsure, alone.why) == (HELD, True, f"{DIED}, 3 times, the last time alone (workers 5, 6, 7)")


def test_an_end_that_was_no_unclean_one_makes_nobody_suspected_and_forgets_no_earlier_one() -> None:
    one = attempt(BEGUN, call_no=0, together=1, why=why_for_ended_workers([5, 6]))
    after = kept(rules.adopt_attempt(one, 8, NOW, alone=True))
    assert (after.state, after.why) == (FAILED, one.why)


def test_a_call_of_a_reaction_that_makes_none_in_the_adopter_s_code_is_in_doubt_all_the_same() -> None:
    after = kept(rules.adopt_attempt(attempt(BEGUN), 8, NOW, alone=False))
    assert (after.state, after.unsure) == (DOUBT, True)
    assert "makes no call any more" in held(rules.decide_attempt_in_doubt(after, NO_CALL, HOLDS, NOW))


def test_a_doubt_whose_worker_is_no_more_changes_hands_and_does_not_count() -> None:
    after = kept(rules.adopt_attempt(attempt(DOUBT, failures=2), 8, NOW, alone=False))
    assert (after.state, after.worker, after.deadline, after.failures) == (DOUBT, 8, NOW, 2)


def test_a_call_that_did_not_go_out_leaves_nothing() -> None:
    assert rules.on_call_not_sent(attempt(BEGUN), NOW) == Delete()


def test_a_call_that_did_not_go_out_and_had_failed_before_is_failed_and_tried_now() -> None:
    after = kept(rules.on_call_not_sent(attempt(BEGUN, failures=1), NOW))
    assert (after.state, after.failures, after.next_at) == (FAILED, 1, NOW)


def test_a_call_that_did_not_go_out_after_one_in_doubt_is_in_doubt() -> None:
    after = kept(rules.on_call_not_sent(attempt(BEGUN, unsure=True, failures=1), NOW))
    assert (after.state, after.unsure, after.failures) == (DOUBT, True, 1)


def test_a_call_of_which_its_living_worker_knows_nothing_is_in_doubt_as_the_database_may_have_gone_back() -> None:
    after = kept(rules.on_call_not_in_memory(attempt(BEGUN), NOW))
    assert (after.state, after.unsure, after.failures, after.worker) == (DOUBT, True, 1, attempt(BEGUN).worker)


def test_a_batch_without_a_call_of_which_its_living_worker_knows_nothing_leaves_nothing() -> None:
    assert rules.on_call_not_in_memory(attempt(BEGUN, call_no=0), NOW) == Delete()


@pytest.mark.parametrize("facts", [rules.Facts(*both) for both in ((True, True), (True, False), (False, False))])
@pytest.mark.parametrize("blocked", [True, False])
@pytest.mark.parametrize("repeats", [True, False])
def test_what_somebody_deleted_while_its_call_was_made_stands_again_unless_its_outcome_belongs_to_nothing_any_more(
    facts: rules.Facts, blocked: bool, repeats: bool
) -> None:
    would_be_called = facts.holds and not blocked
    assert rules.must_restore_attempt(facts, outcome=True, repeats=repeats, blocked=blocked) == would_be_called
    assert rules.must_restore_attempt(facts, outcome=False, repeats=repeats, blocked=blocked) == (would_be_called or not repeats)


# ---- doubt ---------------------------------------------------------------------------------------------------------------------
def test_found_in_doubt_it_goes_on_as_if_the_call_had_returned() -> None:
    assert rules.on_call_returned(HOLDS) == Conclude()
    assert rules.on_call_returned(GONE) == Overtaken()


def test_a_believed_absent_clears_the_doubt_and_the_call_is_made_again_while_its_condition_holds() -> None:
    after = kept(rules.on_lookup_absent(attempt(DOUBT, failures=1), ASK, HOLDS, NOW, LATER, LATER))
    assert (after.state, after.unsure, after.next_at, after.failures) == (FAILED, False, LATER, 1)


def test_a_believed_absent_whose_condition_is_gone_leaves_nothing() -> None:
    assert rules.on_lookup_absent(attempt(DOUBT), ASK, GONE, NOW, NOW, LATER) == Delete()


def test_absent_counts_from_when_it_was_asked_and_only_later_than_deadline_and_settle_after() -> None:
    one = attempt(DOUBT, deadline=NOW)
    limit = NOW + SETTLE_AFTER
    asks_at, called_at = LATER, LATER + 9 * SECOND
    early = kept(rules.on_lookup_absent(one, ASK, HOLDS, limit, asks_at, called_at))
    assert (early.state, early.unsure, early.next_at) == (DOUBT, True, asks_at)
    believed = kept(rules.on_lookup_absent(one, ASK, HOLDS, limit + SECOND / 1000, asks_at, called_at))
    assert (believed.state, believed.unsure, believed.next_at) == (FAILED, False, called_at)


def test_unknown_is_asked_again_later() -> None:
    after = kept(rules.on_lookup_unknown(attempt(DOUBT, error="timed out"), LATER, None))
    assert (after.state, after.unsure, after.next_at, after.error) == (DOUBT, True, LATER, "timed out")
    assert kept(rules.on_lookup_unknown(attempt(DOUBT), LATER, "502")).error == "502"


def test_unknown_for_too_long_is_held() -> None:
    assert held(rules.hold_unknown_for_too_long(attempt(DOUBT), "nobody could say for a day")) == "nobody could say for a day"


def test_again_calls_again_and_what_was_unsure_stays_so() -> None:
    one = attempt(DOUBT)
    assert rules.decide_attempt_in_doubt(one, AGAIN, HOLDS, NOW) == Begin(one)
    after = rules.attempt_with_new_call(one, worker=1, call=5, now=NOW, deadline=NOW + TIMEOUT)
    assert (after.unsure, after.first_at, after.call_no) == (True, one.first_at, 2)


def test_again_lets_go_where_its_condition_is_gone_and_says_so() -> None:
    decision = rules.decide_attempt_in_doubt(attempt(DOUBT, failures=99), AGAIN, GONE, NOW)
    assert isinstance(decision, Delete)
    assert decision.say


def test_again_gives_up_after_its_last_try() -> None:
    assert rules.decide_attempt_in_doubt(attempt(DOUBT, failures=3), AGAIN, HOLDS, NOW) == GaveUp(unsure=True)


def test_same_key_calls_again_while_the_provider_keeps_the_key() -> None:
    one = attempt(DOUBT)
    assert rules.decide_attempt_in_doubt(one, SAME_KEY, HOLDS, NOW) == Begin(one)


def test_same_key_is_too_old_when_the_new_call_could_land_after_the_provider_forgot_the_key() -> None:
    margin = MARGIN + TIMEOUT + SETTLE_AFTER
    last = attempt(DOUBT, first_at=NOW - KEPT_FOR + margin + SECOND / 1000)
    too_old = attempt(DOUBT, first_at=NOW - KEPT_FOR + margin)
    assert rules.decide_attempt_in_doubt(last, SAME_KEY, HOLDS, NOW) == Begin(last)
    assert "too old" in held(rules.decide_attempt_in_doubt(too_old, SAME_KEY, HOLDS, NOW))
    assert rules.decide_attempt_in_doubt(too_old, SAME_KEY_AND_LOOKUP, HOLDS, NOW) == AskLookup()


def test_a_doubt_of_a_lost_time_is_held_for_that_and_not_for_the_age_of_its_key() -> None:
    lost = attempt(DOUBT, first_at=LONG_AGO, why="the database went back in time: it may have been called in the lost time")
    assert held(rules.decide_attempt_in_doubt(lost, SAME_KEY, HOLDS, NOW)) == f"in doubt, and {lost.why}"
    assert "too old" in held(rules.decide_attempt_in_doubt(attempt(DOUBT, first_at=LONG_AGO), SAME_KEY, HOLDS, NOW))


def test_a_doubt_whose_worker_died_is_held_for_the_age_of_its_key_and_not_for_that_death() -> None:
    died = attempt(DOUBT, first_at=LONG_AGO, why=why_for_ended_workers([1, 2]))
    assert "too old" in held(rules.decide_attempt_in_doubt(died, SAME_KEY, HOLDS, NOW))


def test_same_key_whose_condition_is_gone_is_asked_or_held() -> None:
    assert "no longer holds" in held(rules.decide_attempt_in_doubt(attempt(DOUBT), SAME_KEY, GONE, NOW))
    assert rules.decide_attempt_in_doubt(attempt(DOUBT), SAME_KEY_AND_LOOKUP, GONE, NOW) == AskLookup()


def test_same_key_is_held_after_its_last_try() -> None:
    assert "last try" in held(rules.decide_attempt_in_doubt(attempt(DOUBT, failures=3), SAME_KEY, HOLDS, NOW))
    assert "last try" in held(rules.decide_attempt_in_doubt(attempt(DOUBT, failures=3), SAME_KEY_AND_LOOKUP, HOLDS, NOW))


def test_ask_asks_whether_or_not_its_condition_holds_and_even_after_the_last_try() -> None:
    assert rules.decide_attempt_in_doubt(attempt(DOUBT), ASK, HOLDS, NOW) == AskLookup()
    assert rules.decide_attempt_in_doubt(attempt(DOUBT), ASK, GONE, NOW) == AskLookup()
    assert rules.decide_attempt_in_doubt(attempt(DOUBT, failures=99), ASK, HOLDS, NOW) == AskLookup()


def test_hold_holds() -> None:
    assert "InDoubt.hold()" in held(rules.decide_attempt_in_doubt(attempt(DOUBT), HOLD, HOLDS, NOW))


@pytest.mark.parametrize("chosen", [AGAIN, SAME_KEY, SAME_KEY_AND_LOOKUP, ASK, HOLD], ids=lambda one: one.policy.kind)
def test_a_doubt_whose_record_was_deleted_is_held_under_every_policy(chosen: Terms) -> None:
    assert "deleted" in held(rules.decide_attempt_in_doubt(attempt(DOUBT), chosen, DELETED, NOW))
    assert "deleted" in held(rules.on_lookup_absent(attempt(DOUBT), chosen, DELETED, NOW, NOW, LATER))


# ---- failed --------------------------------------------------------------------------------------------------------------------
def test_what_failed_is_begun_again_when_it_is_due_and_its_key_starts_anew() -> None:
    one = attempt(FAILED, failures=2)
    assert rules.decide_failed_attempt(one, ASK, HOLDS, NOW, blocked=False) == Begin(one)
    assert rules.attempt_with_new_call(one, worker=1, call=5, now=NOW, deadline=NOW + TIMEOUT).first_at == NOW


def test_what_failed_waits_while_another_attempt_blocks_its_record() -> None:
    assert rules.decide_failed_attempt(attempt(FAILED, failures=2), ASK, HOLDS, NOW, blocked=True) == Wait()


def test_what_failed_is_let_go_where_its_condition_is_gone_or_its_record_deleted() -> None:
    assert rules.decide_failed_attempt(attempt(FAILED, failures=3), ASK, GONE, NOW, blocked=True) == Delete()
    assert rules.decide_failed_attempt(attempt(FAILED), ASK, DELETED, NOW, blocked=False) == Delete()


def test_what_failed_expires_once_it_is_too_late_though_its_last_try_was_used() -> None:
    for failures in (1, 3):
        assert rules.decide_failed_attempt(attempt(FAILED, failures=failures), ASK, LATE, NOW, blocked=False) == Expired(unsure=False)
    assert rules.decide_failed_attempt(attempt(FAILED, failures=3), ASK, LATE, NOW, blocked=True) == Wait()
    assert rules.decide_failed_attempt(attempt(FAILED), ASK, LATE_AND_GONE, NOW, blocked=False) == Delete()


def test_a_doubt_is_settled_before_it_expires_but_under_again() -> None:
    assert rules.decide_attempt_in_doubt(attempt(DOUBT), ASK, LATE, NOW) == AskLookup()
    assert rules.decide_attempt_in_doubt(attempt(DOUBT), SAME_KEY_AND_LOOKUP, LATE, NOW) == AskLookup()
    assert "too late" in held(rules.decide_attempt_in_doubt(attempt(DOUBT), SAME_KEY, LATE, NOW))
    assert "InDoubt.hold()" in held(rules.decide_attempt_in_doubt(attempt(DOUBT), HOLD, LATE, NOW))
    assert rules.decide_attempt_in_doubt(attempt(DOUBT, failures=3), AGAIN, LATE, NOW) == Expired(unsure=True)


def test_an_expired_handler_that_failed_is_tried_again_and_held_after_the_last_try() -> None:
    once = kept(rules.on_expired_handler_failed(attempt(FAILED, failures=1), ASK, NOW, LATER, "it raised"))
    assert (once.state, once.failures, once.next_at, once.error, once.why) == (FAILED, 2, LATER, "it raised", EXPIRED_HANDLER_FAILED)
    last = kept(rules.on_expired_handler_failed(once, ASK, NOW, LATER, "it raised"))
    assert (last.state, last.unsure, last.next_at, last.why) == (HELD, False, None, f"{EXPIRED_HANDLER_FAILED}: it raised")
    doubt = kept(rules.on_expired_handler_failed(attempt(DOUBT), AGAIN, NOW, LATER, "it raised"))
    assert (doubt.state, doubt.unsure, doubt.failures) == (DOUBT, True, 1)


def test_what_failed_gives_up_after_its_last_try() -> None:
    assert rules.decide_failed_attempt(attempt(FAILED, failures=3), ASK, HOLDS, NOW, blocked=False) == GaveUp(unsure=False)


def test_what_failed_gives_up_when_it_was_first_begun_too_long_ago() -> None:
    limited = terms(InDoubt.lookup(settle_after=SETTLE_AFTER), retry=Retry(times=None, give_up_after=600 * SECOND))
    assert rules.decide_failed_attempt(attempt(FAILED), limited, HOLDS, NOW, blocked=False) == GaveUp(unsure=False)
    assert rules.decide_failed_attempt(attempt(FAILED), limited, HOLDS, NOW - SECOND, blocked=False) == Begin(attempt(FAILED))


def test_where_no_gave_up_handler_answers_it_is_held_with_its_last_error() -> None:
    after = kept(rules.hold_attempt(attempt(FAILED, error="declined", next_at=NOW), "the last try was used"))
    assert (after.state, after.unsure, after.error, after.why, after.next_at) == (HELD, False, "declined", "the last try was used", None)


# ---- terms ---------------------------------------------------------------------------------------------------------------------
def test_settle_after_is_the_call_s_timeout_where_nothing_was_chosen() -> None:
    assert HOLD.settle_after == AGAIN.settle_after == TIMEOUT
    assert ASK.settle_after == SETTLE_AFTER
