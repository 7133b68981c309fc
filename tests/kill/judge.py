"""The judge: what the outside's ledger says against what the database says, at any instant and at the end. Faults go by invariants' names.

It reads the user's tables and `groundstate_attempt` alone, by plain SQL: nothing of the framework takes part in the verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, bindparam, text

from tests.kill.provider import Effect, Ledger
from tests.kill.shop import FINAL

REACTION = {"charge": "paid", "label": "labelled", "mail": "mailed", "listing": "listed"}
ONCE = {"charge": "AtMostOnce", "mail": "AtMostOnce", "label": "OncePerKey"}
KILLED = "its worker ended while this record alone was carried out"  # careful mode's own reason (hazard 25)


@dataclass(frozen=True)
class OrderSeen:
    """An order as it stands in the database."""

    id: int
    status: str
    round: int
    rounds: int
    charged_round: int
    receipt: str | None
    label: str | None
    listing: str | None
    mailed: str | None

    def concluded(self, effect: Effect) -> bool:
        """Whether this effect's own call is in the record."""
        match effect.call:
            case "charge":
                return self.charged_round >= int(effect.occurrence)
            case "label":
                return self.label is not None
            case "mail":
                return self.mailed is not None
            case _:
                return True


@dataclass(frozen=True)
class AttemptSeen:
    """A row of `groundstate_attempt`."""

    reaction: str
    record: str
    occurrence: str
    state: str
    unsure: bool
    failures: int
    why: str | None
    error: str | None
    outcome: str | None

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.reaction, self.record, self.occurrence)


_ORDERS = "SELECT id, status, round, rounds, charged_round, receipt, label, listing, mailed FROM orders"
_ATTEMPTS = "SELECT reaction, record, occurrence, state, unsure, failures, why, error, outcome FROM groundstate_attempt"


@dataclass
class Judge:
    """Faults are gathered, each once, as 'Invariant: what is wrong'."""

    engine: Engine
    ledger: Ledger
    faults: list[str] = field(default_factory=list)
    samples: int = 0
    looked_at: int = 0  # effects looked up in samples
    _open: list[Effect] = field(default_factory=list)  # effects not yet seen concluded
    _read: int = 0
    _times: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def fault(self, invariant: str, words: str) -> None:
        """Notes a fault, once."""
        line = f"{invariant}: {words}"
        if line not in self.faults:
            self.faults.append(line)

    # ---- at any instant ----------------------------------------------------------------------------------------------------------
    def sample(self) -> None:
        """Listed, AtMostOnce and OncePerKey, for every effect that the ledger had before the database is read."""
        self._take_in(self.ledger.since(self._read))
        self.samples += 1
        if not self._open:
            return
        standing = {one.key for one in self.attempts()}  # before the orders: what is concluded in between is seen there
        orders = {order.id: order for order in self.orders({int(effect.record) for effect in self._open})}
        self.looked_at += len(self._open)
        still: list[Effect] = []
        for effect in self._open:
            order = orders.get(int(effect.record))
            if order is None:
                self.fault("NotLost", f"order {effect.record} is gone")
            elif not order.concluded(effect):
                still.append(effect)
                if (REACTION[effect.call], effect.record, effect.occurrence) not in standing:
                    self.fault("Listed", f"{effect} is in no record, and no attempt stands for it; {order}")
        self._open = still

    def _take_in(self, new: Sequence[Effect]) -> None:
        self._read += len(new)
        for effect in new:
            if effect.call not in ONCE:
                continue
            self._open.append(effect)
            which = (effect.call, effect.record, effect.key)
            self._times[which] += 1
            if self._times[which] > 1:
                first = next(one for one in self.ledger.since(0) if one.key == effect.key)
                self.fault(ONCE[effect.call], f"done {self._times[which]} times: first {first}, now {effect}")

    # ---- at the end --------------------------------------------------------------------------------------------------------------
    def unfinished(self) -> list[str]:
        """What keeps it from being quiet: orders on their way, and attempts that are not held."""
        attempts = self.attempts()
        held = {one.record for one in attempts if one.state == "held"}
        waiting = [f"{one}" for one in attempts if one.state != "held"]
        return waiting + [f"{order}" for order in self.orders() if not _is_final(order, attempts) and str(order.id) not in held]

    def verdict(self, inserted: Iterable[int]) -> Counter[str]:
        """All invariants, when all is quiet and no worker runs. Returns what is held, by reason."""
        self.sample()
        attempts, orders = self.attempts(), {order.id: order for order in self.orders()}
        held = {one.key: one for one in attempts if one.state == "held"}
        for one in attempts:
            if one.state != "held":
                self.fault("NothingAtRest", f"{one} stands though nothing is to be done")
            elif not (one.reaction == "mailed" and one.unsure) and one.why != KILLED:
                self.fault("HeldForAReason", f"{one}: hold() alone holds in this shop")
        for row in self.rows("SELECT life, pid, began_at FROM groundstate_worker WHERE ended_at IS NULL"):
            self.fault("NothingAtRest", f"the life {row} is over and its row stays")
        done: dict[tuple[str, int], list[Effect]] = {}
        for effect in self.ledger.since(0):
            done.setdefault((effect.call, int(effect.record)), []).append(effect)
        for number in inserted:
            order = orders.get(number)
            if order is None:
                self.fault("NotLost", f"order {number} is gone")
                continue
            self._balance(order, done, held)
        return Counter(f"{one.reaction}: {one.why}" for one in held.values())

    def _balance(self, order: OrderSeen, done: dict[tuple[str, int], list[Effect]], held: dict[tuple[str, str, str], AttemptSeen]) -> None:
        is_held = any(record == str(order.id) for _, record, _ in held)
        if order.status not in FINAL and not is_held:
            self.fault("NotLost", f"{order} is neither done nor held")
        charges = done.get(("charge", order.id), [])
        for number in range(1, order.charged_round + 1):
            if [one.occurrence for one in charges].count(str(number)) != 1:
                self.fault("NotLost", f"{order} says that its instalment {number} was charged; the ledger has {charges}")
        if order.charged_round and order.receipt not in [one.id for one in charges if one.occurrence == str(order.charged_round)]:
            self.fault("Fenced", f"{order} has a receipt that is not of its last charge: {charges}")
        for call, column in (("label", order.label), ("mail", order.mailed), ("listing", order.listing)):
            if column is not None and column not in [one.id for one in done.get((call, order.id), [])]:
                self.fault("Fenced", f"{order} has an outcome that the ledger does not know: {column}")
        if order.receipt is not None and order.mailed is None and ("mailed", str(order.id), "") not in held:
            self.fault("NotLost", f"{order} has no mail, and none is held")
        if order.status == "done" and (order.charged_round != order.rounds or order.label is None or order.listing is None):
            self.fault("NotLost", f"{order} is done and lacks something")

    # ---- reading -----------------------------------------------------------------------------------------------------------------
    def rows(self, sql: str) -> Sequence[Any]:
        """Plain SQL's rows."""
        with self.engine.connect() as connection:
            return connection.execute(text(sql)).all()

    def attempts(self) -> list[AttemptSeen]:
        """All that stand."""
        return [AttemptSeen(row[0], row[1], row[2], row[3], bool(row[4]), *row[5:]) for row in self.rows(_ATTEMPTS)]

    def orders(self, among: Iterable[int] | None = None) -> list[OrderSeen]:
        """These orders, or all."""
        if among is None:
            return [OrderSeen(*row) for row in self.rows(_ORDERS)]
        statement = text(f"{_ORDERS} WHERE id IN :ids").bindparams(bindparam("ids", expanding=True))
        with self.engine.connect() as connection:
            return [OrderSeen(*row) for row in connection.execute(statement, {"ids": sorted(among)})]


def _is_final(order: OrderSeen, attempts: Sequence[AttemptSeen]) -> bool:
    if order.status not in FINAL:
        return False
    return order.receipt is None or order.mailed is not None or ("mailed", str(order.id), "") in {one.key for one in attempts}
