"""Runs the handlers of one worker's reactions without a call, one reaction after the other. The batches are short, so that no reaction
waits long.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.exc import DBAPIError

from groundstate.engine.call import begin
from groundstate.engine.handle import poison_guard, run_batch
from groundstate.engine.handle.run_batch import Feed
from groundstate.engine.rows import attempts, claim
from groundstate.engine.rows.attempt_log import log_if_held
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql import db_errors, lock_waits
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.db_errors import Illegible
from groundstate.engine.sql.group_scan import GroupPasses
from groundstate.engine.sql.transaction import Transaction
from groundstate.engine.watch import due_attempts, locked_tables, missing_columns, raising_conditions, reaction_pause, slow_conditions
from groundstate.engine.watch.backlog_sharing import BacklogSharing
from groundstate.engine.watch.trace_hooks import Ran
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules import attempt as rules
from groundstate.rules import blocking
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.poison_suspects import TOGETHER

log = logging.getLogger("groundstate")


class Batches:
    """The batches of one worker for reactions without a call. Only the worker's own thread calls it."""

    def __init__(self, worker_state: WorkerState, sharing: BacklogSharing) -> None:
        self._worker_state = worker_state
        self._sharing = sharing
        self._last: WorkQueue | None = None  # the queue of the latest batch

    def can_try_record(self, queue: WorkQueue, now: float) -> bool:
        return queue.postponement.limit_records(1, now) > 0

    def run_batches(self) -> None:
        """Run one batch of fresh rows for each reaction, then retry due attempts, then run one batch of old rows for one reaction."""
        queues = [queue for queue in self._worker_state.all_queues if queue.query.spec.call is None and queue.is_enabled]
        now = self._worker_state.clock.monotonic()
        if self._worker_state.incarnation.rings:
            self._queue_slowed_records(now)
        for queue in sorted(queues, key=lambda queue: queue is self._last):  # the queue of the latest batch comes last
            if not queue.rows.fresh or queue.postponement.not_before > now:
                continue
            room = queue.postponement.limit_records(queue.rows.batch, now)
            if room > 0:
                self._run_batch(queue, Feed(keys=queue.rows.take_new_keys(min(room, queue.rows.batch))))
        for queue in queues:
            keys = self._worker_state.handler_locks.keys_after_pause(queue, now)
            if keys and queue.postponement.not_before <= now and self.can_try_record(queue, now):
                self._run_batch(queue, Feed(keys=keys, apart=True))
            if queue.due_work.has_due_attempts and queue.postponement.not_before <= now:
                self._try_due_attempts(queue)
        waiting = [queue for queue in queues if queue.has_pass and queue.postponement.not_before <= now and self.can_try_record(queue, now)]
        if waiting:
            queue = self._worker_state.rotation.rotate_queues(waiting)[0]
            limit = min(queue.postponement.limit_records(queue.rows.batch, now), queue.rows.batch)
            if queue.rows.groups is not None:
                self._run_group_page(queue, queue.rows.groups, limit)
                return
            done = self._run_batch(queue, Feed(cursor=queue.rows.cursor, limit=limit, crowded=queue.rows.crowded))
            if done is not None:
                if done.let_go:
                    queue.rows.note_long_backlog()  # some records were left for the next batch, so the pass goes on at the same place
                else:
                    queue.rows.advance(done.cursor, read=done.read, limit=limit, taken=done.claimed)
                self._sharing.count_rows(done.claimed, now)

    def carry_out_suspect(self, attempt: Attempt) -> None:
        """Run the handler, or the expired handler, for one record that is suspected of having ended its worker (careful mode)."""
        queue = self._worker_state.queue_named(attempt.reaction)
        key = queue.query.keys.key_from_text_or_none(attempt.record)
        if key is None:
            return
        feed = Feed(keys=[key], limit=1, alone=True)
        if queue.query.spec.call is None:
            self._run_batch(queue, feed)
        if queue.late is not None:
            self._run_batch(queue.late, feed)

    def _queue_slowed_records(self, now: float) -> None:
        """Queue the records whose pause in a cycle is over. In a cycle, reactions undo each other's changes of a record; pauses slow it
        down. Records of reactions with a call are included.
        """
        by_question = {queue.query: queue for queue in self._worker_state.all_queues if queue.is_enabled}
        for query, key in self._worker_state.incarnation.rings.take_records_after_pause(now):
            if query in by_question:
                by_question[query].rows.add_fresh_keys([key])

    def _run_group_page(self, queue: WorkQueue, groups: GroupPasses, limit: int) -> None:
        """Run the handler for one page of a backlog pass that goes group by group. A group is all records with the same value in the
        `in_order` or `per` column. A pass takes only the first records of each group; the others are left for later passes.
        """
        try:
            with (
                self._worker_state.database.reading() as connection,
                slow_conditions.limit_query_time(self._worker_state, queue, connection),
            ):
                page = groups.next_page(connection, queue.rows.cursor, limit)
        except Exception as error:
            if not (isinstance(error, DBAPIError) or db_errors.is_raised_before_sending(error) or db_errors.is_record_load_error(error)):
                raise
            if self._wait_if_error_of_queue(queue, error):
                return
            if db_errors.is_no_fault_of_record(error):
                raise
            queue.postpone_after_error()
            raising_conditions.log_condition_error(queue, error)
            return
        queue.rows.move_cursor(page.cursor)
        if page.cursor is None:
            queue.rows.end_pass(again=groups.end_pass())
        if page.keys:
            self._run_batch(queue, Feed(keys=page.keys))

    def _try_due_attempts(self, queue: WorkQueue) -> None:
        try:
            self._retry_due_attempts(queue)
        except Exception as error:
            if self._wait_if_error_of_queue(queue, error):
                return
            if db_errors.is_no_fault_of_record(error):
                raise
            queue.postpone_after_error()
            log.exception(
                "the due attempts of %s could not be read, tried again", queue.name, extra={"event": "due_failed", "reaction": queue.name}
            )

    def _retry_due_attempts(self, queue: WorkQueue) -> None:
        """Run the handler again for failed records whose retry time has come; delete attempts whose condition no longer holds."""
        with self._worker_state.incarnation.open_transaction() as tx:
            most = min(queue.rows.batch, TOGETHER if self._worker_state.incarnation.care.careful else due_attempts.AT_ONCE)
            identities = due_attempts.read_due_identities(self._worker_state, tx, queue, most, ())
            if identities:
                self._worker_state.progress.count_done(
                    _delete_obsolete_failed_attempts(self._worker_state.incarnation, tx, queue.query, identities)
                )
        if identities:
            keys = [key for identity in identities if (key := queue.query.keys.key_from_text_or_none(identity[2])) is not None]
            self._run_batch(queue, Feed(keys=keys))
            if queue.late is not None:
                self._run_batch(queue.late, Feed(keys=keys))

    def _run_batch(self, queue: WorkQueue, feed: Feed) -> run_batch.Done | None:
        end_trace, self._last = self._worker_state.watched.trace_batch(queue.query.spec), queue
        started = self._worker_state.clock.monotonic()
        self._worker_state.incarnation.at_work = queue.name
        locks = self._worker_state.handler_locks
        feed = replace(
            feed,
            hold_s=self._worker_state.batch_locks.target_hold_s,
            claim_s=slow_conditions.claim_limit_s(queue),
            lock_wait=locks.wait_of_batch(queue, started),
            left_out=frozenset() if feed.apart else locks.keys_of_waiting_records(queue),
        )
        try:
            done = self._carry_out_feed(queue, feed)
        except Exception as error:
            end_trace(Ran(error=error))
            passing = db_errors.is_no_fault_of_record(error)
            if feed.keys and db_errors.is_cancelled_statement(error):
                slow_conditions.take_fewer_keys(queue, feed.keys, self._worker_state.clock.monotonic() - started)
            elif feed.keys and passing:
                queue.rows.add_fresh_keys(feed.keys)
            elif feed.keys:
                queue.rows.request_pass()  # one of these keys may be wrong, so a backlog pass finds the records by the condition instead
            if self._wait_if_error_of_queue(queue, error):
                return None
            queue.postpone_after_error()
            if isinstance(error, Illegible) or (passing and self._must_stop_all_queues(error)):
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
        end_trace(Ran(done.done, done.failed))
        if feed.keys is not None and done.let_go and not feed.apart:
            queue.rows.put_keys_first(done.let_go)
        took = self._worker_state.clock.monotonic() - started
        self._record_batch_result(queue, done, took)
        if feed.apart or done.lock_error is not None:
            self._note_locks_met(queue, feed, done)
        self._worker_state.batch_locks.sleep_for_other_writers(took)
        return done

    def _note_locks_met(self, queue: WorkQueue, feed: Feed, done: run_batch.Done) -> None:
        """After a batch, postpone each record whose handler met a lock of another transaction. If the lock is on a whole table and no
        record was carried out, postpone the whole queue. Raises the error of the lock if it is on a table of groundstate.
        """
        worker_state, locks, error = self._worker_state, self._worker_state.handler_locks, done.lock_error
        reasons = locks.reasons_of_waiting_records(queue) if feed.apart else {}
        locks.forget_records(queue, set(feed.keys or ()) - {*done.met_locks, *done.let_go} if feed.apart else ())
        if error is None:
            return
        if not (done.done or done.failed or feed.apart):  # records that run apart say nothing about the others
            stops_all = self._must_stop_all_queues(error)
            if stops_all or locked_tables.bar_queue_on_table_met_locked(worker_state, queue, error):
                queue.rows.put_keys_first(done.met_locks)
                if stops_all:
                    raise error
                return
            queue.postponement.postpone(worker_state.clock.monotonic(), locked_tables.LONGEST_S)
        others = {} if done.cut else {key: reasons[key] for key in done.let_go if key in reasons}
        locked_tables.let_records_wait(worker_state, queue, done.met_locks, error, others)

    def _wait_if_error_of_queue(self, queue: WorkQueue, error: BaseException) -> bool:
        """Return whether an error concerns only this work queue; if so, let the queue wait. This is so if the condition takes too long or
        raises an error for some rows, if a table is locked, or if the records do not fit the database (for example, a column is missing).
        It is not so if a handler waited for a locked row.
        """
        if slow_conditions.move_aside_if_cut(queue, error):
            return True
        if isinstance(error, DBAPIError) and db_errors.is_lock_timeout(error):
            return locked_tables.bar_queues_on_locked_tables(self._worker_state, [queue])
        return missing_columns.wait_if_schema_misfit(self._worker_state, queue, error) or raising_conditions.search_if_condition_raised(
            self._worker_state, queue, error
        )

    def _must_stop_all_queues(self, error: BaseException) -> bool:
        """Return whether an error stops every work queue: the store is embedded (one lock covers the whole store), or groundstate's own
        tables are locked.
        """
        return self._worker_state.is_embedded or (
            db_errors.is_lock_timeout(error) and lock_waits.describe_lock_against_our_writes(self._worker_state.database) is not None
        )

    def _carry_out_feed(self, queue: WorkQueue, feed: Feed) -> run_batch.Done:
        incarnation = self._worker_state.incarnation
        if queue.query.takes_expired_records and queue.name in incarnation.suspects:
            called = self._worker_state.queue_named(queue.name).query
            if called.spec.call is not None:
                return self._put_late_records_in_doubt(queue.query, called, feed)
        if not incarnation.care.careful:
            return run_batch.carry_out_batch(incarnation, queue.query, feed)
        before = self._worker_state.left_begun
        self._worker_state.note_begun_attempts_left(left=True)  # if the batch raises, begun attempts may be left
        done = poison_guard.carry_out_with_begun_attempts(incarnation, queue.query, feed)
        self._worker_state.note_begun_attempts_left(left=before or done.left_begun)
        return done

    def _put_late_records_in_doubt(self, late: ConditionQuery, called: ConditionQuery, feed: Feed) -> run_batch.Done:
        """Insert an attempt in doubt for each expired record of a suspect reaction, and run no expired handler: a call for the record may
        have been made in the time that a restore lost.
        """
        with self._worker_state.incarnation.open_transaction() as tx:
            late_claim = begin.claim_including_records_in_flight(tx, late, feed)
            count = begin.insert_attempts_in_doubt(
                self._worker_state.incarnation, tx, called, [*late_claim.records, *late_claim.unreadable]
            )
            count += _set_retry_time_to_now(tx, [claimed.attempt for claimed in late_claim.records if claimed.attempt is not None])
        if count:
            self._worker_state.progress.count_done(count)
            self._worker_state.request_due_query()
        return run_batch.Done(read=late_claim.read, cursor=late_claim.cursor, busy=late_claim.busy, claimed=len(late_claim.records))

    def _record_batch_result(self, queue: WorkQueue, done: run_batch.Done, took: float) -> None:
        if done.lock_error is None or done.done or done.failed:
            queue.postponement.note_success()
        if done.claimed:
            missing_columns.clear_lack(queue)
            queue.rows.adapt_batch_size(
                done.claimed, done.rows_s, done.rows_s if done.again else took, self._worker_state.batch_locks.target_hold_s, cut=done.cut
            )
        reaction_pause.count_batch_in_breaker(
            queue, self._worker_state.incarnation.lines, done.done, done.wrong, self._worker_state.clock.monotonic()
        )
        if done.done and queue.rows.groups is not None:
            queue.rows.request_pass()  # the pass finds the next records of the same groups
        if done.done and queue.query.takes_expired_records:
            self._worker_state.tally.count_expired({queue.name: done.done})
            log.info(
                "%s: %d expired, the last of them due at %s",
                queue.name,
                done.done,
                done.last_due,
                extra={"event": "expired", "reaction": queue.name, "count": done.done},
            )
        if done.next_at is not None:
            self._worker_state.request_due_query()
        self._worker_state.progress.count_done(done.done + done.failed)
        if done.done or done.failed:
            self._worker_state.progress.note_reaction(queue.name)
        self._worker_state.tally.count_batch(queue.name, done.done, done.failed, expired=queue.query.takes_expired_records)


def _delete_obsolete_failed_attempts(
    incarnation: Incarnation, tx: Transaction, query: ConditionQuery, identities: Sequence[attempts.Identity]
) -> int:
    """Of these attempts, delete the failed ones whose record no longer meets the condition or is in another occurrence. Return how many
    were deleted.

    An attempt in doubt, from an older version of the application in which the reaction had a call, is held: nothing can settle it now.
    """
    looked = claim.lock_and_read_attempts(query, tx, identities)
    for standing in looked.standing.values():
        if standing.attempt is not None and standing.attempt.state is State.DOUBT:
            decision = rules.decide_attempt_in_doubt(standing.attempt, query.spec.terms, standing.facts, tx.now)
            if isinstance(decision, rules.Keep):
                attempts.update_attempts(tx.connection, [(standing.attempt, decision.attempt)])
                log_if_held(incarnation, decision.attempt)
    gone = [
        standing.attempt
        for standing in looked.standing.values()
        if standing.attempt is not None and standing.attempt.state is State.FAILED and not standing.facts.holds
    ]
    return attempts.delete_attempts(tx.database, tx.connection, gone)


def _set_retry_time_to_now(tx: Transaction, failed: Sequence[Attempt]) -> int:
    """Set the retry time of these failed attempts to now, unless it has come already. Return how many attempts were changed. Call it for
    records that have expired: `process_due_attempts` then runs their `expired` handler.
    """
    waited = [(attempt, replace(attempt, next_at=tx.now)) for attempt in failed if not blocking.is_retry_due(attempt, tx.now)]
    attempts.update_attempts(tx.connection, waited)
    return len(waited)
