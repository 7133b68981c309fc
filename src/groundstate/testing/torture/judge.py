"""The judge: what the outside's ledger says against what the database says, at any instant and at the end. Faults go by invariants' names.

It reads the user's tables, `groundstate_attempt` and `groundstate_worker` alone, by plain SQL: nothing of the framework takes part in
the verdict. One thing it excuses, and counts: an effect that was sent later than its call's deadline plus settle_after, by a process that
we had stopped, or that the machine did not let run (hazard 6, which no framework can close; a provider that keeps keys for ever does).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, bindparam, text

from groundstate.testing.torture.clock import Clock
from groundstate.testing.torture.ledger import Effect, Reader
from groundstate.testing.torture.shop import FINAL

REACTIONS = {"charge": ("paid",), "label": ("labelled", "stickered"), "mail": ("mailed",), "announce": ("announced",)}
ONCE = {"charge": "AtMostOnce", "mail": "AtMostOnce", "label": "OncePerKey", "announce": "OncePerKey"}
INVARIANTS = ("Listed", "NotLost", "AtMostOnce", "OncePerKey", "Fenced", "NothingAtRest", "Progress", "HeldForAReason", "OthersGoOn")
KILLED = "its worker ended while this record alone was carried out"  # careful mode's own reason (hazard 25)
OLD_KEY = "in doubt, and its key is too old to call again"
DELETED = "the record was deleted while its call was in doubt"
# An order that nobody touched for so long, as the machine let us run, and while so much was done for others, is stuck. The second is for
# a fleet that is killed faster than it works: what waits for its turn then is not stuck.
PATIENCE_S = 120.0
PASSED_OVER = 2000  # effects
STILL_WITHIN_S = 15.0  # before a late effect: a call's time from its begin to deadline + settle_after, and more


@dataclass(frozen=True)
class OrderSeen:
    """An order as it stands in the database, or as it stood when it was deleted."""

    id: int
    status: str
    round: int
    rounds: int
    charged_round: int
    receipt: str | None
    label: str | None
    listing: str | None
    mailed: str | None
    announced: str | None
    surveyed: int | None

    def concluded(self, effect: Effect) -> bool:
        """Whether this effect's own call is in the record."""
        match effect.call:
            case "charge":
                return self.charged_round >= int(effect.occurrence)
            case "label":
                return self.label is not None
            case "mail":
                return self.mailed is not None
            case "announce":
                return self.announced is not None
            case _:
                return True

    def owes(self, *, surveys: bool) -> list[str]:
        """What is still to be done for it."""
        owed = [] if self.status in FINAL else [f"is {self.status}"]
        if self.receipt is not None and self.mailed is None:
            owed.append("has no mail")
        if self.label is not None and self.announced is None:
            owed.append("is not announced")
        if surveys and self.status == "done" and self.surveyed is None:
            owed.append("is not surveyed")
        return owed


@dataclass(frozen=True)
class AttemptSeen:
    """A row of `groundstate_attempt`."""

    reaction: str
    record: str
    occurrence: str
    state: str
    unsure: bool
    failures: int
    call_no: int
    why: str | None
    error: str | None
    outcome: str | None
    worker: int
    next_at: str | None

    @property
    def key(self) -> tuple[str, str, str]:
        """Which one it is."""
        return (self.reaction, self.record, self.occurrence)

    def may_be_held(self, order: OrderSeen | None) -> bool:
        """Whether this shop and what is done to it give a reason to hold it."""
        why = self.why or ""
        if order is None or why in (KILLED, DELETED):
            return True
        match self.reaction:
            case "mailed":
                return self.unsure or self._says_what_is_in(order.mailed)
            case "announced":
                return why == OLD_KEY or self._says_what_is_in(order.announced)
            case "listed":  # again(): called twice, and its outcomes may come late or for an order that was cancelled meanwhile
                return self.outcome is not None
            case _:
                return False

    def _says_what_is_in(self, column: str | None) -> bool:
        """An outcome that came once more after its attempt was gone, and that the record has: held, since no overtaken handler compares."""
        return self.outcome is not None and column is not None and set(json.loads(self.outcome)) == {column}


_COLUMNS = "id, status, round, rounds, charged_round, receipt, label, listing, mailed, announced, surveyed"
_ATTEMPTS = (
    "SELECT reaction, record, occurrence, state, unsure, failures, call_no, why, error, outcome, worker, CAST(next_at AS TEXT)"
    " FROM groundstate_attempt"
)
_UNFINISHED = (
    "status NOT IN ('done', 'cancelled') OR (receipt IS NOT NULL AND mailed IS NULL) OR (label IS NOT NULL AND announced IS NULL)"
    " OR (status = 'done' AND surveyed IS NULL)"
)


@dataclass
class Judge:
    """Faults are gathered, each once, as 'Invariant: what is wrong'. What reads the database raises where that is in trouble."""

    engine: Engine
    ledger: Reader
    clock: Clock = field(default_factory=Clock)
    placed: list[int] = field(default_factory=list)  # the orders whose placing was committed
    faults: list[str] = field(default_factory=list)
    checks: Counter[str] = field(default_factory=Counter)  # how often each invariant was looked at, by things looked at
    samples: int = 0
    excused: int = 0  # effects of hazard 6
    surveys: bool = False  # whether the reaction of the second version is declared by now
    stopped: set[int] = field(default_factory=set)  # processes that we stopped past deadlines
    effects: Counter[str] = field(default_factory=Counter)  # by call
    doubts: Counter[str] = field(default_factory=Counter)  # calls that were seen in doubt, by reaction
    held: Counter[str] = field(default_factory=Counter)  # attempts that were seen held, by reaction and reason
    _open: list[Effect] = field(default_factory=list)  # effects not yet seen concluded
    _first: dict[tuple[str, str, str], Effect] = field(default_factory=dict)
    _noted: set[tuple[object, ...]] = field(default_factory=set)
    _late: set[tuple[str, str]] = field(default_factory=set)  # (call, record) of excused effects
    _since: dict[int, tuple[object, float, int]] = field(default_factory=dict)  # unfinished order -> how it looked, since when, after what

    def fault(self, invariant: str, words: str) -> None:
        """Notes a fault, once."""
        line = f"{invariant}: {words}"
        if line not in self.faults:
            self.faults.append(line)

    # ---- at any instant ----------------------------------------------------------------------------------------------------------
    def sample(self) -> None:
        """Listed, AtMostOnce and OncePerKey, for every effect that the ledger had before the database is read."""
        self._take_in(self.ledger.new())
        attempts = self.attempts()  # before the orders: what is concluded in between is seen there
        standing = {one.key for one in attempts}
        self.samples += 1
        self._look_at_doubts(attempts)
        if not self._open:
            return
        among = {int(effect.record) for effect in self._open}
        orders = {order.id: order for order in self.orders(among)}
        gone = {order.id: order for order in self.orders(among - orders.keys(), table="gone_orders")}
        self.checks["Listed"] += len(self._open)
        still: list[Effect] = []
        for effect in self._open:
            number = int(effect.record)
            order = orders.get(number) or gone.get(number)
            if order is None:
                self.fault("NotLost", f"order {effect.record} is gone")
            elif not order.concluded(effect):
                still.append(effect)
                if not any((name, effect.record, effect.occurrence) in standing for name in REACTIONS[effect.call]):
                    deleted = " (deleted)" if number in gone else ""
                    self.fault("Listed", f"{effect} is in no record, and no attempt stands for it; {order}{deleted}")
        self._open = still

    def _look_at_doubts(self, attempts: Sequence[AttemptSeen]) -> None:
        """Counts what is in doubt and what is held, each once; and HeldForAReason."""
        new = {(*one.key, one.call_no, one.state, one.why): one for one in attempts if one.unsure or one.state == "held"}
        new = {which: one for which, one in new.items() if which not in self._noted}
        self._noted |= new.keys()
        held = [one for one in new.values() if one.state == "held"]
        orders = {order.id: order for order in self.orders({int(one.record) for one in held})}
        for one in new.values():
            if one.state != "held":
                self.doubts[one.reaction] += 1
                continue
            self.held[f"{one.reaction}: {one.why}"] += 1
            self.checks["HeldForAReason"] += 1
            order = orders.get(int(one.record))
            if not one.may_be_held(order) and not self._was_late(one):
                self.fault("HeldForAReason", f"{one}: nothing in this shop gives a reason; {order}")

    def _take_in(self, new: Sequence[Effect]) -> None:
        for effect in new:
            self.effects[effect.call] += 1
            if effect.call not in ONCE:
                continue
            if effect.late_s and (effect.pid in self.stopped or self.clock.stood_still(effect.at - STILL_WITHIN_S, effect.at)):
                self.excused += 1
                self._late.add((effect.call, effect.record))
                continue
            if effect.late_s:
                self.fault("Deadline", f"{effect} was sent later than deadline + settle_after, and nobody had stopped its process")
            self._open.append(effect)
            which = (effect.call, effect.record, effect.occurrence)  # and not by key: a second key is a fault as well
            self.checks[ONCE[effect.call]] += 1
            first = self._first.setdefault(which, effect)
            if first is not effect and (effect.call, effect.record) not in self._late:
                self.fault(ONCE[effect.call], f"done again: first {first}, now {effect}")

    def look_deeper(self) -> None:
        """NotLost and Progress, now and then: every order that was placed is there, and none stands still."""
        placed = self.placed[:]  # before the database is read
        there = {row[0] for row in self.rows("SELECT id FROM orders UNION ALL SELECT id FROM gone_orders")}
        for number in placed:
            self.checks["NotLost"] += 1
            if number not in there:
                self.fault("NotLost", f"order {number} is gone")
        attempts: dict[str, list[AttemptSeen]] = {}
        for one in self.attempts():
            attempts.setdefault(one.record, []).append(one)
        now, effects = self.clock.awake_s, self.effects.total()
        before, self._since = self._since, {}
        for order in self.unfinished_orders():
            its = attempts.get(str(order.id), [])
            if any(one.state == "held" for one in its):
                continue
            self.checks["Progress"] += 1
            looks = (order, tuple(its))
            same = before.get(order.id, (None, now, effects))
            self._since[order.id] = same if same[0] == looks else (looks, now, effects)
            if same[0] == looks and now - same[1] > PATIENCE_S and effects - same[2] >= PASSED_OVER:
                self.fault("Progress", f"{order} was not touched for {PATIENCE_S:g} s and {PASSED_OVER} effects, with {its}")

    def forgive_the_time(self) -> None:
        """After nothing could go on for a while by our own doing: patience begins anew."""
        self._since = {}

    # ---- at rest -----------------------------------------------------------------------------------------------------------------
    def unfinished(self) -> list[str]:
        """What keeps it from being quiet: orders on their way, and attempts that are not held."""
        attempts = self.attempts()
        held = {one.record for one in attempts if one.state == "held"}
        waiting = [f"{one}" for one in attempts if one.state != "held"]
        return waiting + [f"{order}" for order in self.unfinished_orders() if str(order.id) not in held]

    def helpable(self) -> int:
        """How much is held that a person may help: all but what is held for an order that is gone."""
        return sum(one.state == "held" and one.why != DELETED for one in self.attempts())

    def verdict(self, living: Collection[int] = ()) -> Counter[str]:
        """All invariants, when all is quiet and the workers `living` alone run. Returns what is held, by reason."""
        self.sample()
        attempts = self.attempts()
        orders = {order.id: order for order in self.orders()}
        gone = {order.id: order for order in self.orders(table="gone_orders")}
        held = {one.key: one for one in attempts if one.state == "held"}
        for one in attempts:
            if one.state != "held":
                self.fault("NothingAtRest", f"{one} stands though nothing is to be done")
        self.checks["NothingAtRest"] += 1
        for row in self.rows("SELECT pid, life, began_at FROM groundstate_worker WHERE ended_at IS NULL"):
            if row[0] not in living:
                self.fault("NothingAtRest", f"the life {row} is over and its row stays")
        done: dict[tuple[str, int], list[Effect]] = {}
        for effect in self.ledger.effects:
            done.setdefault((effect.call, int(effect.record)), []).append(effect)
        held_records = {record for _, record, _ in held}
        for number in self.placed:
            order = orders.get(number) or gone.get(number)
            if order is None:
                self.fault("NotLost", f"order {number} is gone")
                continue
            self.checks["NotLost"] += 1
            self.checks["Fenced"] += 1
            if number in orders and str(number) not in held_records:
                self._is_through(order)
            self._balance(order, done)
        return Counter(f"{one.reaction}: {one.why}" for one in held.values())

    def _was_late(self, one: AttemptSeen) -> bool:
        return any((call, one.record) in self._late for call, names in REACTIONS.items() if one.reaction in names)

    def _is_through(self, order: OrderSeen) -> None:
        owed = order.owes(surveys=self.surveys)
        if order.status == "done" and (order.charged_round != order.rounds or order.label is None or order.listing is None):
            owed.append("is done and lacks something")
        if owed:
            self.fault("NotLost", f"{order} {', '.join(owed)}, and is not held")

    def _balance(self, order: OrderSeen, done: dict[tuple[str, int], list[Effect]]) -> None:
        charges = done.get(("charge", order.id), [])
        times = Counter(one.occurrence for one in charges)
        for number in range(1, order.charged_round + 1):
            if times[str(number)] != 1 and ("charge", str(order.id)) not in self._late:
                self.fault("NotLost", f"{order} says that its instalment {number} was charged; the ledger has {charges}")
        if order.charged_round and order.receipt not in [one.id for one in charges if one.occurrence == str(order.charged_round)]:
            self.fault("Fenced", f"{order} has a receipt that is not of its last charge: {charges}")
        named = (("label", order.label), ("mail", order.mailed), ("listing", order.listing), ("announce", order.announced))
        for call, column in named:
            if column is not None and column not in [one.id for one in done.get((call, order.id), [])]:
                self.fault("Fenced", f"{order} has an outcome that the ledger does not know: {column}")

    # ---- reading -----------------------------------------------------------------------------------------------------------------
    def rows(self, sql: str) -> Sequence[Any]:
        """Plain SQL's rows."""
        with self.engine.connect() as connection:
            return connection.execute(text(sql)).all()

    def attempts(self) -> list[AttemptSeen]:
        """All that stand."""
        return [AttemptSeen(row[0], row[1], row[2], row[3], bool(row[4]), *row[5:]) for row in self.rows(_ATTEMPTS)]

    def unfinished_orders(self) -> list[OrderSeen]:
        """Those for which something is still to be done."""
        found = [OrderSeen(*row) for row in self.rows(f"SELECT {_COLUMNS} FROM orders WHERE {_UNFINISHED}")]  # noqa: S608  # our own words
        return [order for order in found if order.owes(surveys=self.surveys)]

    def orders(self, among: Collection[int] | None = None, table: str = "orders") -> list[OrderSeen]:
        """These orders, or all."""
        sql = f"SELECT {_COLUMNS} FROM {table}"  # noqa: S608  # our own words
        if among is None:
            return [OrderSeen(*row) for row in self.rows(sql)]
        if not among:
            return []
        statement = text(f"{sql} WHERE id IN :ids").bindparams(bindparam("ids", expanding=True))
        with self.engine.connect() as connection:
            return [OrderSeen(*row) for row in connection.execute(statement, {"ids": sorted(among)})]
