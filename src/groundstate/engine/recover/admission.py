"""Decides which reactions a worker carries out: those whose condition is as it was accepted. New and changed ones wait for a person.

(Hazards 49 and 50.) Of a changed reaction, rows that the accepted condition matches too are carried out meanwhile, so that neither a new
version nor an older one beside it stops. Reads what was accepted, and logs what was not; carries nothing out.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence

from groundstate.engine.recover import acceptance
from groundstate.engine.rows import baselines, data_restore_check, reaction_registry
from groundstate.engine.rows.data_restore_check import Waiting
from groundstate.engine.rows.reaction_registry import Known, Newcomer
from groundstate.engine.sql import db_errors, findings
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch import locked_tables, missing_columns
from groundstate.engine.watch.idle_probe import IdleProbe
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.acceptance import Acceptance
from groundstate.rules.specs import ReactionSpec
from groundstate.values.errors import StoreRefusedError

log = logging.getLogger("groundstate")
OLDER_EACH_S = 600.0


class Admission:
    """The admission of one worker's reactions. Only the worker's own thread calls it.

    accept: which new and changed reactions start on rows that exist already. leave_undeclared: start even if there are attempts of
    reactions that this code does not declare.
    """

    def __init__(self, worker_state: WorkerState, *, accept: Acceptance, leave_undeclared: bool = False) -> None:
        self._worker_state = worker_state
        self._accept = accept
        self._leave_undeclared = leave_undeclared
        self._known = ""
        self._looks_at_older = 0.0
        self._of_unsaid_records: list[ReactionSpec] = []  # accepted by older code, which did not record their table and key
        self._unasked: set[str] = set()  # former conditions of baselines that this database cannot evaluate any more
        self.refused: list[Newcomer] = []  # reactions that do not start until a person accepts them

    def read(self) -> None:
        """Read which reactions are accepted, before the first incarnation begins.

        Raises:
            StoreRefusedError: attempts are open of reactions that this code does not declare, or calls would use another reaction's keys.
        """
        worker_state = self._worker_state
        with worker_state.database.reading() as connection:
            left = reaction_registry.removed(
                connection, worker_state.app, [queue.name for queue in worker_state.queues], worker_state.schedules
            )
            if left:
                self._refuse_or_leave(left)
            seen = reaction_registry.known(connection, worker_state.app)
            specs = [queue.query.spec for queue in worker_state.queues]
            clashes = reaction_registry.key_clashes(connection, specs)
            if clashes:
                raise StoreRefusedError("; ".join(clashes))
            _say_key_names(reaction_registry.unsaid_key_names(connection, worker_state.app, specs))
            for queue in worker_state.parts:
                queue.query.has_triggers = reaction_registry.has_triggers(connection, worker_state.database, queue.query)
        self._remember(seen)
        gone = reaction_registry.gone(seen, {*(queue.name for queue in worker_state.queues), *worker_state.schedules})
        if gone:
            log.warning("%s", reaction_registry.gone_in_words(gone), extra={"event": "reactions_gone", "reactions": list(gone)})
        for queue in worker_state.queues:
            for part in _parts(queue):
                part.admitted = _accepted(seen, queue)
        self._of_unsaid_records = [queue.query.spec for queue in worker_state.queues if queue.admitted and seen[queue.name].record is None]

    def _refuse_or_leave(self, left: Sequence[tuple[str, int]]) -> None:
        listed = ", ".join(f"{name or repr(name)} ({count})" for name, count in left)
        if not self._leave_undeclared:
            raise StoreRefusedError(
                f"attempts are open for reactions that this code does not declare: {listed}. "
                "Renamed: `groundstate rename OLD NEW`. Removed: settle or forget them first (`groundstate held`). "
                "Rolled back: `groundstate run --leave-undeclared` starts and leaves them to the code that declares them"
            )
        log.warning(
            "attempts of reactions that this code does not declare are left as they are, to the code that does: %s",
            listed,
            extra={"event": "undeclared_left", "reactions": [name for name, _ in left], "count": sum(count for _, count in left)},
        )

    def count_newcomers(self) -> None:
        """Count the rows of new and changed reactions, and start or refuse these. Counting may take a while, so known reactions begin
        before.

        Reactions of which nothing can be asked before a migration has run are counted after it.
        """
        worker_state = self._worker_state
        counted = {one.name for one in self.refused}
        if self._of_unsaid_records:
            reaction_registry.remember_records(worker_state.incarnation, self._of_unsaid_records)
            self._of_unsaid_records = []
        pending = [queue.query for queue in worker_state.queues if not queue.admitted and queue.name not in counted]
        if not pending:
            return
        with worker_state.database.reading() as connection:
            seen = reaction_registry.known(connection, worker_state.app)
            silent, loud = reaction_registry.newcomers(connection, pending, seen, _unasked)
            told = {*(one.name for one in loud), *(query.spec.name for query in silent)}
            others = [query for query in pending if query.spec.name not in told]
            older = [one for one in others if reaction_registry.is_quietly_older(connection, one, seen.get(one.spec.name))]
        if len(older) < len(others):
            missing_columns.look_over(worker_state)  # finds and logs what they wait for
        reaction_registry.write(worker_state.incarnation, silent)
        started = acceptance.start(worker_state.incarnation, {query.spec.name: query for query in pending}, loud, self._accept, seen)
        for query in [*silent, *started]:
            query.widen()
            if query.spec.name not in worker_state.incarnation.waiting:
                worker_state.queue(query.spec.name).start()
        if started:
            worker_state.look_for_due()
        names = {query.spec.name for query in started}
        refused = [newcomer for newcomer in loud if newcomer.name not in names]
        both = {one.name for one in refused if one.both}
        for query in [*older, *(one for one in pending if one.spec.name in both)]:
            if not query.narrowed:
                query.narrow(seen[query.spec.name].condition)
            if query.spec.name not in worker_state.incarnation.waiting:
                worker_state.queue(query.spec.name).start()
        self.refused = [*self.refused, *refused]
        for newcomer in refused:
            log.error("%s", newcomer.words, extra={"event": "reaction_refused", "reaction": newcomer.name, "rows": newcomer.rows})

    def look_at_older(self) -> None:
        """Check whether this is older code that still runs so long after newer code was accepted that the app must have gone back to it. If
        so, its reactions count as changed ones.
        """
        if time.monotonic() < self._looks_at_older:
            return
        self._looks_at_older = time.monotonic() + OLDER_EACH_S
        worker_state, refused = self._worker_state, {one.name for one in self.refused}
        older = [queue for queue in worker_state.queues if queue.admitted and queue.query.narrowed and queue.name not in refused]
        if not older:
            return
        with worker_state.database.reading() as connection:
            seen = reaction_registry.known(connection, worker_state.app)
            over = [queue for queue in older if not reaction_registry.is_older(connection, queue.query, seen.get(queue.name))]
        for queue in over:
            queue.admitted = False
        if over:
            self.count_newcomers()

    def read_again(self, pulse: IdleProbe) -> None:
        """Follow what a person may have said meanwhile by a command (trust, accept), and delete baselines that no longer apply."""
        if pulse.known == self._known and not pulse.attempts:
            return
        news, self._known = pulse.known != self._known, pulse.known
        worker_state = self._worker_state
        with worker_state.database.reading() as connection:
            seen = reaction_registry.known(connection, worker_state.app)
            left = baselines.reactions_with_some(connection, worker_state.app)
            waiting = data_restore_check.waiting(worker_state.database, connection, worker_state.app) if news else None
        self._remember(seen)
        if waiting is not None:
            self._hold_back(waiting)
        self._stop_those_of_other_records(seen)
        for queue in worker_state.queues:
            if (
                queue.name not in worker_state.incarnation.waiting
                and _accepted(seen, queue)
                and (not queue.admitted or queue.query.narrowed)
            ):
                self.refused = [newcomer for newcomer in self.refused if newcomer.name != queue.name]
                queue.query.widen()
                queue.start()
            elif queue.name not in worker_state.incarnation.waiting and queue.query.narrowed and not queue.admitted:
                queue.start()
            if queue.name in left and queue.lacks is None:
                self._let_baselines_go(queue)

    def _stop_those_of_other_records(self, seen: dict[str, Known]) -> None:
        """Stop each reaction for which other code was accepted that knows its records by another table or key: neither code would see the
        other's attempts.
        """
        for queue in self._worker_state.queues:
            before = seen.get(queue.name)
            if before is None or not before.has_other_records(queue.query) or not any(part.admitted for part in _parts(queue)):
                continue
            for part in _parts(queue):
                part.admitted = False
            log.error(
                "%s is carried out here no more: code was accepted for which its records are %s, and here they are %s. Stop this worker",
                queue.name,
                before.record,
                queue.query.spec.records,
                extra={"event": "records_moved", "reaction": queue.name},
            )

    def _hold_back(self, waiting: Waiting) -> None:
        names = waiting.among(queue.query.spec for queue in self._worker_state.queues)
        if names - self._worker_state.incarnation.waiting:
            data_restore_check.log_waiting_reactions(names)
        self._worker_state.hold_back(names)

    def look_again(self) -> bool:
        """Check again what a migration may have repaired; return whether any reaction can go on."""
        went_on = missing_columns.look_again(self._worker_state)
        if went_on:
            self.count_newcomers()
        return went_on

    def _let_baselines_go(self, queue: WorkQueue) -> None:
        try:
            baselines.let_go(self._worker_state.incarnation, queue.query, self._unasked)
        except Exception as error:
            if not db_errors.is_its_own(error):
                raise
            missing_columns.wait_if_schema_misfit(
                self._worker_state, queue, error
            )  # of anything else the lane tells as it is asked for its rows

    def warn(self) -> None:
        """Log, at a start, which conditions read a whole large table (hazard 28), which rows this role may not see, which due times in
        SQLite are no times, and which records have columns that the database lacks.
        """
        missing_columns.look_over(self._worker_state)
        # These are warnings only: an error in one of them must not stop any work.
        with contextlib.suppress(Exception), self._worker_state.database.reading(wait=locked_tables.WAIT) as connection:
            queries = [queue.query for queue in self._worker_state.queues if queue.lacks is None]  # of the others nothing can be asked
            for finding in findings.find_hidden_rows(self._worker_state.database, connection, queries):
                log.warning("%s. Cure: %s", finding.words, finding.cure, extra={"event": "rows_hidden"})
            for finding in findings.find_odd_due_times(connection, queries):
                log.warning(
                    "%s: %s. Cure: %s",
                    finding.subject,
                    finding.words,
                    finding.cure,
                    extra={"event": "due_time_odd", "reaction": finding.subject},
                )
            for finding in findings.find_large_scans(self._worker_state.database, connection, queries):
                log.warning("%s. Cure: %s", finding.words, finding.cure or "see `groundstate check`", extra={"event": "condition_scans"})

    def _remember(self, seen: dict[str, Known]) -> None:
        self._worker_state.incarnation.key_names = {known.name: known.key_name for known in seen.values()}
        self._worker_state.incarnation.suspects = {known.name for known in seen.values() if known.suspect}


def _say_key_names(unsaid: Mapping[str, str]) -> None:
    for name, key_name in unsaid.items():
        log.warning(
            "%s was renamed, and this database alone knows of which name the keys of its calls are made: say key_name=%s in App.on, so that"
            " they stay the same where groundstate's tables are lost, or put back from before",
            name,
            key_name,
            extra={"event": "key_name_unsaid", "reaction": name},
        )


def _parts(queue: WorkQueue) -> list[WorkQueue]:
    return [part for part in (queue, queue.late) if part is not None]


def _accepted(seen: dict[str, Known], queue: WorkQueue) -> bool:
    before = seen.get(queue.name)
    return before is not None and before.is_as(queue.query)


def _unasked(query: ConditionQuery, error: Exception, words: str) -> None:
    if not (db_errors.undefined(error) or db_errors.unmade(error)):  # missing_columns.py logs such an error, and checks again
        log.error(
            "%s is not started: %s",
            query.spec.name,
            words,
            extra={"event": "condition_unaskable", "reaction": query.spec.name},
        )
