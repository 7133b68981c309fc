"""Detects and slows down cycles: reactions that make each other's conditions hold again for ever, although nothing fails.

It works in the memory of one worker, writes nothing, and stops no reaction. If a reaction carries out the same record again and again, that
need not be a cycle, since another program may make the condition hold again. So a record that came ten times within a minute is traced: the
worker's transactions note which traced conditions they made hold. Only a chain of these transactions that leads back to its start is
reported and slowed down.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.record_keys import PrimaryKey

log = logging.getLogger("groundstate")
WITHIN_S = 60.0  # seconds: the period in which the returns of a record are counted (how often it is carried out again)
TIMES = 20  # a cycle is reported only if a record returns this many times within WITHIN_S with the same occurrence
TRACED_AFTER = 10  # a record is traced after it has returned this many times within WITHIN_S
# A cycle counts as proven only if this worker's transactions made the condition hold this many times, and for at least half of the runs.
PROVEN = 5
REMEMBERED = 10_000  # how many record keys each of the two generations holds (the older generation is dropped as a whole)
COUNTED_MOST = 10_000  # the most records whose returns are counted at the same time
TRACED_MOST = 200  # the most steps (see Step) that are traced at the same time
SLOWED_MOST = 10_000  # the most steps that are slowed down at the same time
FIRST_S = 1.0  # seconds: the first pause of a cycle; each later pause is twice as long as the one before
LONGEST_S = 60.0  # seconds: the longest pause
FORGOTTEN_S = 120.0  # seconds: if a record returns more than this long after its pause, it is no longer slowed down
LATELY_S = 10.0  # seconds: a cycle is reported as active until this long after its pause, and longer if a record of it waits
TOLD_MOST = 10  # how many warnings are logged per minute; further cycles are logged at DEBUG
KEPT_TOLD = 100  # how many reports are kept in memory

# One step of a cycle: (condition query, record's key, occurrence). Expired records of a reaction have another condition query.
Step = tuple[ConditionQuery, PrimaryKey, str]
_NONE: frozenset[PrimaryKey] = frozenset()


class RecordOfBatch(Protocol):
    """A record that a transaction has claimed, to carry it out."""

    @property
    def key(self) -> PrimaryKey: ...
    @property
    def occurrence(self) -> str: ...


@dataclass
class _ReturnCount:
    """How often a record was carried out again since the time `since`, with the same occurrence."""

    since: float
    occurrence: str
    times: int
    acquitted_until: float = 0.0


@dataclass
class _Trace:
    """What has been observed of one step of a suspected cycle since tracing of the step began."""

    runs: int = 0
    made: int = 0  # how many of this worker's transactions made the step's condition hold
    makers: dict[Step, None] = field(default_factory=dict)

    @property
    def is_caused_by_us(self) -> bool:
        """Whether this worker's own transactions made the step's condition hold often enough to prove a cycle."""
        return self.made >= PROVEN and self.made * 2 >= self.runs


@dataclass(eq=False)
class _SlowedCycle:
    """A cycle that is slowed down: only one of its steps is carried out at a time, with pauses in between."""

    until: float
    pause_s: float = FIRST_S
    steps: Sequence[Step] = ()
    since: float = 0.0
    met: dict[Step, None] = field(default_factory=dict)  # steps that were ready during the pause, to be carried out after it


@dataclass(frozen=True)
class ReportedCycle:
    """The report of a cycle that was found."""

    reactions: tuple[str, ...]
    record: str
    words: str


@dataclass
class TracedTransaction:
    """One transaction that carries out traced records.

    `mine` are its steps (see Step), and `others` are all other traced steps. `before` contains the steps of `others` whose conditions held
    before the handlers ran.
    """

    mine: Sequence[Step]
    others: Sequence[Step]
    before: set[Step]
    # pairs (step whose condition this transaction made hold, steps of this transaction that may have caused it)
    made: list[tuple[Step, list[Step]]] = field(default_factory=list)


class RecordCycles:
    """The cycles that one worker detects and slows down. All methods but `slowed_cycle_count` may be called only by the thread of the
    worker's transactions.
    """

    def __init__(self) -> None:
        self.told: list[ReportedCycle] = []
        self._recent: dict[ConditionQuery, set[PrimaryKey]] = {}
        self._before: dict[ConditionQuery, set[PrimaryKey]] = {}
        self._remembered = 0
        self._turned_at = 0.0
        self._again: dict[tuple[ConditionQuery, PrimaryKey], _ReturnCount] = {}
        self._cleaned_at = 0.0
        self._traced: dict[Step, _Trace] = {}
        self._slowed: dict[Step, _SlowedCycle] = {}
        # Cycles with steps that were ready during the cycle's pause. This is a dict without values, since a dict keeps the order of the
        # cycles.
        self._met: dict[_SlowedCycle, None] = {}
        self._looked_at = 0.0
        self._lines = 0
        self._lines_since = 0.0

    def __bool__(self) -> bool:
        """Whether any cycle is slowed down."""
        return bool(self._slowed)

    @property
    def slowed_cycle_count(self) -> int:
        """Return how many cycles are slowed down. May be called from any thread."""
        return len(set(self._slowed.values()))

    def recent_cycles(self, now: float) -> list[tuple[float, Sequence[Step]]]:
        """Return a pair for each cycle that was active lately, the oldest first: the time at which this worker began to slow it down, in
        monotonic seconds, and its steps.
        """
        some = dict.fromkeys(self._slowed.values())
        return [(slow.since, slow.steps) for slow in some if slow.met or slow.until > now - LATELY_S]

    # ---- in a transaction --------------------------------------------------------------------------------------------------------
    def must_wait(self, query: ConditionQuery, key: PrimaryKey, occurrence: str) -> bool:
        """Return whether this record must wait for the end of a pause. A record that must wait is remembered, and returned later by
        `take_records_after_pause`.
        """
        step = (query, key, occurrence)
        slow = self._slowed.get(step)
        if slow is None or slow.until <= query.database.clock.monotonic():
            return False
        slow.met[step] = None
        self._met[slow] = None
        return True

    def note_conditions_before(
        self, query: ConditionQuery, connection: Connection, records: Iterable[RecordOfBatch]
    ) -> TracedTransaction | None:
        """Note which traced conditions hold before the handlers run. Return None if none of these records is traced."""
        if not self._traced:
            return None
        mine = [step for record in records if (step := (query, record.key, record.occurrence)) in self._traced]
        if not mine:
            return None
        others = [step for step in self._traced if step not in mine]
        try:
            return TracedTransaction(mine, others, _steps_that_hold(connection, others))
        except DBAPIError:
            self._traced.clear()  # a column or table of another reaction is gone, which must not stop this reaction
            raise

    def note_conditions_after(self, watch: TracedTransaction, connection: Connection) -> None:
        """Note which traced conditions the handlers made hold. Call it after the handlers' changes were flushed."""
        try:
            holding = _steps_that_hold(connection, watch.others) - watch.before
        except DBAPIError:
            self._traced.clear()  # a column or table of another reaction is gone, which must not stop this reaction
            raise
        for step in holding:
            query, key, _ = step
            own = [one for one in watch.mine if one[1] == key and one[0].mapper.base_mapper is query.mapper.base_mapper]
            watch.made.append((step, own or list(watch.mine)))

    # ---- after the transaction's commit --------------------------------------------------------------------------------------------
    def count_carried_out(self, query: ConditionQuery, records: Sequence[RecordOfBatch], watch: TracedTransaction | None) -> None:
        """Count that these records were carried out, and slow down each cycle that the counts and traces now prove. Call it after the
        commit of the records' transaction.
        """
        now, found = query.database.clock.monotonic(), {record.key for record in records}
        recent = self._recent.get(query)
        if recent is None:
            recent = self._recent[query] = set()
        again = recent & found
        before = self._before.get(query, _NONE)
        if before:
            again |= before & found
        recent |= found
        self._remembered += len(found)
        if self._remembered > REMEMBERED or now - self._turned_at > WITHIN_S / 2:
            self._before, self._recent, self._remembered, self._turned_at = self._recent, {}, 0, now
        if self._slowed:
            self._restart_pauses(query, records, now)
        if again:
            self._count_returns([(query, record.key, record.occurrence) for record in records if record.key in again], now)
        if watch is not None:
            self._judge_traced_steps(watch, now)

    def _count_returns(self, steps: Sequence[Step], now: float) -> None:
        for step in steps:
            if step in self._slowed:
                continue
            query, key, occurrence = step
            count = self._again.get((query, key))
            if count is None:
                if len(self._again) >= COUNTED_MOST:
                    self._forget_old_counts(now)
                if len(self._again) < COUNTED_MOST:
                    self._again[query, key] = _ReturnCount(now, occurrence, 1 if occurrence else 2)
            elif count.occurrence != occurrence or now - count.since > WITHIN_S:
                self._traced.pop((query, key, count.occurrence), None)
                count.since, count.occurrence, count.times = now, occurrence, 1
            else:
                count.times += 1
                if count.times >= TRACED_AFTER and now >= count.acquitted_until and len(self._traced) < TRACED_MOST:
                    self._traced.setdefault(step, _Trace())

    def _restart_pauses(self, query: ConditionQuery, records: Iterable[RecordOfBatch], now: float) -> None:
        for record in records:
            slow = self._slowed.get((query, record.key, record.occurrence))
            if slow is not None:
                slow.until, slow.pause_s = now + slow.pause_s, min(slow.pause_s * 2, LONGEST_S)

    def _forget_old_counts(self, now: float) -> None:
        if now - self._cleaned_at < 1.0:
            return
        self._cleaned_at = now
        self._again = {one: count for one, count in self._again.items() if now - count.since <= WITHIN_S or now < count.acquitted_until}
        self._traced = {one: trace for one, trace in self._traced.items() if one[:2] in self._again}

    def _judge_traced_steps(self, watch: TracedTransaction, now: float) -> None:
        """Update the traces with what this transaction did, slow down each cycle that is proven, and stop tracing steps that turned out to
        be in no cycle.
        """
        for step in watch.mine:
            if step in self._traced:
                self._traced[step].runs += 1
        for step, makers in watch.made:
            trace = self._traced.get(step)
            if trace is not None:
                trace.made += 1
                trace.makers.update(dict.fromkeys(makers))
        for step in watch.mine:
            trace, count = self._traced.get(step), self._again.get(step[:2])
            if trace is None or count is None:
                continue
            ring = self._find_cycle(step) if count.times >= TIMES else None
            if ring is not None:
                self._slow_down(ring, now)
            elif trace.runs >= 2 * TIMES:  # another program makes the condition hold again, so this is no cycle
                del self._traced[step]
                count.acquitted_until = now + WITHIN_S

    def _find_cycle(self, step: Step) -> list[Step] | None:
        """Return the steps by which this worker's transactions led from this step back to it. None if another program made one of the
        conditions on the way hold.
        """
        waiting, seen = [[step]], {step}
        while waiting:
            path = waiting.pop()
            trace = self._traced.get(path[-1])
            if trace is None or not trace.is_caused_by_us:
                continue
            if step in trace.makers:
                return [step, *reversed(path[1:])]
            new = [one for one in trace.makers if one not in seen]
            seen.update(new)
            waiting += [[*path, one] for one in new]
        return None

    # ---- slowed down -------------------------------------------------------------------------------------------------------------
    def _slow_down(self, ring: Sequence[Step], now: float) -> None:
        self._report_cycle(ring, now)
        slow = _SlowedCycle(now + FIRST_S, min(2 * FIRST_S, LONGEST_S), tuple(ring), now)
        for one in ring:
            self._traced.pop(one, None)
            self._again.pop(one[:2], None)
            if len(self._slowed) < SLOWED_MOST:
                self._slowed[one] = slow

    def _report_cycle(self, ring: Sequence[Step], now: float) -> None:
        names = tuple(dict.fromkeys(query.spec.name for query, _, _ in ring))
        query, key, _ = ring[0]
        record = query.keys.record_text(key)
        others = f"{', '.join(names[1:])} make{'s' if len(names) == 2 else ''}" if len(names) > 1 else "it makes by itself"
        words = (
            f"{query.spec.table_name} {record} goes round: {names[0]} carried it out {TIMES} times within a minute without a new"
            f" occurrence, which {others} hold again. From now on it is carried out after pauses of up to a minute, and everything else"
            " goes on. Let one of them leave a state that the others do not undo, or say by occurrence= what tells the rounds"
        )
        if len(self.told) < KEPT_TOLD:
            self.told.append(ReportedCycle(names, record, words))
        if now - self._lines_since > WITHIN_S:
            self._lines, self._lines_since = 0, now
        self._lines += 1
        if self._lines <= TOLD_MOST:
            log.warning("%s", words, extra={"event": "record_goes_round", "reactions": list(names), "record": record})
        else:
            log.debug("%s", words, extra={"event": "record_goes_round", "reactions": list(names), "record": record})

    @property
    def has_waiting_records(self) -> bool:
        """Whether a record of a slowed cycle was ready, and waits for the end of its pause."""
        return bool(self._met)

    def end_of_next_pause(self) -> float | None:
        """Return the end of the first pause for which a ready record waits, in monotonic seconds; None if no record waits."""
        return min((slow.until for slow in self._met), default=None)

    def take_records_after_pause(self, now: float) -> list[tuple[ConditionQuery, PrimaryKey]]:
        """Return pairs (condition query, key) for the records that waited and whose pause has ended, each once. Also stop slowing down
        cycles that have not returned for FORGOTTEN_S.
        """
        over = [slow for slow in self._met if slow.until <= now]
        found = [(query, key) for slow in over for query, key, _ in slow.met]
        for slow in over:
            slow.met = {}
            del self._met[slow]
        if now - self._looked_at > FIRST_S:
            self._looked_at = now
            self._slowed = {step: slow for step, slow in self._slowed.items() if slow.until + FORGOTTEN_S > now}
        return found


def _steps_that_hold(connection: Connection, steps: Sequence[Step]) -> set[Step]:
    """Return the steps whose condition holds now for the occurrence that the step names."""
    by_question: dict[ConditionQuery, dict[PrimaryKey, Step]] = {}
    for step in steps:
        by_question.setdefault(step[0], {})[step[1]] = step
    found: set[Step] = set()
    for query, wanted in by_question.items():
        width = len(query.keys.key_attributes)
        for row in connection.execute(query.selects.select_due_occurrences(list(wanted))):
            known = wanted.get(tuple(row[:width]))
            if known is not None and query.occurrences.means_occurrence(known[2], query.occurrences.occurrence_text_of_values(row[width:])):
                found.add(known)
    return found
