"""Careful mode: chooses which of the attempts suspected of having ended their workers is carried out next (hazard 25). Carries nothing out
itself.
"""

from __future__ import annotations

import time

from groundstate.engine.handle.poison_guard import is_suspected
from groundstate.engine.rows import attempts
from groundstate.engine.rows.attempts import Identity
from groundstate.engine.sql.db_errors import reading_ours
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.poison_suspects import DIED
from groundstate.store.tables import attempt as table

AGAIN_S = 1.0  # seconds in which others go first after an attempt was chosen, in case it is locked or its service is paused
LOOKED_AT = 100
CALLED_AGAIN = ("repeat", "same_key")  # policies that repeat a call in doubt; the others look it up, or hold it


class Suspects:
    """The suspected attempts of one worker. Sets `worker_state.alone` in each loop iteration."""

    def __init__(self, worker_state: WorkerState) -> None:
        self._worker_state = worker_state
        self._not_before: dict[Identity, float] = {}

    def turn(self) -> None:
        """Choose the suspected attempt that is carried out next. It waits for calls in flight to end, and no call begins before it."""
        worker_state, now = self._worker_state, time.monotonic()
        worker_state.alone = None
        if not (worker_state.incarnation.care.careful and worker_state.incarnation.sound) or worker_state.stopping is not None:
            return
        self._not_before = {identity: at for identity, at in self._not_before.items() if at > now}
        due = (
            table.c.app == worker_state.app,
            table.c.state.in_([State.FAILED.value, State.DOUBT.value]),
            table.c.next_at <= worker_state.database.now(),
        )
        statement = attempts.select_attempts(*due, table.c.why.startswith(DIED)).order_by(table.c.next_at).limit(LOOKED_AT)
        with worker_state.database.reading() as connection, reading_ours():
            found = attempts.fetch(connection, statement)
        worker_state.alone = next((one for one in found if self._may_come(one)), None)

    def had_its_turn(self) -> None:
        """Note that the chosen attempt is under way, is over, or could not be carried out now, so that others come before it."""
        if self._worker_state.alone is not None:
            self._not_before[self._worker_state.alone.identity] = time.monotonic() + AGAIN_S

    def _may_come(self, one: Attempt) -> bool:
        if one.identity in self._not_before or not is_suspected(self._worker_state.incarnation, one):
            return False
        if one.reaction in self._worker_state.schedules:
            return True
        queue = next((queue for queue in self._worker_state.queues if queue.name == one.reaction), None)
        if queue is None or not queue.on or queue.lacks is not None:
            return False
        if self._worker_state.incarnation.air.holds(queue.query.spec, one.record):
            return False  # a call that was given up still runs: its attempt stays in doubt until it has ended
        policy = queue.query.spec.terms.policy
        return one.state is State.FAILED or (
            one.worker == self._worker_state.incarnation.id and policy is not None and policy.kind in CALLED_AGAIN
        )
