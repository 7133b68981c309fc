"""A toy of the protocol: one record, two worker processes, a service, a writer, a person and time, driven through the real rules.

A small sister of `protocol.pml`: the transitions are those of rules/attempt.py, everything else is made up here. The service keeps its
promise (nothing lands later than deadline + settle_after, and a lookup is right), and so does the person; nothing else is kind.
What can happen next, and when, says moves.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from groundstate.rules import attempt as rules
from groundstate.rules.attempt import Attempt, Facts, State, Terms
from groundstate.rules.blocking import find_blocking_attempt, is_retry_due
from groundstate.rules.policy import MARGIN, Retry
from tests.rules.making import NOW, SECOND, TIMEOUT, attempt

BEGUN, DOUBT, FAILED, HELD = State
TROUBLE, WRITES, WORDS = 5, 2, 2  # how often something breaks, the shop writes and a person speaks, in one run
TRIES = Retry(times=3, first=SECOND, longest=SECOND)
OCCURRENCES = 2


@dataclass(eq=False)
class Call:
    """One call: what its task in the worker knows (`task`), and what its request does outside (`request`)."""

    number: int  # the fence
    occurrence: int
    process: int
    life: int
    deadline: datetime
    task: str = "begun"  # begun, waiting, stuck (hangs before its request goes out), given up, ended
    request: str = "none"  # none, air, landed, refused, lost
    reports: int | None = None  # the effect that a landed request reports
    lands_by: datetime | None = None  # None while its thread may still send


@dataclass(eq=False)
class Asked:
    """A lookup under way, with the fence it was asked under."""

    process: int
    occurrence: int
    call: int
    worker: int
    at: datetime
    answer: str | int | None = None  # 'absent', 'unknown', an effect; None until it answers


class World:
    def __init__(self, terms: Terms, *, threads: bool, has_overtaken: bool, valid_for: timedelta | None = None) -> None:
        """threads: sync calls whose thread may hang before it sends; then no living worker loses its lock.

        valid_for: so long after a round was entered it is too late for it.
        """
        self.terms, self.threads, self.has_overtaken = terms, threads, has_overtaken
        self.trouble, self.writes, self.words = TROUBLE, WRITES, WORDS
        self.now = NOW
        self.exists, self.condition, self.occurrence = True, True, 0
        self.entries = [1, 0]
        self.valid_for = valid_for
        self.due = [NOW, NOW]  # when each round was entered last
        self.rows: dict[int, Attempt] = {}
        self.lives: list[int | None] = [1, 2]
        self.last_life = 2
        self.calls: list[Call] = []
        self.queries: list[Asked] = []
        self.effects: list[int] = []  # effect -> its occurrence
        self.provider: dict[int, tuple[int, datetime]] = {}  # key -> its effect, and since when it is kept
        self.taken: set[int] = set()  # effects whose outcome a handler or a person has taken
        self.heard: set[int] = set()  # effects whose outcome some worker had in its hands
        self.sent = [0, 0]  # calls that went out without a person's word

    @property
    def idle(self) -> bool:
        """Nothing is to be done, and no request or answer is under way."""
        quiet = all(call.task == "ended" and call.request != "air" for call in self.calls)
        return bool(self.calls) and not self.rows and quiet and not self.to_take() and not (self.exists and self.writes)

    # ---- what is there -------------------------------------------------------------------------------------------------------
    @property
    def kind(self) -> str:
        assert self.terms.policy is not None
        return self.terms.policy.kind

    def facts(self, occurrence: int) -> Facts:
        return Facts(self.exists, self.exists and self.condition and self.occurrence == occurrence, self.expired(occurrence))

    def expired(self, occurrence: int) -> bool:
        return self.valid_for is not None and self.now >= self.due[occurrence] + self.valid_for

    def open_effects(self, occurrence: int) -> set[int]:
        return {effect for effect, at in enumerate(self.effects) if at == occurrence} - self.taken

    def in_the_air(self, occurrence: int) -> bool:
        return any(call.request == "air" and call.occurrence == occurrence for call in self.calls)

    def blocked(self, occurrence: int) -> bool:
        return find_blocking_attempt("shop", "charge", str(occurrence), self.rows.values(), done_column=False) is not None

    def thread_runs(self, one: Attempt) -> bool:
        return any(call.number == one.call and call.task in ("given up", "stuck") for call in self.calls)

    def to_take(self) -> bool:
        at = self.occurrence
        return at not in self.rows and self.facts(at).holds and not self.blocked(at)

    def to_sweep(self, life: int) -> list[int]:
        """What dead lives left, and what this one began and does not know: the answer of a COMMIT was lost."""
        known = {call.number for call in self.calls if call.task != "ended"}
        dead = [at for at, one in self.rows.items() if one.state in (BEGUN, DOUBT) and one.worker not in self.lives]
        return dead + [at for at, one in self.rows.items() if one.state is BEGUN and one.worker == life and one.call not in known]

    def of_rows(self, process: int, state: State) -> list[int]:
        """Occurrences whose attempt this process may look at now: a doubt is its owner's, once its thread has ended."""
        found = [at for at, one in self.rows.items() if one.state is state and is_retry_due(one, self.now)]
        if state is DOUBT:
            return [at for at in found if self.rows[at].worker == self.lives[process] and not self.thread_runs(self.rows[at])]
        return found

    # ---- rows ----------------------------------------------------------------------------------------------------------------
    def put(self, occurrence: int, decision: rules.Decision | rules.Refuse, process: int | None = None) -> None:
        one = self.rows[occurrence]
        match decision:
            case rules.Keep(after):
                self.rows[occurrence] = after
            case rules.Delete():
                del self.rows[occurrence]
            case rules.Begin(before):
                assert process is not None
                self.begin_call(process, occurrence, before)
            case rules.GaveUp():
                self.rows[occurrence] = rules.hold_attempt(one, "the last try was used").attempt
            case rules.Expired():
                self.expires(occurrence)
            case rules.AskLookup():
                assert process is not None
                if not any(asked.process == process for asked in self.queries):
                    self.queries.append(Asked(process, occurrence, one.call, one.worker, self.now))
            case rules.Wait() | rules.Refuse():
                pass
            case _:
                raise AssertionError(decision)

    def begin_call(self, process: int, occurrence: int, before: Attempt, *, known: bool = True) -> None:
        life = self.lives[process]
        assert life is not None
        assert not self.expired(occurrence), "NothingStale"
        number, deadline = 100 + len(self.calls), self.now + TIMEOUT + MARGIN
        self.rows[occurrence] = rules.attempt_with_new_call(before, worker=life, call=number, now=self.now, deadline=deadline)
        lands_by = deadline + self.terms.settle_after
        self.calls.append(Call(number, occurrence, process, life, deadline, "begun" if known else "ended", lands_by=lands_by))

    def fresh(self, occurrence: int, worker: int) -> Attempt:
        one = attempt(FAILED, occurrence=str(occurrence), worker=worker, call=0, call_no=0)
        return replace(one, since=self.now, first_at=self.now, deadline=self.now)

    def expires(self, occurrence: int, *, handler_raises: bool = False) -> None:
        """The expired handler: by itself, or for an attempt that stands."""
        if self.kind != "repeat":
            assert not self.open_effects(occurrence), "ExpiredSure"
            assert not self.in_the_air(occurrence), "ExpiredSure"
        one = self.rows.get(occurrence)
        if not handler_raises:
            self.condition = False
            self.rows.pop(occurrence, None)
            return
        self.trouble -= 1
        next_at = self.now + SECOND
        if one is None:
            self.rows[occurrence] = replace(self.fresh(occurrence, 0), failures=1, next_at=next_at)
        else:
            self.rows[occurrence] = rules.on_expired_handler_failed(one, self.terms, self.now, next_at, "it raised").attempt

    # ---- outcomes ------------------------------------------------------------------------------------------------------------
    def conclude(self, occurrence: int, effect: int, *, handler_raises: bool) -> None:
        """An outcome is put to an attempt that may conclude."""
        one = self.rows[occurrence]
        decision = rules.on_call_returned(self.facts(occurrence))
        if isinstance(decision, rules.Conclude) and not handler_raises:
            assert effect not in self.taken, "NoWorkLost: an old outcome was taken for new work"
            self.taken.add(effect)
            self.condition = False
            del self.rows[occurrence]
        elif isinstance(decision, rules.Overtaken) and self.exists and self.has_overtaken:
            self.taken.add(effect)
            del self.rows[occurrence]
        else:
            self.hold_with(occurrence, one, effect)

    def hold_with(self, occurrence: int, one: Attempt, effect: int) -> None:
        self.rows[occurrence] = rules.hold_refused_outcome(one, "held", None, self.added(one, effect)).attempt

    @staticmethod
    def added(one: Attempt, effect: int) -> str:
        return json.dumps([*json.loads(one.outcome or "[]"), effect])

    def late(self, occurrence: int, effect: int, *, handler_raises: bool) -> None:
        """An outcome of a call that is not the attempt's latest any more."""
        one = self.rows.get(occurrence)
        match rules.decide_late_outcome(one, self.terms.policy):
            case rules.Conclude():
                self.conclude(occurrence, effect, handler_raises=handler_raises)
            case rules.AddOutcome(unsure=unsure):
                assert one is not None
                self.rows[occurrence] = replace(one, state=HELD, unsure=unsure, outcome=self.added(one, effect), next_at=None, why="late")
            case rules.HoldNew():
                if effect not in self.taken:  # else the handler compares, and there is nothing to do
                    self.hold_with(occurrence, self.fresh(occurrence, 0), effect)
            case rules.Drop():
                pass

    # ---- a worker's moves ------------------------------------------------------------------------------------------------------
    def takes(self, process: int, *, commit_unknown: bool = False) -> None:
        if self.expired(self.occurrence):
            self.trouble -= commit_unknown
            self.expires(self.occurrence)
            return
        self.trouble -= commit_unknown
        self.sent[self.occurrence] = 0
        fresh = self.fresh(self.occurrence, self.lives[process] or 0)
        self.begin_call(process, self.occurrence, fresh, known=not commit_unknown)

    def sweeps(self, process: int) -> None:
        life = self.lives[process]
        assert life is not None
        for at in self.to_sweep(life):
            one = self.rows[at]
            if one.worker == life:
                self.put(at, rules.on_call_not_sent(one, self.now))
            else:
                self.rows[at] = rules.adopt_attempt(one, life, self.now, alone=False).attempt

    def settles(self, process: int, at: int) -> None:
        self.put(at, rules.decide_attempt_in_doubt(self.rows[at], self.terms, self.facts(at), self.now), process)

    def looks_at_failed(self, process: int, at: int) -> None:
        self.put(at, rules.decide_failed_attempt(self.rows[at], self.terms, self.facts(at), self.now, blocked=self.blocked(at)), process)

    # ---- a call's moves --------------------------------------------------------------------------------------------------------
    def ours(self, call: Call) -> Attempt | None:
        """The attempt, where this is its latest call and still begun."""
        one = self.rows.get(call.occurrence)
        return one if one is not None and one.state is BEGUN and one.call == call.number else None

    def goes_out_or_not(self, call: Call, *, stops: bool = False) -> None:
        """The check just before the call: still who we were, and not past the deadline."""
        self.trouble -= stops
        if not stops and self.lives[call.process] == call.life and self.now <= call.deadline:
            call.task = "waiting"
            self.send(call)
            return
        call.task = "ended"
        if one := self.ours(call):
            self.put(call.occurrence, rules.on_call_not_sent(one, self.now))

    def hangs(self, call: Call) -> None:
        """In its thread, behind that check and before its request goes out."""
        if self.lives[call.process] == call.life and self.now <= call.deadline:
            self.trouble -= 1
            call.task, call.lands_by = "stuck", None

    def sends_after_all(self, call: Call) -> None:
        call.task = "waiting" if self.ours(call) else "given up"
        self.send(call)

    def send(self, call: Call) -> None:
        call.request = "air"
        one = self.rows.get(call.occurrence)
        if one is not None and one.call == call.number:
            self.sent[call.occurrence] += 1
            assert self.sent[call.occurrence] <= (TRIES.times or 0) + 1, "BoundedCalls"

    def request_ends(self, call: Call, how: str) -> None:
        self.trouble -= how != "landed"
        call.request = how
        if how != "landed":
            return
        remembered = self.provider.get(call.occurrence)
        if self.kind == "same_key" and remembered is not None:
            call.reports = remembered[0]
            return
        call.reports = len(self.effects)
        self.effects.append(call.occurrence)
        self.provider[call.occurrence] = (call.reports, self.now)

    def answers(self, call: Call, *, handler_raises: bool = False) -> None:
        self.trouble -= handler_raises
        call.task = "ended"
        one = self.ours(call)
        if call.reports is not None:
            self.heard.add(call.reports)
            put = self.late if one is None else self.conclude
            put(call.occurrence, call.reports, handler_raises=handler_raises)
        elif one is not None:
            self.put(call.occurrence, rules.on_call_not_done(one, "refused", self.now + SECOND, counts=True))

    def times_out(self, call: Call, *, listens: bool) -> None:
        """listens: an answer that comes later is still heard. A thread that has not sent yet cannot be stopped."""
        self.trouble -= call.request != "lost"
        if one := self.ours(call):
            self.put(call.occurrence, rules.put_in_doubt(one, "timed out", self.now, self.now))
        if call.task == "waiting":
            call.task = "given up" if listens or call.lands_by is None else "ended"

    def thread_ends(self, call: Call) -> None:
        call.task = "ended"
        call.lands_by = call.lands_by or self.now + self.terms.settle_after
        one = self.rows.get(call.occurrence)
        if one is not None and one.call == call.number and one.state in (DOUBT, HELD):
            self.rows[call.occurrence] = replace(one, deadline=max(one.deadline, self.now))

    # ---- the service is asked --------------------------------------------------------------------------------------------------
    def outside_answers(self, asked: Asked, *, knows: bool = True) -> None:
        self.trouble -= not knows
        made = [effect for effect, at in enumerate(self.effects) if at == asked.occurrence]
        asked.answer = "unknown" if not knows else made[0] if made else "absent"

    def answer_is_applied(self, asked: Asked, *, handler_raises: bool = False) -> None:
        self.trouble -= handler_raises
        self.queries.remove(asked)
        at, one = asked.occurrence, self.rows.get(asked.occurrence)
        if one is None or one.state is not DOUBT or (one.call, one.worker) != (asked.call, asked.worker):
            return  # moved on: it can be asked again
        later = self.now + SECOND
        match asked.answer:
            case "absent":
                self.put(at, rules.on_lookup_absent(one, self.terms, self.facts(at), asked.at, later, self.now))
            case "unknown":
                self.put(at, rules.on_lookup_unknown(one, later, None))
            case int(effect):
                self.heard.add(effect)
                self.conclude(at, effect, handler_raises=handler_raises)

    # ---- time, and the ends of processes -----------------------------------------------------------------------------------------
    def time_passes(self, seconds: int) -> None:
        """Nothing stays in the air for longer than the service promises; and it forgets keys as soon as it may."""
        self.now += seconds * SECOND
        for call in self.calls:
            if call.request == "air" and call.lands_by is not None and self.now > call.lands_by:
                self.request_ends(call, "landed")
        kept_for = self.terms.policy.kept_for if self.terms.policy else None
        if kept_for is not None:
            self.provider = {key: kept for key, kept in self.provider.items() if kept[1] + kept_for > self.now}

    def is_killed(self, process: int) -> None:
        self.trouble -= 1
        self.lives[process] = None
        self.queries = [asked for asked in self.queries if asked.process != process]
        for call in self.calls:
            if call.process == process:
                call.task = "ended"
                call.lands_by = call.lands_by or self.now + self.terms.settle_after

    def starts(self, process: int) -> None:
        self.last_life += 1
        self.lives[process] = self.last_life

    def loses_its_lock(self, process: int) -> None:
        """It lives, and begins a new life when it finds out."""
        self.trouble -= 1
        self.starts(process)

    # ---- the shop, and a person ------------------------------------------------------------------------------------------------
    def shop_writes(self, deed: str) -> None:
        self.writes -= 1
        if deed == "done by hand":
            self.condition = False
        elif deed == "deleted":
            self.exists = False
        elif self.occurrence + 1 < OCCURRENCES:
            self.occurrence += 1
            self.condition = True
            self.entries[self.occurrence] += 1
            self.due[self.occurrence] = self.now

    def person_says(self, at: int, deed: str) -> None:
        """A person is right about what the service did until now, and need not be about what is in the air."""
        self.words -= 1
        one, facts = self.rows[at], self.facts(at)
        self.sent[at] = 0
        match deed:
            case "retry":
                self.put_by_person(at, rules.apply_retry_command(one, self.terms, self.now))
            case "absent" if not self.open_effects(at) and not self.thread_runs(one):
                self.put_by_person(at, rules.apply_settle_absent_command(one, self.terms, facts, self.now))
            case "outcome" if self.open_effects(at):
                self.put_by_person(at, rules.apply_settle_outcome_command(one, self.terms, self.now))
            case "forget" if not self.thread_runs(one):
                decision = rules.apply_forget_command(one, self.terms, facts, self.now)
                if isinstance(decision, rules.Delete):
                    self.taken |= self.open_effects(at)
                self.put_by_person(at, decision)

    def put_by_person(self, at: int, decision: rules.Decision | rules.Refuse) -> None:
        if not isinstance(decision, rules.Conclude):
            self.put(at, decision)
        elif not self.thread_runs(self.rows[at]) and not self.in_the_air(at):
            self.taken |= self.open_effects(at)
            if self.occurrence == at:
                self.condition = False
            del self.rows[at]

    # ---- what must hold, always ------------------------------------------------------------------------------------------------
    def check(self) -> None:
        """Listed, AtMostOnce (under same_key OncePerKey: the key is the occurrence's), OutcomeKept and StickyDoubt, after every move."""
        for at in range(OCCURRENCES):
            if self.kind != "repeat":
                assert at in self.rows or not self.open_effects(at), "Listed"
                assert self.effects.count(at) <= max(self.entries[at], 1), "AtMostOnce"
            one = self.rows.get(at)
            if one is not None and (one.state is FAILED or (one.state is HELD and not one.unsure and one.outcome is None)):
                assert not self.open_effects(at), "StickyDoubt"  # 'sure' says that nothing of it is open outside
                assert not self.in_the_air(at), "StickyDoubt"
        if self.kind != "repeat":
            kept = {effect for one in self.rows.values() for effect in json.loads(one.outcome or "[]")}
            assert self.heard <= self.taken | kept, "OutcomeKept"
