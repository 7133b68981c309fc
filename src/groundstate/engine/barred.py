"""Lanes whose tables somebody keeps locked, as a migration does: they wait, and nobody else does for them. Carries nothing out.

A locked record is skipped. A locked table is met by every statement on it, each of which would keep the whole worker waiting.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy.exc import DBAPIError

from groundstate.engine import trouble
from groundstate.engine.lane import Lane
from groundstate.engine.shift import Shift, postpone

log = logging.getLogger("groundstate")
WAIT = timedelta(milliseconds=100)  # for a table, where only looking is to be done
LONGEST_S = 2.0  # after which it is looked again


def bar(lane: Lane) -> None:
    """This lane met a locked table."""
    if not lane.barred:
        log.warning(
            "%s waits: somebody has locked a table that it asks (a migration?); the others go on",
            lane.name,
            extra={"event": "reaction_barred", "reaction": lane.name},
        )
    lane.barred = True
    postpone(lane)
    lane.not_before = min(lane.not_before, time.monotonic() + LONGEST_S)


def are_barred(shift: Shift, lanes: Sequence[Lane]) -> bool:
    """Looks which of these meet a locked table, and bars them; whether there is any. It reads alone, and waits for none."""
    found = False
    for lane in lanes:
        try:
            with shift.database.reading(wait=WAIT) as connection:
                lane.probe(connection)
        except DBAPIError as error:
            if trouble.undefined(error):  # by the migration that locked it: the lane meets that by itself
                lane.barred = False
                continue
            if not trouble.locked(error):
                raise
            bar(lane)
            found = True
        else:
            lane.barred = False
    return found


def look_again(shift: Shift) -> bool:
    """Those that were barred a while ago; whether all of them can go on."""
    barred = [lane for lane in shift.parts if lane.barred and lane.not_before <= time.monotonic()]
    return bool(barred) and not are_barred(shift, barred)
