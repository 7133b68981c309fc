"""Who keeps whom from a record."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundstate.rules.attempt import Attempt, State
from groundstate.rules.blocking import BASELINE, find_blocking_attempt, find_own_attempt, is_retry_due
from tests.rules.making import NOW, SECOND, attempt, attempts

BEGUN, DOUBT, FAILED, HELD = State
STANDING = [attempt(BEGUN), attempt(DOUBT), attempt(HELD, unsure=True), attempt(BEGUN, unsure=True)]
LETS_BY = [attempt(FAILED), attempt(HELD), attempt(HELD, why=BASELINE)]
CALLED = [attempt(HELD, outcome='["a"]'), attempt(HELD, outcome='["a"]', unsure=True), attempt(HELD, unsure=True)]


@pytest.mark.parametrize("one", STANDING, ids=lambda one: f"{one.state}-{one.unsure}")
def test_a_begun_or_unsure_attempt_keeps_every_other_reaction_out(one: Attempt) -> None:
    assert find_blocking_attempt("shop", "cancel", "", [one], done_column=False) is one
    assert find_blocking_attempt("another app", "charge", "", [one], done_column=False) is one


@pytest.mark.parametrize("one", STANDING, ids=lambda one: f"{one.state}-{one.unsure}")
def test_a_begun_or_unsure_attempt_keeps_its_own_reaction_out_under_every_other_occurrence(one: Attempt) -> None:
    assert find_blocking_attempt("shop", "charge", "next month", [one], done_column=False) is one
    assert find_blocking_attempt("shop", "charge", "next month", [one], done_column=True) is one


@pytest.mark.parametrize("one", STANDING, ids=lambda one: f"{one.state}-{one.unsure}")
def test_it_does_not_block_itself(one: Attempt) -> None:
    assert find_blocking_attempt("shop", "charge", "", [one], done_column=False) is None


@pytest.mark.parametrize("one", CALLED, ids=lambda one: f"{one.unsure}-{one.outcome}")
@pytest.mark.parametrize("blocks", ["order", None], ids=["state", "done_column"])
def test_what_is_held_with_an_outcome_or_unsure_keeps_its_own_reaction_out_under_every_other_occurrence(
    one: Attempt, blocks: str | None
) -> None:
    held = replace(one, blocks=blocks)
    assert held.blocks_own_reaction
    assert find_blocking_attempt("shop", "charge", "next month", [held], done_column=blocks is None) is held
    assert find_blocking_attempt("shop", "charge", "", [held], done_column=blocks is None) is None, "its own round is what it is held for"


def test_what_is_held_with_an_outcome_and_sure_keeps_no_other_reaction_out() -> None:
    for reaction, app in (("cancel", "shop"), ("charge", "another app")):
        assert find_blocking_attempt(app, reaction, "", [attempt(HELD, outcome='["a"]')], done_column=False) is None


def test_an_outcome_that_is_held_keeps_nobody_out_where_the_call_may_be_made_twice() -> None:
    assert find_blocking_attempt("shop", "charge", "next month", [attempt(HELD, outcome='["a"]')], done_column=False, repeats=True) is None
    unsure = attempt(HELD, unsure=True)
    assert find_blocking_attempt("shop", "charge", "next month", [unsure], done_column=False, repeats=True) is unsure


@pytest.mark.parametrize("one", LETS_BY, ids=lambda one: f"{one.state}-{one.why}")
def test_what_failed_or_is_held_without_a_call_keeps_nobody_out(one: Attempt) -> None:
    assert not one.blocks_own_reaction
    assert find_blocking_attempt("shop", "cancel", "", [one], done_column=False) is None
    assert find_blocking_attempt("shop", "charge", "next month", [one], done_column=False) is None


def test_a_reaction_with_a_fact_is_kept_out_by_its_own_attempts_only() -> None:
    assert find_blocking_attempt("shop", "mail", "", STANDING, done_column=True) is None


def test_a_reaction_with_a_fact_keeps_out_its_own_attempts_only() -> None:
    mail = attempt(DOUBT, reaction="mail", blocks=None)
    assert find_blocking_attempt("shop", "charge", "", [mail], done_column=False) is None
    assert find_blocking_attempt("shop", "mail", "next month", [mail], done_column=True) is mail


def test_its_own_attempt_is_that_of_the_same_reaction_and_occurrence() -> None:
    mine = attempt(FAILED, occurrence="may")
    others = [replace(mine, occurrence="june"), replace(mine, reaction="mail"), replace(mine, app="bank")]
    assert find_own_attempt("shop", "charge", "may", [*others, mine]) is mine
    assert find_own_attempt("shop", "charge", "may", others) is None


def test_a_failed_attempt_or_a_doubt_is_due_when_its_time_has_come() -> None:
    for state in (FAILED, DOUBT):
        assert is_retry_due(attempt(state), NOW)
        assert is_retry_due(attempt(state, next_at=NOW), NOW)
        assert not is_retry_due(attempt(state, next_at=NOW + SECOND), NOW)
    assert not is_retry_due(attempt(BEGUN), NOW)
    assert not is_retry_due(attempt(HELD), NOW)


@given(st.lists(attempts(), max_size=5), st.sampled_from(["charge", "mail"]), st.sampled_from(["", "a"]), st.booleans())
def test_who_blocks_is_begun_or_unsure_or_an_own_held_call_and_is_somebody_else(
    standing: list[Attempt], reaction: str, occurrence: str, done_column: bool
) -> None:
    found = find_blocking_attempt("shop", reaction, occurrence, standing, done_column=done_column)
    if found is None:
        return
    assert found.is_blocking or (found.reaction == reaction and found.blocks_own_reaction)
    assert found.identity != ("shop", reaction, found.record, occurrence)
    assert found.reaction == reaction or (not done_column and found.blocks is not None)
