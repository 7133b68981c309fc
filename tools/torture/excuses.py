"""What the judge excuses, and how often: precise cases that no framework can prevent or that the docs do not promise.

- An effect that was sent later than its call's deadline plus settle_after, by a process that the run had stopped or the machine had
  suspended (hazard 6).
- After the database was restored from a copy: an effect of the lost time for a record that no condition matched at the restore, until one
  matches it; and the effects of orders that the copy does not have.
- After an attempt's row was deleted by hand while its call was in flight: that this call is not listed any more, and that another worker
  than the one that made it calls again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from tools.torture.ledger import Effect
from tools.torture.seen import REACTIONS, AttemptSeen, OrderSeen

LATE = "sent later than any contract, by a process that was stopped"
UNMATCHED = "of a lost time, for an order that no condition matched when it was put back"
VANISHED = "of a lost time, for an order that was lost with it"
UNLISTED = "unlisted, since its attempt was deleted by hand"
AGAIN = "done again by another worker, since its attempt was deleted by hand"
IN_THE_AIR_S = 7.0  # seconds after a process's end in which its last call may land: deadline, settle_after, and a margin


@dataclass
class LostTime:
    """The time between a copy and its restore: the effects whose conclusions or attempts the database has lost.

    orders: the orders as they were restored.
    pids: the processes that had ended by then; their calls may land until `until` (Unix time).
    told: whether the workers know of the restore.
    effects: by id, the effects that are neither in their record nor listed.
    """

    orders: Mapping[int, OrderSeen] = field(default_factory=dict)
    pids: set[int] = field(default_factory=set)
    until: float = 0.0
    told: bool = True
    effects: dict[str, Effect] = field(default_factory=dict)

    def belongs_to_lost_time(self, effect: Effect) -> bool:
        """Return whether an effect that lands now was called for before the restore."""
        return effect.pid in self.pids and effect.at < self.until

    def must_be_in_doubt(self, effect: Effect) -> bool:
        """Return whether the effect's condition matched the restored record; then it must be in doubt once workers know of the restore."""
        order = self.orders.get(int(effect.record))
        return order is not None and order.meets_condition(effect)


@dataclass
class Erased:
    """The attempts of one call that were deleted by hand: the processes whose call was in flight, and the effects landed by then."""

    pids: set[int] = field(default_factory=set)
    effects: set[str] = field(default_factory=set)


@dataclass
class Excuses:
    """The excuses of a run, counted by reason; each effect counts once for a reason."""

    counts: Counter[str] = field(default_factory=Counter)
    lost: LostTime = field(default_factory=LostTime)
    vanished: set[int] = field(default_factory=set)  # orders that were placed after the copy that was restored
    erased: dict[tuple[str, str, str], Erased] = field(default_factory=dict)  # by call, record and occurrence
    _spoilt: set[tuple[str, str]] = field(default_factory=set)  # call and record of effects that no framework could prevent
    _noted: set[tuple[str, str]] = field(default_factory=set)

    def count_once(self, reason: str, effect: Effect) -> None:
        """Count the effect for this reason, unless it was counted before."""
        if (reason, effect.id) not in self._noted:
            self._noted.add((reason, effect.id))
            self.counts[reason] += 1

    def excuse_late_effect(self, effect: Effect) -> None:
        """Excuse an effect that was sent later than its deadline plus settle_after."""
        self.count_once(LATE, effect)
        self._spoilt.add((effect.call, effect.record))

    def can_excuse_repetition(self, first: Effect, effect: Effect) -> bool:
        """Return whether no worker could know that the effect was called for twice.

        The order in which the two calls landed does not say which was made first.
        """
        if (effect.call, effect.record) in self._spoilt:
            return True
        if not self._was_called_after_deletion(first, effect):
            return False
        self.count_once(AGAIN, effect)
        self._spoilt.add((effect.call, effect.record))
        return True

    def _was_called_after_deletion(self, one: Effect, other: Effect) -> bool:
        """Return whether one worker called after the other's attempt was deleted; a worker knows its own calls without an attempt."""
        erased = self.erased.get((one.call, one.record, one.occurrence))
        if erased is None or one.pid == other.pid:
            return False
        each_deleted = {one.pid, other.pid} <= erased.pids
        return each_deleted or self.was_attempt_deleted(one) != self.was_attempt_deleted(other)

    def can_excuse_unlisted(self, effect: Effect) -> bool:
        """Return whether the effect is excused if it is in no record and no attempt lists it."""
        if self.was_attempt_deleted(effect):
            self.count_once(UNLISTED, effect)
            return True
        if effect.id not in self.lost.effects:
            return False
        if self.lost.must_be_in_doubt(effect):
            return not self.lost.told
        self.count_once(UNMATCHED, effect)
        return True

    def was_attempt_deleted(self, effect: Effect) -> bool:
        """Return whether the attempt that listed the effect was deleted by hand."""
        erased = self.erased.get((effect.call, effect.record, effect.occurrence))
        return erased is not None and (effect.pid in erased.pids or effect.id in erased.effects)

    def may_be_repeated(self, call: str, record: str) -> bool:
        """Return whether this call may have been made twice for the record without any fault."""
        return (call, record) in self._spoilt

    def may_cause_hold(self, one: AttemptSeen) -> bool:
        """Return whether an excused effect may be the reason why this attempt is held."""
        calls = [call for call, names in REACTIONS.items() if one.reaction in names]
        deleted = any((call, one.record) == erased[:2] for call in calls for erased in self.erased)
        return deleted or any((call, one.record) in self._spoilt for call in calls)

    def record_restore(self, orders: Mapping[int, OrderSeen], lost: Iterable[Effect], pids: Collection[int], until: float) -> None:
        """Record a restore of the database, on which no process works yet."""
        self.lost = LostTime(orders, set(pids), until, told=False, effects={effect.id: effect for effect in lost})

    def record_new_process(self, pid: int) -> None:
        """Record a new process, which may have the number of an old one."""
        self.lost.pids.discard(pid)
