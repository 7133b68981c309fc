"""Records that go round: reactions that make each other's conditions hold again, for ever, and nothing fails. Tells and slows.

In memory alone, and of one worker. A reaction that carries out one record again and again is no ring by itself, since a program may ask
for that. So a record that came ten times within a minute is traced: within our own transactions it is asked which conditions they made
hold. Only what comes back to where it began by our own doing is told of and slowed. Ends no reaction, and writes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from groundstate.engine.question import PrimaryKey, Question

log = logging.getLogger("groundstate")
WITHIN_S = 60.0
TIMES = 20  # so often within that time, with the same occurrence, and it is told of
TRACED_AFTER = 10  # so often, and it is found out who makes it hold again
PROVEN = 5  # so often it was seen, at least, and of each other run
REMEMBERED = 10_000  # records of a generation, of which there are two: more than that a worker does not see come again 20 times a minute
COUNTED_MOST = 10_000
TRACED_MOST = 200  # at once
SLOWED_MOST = 10_000
FIRST_S = 1.0
LONGEST_S = 60.0
FORGOTTEN_S = 120.0  # after its pause: who comes then goes round anew
LATELY_S = 10.0  # after its pause: who has not come by then does not go round any more, as far as is told
TOLD_MOST = 10  # lines a minute; further records are told at DEBUG
KEPT_TOLD = 100

# One round of a record: the reaction's question (of what is too late another one than of the rest), the key and the occurrence.
Step = tuple[Question, PrimaryKey, str]
_NONE: frozenset[PrimaryKey] = frozenset()


class Taken(Protocol):
    """A record in our hands."""

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
    """What our own transactions had to do with a step, since it is traced."""

    runs: int = 0
    made: int = 0  # how often one of our transactions made it hold
    makers: dict[Step, None] = field(default_factory=dict)

    @property
    def by_us(self) -> bool:
        return self.made >= PROVEN and self.made * 2 >= self.runs


@dataclass(eq=False)
class _Slow:
    """A ring that is carried out a step at a time, with pauses between."""

    until: float
    pause_s: float = FIRST_S
    steps: Sequence[Step] = ()
    since: float = 0.0
    met: dict[Step, None] = field(default_factory=dict)  # that were there to be carried out, in the pause


@dataclass(frozen=True)
class Told:
    """A ring that was found."""

    reactions: tuple[str, ...]
    record: str
    words: str


@dataclass
class Watch:
    """One transaction with traced steps in it: which others held before its handlers ran."""

    mine: Sequence[Step]
    others: Sequence[Step]
    before: set[Step]
    made: list[tuple[Step, list[Step]]] = field(default_factory=list)  # what holds since, and by which of mine


class Rings:
    """Of one worker, all its lives long, and for its transactions' thread."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self._recent: dict[Question, set[PrimaryKey]] = {}
        self._before: dict[Question, set[PrimaryKey]] = {}
        self._remembered = 0
        self._turned_at = 0.0
        self._again: dict[tuple[Question, PrimaryKey], _Count] = {}
        self._cleaned_at = 0.0
        self._traced: dict[Step, _Trace] = {}
        self._slowed: dict[Step, _Slow] = {}
        self._met: dict[_Slow, None] = {}  # of which some step was there to be carried out, in the pause
        self._looked_at = 0.0
        self._lines = 0
        self._lines_since = 0.0

    def __bool__(self) -> bool:
        """Whether any record is slowed down."""
        return bool(self._slowed)

    @property
    def slowed(self) -> int:
        """How many rings are slowed down. From any thread."""
        return len(set(self._slowed.values()))

    def going(self, now: float) -> list[tuple[float, Sequence[Step]]]:
        """The rings that went on lately, the oldest first: since when each is slowed down, and its steps. For who is told of them."""
        some = dict.fromkeys(self._slowed.values())
        return [(slow.since, slow.steps) for slow in some if slow.met or slow.until > now - LATELY_S]

    # ---- in a transaction --------------------------------------------------------------------------------------------------------
    def holds(self, question: Question, key: PrimaryKey, occurrence: str) -> bool:
        """Whether this is to be left for the end of its pause. It is remembered, and comes by itself then."""
        step = (question, key, occurrence)
        slow = self._slowed.get(step)
        if slow is None or slow.until <= time.monotonic():
            return False
        slow.met[step] = None
        self._met[slow] = None
        return True

    def watch(self, question: Question, connection: Connection, taken: Iterable[Taken]) -> Watch | None:
        """Before the handlers run on these; None where none of them is traced."""
        if not self._traced:
            return None
        mine = [step for one in taken if (step := (question, one.key, one.occurrence)) in self._traced]
        if not mine:
            return None
        others = [step for step in self._traced if step not in mine]
        try:
            return Watch(mine, others, _holding(connection, others))
        except DBAPIError:
            self._traced.clear()  # a column or a table of another reaction is gone: this one is to go on
            raise

    def look(self, watch: Watch, connection: Connection) -> None:
        """After their flush."""
        try:
            holding = _holding(connection, watch.others) - watch.before
        except DBAPIError:
            self._traced.clear()  # as above
            raise
        for step in holding:
            question, key, _ = step
            own = [one for one in watch.mine if one[1] == key and one[0].mapper.base_mapper is question.mapper.base_mapper]
            watch.made.append((step, own or list(watch.mine)))

    # ---- after its commit --------------------------------------------------------------------------------------------------------
    def carried_out(self, question: Question, works: Sequence[Taken], watch: Watch | None) -> None:
        """These were, and it is committed."""
        now, found = time.monotonic(), {one.key for one in works}
        recent = self._recent.get(question)
        if recent is None:
            recent = self._recent[question] = set()
        again = recent & found
        before = self._before.get(question, _NONE)
        if before:
            again |= before & found
        recent |= found
        self._remembered += len(found)
        if self._remembered > REMEMBERED or now - self._turned_at > WITHIN_S / 2:
            self._before, self._recent, self._remembered, self._turned_at = self._recent, {}, 0, now
        if self._slowed:
            self._pause(question, works, now)
        if again:
            self._count([(question, one.key, one.occurrence) for one in works if one.key in again], now)
        if watch is not None:
            self._judge(watch, now)

    def _count(self, steps: Sequence[Step], now: float) -> None:
        for step in steps:
            if step in self._slowed:
                continue
            question, key, occurrence = step
            count = self._again.get((question, key))
            if count is None:
                if len(self._again) >= COUNTED_MOST:
                    self._forget_old(now)
                if len(self._again) < COUNTED_MOST:
                    self._again[question, key] = _Count(now, occurrence, 1 if occurrence else 2)
            elif count.occurrence != occurrence or now - count.since > WITHIN_S:
                self._traced.pop((question, key, count.occurrence), None)
                count.since, count.occurrence, count.times = now, occurrence, 1
            else:
                count.times += 1
                if count.times >= TRACED_AFTER and now >= count.acquitted_until and len(self._traced) < TRACED_MOST:
                    self._traced.setdefault(step, _Trace())

    def _pause(self, question: Question, works: Iterable[Taken], now: float) -> None:
        for one in works:
            slow = self._slowed.get((question, one.key, one.occurrence))
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
            elif trace.runs >= 2 * TIMES:  # somebody else asks for it again and again, as often as he likes
                del self._traced[step]
                count.acquitted_until = now + WITHIN_S

    def _ring(self, step: Step) -> list[Step] | None:
        """The steps by which it came back to this one by our own doing; None where somebody else does it."""
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
        names = tuple(dict.fromkeys(question.spec.name for question, _, _ in ring))
        question, key, _ = ring[0]
        record = question.record_text(key)
        others = f"{', '.join(names[1:])} make{'s' if len(names) == 2 else ''}" if len(names) > 1 else "it makes by itself"
        words = (
            f"{question.spec.table_name} {record} goes round: {names[0]} carried it out {TIMES} times within a minute without a new"
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
        """Whether any was there to be carried out, and waits for the end of its pause."""
        return bool(self._met)

    def wait_until(self) -> float | None:
        """When the next such pause is over, by the monotonic clock."""
        return min((slow.until for slow in self._met), default=None)

    def ready(self, now: float) -> list[tuple[Question, PrimaryKey]]:
        """Those whose pause is over, each once. Forgets what has not come back for long."""
        over = [slow for slow in self._met if slow.until <= now]
        found = [(question, key) for slow in over for question, key, _ in slow.met]
        for slow in over:
            slow.met = {}
            del self._met[slow]
        if now - self._looked_at > FIRST_S:
            self._looked_at = now
            self._slowed = {step: slow for step, slow in self._slowed.items() if slow.until + FORGOTTEN_S > now}
        return found


def _holding(connection: Connection, steps: Sequence[Step]) -> set[Step]:
    """Those of these whose condition holds now, for the same occurrence."""
    by_question: dict[Question, dict[PrimaryKey, Step]] = {}
    for step in steps:
        by_question.setdefault(step[0], {})[step[1]] = step
    found: set[Step] = set()
    for question, wanted in by_question.items():
        width = len(question.key_attributes)
        for row in connection.execute(question.still_holding(list(wanted))):
            known = wanted.get(tuple(row[:width]))
            if known is not None and question.is_round(known[2], question.round_text(row[width:])):
                found.add(known)
    return found
