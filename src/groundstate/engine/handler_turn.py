"""Run the DB-only reactions of one worker in turn: fresh rows before the backlog, and no batch so long that other reactions wait."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from sqlalchemy.exc import DBAPIError

from groundstate.engine.call import begin
from groundstate.engine.handle import close_without_call, poison_guard, run_batch
from groundstate.engine.handle.run_batch import Feed
from groundstate.engine.sql import db_errors, lock_waits
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.db_errors import Illegible
from groundstate.engine.sql.group_scan import GroupPasses
from groundstate.engine.watch import due_attempts, locked_tables, missing_columns, raising_conditions, reaction_pause, slow_conditions
from groundstate.engine.watch.backlog_sharing import BacklogSharing
from groundstate.engine.watch.trace_hooks import Ran
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState, moved_on, postpone
from groundstate.rules.attempt import Attempt
from groundstate.rules.poison_suspects import TOGETHER

log = logging.getLogger("groundstate")


class Batches:
    """The DB-only batches of one worker. Only the worker's own thread calls it."""

    def __init__(self, worker_state: WorkerState, sharing: BacklogSharing) -> None:
        self._worker_state = worker_state
        self._sharing = sharing
        self._last: WorkQueue | None = None  # the queue of the latest batch

    def can_go_on(self, queue: WorkQueue, now: float) -> bool:
        return queue.failing.room(1, 0, now) > 0

    def turn(self) -> None:
        """Run a batch of fresh rows for each reaction, then the attempts that are due, then one backlog batch for one reaction."""
        queues = [queue for queue in self._worker_state.parts if queue.query.spec.call is None and queue.on]
        now = time.monotonic()
        if self._worker_state.incarnation.rings:
            self._look_at_slowed(now)
        for queue in sorted(queues, key=lambda queue: queue is self._last):  # the queue of the latest batch comes last
            if queue.fresh and queue.not_before <= now and (room := queue.failing.room(queue.batch, 0, now)) > 0:
                self._batch(queue, Feed(keys=queue.take_new_keys(min(room, queue.batch))))
        for queue in queues:
            if queue.due and queue.not_before <= now:
                self._look_at_due(queue)
        waiting = [queue for queue in queues if queue.passes and queue.not_before <= now and self.can_go_on(queue, now)]
        if waiting:
            queue = self._worker_state.in_turn(waiting)[0]
            limit = min(queue.failing.room(queue.batch, 0, now), queue.batch)
            if queue.groups is not None:
                self._by_groups(queue, queue.groups, limit)
                return
            done = self._batch(queue, Feed(cursor=queue.cursor, limit=limit, crowded=queue.crowded))
            if done is not None:
                if done.let_go:
                    queue.long = True  # the pass goes on at the same cursor, since records that are done do not match again
                else:
                    moved_on(queue, done.cursor, done.read, limit, done.taken)
                self._sharing.did(done.taken, now)

    def carry_out_alone(self, one: Attempt) -> None:
        """Carry out one suspected record in careful mode, by its reaction's handler or its expired handler."""
        queue = self._worker_state.queue(one.reaction)
        key = queue.query.key_of_text(one.record)
        if key is None:
            return
        feed = Feed(keys=[key], limit=1, alone=True)
        if queue.query.spec.call is None:
            self._batch(queue, feed)
        if queue.late is not None:
            self._batch(queue.late, feed)

    def _look_at_slowed(self, now: float) -> None:
        """Queue the records of reaction cycles whose pause is over. If their reaction makes a call, the call turns begin them."""
        by_question = {queue.query: queue for queue in self._worker_state.parts if queue.on}
        for query, key in self._worker_state.incarnation.rings.ready(now):
            if query in by_question:
                by_question[query].fresh[key] = None

    def _by_groups(self, queue: WorkQueue, groups: GroupPasses, limit: int) -> None:
        """Run one page of a backlog pass by groups: the first records of many values of the `in_order` or `per` column. The records behind
        them come with the next pass.
        """
        try:
            with self._worker_state.database.reading() as connection, slow_conditions.limited(self._worker_state, queue, connection):
                page = groups.page(connection, queue.cursor, limit)
        except Exception as error:
            if not (isinstance(error, DBAPIError) or db_errors.unmade(error) or db_errors.unloadable(error)):
                raise
            if self._waits_by_itself(queue, error):
                return
            if db_errors.transient(error):
                raise
            postpone(queue)
            raising_conditions.say_failed(queue, error)
            return
        queue.cursor = page.cursor
        if page.cursor is None:
            queue.swept(again=groups.over())
        if page.keys:
            self._batch(queue, Feed(keys=page.keys))

    def _look_at_due(self, queue: WorkQueue) -> None:
        try:
            self._due(queue)
        except Exception as error:
            if self._waits_by_itself(queue, error):
                return
            if db_errors.transient(error):
                raise
            postpone(queue)
            log.exception(
                "what is due of %s could not be looked at, tried again", queue.name, extra={"event": "due_failed", "reaction": queue.name}
            )

    def _due(self, queue: WorkQueue) -> None:
        """Take failed attempts whose retry time has come: delete those whose condition no longer holds, and carry out the others again."""
        with self._worker_state.incarnation.transaction() as tx:
            most = min(queue.batch, TOGETHER if self._worker_state.incarnation.care.careful else due_attempts.AT_ONCE)
            identities = due_attempts.identities(self._worker_state, tx, queue, most, ())
            if identities:
                self._worker_state.took += close_without_call.let_go(self._worker_state.incarnation, tx, queue.query, identities)
        if identities:
            keys = [key for identity in identities if (key := queue.query.key_of_text(identity[2])) is not None]
            self._batch(queue, Feed(keys=keys))
            if queue.late is not None:
                self._batch(queue.late, Feed(keys=keys))

    def _batch(self, queue: WorkQueue, feed: Feed) -> run_batch.Done | None:
        told, self._last = self._worker_state.watched.batch(queue.query.spec), queue
        started = time.monotonic()
        self._worker_state.incarnation.at_work = queue.name
        try:
            done = self._carried_out(queue, replace(feed, hold_s=self._worker_state.hold_s, claim_s=slow_conditions.claim_s(queue)))
        except Exception as error:
            told(Ran(error=error))
            passing = db_errors.transient(error)
            if feed.keys and db_errors.statement_was_cancelled(error):
                slow_conditions.cut_by_keys(queue, feed.keys, time.monotonic() - started)
            elif feed.keys and passing:
                queue.fresh.update(dict.fromkeys(feed.keys))
            elif feed.keys:
                queue.sweep()  # one of these keys may be wrong, so the backlog pass finds the work by its condition instead
            if self._waits_by_itself(queue, error):
                return None
            postpone(queue)
            if isinstance(error, Illegible) or (passing and self._stops_all_queues(error)):
                raise
            if passing:
                log.warning(
                    "%s waits for the database, and is tried again: %s",
                    queue.name,
                    db_errors.error_in_one_line(error),
                    extra={"event": "reaction_waits", "reaction": queue.name},
                )
            else:
                log.exception(
                    "%s could not be carried out, tried again", queue.name, extra={"event": "batch_failed", "reaction": queue.name}
                )
            return None
        finally:
            self._worker_state.incarnation.at_work = None
        told(Ran(done.done, done.failed))
        if feed.keys is not None and done.let_go:
            queue.fresh = dict.fromkeys(done.let_go) | queue.fresh
        took = time.monotonic() - started
        self._after(queue, done, took)
        self._worker_state.stay_out(took)
        return done

    def _waits_by_itself(self, queue: WorkQueue, error: BaseException) -> bool:
        """Return whether an error concerns this work queue alone, so that only it waits: its condition takes long or raises for some rows,
        a table of it is locked, or its records do not fit the database. A row that a handler waited for in vain is not such a case.
        """
        if slow_conditions.move_aside_if_cut(queue, error):
            return True
        if isinstance(error, DBAPIError) and db_errors.locked(error):
            return locked_tables.are_barred(self._worker_state, [queue])
        return missing_columns.wait_if_schema_misfit(self._worker_state, queue, error) or raising_conditions.search_if_condition_raised(
            self._worker_state, queue, error
        )

    def _stops_all_queues(self, error: BaseException) -> bool:
        """Return whether an error stops every work queue: an embedded store has one lock for all of it, and all queues need groundstate's
        tables.
        """
        return self._worker_state.embedded or (
            db_errors.locked(error) and lock_waits.who_locks_ours(self._worker_state.database) is not None
        )

    def _carried_out(self, queue: WorkQueue, feed: Feed) -> run_batch.Done:
        incarnation = self._worker_state.incarnation
        if queue.query.answers_late and queue.name in incarnation.suspects:
            called = self._worker_state.queue(queue.name).query
            if called.spec.call is not None:
                return self._put_late_records_in_doubt(queue.query, called, feed)
        if not incarnation.care.careful:
            return run_batch.carry_out(incarnation, queue.query, feed)
        before, self._worker_state.left_begun = self._worker_state.left_begun, True  # stays True if the batch raises
        done = poison_guard.carry_out(incarnation, queue.query, feed)
        self._worker_state.left_begun = before or done.left_begun
        return done

    def _put_late_records_in_doubt(self, late: ConditionQuery, called: ConditionQuery, feed: Feed) -> run_batch.Done:
        """Put records in doubt that may have been called in the time lost by a restore, before they count as expired. Each gets an attempt
        in doubt, and no handler runs.
        """
        with self._worker_state.incarnation.transaction() as tx:
            found = begin.claim_for_doubts(tx, late, feed)
            count = begin.doubt(self._worker_state.incarnation, tx, called, [*found.taken, *found.unreadable])
            count += close_without_call.set_retry_time_to_now(tx, [one.attempt for one in found.taken if one.attempt is not None])
        if count:
            self._worker_state.took += count
            self._worker_state.look_for_due()
        return run_batch.Done(read=found.read, cursor=found.cursor, busy=found.busy, taken=len(found.taken))

    def _after(self, queue: WorkQueue, done: run_batch.Done, took: float) -> None:
        queue.trouble = 0
        if done.taken:
            missing_columns.over(queue)
            queue.took(done.taken, done.rows_s, done.rows_s if done.again else took, self._worker_state.hold_s, cut=done.cut)
        reaction_pause.heard(queue, self._worker_state.incarnation.lines, done.done, done.wrong, time.monotonic())
        if done.done and queue.groups is not None:
            queue.sweep()  # the next records of the same groups
        if done.done and queue.query.answers_late:
            self._worker_state.tally.expired[queue.name] += done.done
            log.info(
                "%s: %d expired, the last of them due at %s",
                queue.name,
                done.done,
                done.last_due,
                extra={"event": "expired", "reaction": queue.name, "count": done.done},
            )
        if done.next_at is not None:
            self._worker_state.look_for_due()
        self._worker_state.took += done.done + done.failed
        if done.done or done.failed:
            self._worker_state.took_last = queue.name
        tally = self._worker_state.tally
        tally.batches += 1
        if not queue.query.answers_late:
            tally.done[queue.name] += done.done
        tally.failed[queue.name] += done.failed
