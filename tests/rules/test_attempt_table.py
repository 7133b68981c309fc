"""The code against the table of the contract, in both directions: what it does is a row, with that row's columns, and each row is done."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from groundstate.rules import attempt as rules
from groundstate.rules import begun_kind
from groundstate.rules.attempt import Attempt
from groundstate.rules.begun_kind import Kind
from tests.rules.making import (
    ALL_FACTS,
    ALL_TERMS,
    CHARGE,
    NOW,
    RETRY,
    SECOND,
    WHYS,
    all_facts,
    all_terms,
    attempt,
    attempts,
    moments,
    well_formed,
)
from tests.rules.table import ADOPTER, BEGUN, DOUBT, FAILED, HELD, NEW_CALL, NEW_WITH, SAID, TABLE, WORDS, Case, row_of

EVENTS = sorted({row.event for row in TABLE})

DECIDE: dict[str, Callable[[Case], Any]] = {
    "late": lambda c: rules.decide_late_outcome(c.attempt, c.terms.policy, own=c.terms.kind),
    "returned": lambda c: rules.on_call_returned(c.facts),
    "refused": lambda c: rules.hold_refused_outcome(c.one, "the handler raised", SAID, '["paid"]'),
    "one of several": lambda c: rules.hold_remaining_outcomes(c.one, '["paid"]'),
    "not done": lambda c: rules.on_call_not_done(c.one, SAID, c.next_at, counts=c.counts),
    "unclear": lambda c: rules.put_in_doubt(c.one, SAID, c.next_at, c.now),
    "adopted": lambda c: rules.adopt_attempt(c.one, ADOPTER, c.now, alone=c.one.together == 1, ends=c.ends),
    "did not go out": lambda c: rules.on_call_not_sent(c.one, c.now),
    "not in memory": lambda c: rules.on_call_not_in_memory(c.one, c.now),
    "settle": lambda c: rules.decide_attempt_in_doubt(c.one, c.terms, c.facts, c.now),
    "absent": lambda c: rules.on_lookup_absent(c.one, c.terms, c.facts, c.asked_at, c.asks_at, c.next_at),
    "unknown": lambda c: rules.on_lookup_unknown(c.one, c.next_at, SAID),
    "unknown for too long": lambda c: rules.hold_unknown_for_too_long(c.one, "nobody could say"),
    "due": lambda c: rules.decide_failed_attempt(c.one, c.terms, c.facts, c.now, blocked=c.blocked),
    "expired in vain": lambda c: rules.on_expired_handler_failed(c.one, c.terms, c.now, c.next_at, SAID),
    "retry": lambda c: rules.apply_retry_command(c.one, c.terms, c.now),
    "settle as absent": lambda c: rules.apply_settle_absent_command(c.one, c.terms, c.facts, c.now),
    "settle with an outcome": lambda c: rules.apply_settle_outcome_command(c.one, c.terms, c.now),
    "forget": lambda c: rules.apply_forget_command(c.one, c.terms, c.facts, c.now),
}


def happen(event: str, case: Case) -> tuple[str, Attempt | None]:
    """What becomes of it, and the attempt as it stands then, where it stands."""
    match DECIDE[event](case):
        case rules.Keep(after):
            return after.state.value, after
        case rules.Begin(before):
            deadline = case.now + case.terms.timeout
            after = rules.attempt_with_new_call(before, worker=ADOPTER, call=NEW_CALL, now=case.now, deadline=deadline, begun_with=NEW_WITH)
            return "begun", after
        case rules.AddOutcome(unsure=unsure, loudly=loudly):
            kept = replace(case.one, state=HELD, unsure=unsure, outcome='["paid", "paid"]', why=case.one.why or "late", next_at=None)
            return "held, loudly" if loudly else "held", kept
        case rules.Delete(say=say):
            return "gone, said" if say else "gone", None
        case rules.Conclude(loudly=loudly):
            return "conclude, loudly" if loudly else "conclude", None
        case rules.GaveUp(unsure=unsure):
            return "gave up, unsure" if unsure else "gave up", None
        case rules.Expired(unsure=unsure):
            return "expired, unsure" if unsure else "expired", None
        case rules.Drop(say=say):
            return "dropped, said" if say else "dropped", None
        case rules.Refuse(why=why):
            assert why
            return "not now", None
        case rules.Overtaken() | rules.AskLookup() | rules.Wait() | rules.HoldNew() as plain:
            words = {rules.Overtaken: "overtaken", rules.AskLookup: "lookup", rules.Wait: "wait", rules.HoldNew: "held anew"}
            return words[type(plain)], None
        case other:
            raise AssertionError(other)


def differences(before: Attempt, after: Attempt) -> dict[str, Any]:
    names = [one.name for one in fields(Attempt)]
    return {name: getattr(after, name) for name in names if getattr(after, name) != getattr(before, name)}


def check(event: str, case: Case) -> tuple[str, str] | None:
    """The code does what the row says, to the columns that the row names and no other; returns the row's name and what it became."""
    row = row_of(event, case)
    if row is None:
        return None
    to, after = happen(event, case)
    assert to == row.to, row.says
    if after is not None:
        changes = row.changes(case)
        expected = {name: getattr(after, name) if value is WORDS else value for name, value in changes.items()}
        assert all(expected[name] for name, value in changes.items() if value is WORDS), row.says
        assert after == replace(case.one, **expected), (row.says, differences(case.one, after))
        assert well_formed(after), row.says
    return row.says, to


def shapes() -> Iterator[Attempt | None]:
    """Attempts of each kind that rows tell apart."""
    yield None
    deadlines = (NOW - 600 * SECOND, NOW - SECOND, NOW + 600 * SECOND)
    for failures, first_at, deadline in itertools.product((0, 3), (NOW, NOW - 7200 * SECOND), deadlines):
        columns: dict[str, Any] = {"failures": failures, "first_at": first_at, "deadline": deadline}
        yield attempt(DOUBT, **columns)
        yield attempt(FAILED, **columns)
        for unsure in (False, True):
            for together, why, call_no in itertools.product((0, 1, 2), WHYS[:3], (0, 1)):
                yield attempt(BEGUN, unsure=unsure, together=together, why=why, call_no=call_no, **columns)
            for outcome in (None, '["paid"]'):
                yield attempt(HELD, unsure=unsure, outcome=outcome, why="for a reason", **columns)


def shapes_that_say_their_call() -> Iterator[Attempt]:
    """Attempts whose row says what they were begun with: under each policy, of the call of today and of others."""
    others = [replace(CHARGE, policy=policy) for policy in ("repeat", "same_key", "lookup", "hold")]
    others += [replace(CHARGE, service="psp"), replace(CHARGE, call="pay"), replace(CHARGE, lookup="looked_up")]
    others += [replace(CHARGE, lookup="looked_up", policy="same_key")]
    others += [replace(CHARGE, key=False), replace(CHARGE, occurrence=("round",)), Kind(), replace(CHARGE, service="psp", policy="repeat")]
    for other, first_at in itertools.product(others, (NOW, NOW - 7200 * SECOND)):
        columns: dict[str, Any] = {"begun_with": begun_kind.kind_as_json(other), "first_at": first_at, "deadline": NOW - SECOND}
        yield attempt(DOUBT, **columns)
        yield attempt(FAILED, **columns)
        for unsure in (False, True):
            yield attempt(BEGUN, unsure=unsure, **columns)
            yield attempt(HELD, unsure=unsure, why="for a reason", **columns)


def all_cases() -> Iterator[tuple[str, Case]]:
    for one, terms, facts in itertools.product([*shapes(), *shapes_that_say_their_call()], ALL_TERMS, ALL_FACTS):
        case = Case(one, terms, facts)
        for event in EVENTS:
            yield event, case
        yield "due", replace(case, blocked=True)
        yield "not done", replace(case, counts=False)
        yield "adopted", replace(case, counts=False)


def test_what_the_code_can_reach_is_the_table_and_all_of_it() -> None:
    reached = {found for event, case in all_cases() if (found := check(event, case)) is not None}
    assert reached == {(row.says, row.to) for row in TABLE}


def test_each_event_of_the_table_is_put_to_the_code() -> None:
    assert set(EVENTS) == set(DECIDE)


def test_every_row_has_a_name_of_its_own() -> None:
    assert len({row.says for row in TABLE}) == len(TABLE)


cases = st.builds(Case, attempts() | st.none(), all_terms, all_facts, moments, moments, moments, st.booleans(), st.booleans())


@settings(max_examples=500)
@given(st.sampled_from(EVENTS), cases)
def test_no_other_transition(event: str, case: Case) -> None:
    check(event, case)


STANDS_ASIDE = {"Absent, holds", "settle as absent, holds", "settle as absent, an outcome of another call in hand"}
BY_OUTCOME = {"the handler refused the outcome", "one of several outcomes was concluded"}
LETS_GO = {"Absent, gone", "repeat, gone", "settle as absent, gone", "forget"}


def test_unsure_is_cleared_by_a_believed_absent_an_outcome_or_a_person_and_by_nothing_else() -> None:
    cleared, let_go = set(), set()
    for event, case in all_cases():
        row = row_of(event, case)
        if row is None or case.attempt is None or not case.attempt.unsure:
            continue
        to, after = happen(event, case)
        if after is not None and not after.unsure:
            cleared.add(row.says)
        if to.startswith("gone"):
            let_go.add(row.says)
    assert cleared == STANDS_ASIDE | BY_OUTCOME
    assert let_go == LETS_GO


@given(attempts((BEGUN,)), st.lists(st.sampled_from(["not done", "unclear", "adopted", "did not go out", "settle"]), max_size=8), all_facts)
def test_an_attempt_that_was_in_doubt_stays_unsure_whatever_its_later_calls_say(
    one: Attempt, events: list[str], facts: rules.Facts
) -> None:
    standing = replace(one, unsure=True)
    for event in events:
        case = Case(standing, ALL_TERMS[1], facts)
        if row_of(event, case) is None:
            continue
        _, after = happen(event, case)
        if after is None:
            return
        standing = after
        assert standing.unsure


@given(attempts(), st.integers(0, 2**63 - 1), moments)
def test_a_new_call_has_a_new_fence_and_the_next_number_and_a_key_as_old_as_the_first_unsure_call(
    one: Attempt, call: int, now: Any
) -> None:
    after = rules.attempt_with_new_call(one, worker=5, call=call, now=now, deadline=now + RETRY.first, together=2)
    assert (after.state, after.worker, after.call, after.call_no) == (BEGUN, 5, call, one.call_no + 1)
    assert (after.next_at, after.together) == (None, 2)
    assert after.deadline == (max(one.deadline, now + RETRY.first) if one.unsure else now + RETRY.first)
    assert after.first_at == (one.first_at if one.unsure else now)
    changed = {"state", "worker", "call", "call_no", "first_at", "deadline", "next_at", "together", "begun_with"}
    assert set(differences(one, after)) <= changed


@given(attempts((BEGUN, DOUBT)), moments, moments)
def test_a_deadline_never_moves_back_and_moves_to_now_where_a_thread_may_have_sent(one: Attempt, now: Any, next_at: Any) -> None:
    adopted = rules.adopt_attempt(one, ADOPTER, now, alone=False).attempt
    sent = one.state is DOUBT or one.unsure or one.call_no > 0  # a batch of careful mode sends nothing
    assert adopted.deadline == (max(one.deadline, now) if sent else one.deadline)
    if one.state is BEGUN:
        assert rules.put_in_doubt(one, SAID, next_at, now).attempt.deadline == max(one.deadline, now)
        assert rules.on_call_not_done(one, SAID, next_at, counts=True).attempt.deadline == one.deadline


@given(attempts(), moments)
def test_adopting_twice_is_adopting_once(one: Attempt, now: Any) -> None:
    if one.state not in (BEGUN, DOUBT):
        return
    once = rules.adopt_attempt(one, ADOPTER, now, alone=False).attempt
    assert rules.adopt_attempt(once, ADOPTER, now, alone=False).attempt == once
