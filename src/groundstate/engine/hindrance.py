"""What keeps every worker from something that is to be done now, beside what stands on the record itself: who lives and what they say of
themselves, who has locked what, how much may be under way. For who explains; SELECTs alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import Connection, func, select

from groundstate.engine import living, locked, trouble
from groundstate.engine.lane import FAILING_MOST
from groundstate.engine.limits import AT_ONCE, whole
from groundstate.engine.living import LifeSeen
from groundstate.engine.numbers import slots
from groundstate.engine.question import PrimaryKey, Question
from groundstate.engine.says import Failing, Pause, Ring, Says
from groundstate.engine.slots import WHOLE, Place, most_at_once
from groundstate.engine.tokens import rate_of
from groundstate.rules import rate as rates
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.reaction import OutsideSpec
from groundstate.store.port import Lives
from groundstate.store.tables import attempt as attempts
from groundstate.store.tables import rate as rate_table
from groundstate.values import keys

T = TypeVar("T")
SLOTS_MOST = 10_000  # of a limit; of a larger one it is not looked who has them


@dataclass(frozen=True)
class Hindrance:
    """Why something is not done now.

    words: what it does instead, its verb first ('waits for ...'); where it is done all the same, but not at once, how that is (`how`). at:
    when that is over, where it is known.
    """

    words: str
    at: datetime | None = None
    how: bool = False

    def of(self, next_: str) -> str:
        """What is said in place of what would come next."""
        return f"{next_}, {self.words}" if self.how else f"{next_}, but it {self.words}"

    @property
    def instead(self) -> str:
        """What is said in place of 'carried out now'."""
        return f"carried out {self.words}" if self.how else self.words


@dataclass(frozen=True)
class Workers:
    """Those of one app on one database, as they were seen there, and what they carry out. locks: to look which are taken."""

    app: str
    connection: Connection
    locks: Lives
    seen: Sequence[LifeSeen]
    questions: Collection[Question]
    now: datetime

    @property
    def lives(self) -> bool | None:
        """Whether any does; None: that cannot be seen."""
        if any(one.alive for one in self.seen):
            return True
        return None if any(one.alive is None for one in self.seen) else False

    @property
    def able(self) -> list[LifeSeen]:
        """Those that may live, and begin something new."""
        return living.able(self.seen)

    def all_say(self, found: Sequence[T | None]) -> T | None:
        """found: what each of those that are able says of something. The first of it, where none of them says nothing."""
        said = [one for one in found if one is not None]
        return said[0] if said and len(said) == len(self.able) else None


def ring_of(workers: Workers, question: Question, record: str, occurrence: str) -> Ring | None:
    """The ring in which a worker has found this reaction on the record."""
    for ring in (ring for life in workers.seen for ring in life.says.rings):
        for step in ring.steps:
            if (step.reaction, step.record, step.occurrence) == (question.spec.name, record, occurrence):
                return ring
    return None


def in_words(ring: Ring, name: str) -> str:
    """What becomes of one reaction of a ring."""
    others = [one for one in ring.reactions if one != name]
    by = f"since {' and '.join(others)} undo{'es' if len(others) == 1 else ''} it" if others else "by itself"
    return f"goes round, {by}, and is slowed down: it is carried out after pauses of up to a minute"


def met(  # noqa: PLR0913  # what is to be done, on what
    workers: Workers,
    question: Question,
    key: PrimaryKey | None,
    occurrence: str,
    *,
    calls: bool,
    attempt: Attempt | None = None,
    suspect: bool = False,
) -> Hindrance | None:
    """What keeps workers from this reaction on the record now; None: nothing that can be seen. key: None where the record is not there.

    question: of what is too late that which asks for it. calls: whether its outside is needed for it. attempt: of its own, if one stands.
    suspect: whether it begins its calls as doubts.
    """
    found = _one_after_another(workers, question, key, occurrence, calls=calls)
    first = next(found, None)
    if first is None and suspect and calls and attempt is None:
        words = "in doubt first, since the database went back in time and it may have been called: until `groundstate trust`"
        return Hindrance(words, how=True)
    return first or _careful(workers, attempt)


def _one_after_another(
    workers: Workers, question: Question, key: PrimaryKey | None, occurrence: str, *, calls: bool
) -> Iterator[Hindrance]:
    """The longest ones first, as far as that can be told."""
    yield from _nobody(workers)
    words = locked.against_writers(workers.connection, {table.name for table in question.mapper.tables})
    if words is not None:
        yield Hindrance(f"waits: {words}")
    if key is not None:
        ring = ring_of(workers, question, question.record_text(key), occurrence)
        if ring is not None:
            yield Hindrance(in_words(ring, question.spec.name))
        yield from _row_is_locked(workers, question, key)
    busy = locked.in_long_ones(workers.connection)
    if busy and len(busy) >= len(workers.able):
        yield Hindrance(f"waits for {busy[0]}: nothing else is carried out by that worker meanwhile")
    if not question.answers_late:  # of that they say nothing
        yield from _as_they_say(workers, question)
    if calls and question.spec.call is not None:
        yield from _of_its_outside(workers, question.spec.call.outside, _part(workers.connection, question, key))
    if workers.all_say([True if question.spec.name in life.says.aside else None for life in workers.able]):
        words = "when it is found: its condition takes long to ask, and is asked beside the others (`groundstate check` says why)"
        yield Hindrance(words, how=True)


def _nobody(workers: Workers) -> Iterator[Hindrance]:
    if not workers.lives:
        yield Hindrance("as soon as a worker runs" if workers.lives is False else "by a worker, if one lives", how=True)
    elif not workers.able:
        if any(one.says.drains for one in workers.seen):
            yield Hindrance("waits for a worker: those that live were told to stop, and begin nothing new")
        else:
            yield Hindrance("waits for a go: those that live were started with --held, and were not told to go yet")


def _row_is_locked(workers: Workers, question: Question, key: PrimaryKey) -> Iterator[Hindrance]:
    """Not by a worker of ours, which has it in hand."""
    for one in locked.locked(workers.connection, [question], timedelta(), key):
        if not one.ours:
            since = locked.since_in_words(one.since)
            yield Hindrance(f"waits until pid {one.pid} ({one.who}) lets go of its row, which a transaction{since} has locked")


def _as_they_say(workers: Workers, question: Question) -> Iterator[Hindrance]:
    """Of the reaction as a whole, where each says it."""
    name = question.spec.name
    failing = workers.all_say([next((one for one in life.says.failing if one.reaction == name), None) for life in workers.able])
    if failing is not None:
        yield _failing(failing, workers.now)
    if workers.all_say([True if name in life.says.troubled else None for life in workers.able]):
        yield Hindrance(
            "waits, since it could not be carried out at all the last times, as the log says; it is tried again each few seconds"
        )


def _failing(one: Failing, now: datetime) -> Hindrance:
    failed = f"since its handler failed for {FAILING_MOST} or more records in a row"
    if one.until > now:
        return Hindrance(f"waits, {failed}: one at a time probes it", one.until)
    return Hindrance(f"now, one record at a time, {failed}", how=True)


# ---- its outside -----------------------------------------------------------------------------------------------------------------
def _part(connection: Connection, question: Question, key: PrimaryKey | None) -> str | None:
    """As `flight.part_of`, of a record that is not loaded."""
    per = question.spec.per
    if per is None or key is None:
        return None
    try:
        value = connection.execute(select(per).where(question.among([key]))).scalar()
    except Exception as error:
        if not trouble.unreadable(error):
            raise
        return None
    return None if value is None else f"={keys.text(value)}"


def _of_its_outside(workers: Workers, outside: OutsideSpec, part: str | None) -> Iterator[Hindrance]:
    paused = workers.all_say([_pause_in(workers, life.says, outside, part) for life in workers.able])
    if paused is not None and not paused.how:
        yield paused
    places: list[Place] = [(outside, part), whole(outside)]
    for place in places:
        most = most_at_once(place)
        if most is not None and most <= SLOTS_MOST:
            taken = living.alive_of(workers.locks, slots(workers.app, outside.name, place[1] or WHOLE, most))
            if all(taken.values()):
                yield Hindrance(f"waits for a free slot: as many calls to {_named(place)} as may be, {most:,}, are under way")
    if outside.limit is None and workers.able and _full(workers, outside):
        yield Hindrance(f"waits until a call to {outside.name} ends: each worker has {AT_ONCE} of them under way, and it has no limit=")
    for place in places:
        yield from _of_its_rate(workers, place)
    if paused is not None:
        yield paused


def _pause_in(workers: Workers, says: Says, outside: OutsideSpec, part: str | None) -> Hindrance | None:
    for one in says.paused:
        if (one.outside, one.part) == (outside.name, None if part is None else part[1:]):
            return _in_pause(one, workers.now)
    if part is not None and says.paused_count > len(says.paused):
        return Hindrance(f"now, or after a pause: {says.paused_count:,} parts of outsides are paused, more than are named", how=True)
    return None


def _in_pause(one: Pause, now: datetime) -> Hindrance:
    name = one.outside if one.part is None else f"{one.outside}, {one.part}"
    answered = f" (its last answer: {one.answered})" if one.answered else ""
    waits = f"waits for the outside {name}, which is paused{answered}"
    if one.until > now:
        return Hindrance(f"{waits}; the next call probes it", one.until)
    return Hindrance(f"{waits}; one call at a time probes it")


def _named(place: Place) -> str:
    outside, part = place
    return f"{outside.name}, {part[1:]}" if part else outside.name


def _full(workers: Workers, outside: OutsideSpec) -> bool:
    """Whether each worker has as many calls in the air as one makes at once to an outside without a limit."""
    of = attempts.c
    names = [one.spec.name for one in workers.questions if one.spec.call is not None and one.spec.call.outside is outside]
    begun = (of.app == workers.app, of.state == State.BEGUN.value, of.reaction.in_(names))
    counted = select(of.worker, func.count()).where(*begun).group_by(of.worker)
    flying = {row[0]: row[1] for row in workers.connection.execute(counted)}
    return all(flying.get(life.life, 0) >= AT_ONCE for life in workers.able)


def _of_its_rate(workers: Workers, place: Place) -> Iterator[Hindrance]:
    rate, (outside, part) = rate_of(place), place
    if rate is None:
        return
    of = rate_table.c
    mine = (of.app == workers.app, of.outside == outside.name, of.part == (part or WHOLE))
    found = rates.counted(workers.connection.execute(select(of.counts).where(*mine)).scalar(), rate, rates.microseconds(workers.now))
    if rates.left(found, rate) == 0:
        at = rates.free_at(found, rate)
        words = f"waits for the rate of {_named(place)}, {rate.times:,} in {rate.each.total_seconds():g} s: the next is free"
        yield Hindrance(words, None if at is None else rates.moment_of(at))


# ---- careful mode ----------------------------------------------------------------------------------------------------------------
def _careful(workers: Workers, attempt: Attempt | None) -> Hindrance | None:
    care = living.care_of(workers.seen, workers.now)
    if not care.careful:
        return None
    if attempt is not None and care.alone(attempt.why, has_call=attempt.unsure or attempt.call_no > 0):
        return Hindrance("alone, once nothing else is under way, since its worker ended each time (careful mode)", how=True)
    return Hindrance("in careful mode: among few others, and after what is suspected of having ended workers", how=True)
