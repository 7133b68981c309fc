"""What a doubt was begun with, against the code of today: each pair of policies, and each difference, with what becomes of the doubt."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundstate.rules import attempt as rules
from groundstate.rules import begun_kind, blocking
from groundstate.rules.attempt import Attempt, State, Terms
from groundstate.rules.begun_kind import Kind
from groundstate.rules.policy import InDoubt
from tests.rules.making import ALL_FACTS, HOLDS, KEPT_FOR, NOW, SETTLE_AFTER, attempt
from tests.rules.making import terms as terms_of

POLICIES: dict[str, InDoubt] = {
    "repeat": InDoubt.repeat(),
    "same_key": InDoubt.same_key(kept_for=KEPT_FOR, settle_after=SETTLE_AFTER),
    "lookup": InDoubt.lookup(settle_after=SETTLE_AFTER),
    "hold": InDoubt.hold(),
}
PAIRS = list(itertools.product(POLICIES, POLICIES))
BANK = Kind("bank", "charge", "charged", key=True, policy="lookup", occurrence=("round",))
# What becomes of a doubt that was begun under the first policy, where the second is that of today, and all else is the same.
TABLE = {
    ("repeat", "repeat"): "begun", ("repeat", "same_key"): "begun", ("repeat", "lookup"): "lookup", ("repeat", "hold"): "held",
    ("same_key", "repeat"): "other code", ("same_key", "same_key"): "begun", ("same_key", "lookup"): "lookup", ("same_key", "hold"): "held",
    ("lookup", "repeat"): "other code", ("lookup", "same_key"): "other code", ("lookup", "lookup"): "lookup", ("lookup", "hold"): "held",
    ("hold", "repeat"): "other code", ("hold", "same_key"): "other code", ("hold", "lookup"): "lookup", ("hold", "hold"): "held",
}  # fmt: skip
OTHER_CALLS = {
    "service": "it was a call to bank, and the reaction calls psp now",
    "call": "it was the call charge of bank, and the reaction makes the call charge_2 now",
    "key": "it was given a key, and the call takes none now",
    "occurrence": "its occurrence was made of round, and is none now",
}
TODAY = {"service": "psp", "call": "charge_2", "key": False, "occurrence": ()}


def doubt(was: Kind | None) -> Attempt:
    return attempt(State.DOUBT, begun_with=None if was is None else begun_kind.kind_as_json(was), first_at=NOW - timedelta(minutes=10))


def today(policy: str, own: Kind = BANK, *answers_for: str) -> Terms:
    made = terms_of(POLICIES[policy], find=policy in ("lookup", "same_key"))
    return replace(made, kind=replace(own, policy=policy), answers_for=answers_for)


def becomes(one: Attempt, terms: Terms) -> str:
    match rules.decide_attempt_in_doubt(one, terms, HOLDS, NOW):
        case rules.Keep(after):
            assert after.state is State.HELD
            assert after.unsure
            assert after.why
            return "other code" if after.why.startswith(begun_kind.HELD_FOR) else "held"
        case rules.AskLookup():
            return "lookup"
        case rules.Begin():
            return "begun"
        case other:
            raise AssertionError(other)


@pytest.mark.parametrize(("was", "now"), PAIRS)
def test_a_doubt_of_the_same_call_is_settled_by_the_policy_of_today_unless_that_would_call_twice_what_was_promised_once(
    was: str, now: str
) -> None:
    assert becomes(doubt(replace(BANK, policy=was)), today(now)) == TABLE[was, now]


@pytest.mark.parametrize("what", OTHER_CALLS)
@pytest.mark.parametrize(("was", "now"), PAIRS)
def test_a_doubt_of_another_call_is_held_with_the_reason_unless_both_say_that_calling_twice_does_no_harm(
    what: str, was: str, now: str
) -> None:
    own = replace(BANK, **{what: TODAY[what]})  # type: ignore[arg-type]  # each of its own type
    one, terms = doubt(replace(BANK, policy=was)), today(now, own)
    expected = "begun" if was == now == "repeat" else "other code"
    assert becomes(one, terms) == expected
    if expected == "other code":
        held = rules.decide_attempt_in_doubt(one, terms, HOLDS, NOW)
        assert isinstance(held, rules.Keep)
        assert OTHER_CALLS[what] in (held.attempt.why or "")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_row_of_older_code_says_nothing_and_is_settled_as_ever(policy: str) -> None:
    assert becomes(doubt(None), today(policy)) == TABLE[policy, policy]


def test_another_find_is_asked_for_nothing_that_the_old_one_was_to_be_asked_for() -> None:
    other = replace(BANK, lookup="looked_up")
    assert becomes(doubt(BANK), today("lookup", other)) == "other code"
    keyed = doubt(replace(BANK, policy="same_key"))
    assert becomes(keyed, today("same_key", other)) == "begun"  # the key answers, whichever find there is
    old = replace(doubt(replace(BANK, policy="same_key")), first_at=NOW - 2 * KEPT_FOR)
    assert becomes(old, today("same_key", other)) == "other code"
    assert becomes(doubt(replace(BANK, lookup=None)), today("lookup", other)) == "lookup"  # there was none: this one is the first


@pytest.mark.parametrize("what", OTHER_CALLS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_find_that_knows_the_old_service_is_asked_and_nothing_is_called_by_its_leave(what: str, policy: str) -> None:
    own = replace(BANK, **{what: TODAY[what]})  # type: ignore[arg-type]  # as above
    one, terms = doubt(replace(BANK, policy="lookup")), today(policy, own, "bank")
    asks = policy in ("lookup", "same_key") and what != "occurrence"
    assert becomes(one, terms) == ("lookup" if asks else "other code")


@pytest.mark.parametrize("was", ["lookup", "hold"])
def test_a_key_that_nothing_was_promised_of_is_called_under_once_more_by_no_leave_and_a_find_that_knows_it_is_asked(was: str) -> None:
    one = doubt(replace(BANK, policy=was))
    held = rules.decide_attempt_in_doubt(one, today("same_key"), HOLDS, NOW)
    assert isinstance(held, rules.Keep)
    assert f"begun under InDoubt.{was}(), which promises nothing of its key" in (held.attempt.why or "")
    assert becomes(one, today("same_key", BANK, "bank")) == "lookup"


@pytest.mark.parametrize("facts", ALL_FACTS)
def test_what_is_held_as_of_other_code_is_never_called_and_never_let_go(facts: rules.Facts) -> None:
    for was, now in PAIRS:
        if was == now == "repeat":
            continue
        decision = rules.decide_attempt_in_doubt(doubt(replace(BANK, policy=was)), today(now, replace(BANK, service="psp")), facts, NOW)
        assert isinstance(decision, rules.Keep)
        assert decision.attempt.state is State.HELD
        assert decision.attempt.unsure


def test_a_person_gives_a_doubt_back_only_to_code_that_can_settle_it() -> None:
    held = replace(doubt(BANK), state=State.HELD, why="for a reason")
    refused = rules.apply_retry_command(held, today("lookup", replace(BANK, service="psp")), NOW)
    assert isinstance(refused, rules.Refuse)
    assert OTHER_CALLS["service"] in refused.why
    given_back = rules.apply_retry_command(held, today("lookup"), NOW)
    assert isinstance(given_back, rules.Keep)
    assert given_back.attempt.state is State.DOUBT


def test_no_find_is_asked_of_two_calls_under_one_key_that_had_a_find_each() -> None:
    doubt = attempt(State.DOUBT, begun_with=begun_kind.kind_as_json(BANK))
    other_lookup = begun_kind.kind_as_json(replace(BANK, lookup="looked_up_elsewhere"))
    again = rules.attempt_with_new_call(doubt, worker=1, call=2, now=NOW, deadline=NOW, begun_with=other_lookup)
    for today in (BANK, begun_kind.parse_kind(other_lookup)):
        assert begun_kind.describe_call_difference(again.begun_with, today) is None
        assert begun_kind.describe_lookup_difference(again.begun_with, today) is not None
    once_more = rules.attempt_with_new_call(again, worker=1, call=3, now=NOW, deadline=NOW, begun_with=other_lookup)
    assert once_more.begun_with == again.begun_with
    sure = rules.attempt_with_new_call(
        replace(doubt, state=State.FAILED, unsure=False), worker=1, call=2, now=NOW, deadline=NOW, begun_with=other_lookup
    )
    assert sure.begun_with == other_lookup


def test_each_call_that_is_begun_says_anew_what_it_was_begun_with() -> None:
    failed = attempt(State.FAILED, begun_with=begun_kind.kind_as_json(BANK))
    other = begun_kind.kind_as_json(replace(BANK, service="psp"))
    assert rules.attempt_with_new_call(failed, worker=1, call=2, now=NOW, deadline=NOW, begun_with=other).begun_with == other


@pytest.mark.parametrize("state", [State.BEGUN, State.DOUBT, State.HELD])
def test_an_outcome_of_a_call_elsewhere_settles_no_doubt_of_this_one_and_is_kept(state: State) -> None:
    one = attempt(state, unsure=True, begun_with=begun_kind.kind_as_json(BANK))
    ask_ = POLICIES["lookup"]
    assert isinstance(rules.decide_late_outcome(one, ask_, own=BANK), rules.Conclude)
    kept = rules.decide_late_outcome(one, ask_, own=replace(BANK, service="psp"))
    assert isinstance(kept, rules.AddOutcome)
    assert kept.unsure
    assert kept.loudly


def test_an_outcome_concludes_a_failed_attempt_whose_later_call_elsewhere_surely_was_not_made() -> None:
    failed = attempt(State.FAILED, begun_with=begun_kind.kind_as_json(BANK))
    assert isinstance(rules.decide_late_outcome(failed, POLICIES["lookup"], own=replace(BANK, service="psp")), rules.Conclude)


# ---- as text ---------------------------------------------------------------------------------------------------------------------
texts = st.text(max_size=8)
columns = st.lists(texts, max_size=3).map(tuple)
kinds = st.builds(Kind, texts, texts, st.none() | texts, st.booleans(), texts, columns)


@given(kinds, kinds)
def test_equal_texts_are_equal_kinds(one: Kind, other: Kind) -> None:
    assert begun_kind.parse_kind(begun_kind.kind_as_json(one)) == one
    assert (begun_kind.kind_as_json(one) == begun_kind.kind_as_json(other)) == (one == other)
    assert begun_kind.is_known_begun_with(begun_kind.kind_as_json(one))


@given(st.lists(texts, min_size=1, max_size=3, unique=True), columns)
def test_a_baseline_remembers_each_condition_it_was_left_under(conditions: list[str], named: tuple[str, ...]) -> None:
    said = begun_kind.baseline_as_json(conditions, named)
    assert begun_kind.parse_baseline(said) == begun_kind.Baseline(tuple(conditions), named)
    assert said.endswith(begun_kind.json_suffix_of_baselines(named))
    assert begun_kind.is_known_begun_with(said)
    assert not begun_kind.has_other_occurrence_columns(said, named)
    assert begun_kind.has_other_occurrence_columns(said, (*named, "one more"))


@pytest.mark.parametrize("said", ["", "x", "[]", "5", "null", '{"service": 5}', '{"key": "yes"}', '{"occurrence": "round"}', "[" * 10_000])
def test_what_nothing_of_ours_writes_is_not_legible_and_says_nothing(said: str) -> None:
    assert not begun_kind.is_known_begun_with(said)
    assert begun_kind.parse_kind(said) == Kind()
    assert begun_kind.parse_baseline(said) is None


def test_names_of_a_later_release_say_nothing_to_this_one() -> None:
    said = '{"region":"eu","service":"bank"}'
    assert begun_kind.is_known_begun_with(said)
    assert begun_kind.describe_call_difference(said, BANK) is None
    assert begun_kind.describe_call_difference(said, replace(BANK, service="psp")) is not None


# ---- what blocks -----------------------------------------------------------------------------------------------------------------
def test_a_held_outcome_of_a_call_that_was_promised_once_keeps_its_reaction_out_whatever_its_policy_is_now() -> None:
    def keeps(policy: str | None) -> bool:
        said = None if policy is None else begun_kind.kind_as_json(replace(BANK, policy=policy))
        held = attempt(State.HELD, outcome='["r1"]', why="for a reason", begun_with=said)
        return blocking.find_blocking_attempt("shop", "charge", "another", [held], done_column=False, repeats=True) is not None

    assert {policy: keeps(policy) for policy in (None, *POLICIES)} == {
        None: False, "repeat": False, "same_key": True, "lookup": True, "hold": True,
    }  # fmt: skip


def test_a_baseline_keeps_its_reaction_out_under_every_occurrence_once_that_is_made_of_other_columns() -> None:
    left = attempt(State.HELD, why=blocking.BASELINE, blocks=None, begun_with=begun_kind.baseline_as_json(["true"], []))
    assert blocking.find_blocking_attempt("shop", "charge", "2", [left], done_column=False, columns=()) is None
    assert blocking.find_blocking_attempt("shop", "charge", "2", [left], done_column=False, columns=("round",)) is left
    assert blocking.find_blocking_attempt("shop", "mail", "2", [left], done_column=False, columns=("round",)) is None
    older = replace(left, begun_with=None)
    assert blocking.find_blocking_attempt("shop", "charge", "2", [older], done_column=False, columns=("round",)) is None
