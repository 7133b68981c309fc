"""Words that come late, and what a person may say: each row once, by an example."""

from __future__ import annotations

from typing import Any

import pytest

from groundstate.rules import attempt as rules
from groundstate.rules.attempt import AddOutcome, Attempt, Conclude, Delete, Drop, HoldNew, Keep, Refuse, State, Terms
from tests.rules.making import (
    AGAIN,
    ALL_TERMS,
    ASK,
    DELETED,
    GONE,
    HOLD,
    HOLDS,
    KEPT_FOR,
    NO_CALL,
    NOW,
    SAME_KEY,
    SAME_KEY_AND_LOOKUP,
    SECOND,
    SETTLE_AFTER,
    attempt,
)

BEGUN, DOUBT, FAILED, HELD = State


def held(**columns: Any) -> Attempt:
    return attempt(HELD, why="a person decides", **columns)


def kept(decision: object) -> Attempt:
    assert isinstance(decision, Keep), decision
    return decision.attempt


def refused(decision: object) -> str:
    assert isinstance(decision, Refuse), decision
    return decision.why


# ---- an outcome that comes late ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("one", [attempt(DOUBT), held(unsure=True), attempt(BEGUN, unsure=True)], ids=["doubt", "held", "begun"])
def test_a_late_outcome_concludes_what_is_unsure(one: Attempt) -> None:
    assert rules.decide_late_outcome(one, ASK.policy) == Conclude()


def test_a_late_outcome_concludes_what_has_failed_and_loudly_since_somebody_was_told_absent() -> None:
    decision = rules.decide_late_outcome(attempt(FAILED), ASK.policy)
    assert isinstance(decision, Conclude)
    assert decision.loudly


def test_a_late_outcome_is_held_beside_a_sure_call_in_the_air_which_makes_it_unsure() -> None:
    decision = rules.decide_late_outcome(attempt(BEGUN), ASK.policy)
    assert isinstance(decision, AddOutcome)
    assert decision.unsure
    assert decision.loudly


def test_a_late_outcome_is_added_to_those_that_are_held_and_changes_no_doubt() -> None:
    assert rules.decide_late_outcome(held(outcome='["a"]'), ASK.policy) == AddOutcome(unsure=False)
    assert rules.decide_late_outcome(held(outcome='["a"]', unsure=True), ASK.policy) == AddOutcome(unsure=True)


def test_a_late_outcome_is_kept_where_it_is_held_without_a_doubt() -> None:
    assert rules.decide_late_outcome(held(), ASK.policy) == AddOutcome(unsure=False)


def test_a_late_outcome_whose_attempt_is_gone_is_a_line_in_the_log_under_again() -> None:
    decision = rules.decide_late_outcome(None, AGAIN.policy)
    assert isinstance(decision, Drop)
    assert decision.say


@pytest.mark.parametrize("terms", [SAME_KEY, ASK, HOLD, NO_CALL], ids=lambda one: one.policy.kind if one.policy else "none")
def test_a_late_outcome_whose_attempt_is_gone_is_held_anew_under_every_other_policy(terms: Terms) -> None:
    assert rules.decide_late_outcome(None, terms.policy) == HoldNew()


def test_a_late_outcome_whose_attempt_is_gone_is_what_its_author_said() -> None:
    assert isinstance(rules.decide_late_outcome(None, ASK.policy, "drop"), Drop)
    assert isinstance(rules.decide_late_outcome(None, AGAIN.policy), Drop)
    for policy in (ASK.policy, AGAIN.policy):
        assert rules.decide_late_outcome(None, policy, "hold") == HoldNew()
        assert rules.decide_late_outcome(None, policy, "same") == HoldNew()


# ---- retry -----------------------------------------------------------------------------------------------------------------------
def test_retry_with_an_outcome_in_hand_concludes_again_and_is_never_a_call() -> None:
    for terms in ALL_TERMS:
        assert rules.apply_retry_command(held(outcome='["a"]'), terms, NOW) == Conclude()


def test_retry_with_an_outcome_waits_until_a_later_call_can_no_longer_be_in_the_air() -> None:
    one = held(outcome='["a"]', unsure=True, deadline=NOW)
    assert "on its way" in refused(rules.apply_retry_command(one, ASK, NOW + SETTLE_AFTER))
    assert rules.apply_retry_command(one, ASK, NOW + SETTLE_AFTER + SECOND) == Conclude()


def test_retry_of_what_is_held_and_sure_is_a_failed_attempt_that_is_due_now() -> None:
    after = kept(rules.apply_retry_command(held(failures=3), ASK, NOW))
    assert (after.state, after.unsure, after.next_at, after.failures, after.why) == (FAILED, False, NOW, 0, None)


def test_retry_of_what_is_held_and_unsure_is_a_doubt_again_with_its_key_as_old_as_it_was() -> None:
    one = held(failures=3, unsure=True)
    for terms in (AGAIN, SAME_KEY, SAME_KEY_AND_LOOKUP, ASK):
        after = kept(rules.apply_retry_command(one, terms, NOW))
        assert (after.state, after.unsure, after.next_at, after.failures, after.first_at) == (DOUBT, True, NOW, 0, one.first_at)
        assert after.worker == one.worker  # its thread may still run there


def test_retry_is_refused_where_nobody_can_tell_what_became_of_the_call() -> None:
    old = held(unsure=True, first_at=NOW - KEPT_FOR)
    for terms, one in ((HOLD, held(unsure=True)), (NO_CALL, held(unsure=True)), (SAME_KEY, old)):
        assert "settle it as absent or with its outcome first" in refused(rules.apply_retry_command(one, terms, NOW))
    assert kept(rules.apply_retry_command(old, SAME_KEY_AND_LOOKUP, NOW)).state is DOUBT


def test_retry_of_what_failed_is_due_now() -> None:
    after = kept(rules.apply_retry_command(attempt(FAILED, failures=2, next_at=NOW + 60 * SECOND), ASK, NOW))
    assert (after.state, after.next_at) == (FAILED, NOW)


@pytest.mark.parametrize("one", [attempt(BEGUN), attempt(DOUBT)], ids=["begun", "doubt"])
def test_nothing_that_a_worker_carries_out_is_a_person_s(one: Attempt) -> None:
    for decision in (
        rules.apply_retry_command(one, ASK, NOW),
        rules.apply_settle_absent_command(one, ASK, GONE, NOW),
        rules.apply_settle_outcome_command(one, ASK, NOW),
        rules.apply_forget_command(one, ASK, GONE, NOW),
    ):
        assert "not held" in refused(decision)


# ---- settle ----------------------------------------------------------------------------------------------------------------------
def test_settled_as_absent_it_is_called_again_while_its_condition_holds() -> None:
    after = kept(rules.apply_settle_absent_command(held(unsure=True, failures=3), HOLD, HOLDS, NOW))
    assert (after.state, after.unsure, after.next_at, after.failures) == (FAILED, False, NOW, 0)


def test_settled_as_absent_it_is_gone_where_its_condition_is() -> None:
    assert rules.apply_settle_absent_command(held(unsure=True), HOLD, GONE, NOW) == Delete()
    assert rules.apply_settle_absent_command(held(unsure=True), HOLD, DELETED, NOW) == Delete()


def test_settled_as_absent_an_outcome_of_another_call_stays_held() -> None:
    one = held(unsure=True, outcome='["a"]')
    after = kept(rules.apply_settle_absent_command(one, HOLD, HOLDS, NOW))
    assert (after.state, after.unsure, after.outcome) == (HELD, False, '["a"]')


def test_nothing_is_settled_as_absent_while_its_call_may_be_on_its_way() -> None:
    one = held(unsure=True, deadline=NOW)
    assert "on its way" in refused(rules.apply_settle_absent_command(one, ASK, HOLDS, NOW + SETTLE_AFTER))
    assert kept(rules.apply_settle_absent_command(one, ASK, HOLDS, NOW + SETTLE_AFTER + SECOND)).state is FAILED


def test_nothing_is_settled_as_absent_that_is_not_in_doubt() -> None:
    assert "no call of it is in doubt" in refused(rules.apply_settle_absent_command(held(), HOLD, HOLDS, NOW))


def test_settled_with_an_outcome_it_goes_on_as_found() -> None:
    assert rules.apply_settle_outcome_command(held(unsure=True), HOLD, NOW) == Conclude()


# ---- forget ----------------------------------------------------------------------------------------------------------------------
def test_forgotten_it_is_gone() -> None:
    assert rules.apply_forget_command(held(unsure=True), HOLD, GONE, NOW) == Delete()
    assert rules.apply_forget_command(held(outcome='["a"]'), HOLD, DELETED, NOW) == Delete()


def test_nothing_is_forgotten_while_its_condition_holds_since_that_would_be_a_new_call() -> None:
    assert "new call" in refused(rules.apply_forget_command(held(), HOLD, HOLDS, NOW))


def test_nothing_is_forgotten_while_its_call_may_be_on_its_way() -> None:
    assert "on its way" in refused(rules.apply_forget_command(held(unsure=True, deadline=NOW), ASK, GONE, NOW + SETTLE_AFTER))
