"""The calls of one worker that are begun: which lanes are asked for how many, in one transaction. Sends nothing: see traffic.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from groundstate.engine import aside, begin, due, line, trouble, unfit
from groundstate.engine.attempts import Identity
from groundstate.engine.flight import Flight, part_of
from groundstate.engine.groups import Round
from groundstate.engine.lane import Lane
from groundstate.engine.limits import NOTHING_FREED, Freed, Limits
from groundstate.engine.plain import Feed
from groundstate.engine.shift import LONG, Shift, moved_on
from groundstate.engine.transaction import Transaction
from groundstate.rules.attempt import Attempt
from groundstate.rules.careful import TOGETHER

FRESH_FEW = 50  # hinted rows of a lane with parts or lines; more are looked for by their groups, so that one part's do not stand before all
PAGES_MOST = 4  # so many pages are looked at in one transaction


class LaneTrouble(Exception):
    """Beginning calls for one reaction failed, by no trouble of the database's own: it waits, and the others go on."""

    def __init__(self, lane: Lane) -> None:
        super().__init__(lane.name)
        self.lane = lane


class Departures:
    """Of one worker. flying: its calls in the air. in_air: the attempts that are not to be looked at now."""

    def __init__(
        self, shift: Shift, limits: Limits, flying: Mapping[tuple[int, bool], Flight], in_air: Callable[[], set[Identity]]
    ) -> None:
        self._shift = shift
        self._limits = limits
        self._flying = flying
        self._in_air = in_air

    def room(self, lane: Lane, now: float, freed: Freed = NOTHING_FREED) -> int:
        """How many calls of this reaction may be begun now."""
        if not self._shift.life.sound:
            return 0
        return self._among_few(self._limits.room(lane, now, freed))

    def begin_all(self, tx: Transaction, lanes: Sequence[Lane], clock: tuple[float, float]) -> begin.Begun:
        """Raises LaneTrouble."""
        total = begin.Begun()
        for lane in lanes:
            if not lane.on:
                continue
            alone = self._shift.alone
            room = self._among_few(self._limits.room_in(lane)) - (total.new_calls if self._shift.life.care.careful else 0)
            if room <= 0 and (not lane.due or lane.seen_full) and alone is None:
                continue
            try:
                if alone is None:
                    self._begin_lane(tx, lane, max(room, 0), clock, total)
                else:
                    self._begin_alone(tx, lane, alone, clock, total)
            except Exception as error:
                if trouble.transient(error) and not trouble.cut(error):
                    raise
                raise LaneTrouble(lane) from error
            lane.trouble = 0
            unfit.over(lane)
        self._limits.write()
        if total.new_calls:
            self._shift.life.count_begins(tx, total.new_calls)
        return total

    def _among_few(self, room: int) -> int:
        """In careful mode no more than may be in the air together."""
        if not self._shift.life.care.careful:
            return room
        return 0 if self._shift.alone is not None or self.suspect_in_air else min(room, TOGETHER - self.calls_in_air)

    @property
    def calls_in_air(self) -> int:
        """Without those that were given up: what hangs may hang for ever."""
        return sum(1 for one in self._flying.values() if not (one.is_find or one.given_up))

    @property
    def suspect_in_air(self) -> bool:
        """Careful mode: whether one is that is to be alone."""
        return any(one.together == 1 and not (one.is_find or one.given_up) for one in self._flying.values())

    # ---- one lane --------------------------------------------------------------------------------------------------------------
    def _begin_lane(self, tx: Transaction, lane: Lane, room: int, clock: tuple[float, float], total: begin.Begun) -> None:
        """Attempts that are due first, then fresh rows, then the backlog."""
        if lane.question.spec.sends is not None or lane.aside:
            room = min(room, lane.batch)
        full = len(total.flights) + room
        if lane.due:
            self._due(tx, lane, room, clock, total)
        if lane.groups is not None and len(lane.fresh) > FRESH_FEW:
            lane.fresh.clear()
            lane.sweep()
        if lane.fresh and len(total.flights) < full:
            keys = lane.take_fresh(full - len(total.flights))
            begun = self._begin(tx, lane, Feed(keys=keys, limit=len(keys)), clock, total)
            if lane.groups is None:
                lane.fresh.update(dict.fromkeys(begun.denied))
        if lane.passes and len(total.flights) < full:
            self._backlog(tx, lane, full - len(total.flights), clock, total)

    def _begin_alone(self, tx: Transaction, lane: Lane, one: Attempt, clock: tuple[float, float], total: begin.Begun) -> None:
        if self._limits.room_in(lane) > 0:
            gate = self._gate(lane)
            hold_s = self._shift.hold_s
            begun = begin.consider(self._shift.life, tx, lane.question, [one.identity], clock, room=1, gate=gate, alone=True, hold_s=hold_s)
            self._add(total, begun)

    def _due(self, tx: Transaction, lane: Lane, room: int, clock: tuple[float, float], total: begin.Begun) -> None:
        # Without a free slot too: what is only held, let go or given up needs none. Once, and the pass itself waits for a slot.
        place = lane.due_cursor
        identities = due.identities(self._shift, tx, lane, min(room or due.AT_ONCE, due.AT_ONCE), self._in_air())
        if not room:
            lane.due, lane.due_cursor, lane.seen_full = True, place, True
        if identities:
            gate = self._gate(lane)
            hold_s = self._shift.hold_s
            begun = begin.consider(self._shift.life, tx, lane.question, identities, clock, room=room, gate=gate, hold_s=hold_s)
            self._add(total, begun)
            if begun.let_go:
                lane.due, lane.due_cursor, lane.seen_full = True, None, False

    def _backlog(self, tx: Transaction, lane: Lane, room: int, clock: tuple[float, float], total: begin.Begun) -> None:
        if lane.groups is not None:
            self._by_groups(tx, lane, lane.groups, room, clock, total)
            return
        feed = Feed(cursor=lane.cursor, limit=room, crowded=lane.crowded)
        begun = self._begin(tx, lane, feed, clock, total)
        if not begun.denied:  # else the pass goes on where it was, once there is a slot or a token again
            moved_on(lane, begun.claimed.cursor, begun.claimed.read, room, len(begun.claimed.taken))

    def _by_groups(self, tx: Transaction, lane: Lane, groups: Round, room: int, clock: tuple[float, float], total: begin.Begun) -> None:
        """Pages of the pass, a few rows of many values each, until there is no room, or nothing more that may go."""
        now, lines, full = time.monotonic(), self._lines_of(lane), len(total.flights) + room

        def may_go(value: str) -> bool:
            return value not in lines and self._limits.may_go(lane, value, now)

        def left_of(values: Sequence[str]) -> Mapping[str, int]:
            return self._limits.left_of(lane, values)

        for _ in range(PAGES_MOST):
            left = full - len(total.flights)
            if left <= 0 or not lane.backlog:
                return
            with aside.limited(self._shift, lane, tx.connection):
                page = groups.page(tx.connection, lane.cursor, left, may_go, left_of)
            lane.cursor, lane.probed = page.cursor, True
            lane.long |= len(page.keys) >= left >= LONG
            keys = line.free(tx, lane.question, page.keys)
            begun = self._begin(tx, lane, Feed(keys=keys, limit=left), clock, total) if keys else begin.Begun()
            lines |= {flight.line for flight in begun.flights if flight.line is not None}
            groups.went(took=bool(begun.flights or begun.changed), busy=begun.claimed.busy)
            if page.cursor is None:
                lane.swept(again=groups.over())

    def _lines_of(self, lane: Lane) -> set[str]:
        """Values of which a call of ours is in the air, where there is one at a time."""
        return {one.line for one in self._flying.values() if one.line is not None and one.question is lane.question}

    def _begin(self, tx: Transaction, lane: Lane, feed: Feed, clock: tuple[float, float], total: begin.Begun) -> begin.Begun:
        started = time.monotonic()
        try:
            begun = begin.begin(self._shift.life, tx, lane.question, replace(feed, claim_s=aside.claim_s(lane)), clock, self._gate(lane))
        except Exception as error:
            if feed.keys and trouble.cut(error):
                aside.cut_by_keys(lane, feed.keys, time.monotonic() - started)
            raise
        self._add(total, begun)
        took_s = time.monotonic() - started if lane.aside else begun.sends_s
        if took_s:
            lane.took(begun.new_calls, took_s, took_s, self._shift.hold_s)
        return begun

    def _gate(self, lane: Lane) -> begin.Gate:
        return lambda records: self._limits.admit(lane, [part_of(lane.question, record) for record in records])

    def _add(self, total: begin.Begun, begun: begin.Begun) -> None:
        self._shift.took += begun.new_calls + begun.changed
        total.add(begun)
