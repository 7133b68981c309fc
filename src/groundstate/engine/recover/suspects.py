"""Chooses in careful mode which suspected attempt runs next (hazard 25). An attempt is suspected if it may have ended its worker. Suspected
attempts run alone, one after the other.
"""

from __future__ import annotations

from groundstate.engine.handle.poison_guard import is_suspected
from groundstate.engine.rows import attempts
from groundstate.engine.rows.attempts import Identity
from groundstate.engine.sql.db_errors import reading_own_rows
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.poison_suspects import DIED
from groundstate.store.tables import attempt as table

AGAIN_S = 1.0  # seconds for which the chosen attempt is not chosen again, since it may be locked, or its service paused
LOOKED_AT = 100  # the most attempts that are read to choose one
CALLED_AGAIN = ("repeat", "same_key")  # policies that repeat a call in doubt; the other policies look the call up, or hold it


class Suspects:
    """Chooses among the suspected attempts of one worker, and sets `worker_state.alone` to the chosen attempt."""

    def __init__(self, worker_state: WorkerState) -> None:
        self._worker_state = worker_state
        self._not_before: dict[Identity, float] = {}

    def choose_next(self) -> None:
        """Set `worker_state.alone` to the suspected attempt that runs next, or to None. The chosen attempt waits until no call is in
        flight, and no other call begins before it.
        """
        worker_state, now = self._worker_state, self._worker_state.clock.monotonic()
        worker_state.choose_attempt_to_run_alone(None)
        if not (worker_state.incarnation.care.careful and worker_state.incarnation.sound) or worker_state.stopping is not None:
            return
        self._not_before = {identity: at for identity, at in self._not_before.items() if at > now}
        due = (
            table.c.app == worker_state.app,
            table.c.state.in_([State.FAILED.value, State.DOUBT.value]),
            table.c.next_at <= worker_state.database.now(),
        )
        statement = attempts.select_attempts(*due, table.c.why.startswith(DIED)).order_by(table.c.next_at).limit(LOOKED_AT)
        with worker_state.database.reading() as connection, reading_own_rows():
            found = attempts.fetch_attempts(connection, statement)
        worker_state.choose_attempt_to_run_alone(next((one for one in found if self._can_be_carried_out(one)), None))

    def postpone_chosen(self) -> None:
        """Exclude the chosen attempt from the choice for one second, so that other suspected attempts have their turn."""
        if self._worker_state.alone is not None:
            self._not_before[self._worker_state.alone.identity] = self._worker_state.clock.monotonic() + AGAIN_S

    def _can_be_carried_out(self, one: Attempt) -> bool:
        if one.identity in self._not_before or not is_suspected(self._worker_state.incarnation, one):
            return False
        if one.reaction in self._worker_state.schedules:
            return True
        queue = next((queue for queue in self._worker_state.queues if queue.name == one.reaction), None)
        if queue is None or not queue.is_enabled or queue.postponement.lacks is not None:
            return False
        if self._worker_state.incarnation.air.must_leave_alone(queue.query.spec, one.record):
            return False  # a call for this record timed out but still runs, and the attempt stays in doubt until the call has ended
        policy = queue.query.spec.terms.policy
        return one.state is State.FAILED or (
            one.worker == self._worker_state.incarnation.id and policy is not None and policy.kind in CALLED_AGAIN
        )
