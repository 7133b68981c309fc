"""What the judge excuses, each precisely, and how often: what no framework can close, and what the docs do not promise. No verdict.

- An effect that was sent later than its call's deadline plus settle_after, by a process that we had stopped, or that the machine did not
  let run (hazard 6).
- After the database was put back from a copy: an effect of the lost time for a record that no condition matched as it was put back, until
  one matches it; and those of orders that the copy does not have.
- After an attempt's row was deleted by hand while its call was in the air: that this call is not listed any more, and that another worker
  than the one that made it calls again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from groundstate.testing.torture.ledger import Effect
from groundstate.testing.torture.seen import REACTIONS, AttemptSeen, OrderSeen

LATE = "sent later than any contract, by a process that was stopped"
UNMATCHED = "of a lost time, for an order that no condition matched when it was put back"
VANISHED = "of a lost time, for an order that was lost with it"
UNLISTED = "unlisted, since its attempt was deleted by hand"
AGAIN = "done again by another worker, since its attempt was deleted by hand"
IN_THE_AIR_S = 7.0  # so long after a process's end its last call may still land: deadline, settle_after, and a moment


@dataclass
class LostTime:
    """Between a copy and its putting back: the effects whose conclusions, or whose attempts, the database has lost.

    orders: as they were put back. pids: the processes that had ended by then, whose calls may land until `until` (Unix time). told: the
    workers know of it. effects: by id, those that are neither in their record nor listed.
    """

    orders: Mapping[int, OrderSeen] = field(default_factory=dict)
    pids: set[int] = field(default_factory=set)
    until: float = 0.0
    told: bool = True
    effects: dict[str, Effect] = field(default_factory=dict)

    def is_of_it(self, effect: Effect) -> bool:
        """Whether an effect that lands now was called for before the database was put back."""
        return effect.pid in self.pids and effect.at < self.until

    def promises(self, effect: Effect) -> bool:
        """Whether its condition matched the record as it was put back: then it is to be in doubt from the moment that workers know."""
        order = self.orders.get(int(effect.record))
        return order is not None and order.asks_for(effect)


@dataclass
class Erased:
    """An attempt's row that was deleted by hand, perhaps more than once: whose call was in the air, and what had landed by then."""

    pids: set[int] = field(default_factory=set)
    effects: set[str] = field(default_factory=set)


@dataclass
class Excuses:
    """Counted by reason, each effect once a reason."""

    counts: Counter[str] = field(default_factory=Counter)
    lost: LostTime = field(default_factory=LostTime)
    vanished: set[int] = field(default_factory=set)  # orders that were placed after a copy that was put back
    erased: dict[tuple[str, str, str], Erased] = field(default_factory=dict)  # by call, record and occurrence
    _spoilt: set[tuple[str, str]] = field(default_factory=set)  # call and record of effects that nobody could prevent
    _noted: set[tuple[str, str]] = field(default_factory=set)

    def count(self, reason: str, effect: Effect) -> None:
        """Notes it."""
        if (reason, effect.id) not in self._noted:
            self._noted.add((reason, effect.id))
            self.counts[reason] += 1

    def late(self, effect: Effect) -> None:
        """It was sent later than any contract."""
        self.count(LATE, effect)
        self._spoilt.add((effect.call, effect.record))

    def again(self, first: Effect, effect: Effect) -> bool:
        """Whether nobody could know that it was called for twice. Which call landed first does not say which was made first."""
        if (effect.call, effect.record) in self._spoilt:
            return True
        if not self._has_no_attempt_of_the_other(first, effect):
            return False
        self.count(AGAIN, effect)
        self._spoilt.add((effect.call, effect.record))
        return True

    def _has_no_attempt_of_the_other(self, one: Effect, other: Effect) -> bool:
        """Whether one worker made its call after the attempt of the other one's was deleted. A worker knows its own calls without any."""
        erased = self.erased.get((one.call, one.record, one.occurrence))
        if erased is None or one.pid == other.pid:
            return False
        each_deleted = {one.pid, other.pid} <= erased.pids
        return each_deleted or self.is_erased(one) != self.is_erased(other)

    def unlisted(self, effect: Effect) -> bool:
        """Whether it may be in no record without an attempt that stands for it."""
        if self.is_erased(effect):
            self.count(UNLISTED, effect)
            return True
        if effect.id not in self.lost.effects:
            return False
        if self.lost.promises(effect):
            return not self.lost.told
        self.count(UNMATCHED, effect)
        return True

    def is_erased(self, effect: Effect) -> bool:
        """Whether the attempt that stood for it was deleted by hand."""
        erased = self.erased.get((effect.call, effect.record, effect.occurrence))
        return erased is not None and (effect.pid in erased.pids or effect.id in erased.effects)

    def spoils(self, call: str, record: str) -> bool:
        """Whether this call may have been made twice for the record without a fault of anybody's."""
        return (call, record) in self._spoilt

    def holds(self, one: AttemptSeen) -> bool:
        """Whether what was excused may have come to be held as this."""
        calls = [call for call, names in REACTIONS.items() if one.reaction in names]
        deleted = any((call, one.record) == erased[:2] for call in calls for erased in self.erased)
        return deleted or any((call, one.record) in self._spoilt for call in calls)

    def went_back(self, orders: Mapping[int, OrderSeen], lost: Iterable[Effect], pids: Collection[int], until: float) -> None:
        """The database was put back, and nobody works on it yet."""
        self.lost = LostTime(orders, set(pids), until, told=False, effects={effect.id: effect for effect in lost})

    def born(self, pid: int) -> None:
        """A new process, which may have an old one's number."""
        self.lost.pids.discard(pid)
