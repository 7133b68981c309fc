"""The table of transitions, written once more from the contract and not from the code: who may become what, and which columns change.

A row is met where its event happened to an attempt in one of its states and its `when` holds; the first that is met is the one that counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from groundstate.rules.attempt import Attempt, Facts, State, Terms
from groundstate.rules.poison_suspects import why_for_ended_workers, worker_ends_in_why
from groundstate.rules.policy import MARGIN
from tests.rules.making import ALL_TERMS, HOLDS, NOW, SECOND

BEGUN, DOUBT, FAILED, HELD = State
WORDS = object()  # whatever is said there, something is
NEW_CALL, ADOPTER, SAID = 999, 77, "it said no"
NEW_WITH = '{"service":"a new call"}'


_read: Callable[[str], dict[str, Any]] = lru_cache(json.loads)


@dataclass(frozen=True)
class Case:
    """An attempt (or none) and all that a row may ask of the world."""

    attempt: Attempt | None
    terms: Terms = ALL_TERMS[0]
    facts: Facts = HOLDS
    now: datetime = NOW
    asked_at: datetime = NOW
    next_at: datetime = NOW
    asks_at: datetime = NOW + SECOND
    blocked: bool = False
    counts: bool = True

    @property
    def one(self) -> Attempt:
        assert self.attempt is not None
        return self.attempt

    @property
    def kind(self) -> str | None:
        return self.terms.policy.kind if self.terms.policy else None

    @property
    def holds(self) -> bool:
        return self.facts.exists and self.facts.holds

    @property
    def said(self) -> dict[str, Any]:
        """What its row says that its latest call was begun with."""
        return _read(self.one.begun_with) if self.one.begun_with is not None else {}

    @property
    def other_call(self) -> bool:
        """Whether that call was another than that of today, by what both say."""
        today = self.terms.kind
        if today is None:
            return False
        own = {"service": today.service, "call": today.call, "key": today.key, "occurrence": list(today.occurrence or ())}
        return any(name in self.said and self.said[name] != value for name, value in own.items())

    @property
    def other_lookup(self) -> bool:
        today = self.terms.kind
        return today is not None and None not in (today.lookup, self.said.get("lookup")) and self.said["lookup"] != today.lookup

    @property
    def of_other_code(self) -> bool:
        """Whether the code of today cannot settle its doubt."""
        was = self.said.get("policy")
        if self.terms.kind is None or was == self.kind == "repeat":
            return False
        promised_less = self.kind == "same_key" and was in ("lookup", "hold")
        return self.other_call or promised_less or (self.kind == "repeat" and was is not None)

    @property
    def in_time(self) -> bool:
        """It holds, and is still worth doing."""
        return self.holds and not self.facts.expired

    @property
    def spent(self) -> bool:
        return self.spent_after(self.one.failures)

    @property
    def spent_then(self) -> bool:
        """The last try used, with one more that failed."""
        return self.spent_after(self.one.failures + 1)

    def spent_after(self, failures: int) -> bool:
        retry = self.terms.retry
        too_many = retry.times is not None and failures >= retry.times
        return too_many or (retry.give_up_after is not None and self.now - self.one.since >= retry.give_up_after)

    @property
    def lands_until(self) -> datetime:
        """Deadline + settle_after: until then its latest call may land."""
        return self.one.deadline + self.terms.settle_after

    @property
    def made_a_call(self) -> bool:
        """Of a begun one: begun for a call, and not by careful mode for a batch; by whatever code."""
        return self.one.call_no > 0 or self.one.unsure

    @property
    def ends(self) -> list[int]:
        """The unclean ends at which it was under way, this one among them; none where this one was no unclean end."""
        return [*worker_ends_in_why(self.one.why), self.one.worker] if self.counts else []

    def is_killer(self, before: int) -> bool:
        """Whether it alone was under way at this unclean end, and was at so many before."""
        return self.one.together == 1 and len(self.ends) > before

    @property
    def key_is_young(self) -> bool:
        policy = self.terms.policy
        if policy is None or policy.kept_for is None:
            return True
        return self.one.first_at + policy.kept_for > self.now + self.terms.timeout + MARGIN + self.terms.settle_after


Changes = Mapping[str, Any]


def nothing(_case: Case) -> Changes:
    return {}


@dataclass(frozen=True)
class Row:
    """`to`: what becomes of it. `changes`: the columns that change, with what they become; all others stay."""

    says: str
    event: str
    states: tuple[State | None, ...]
    when: Callable[[Case], bool]
    to: str
    changes: Callable[[Case], Changes] = field(default=nothing)


def always(_case: Case) -> bool:
    return True


def later_deadline(case: Case) -> datetime:
    return max(case.one.deadline, case.now)


def new_call(case: Case) -> Changes:
    """A new call: unsure stays; the key is as old as the first call since unsure was last no, and a deadline never moves back."""
    its_own = case.now + case.terms.timeout
    return {
        "state": BEGUN, "worker": ADOPTER, "call": NEW_CALL, "call_no": case.one.call_no + 1,
        "deadline": max(its_own, case.one.deadline) if case.one.unsure else its_own,
        "first_at": case.one.first_at if case.one.unsure else case.now, "next_at": None, "together": 0,
        "begun_with": NEW_WITH,
    }  # fmt: skip


def held(_case: Case) -> Changes:
    return {"state": HELD, "next_at": None, "why": WORDS}


def with_outcome(*, unsure: bool) -> Callable[[Case], Changes]:
    return lambda _case: {"state": HELD, "unsure": unsure, "outcome": WORDS, "why": WORDS, "next_at": None}


def died(case: Case) -> Changes:
    """Its worker is no more. In careful mode only the one that was alone counts as having failed; an unclean end is remembered of each."""
    return {
        "state": DOUBT, "unsure": True, "worker": ADOPTER, "failures": case.one.failures + (case.one.together < 2), "next_at": case.now,
        "error": WORDS, "deadline": later_deadline(case), "why": why_for_ended_workers(case.ends) if case.ends else case.one.why,
    }  # fmt: skip


def died_without_call(case: Case) -> Changes:
    return {
        "state": FAILED, "worker": ADOPTER, "failures": case.one.failures + (case.one.together == 1), "next_at": case.now, "error": WORDS,
        "why": why_for_ended_workers(case.ends) if case.ends else case.one.why,
    }  # fmt: skip


def killed_alone(case: Case) -> Changes:
    return {**died(case), "state": HELD, "next_at": None, "why": why_for_ended_workers(case.ends, alone=True)}


def killed_alone_without_call(case: Case) -> Changes:
    return {**died_without_call(case), "state": HELD, "next_at": None, "why": why_for_ended_workers(case.ends, alone=True)}


def fresh_start(case: Case) -> Changes:
    return {"failures": 0, "since": case.now, "next_at": case.now, "why": None}


def ended(state: State) -> Callable[[Case], Changes]:
    return lambda case: {"state": state, "failures": case.one.failures + case.counts, "next_at": case.next_at, "error": SAID}


def in_vain(state: State) -> Callable[[Case], Changes]:
    return lambda case: {"state": state, "failures": case.one.failures + 1, "next_at": case.next_at, "error": SAID, "why": WORDS}


TABLE = [
    # ---- an outcome is in hand
    Row("the call returned, and its condition holds", "returned", (BEGUN, DOUBT), lambda c: c.holds, "conclude"),
    Row("the call returned, and its condition no longer holds", "returned", (BEGUN, DOUBT), always, "overtaken"),
    Row("the handler refused the outcome", "refused", (BEGUN, DOUBT, FAILED, HELD), always, "held",
        lambda c: {**with_outcome(unsure=False)(c), "error": SAID}),
    Row("one of several outcomes was concluded", "one of several", (HELD,), always, "held",
        lambda c: {**with_outcome(unsure=False)(c), "error": None}),
    # ---- begun
    Row("NotDone, sure", "not done", (BEGUN,), lambda c: not c.one.unsure, "failed", ended(FAILED)),
    Row("NotDone, unsure", "not done", (BEGUN,), always, "doubt", ended(DOUBT)),
    Row("timed out, or raised anything else", "unclear", (BEGUN,), always, "doubt",
        lambda c: {"state": DOUBT, "unsure": True, "failures": c.one.failures + 1, "next_at": c.next_at, "error": SAID,
                   "deadline": later_deadline(c)}),
    Row("its worker is no more, a third time, alone", "adopted", (BEGUN,), lambda c: c.made_a_call and c.is_killer(2), "held",
        killed_alone),
    Row("its worker is no more", "adopted", (BEGUN,), lambda c: c.made_a_call, "doubt", died),
    Row("its worker is no more, no call, a second time, alone", "adopted", (BEGUN,), lambda c: c.is_killer(1), "held",
        killed_alone_without_call),
    Row("its worker is no more, no call", "adopted", (BEGUN,), always, "failed", died_without_call),
    Row("its worker is no more, in doubt", "adopted", (DOUBT,), always, "doubt",
        lambda c: {"worker": ADOPTER, "deadline": later_deadline(c)}),
    Row("not in its worker's memory, a call", "not in memory", (BEGUN,), lambda c: c.made_a_call, "doubt",
        lambda c: {"state": DOUBT, "unsure": True, "failures": c.one.failures + 1, "next_at": c.now, "error": WORDS,
                   "deadline": later_deadline(c)}),
    Row("not in its worker's memory, no call, failed before", "not in memory", (BEGUN,), lambda c: c.one.failures > 0, "failed",
        lambda c: {"state": FAILED, "next_at": c.now}),
    Row("not in its worker's memory, no call", "not in memory", (BEGUN,), always, "gone"),
    Row("did not go out, unsure", "did not go out", (BEGUN,), lambda c: c.one.unsure, "doubt",
        lambda c: {"state": DOUBT, "next_at": c.now}),
    Row("did not go out, failed before", "did not go out", (BEGUN,), lambda c: c.one.failures > 0, "failed",
        lambda c: {"state": FAILED, "next_at": c.now}),
    Row("did not go out", "did not go out", (BEGUN,), always, "gone"),
    # ---- doubt
    Row("in doubt, record deleted", "settle", (DOUBT,), lambda c: not c.facts.exists, "held", held),
    Row("in doubt, and the reaction makes no call any more", "settle", (DOUBT,), lambda c: c.kind is None, "held", held),
    Row("in doubt, begun by other code", "settle", (DOUBT,), lambda c: c.of_other_code, "held", held),
    Row("hold", "settle", (DOUBT,), lambda c: c.kind == "hold", "held", held),
    Row("lookup, another lookup", "settle", (DOUBT,), lambda c: c.kind == "lookup" and c.other_lookup, "held", held),
    Row("lookup", "settle", (DOUBT,), lambda c: c.kind == "lookup", "lookup"),
    Row("repeat, gone", "settle", (DOUBT,), lambda c: c.kind == "repeat" and not c.holds, "gone, said"),
    Row("repeat, too late", "settle", (DOUBT,), lambda c: c.kind == "repeat" and c.facts.expired, "expired, unsure"),
    Row("repeat, the last try used", "settle", (DOUBT,), lambda c: c.kind == "repeat" and c.spent, "gave up, unsure"),
    Row("repeat", "settle", (DOUBT,), lambda c: c.kind == "repeat", "begun", new_call),
    Row("same_key, the last try used", "settle", (DOUBT,), lambda c: c.in_time and c.key_is_young and c.spent, "held", held),
    Row("same_key", "settle", (DOUBT,), lambda c: c.in_time and c.key_is_young, "begun", new_call),
    Row("same_key, gone, too late or too old, another lookup", "settle", (DOUBT,),
        lambda c: c.terms.has_lookup and c.other_lookup, "held", held),
    Row("same_key, gone, too late or too old, with a lookup", "settle", (DOUBT,), lambda c: c.terms.has_lookup, "lookup"),
    Row("same_key, gone, too late or too old", "settle", (DOUBT,), always, "held", held),
    Row("Absent, record deleted", "absent", (DOUBT,), lambda c: not c.facts.exists, "held", held),
    Row("Absent, asked too early", "absent", (DOUBT,), lambda c: c.asked_at <= c.lands_until, "doubt",
        lambda c: {"next_at": c.asks_at}),
    Row("Absent, holds", "absent", (DOUBT,), lambda c: c.holds, "failed",
        lambda c: {"state": FAILED, "unsure": False, "next_at": c.next_at}),
    Row("Absent, gone", "absent", (DOUBT,), always, "gone"),
    Row("Unknown", "unknown", (DOUBT,), always, "doubt", lambda c: {"next_at": c.next_at, "error": SAID}),
    Row("Unknown for too long", "unknown for too long", (DOUBT,), always, "held", held),
    # ---- failed
    Row("failed, gone or deleted", "due", (FAILED,), lambda c: not c.holds, "gone"),
    Row("failed, blocked", "due", (FAILED,), lambda c: c.blocked, "wait"),
    Row("failed, too late", "due", (FAILED,), lambda c: c.facts.expired, "expired"),
    Row("failed, the last try used", "due", (FAILED,), lambda c: c.spent, "gave up"),
    Row("failed, due", "due", (FAILED,), always, "begun", new_call),
    # ---- the expired handler failed; begun, in careful mode, for that handler alone
    Row("expired in vain, the last try used", "expired in vain", (BEGUN, DOUBT, FAILED),
        lambda c: c.spent_then and not (c.one.state is BEGUN and c.one.unsure), "held", lambda c: {**in_vain(HELD)(c), "next_at": None}),
    Row("expired in vain, in doubt", "expired in vain", (DOUBT,), always, "doubt", in_vain(DOUBT)),
    Row("expired in vain", "expired in vain", (BEGUN, FAILED), lambda c: not c.one.unsure, "failed", in_vain(FAILED)),
    # ---- an outcome that comes late
    Row("late, attempt gone, repeat", "late", (None,), lambda c: c.kind == "repeat", "dropped, said"),
    Row("late, attempt gone", "late", (None,), always, "held anew"),
    Row("late, of another call", "late", (BEGUN, DOUBT, HELD), lambda c: (c.one.state is BEGUN or c.one.unsure) and c.other_call,
        "held, loudly", with_outcome(unsure=True)),
    Row("late, in doubt", "late", (DOUBT,), always, "conclude"),
    Row("late, failed", "late", (FAILED,), always, "conclude, loudly"),
    Row("late, begun unsure", "late", (BEGUN,), lambda c: c.one.unsure, "conclude"),
    Row("late, begun sure", "late", (BEGUN,), always, "held, loudly", with_outcome(unsure=True)),
    Row("late, held with an outcome", "late", (HELD,), lambda c: c.one.outcome is not None, "held",
        lambda c: with_outcome(unsure=c.one.unsure)(c)),
    Row("late, held unsure", "late", (HELD,), lambda c: c.one.unsure, "conclude"),
    Row("late, held sure", "late", (HELD,), always, "held", with_outcome(unsure=False)),
    # ---- a person
    Row("retry, failed", "retry", (FAILED,), always, "failed", lambda c: {"next_at": c.now, "failures": 0, "since": c.now}),
    Row("retry, not held", "retry", (BEGUN, DOUBT), always, "not now"),
    Row("retry, an outcome in hand and a call in the air", "retry", (HELD,),
        lambda c: c.one.outcome is not None and c.one.unsure and c.now <= c.lands_until, "not now"),
    Row("retry, an outcome in hand", "retry", (HELD,), lambda c: c.one.outcome is not None, "conclude"),
    Row("retry, sure", "retry", (HELD,), lambda c: not c.one.unsure, "failed", lambda c: {"state": FAILED, **fresh_start(c)}),
    Row("retry, unsure, and nobody can tell", "retry", (HELD,),
        lambda c: c.kind in (None, "hold") or (not c.key_is_young and not c.terms.has_lookup), "not now"),
    Row("retry, unsure, begun by other code", "retry", (HELD,), lambda c: c.of_other_code, "not now"),
    Row("retry, unsure", "retry", (HELD,), always, "doubt", lambda c: {"state": DOUBT, **fresh_start(c)}),
    Row("settle as absent, not held", "settle as absent", (BEGUN, DOUBT, FAILED), always, "not now"),
    Row("settle as absent, sure", "settle as absent", (HELD,), lambda c: not c.one.unsure, "not now"),
    Row("settle as absent, too early", "settle as absent", (HELD,), lambda c: c.now <= c.lands_until, "not now"),
    Row("settle as absent, an outcome of another call in hand", "settle as absent", (HELD,), lambda c: c.one.outcome is not None, "held",
        lambda _: {"unsure": False}),
    Row("settle as absent, holds", "settle as absent", (HELD,), lambda c: c.holds, "failed",
        lambda c: {"state": FAILED, "unsure": False, **fresh_start(c)}),
    Row("settle as absent, gone", "settle as absent", (HELD,), always, "gone"),
    Row("settle with an outcome, not held", "settle with an outcome", (BEGUN, DOUBT, FAILED), always, "not now"),
    Row("settle with an outcome, no call", "settle with an outcome", (HELD,), lambda c: c.kind is None, "not now"),
    Row("settle with an outcome, one in hand and a call in the air", "settle with an outcome", (HELD,),
        lambda c: c.one.outcome is not None and c.one.unsure and c.now <= c.lands_until, "not now"),
    Row("settle with an outcome", "settle with an outcome", (HELD,), always, "conclude"),
    Row("forget, not held", "forget", (BEGUN, DOUBT, FAILED), always, "not now"),
    Row("forget, holds", "forget", (HELD,), lambda c: c.holds, "not now"),
    Row("forget, too early", "forget", (HELD,), lambda c: c.one.unsure and c.now <= c.lands_until, "not now"),
    Row("forget", "forget", (HELD,), always, "gone"),
]  # fmt: skip


def row_of(event: str, case: Case) -> Row | None:
    """The row that is met; None where the contract knows of no such event for such an attempt."""
    state = case.attempt.state if case.attempt else None
    return next((row for row in TABLE if row.event == event and state in row.states and row.when(case)), None)
