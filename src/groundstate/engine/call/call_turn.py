"""Runs the call turns of one worker: keeps its calls in flight, the results that came back, and the freed slots. executor.py makes the
calls.

A turn is one transaction: it concludes all results that came back, then begins calls into the freed slots. The next turn starts after its
commit.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.exc import DBAPIError

from groundstate.engine.call import begin, conclude
from groundstate.engine.call.dispatch import Dispatch, QueueTrouble
from groundstate.engine.call.executor import CallExecutor
from groundstate.engine.call.failed_calls import FailedCalls
from groundstate.engine.call.kept_outcomes import LockedResultsLog
from groundstate.engine.call.limiter import Limits, place_of, places_of
from groundstate.engine.call.semaphore import LimitedScope
from groundstate.engine.handle import close_without_call
from groundstate.engine.handle.apply_outcome import Some, SomeHandlerFailed, everyone, nobody
from groundstate.engine.handle.run_handler import Work
from groundstate.engine.rows import attempts
from groundstate.engine.rows.attempt_log import named
from groundstate.engine.rows.attempts import Identity
from groundstate.engine.rows.in_flight import CallResult, FoundAbsent, InFlightCall, Returned, Unclear, clocks
from groundstate.engine.sql import db_errors, related_rows
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.db_errors import LostUpdate, Row
from groundstate.engine.sql.record_cycles import Watch
from groundstate.engine.sql.safe_text import describe, let_through
from groundstate.engine.sql.transaction import Transaction
from groundstate.engine.watch import locked_tables, missing_columns, raising_conditions, slow_conditions
from groundstate.engine.watch.trace_hooks import Committed
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState, postpone
from groundstate.rules.attempt import State
from groundstate.store.tables import attempt as table
from groundstate.values.errors import WentBackError

log = logging.getLogger("groundstate")


class CallTurns:
    """Runs the call turns of one worker. `_say` may be called from any thread; every other method by the transactions' thread only."""

    def __init__(self, worker_state: WorkerState, wake: Callable[[], None]) -> None:
        self._worker_state = worker_state
        self._wake = wake
        self._inbox: deque[CallResult] = deque()
        self._words: list[CallResult] = []  # results taken from the inbox, not yet concluded
        self._carried_out: list[tuple[ConditionQuery, Sequence[Work], Watch | None]] = []  # handlers that the open transaction ran
        self._tried: set[int] = set()  # calls whose results are part of a commit that is not known to have landed
        self._removing: set[int] = set()  # those of `_tried` whose attempts that commit deletes
        self._removed: dict[int, None] = {}  # calls whose attempts were deleted by a commit that was answered
        self._unanswered: dict[int, None] = {}  # calls whose begin's COMMIT was not answered (yet): none of them was sent
        self._flying: dict[tuple[int, bool], InFlightCall] = {}
        self._said: dict[Identity, Any] = {}  # outcomes concluded lately under same_key(): a call that was given up may return the same one
        self._locked_s = LOCKED_S
        self._met_locked: list[CallResult] = []  # results whose records the open transaction found locked
        self._doubts: list[CallResult] = []  # results by which the open transaction puts attempts in doubt
        self._unasked: list[tuple[CallResult, str]] = []  # outcomes for whose records the condition raised in it, with the reasons
        self._kept = LockedResultsLog(worker_state)
        self._let_go = False  # whether results were left for the next turn, since handlers before them took long
        self._first_word: float | None = None  # monotonic time at which the first of the results in `_words` came
        self.left_in_doubt: set[int] = set()  # calls whose outcome is unknown at the end of a drain
        self.limits = Limits(worker_state)
        self._failed = FailedCalls(worker_state.incarnation.shorten, worker_state.incarnation.lines)
        self._dispatch = Dispatch(worker_state, self.limits, self._flying, self._in_air)
        self.caller = CallExecutor(self._say, self._may_call)
        self.caller.watched = worker_state.watched

    def _say(self, words: Sequence[CallResult]) -> None:
        self._inbox.extend(words)
        self._wake()

    def _may_call(self, incarnation: int) -> bool:
        """Return whether this incarnation still holds its lock, by a flag that the liveness check keeps in
        memory: no call costs a query.
        """
        return self._worker_state.incarnation.sound and self._worker_state.incarnation.id == incarnation

    # ---- state that the worker loop reads ----------------------------------------------------------------------------------------
    @property
    def quiet(self) -> bool:
        return not (self._in_hand or self.limits.awaited)

    @property
    def _in_hand(self) -> bool:
        return bool(self._flying or self._words or self._inbox)

    @property
    def calls_in_air(self) -> int:
        return self._dispatch.calls_in_air

    @property
    def suspect_in_air(self) -> bool:
        return self._dispatch.suspect_in_air

    def has_room(self, queue: WorkQueue, now: float) -> bool:
        return self._dispatch.room(queue, now) > 0

    def wait_s(self, now: float) -> float | None:
        """Return for how many seconds there is nothing to do for calls; None where only a new result or hint can end the wait."""
        if self._let_go or (self._inbox and self._first_word is None):
            return 0.0
        if self._words:
            return self._locked_s if self._first_word is None else max(self._first_word + LINGER_S - now, 0.0)
        times = self.limits.times(now)
        times += [in_flight.ends_s for in_flight in self._flying.values() if in_flight.ends_s is not None and not in_flight.given_up]
        return max(min(times) - now, 0.0) if times else None

    # ---- one call turn -----------------------------------------------------------------------------------------------------------
    def turn(self) -> None:
        """Conclude the results that came back and begin new calls, in one transaction."""
        self._drain_result_inbox()
        self._let_go = False
        worker_state = self._worker_state
        queues = [queue for queue in worker_state.queues if queue.query.spec.call is not None]
        now = time.monotonic()
        self.limits.turn(now)
        stuck = {queue.query for queue in queues if queue.not_before > now}
        words = [word for word in self._words if word.in_flight.query not in stuck]  # each stays in `_words` until `_concluded` removes it
        freed = self._freed_by(words)
        wanting = [] if worker_state.stopping is not None else self._wanting(queues, now, freed)
        if not words and not wanting:
            self._first_word = None
            return
        if self._lingers(now):
            return
        clock = clocks()
        started = time.monotonic()
        told, came = worker_state.watched.transaction(words), Committed()
        try:
            with worker_state.incarnation.air.landing(), worker_state.incarnation.transaction() as tx:
                done = self._conclude_all(tx, words, one_by_one=nobody)
                self._tried |= {word.in_flight.call for word in done}
                worker_state.incarnation.air.lands(word.in_flight.subject for word in done if self._ends(word))
                self.limits.open(tx, self._freed_by(done))
                begun = self._dispatch.begin_all(tx, worker_state.in_turn(wanting), clock)
                self._unanswered.update((in_flight.call, None) for in_flight in begun.in_flights if not in_flight.is_lookup)
        except (SomeHandlerFailed, LostUpdate) as failed:
            self._conclude_again(words, failed)
        except QueueTrouble as error:
            cause = error.__cause__
            if (
                slow_conditions.move_aside_if_cut(error.queue, cause)
                or missing_columns.wait_if_schema_misfit(worker_state, error.queue, cause)
                or raising_conditions.search_if_condition_raised(worker_state, error.queue, cause)
            ):
                return  # the next turn, without this queue, follows at once
            postpone(error.queue)
            log.exception(
                "%s could not be begun, tried again", error.queue.name, extra={"event": "begin_failed", "reaction": error.queue.name}
            )
        except Exception as error:
            if (
                isinstance(error, DBAPIError)
                and db_errors.locked(error)
                and locked_tables.are_barred(worker_state, self._concerned(words, wanting))
            ):
                return  # results for the locked tables wait; the next turn concludes the others
            if db_errors.transient(error) or isinstance(error, WentBackError) or not words:
                raise
            self._conclude_apart(words)
        else:
            came = Committed(len(done), len(begun.in_flights))
            self._concluded(done)
            self._send(begun)
            worker_state.stay_out(time.monotonic() - started)
        finally:
            for call in list(self._unanswered)[:-UNANSWERED_MOST]:
                del self._unanswered[call]
            self.limits.close()
            worker_state.incarnation.at_work = None
            told(came)

    def _wanting(self, queues: Sequence[WorkQueue], now: float, freed: Counter[LimitedScope]) -> list[WorkQueue]:
        alone = self._worker_state.alone
        if alone is not None:
            return [] if self.calls_in_air else [queue for queue in queues if queue.name == alone.reaction]
        return [
            queue
            for queue in queues
            if queue.wants
            and queue.not_before <= now
            and ((queue.due and not queue.seen_full) or self._dispatch.room(queue, now, freed) > 0)
        ]

    def _concerned(self, words: Sequence[CallResult], wanting: Sequence[WorkQueue]) -> list[WorkQueue]:
        return list(dict.fromkeys([*(self._worker_state.queue(word.in_flight.query.spec.name) for word in words), *wanting]))

    def _lingers(self, now: float) -> bool:
        """Return whether so few of the calls in flight have come back, and so recently, that one commit for
        more of them is worth the wait.
        """
        if not self._words:
            self._first_word = None
            return False
        if self._first_word is None:
            self._first_word = now
        late = now - self._first_word >= LINGER_S
        if late or len(self._words) * LINGER_SHARE >= len(self._flying) or self._worker_state.stopping is not None:
            self._first_word = None
            return False
        return True

    def _drain_result_inbox(self) -> None:
        now = time.monotonic()
        while self._inbox:
            word = self._inbox.popleft()
            self._worker_state.tally.heard(word)
            self._words.append(word)
            word.in_flight.answered = True
        for in_flight in list(self._flying.values()):
            if in_flight.ends_s is not None and now > in_flight.ends_s and not (in_flight.given_up or in_flight.answered):
                in_flight.given_up = True
                self.limits.hangs(in_flight)
                error = f"timed out after {in_flight.timeout.total_seconds():g} s, and still runs"
                self._failed.hangs(in_flight, error, now)
                hung = Unclear(in_flight, error, running=True)
                self._worker_state.tally.heard(hung)
                self._words.append(hung)

    # ---- concluding results --------------------------------------------------------------------------------------------------------
    def _conclude_all(
        self, tx: Transaction, words: Sequence[CallResult], *, one_by_one: Some, refused: str | None = None
    ) -> list[CallResult]:
        done: list[CallResult] = []
        self._carried_out, self._met_locked, self._doubts, self._unasked = [], [], [], []
        until_s = time.monotonic() + self._worker_state.hold_s
        for query, some in _by_question(words).items():
            self._worker_state.incarnation.at_work = query.spec.name
            result = conclude.conclude(
                self._worker_state.incarnation, tx, query, some,
                one_by_one=one_by_one, was_ours=self._concluded_by_us_before, refused=refused, until_s=until_s,
                waits=self._worker_state.stopping is None,
            )  # fmt: skip
            done += result.done
            self._let_go |= bool(result.let_go)
            self._met_locked += result.locked
            self._unasked += result.unasked
            self._doubts += result.doubts
            self._removing |= result.removed
            self._carried_out.append((query, result.works, result.watch))
        return done

    def _concluded_by_us_before(self, word: CallResult) -> bool:
        """Return whether we deleted a missing attempt ourselves: a commit of this result may have landed (it was tried, and the lock was
        never lost), an earlier result of the call deleted it, or the same outcome was concluded under the same key.
        """
        incarnation = self._worker_state.incarnation
        if isinstance(word, Returned) and word.in_flight.identity in self._said and _equal(self._said[word.in_flight.identity], word.value):
            log.info(
                "%s: the outcome that was concluded came once more",
                named(incarnation, *word.in_flight.identity[1:3]),
                extra={"event": "outcome_repeated", "reaction": word.in_flight.identity[1], "record": word.in_flight.identity[2]},
            )
            return True
        if word.in_flight.call in self._removed:
            return True
        return word.in_flight.call in self._tried and incarnation.id == word.in_flight.incarnation and incarnation.sound

    def _conclude_apart(self, words: Sequence[CallResult], failed: SomeHandlerFailed | None = None) -> None:
        """Conclude with a savepoint for each failing record, or for every record where it is unknown which ones fail. Where even the commit
        fails, each result gets its own transaction. What is not concluded stays in `_words`.
        """
        for query, some in _by_question(words).items():
            try:
                if failed is None or not self._conclude_by_culprits(query, some, failed):
                    self._conclude_in_one(some, one_by_one=everyone)
            except Exception as error:
                if db_errors.transient(error):
                    raise
                self._conclude_each(query, some)

    def _conclude_by_culprits(self, query: ConditionQuery, words: Sequence[CallResult], failed: SomeHandlerFailed) -> bool:
        """Conclude in one transaction, with a savepoint for each failing record only. Return False, with nothing done, where it is unknown
        which ones fail.
        """
        try:
            if failed.reaction != query.spec.name:
                self._conclude_in_one(words, one_by_one=nobody)
                return True
            told = failed if failed.apart else self._look_for_culprits(query, words)
            known = told.apart | told.others
            some = [word for word in words if not isinstance(word, Returned) or word.in_flight.identity in known]
            if not known or (not told.apart and len(some) == len(words)):
                return False
            self._conclude_in_one(some, one_by_one=told.apart.__contains__)
        except SomeHandlerFailed:
            return False
        self._let_go |= len(some) < len(words)
        return True

    def _look_for_culprits(self, query: ConditionQuery, words: Sequence[CallResult]) -> SomeHandlerFailed:
        returned = [word for word in words if isinstance(word, Returned)]
        if len(returned) < 2:
            return SomeHandlerFailed(query.spec.name)
        try:
            with self._worker_state.incarnation.transaction() as tx:
                conclude.conclude(
                    self._worker_state.incarnation, tx, query, returned, one_by_one=nobody, was_ours=self._concluded_by_us_before,
                    until_s=time.monotonic() + self._worker_state.hold_s, looks=True,
                )  # fmt: skip
                raise AssertionError("it ends by what it found")
        except SomeHandlerFailed as told:
            return told

    def _conclude_again(self, words: Sequence[CallResult], failed: SomeHandlerFailed | LostUpdate) -> None:
        """Conclude once more after a failed try: after a lost update with the rows concerned locked first, after a failed handler with the
        failing records apart. What is not concluded stays in `_words`.
        """
        try:
            if isinstance(failed, LostUpdate):
                self._conclude_in_one(words, one_by_one=nobody, first=failed.rows)
            else:
                self._conclude_apart(words, failed)
        except SomeHandlerFailed as some:
            self._conclude_apart(words, some)
        except LostUpdate as lost:
            log.warning("%s, so far in vain", lost, extra={"event": "conclude_crossed"})

    def _conclude_each(self, query: ConditionQuery, words: Sequence[CallResult]) -> None:
        until_s = time.monotonic() + self._worker_state.hold_s
        try:
            for word in words:
                if word is not words[0] and time.monotonic() >= until_s:
                    self._let_go = True
                    return
                self._conclude_alone(word)
        except Exception as error:
            queue = self._worker_state.queue(query.spec.name)
            if db_errors.transient(error):
                raise
            if missing_columns.wait_if_schema_misfit(self._worker_state, queue, error) or raising_conditions.search_if_condition_raised(
                self._worker_state, queue, error
            ):
                return
            postpone(queue)  # its table is gone or cannot be queried: the other reactions go on
            log.exception(
                "%s: what came back cannot be concluded, tried again",
                query.spec.name,
                extra={"event": "conclude_failed", "reaction": query.spec.name},
            )

    def _conclude_in_one(
        self, words: Sequence[CallResult], *, one_by_one: Some, refused: str | None = None, first: frozenset[Row] = related_rows.NO_ROWS
    ) -> None:
        def put(met: frozenset[Row]) -> list[CallResult]:
            with self._worker_state.incarnation.transaction() as tx:
                tx.lock_first(first | met)
                done = self._conclude_all(tx, words, one_by_one=one_by_one, refused=refused)
                self._tried |= {word.in_flight.call for word in done}
            return done

        self._concluded(related_rows.redo_lost_updates(put))

    def _conclude_alone(self, word: CallResult) -> None:
        try:
            self._conclude_in_one([word], one_by_one=everyone)
        except Exception as error:
            if db_errors.transient(error):
                raise
            self._conclude_in_one([word], one_by_one=everyone, refused=f"its commit was refused: {describe(error)}")

    def _concluded(self, done: Sequence[CallResult]) -> None:
        """Forget the results that a commit has concluded. Results whose records were locked stay for the next turn."""
        finished = {id(word) for word in done}
        self._locked_s = LOCKED_S if done else min(self._locked_s * 2, LOCKED_MOST_S)
        self._words = [word for word in self._words if id(word) not in finished]
        worker_state = self._worker_state
        worker_state.took += len(done)
        if done:
            worker_state.took_last = done[-1].in_flight.query.spec.name
        for query, works, watch in self._carried_out:
            worker_state.incarnation.rings.carried_out(query, works, watch)
            if works:
                missing_columns.over(worker_state.queue(query.spec.name))  # their records were loaded
        self._carried_out = []
        now = time.monotonic()
        self._kept.look(self._met_locked, self._words, now)
        self._kept.unasked(self._unasked, self._words, now)
        doubts = {id(word) for word in self._doubts}
        for word in done:
            in_flight = word.in_flight
            self._tried.discard(in_flight.call)
            if in_flight.call in self._removing:
                self._removing.discard(in_flight.call)
                self._removed[in_flight.call] = None
                if len(self._removed) > REMOVED_MOST:
                    del self._removed[next(iter(self._removed))]
            if isinstance(word, Returned) and in_flight.query.spec.terms.repeats_under_its_key:
                self._said[in_flight.identity] = word.value
                if len(self._said) > SAID_MOST:
                    del self._said[next(iter(self._said))]
            if self._ends(word):
                self._landed(in_flight)
            if isinstance(word, Unclear) and worker_state.stopping is not None:
                self.left_in_doubt.add(in_flight.call)
            self._failed.heard(word, now, pauses=self.limits.heard(word, now), doubts=id(word) in doubts)
            if not isinstance(word, Returned) or worker_state.incarnation.care.careful:
                worker_state.look_for_due()

    def _ends(self, word: CallResult) -> bool:
        """Return whether the call has ended for good once this result is concluded: no thread or task of it is running any more."""
        flying = (word.in_flight.call, word.in_flight.is_lookup) in self._flying
        return flying and not (isinstance(word, Unclear) and word.running)

    # ---- beginning calls -----------------------------------------------------------------------------------------------------------
    def _freed_by(self, words: Sequence[CallResult]) -> Counter[LimitedScope]:
        """Return the slots that these results free once they are concluded. The same commit takes them for new calls, which are sent only
        if it succeeds.

        In careful mode there are none, since a call counts as in flight until its conclusion is committed. Nor are there where any call
        failed: the breaker must learn of the failure first.
        """
        if self._worker_state.incarnation.care.careful:
            return Counter()
        failing = {place_of(word.in_flight) for word in words if not isinstance(word, Returned | FoundAbsent)}
        landed = (word.in_flight for word in words if place_of(word.in_flight) not in failing)
        flown = [in_flight for in_flight in landed if (in_flight.call, in_flight.is_lookup) in self._flying]
        return Counter(place for in_flight in flown for place in places_of(in_flight))

    def _in_air(self) -> set[Identity]:
        """Return the attempts that must not be considered: their result is still to come, or their thread is still running."""
        return {in_flight.identity for in_flight in self._flying.values()} | {
            word.in_flight.identity for word in [*self._words, *self._inbox]
        }

    def _send(self, begun: begin.Begun) -> None:
        """Send the begun calls. It is called after the commit, and never before."""
        if begun.new_calls:
            self._worker_state.incarnation.counted()
        for in_flight in begun.in_flights:
            self._unanswered.pop(in_flight.call, None)
            self._flying[(in_flight.call, in_flight.is_lookup)] = in_flight
            self._worker_state.incarnation.air.sent(*in_flight.subject)
            self.limits.sent(in_flight)
        self._worker_state.tally.sent(begun.in_flights)
        self.caller.start(begun.in_flights)
        self._worker_state.tally.expired.update(begun.expired)
        if begun.changed:
            self._worker_state.look_for_due()

    def _landed(self, in_flight: InFlightCall) -> None:
        if self._flying.pop((in_flight.call, in_flight.is_lookup), None) is not None:
            self._worker_state.incarnation.air.landed(*in_flight.subject)
            self.limits.landed(in_flight)

    # ---- checks made at each sweep ---------------------------------------------------------------------------------------------------
    def find_unknown(self) -> None:
        """Find begun attempts of this worker whose call is not in memory: the COMMIT of their begin landed after all (hazard 47)."""
        incarnation = self._worker_state.incarnation
        mine = attempts.select_attempts(
            table.c.worker == incarnation.id, table.c.state == State.BEGUN.value, table.c.reaction.not_in(self._worker_state.schedules)
        )
        with self._worker_state.database.reading() as connection:
            begun = attempts.fetch(connection, mine)
        known = {call for call, _ in self._flying} | {word.in_flight.call for word in [*self._words, *self._inbox]}
        unknown = [one for one in begun if one.call not in known]
        if unknown:
            with incarnation.transaction() as tx:
                close_without_call.unknown_begins(tx, unknown, self._unanswered)
            self._worker_state.look_for_due()

    def end_overtaken(self) -> None:
        """Cancel the calls declared with `stop_when_overtaken` whose records moved on."""
        in_flights = [
            one for one in self._flying.values() if not one.is_lookup and one.query.spec.call and one.query.spec.call.stop_when_overtaken
        ]
        for query in {in_flight.query for in_flight in in_flights}:
            queue = self._worker_state.queue(query.spec.name)
            if queue.lacks is not None or queue.barred is not None:
                continue  # the condition cannot be queried: the database lacks one of its columns or tables, or a table is locked
            some = [in_flight for in_flight in in_flights if in_flight.query is query]
            keys = [query.key_from_text(in_flight.identity[2]) for in_flight in some]  # made of a key, so it can be read back
            try:
                with self._worker_state.database.reading(wait=locked_tables.WAIT) as connection:
                    holding = {tuple(row) for row in connection.execute(query.holding_among(keys))}
            except Exception as error:
                if not (db_errors.is_its_own(error) or (isinstance(error, DBAPIError) and db_errors.locked(error))):
                    raise
                continue  # it is unknown whether they are overtaken, so they are left to end by themselves
            self.caller.cancel([in_flight for in_flight, key in zip(some, keys, strict=True) if key not in holding])

    def drained(self) -> bool:
        """Return whether all calls of a stopping worker have ended. Past the drain's time limit, those still in flight are recorded as in
        doubt.
        """
        stopping = self._worker_state.stopping
        late_s = time.monotonic() - stopping if stopping is not None else 0.0
        if late_s > 0 and self._flying:
            for in_flight in self._flying.values():
                if not (in_flight.answered or in_flight.is_lookup) or in_flight.given_up:
                    self.left_in_doubt.add(in_flight.call)
                if not (in_flight.given_up or in_flight.answered or in_flight.is_lookup):
                    in_flight.cut_off = True
                    self._words.append(Unclear(in_flight, "the worker stopped while it was in the air"))
            self._flying.clear()
            self._worker_state.incarnation.air.clear()
            self.limits.clear()
        if self._in_hand and late_s > LAST_WORDS_S:
            left = [*self._words, *self._inbox]
            self.left_in_doubt |= {word.in_flight.call for word in left if not word.in_flight.is_lookup}
            self._kept.lost(left)
            return True
        return not self._in_hand  # records that wait for a slot or token are not begun any more


SAID_MOST = 1000  # outcomes that `_said` remembers
REMOVED_MOST = 10_000  # calls that `_removed` remembers: a second result of an older one is taken for that of an attempt deleted by hand
UNANSWERED_MOST = 10_000  # calls that `_unanswered` remembers: an older one that landed after all is put in doubt
LINGER_S = 0.001  # seconds: a turn waits this long for more results
LINGER_SHARE = 4  # a turn does not wait once a quarter (1/4) of the calls in flight came back
LOCKED_S = 0.02  # seconds until an outcome whose record is locked is tried again; doubled with each further try
LOCKED_MOST_S = 1.0  # seconds: the longest such wait
LAST_WORDS_S = 5.0  # seconds after the drain's limit, for recording which calls are in doubt


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except BaseException as error:  # outcomes may be of a user's class, whose == can raise anything
        let_through(error)
        return False


def _by_question(words: Sequence[CallResult]) -> dict[ConditionQuery, list[CallResult]]:
    by_question: dict[ConditionQuery, list[CallResult]] = {}
    for word in words:
        by_question.setdefault(word.in_flight.query, []).append(word)
    return by_question
