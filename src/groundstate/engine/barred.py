"""Lanes whose tables somebody keeps locked, as a migration does: they wait, and nobody else does for them. Carries nothing out.

A locked record is skipped. A locked table is met by every statement on it, each of which would keep the whole worker waiting.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy.exc import DBAPIError

from groundstate.engine import aside, attempts, locked, trouble
from groundstate.engine.lane import Lane
from groundstate.engine.shift import Shift, postpone

log = logging.getLogger("groundstate")
WAIT = timedelta(milliseconds=100)  # for a table, where only looking is to be done
LONGEST_S = 2.0  # after which it is looked again


def bar(shift: Shift, lane: Lane) -> None:
    """This lane met a locked table."""
    by = locked.who_locks_tables_of(shift.database, lane.question) or "somebody has locked a table that it asks (a migration?)"
    if not _told(shift, lane):
        log.warning(
            "%s waits: %s%s",
            lane.name,
            by,
            "; the others go on" if len(shift.lanes) > 1 else "",
            extra={"event": "reaction_barred", "reaction": lane.name},
        )
    lane.barred = by
    postpone(lane)
    lane.not_before = min(lane.not_before, time.monotonic() + LONGEST_S)


def _let_in(shift: Shift, lane: Lane) -> None:
    """No locked table stands before this lane any more."""
    if lane.barred is None:
        return
    lane.barred = None
    if not _told(shift, lane):
        log.info("%s goes on: its tables are free", lane.name, extra={"event": "reaction_free", "reaction": lane.name})


def _told(shift: Shift, lane: Lane) -> bool:
    """Whether the reaction waits already, by what is carried out in time or by what is too late."""
    return any(part.barred is not None for part in shift.parts if part.name == lane.name)


def are_barred(shift: Shift, lanes: Sequence[Lane]) -> bool:
    """Looks which of these meet a locked table, and bars them; whether there is any. It reads alone, and waits for none.

    Raises DBAPIError where it is a table of ours that is locked, which no lane can do without.
    """
    found = False
    if lanes:
        with shift.database.reading(wait=WAIT) as connection:
            connection.execute(attempts.ANY)
    for lane in lanes:
        try:
            with shift.database.reading(wait=WAIT) as connection, aside.limited(shift, lane, connection):
                lane.probe(connection)
        except DBAPIError as error:
            if aside.met(lane, error):
                _let_in(shift, lane)
                continue
            if trouble.undefined(error) or trouble.denied(error):  # by the migration that locked it: the lane meets that by itself
                _let_in(shift, lane)
                continue
            if not trouble.locked(error):
                raise
            bar(shift, lane)
            found = True
        else:
            _let_in(shift, lane)
    return found


def look_again(shift: Shift) -> bool:
    """Those that were barred a while ago; whether all of them can go on."""
    barred = [lane for lane in shift.parts if lane.barred is not None and lane.not_before <= time.monotonic()]
    return bool(barred) and not are_barred(shift, barred)
