"""Begins the calls of one worker in a transaction: decides which work queues may begin how many. call_turn.py sends them out after the
commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from groundstate.engine.call import begin
from groundstate.engine.call.limiter import NOTHING_FREED, Freed, Limits
from groundstate.engine.handle import in_order
from groundstate.engine.handle.run_batch import Feed
from groundstate.engine.rows.attempts import Identity
from groundstate.engine.rows.in_flight import InFlightCall, tenant_of
from groundstate.engine.sql import db_errors
from groundstate.engine.sql.group_scan import GroupPasses
from groundstate.engine.sql.transaction import Transaction
from groundstate.engine.watch import due_attempts, missing_columns, slow_conditions
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import LONG, WorkerState, moved_on
from groundstate.rules.attempt import Attempt
from groundstate.rules.poison_suspects import TOGETHER

# Hinted rows that a work queue with `per` or `in_order` begins directly. Where there are more, it drops the hints and scans its groups, so
# that the many rows of one group do not delay all others.
FRESH_FEW = 50
HELD_BACK_S = 1.0  # seconds after which records are read again that were held back for the probe of another record
PAGES_MOST = 4  # pages of the group scan that one transaction reads at most


class QueueTrouble(Exception):
    """Raised where calls of one reaction cannot be begun and the cause is no transient database error: that reaction waits, and the others
    go on.
    """

    def __init__(self, queue: WorkQueue) -> None:
        super().__init__(queue.name)
        self.queue = queue


class Dispatch:
    """Begins the calls of one worker. flying: the calls in flight. in_air: returns the attempts that must not be considered now."""

    def __init__(
        self,
        worker_state: WorkerState,
        limits: Limits,
        flying: Mapping[tuple[int, bool], InFlightCall],
        in_air: Callable[[], set[Identity]],
    ) -> None:
        self._worker_state = worker_state
        self._limits = limits
        self._flying = flying
        self._in_air = in_air
        self._probed: dict[WorkQueue, int] = {}  # which probe of its service was last one of its records, by their number
        self._probes = 0

    def room(self, queue: WorkQueue, now: float, freed: Freed = NOTHING_FREED) -> int:
        """Return how many calls of this reaction may be begun now."""
        if not self._worker_state.incarnation.sound:
            return 0
        return self._among_few(self._limits.room(queue, now, freed))

    def begin_all(self, tx: Transaction, queues: Sequence[WorkQueue], clock: tuple[float, float]) -> begin.Begun:
        """Begin calls for these work queues and return what was begun. Raises QueueTrouble."""
        total = begin.Begun()
        for queue in self._by_probes(queues):
            if not queue.on:
                continue
            alone = self._worker_state.alone
            room = self._among_few(self._limits.room_in(queue)) - (total.new_calls if self._worker_state.incarnation.care.careful else 0)
            if room <= 0 and (not queue.due or queue.seen_full) and alone is None:
                continue
            before = total.new_calls
            try:
                if alone is None:
                    self._begin_from_queue(tx, queue, max(room, 0), clock, total)
                else:
                    self._begin_alone(tx, queue, alone, clock, total)
            except Exception as error:
                if db_errors.transient(error) and not db_errors.statement_was_cancelled(error):
                    raise
                raise QueueTrouble(queue) from error
            queue.trouble = 0
            if total.new_calls > before:  # else no record was loaded, and it may still lack what it lacked
                missing_columns.over(queue)
        self._limits.write()
        if total.new_calls:
            self._worker_state.incarnation.count_begins(tx, total.new_calls)
        return total

    def _by_probes(self, queues: Sequence[WorkQueue]) -> list[WorkQueue]:
        """Those whose outside is probed in the order in which they had a probe, the longest ago first: each is to have its turn."""
        return sorted(queues, key=lambda queue: self._probed.get(queue, 0) if self._limits.probes(queue) else 0)

    def _among_few(self, room: int) -> int:
        """Return the room that is left; in careful mode no more than may be in flight together, and none beside a suspected attempt."""
        if not self._worker_state.incarnation.care.careful:
            return room
        return 0 if self._worker_state.alone is not None or self.suspect_in_air else min(room, TOGETHER - self.calls_in_air)

    @property
    def calls_in_air(self) -> int:
        """Return the number of calls in flight, without those that were given up: a call that hangs may hang for ever."""
        return sum(1 for one in self._flying.values() if not (one.is_lookup or one.given_up))

    @property
    def suspect_in_air(self) -> bool:
        """Return whether a call is in flight that must be the only one (careful mode)."""
        return any(one.together == 1 and not (one.is_lookup or one.given_up) for one in self._flying.values())

    # ---- one work queue --------------------------------------------------------------------------------------------------------
    def _begin_from_queue(self, tx: Transaction, queue: WorkQueue, room: int, clock: tuple[float, float], total: begin.Begun) -> None:
        """Begin calls for attempts that are due, then for hinted rows, then for the backlog.

        While the service is probed, records that were tried before come last every second time: see `Limits.holds_back`.
        """
        if queue.query.spec.prepare is not None or queue.aside:
            room = min(room, queue.batch)
        full = len(total.in_flights) + room
        if queue.due:
            self._due(tx, queue, room, clock, total)
        if queue.groups is not None and len(queue.fresh) > FRESH_FEW:
            queue.fresh.clear()
            queue.sweep()
        if queue.fresh and len(total.in_flights) < full:
            keys = queue.take_new_keys(full - len(total.in_flights))
            begun = self._begin(tx, queue, Feed(keys=keys, limit=len(keys)), clock, total)
            if queue.groups is None:
                queue.fresh.update(dict.fromkeys(begun.denied))
            if begun.denied_again:
                queue.due, queue.seen_full = True, False
        if queue.passes and len(total.in_flights) < full:
            self._backlog(tx, queue, full - len(total.in_flights), clock, total)

    def _begin_alone(self, tx: Transaction, queue: WorkQueue, one: Attempt, clock: tuple[float, float], total: begin.Begun) -> None:
        if self._limits.room_in(queue) > 0:
            gate = self._gate(queue)
            hold_s = self._worker_state.hold_s
            begun = begin.consider(
                self._worker_state.incarnation, tx, queue.query, [one.identity], clock, room=1, gate=gate, alone=True, hold_s=hold_s
            )
            self._add(queue, total, begun)

    def _due(self, tx: Transaction, queue: WorkQueue, room: int, clock: tuple[float, float], total: begin.Begun) -> None:
        # Due attempts are considered even without a free slot, since some are only held, deleted or given up. That is done once: after
        # it the cursor goes back, and the pass waits for a slot.
        place = queue.due_cursor
        identities = due_attempts.identities(
            self._worker_state, tx, queue, min(room or due_attempts.AT_ONCE, due_attempts.AT_ONCE), self._in_air()
        )
        if not room:
            queue.due, queue.due_cursor, queue.seen_full = True, place, True
        if identities:
            gate = self._gate(queue)
            hold_s = self._worker_state.hold_s
            begun = begin.consider(self._worker_state.incarnation, tx, queue.query, identities, clock, room=room, gate=gate, hold_s=hold_s)
            self._add(queue, total, begun)
            if begun.let_go or (self._limits.held_back and not queue.due):
                queue.due, queue.due_cursor, queue.seen_full = True, None, False
            elif self._limits.held_back:
                self._limits.pass_by(queue, time.monotonic() + HELD_BACK_S)  # the others of this pass first

    def _backlog(self, tx: Transaction, queue: WorkQueue, room: int, clock: tuple[float, float], total: begin.Begun) -> None:
        if queue.groups is not None:
            self._by_groups(tx, queue, queue.groups, room, clock, total)
            return
        # Those that were tried are due, and each probe looks at one: it is not to read past a thousand of them.
        feed = Feed(cursor=queue.cursor, limit=room, crowded=queue.crowded or self._limits.probes(queue))
        begun = self._begin(tx, queue, feed, clock, total)
        if not begun.denied:  # otherwise the pass resumes at its cursor once a slot or token is free
            moved_on(queue, begun.claimed.cursor, begun.claimed.read, room, len(begun.claimed.taken))
        if begun.denied_again:
            queue.due, queue.seen_full = True, False

    def _by_groups(
        self, tx: Transaction, queue: WorkQueue, groups: GroupPasses, room: int, clock: tuple[float, float], total: begin.Begun
    ) -> None:
        """Begin calls from pages of the group scan, which have a few rows of many values each, until no room
        or no row that may go is left.
        """
        now, lines, full = time.monotonic(), self._in_order_values_in_flight(queue), len(total.in_flights) + room

        def may_go(value: str) -> bool:
            return value not in lines and self._limits.may_go(queue, value, now)

        def left_of(values: Sequence[str]) -> Mapping[str, int]:
            return self._limits.left_of(queue, values)

        for _ in range(PAGES_MOST):
            left = full - len(total.in_flights)
            if left <= 0 or not queue.backlog:
                return
            with slow_conditions.limited(self._worker_state, queue, tx.connection):
                page = groups.page(tx.connection, queue.cursor, left, may_go, left_of)
            queue.cursor, queue.probed = page.cursor, True
            queue.long |= len(page.keys) >= left >= LONG
            keys = in_order.free(tx, queue.query, page.keys)
            begun = self._begin(tx, queue, Feed(keys=keys, limit=left), clock, total) if keys else begin.Begun()
            lines |= {in_flight.line for in_flight in begun.in_flights if in_flight.line is not None}
            groups.went(took=bool(begun.in_flights or begun.changed), busy=begun.claimed.busy)
            if page.cursor is None:
                queue.swept(again=groups.over())

    def _in_order_values_in_flight(self, queue: WorkQueue) -> set[str]:
        """Return the `in_order` values for which a call of this worker is in flight, since each value may have one at a time."""
        return {one.line for one in self._flying.values() if one.line is not None and one.query is queue.query}

    def _begin(self, tx: Transaction, queue: WorkQueue, feed: Feed, clock: tuple[float, float], total: begin.Begun) -> begin.Begun:
        started = time.monotonic()
        try:
            begun = begin.begin(
                self._worker_state.incarnation,
                tx,
                queue.query,
                replace(feed, claim_s=slow_conditions.claim_s(queue)),
                clock,
                self._gate(queue),
            )
        except Exception as error:
            if feed.keys and db_errors.statement_was_cancelled(error):
                slow_conditions.cut_by_keys(queue, feed.keys, time.monotonic() - started)
            raise
        self._add(queue, total, begun)
        took_s = time.monotonic() - started if queue.aside else begun.prepare_s
        if took_s:
            queue.took(begun.new_calls, took_s, took_s, self._worker_state.hold_s)
        return begun

    def _gate(self, queue: WorkQueue) -> begin.Gate:
        def admit(records: Sequence[Any], again: Sequence[bool]) -> Sequence[bool]:
            return self._limits.admit(queue, [tenant_of(queue.query, record) for record in records], again)

        return admit

    def _add(self, queue: WorkQueue, total: begin.Begun, begun: begin.Begun) -> None:
        if begun.in_flights and self._limits.probes(queue):
            self._probes += 1
            self._probed[queue] = self._probes
        self._worker_state.took += begun.new_calls + begun.changed
        total.add(begun)
