"""Detects and slows down records that go round in a cycle: reactions make each other's conditions hold again for ever, and nothing fails.

Works in the memory of one worker. A reaction that carries out one record again and again is no cycle by itself, since a program may want
that. So a record that came ten times within a minute is traced: our transactions check which traced conditions they made hold. Only a chain
of our own transactions that leads back to its start is reported and slowed down. Ends no reaction, and writes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from groundstate.engine.sql.condition_query import ConditionQuery, PrimaryKey

log = logging.getLogger("groundstate")
WITHIN_S = 60.0  # seconds: the period in which returns of a record are counted
TIMES = 20  # times within WITHIN_S, with the same occurrence: then a cycle is reported
TRACED_AFTER = 10  # times within WITHIN_S: then it is traced which transactions make its condition hold again
PROVEN = 5  # times, and in half of the runs: so often our transactions must have made the condition hold
REMEMBERED = 10_000  # records of one of the two generations: a worker cannot see more of them return 20 times a minute
COUNTED_MOST = 10_000  # records whose returns are counted
TRACED_MOST = 200  # steps that are traced at the same time
SLOWED_MOST = 10_000  # steps that are slowed down at the same time
FIRST_S = 1.0  # seconds: the first pause of a cycle; each further one is twice as long
LONGEST_S = 60.0  # seconds: the longest pause
FORGOTTEN_S = 120.0  # seconds after its pause: a record that returns later counts as a new cycle
LATELY_S = 10.0  # seconds after its pause: a record that has not returned by then is no longer reported as going round
TOLD_MOST = 10  # warnings a minute; further records are logged at DEBUG
KEPT_TOLD = 100  # reports that are kept in memory

# One step of a cycle: the reaction's condition query (that for late records is another one), the record's key, and its occurrence.
Step = tuple[ConditionQuery, PrimaryKey, str]
_NONE: frozenset[PrimaryKey] = frozenset()


class Taken(Protocol):
    """A record that the transaction has taken."""

    @property
    def key(self) -> PrimaryKey: ...
    @property
    def occurrence(self) -> str: ...


@dataclass
class _Count:
    since: float
    occurrence: str
    times: int
    acquitted_until: float = 0.0


@dataclass
class _Trace:
    """What our own transactions had to do with a step of a suspected cycle, since it is traced."""

    runs: int = 0
    made: int = 0  # how often one of our transactions made its condition hold
    makers: dict[Step, None] = field(default_factory=dict)

    @property
    def by_us(self) -> bool:
        return self.made >= PROVEN and self.made * 2 >= self.runs


@dataclass(eq=False)
class _Slow:
    """A cycle of reactions that is carried out one step at a time, with pauses in between."""

    until: float
    pause_s: float = FIRST_S
    steps: Sequence[Step] = ()
    since: float = 0.0
    met: dict[Step, None] = field(default_factory=dict)  # steps that were ready during the pause


@dataclass(frozen=True)
class Told:
    """A cycle of reactions that was found and reported."""

    reactions: tuple[str, ...]
    record: str
    words: str


@dataclass
class Watch:
    """One transaction with traced steps in it: which other steps' conditions held before its handlers ran."""

    mine: Sequence[Step]
    others: Sequence[Step]
    before: set[Step]
    # steps whose conditions hold since then, each with the own steps that may have caused it
    made: list[tuple[Step, list[Step]]] = field(default_factory=list)


class RecordCycles:
    """The detection of cycles between reactions, for one worker and all its incarnations. Only `slowed` may be called by other threads."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self._recent: dict[ConditionQuery, set[PrimaryKey]] = {}
        self._before: dict[ConditionQuery, set[PrimaryKey]] = {}
        self._remembered = 0
        self._turned_at = 0.0
        self._again: dict[tuple[ConditionQuery, PrimaryKey], _Count] = {}
        self._cleaned_at = 0.0
        self._traced: dict[Step, _Trace] = {}
        self._slowed: dict[Step, _Slow] = {}
        self._met: dict[_Slow, None] = {}  # cycles with a step that was ready during the pause
        self._looked_at = 0.0
        self._lines = 0
        self._lines_since = 0.0

    def __bool__(self) -> bool:
        """Whether any record is slowed down."""
        return bool(self._slowed)

    @property
    def slowed(self) -> int:
        """Return how many cycles are slowed down. May be called from any thread."""
        return len(set(self._slowed.values()))

    def going(self, now: float) -> list[tuple[float, Sequence[Step]]]:
        """Return the cycles that went on lately, the oldest first: since when each is slowed down, and its steps."""
        some = dict.fromkeys(self._slowed.values())
        return [(slow.since, slow.steps) for slow in some if slow.met or slow.until > now - LATELY_S]

    # ---- in a transaction --------------------------------------------------------------------------------------------------------
    def holds(self, query: ConditionQuery, key: PrimaryKey, occurrence: str) -> bool:
        """Whether this record must wait for the end of its pause. It is remembered then, and `ready` returns it after the pause."""
        step = (query, key, occurrence)
        slow = self._slowed.get(step)
        if slow is None or slow.until <= time.monotonic():
            return False
        slow.met[step] = None
        self._met[slow] = None
        return True

    def watch(self, query: ConditionQuery, connection: Connection, taken: Iterable[Taken]) -> Watch | None:
        """Note before the handlers run which traced conditions hold already. Returns None where none of the taken records is traced."""
        if not self._traced:
            return None
        mine = [step for one in taken if (step := (query, one.key, one.occurrence)) in self._traced]
        if not mine:
            return None
        others = [step for step in self._traced if step not in mine]
        try:
            return Watch(mine, others, _holding(connection, others))
        except DBAPIError:
            self._traced.clear()  # a column or a table of another reaction is gone, which must not stop this one
            raise

    def look(self, watch: Watch, connection: Connection) -> None:
        """Note after the flush of the handlers which traced conditions they made hold."""
        try:
            holding = _holding(connection, watch.others) - watch.before
        except DBAPIError:
            self._traced.clear()  # a column or a table of another reaction is gone, which must not stop this one
            raise
        for step in holding:
            query, key, _ = step
            own = [one for one in watch.mine if one[1] == key and one[0].mapper.base_mapper is query.mapper.base_mapper]
            watch.made.append((step, own or list(watch.mine)))

    # ---- after its commit --------------------------------------------------------------------------------------------------------
    def carried_out(self, query: ConditionQuery, works: Sequence[Taken], watch: Watch | None) -> None:
        """Count these records after the commit of the transaction that carried them out, and slow down a cycle that is found."""
        now, found = time.monotonic(), {one.key for one in works}
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
            self._pause(query, works, now)
        if again:
            self._count([(query, one.key, one.occurrence) for one in works if one.key in again], now)
        if watch is not None:
            self._judge(watch, now)

    def _count(self, steps: Sequence[Step], now: float) -> None:
        for step in steps:
            if step in self._slowed:
                continue
            query, key, occurrence = step
            count = self._again.get((query, key))
            if count is None:
                if len(self._again) >= COUNTED_MOST:
                    self._forget_old(now)
                if len(self._again) < COUNTED_MOST:
                    self._again[query, key] = _Count(now, occurrence, 1 if occurrence else 2)
            elif count.occurrence != occurrence or now - count.since > WITHIN_S:
                self._traced.pop((query, key, count.occurrence), None)
                count.since, count.occurrence, count.times = now, occurrence, 1
            else:
                count.times += 1
                if count.times >= TRACED_AFTER and now >= count.acquitted_until and len(self._traced) < TRACED_MOST:
                    self._traced.setdefault(step, _Trace())

    def _pause(self, query: ConditionQuery, works: Iterable[Taken], now: float) -> None:
        for one in works:
            slow = self._slowed.get((query, one.key, one.occurrence))
            if slow is not None:
                slow.until, slow.pause_s = now + slow.pause_s, min(slow.pause_s * 2, LONGEST_S)

    def _forget_old(self, now: float) -> None:
        if now - self._cleaned_at < 1.0:
            return
        self._cleaned_at = now
        self._again = {one: count for one, count in self._again.items() if now - count.since <= WITHIN_S or now < count.acquitted_until}
        self._traced = {one: trace for one, trace in self._traced.items() if one[:2] in self._again}

    def _judge(self, watch: Watch, now: float) -> None:
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
            ring = self._ring(step) if count.times >= TIMES else None
            if ring is not None:
                self._slow_down(ring, now)
            elif trace.runs >= 2 * TIMES:  # other programs make the condition hold again, as often as they like
                del self._traced[step]
                count.acquitted_until = now + WITHIN_S

    def _ring(self, step: Step) -> list[Step] | None:
        """Return the steps by which our own transactions led back to this one; None where other programs made its condition hold."""
        waiting, seen = [[step]], {step}
        while waiting:
            path = waiting.pop()
            trace = self._traced.get(path[-1])
            if trace is None or not trace.by_us:
                continue
            if step in trace.makers:
                return [step, *reversed(path[1:])]
            new = [one for one in trace.makers if one not in seen]
            seen.update(new)
            waiting += [[*path, one] for one in new]
        return None

    # ---- slowed down -------------------------------------------------------------------------------------------------------------
    def _slow_down(self, ring: Sequence[Step], now: float) -> None:
        self._tell(ring, now)
        slow = _Slow(now + FIRST_S, min(2 * FIRST_S, LONGEST_S), tuple(ring), now)
        for one in ring:
            self._traced.pop(one, None)
            self._again.pop(one[:2], None)
            if len(self._slowed) < SLOWED_MOST:
                self._slowed[one] = slow

    def _tell(self, ring: Sequence[Step], now: float) -> None:
        names = tuple(dict.fromkeys(query.spec.name for query, _, _ in ring))
        query, key, _ = ring[0]
        record = query.record_text(key)
        others = f"{', '.join(names[1:])} make{'s' if len(names) == 2 else ''}" if len(names) > 1 else "it makes by itself"
        words = (
            f"{query.spec.table_name} {record} goes round: {names[0]} carried it out {TIMES} times within a minute without a new"
            f" occurrence, which {others} hold again. From now on it is carried out after pauses of up to a minute, and everything else"
            " goes on. Let one of them leave a state that the others do not undo, or say by occurrence= what tells the rounds"
        )
        if len(self.told) < KEPT_TOLD:
            self.told.append(Told(names, record, words))
        if now - self._lines_since > WITHIN_S:
            self._lines, self._lines_since = 0, now
        self._lines += 1
        if self._lines <= TOLD_MOST:
            log.warning("%s", words, extra={"event": "record_goes_round", "reactions": list(names), "record": record})
        else:
            log.debug("%s", words, extra={"event": "record_goes_round", "reactions": list(names), "record": record})

    @property
    def wait(self) -> bool:
        """Whether any slowed record was ready and waits for the end of its pause."""
        return bool(self._met)

    def wait_until(self) -> float | None:
        """Return when the next such pause ends, in seconds of the monotonic clock; None where no record waits."""
        return min((slow.until for slow in self._met), default=None)

    def ready(self, now: float) -> list[tuple[ConditionQuery, PrimaryKey]]:
        """Return the records whose pause is over, each once. Forgets cycles that have not returned for FORGOTTEN_S."""
        over = [slow for slow in self._met if slow.until <= now]
        found = [(query, key) for slow in over for query, key, _ in slow.met]
        for slow in over:
            slow.met = {}
            del self._met[slow]
        if now - self._looked_at > FIRST_S:
            self._looked_at = now
            self._slowed = {step: slow for step, slow in self._slowed.items() if slow.until + FORGOTTEN_S > now}
        return found


def _holding(connection: Connection, steps: Sequence[Step]) -> set[Step]:
    """Return those of the steps whose condition holds now, for the same occurrence."""
    by_question: dict[ConditionQuery, dict[PrimaryKey, Step]] = {}
    for step in steps:
        by_question.setdefault(step[0], {})[step[1]] = step
    found: set[Step] = set()
    for query, wanted in by_question.items():
        width = len(query.key_attributes)
        for row in connection.execute(query.still_holding(list(wanted))):
            known = wanted.get(tuple(row[:width]))
            if known is not None and query.is_round(known[2], query.round_text(row[width:])):
                found.add(known)
    return found
