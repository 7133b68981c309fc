"""Logs that results of calls cannot be written yet. Writes nothing to the database.

Another transaction keeps the record locked (PostgreSQL): logged once for each reaction, with the lock's holder, and once more when it is
over. Or the condition raises for the record: logged for each. Outcomes that are left when the worker ends are logged themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy.exc import DBAPIError

from groundstate.engine.handle.apply_outcome import pen_of
from groundstate.engine.rows import outcome_json
from groundstate.engine.rows.attempt_log import named
from groundstate.engine.rows.in_flight import CallResult, Returned
from groundstate.engine.rows.limited_logging import OUTCOME_WAITS
from groundstate.engine.sql import lock_waits
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch import locked_tables
from groundstate.engine.watch.worker_state import WorkerState

log = logging.getLogger("groundstate")
TOLD_AFTER_S = 5.0  # seconds: how long a result must have met a lock before that is logged


@dataclass
class _LockedResults:
    """Records, for one reaction, since when the result of each call has met a lock."""

    since: dict[int, float] = field(default_factory=dict)
    told: bool = False


class LockedResultsLog:
    """Logs which call results of one worker wait for a row lock. Used by its transactions' thread only."""

    def __init__(self, worker_state: WorkerState) -> None:
        self._worker_state = worker_state
        self._of: dict[ConditionQuery, _LockedResults] = {}
        self._unasked: set[int] = set()  # calls whose outcome was told to wait until their record is mended

    def look(self, met: Sequence[CallResult], in_hand: Sequence[CallResult], now: float) -> None:
        """Take note of a commit. met: results whose records another transaction had locked; in_hand: results that are not written yet."""
        for word in met:
            self._of.setdefault(word.in_flight.query, _LockedResults()).since.setdefault(word.in_flight.call, now)
        if not self._of:
            return
        left = {word.in_flight.call: word.in_flight.identity[2] for word in in_hand}
        for query, of in list(self._of.items()):
            longest_s = now - min(of.since.values())
            of.since = {call: since for call, since in of.since.items() if call in left}
            if not of.since:
                del self._of[query]
                self._over(query, of, longest_s)
            elif not of.told and longest_s >= TOLD_AFTER_S:
                of.told = True
                self._tell(query, left[min(of.since, key=of.since.__getitem__)])

    def unasked(self, met: Sequence[tuple[CallResult, str]], in_hand: Sequence[CallResult], now: float) -> None:
        """After a commit: nobody can say whether the conditions of these records hold, so what their calls said waits."""
        if not (met or self._unasked):
            return
        self._unasked &= {word.in_flight.call for word in in_hand}
        incarnation = self._worker_state.incarnation
        for word, words in met:
            _, reaction, record, _ = word.in_flight.identity
            if word.in_flight.call in self._unasked:
                continue
            self._unasked.add(word.in_flight.call)
            if incarnation.lines.may_tell(reaction, OUTCOME_WAITS, now):
                log.warning(
                    "%s: what its call said waits in memory until the record is mended, and is held when the worker ends: %s",
                    named(incarnation, reaction, record),
                    incarnation.shorten(words),
                    extra={"event": "outcome_waits", "reaction": reaction, "record": record},
                )

    def lost(self, in_hand: Sequence[CallResult]) -> None:
        """The worker ends, and these could not be written down: the lines are the only trace of their outcomes."""
        incarnation = self._worker_state.incarnation
        for word in in_hand:
            if not isinstance(word, Returned):
                continue
            _, reaction, record, _ = word.in_flight.identity
            written = outcome_json.dump(word.in_flight.query.spec.outcome_type, [word.value], pen=pen_of(incarnation))
            log.error(
                "%s: what its call said could not be written down before the worker ended, and the call is in doubt; outcome: %s",
                named(incarnation, reaction, record),
                incarnation.outcome_as_text(written),
                extra={"event": "outcome_unwritten", "reaction": reaction, "record": record},
            )

    def _tell(self, query: ConditionQuery, record: str) -> None:
        log.warning(
            "%s on %s %s: what its call said cannot be written down, since %s: it is kept in memory, and written once that ends",
            query.spec.name,
            query.spec.table_name,
            record,
            self._who(query, record) or "somebody else has locked its row",
            extra={"event": "answer_waits", "reaction": query.spec.name, "record": record},
        )

    def _over(self, query: ConditionQuery, of: _LockedResults, took_s: float) -> None:
        if of.told:
            log.info(
                "%s: what its calls said is written, after rows were locked by somebody else for %.0f s",
                query.spec.name,
                took_s,
                extra={"event": "answer_written", "reaction": query.spec.name, "took_s": round(took_s, 3)},
            )

    def _who(self, query: ConditionQuery, record: str) -> str | None:
        key = query.key_of_text(record)
        try:
            with self._worker_state.database.reading(wait=locked_tables.WAIT) as connection:
                return None if key is None else lock_waits.who_has(connection, query, key)
        except DBAPIError:
            return None  # naming the holder is a courtesy: the line is logged without it
