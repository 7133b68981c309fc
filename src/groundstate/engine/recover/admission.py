"""Decides which reactions a worker carries out: those whose condition was accepted. New and changed reactions wait until a person accepts
them (hazards 49 and 50).

While a changed reaction waits, workers carry out the rows that match both the new condition and the accepted condition, so that workers of
the old and of the new version of the application go on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence

from groundstate.engine.recover import acceptance
from groundstate.engine.rows import baselines, data_restore_check, reaction_registry
from groundstate.engine.rows.data_restore_check import Waiting
from groundstate.engine.rows.reaction_registry import Known, UnacceptedReaction
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
OLDER_EACH_S = 600.0  # seconds: `recheck_older_code` makes its check at most once in this time


class Admission:
    """Decides which reactions of one worker are carried out. Only the worker's own thread calls it.

    accept: which new and changed reactions a person accepted. leave_undeclared: start even if there are attempts of reactions that this
    version of the application does not declare.
    """

    def __init__(self, worker_state: WorkerState, *, accept: Acceptance, leave_undeclared: bool = False) -> None:
        self._worker_state = worker_state
        self._accept = accept
        self._leave_undeclared = leave_undeclared
        self._known = ""
        self._looks_at_older = 0.0
        # Accepted reactions whose table and key are not recorded yet, since an older version of groundstate recorded the acceptance.
        self._of_unsaid_records: list[ReactionSpec] = []
        # Former conditions that this database cannot evaluate any more, as texts. A baseline stores the condition under which its row was
        # left out. Each text is logged once.
        self._log_unaskable: set[str] = set()
        self.refused: list[UnacceptedReaction] = []  # reactions that do not start until a person accepts them

    def read_accepted_reactions(self) -> None:
        """Read from the database which reactions are accepted. Call it before the worker takes its lock.

        Raises:
            StoreRefusedError: there are open attempts of a reaction that this version of the application does not declare, or the calls of
            a reaction would use the idempotency keys of another reaction.
        """
        worker_state = self._worker_state
        with worker_state.database.reading() as connection:
            left = reaction_registry.undeclared_with_open_attempts(
                connection, worker_state.app, [queue.name for queue in worker_state.queues], worker_state.schedules
            )
            if left:
                self._refuse_or_log_undeclared(left)
            seen = reaction_registry.read_known_reactions(connection, worker_state.app)
            specs = [queue.query.spec for queue in worker_state.queues]
            clashes = reaction_registry.key_clashes(connection, specs)
            if clashes:
                raise StoreRefusedError("; ".join(clashes))
            _log_unsaid_key_names(reaction_registry.undeclared_key_names(connection, worker_state.app, specs))
            for queue in worker_state.all_queues:
                queue.query.triggers_may_change_row = reaction_registry.has_triggers(connection, worker_state.database, queue.query)
        self._store_key_names_and_suspects(seen)
        gone = reaction_registry.undeclared_names(seen, {*(queue.name for queue in worker_state.queues), *worker_state.schedules})
        if gone:
            log.warning("%s", reaction_registry.undeclared_message(gone), extra={"event": "reactions_gone", "reactions": list(gone)})
        for queue in worker_state.queues:
            for part in _queue_and_late_queue(queue):
                if _is_accepted(seen, queue):
                    part.postponement.admit()
                else:
                    part.postponement.wait_for_acceptance()
        self._of_unsaid_records = [
            queue.query.spec for queue in worker_state.queues if queue.postponement.admitted and seen[queue.name].record is None
        ]

    def _refuse_or_log_undeclared(self, left: Sequence[tuple[str, int]]) -> None:
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
        """Count the rows of new and changed reactions, and start or refuse each of these reactions. Counting may take a while, so call it
        after the accepted reactions have started.

        If a condition cannot be queried before a migration has run, its rows are counted after the migration.
        """
        worker_state = self._worker_state
        counted = {one.name for one in self.refused}
        if self._of_unsaid_records:
            reaction_registry.fill_in_missing_records(worker_state.incarnation, self._of_unsaid_records)
            self._of_unsaid_records = []
        pending = [queue.query for queue in worker_state.queues if not queue.postponement.admitted and queue.name not in counted]
        if not pending:
            return
        with worker_state.database.reading() as connection:
            seen = reaction_registry.read_known_reactions(connection, worker_state.app)
            silent, loud = reaction_registry.split_newcomers(connection, pending, seen, _log_unaskable)
            told = {*(one.name for one in loud), *(query.spec.name for query in silent)}
            others = [query for query in pending if query.spec.name not in told]
            older = [one for one in others if reaction_registry.may_start_as_older_code(connection, one, seen.get(one.spec.name))]
        if len(older) < len(others):
            missing_columns.find_misfits(worker_state)  # finds and logs what the remaining reactions wait for
        reaction_registry.accept_reactions(worker_state.incarnation, silent)
        started = acceptance.start_accepted(
            worker_state.incarnation, {query.spec.name: query for query in pending}, loud, self._accept, seen
        )
        for query in [*silent, *started]:
            query.end_narrowing()
            if query.spec.name not in worker_state.incarnation.waiting:
                worker_state.queue_named(query.spec.name).admit()
        if started:
            worker_state.request_due_query()
        names = {query.spec.name for query in started}
        refused = [newcomer for newcomer in loud if newcomer.name not in names]
        both = {one.name for one in refused if one.both}
        for query in [*older, *(one for one in pending if one.spec.name in both)]:
            if not query.narrowed:
                query.narrow_by(seen[query.spec.name].condition)
            if query.spec.name not in worker_state.incarnation.waiting:
                worker_state.queue_named(query.spec.name).admit()
        self.refused = [*self.refused, *refused]
        for newcomer in refused:
            log.error("%s", newcomer.message, extra={"event": "reaction_refused", "reaction": newcomer.name, "rows": newcomer.rows})

    def recheck_older_code(self) -> None:
        """Check whether this older version of the application still runs long after a newer version was accepted. Then the application
        probably went back to the older version, and the reactions of the older version count as changed.
        """
        if self._worker_state.clock.monotonic() < self._looks_at_older:
            return
        self._looks_at_older = self._worker_state.clock.monotonic() + OLDER_EACH_S
        worker_state, refused = self._worker_state, {one.name for one in self.refused}
        older = [
            queue for queue in worker_state.queues if queue.postponement.admitted and queue.query.narrowed and queue.name not in refused
        ]
        if not older:
            return
        with worker_state.database.reading() as connection:
            seen = reaction_registry.read_known_reactions(connection, worker_state.app)
            over = [queue for queue in older if not reaction_registry.is_older(connection, queue.query, seen.get(queue.name))]
        for queue in over:
            queue.postponement.wait_for_acceptance()
        if over:
            self.count_newcomers()

    def reread_registry(self, pulse: IdleProbe) -> None:
        """Read again what a person accepted or trusted by a command, and act on it. Also delete baselines (records of rows that were left
        out when a reaction was new) that no longer apply.
        """
        if pulse.known == self._known and not pulse.attempts:
            return
        news, self._known = pulse.known != self._known, pulse.known
        worker_state = self._worker_state
        with worker_state.database.reading() as connection:
            seen = reaction_registry.read_known_reactions(connection, worker_state.app)
            left = baselines.reactions_with_baselines(connection, worker_state.app)
            waiting = data_restore_check.find_waiting_reactions(worker_state.database, connection, worker_state.app) if news else None
        self._store_key_names_and_suspects(seen)
        if waiting is not None:
            self._hold_back_waiting(waiting)
        self._stop_reactions_with_other_records(seen)
        for queue in worker_state.queues:
            if (
                queue.name not in worker_state.incarnation.waiting
                and _is_accepted(seen, queue)
                and (not queue.postponement.admitted or queue.query.narrowed)
            ):
                self.refused = [newcomer for newcomer in self.refused if newcomer.name != queue.name]
                queue.query.end_narrowing()
                queue.admit()
            elif queue.name not in worker_state.incarnation.waiting and queue.query.narrowed and not queue.postponement.admitted:
                queue.admit()
            if queue.name in left and queue.postponement.lacks is None:
                self._delete_old_baselines(queue)

    def _stop_reactions_with_other_records(self, seen: dict[str, Known]) -> None:
        """Stop each reaction that was accepted in another version, with its records in another table or with another key. Workers of the
        two versions would not find each other's attempts.
        """
        for queue in self._worker_state.queues:
            before = seen.get(queue.name)
            if (
                before is None
                or not before.has_other_records(queue.query)
                or not any(part.postponement.admitted for part in _queue_and_late_queue(queue))
            ):
                continue
            for part in _queue_and_late_queue(queue):
                part.postponement.wait_for_acceptance()
            log.error(
                "%s is no longer carried out here: code was accepted for which its records are %s, and here they are %s. Stop this worker",
                queue.name,
                before.record,
                queue.query.spec.record_kind,
                extra={"event": "records_moved", "reaction": queue.name},
            )

    def _hold_back_waiting(self, waiting: Waiting) -> None:
        names = waiting.names_of_waiting(queue.query.spec for queue in self._worker_state.queues)
        if names - self._worker_state.incarnation.waiting:
            data_restore_check.log_waiting_reactions(names)
        self._worker_state.hold_back_reactions(names)

    def recheck_lacking_reactions(self) -> bool:
        """Check again the reactions for which the database lacks something, such as a column; return whether any of them goes on."""
        went_on = missing_columns.recheck_lacking_queues(self._worker_state)
        if went_on:
            self.count_newcomers()
        return went_on

    def _delete_old_baselines(self, queue: WorkQueue) -> None:
        try:
            baselines.delete_obsolete_baselines(self._worker_state.incarnation, queue.query, self._log_unaskable)
        except Exception as error:
            if not db_errors.is_fault_of_statement(error):
                raise
            missing_columns.wait_if_schema_misfit(
                self._worker_state, queue, error
            )  # an error of another kind is raised again when the condition is queried, and is logged then

    def log_start_warnings(self) -> None:
        """Log the warnings of a start: conditions that read a whole large table (hazard 28), rows that this database role may not see, due
        times in SQLite that are no times, and columns that the database lacks.
        """
        missing_columns.find_misfits(self._worker_state)
        # These are warnings only: an error in one of them must not stop any work.
        with contextlib.suppress(Exception), self._worker_state.database.reading(wait=locked_tables.WAIT) as connection:
            queries = [
                queue.query for queue in self._worker_state.queues if queue.postponement.lacks is None
            ]  # the conditions of all other reactions cannot be queried
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

    def _store_key_names_and_suspects(self, seen: dict[str, Known]) -> None:
        self._worker_state.incarnation.key_names = {known.name: known.key_name for known in seen.values()}
        self._worker_state.incarnation.suspects = {known.name for known in seen.values() if known.suspect}


def _log_unsaid_key_names(unsaid: Mapping[str, str]) -> None:
    for name, key_name in unsaid.items():
        log.warning(
            "%s was renamed, and only this database knows from which name its keys are made: give key_name=%s to App.on, so that"
            " the keys stay the same if groundstate's tables are lost or restored from a backup",
            name,
            key_name,
            extra={"event": "key_name_unsaid", "reaction": name},
        )


def _queue_and_late_queue(queue: WorkQueue) -> list[WorkQueue]:
    return [part for part in (queue, queue.late) if part is not None]


def _is_accepted(seen: dict[str, Known], queue: WorkQueue) -> bool:
    before = seen.get(queue.name)
    return before is not None and before.is_accepted_as(queue.query)


def _log_unaskable(query: ConditionQuery, error: Exception, words: str) -> None:
    if not (
        db_errors.is_schema_mismatch(error) or db_errors.is_raised_before_sending(error)
    ):  # missing_columns.py logs a schema mismatch itself, and checks the condition again later
        log.error(
            "%s is not started: %s",
            query.spec.name,
            words,
            extra={"event": "condition_unaskable", "reaction": query.spec.name},
        )
