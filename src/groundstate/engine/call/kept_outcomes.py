"""Logs which results of calls cannot be written yet, and why. Writes nothing to the database.

A result waits for one of two reasons. Another transaction has locked the record (PostgreSQL): that is logged once for each reaction, with
the holder of the lock, and again when the wait is over. Or the condition raises an error for the record: that is logged for each result.
Outcomes that still wait when the worker ends are written to the log.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy.exc import DBAPIError

from groundstate.engine.handle.apply_outcome import pen_of
from groundstate.engine.rows import outcome_json
from groundstate.engine.rows.attempt_log import name_record
from groundstate.engine.rows.in_flight import CallResult, Returned
from groundstate.engine.rows.limited_logging import OUTCOME_WAITS
from groundstate.engine.sql import lock_waits
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch import locked_tables
from groundstate.engine.watch.worker_state import WorkerState

log = logging.getLogger("groundstate")
TOLD_AFTER_S = 5.0  # seconds for which a result must have waited for a lock before it is logged


@dataclass
class _LockedResults:
    """For one reaction: since when the result of each call has waited for a lock, by call number."""

    since: dict[int, float] = field(default_factory=dict)
    told: bool = False


class LockedResultsLog:
    """Logs which call results of one worker wait to be written. Must be used only by the thread that runs its transactions."""

    def __init__(self, worker_state: WorkerState) -> None:
        self._worker_state = worker_state
        self._of: dict[ConditionQuery, _LockedResults] = {}
        self._unasked: set[int] = set()  # numbers of calls whose outcome was logged as waiting until the record is mended

    def note_locked_results(self, met: Sequence[CallResult], in_hand: Sequence[CallResult], now: float) -> None:
        """Update, after a commit, which results wait for a lock, and log the results that have waited long.

        met: results whose records another transaction had locked.
        in_hand: all results that are not written yet.
        """
        for result in met:
            self._of.setdefault(result.in_flight.query, _LockedResults()).since.setdefault(result.in_flight.call, now)
        if not self._of:
            return
        left = {result.in_flight.call: result.in_flight.identity[2] for result in in_hand}
        for query, of in list(self._of.items()):
            longest_s = now - min(of.since.values())
            of.since = {call: since for call, since in of.since.items() if call in left}
            if not of.since:
                del self._of[query]
                self._log_written_results(query, of, longest_s)
            elif not of.told and longest_s >= TOLD_AFTER_S:
                of.told = True
                self._log_waiting_result(query, left[min(of.since, key=of.since.__getitem__)])

    def note_results_of_raising_conditions(self, met: Sequence[tuple[CallResult, str]], in_hand: Sequence[CallResult], now: float) -> None:
        """Log, after a commit, each result that waits because the condition raises an error for its record. met: pairs (result, error).

        in_hand: all results that are not written yet.
        """
        if not (met or self._unasked):
            return
        self._unasked &= {result.in_flight.call for result in in_hand}
        incarnation = self._worker_state.incarnation
        for result, error in met:
            _, reaction, record, _ = result.in_flight.identity
            if result.in_flight.call in self._unasked:
                continue
            self._unasked.add(result.in_flight.call)
            if incarnation.lines.may_log(reaction, OUTCOME_WAITS, now):
                log.warning(
                    "%s: the outcome of its call waits in memory until the record is mended, and is held when the worker ends: %s",
                    name_record(incarnation, reaction, record),
                    incarnation.shorten(error),
                    extra={"event": "outcome_waits", "reaction": reaction, "record": record},
                )

    def log_lost_outcomes(self, in_hand: Sequence[CallResult]) -> None:
        """Log the outcomes that could not be written before the worker ended. Nothing else is left of them."""
        incarnation = self._worker_state.incarnation
        for result in in_hand:
            if not isinstance(result, Returned):
                continue
            _, reaction, record, _ = result.in_flight.identity
            written = outcome_json.dump_outcomes(result.in_flight.query.spec.outcome_type, [result.value], pen=pen_of(incarnation))
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
        key = query.key_from_text_or_none(record)
        try:
            with self._worker_state.database.reading(wait=locked_tables.WAIT) as connection:
                return None if key is None else lock_waits.describe_lock_on_record(connection, query, key)
        except DBAPIError:
            return None  # the caller then logs its line without the holder
