"""What may be begun at an outside, and at each part of it: room, slots, tokens and pauses. Begins nothing; a worker's own accounting.

`per` tells the part. A part whose endpoint fails, or that has no slot or token left, is passed by, and the others go on (hazard 60). What
was passed by is looked for again when a call of it has ended, or at the moment when something of it is free.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from groundstate.engine.flight import Flight, FoundAbsent, FoundUnknown, NothingHappened, NotSent, Returned, ThreadEnded, Unclear, Word
from groundstate.engine.lane import Lane
from groundstate.engine.question import Question
from groundstate.engine.shift import Shift
from groundstate.engine.slots import WHOLE, Place, Slots, most_at_once
from groundstate.engine.tokens import Tokens
from groundstate.engine.transaction import Transaction
from groundstate.rules.breaker import Breaker
from groundstate.rules.reaction import CallSpec, OutsideSpec

log = logging.getLogger("groundstate")
ANSWER_LENGTH = 200  # of what an endpoint answered last, where its pause is told
AT_ONCE = 100  # calls of one worker to an outside without a limit
Freed = Mapping[Place, int]
NOTHING_FREED: Freed = {}


@dataclass(frozen=True)
class Paused:
    """An endpoint that is paused. since, until: by the monotonic clock; once `until` is past, one call at a time probes it. answered: the
    last that was heard of it, in words that are not redacted yet.
    """

    since: float
    until: float
    answered: str


def place_of(flight: Flight) -> Place:
    return _call(flight.question).outside, flight.part


def whole(outside: OutsideSpec) -> Place:
    return outside, WHOLE


class Limits:
    """Of one worker, for its transactions' thread."""

    def __init__(self, shift: Shift) -> None:
        self._shift = shift
        self._air: Counter[Place] = Counter()  # calls and finds in the air, of each part and of the whole
        self._hanging: Counter[Place] = Counter()  # of those, what went on past its time limit: they use the limit up, and are no probe
        self._breakers: dict[Place, Breaker] = {}
        self.paused: dict[Place, Paused] = {}  # of those that are open what is told of it
        self._slots = Slots(shift)
        self._free_at: dict[Place, float] = {}  # tokens
        self._tokens: Tokens | None = None
        self._freed: Freed = NOTHING_FREED
        self._granted: Counter[Place] = Counter()  # in the transaction under way
        self._passed_by: dict[Lane, float] = {}  # when each is to be looked at again; infinity: when a call has ended

    # ---- room ------------------------------------------------------------------------------------------------------------------
    def room(self, lane: Lane, now: float, freed: Freed = NOTHING_FREED) -> int:
        """How many calls of this reaction may be begun now, as far as memory knows."""
        call = lane.question.spec.call
        if call is None:
            return 0
        room = self._room_at(whole(call.outside), now, freed)[0]
        return min(room, self._pause_room((call.outside, None), room, now, freed)) if lane.question.spec.per is None else room

    def may_go(self, lane: Lane, value: str, now: float) -> bool:
        """Whether anything of this value of `per` may be begun now, as far as memory knows; where not, it is passed by."""
        if lane.question.spec.in_order is not None:
            return True  # its groups are not the parts
        room, at = self._room_of_part((_call(lane.question).outside, f"={value}"), now, self._freed)
        if room <= 0:
            self.pass_by(lane, at)
        return room > 0

    def _room_at(self, place: Place, now: float, freed: Freed = NOTHING_FREED) -> tuple[int, float]:
        """By the limit and the rate of a place; and when there may be more where there is none."""
        if self._free_at.get(place, 0.0) > now:
            return 0, self._free_at[place]
        used = self._used(place, freed)
        limit = most_at_once(place)
        most = limit if limit is not None else AT_ONCE if place[1] == WHOLE else 2**31
        if limit is not None and self._slots.refused(place):
            return min(most, self._slots.held(place)) - used, math.inf  # when there is one again, `turn` gets it
        return most - used, math.inf

    def _room_of_part(self, place: Place, now: float, freed: Freed = NOTHING_FREED) -> tuple[int, float]:
        """The same with the pause of its endpoint."""
        room, at = self._room_at(place, now, freed)
        paused = self._pause_room(place, room, now, freed)
        if paused < room:
            more_at = self._breakers[place].more_at(now)
            return paused, math.inf if more_at is None else more_at
        return room, at

    def _pause_room(self, place: Place, free: int, now: float, freed: Freed) -> int:
        breaker = self._breakers.get(place)
        return free if breaker is None else breaker.room(free, self._used(place, freed) - self._hanging[place], now)

    def _used(self, place: Place, freed: Freed = NOTHING_FREED) -> int:
        return self._air[place] + self._granted[place] - freed.get(place, 0)

    # ---- a transaction that begins ---------------------------------------------------------------------------------------------
    def open(self, tx: Transaction, freed: Freed) -> None:
        """A transaction begins, which frees these when it commits."""
        self._tokens = Tokens(self._shift, tx, self._free_at)
        self._freed = freed
        self._granted.clear()

    def room_in(self, lane: Lane) -> int:
        """As `room`, with the tokens that the database counts for the outside as a whole."""
        now = time.monotonic()
        room = self.room(lane, now, self._freed)
        if room <= 0 or self._tokens is None:
            return room
        place = whole(_call(lane.question).outside)
        return min(room, self._tokens.left([place]).get(place, room))

    def left_of(self, lane: Lane, values: Sequence[str]) -> dict[str, int]:
        """How many of each of these values of `per` may be begun in this transaction, with the tokens that the database counts; those
        of which none may are passed by. Nothing where the values are not those of `per`.
        """
        if self._tokens is None or lane.question.spec.in_order is not None:
            return {}
        now, places = time.monotonic(), {value: (_call(lane.question).outside, f"={value}") for value in values}
        tokens = self._tokens.left(places.values())
        left = {value: min(self._room_of_part(place, now, self._freed)[0], tokens.get(place, AT_ONCE)) for value, place in places.items()}
        for value, place in places.items():
            if left[value] <= 0:
                self.pass_by(lane, self._free_at.get(place, math.inf))
        return left

    def admit(self, lane: Lane, parts: Sequence[str | None]) -> list[bool]:
        """Which of these may be begun in this transaction: one for each, in their order. Who may not is passed by."""
        outside, now = _call(lane.question).outside, time.monotonic()
        per = lane.question.spec.per is not None
        caps = {(outside, part): self._room_of_part((outside, part), now, self._freed) if per else (len(parts), math.inf) for part in parts}
        caps[whole(outside)] = self._room_at(whole(outside), now, self._freed)
        chosen, left_over = _within(caps, outside, parts)
        wanted = _counted(outside, parts, chosen)
        self._slots.take({place: self._used(place, self._freed) + count for place, count in wanted.items() if most_at_once(place)}, now)
        for place in wanted:
            if most_at_once(place) is not None:
                caps[place] = _less(caps[place], self._slots.held(place) - self._used(place, self._freed), math.inf)
        if self._tokens is not None:
            for place, left in self._tokens.left(wanted).items():
                caps[place] = _less(caps[place], left, self._free_at.get(place, 0.0))
        chosen, left_over = _within(caps, outside, parts)
        granted = _counted(outside, parts, chosen)
        self._granted.update(granted)
        if self._tokens is not None:
            self._tokens.spend(granted)
        for part, may in zip(parts, chosen, strict=True):
            if not may:
                places = ((outside, part), whole(outside))
                self.pass_by(lane, max(caps[place][1] for place in places if left_over[place] <= 0))
        return chosen

    def write(self) -> None:
        """Before the commit: what was counted."""
        if self._tokens is not None:
            self._tokens.write()

    def close(self) -> None:
        """The transaction has ended, by a commit or not."""
        if self._tokens is not None:
            self._tokens.note()
        self._tokens, self._freed = None, NOTHING_FREED
        self._granted.clear()

    # ---- what is in the air ------------------------------------------------------------------------------------------------------
    def sent(self, flight: Flight) -> None:
        for place in places_of(flight):
            self._air[place] += 1

    def hangs(self, flight: Flight) -> None:
        """It went on past its time limit."""
        self._hanging.update(places_of(flight))

    def landed(self, flight: Flight) -> None:
        _take_off(self._air, flight)
        if flight.given_up:
            _take_off(self._hanging, flight)
        outside = _call(flight.question).outside
        for lane in [one for one, at in self._passed_by.items() if at == math.inf and _call(one.question).outside is outside]:
            self._passed_by[lane] = 0.0
        if flight.question.spec.in_order is not None:
            self._passed_by[self._shift.lane(flight.question.spec.name)] = 0.0  # the next in line

    def clear(self) -> None:
        """Nothing is waited for any more."""
        self._air.clear()
        self._hanging.clear()

    def heard(self, word: Word, now: float) -> bool:
        """What a word says of the endpoint. Returns whether it begins a pause."""
        if isinstance(word, NotSent | ThreadEnded) or (isinstance(word, Unclear) and word.flight.cut_off):
            return False
        place = place_of(word.flight)
        breaker = self._breakers.pop(place, None) or Breaker()
        was_open = breaker.open
        match word:
            case NothingHappened(counts=False, retry_after=wait) if wait is not None:
                breaker.asked_to_wait(now, wait.total_seconds())
            case NothingHappened() | Unclear():
                breaker.went_wrong(word.flight.identity, now)
            case Returned():
                breaker.succeeded(now)
            case FoundUnknown(error=error) if error is not None:
                breaker.went_wrong(word.flight.identity, now, find=True)
            case FoundAbsent() | FoundUnknown():
                breaker.answered_a_question(now)
        since = self.paused[place].since if place in self.paused else now
        if breaker.open:
            error = word.error if isinstance(word, NothingHappened | Unclear | FoundUnknown) else None
            self.paused[place] = Paused(since, breaker.until, error or "")
        else:
            self.paused.pop(place, None)
        if breaker != Breaker():  # of an endpoint that answers there is nothing to be known, and there may be a million parts
            self._breakers[place] = breaker
        if breaker.open != was_open:
            what = self._pauses_in_words(self.paused[place], now) if breaker.open else f"answers again, after {now - since:.1f} s"
            log.warning(
                "the outside %s%s %s",
                place[0].name,
                f", {place[1][1:]}" if place[1] else "",
                what,
                extra={"event": "outside_breaker", "outside": place[0].name, "open": breaker.open},
            )
        return breaker.open and not was_open

    def _pauses_in_words(self, one: Paused, now: float) -> str:
        answered = f"; its last answer: {self._shift.life.shorten(one.answered, ANSWER_LENGTH)}" if one.answered else ""
        return f"fails: it pauses for {one.until - now:.1f} s, and is probed{answered}"

    # ---- what was passed by ------------------------------------------------------------------------------------------------------
    def pass_by(self, lane: Lane, until: float) -> None:
        self._passed_by[lane] = min(self._passed_by.get(lane, math.inf), until)

    def turn(self, now: float) -> None:
        """At each turn: lanes whose time has come, or whose outside has a slot or a token again, are gone through again, and slots that
        nobody needs are given back.
        """
        self._slots.take_again(self._air, now)
        got = {outside for outside, _ in self._slots.retry(self._wanted, now)}
        got |= {outside for (outside, _), at in self._free_at.items() if at <= now}
        for lane in self._passed_by if got else ():
            if _call(lane.question).outside in got:
                self._passed_by[lane] = 0.0
        for lane in [one for one, at in self._passed_by.items() if at <= now]:
            del self._passed_by[lane]
            if lane.on:
                lane.sweep()
                lane.due, lane.seen_full = True, False
        self._slots.give_back(lambda place: self._air[place], now)
        self._free_at = {place: at for place, at in self._free_at.items() if at > now}

    def times(self, now: float) -> list[float]:
        """When there is something to do for it, or to begin."""
        found = [at for breaker in self._breakers.values() if (at := breaker.more_at(now)) is not None]
        found += [at for at in self._passed_by.values() if at != math.inf]
        found += self._free_at.values()
        return [*found, *self._slots.times()]

    def _wanted(self, place: Place) -> bool:
        """Whether a slot there is waited for."""
        lanes = (lane for lane in self._shift.lanes if lane.wants or lane in self._passed_by)
        return any(lane.question.spec.call is not None and lane.question.spec.call.outside is place[0] for lane in lanes)

    @property
    def in_the_air(self) -> dict[str, int]:
        """Calls and finds, by outside."""
        return {place[0].name: count for place, count in self._air.copy().items() if place[1] == WHOLE}

    @property
    def hanging(self) -> int:
        """Calls that went on past their time limit."""
        return sum(count for place, count in self._hanging.copy().items() if place[1] == WHOLE)

    @property
    def open_breakers(self) -> list[Place]:
        return [place for place, breaker in self._breakers.copy().items() if breaker.open]

    @property
    def awaited(self) -> bool:
        """Whether something that was passed by may go at a time that is known, or as soon as another worker gives a slot back."""
        return self._slots.waits or any(at != math.inf for at in self._passed_by.values())


def _call(question: Question) -> CallSpec:
    call = question.spec.call
    assert call is not None  # noqa: S101  # only reactions with a call fly
    return call


def places_of(flight: Flight) -> tuple[Place, Place]:
    place = place_of(flight)
    return place, whole(place[0])


def _take_off(counted: Counter[Place], flight: Flight) -> None:
    for place in places_of(flight):
        counted[place] -= 1
        if not counted[place]:
            del counted[place]


def _less(cap: tuple[int, float], room: int, at: float) -> tuple[int, float]:
    return (room, at or math.inf) if room < cap[0] else cap


def _within(
    caps: Mapping[Place, tuple[int, float]], outside: OutsideSpec, parts: Sequence[str | None]
) -> tuple[list[bool], dict[Place, int]]:
    """Which of these are within the room of their part and of the whole, the first ones first; and what is left of each."""
    left = {place: room for place, (room, _) in caps.items()}
    chosen = []
    for part in parts:
        place = (outside, part)
        may = left[place] > 0 and left[whole(outside)] > 0
        chosen.append(may)
        if may:
            left[place] -= 1
            left[whole(outside)] -= 1
    return chosen, left


def _counted(outside: OutsideSpec, parts: Iterable[str | None], chosen: Iterable[bool]) -> Counter[Place]:
    """How many of those chosen are of each part, and of the whole."""
    some = [part for part, may in zip(parts, chosen, strict=True) if may]
    return Counter([*((outside, part) for part in some), *[whole(outside)] * len(some)])
