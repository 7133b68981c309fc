"""Attempts, terms and facts for the tests of the rules: one of each by hand, and strategies for all that can stand in a table."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from groundstate.rules import begun_kind
from groundstate.rules.attempt import EXPIRED_HANDLER_FAILED, Attempt, Facts, State, Terms
from groundstate.rules.begun_kind import Kind
from groundstate.rules.poison_suspects import why_for_ended_workers
from groundstate.rules.policy import InDoubt, Retry

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
TIMEOUT = 10 * SECOND
SETTLE_AFTER = 30 * SECOND
KEPT_FOR = 3600 * SECOND
RETRY = Retry(times=3, first=SECOND, longest=8 * SECOND)
HOLDS = Facts(exists=True, holds=True)
GONE = Facts(exists=True, holds=False)
DELETED = Facts(exists=False, holds=False)
LATE = Facts(exists=True, holds=True, expired=True)
CHARGE = Kind("bank", "charge", "charged", key=True, policy="lookup", occurrence=())  # what calls are begun with
LATE_AND_GONE = Facts(exists=True, holds=False, expired=True)
ALL_FACTS = (HOLDS, GONE, DELETED, LATE, LATE_AND_GONE)


def terms(policy: InDoubt | None, *, find: bool | None = None, retry: Retry = RETRY) -> Terms:
    """`ask` has a lookup, and nothing else unless it is said."""
    has_lookup = find if find is not None else policy is not None and policy.kind == "lookup"
    own = None if policy is None else replace(CHARGE, policy=policy.kind)
    return Terms(policy, retry, TIMEOUT, has_lookup, own)


AGAIN = terms(InDoubt.repeat())
SAME_KEY = terms(InDoubt.same_key(kept_for=KEPT_FOR, settle_after=SETTLE_AFTER))
SAME_KEY_AND_LOOKUP = terms(InDoubt.same_key(kept_for=KEPT_FOR, settle_after=SETTLE_AFTER), find=True)
ASK = terms(InDoubt.lookup(settle_after=SETTLE_AFTER))
HOLD = terms(InDoubt.hold())
NO_CALL = terms(None)
ALL_TERMS = (AGAIN, SAME_KEY, SAME_KEY_AND_LOOKUP, ASK, HOLD, NO_CALL)


def attempt(state: State, **columns: Any) -> Attempt:
    """An attempt in that state whose one call was begun ten minutes ago: sure, unless the state says otherwise."""
    begun = Attempt(
        app="shop",
        reaction="charge",
        record="7",
        occurrence="",
        state=state,
        worker=1,
        call=101,
        call_no=1,
        unsure=state is State.DOUBT,
        since=NOW - 600 * SECOND,
        first_at=NOW - 600 * SECOND,
        deadline=NOW - 585 * SECOND,
        blocks="order",
    )
    return replace(begun, **columns)


def well_formed(one: Attempt) -> bool:
    """What each row of the table may rely on: a doubt is unsure, a failure is sure, and outcomes are kept on held attempts only."""
    if one.state is State.DOUBT and not one.unsure:
        return False
    if one.state is State.FAILED and one.unsure:
        return False
    if one.state is State.HELD and one.next_at is not None:
        return False
    return one.outcome is None or one.state is State.HELD


seconds = st.integers(-7200, 7200).map(lambda number: number * SECOND)
moments = seconds.map(lambda away: NOW + away)
all_facts = st.sampled_from(ALL_FACTS)
all_terms = st.builds(
    lambda one, times, give_up: replace(one, retry=Retry(times=times, give_up_after=give_up)),
    st.sampled_from(ALL_TERMS),
    st.none() | st.integers(1, 4),
    st.none() | st.integers(1, 7200).map(lambda number: number * SECOND),
)


_OTHERS = (CHARGE, replace(CHARGE, policy="repeat"), replace(CHARGE, service="psp"), replace(CHARGE, occurrence=("round",)))
_BEGUN_WITH = (None, *(begun_kind.kind_as_json(one) for one in _OTHERS))


WHYS = (None, why_for_ended_workers([5]), why_for_ended_workers([5, 6]), EXPIRED_HANDLER_FAILED)


@st.composite
def attempts(draw: st.DrawFn, states: tuple[State, ...] = tuple(State)) -> Attempt:
    """Any attempt that can stand in the table."""
    state = draw(st.sampled_from(states))
    sure_or_not = state in (State.BEGUN, State.HELD) and draw(st.booleans())
    return Attempt(
        app="shop",
        reaction=draw(st.sampled_from(["charge", "mail"])),
        record=draw(st.text(max_size=3)),
        occurrence=draw(st.text(max_size=3)),
        state=state,
        worker=draw(st.integers(1, 4)),
        call=draw(st.integers(0, 2**63 - 1)),
        call_no=draw(st.integers(0, 9)),
        unsure=state is State.DOUBT or sure_or_not,
        since=draw(moments),
        first_at=draw(moments),
        deadline=draw(moments),
        failures=draw(st.integers(0, 5)),
        next_at=None if state is State.HELD else draw(st.none() | moments),
        error=draw(st.none() | st.just("it said no")),
        why=draw(st.sampled_from(WHYS)) if state is not State.HELD else "held for a reason",
        outcome=draw(st.none() | st.just('["paid"]')) if state is State.HELD else None,
        blocks=draw(st.none() | st.just("order")),
        together=draw(st.integers(0, 4)),
        begun_with=draw(st.sampled_from(_BEGUN_WITH)),
    )
