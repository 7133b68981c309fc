"""Logs which calls and lookups failed or ended in doubt, which results of calls cannot be written yet, and why. Writes nothing to the
database.

Failures and doubts are logged in one line each, up to a limit of lines per minute. A result that cannot be written waits for one of two
reasons. If another transaction has locked the record (PostgreSQL), the wait is logged once for each reaction, with the holder of the lock,
and again when it is over. If the condition raises an error for the record, the wait is logged for each result. Outcomes that still wait
when the worker ends are written to the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy.exc import DBAPIError

from groundstate.engine.handle.apply_outcome import outcome_writer_of
from groundstate.engine.rows import outcome_json
from groundstate.engine.rows.attempt_log import name_record
from groundstate.engine.rows.in_flight import CallResult, FoundUnknown, InFlightCall, NothingHappened, Returned, Unclear
from groundstate.engine.rows.limited_logging import CALL_FAILED, CALL_HANGS, CALL_IN_DOUBT, OUTCOME_WAITS, LimitedLines
from groundstate.engine.sql import lock_waits
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch import locked_tables
from groundstate.engine.watch.worker_state import WorkerState

log = logging.getLogger("groundstate")
TOLD_AFTER_S = 5.0  # seconds for which a result waits for a lock before the wait is logged
_CURES = {
    False: "give its client a time limit of its own, since no thread can be ended from outside",
    True: "it swallows its cancellation, or another call blocks the loop",
}


class FailedCalls:
    """Logs failed calls of one worker. Must be used only by the thread that runs its transactions.

    shorten: returns an error text, redacted and cut to the length that is stored.
    """

    def __init__(self, shorten: Callable[[str], str], lines: LimitedLines) -> None:
        self._shorten = shorten
        self._lines = lines

    def log_failure(self, result: CallResult, now: float, *, pauses: bool, doubts: bool = False) -> None:
        """Log a concluded call result if it is a failure.

        pauses: whether the failure paused its service. Such a failure is logged even beyond the limit of lines.
        doubts: whether the result put its attempt in doubt.
        """
        reaction, record = result.in_flight.identity[1:3]
        match result:
            case Unclear(error=error, running=False) if doubts and self._lines.count_line(reaction, CALL_IN_DOUBT, now, anyhow=pauses):
                text = self._shorten(error)
                log.warning(
                    "%s is in doubt: %s",
                    _name_reaction_and_record(result.in_flight),
                    text,
                    extra={"event": "call_in_doubt", "reaction": reaction, "record": record},
                )
                return
            case NothingHappened(error=error):
                text = f"the call failed: {error}"
            case FoundUnknown(error=error) if error is not None:
                text = error
            case _:
                return  # the result is no failure, or its call still runs and was logged at its time limit
        if self._lines.count_line(reaction, CALL_FAILED, now, anyhow=pauses):
            text = f"{_name_reaction_and_record(result.in_flight)}: {self._shorten(text)}"
            if pauses:
                log.warning("%s", text, extra={"event": "call_failed", "reaction": reaction, "record": record})
            else:
                log.info("%s", text, extra={"event": "call_failed", "reaction": reaction, "record": record})

    def log_hanging_call(self, in_flight: InFlightCall, error: str, now: float) -> None:
        """Log that a call or lookup still runs after its time limit."""
        call, (reaction, record) = in_flight.query.spec.call, in_flight.identity[1:3]
        if call is None or not self._lines.count_line(reaction, CALL_HANGS, now):
            return
        find = call.lookup if in_flight.is_lookup else None
        log.warning(
            "%s%s %s%s: %s",
            _name_reaction_and_record(in_flight),
            ": its lookup" if in_flight.is_lookup else "",
            error,
            "" if in_flight.is_lookup else ", and is in doubt",
            _CURES[(find or call.function).is_async],
            extra={"event": "call_hangs", "reaction": reaction, "record": record},
        )


def _name_reaction_and_record(in_flight: InFlightCall) -> str:
    spec = in_flight.query.spec
    return f"{spec.name} on {spec.table_name} {in_flight.identity[2]}"


@dataclass
class _LockedResults:
    """The call results of one reaction that wait for a lock. `since` says when the wait of each result began, by call number."""

    since: dict[int, float] = field(default_factory=dict)
    told: bool = False


class LockedResultsLog:
    """Logs which call results of one worker wait to be written. Must be used only by the thread that runs its transactions."""

    def __init__(self, worker_state: WorkerState) -> None:
        self._worker_state = worker_state
        self._of: dict[ConditionQuery, _LockedResults] = {}
        # numbers of the calls for which this was logged: the outcome waits, because the condition raises an error for the record
        self._unasked: set[int] = set()

    def note_locked_results(self, locked: Sequence[CallResult], unwritten: Sequence[CallResult], now: float) -> None:
        """Update, after a commit, which results wait for a lock, and log the results that have waited long.

        locked: results whose records another transaction had locked.
        unwritten: all results that are not written yet.
        """
        for result in locked:
            self._of.setdefault(result.in_flight.query, _LockedResults()).since.setdefault(result.in_flight.call, now)
        if not self._of:
            return
        left = {result.in_flight.call: result.in_flight.identity[2] for result in unwritten}
        for query, of in list(self._of.items()):
            longest_s = now - min(of.since.values())
            of.since = {call: since for call, since in of.since.items() if call in left}
            if not of.since:
                del self._of[query]
                self._log_written_results(query, of, longest_s)
            elif not of.told and longest_s >= TOLD_AFTER_S:
                of.told = True
                self._log_waiting_result(query, left[min(of.since, key=of.since.__getitem__)])

    def note_results_of_raising_conditions(
        self, raising: Sequence[tuple[CallResult, str]], unwritten: Sequence[CallResult], now: float
    ) -> None:
        """Log, after a commit, each result that waits because the condition raises an error for its record. raising: pairs (result, error).

        unwritten: all results that are not written yet.
        """
        if not (raising or self._unasked):
            return
        self._unasked &= {result.in_flight.call for result in unwritten}
        incarnation = self._worker_state.incarnation
        for result, error in raising:
            _, reaction, record, _ = result.in_flight.identity
            if result.in_flight.call in self._unasked:
                continue
            self._unasked.add(result.in_flight.call)
            if incarnation.lines.count_line(reaction, OUTCOME_WAITS, now):
                log.warning(
                    "%s: the outcome of its call waits in memory until the record is mended, and is held when the worker ends: %s",
                    name_record(incarnation, reaction, record),
                    incarnation.shorten(error),
                    extra={"event": "outcome_waits", "reaction": reaction, "record": record},
                )

    def log_lost_outcomes(self, unwritten: Sequence[CallResult]) -> None:
        """Log the outcomes that could not be written before the worker ended. They are stored nowhere else."""
        incarnation = self._worker_state.incarnation
        for result in unwritten:
            if not isinstance(result, Returned):
                continue
            _, reaction, record, _ = result.in_flight.identity
            written = outcome_json.dump_outcomes(
                result.in_flight.query.spec.outcome_type, [result.value], pen=outcome_writer_of(incarnation)
            )
            log.error(
                "%s: the outcome of its call could not be written before the worker ended, and the call is in doubt; outcome: %s",
                name_record(incarnation, reaction, record),
                incarnation.shorten_outcome(written),
                extra={"event": "outcome_unwritten", "reaction": reaction, "record": record},
            )

    def _log_waiting_result(self, query: ConditionQuery, record: str) -> None:
        log.warning(
            "%s on %s %s: the result of its call cannot be written, since %s: it is kept in memory, and written once that ends",
            query.spec.name,
            query.spec.table_name,
            record,
            self._describe_lock_holder(query, record) or "another transaction has locked its row",
            extra={"event": "answer_waits", "reaction": query.spec.name, "record": record},
        )

    def _log_written_results(self, query: ConditionQuery, of: _LockedResults, took_s: float) -> None:
        if of.told:
            log.info(
                "%s: the results of its calls are written, after other transactions had locked their rows for %.0f s",
                query.spec.name,
                took_s,
                extra={"event": "answer_written", "reaction": query.spec.name, "took_s": round(took_s, 3)},
            )

    def _describe_lock_holder(self, query: ConditionQuery, record: str) -> str | None:
        key = query.keys.key_from_text_or_none(record)
        try:
            with self._worker_state.database.reading(wait=locked_tables.WAIT) as connection:
                return None if key is None else lock_waits.describe_lock_on_record(connection, query, key)
        except DBAPIError:
            return None  # the caller then logs the wait without naming the holder of the lock
