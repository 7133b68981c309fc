"""Runs the call turns of one worker. It also keeps track of the calls in flight, of their results, and of the slots (shares of a limit)
that become free when calls end. executor.py makes the calls.

A turn is one transaction: it applies (concludes) all results that have arrived, then begins new calls in the freed slots. The next turn
starts after its commit.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import DBAPIError

from groundstate.clock import Clock
from groundstate.engine.call import begin, conclude
from groundstate.engine.call.dispatch import Dispatch, QueueTrouble
from groundstate.engine.call.executor import CallExecutor
from groundstate.engine.call.limiter import Limits, tenant_and_service_scopes, tenant_scope
from groundstate.engine.call.result_log import FailedCalls, LockedResultsLog
from groundstate.engine.call.semaphore import LimitedScope
from groundstate.engine.handle.apply_outcome import AttemptFilter, SomeHandlerFailed, always_one_by_one, never_one_by_one
from groundstate.engine.handle.recheck_conditions import Work
from groundstate.engine.rows import attempts
from groundstate.engine.rows.attempt_log import name_record
from groundstate.engine.rows.attempts import Identity
from groundstate.engine.rows.in_flight import CallResult, FoundAbsent, InFlightCall, Returned, Unclear, read_clocks
from groundstate.engine.sql import db_errors, lock_waits, related_rows
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.db_errors import LostUpdate, RelatedRow
from groundstate.engine.sql.record_cycles import TracedTransaction
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.sql.safe_text import describe_exception, reraise_keyboard_interrupt
from groundstate.engine.sql.transaction import Transaction
from groundstate.engine.watch import locked_tables, missing_columns, raising_conditions, slow_conditions
from groundstate.engine.watch.trace_hooks import Committed
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.attempt import State
from groundstate.store.tables import attempt as table
from groundstate.values.errors import WentBackError

log = logging.getLogger("groundstate")


MakeCaller = Callable[[Callable[[Sequence[CallResult]], None], Callable[[int], bool], Clock], CallExecutor]


class CallTurns:
    """Runs the call turns of one worker. `_receive_results` may be called from any thread; every other method only from the thread that
    runs transactions.
    """

    def __init__(self, worker_state: WorkerState, wake: Callable[[], None], make_caller: MakeCaller) -> None:
        self._worker_state = worker_state
        self._wake = wake
        self._inbox: deque[CallResult] = deque()
        self._results: list[CallResult] = []  # results taken from the inbox that are not concluded yet
        # Handlers that ran in the open transaction, with their conditions and their trace.
        self._carried_out: list[tuple[ConditionQuery, Sequence[Work], TracedTransaction | None]] = []
        self._tried: set[int] = set()  # call numbers: the results of these calls are in a commit that may or may not have succeeded
        self._removing: set[int] = set()  # call numbers, a subset of `_tried`: the attempts of these calls are deleted by that commit
        self._removed: dict[int, None] = {}  # call numbers: the attempts of these calls were deleted by a commit that surely succeeded
        # call numbers: these calls were not sent, because nobody knows whether the transaction that began them was committed
        self._unanswered: dict[int, None] = {}
        self._flying: dict[tuple[int, bool], InFlightCall] = {}
        # Outcomes concluded lately under the policy `same_key`. They are kept because a call that timed out but goes on may return an equal
        # outcome.
        self._recent_outcomes: dict[Identity, Any] = {}
        self._locked_s = LOCKED_S
        # results that the open transaction skipped, because another transaction had locked their records
        self._met_locked: list[CallResult] = []
        self._doubts: list[CallResult] = []  # results for which the open transaction puts attempts in doubt
        self._unasked: list[tuple[CallResult, str]] = []  # pairs (result, error): the condition raised the error for the result's record
        self._kept = LockedResultsLog(worker_state)
        self._let_go = False  # whether some results were left for the next turn, which then follows at once
        # monotonic seconds at which `_results` got its first result; None once a turn has taken that result
        self._first_result_at: float | None = None
        self.left_in_doubt: set[int] = set()  # call numbers: the outcome of these calls is unknown when a stopping worker ends
        self.limits = Limits(worker_state)
        self._failed = FailedCalls(worker_state.incarnation.shorten, worker_state.incarnation.lines)
        self._dispatch = Dispatch(worker_state, self.limits, self._flying, self._identities_in_flight)
        self.caller = make_caller(self._receive_results, self._may_incarnation_send, worker_state.clock)
        self.caller.watched = worker_state.watched

    def _receive_results(self, results: Sequence[CallResult]) -> None:
        self._inbox.extend(results)
        self._wake()

    def _may_incarnation_send(self, incarnation: int) -> bool:
        """Return whether this incarnation still holds its lock, so that its calls may be sent. The liveness check keeps the answer in
        memory, so that a call costs no query.
        """
        return self._worker_state.incarnation.sound and self._worker_state.incarnation.id == incarnation

    # ---- state that the worker loop reads ----------------------------------------------------------------------------------------
    @property
    def is_idle(self) -> bool:
        return not (self._has_calls_or_results or self.limits.may_skipped_queue_go_on)

    @property
    def _has_calls_or_results(self) -> bool:
        return bool(self._flying or self._results or self._inbox)

    @property
    def number_of_calls_in_flight(self) -> int:
        return self._dispatch.number_of_calls_in_flight

    @property
    def is_suspect_in_flight(self) -> bool:
        return self._dispatch.is_suspect_in_flight

    def has_room_for_call(self, queue: WorkQueue, now: float) -> bool:
        return self._dispatch.room_for_calls(queue, now) > 0

    def seconds_to_wait(self, now: float) -> float | None:
        """Return the seconds until a call has to be begun or concluded. None if no such time is known: only a new result or hint brings
        work.
        """
        if self._let_go or (self._inbox and self._first_result_at is None):
            return 0.0
        if self._results:
            return self._locked_s if self._first_result_at is None else max(self._first_result_at + LINGER_S - now, 0.0)
        times = self.limits.wake_times(now)
        times += [in_flight.ends_s for in_flight in self._flying.values() if in_flight.ends_s is not None and not in_flight.given_up]
        return max(min(times) - now, 0.0) if times else None

    # ---- one call turn -----------------------------------------------------------------------------------------------------------
    def run_turn(self) -> None:
        """Conclude the results that have arrived and begin new calls, in one transaction."""
        self._drain_result_inbox()
        self._let_go = False
        worker_state = self._worker_state
        queues = [queue for queue in worker_state.queues if queue.query.spec.call is not None]
        now = self._worker_state.clock.monotonic()
        self.limits.prepare_turn(now)
        stuck = {queue.query for queue in queues if queue.postponement.not_before > now}
        # A result stays in `_results` until it is concluded.
        results = [result for result in self._results if result.in_flight.query not in stuck]
        if worker_state.handler_locks.met:
            results = self._conclude_results_after_pause(results, now)
        freed = self._slots_freed_by(results)
        wanting = [] if worker_state.stopping is not None else self._queues_that_may_begin(queues, now, freed)
        if not results and not wanting:
            self._first_result_at = None
            return
        if self._waits_for_more_results(now):
            return
        started = self._worker_state.clock.monotonic()
        end_trace, committed = worker_state.watched.trace_transaction(results), Committed()
        try:
            concluded, begun = self._commit_turn(results, wanting)
        except (SomeHandlerFailed, LostUpdate) as failed:
            try:
                self._conclude_after_failure(results, failed)
            except DBAPIError as error:
                if not db_errors.is_lock_timeout(error):
                    raise
                self._conclude_after_error(error, results, wanting)
        except QueueTrouble as error:
            self._exclude_queue_for_a_while(error)
        except Exception as error:
            self._conclude_after_error(error, results, wanting)
        else:
            committed = Committed(len(concluded), len(begun.in_flights))
            self._forget_concluded_results(concluded)
            self._send_begun_calls(begun)
            worker_state.batch_locks.sleep_for_other_writers(worker_state.clock.monotonic() - started)
        finally:
            for call in list(self._unanswered)[:-UNANSWERED_MOST]:
                del self._unanswered[call]
            self.limits.end_transaction()
            worker_state.incarnation.at_work = None
            end_trace(committed)

    def _commit_turn(self, results: Sequence[CallResult], wanting: Sequence[WorkQueue]) -> tuple[list[CallResult], begin.Begun]:
        """Commit the transaction of one turn. Return a pair: the results that it concluded, and what it began."""
        worker_state = self._worker_state
        clock = read_clocks(worker_state.clock)
        with (
            worker_state.incarnation.air.concluding_transaction(),
            worker_state.incarnation.open_transaction(wait=self._wait_for_locks(results)) as tx,
        ):
            concluded = self._conclude_results(tx, results, one_by_one=never_one_by_one)
            self._tried |= {result.in_flight.call for result in concluded}
            worker_state.incarnation.air.note_concluded(result.in_flight.spec_and_record for result in concluded if self._ends_call(result))
            self.limits.begin_transaction(tx, self._slots_freed_by(concluded))
            begun = self._dispatch.begin_calls(tx, worker_state.rotation.rotate_queues(list(wanting)), clock)
            self._unanswered.update((in_flight.call, None) for in_flight in begun.in_flights if not in_flight.is_lookup)
        return concluded, begun

    def _wait_for_locks(self, results: Sequence[CallResult]) -> timedelta | None:
        """Return how long a statement that concludes these results waits for a lock; None: as long as the store lets it."""
        locks, now = self._worker_state.handler_locks, self._worker_state.clock.monotonic()
        waits = [locks.wait_of_batch(queue, now) for queue in self._queues_in_turn(results, ())] if locks.met else []
        return next((wait for wait in waits if wait is not None), None)

    def _exclude_queue_for_a_while(self, error: QueueTrouble) -> None:
        """Postpone a work queue whose calls could not be begun: the next turns leave it out. The next turn, for the other queues, follows
        at once.
        """
        cause = error.__cause__
        if (
            slow_conditions.move_aside_if_cut(error.queue, cause)
            or missing_columns.wait_if_schema_misfit(self._worker_state, error.queue, cause)
            or raising_conditions.search_if_condition_raised(self._worker_state, error.queue, cause)
        ):
            return
        error.queue.postpone_after_error()
        log.error(
            "%s: its calls could not be begun, and are tried again",
            error.queue.name,
            exc_info=error,
            extra={"event": "begin_failed", "reaction": error.queue.name},
        )

    def _conclude_after_error(self, error: Exception, results: Sequence[CallResult], wanting: Sequence[WorkQueue]) -> None:
        """Conclude these results after an error in their turn, and begin no calls. Raises the error again if it is transient, if the
        database has lost commits, or if there are no results.
        """
        if isinstance(error, DBAPIError) and db_errors.is_lock_timeout(error):
            at_work = self._worker_state.incarnation.at_work
            queues = self._queues_in_turn(results, wanting)
            barred = [
                locked_tables.bar_queue_on_table_met_locked(self._worker_state, queue, error) for queue in queues if queue.name == at_work
            ]
            if locked_tables.bar_queues_on_locked_tables(self._worker_state, [queue for queue in queues if queue.name != at_work]) or any(
                barred
            ):
                return  # the next turn concludes the results that concern no locked table
            if results and lock_waits.describe_lock_against_our_writes(self._worker_state.database) is None:
                self._conclude_despite_locks(results)
                return
        if db_errors.is_no_fault_of_record(error) or isinstance(error, WentBackError) or not results:
            raise error
        self._conclude_with_failing_apart(results)

    def _queues_that_may_begin(self, queues: Sequence[WorkQueue], now: float, freed: Counter[LimitedScope]) -> list[WorkQueue]:
        alone = self._worker_state.alone
        if alone is not None:
            return [] if self.number_of_calls_in_flight else [queue for queue in queues if queue.name == alone.reaction]
        return [
            queue
            for queue in queues
            if queue.has_work
            and queue.postponement.not_before <= now
            and ((queue.due_work.has_due_attempts and not queue.due_work.seen_full) or self._dispatch.room_for_calls(queue, now, freed) > 0)
        ]

    def _queues_in_turn(self, results: Sequence[CallResult], wanting: Sequence[WorkQueue]) -> list[WorkQueue]:
        return list(dict.fromkeys([*(self._worker_state.queue_named(result.in_flight.query.spec.name) for result in results), *wanting]))

    def _waits_for_more_results(self, now: float) -> bool:
        """Return whether to wait for more results before concluding. This is so if only few of the calls in flight have returned, and only
        just now: after a short wait, one commit can conclude more results.
        """
        if not self._results:
            self._first_result_at = None
            return False
        if self._first_result_at is None:
            self._first_result_at = now
        late = now - self._first_result_at >= LINGER_S
        if late or len(self._results) * LINGER_SHARE >= len(self._flying) or self._worker_state.stopping is not None:
            self._first_result_at = None
            return False
        return True

    def _drain_result_inbox(self) -> None:
        now = self._worker_state.clock.monotonic()
        while self._inbox:
            result = self._inbox.popleft()
            self._worker_state.tally.count_ended(result)
            self._results.append(result)
            result.in_flight.answered = True
        for in_flight in list(self._flying.values()):
            if in_flight.ends_s is not None and now > in_flight.ends_s and not (in_flight.given_up or in_flight.answered):
                in_flight.given_up = True
                self.limits.count_hanging_call(in_flight)
                error = f"timed out after {in_flight.timeout.total_seconds():g} s, and still runs"
                self._failed.log_hanging_call(in_flight, error, now)
                hung = Unclear(in_flight, error, running=True)
                self._worker_state.tally.count_ended(hung)
                self._results.append(hung)

    # ---- concluding results --------------------------------------------------------------------------------------------------------
    def _conclude_results(
        self, tx: Transaction, results: Sequence[CallResult], *, one_by_one: AttemptFilter, refused: str | None = None
    ) -> list[CallResult]:
        concluded: list[CallResult] = []
        self._carried_out, self._met_locked, self._doubts, self._unasked = [], [], [], []
        until_s = self._worker_state.clock.monotonic() + self._worker_state.batch_locks.target_hold_s
        for query, results_of_query in _group_by_query(results).items():
            self._worker_state.incarnation.at_work = query.spec.name
            written = conclude.conclude_results(
                self._worker_state.incarnation, tx, query, results_of_query,
                one_by_one=one_by_one, was_concluded_by_us=self._was_concluded_by_us, refused=refused, until_s=until_s,
                may_wait=self._worker_state.stopping is None,
            )  # fmt: skip
            concluded += written.done
            self._let_go |= bool(written.let_go)
            self._met_locked += written.locked
            self._unasked += written.unasked
            self._doubts += written.doubts
            self._removing |= written.removed
            self._carried_out.append((query, written.works, written.watch))
        return concluded

    def _was_concluded_by_us(self, result: CallResult) -> bool:
        """Return whether this worker itself may have deleted the missing attempt of this result. There are three such cases: an earlier
        commit with this result may have succeeded (and the lock was never lost); an earlier result of this call deleted the attempt; or an
        equal outcome was concluded under the same idempotency key.
        """
        incarnation = self._worker_state.incarnation
        if (
            isinstance(result, Returned)
            and result.in_flight.identity in self._recent_outcomes
            and _are_equal(self._recent_outcomes[result.in_flight.identity], result.value)
        ):
            log.info(
                "%s: an outcome that was concluded already came once more, and is ignored",
                name_record(incarnation, *result.in_flight.identity[1:3]),
                extra={"event": "outcome_repeated", "reaction": result.in_flight.identity[1], "record": result.in_flight.identity[2]},
            )
            return True
        if result.in_flight.call in self._removed:
            return True
        return result.in_flight.call in self._tried and incarnation.id == result.in_flight.incarnation and incarnation.sound

    def _conclude_with_failing_apart(self, results: Sequence[CallResult], failed: SomeHandlerFailed | None = None) -> None:
        """Conclude the results, with a savepoint for each record whose handler fails, or for every record if nobody knows which ones fail.
        If even the commit fails, each result gets its own transaction. Results that are not concluded stay in `_results`.
        """
        for query, results_of_query in _group_by_query(results).items():
            try:
                if failed is None or not self._conclude_with_known_failing_apart(query, results_of_query, failed):
                    self._conclude_in_one_transaction(results_of_query, one_by_one=always_one_by_one)
            except Exception as error:
                if db_errors.is_no_fault_of_record(error):
                    raise
                self._conclude_in_own_transactions(query, results_of_query)

    def _conclude_with_known_failing_apart(self, query: ConditionQuery, results: Sequence[CallResult], failed: SomeHandlerFailed) -> bool:
        """Conclude the results in one transaction, with savepoints only for the records whose handlers fail. Return False, without having
        done anything, if it is not known which handlers fail.
        """
        try:
            if failed.reaction != query.spec.name:
                self._conclude_in_one_transaction(results, one_by_one=never_one_by_one)
                return True
            failing = failed if failed.apart else self._find_failing_attempts(query, results)
            known = failing.apart | failing.others
            results_now = [result for result in results if not isinstance(result, Returned) or result.in_flight.identity in known]
            if not known or (not failing.apart and len(results_now) == len(results)):
                return False
            self._conclude_in_one_transaction(results_now, one_by_one=failing.apart.__contains__)
        except SomeHandlerFailed:
            return False
        self._let_go |= len(results_now) < len(results)
        return True

    def _find_failing_attempts(self, query: ConditionQuery, results: Sequence[CallResult]) -> SomeHandlerFailed:
        returned = [result for result in results if isinstance(result, Returned)]
        if len(returned) < 2:
            return SomeHandlerFailed(query.spec.name)
        try:
            with self._worker_state.incarnation.open_transaction() as tx:
                conclude.conclude_results(
                    self._worker_state.incarnation, tx, query, returned, one_by_one=never_one_by_one,
                    was_concluded_by_us=self._was_concluded_by_us, only_search=True,
                    until_s=self._worker_state.clock.monotonic() + self._worker_state.batch_locks.target_hold_s,
                )  # fmt: skip
                raise AssertionError("a search raises SomeHandlerFailed")
        except SomeHandlerFailed as failing:
            return failing

    def _conclude_after_failure(self, results: Sequence[CallResult], failed: SomeHandlerFailed | LostUpdate) -> None:
        """Conclude the results again after a failed try. After a lost update, the rows that other transactions updated are locked first.
        After a failed handler, the handlers of the failing records run in savepoints. Results that are not concluded stay in `_results`.
        """
        try:
            if isinstance(failed, LostUpdate):
                self._conclude_in_one_transaction(results, one_by_one=never_one_by_one, first=failed.rows)
            else:
                self._conclude_with_failing_apart(results, failed)
        except SomeHandlerFailed as failed_again:
            self._conclude_with_failing_apart(results, failed_again)
        except LostUpdate as lost:
            log.warning("%s; the results are concluded in a later turn", lost, extra={"event": "conclude_crossed"})

    def _conclude_in_own_transactions(self, query: ConditionQuery, results: Sequence[CallResult]) -> None:
        until_s = self._worker_state.clock.monotonic() + self._worker_state.batch_locks.target_hold_s
        try:
            for result in results:
                if result is not results[0] and self._worker_state.clock.monotonic() >= until_s:
                    self._let_go = True
                    return
                self._conclude_one_result(result)
        except Exception as error:
            queue = self._worker_state.queue_named(query.spec.name)
            if db_errors.is_no_fault_of_record(error):
                raise
            if missing_columns.wait_if_schema_misfit(self._worker_state, queue, error) or raising_conditions.search_if_condition_raised(
                self._worker_state, queue, error
            ):
                return
            queue.postpone_after_error()  # the table is gone or cannot be queried: this reaction waits, and the others go on
            log.exception(
                "%s: the results of its calls cannot be concluded, and are tried again",
                query.spec.name,
                extra={"event": "conclude_failed", "reaction": query.spec.name},
            )

    def _conclude_results_after_pause(self, results: Sequence[CallResult], now: float) -> list[CallResult]:
        """Of these results, conclude those whose handler met a lock of another transaction before, and whose pause is over. Return the
        results whose handler met no lock.
        """
        locks = self._worker_state.handler_locks
        due, others = list[CallResult](), list[CallResult]()
        keys = {query: {_key_of(result) for result in some} for query, some in _group_by_query(self._results).items()}
        for queue in self._worker_state.queues:
            if queue.query.spec.call is not None:
                locks.forget_records(queue, locks.keys_of_waiting_records(queue) - keys.get(queue.query, set()))
        for query, results_of_query in _group_by_query(results).items():
            queue = self._worker_state.queue_named(query.spec.name)
            waiting, after_pause = locks.keys_of_waiting_records(queue), set(locks.keys_after_pause(queue, now))
            others += [result for result in results_of_query if _key_of(result) not in waiting]
            due += [result for result in results_of_query if _key_of(result) in after_pause]
        try:
            self._conclude_despite_locks(due)
        finally:
            self._worker_state.incarnation.at_work = None
        return others

    def _conclude_despite_locks(self, results: Sequence[CallResult]) -> None:
        """Conclude each result in a transaction of its own, which waits only shortly for locks. A result whose handler meets a lock of
        another transaction stays in `_results`, and is tried again after a pause.
        """
        for query, results_of_query in _group_by_query(results).items():
            queue, met, written = self._worker_state.queue_named(query.spec.name), 0, False
            for number, result in enumerate(results_of_query):
                try:
                    self._conclude_one_result(result, wait=lock_waits.SHORT_WAIT)
                    written = True
                except DBAPIError as error:
                    if not db_errors.is_lock_timeout(error):
                        raise
                    met += 1
                    # the others probably meet the same lock, so they wait as well, and are tried one by one after a pause
                    rest = results_of_query[number + 1 :] if met >= lock_waits.MET_MOST and not written else []
                    locked_tables.let_records_wait(
                        self._worker_state, queue, [key for one in (result, *rest) if (key := _key_of(one))], error
                    )
                    if rest:
                        break
                else:
                    self._worker_state.handler_locks.forget_records(queue, [key] if (key := _key_of(result)) else ())
                if met >= lock_waits.MET_MOST:
                    self._let_go = True  # the next turn goes on with the other results
                    break

    def _conclude_in_one_transaction(
        self,
        results: Sequence[CallResult],
        *,
        one_by_one: AttemptFilter,
        refused: str | None = None,
        wait: timedelta | None = None,
        first: frozenset[RelatedRow] = related_rows.NO_ROWS,
    ) -> None:
        def conclude_after_locking(met: frozenset[RelatedRow]) -> list[CallResult]:
            with self._worker_state.incarnation.open_transaction(wait=wait) as tx:
                tx.lock_first(first | met)
                concluded = self._conclude_results(tx, results, one_by_one=one_by_one, refused=refused)
                self._tried |= {result.in_flight.call for result in concluded}
            return concluded

        self._forget_concluded_results(related_rows.redo_lost_updates(conclude_after_locking))

    def _conclude_one_result(self, result: CallResult, wait: timedelta | None = None) -> None:
        try:
            self._conclude_in_one_transaction([result], one_by_one=always_one_by_one, wait=wait)
        except Exception as error:
            if db_errors.is_no_fault_of_record(error):
                raise
            self._conclude_in_one_transaction(
                [result], one_by_one=always_one_by_one, refused=f"its commit was refused: {describe_exception(error)}"
            )

    def _forget_concluded_results(self, concluded: Sequence[CallResult]) -> None:
        """Remove the results that a commit has concluded, and report them to the log and the limits. The other results stay for the next
        turn.
        """
        finished = {id(result) for result in concluded}
        self._locked_s = LOCKED_S if concluded else min(self._locked_s * 2, LOCKED_MOST_S)
        self._results = [result for result in self._results if id(result) not in finished]
        worker_state = self._worker_state
        worker_state.progress.count_done(len(concluded))
        if concluded:
            worker_state.progress.note_reaction(concluded[-1].in_flight.query.spec.name)
        for query, works, watch in self._carried_out:
            worker_state.incarnation.rings.count_carried_out(query, works, watch)
            if works:
                missing_columns.clear_lack(
                    worker_state.queue_named(query.spec.name)
                )  # records of this reaction were loaded, so no column is missing any more
        self._carried_out = []
        now = self._worker_state.clock.monotonic()
        self._kept.note_locked_results(self._met_locked, self._results, now)
        self._kept.note_results_of_raising_conditions(self._unasked, self._results, now)
        doubts = {id(result) for result in self._doubts}
        for result in concluded:
            in_flight = result.in_flight
            self._tried.discard(in_flight.call)
            if in_flight.call in self._removing:
                self._removing.discard(in_flight.call)
                self._removed[in_flight.call] = None
                if len(self._removed) > REMOVED_MOST:
                    del self._removed[next(iter(self._removed))]
            if isinstance(result, Returned) and in_flight.query.spec.terms.repeats_under_same_key:
                self._recent_outcomes[in_flight.identity] = result.value
                if len(self._recent_outcomes) > RECENT_OUTCOMES_MOST:
                    del self._recent_outcomes[next(iter(self._recent_outcomes))]
            if self._ends_call(result):
                self._remove_ended_call(in_flight)
            if isinstance(result, Unclear) and worker_state.stopping is not None:
                self.left_in_doubt.add(in_flight.call)
            self._failed.log_failure(result, now, pauses=self.limits.report_to_breaker(result, now), doubts=id(result) in doubts)
            if not isinstance(result, Returned) or worker_state.incarnation.care.careful:
                worker_state.request_due_query()

    def _ends_call(self, result: CallResult) -> bool:
        """Return whether the call is over when this result is concluded. False if the call's thread or task is still running."""
        flying = (result.in_flight.call, result.in_flight.is_lookup) in self._flying
        return flying and not (isinstance(result, Unclear) and result.running)

    # ---- beginning calls -----------------------------------------------------------------------------------------------------------
    def _slots_freed_by(self, results: Sequence[CallResult]) -> Counter[LimitedScope]:
        """Return, by service and tenant, how many slots become free when these results are concluded. The transaction that concludes the
        results may give these slots to new calls. The new calls are sent only if its commit succeeds.

        In careful mode no slot becomes free before the commit, since a call counts as in flight until then. If a call failed, the slots of
        its service and tenant become free only after the commit as well, since the circuit breaker must count the failure first.
        """
        if self._worker_state.incarnation.care.careful:
            return Counter()
        failing = {tenant_scope(result.in_flight) for result in results if not isinstance(result, Returned | FoundAbsent)}
        landed = (result.in_flight for result in results if tenant_scope(result.in_flight) not in failing)
        flown = [in_flight for in_flight in landed if (in_flight.call, in_flight.is_lookup) in self._flying]
        return Counter(place for in_flight in flown for place in tenant_and_service_scopes(in_flight))

    def _identities_in_flight(self) -> set[Identity]:
        """Return the identities of the attempts that must not be processed now: their call is in flight, or the result of the call is not
        concluded yet.
        """
        return {in_flight.identity for in_flight in self._flying.values()} | {
            result.in_flight.identity for result in [*self._results, *self._inbox]
        }

    def _send_begun_calls(self, begun: begin.Begun) -> None:
        """Send the begun calls. Use this method only after the commit."""
        if begun.new_calls:
            self._worker_state.incarnation.store_begin_counts()
        for in_flight in begun.in_flights:
            self._unanswered.pop(in_flight.call, None)
            self._flying[(in_flight.call, in_flight.is_lookup)] = in_flight
            self._worker_state.incarnation.air.add_call(*in_flight.spec_and_record)
            self.limits.count_sent_call(in_flight)
        self._worker_state.tally.count_begun(begun.in_flights)
        self.caller.start(begun.in_flights)
        self._worker_state.tally.count_expired(begun.expired)
        if begun.changed:
            self._worker_state.request_due_query()

    def _remove_ended_call(self, in_flight: InFlightCall) -> None:
        if self._flying.pop((in_flight.call, in_flight.is_lookup), None) is not None:
            self._worker_state.incarnation.air.remove_call(*in_flight.spec_and_record)
            self.limits.count_ended_call(in_flight)

    # ---- checks made at each sweep ---------------------------------------------------------------------------------------------------
    def settle_begun_attempts_without_call(self) -> None:
        """Settle those begun attempts of this worker whose call is not in memory. They were committed by a COMMIT that got no answer
        (hazard 47).
        """
        incarnation = self._worker_state.incarnation
        mine = attempts.select_attempts(
            table.c.worker == incarnation.id, table.c.state == State.BEGUN.value, table.c.reaction.not_in(self._worker_state.schedules)
        )
        with self._worker_state.database.reading() as connection:
            begun = attempts.fetch_attempts(connection, mine)
        known = {call for call, _ in self._flying} | {result.in_flight.call for result in [*self._results, *self._inbox]}
        unknown = [attempt for attempt in begun if attempt.call not in known]
        if unknown:
            with incarnation.open_transaction() as tx:
                conclude.settle_begun_without_call(tx, unknown, self._unanswered)
            self._worker_state.request_due_query()

    def cancel_overtaken_calls(self) -> None:
        """Cancel the calls in flight whose record no longer meets the condition, if they are declared with `stop_when_overtaken`."""
        in_flights = [
            in_flight
            for in_flight in self._flying.values()
            if not in_flight.is_lookup and in_flight.query.spec.call and in_flight.query.spec.call.stop_when_overtaken
        ]
        for query in {in_flight.query for in_flight in in_flights}:
            queue = self._worker_state.queue_named(query.spec.name)
            if queue.postponement.cannot_be_queried:
                continue  # the condition cannot be queried: a column or table is missing, or a table is locked
            in_flights_of_query = [in_flight for in_flight in in_flights if in_flight.query is query]
            keys = [
                query.keys.key_from_text(in_flight.identity[2]) for in_flight in in_flights_of_query
            ]  # each of these texts was made from a key, so it can be parsed
            try:
                with self._worker_state.database.reading(wait=locked_tables.WAIT) as connection:
                    holding = {tuple(row) for row in connection.execute(query.selects.select_holding_keys(keys))}
            except Exception as error:
                if not (db_errors.is_fault_of_statement(error) or (isinstance(error, DBAPIError) and db_errors.is_lock_timeout(error))):
                    raise
                continue  # nobody knows whether these calls are overtaken, so none is cancelled
            self.caller.cancel([in_flight for in_flight, key in zip(in_flights_of_query, keys, strict=True) if key not in holding])

    def finish_drain(self) -> bool:
        """Return whether a stopping worker has nothing left to do for calls. Once the time limit for stopping is over, record that calls
        still in flight are in doubt.
        """
        stopping = self._worker_state.stopping
        late_s = self._worker_state.clock.monotonic() - stopping if stopping is not None else 0.0
        if late_s > 0 and self._flying:
            for in_flight in self._flying.values():
                if not (in_flight.answered or in_flight.is_lookup) or in_flight.given_up:
                    self.left_in_doubt.add(in_flight.call)
                if not (in_flight.given_up or in_flight.answered or in_flight.is_lookup):
                    in_flight.cut_off = True
                    self._results.append(Unclear(in_flight, "the worker stopped while it was in the air"))
            self._flying.clear()
            self._worker_state.incarnation.air.clear()
            self.limits.forget_calls_in_flight()
        if self._has_calls_or_results and late_s > LAST_WRITES_S:
            left = [*self._results, *self._inbox]
            self.left_in_doubt |= {result.in_flight.call for result in left if not result.in_flight.is_lookup}
            self._kept.log_lost_outcomes(left)
            return True
        return not self._has_calls_or_results  # a stopping worker does not wait for slots or tokens


RECENT_OUTCOMES_MOST = 1000  # number of outcomes that `_recent_outcomes` keeps
# number of calls that `_removed` keeps; if a second result of an older call arrives, the call's attempt seems to have been deleted by hand
REMOVED_MOST = 10_000
UNANSWERED_MOST = 10_000  # number of calls that `_unanswered` keeps; for an older call, a begun attempt that was committed is put in doubt
LINGER_S = 0.001  # the longest time, in seconds, that a turn waits for more results
LINGER_SHARE = 4  # a turn stops waiting once 1/LINGER_SHARE of the calls in flight have returned
LOCKED_S = 0.02  # seconds until a result whose record is locked is tried again; doubled after each try
LOCKED_MOST_S = 1.0  # seconds: the longest wait until a result whose record is locked is tried again
LAST_WRITES_S = 5.0  # seconds left, after the time limit for stopping, to record which calls are in doubt


def _are_equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except BaseException as error:  # outcomes may be of a user's class, whose == can raise anything
        reraise_keyboard_interrupt(error)
        return False


def _key_of(result: CallResult) -> PrimaryKey | None:
    return result.in_flight.query.keys.key_from_text_or_none(result.in_flight.identity[2])


def _group_by_query(results: Sequence[CallResult]) -> dict[ConditionQuery, list[CallResult]]:
    by_query: dict[ConditionQuery, list[CallResult]] = {}
    for result in results:
        by_query.setdefault(result.in_flight.query, []).append(result)
    return by_query
