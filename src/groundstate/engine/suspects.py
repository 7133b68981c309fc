"""Careful mode: whose turn it is, of those who are suspected of having ended their workers (hazard 25). Carries out nothing itself."""

from __future__ import annotations

import time

from groundstate.engine import attempts
from groundstate.engine.attempts import Identity
from groundstate.engine.careful import is_suspected
from groundstate.engine.shift import Shift
from groundstate.engine.trouble import reading_ours
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.careful import DIED
from groundstate.store.tables import attempt as table

AGAIN_S = 1.0  # one whose turn came to nothing, since it is locked, or its service is paused, lets the others go on for so long
LOOKED_AT = 100
CALLED_AGAIN = ("again", "same_key")  # policies under which a doubt is called again; the others ask, or hold


class Suspects:
    """Of one worker: sets `shift.alone` for each turn."""

    def __init__(self, shift: Shift) -> None:
        self._shift = shift
        self._not_before: dict[Identity, float] = {}

    def turn(self) -> None:
        """Who comes next. While calls are in the air it is waited for their end, and none is begun."""
        shift, now = self._shift, time.monotonic()
        shift.alone = None
        if not (shift.life.care.careful and shift.life.sound) or shift.stopping is not None:
            return
        self._not_before = {identity: at for identity, at in self._not_before.items() if at > now}
        due = (
            table.c.app == shift.app,
            table.c.state.in_([State.FAILED.value, State.DOUBT.value]),
            table.c.next_at <= shift.database.now(),
        )
        statement = attempts.rows(*due, table.c.why.startswith(DIED)).order_by(table.c.next_at).limit(LOOKED_AT)
        with shift.database.reading() as connection, reading_ours():
            found = attempts.fetch(connection, statement)
        shift.alone = next((one for one in found if self._may_come(one)), None)

    def had_its_turn(self) -> None:
        """It is under way, or over, or could not be carried out just now."""
        if self._shift.alone is not None:
            self._not_before[self._shift.alone.identity] = time.monotonic() + AGAIN_S

    def _may_come(self, one: Attempt) -> bool:
        if one.identity in self._not_before or not is_suspected(self._shift.life, one):
            return False
        if one.reaction in self._shift.schedules:
            return True
        lane = next((lane for lane in self._shift.lanes if lane.name == one.reaction), None)
        if lane is None or not lane.on or lane.lacks is not None:
            return False
        if self._shift.life.air.holds(lane.question.spec, one.record):
            return False  # a call that was given up, and goes on: its doubt is not settled before it has ended
        policy = lane.question.spec.terms.policy
        return one.state is State.FAILED or (one.worker == self._shift.life.id and policy is not None and policy.kind in CALLED_AGAIN)
