"""Begins the calls of one worker in a transaction: decides how many calls each work queue may begin. call_turn.py sends the calls after the
commit.
"""

from __future__ import annotations

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
from groundstate.engine.watch.waiting_rows import LONG
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.attempt import Attempt
from groundstate.rules.poison_suspects import TOGETHER

# A work queue with `per` or `in_order` begins calls directly for up to this many hinted rows. If there are more, the queue drops the hints
# and scans its groups (rows with equal `per` or `in_order`), so that many rows of one group do not delay others.
FRESH_FEW = 50
# seconds after which records that were held back are read again. They are held back so that a record that was not tried yet can probe the
# service.
HELD_BACK_S = 1.0
PAGES_MOST = 4  # the most pages of the group scan that one transaction reads


class QueueTrouble(Exception):
    """Raised if the calls of one reaction cannot be begun, and no transient database error is the cause. Then that reaction waits, and the
    others go on.
    """

    def __init__(self, queue: WorkQueue) -> None:
        super().__init__(queue.name)
        self.queue = queue


class Dispatch:
    """Begins the calls of one worker, in the transaction of a call turn.

    flying: the calls and lookups in flight, by (call number, whether it is a lookup).
    in_air: returns the attempts that must not be processed now, since their call is not over or its result is not applied.
    """

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
        # for each queue, the number of its latest probe (a test call after a pause)
        self._probed: dict[WorkQueue, int] = {}
        self._probes = 0

    def room_for_calls(self, queue: WorkQueue, now: float, freed: Freed = NOTHING_FREED) -> int:
        """Return how many calls of this reaction may be begun now."""
        if not self._worker_state.incarnation.sound:
            return 0
        return self._limit_in_careful_mode(self._limits.room_by_memory(queue, now, freed))

    def begin_calls(self, tx: Transaction, queues: Sequence[WorkQueue], clock: tuple[float, float]) -> begin.Begun:
        """Begin calls for these work queues, and return one Begun for all of them. Raises QueueTrouble. `clock` is a result of
        `read_clocks`.
        """
        total = begin.Begun()
        for queue in self._sorted_by_latest_probe(queues):
            if not queue.is_enabled:
                continue
            alone = self._worker_state.alone
            room = self._limit_in_careful_mode(self._limits.room_in_transaction(queue)) - (
                total.new_calls if self._worker_state.incarnation.care.careful else 0
            )
            if room <= 0 and (not queue.due_work.has_due_attempts or queue.due_work.seen_full) and alone is None:
                continue
            before = total.new_calls
            try:
                if alone is None:
                    self._begin_from_queue(tx, queue, max(room, 0), clock, total)
                else:
                    self._begin_suspected_attempt(tx, queue, alone, clock, total)
            except Exception as error:
                if db_errors.is_no_fault_of_record(error) and not db_errors.is_cancelled_statement(error):
                    raise
                raise QueueTrouble(queue) from error
            queue.postponement.note_success()
            if total.new_calls > before:  # a record of the queue was loaded, so no column is missing any more
                missing_columns.clear_lack(queue)
        self._limits.write_tokens()
        if total.new_calls:
            self._worker_state.incarnation.count_begins(tx, total.new_calls)
        return total

    def _sorted_by_latest_probe(self, queues: Sequence[WorkQueue]) -> list[WorkQueue]:
        """Return the queues, sorted by the number of their latest probe, the lowest first. Queues whose service is not probed, or that have
        made no probe yet, come first. So the queues of probed services take turns in making a probe.
        """
        return sorted(queues, key=lambda queue: self._probed.get(queue, 0) if self._limits.is_probed(queue) else 0)

    def _limit_in_careful_mode(self, room: int) -> int:
        """Return `room`, a number of calls. In careful mode it is limited: to 0 while a suspected attempt runs, and otherwise to the number
        of calls that may be in flight together.
        """
        if not self._worker_state.incarnation.care.careful:
            return room
        return (
            0 if self._worker_state.alone is not None or self.is_suspect_in_flight else min(room, TOGETHER - self.number_of_calls_in_flight)
        )

    @property
    def number_of_calls_in_flight(self) -> int:
        """Return the number of calls in flight. Calls that timed out, which may hang for ever, are not counted."""
        return sum(1 for one in self._flying.values() if not (one.is_lookup or one.given_up))

    @property
    def is_suspect_in_flight(self) -> bool:
        """Return whether the call of a suspected attempt is in flight. In careful mode, no other call may run beside it, since the attempt
        is suspected of killing workers.
        """
        return any(one.together == 1 and not (one.is_lookup or one.given_up) for one in self._flying.values())

    # ---- one work queue --------------------------------------------------------------------------------------------------------
    def _begin_from_queue(self, tx: Transaction, queue: WorkQueue, room: int, clock: tuple[float, float], total: begin.Begun) -> None:
        """Begin calls for attempts that are due, then for hinted rows, then for the backlog.

        While the service is probed after a pause, some probes are kept for records that were not tried before: see
        `Limits.must_hold_back_retries`.
        """
        if queue.query.spec.prepare is not None or queue.rows.aside:
            room = min(room, queue.rows.batch)
        full = len(total.in_flights) + room
        if queue.due_work.has_due_attempts:
            self._process_due_attempts(tx, queue, room, clock, total)
        if queue.rows.groups is not None and len(queue.rows.fresh) > FRESH_FEW:
            queue.rows.drop_fresh_keys()
        if queue.rows.fresh and len(total.in_flights) < full:
            keys = queue.rows.take_new_keys(full - len(total.in_flights))
            begun = self._begin_from_feed(tx, queue, Feed(keys=keys, limit=len(keys)), clock, total)
            if queue.rows.groups is None:
                queue.rows.add_fresh_keys(begun.denied)
            if begun.denied_again:
                queue.due_work.request_attempts()
        if queue.has_pass and len(total.in_flights) < full:
            self._begin_from_backlog(tx, queue, full - len(total.in_flights), clock, total)

    def _begin_suspected_attempt(
        self, tx: Transaction, queue: WorkQueue, one: Attempt, clock: tuple[float, float], total: begin.Begun
    ) -> None:
        if self._limits.room_in_transaction(queue) > 0:
            gate = self._gate_by_limits(queue)
            hold_s = self._worker_state.batch_locks.target_hold_s
            begun = begin.process_due_attempts(
                self._worker_state.incarnation, tx, queue.query, [one.identity], clock, room=1, gate=gate, alone=True, hold_s=hold_s
            )
            self._add_to_total(queue, total, begun)

    def _process_due_attempts(self, tx: Transaction, queue: WorkQueue, room: int, clock: tuple[float, float], total: begin.Begun) -> None:
        # Due attempts are processed even without a free slot, since some need no call: they are held, deleted or given up. Without a slot
        # this is done once; then the cursor is set back, and the queue waits for a slot.
        place = queue.due_work.cursor
        identities = due_attempts.read_due_identities(
            self._worker_state, tx, queue, min(room or due_attempts.AT_ONCE, due_attempts.AT_ONCE), self._in_air()
        )
        if not room:
            queue.due_work.wait_for_slot(place)
        if identities:
            gate = self._gate_by_limits(queue)
            hold_s = self._worker_state.batch_locks.target_hold_s
            begun = begin.process_due_attempts(
                self._worker_state.incarnation, tx, queue.query, identities, clock, room=room, gate=gate, hold_s=hold_s
            )
            self._add_to_total(queue, total, begun)
            if begun.let_go or (self._limits.held_back and not queue.due_work.has_due_attempts):
                queue.due_work.request_attempts_from_start()
            elif self._limits.held_back:
                self._limits.skip_queue_until(
                    queue, self._worker_state.clock.monotonic() + HELD_BACK_S
                )  # the records that were held back are read after the queue's other due attempts

    def _begin_from_backlog(self, tx: Transaction, queue: WorkQueue, room: int, clock: tuple[float, float], total: begin.Begun) -> None:
        if queue.rows.groups is not None:
            self._begin_from_groups(tx, queue, queue.rows.groups, room, clock, total)
            return
        # A probe begins one call. With `crowded`, SQL leaves out the records that were tried before, so that a probe need not read past
        # such records.
        feed = Feed(cursor=queue.rows.cursor, limit=room, crowded=queue.rows.crowded or self._limits.is_probed(queue))
        begun = self._begin_from_feed(tx, queue, feed, clock, total)
        if not begun.denied:  # if a call was denied, the cursor stays, and reading goes on from there once a slot or token is free
            claimed = begun.claimed
            queue.rows.advance(claimed.cursor, read=claimed.read, limit=room, taken=len(claimed.records))
        if begun.denied_again:
            queue.due_work.request_attempts()

    def _begin_from_groups(
        self, tx: Transaction, queue: WorkQueue, groups: GroupPasses, room: int, clock: tuple[float, float], total: begin.Begun
    ) -> None:
        """Begin calls for rows from pages of the group scan. Each page has a few rows for each of many values of `per` or `in_order`. Stop
        when there is no room for another call, or no row for which a call may be begun.
        """
        now, lines, full = self._worker_state.clock.monotonic(), self._in_order_values_in_flight(queue), len(total.in_flights) + room

        def may_begin_for(value: str) -> bool:
            return value not in lines and self._limits.may_begin_for_tenant(queue, value, now)

        def room_by_value(values: Sequence[str]) -> Mapping[str, int]:
            return self._limits.room_by_tenant(queue, values)

        for _ in range(PAGES_MOST):
            left = full - len(total.in_flights)
            if left <= 0 or not queue.rows.backlog:
                return
            with slow_conditions.limit_query_time(self._worker_state, queue, tx.connection):
                page = groups.next_page(tx.connection, queue.rows.cursor, left, may_begin_for, room_by_value)
            queue.rows.move_cursor(page.cursor)
            queue.rows.note_rows_found()
            if len(page.keys) >= left >= LONG:
                queue.rows.note_long_backlog()
            keys = in_order.without_waiting_records(tx, queue.query, page.keys)
            begun = self._begin_from_feed(tx, queue, Feed(keys=keys, limit=left), clock, total) if keys else begin.Begun()
            lines |= {in_flight.line for in_flight in begun.in_flights if in_flight.line is not None}
            groups.note_page_result(took=bool(begun.in_flights or begun.changed), busy=begun.claimed.busy)
            if page.cursor is None:
                queue.rows.end_pass(again=groups.end_pass())

    def _in_order_values_in_flight(self, queue: WorkQueue) -> set[str]:
        """Return the `in_order` values for which this worker has a call in flight. For each value, one call may be in flight at a time."""
        return {one.line for one in self._flying.values() if one.line is not None and one.query is queue.query}

    def _begin_from_feed(
        self, tx: Transaction, queue: WorkQueue, feed: Feed, clock: tuple[float, float], total: begin.Begun
    ) -> begin.Begun:
        started = self._worker_state.clock.monotonic()
        try:
            begun = begin.begin_calls(
                self._worker_state.incarnation,
                tx,
                queue.query,
                replace(feed, claim_s=slow_conditions.claim_limit_s(queue)),
                clock,
                self._gate_by_limits(queue),
            )
        except Exception as error:
            if feed.keys and db_errors.is_cancelled_statement(error):
                slow_conditions.take_fewer_keys(queue, feed.keys, self._worker_state.clock.monotonic() - started)
            raise
        self._add_to_total(queue, total, begun)
        took_s = self._worker_state.clock.monotonic() - started if queue.rows.aside else begun.prepare_s
        if took_s:
            queue.rows.adapt_batch_size(begun.new_calls, took_s, took_s, self._worker_state.batch_locks.target_hold_s)
        return begun

    def _gate_by_limits(self, queue: WorkQueue) -> begin.Gate:
        def admit_records(records: Sequence[Any], again: Sequence[bool]) -> Sequence[bool]:
            return self._limits.admit_calls(queue, [tenant_of(queue.query, record) for record in records], again)

        return admit_records

    def _add_to_total(self, queue: WorkQueue, total: begin.Begun, begun: begin.Begun) -> None:
        if begun.in_flights and self._limits.is_probed(queue):
            self._probes += 1
            self._probed[queue] = self._probes
        self._worker_state.progress.count_done(begun.new_calls + begun.changed)
        total.add(begun)
