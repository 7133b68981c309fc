"""The judge: it compares the provider's ledger with the database at any time and at the end, and names faults by invariants.

It reads only the user's tables, `groundstate_attempt` and `groundstate_worker`, by plain SQL: the framework takes no part in the verdict.
What it excuses, and counts, is in excuses.py.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Engine

from tools.torture.clock import Clock
from tools.torture.excuses import IN_THE_AIR_S, VANISHED, Erased, Excuses
from tools.torture.ledger import Effect, Reader
from tools.torture.seen import DELETED, KILLED, LOST_TIME, OLD_KEY, OTHER_CODE, OTHER_ROUND, REACTIONS, AttemptSeen, Books, OrderSeen
from tools.torture.shop import FINAL

ONCE = {
    "charge": "AtMostOnce",
    "mail": "AtMostOnce",
    "label": "OncePerKey",
    "announce": "OncePerKey",
    "insure": "AtMostOnce",
    "thank": "AtMostOnce",
}
INVARIANTS = (
    *("Listed", "NotLost", "AtMostOnce", "OncePerKey", "Fenced", "NothingAtRest", "Progress", "HeldForAReason", "OthersGoOn"),
    *("OtherRounds", "LeftAlone", "Guarded", "NoSecondCall"),
)
# An order is stuck if it was not touched for PATIENCE_S seconds of run time while PASSED_OVER effects were made for other orders. The
# second number is for workers that are killed faster than they work: an order that waits in a queue then is not stuck.
PATIENCE_S = 120.0  # seconds of run time
PASSED_OVER = 2000  # effects for other orders
STILL_WITHIN_S = 15.0  # seconds before a late effect: a call's time from its begin to deadline + settle_after, and more


@dataclass
class Judge:
    """Collects faults, each once, as 'Invariant: what is wrong'. Methods that read the database raise DBAPIError where it is in trouble."""

    engine: Engine
    ledger: Reader
    clock: Clock = field(default_factory=Clock)
    placed: list[int] = field(default_factory=list)  # the orders that were placed in a committed transaction
    faults: list[str] = field(default_factory=list)
    checks: Counter[str] = field(default_factory=Counter)  # how often each invariant was checked
    samples: int = 0
    excuses: Excuses = field(default_factory=Excuses)
    surveys: bool = False  # whether the reaction of version 2 has been deployed
    stopped: set[int] = field(default_factory=set)  # processes that the run suspended past deadlines
    moved: set[str] = field(default_factory=set)  # orders whose term was moved while their insurance call was open
    left: set[str] = field(default_factory=set)  # orders that a person has excluded from thanks (baseline)
    redeclared: set[str] = field(default_factory=set)  # reactions whose call, policy or occurrence some deploy changed
    effects: Counter[str] = field(default_factory=Counter)  # counts by call
    doubts: Counter[str] = field(default_factory=Counter)  # calls that were in doubt, by reaction
    held: Counter[str] = field(default_factory=Counter)  # attempts that were held, by reaction and reason
    _open: list[Effect] = field(default_factory=list)  # effects not yet concluded
    _first: dict[tuple[str, str, str], Effect] = field(default_factory=dict)
    _terms: dict[str, list[Effect]] = field(default_factory=dict)  # insurance effects by order
    _noted: set[tuple[object, ...]] = field(default_factory=set)
    # unfinished order -> its state, and since which time (s) and effect count
    _since: dict[int, tuple[object, float, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.books = Books(self.engine)

    def add_fault(self, invariant: str, words: str) -> None:
        """Record a fault, unless it was recorded before."""
        line = f"{invariant}: {words}"
        if line not in self.faults:
            self.faults.append(line)

    # ---- at any time -------------------------------------------------------------------------------------------------------------
    def check_effects(self) -> None:
        """Check Listed, AtMostOnce, OncePerKey and OtherRounds for every effect that was in the ledger before the database is read."""
        new = self._check_new_effects(self.ledger.read_new())
        attempts = self.books.read_attempts()  # before the orders, so that an attempt concluded in between is found there
        self.samples += 1
        self._check_doubts(attempts)
        self._check_rounds(new, attempts)
        if not self._open:
            return
        among = {int(effect.record) for effect in self._open}
        orders = self.books.read_orders(among)
        gone = self.books.read_orders(among - orders.keys(), table="gone_orders")
        self.checks["Listed"] += len(self._open)
        standing = _attempt_keys(attempts)
        lost = self.excuses.lost
        still: list[Effect] = []
        for effect in self._open:
            number = int(effect.record)
            order = orders.get(number) or gone.get(number)
            if order is None:
                self.add_fault("NotLost", f"order {effect.record} is gone")
            elif order.is_concluded(effect):
                lost.effects.pop(effect.id, None)
            else:
                still.append(effect)
                if _is_listed(effect, standing):
                    lost.effects.pop(effect.id, None)  # from now on it is treated as any other effect
                elif not self.excuses.can_excuse_unlisted(effect):
                    deleted = " (deleted)" if number in gone else ""
                    lost_time = "; of the lost time" if effect.id in lost.effects else ""
                    self.add_fault("Listed", f"{effect} is in no record, and no attempt stands for it; {order}{deleted}{lost_time}")
        self._open = still

    def _check_doubts(self, attempts: Sequence[AttemptSeen]) -> None:
        """Count the attempts in doubt and held, each once, and check HeldForAReason."""
        new = {(*one.key, one.call_no, one.state, one.why): one for one in attempts if one.unsure or one.state == "held"}
        new = {which: one for which, one in new.items() if which not in self._noted}
        self._noted |= new.keys()
        held = [one for one in new.values() if one.state == "held"]
        orders = self.books.read_orders({int(one.record) for one in held})
        for one in new.values():
            if one.state != "held":
                self.doubts[one.reaction] += 1
                continue
            self.held[f"{one.reaction}: {one.why}"] += 1
            self.checks["HeldForAReason"] += 1
            order = orders.get(int(one.record))
            if not self._may_be_held(one, order):
                self.add_fault("HeldForAReason", f"{one}: nothing in this shop gives a reason; {order}")

    def _may_be_held(self, one: AttemptSeen, order: OrderSeen | None) -> bool:
        """Return whether this shop, or an action of the run, gives a reason to hold the attempt."""
        why = one.why or ""
        if order is None or why.startswith(KILLED) or why == DELETED or self.excuses.may_cause_hold(one):
            return True
        if one.reaction in self.redeclared and (OTHER_CODE in why or OTHER_ROUND in why):
            return True
        match one.reaction:
            case "mailed":
                return one.unsure or one.has_outcome_in(order.mailed)
            case "announced":
                return why in (OLD_KEY, LOST_TIME) or one.has_outcome_in(order.announced)
            case "insured":
                return (one.record in self.moved and OTHER_ROUND in why) or one.has_outcome_in(order.policy)
            case "listed":  # InDoubt.repeat() may call twice; an outcome may come late, or after the order was cancelled
                return one.outcome is not None
            case _:
                return False

    def _check_rounds(self, new: Sequence[Effect], attempts: Sequence[AttemptSeen]) -> None:
        """Check OtherRounds: while a call for one term of an order is open, none is made for another term."""
        insured = {(one.record, one.occurrence): one for one in attempts if one.reaction == "insured" and one.is_open}
        for effect in new:
            if effect.call != "insure":
                continue
            self.checks["OtherRounds"] += 1
            for before in self._terms.setdefault(effect.record, []):
                one = insured.get((effect.record, before.occurrence))
                if one is not None and before.occurrence != effect.occurrence:
                    self.add_fault("OtherRounds", f"{effect} though {before} waits: {one}")
            self._terms[effect.record].append(effect)

    def _check_new_effects(self, new: Sequence[Effect]) -> list[Effect]:
        """Check new effects in the ledger, and return those that must be in a record or listed by an attempt."""
        taken: list[Effect] = []
        for effect in new:
            self.effects[effect.call] += 1
            if effect.call not in ONCE:
                continue
            of_lost_time = self.excuses.lost.belongs_to_lost_time(effect)
            if int(effect.record) in self.excuses.vanished:
                if of_lost_time:
                    self.excuses.count_once(VANISHED, effect)
                else:
                    self.add_fault("NotLost", f"{effect}, and its order is none any more")
                continue
            if effect.late_s and (effect.pid in self.stopped or self.clock.did_stand_still(effect.at - STILL_WITHIN_S, effect.at)):
                self.excuses.excuse_late_effect(effect)
                continue
            if effect.late_s:
                self.add_fault("Deadline", f"{effect} was sent later than deadline + settle_after, and nobody had stopped its process")
            if of_lost_time:
                self.excuses.lost.effects[effect.id] = effect
            taken.append(effect)
            self._check_not_repeated(effect)
        self._open += taken
        return taken

    def _check_not_repeated(self, effect: Effect) -> None:
        """Check AtMostOnce, OncePerKey and LeftAlone for one effect."""
        which = (effect.call, effect.record, effect.occurrence)  # the key is left out, since a second key is a fault as well
        self.checks[ONCE[effect.call]] += 1
        first = self._first.setdefault(which, effect)
        if first is not effect and not self.excuses.can_excuse_repetition(first, effect):
            self.add_fault(ONCE[effect.call], f"done again: first {first}, now {effect}")
        if effect.call == "thank":
            self.checks["LeftAlone"] += 1
            if effect.record in self.left:
                self.add_fault("LeftAlone", f"{effect}, and a person had said to leave this order as it is")

    def check_orders(self) -> None:
        """Check NotLost and Progress: every order that was placed exists, and none is stuck."""
        placed = self.placed[:]  # copied before the database is read
        there = self._existing_orders()
        for number in placed:
            self.checks["NotLost"] += 1
            if number not in there:
                self.add_fault("NotLost", f"order {number} is gone")
        attempts: dict[str, list[AttemptSeen]] = {}
        for one in self.books.read_attempts():
            attempts.setdefault(one.record, []).append(one)
        now, effects = self.clock.awake_s, self.effects.total()
        before, self._since = self._since, {}
        for order in self.books.read_unfinished(surveys=self.surveys, left=self.left):
            its = attempts.get(str(order.id), [])
            if any(one.state == "held" for one in its):
                continue
            self.checks["Progress"] += 1
            looks = (order, tuple(its))
            same = before.get(order.id, (None, now, effects))
            self._since[order.id] = same if same[0] == looks else (looks, now, effects)
            if same[0] == looks and now - same[1] > PATIENCE_S and effects - same[2] >= PASSED_OVER:
                self.add_fault("Progress", f"{order} was not touched for {PATIENCE_S:g} s and {PASSED_OVER} effects, with {its}")
        self._check_baselines()

    def _check_baselines(self) -> None:
        """Check LeftAlone: the baseline that a person set stays in the database, whatever code runs meanwhile."""
        if not self.left:
            return
        baselines = {record for reaction, record in self.books.read_baselines() if reaction == "thanked"}
        there = {str(number) for number in self.books.read_orders({int(record) for record in self.left})}
        for record in self.left & there:
            self.checks["LeftAlone"] += 1
            if record not in baselines:
                self.add_fault("LeftAlone", f"order {record} is not marked any more as one that is to be left as it is")

    def _existing_orders(self) -> set[int]:
        return {row[0] for row in self.books.query_rows("SELECT id FROM orders UNION ALL SELECT id FROM gone_orders")}

    def reset_patience(self) -> None:
        """Restart the time that each order may be unfinished, since actions of the run kept the shop from working."""
        self._since = {}

    # ---- reported actions ----------------------------------------------------------------------------------------------------------
    def record_restore(self, ended: Iterable[int]) -> int:
        """Record a restore of the database, before any process works on it; return the number of lost orders.

        ended: the ids of all processes that ran before.
        """
        self._check_new_effects(self.ledger.read_new())
        there = self._existing_orders()
        vanished = {number for number in self.placed if number not in there}
        self.placed[:] = [number for number in self.placed if number in there]
        self.excuses.vanished |= vanished
        orders = self.books.read_orders()
        both = orders | self.books.read_orders(table="gone_orders")
        standing = _attempt_keys(self.books.read_attempts())
        self._open, lost = [], []
        for effect in self.ledger.effects:
            if effect.call not in ONCE or self.excuses.may_be_repeated(effect.call, effect.record):
                continue
            if int(effect.record) in self.excuses.vanished:
                self.excuses.count_once(VANISHED, effect)
                continue
            order = both.get(int(effect.record))
            if order is not None and order.is_concluded(effect):
                continue
            self._open.append(effect)
            if not _is_listed(effect, standing) and not self.excuses.was_attempt_deleted(effect):
                lost.append(effect)
        self.excuses.record_restore(orders, lost, set(ended), time.time() + IN_THE_AIR_S)
        self.left &= {record for _, record in self.books.read_baselines()}
        self.reset_patience()
        return len(vanished)

    def record_restore_is_known(self) -> None:
        """Record that the workers know of the restore, so that from now on lost calls whose condition matches must be in doubt."""
        self.excuses.lost.told = True

    def is_lost_time_over(self, *, wider: bool) -> bool:
        """Return whether each call of the lost time is in its record or listed, or no condition can match its order any more.

        wider: whether the code thanks for more orders than those that must be thanked for.
        """
        lost = self.excuses.lost
        if not lost.told or time.time() < lost.until:
            return False
        orders = self.books.read_orders({int(effect.record) for effect in lost.effects.values()})
        for effect in lost.effects.values():
            order = orders.get(int(effect.record))
            if order is None or order.is_concluded(effect) or (effect.call == "thank" and effect.record in self.left):
                continue
            if order.status not in FINAL or order.meets_condition(effect) or (wider and effect.call == "thank"):
                return False
        return True

    def record_deleted_attempt(self, reaction: str, record: str, occurrence: str, pid: int) -> None:
        """Record that this attempt's row was deleted by hand while the process `pid` had its call in flight."""
        self._check_new_effects(self.ledger.read_new())
        for call, names in REACTIONS.items():
            if reaction in names:
                which = (call, record, "" if call == "label" else occurrence)
                erased = self.excuses.erased.setdefault(which, Erased())
                erased.pids.add(pid)
                erased.effects |= {one.id for one in self._open if (one.call, one.record, one.occurrence) == which}

    # ---- at rest -----------------------------------------------------------------------------------------------------------------
    def list_unfinished(self) -> list[str]:
        """Return the unfinished orders, and the attempts that neither are held nor wait for a held attempt of another occurrence."""
        attempts = self.books.read_attempts()
        held = {one.record for one in attempts if one.state == "held"}
        waiting = [f"{one}" for one in attempts if not _is_waiting_for_person(one, attempts)]
        return waiting + [
            f"{order}" for order in self.books.read_unfinished(surveys=self.surveys, left=self.left) if str(order.id) not in held
        ]

    def count_helpable(self) -> int:
        """Return the number of held attempts that a person can settle: all but those of deleted orders."""
        return sum(one.state == "held" and one.why != DELETED for one in self.books.read_attempts())

    def judge_end(self, living: Collection[int] = ()) -> Counter[str]:
        """Check all invariants when only the workers `living` run and no work is left; return the held attempts by reason."""
        self.check_effects()
        self._check_baselines()
        attempts = self.books.read_attempts()
        orders = self.books.read_orders()
        gone = self.books.read_orders(table="gone_orders")
        held = {one.key: one for one in attempts if one.state == "held"}
        for one in attempts:
            if not _is_waiting_for_person(one, attempts):
                self.add_fault("NothingAtRest", f"{one} stands though nothing is to be done")
        self.checks["NothingAtRest"] += 1
        for row in self.books.query_rows("SELECT pid, id, began_at FROM groundstate_worker WHERE ended_at IS NULL"):
            if row[0] not in living:
                self.add_fault("NothingAtRest", f"the life {row} is over and its row stays")
        done: dict[tuple[str, int], list[Effect]] = {}
        for effect in self.ledger.effects:
            done.setdefault((effect.call, int(effect.record)), []).append(effect)
        held_records = {record for _, record, _ in held}
        for number in self.placed:
            order = orders.get(number) or gone.get(number)
            if order is None:
                self.add_fault("NotLost", f"order {number} is gone")
                continue
            self.checks["NotLost"] += 1
            self.checks["Fenced"] += 1
            if number in orders and str(number) not in held_records:
                self._check_order_is_finished(order)
            self._check_against_ledger(order, done)
        return Counter(f"{one.reaction}: {one.why}" for one in held.values())

    def _check_order_is_finished(self, order: OrderSeen) -> None:
        owed = order.list_open_work(surveys=self.surveys, left=str(order.id) in self.left)
        if order.status == "done" and (order.charged_round != order.rounds or order.label is None or order.listing is None):
            owed.append("is done and lacks something")
        if owed:
            self.add_fault("NotLost", f"{order} {', '.join(owed)}, and is not held")

    def _check_against_ledger(self, order: OrderSeen, done: dict[tuple[str, int], list[Effect]]) -> None:
        charges = done.get(("charge", order.id), [])
        times = Counter(one.occurrence for one in charges)
        for number in range(1, order.charged_round + 1):
            if times[str(number)] != 1 and not self.excuses.may_be_repeated("charge", str(order.id)):
                self.add_fault("NotLost", f"{order} says that its instalment {number} was charged; the ledger has {charges}")
        if order.charged_round and order.receipt not in [one.id for one in charges if one.occurrence == str(order.charged_round)]:
            self.add_fault("Fenced", f"{order} has a receipt that is not of its last charge: {charges}")
        insured = done.get(("insure", order.id), [])
        if order.insured_term and order.policy not in [one.id for one in insured if one.occurrence == str(order.insured_term)]:
            self.add_fault("Fenced", f"{order} has a policy that is not of its last term: {insured}")
        named = {"label": order.label, "mail": order.mailed, "listing": order.listing, "announce": order.announced, "thank": order.thanked}
        for call, column in named.items():
            if column is not None and column not in [one.id for one in done.get((call, order.id), [])]:
                self.add_fault("Fenced", f"{order} has an outcome that the ledger does not know: {column}")


def _attempt_keys(attempts: Iterable[AttemptSeen]) -> set[tuple[str, ...]]:
    """Return the keys of the attempts: by reaction, record and occurrence, and by reaction and record."""
    return {one.key for one in attempts} | {(one.reaction, one.record) for one in attempts}


def _is_listed(effect: Effect, standing: set[tuple[str, ...]]) -> bool:
    """Return whether an attempt lists the effect. Labels have an occurrence in only one variant of the shop's code, so it is ignored."""
    names = REACTIONS[effect.call]
    if effect.call == "label":
        return any((name, effect.record) in standing for name in names)
    return any((name, effect.record, effect.occurrence) in standing for name in names)


def _is_waiting_for_person(one: AttemptSeen, attempts: Iterable[AttemptSeen]) -> bool:
    """Return whether the attempt is held, or failed while a held attempt of its reaction and record keeps it from being retried."""
    if one.state == "held":
        return True
    rounds = (other for other in attempts if (other.reaction, other.record) == (one.reaction, one.record))
    return one.state == "failed" and any(other.state == "held" for other in rounds)
