"""Lanes whose records have a column, or a table, that the database has not, or keys by which it does not find them: they wait for a
migration, and nobody else does for them.

Said once, and once more when it is over. It is looked by a statement that loads no row, so that nothing is taken in vain meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError

from groundstate.engine import barred, fitting, key_columns, trouble
from groundstate.engine.key_columns import KeyRefused
from groundstate.engine.lane import Lane
from groundstate.engine.shift import Shift, postpone
from groundstate.engine.user_filters import FilterRaised
from groundstate.values.errors import GroundstateError

log = logging.getLogger("groundstate")
LONGEST_S = 5.0  # after which it is looked again: each look in vain is an error in the log of PostgreSQL


def met(shift: Shift, lane: Lane, error: BaseException | None) -> bool:
    """Whether it was a missing column or table, one of another type, a right that is missing, a key that leads nowhere, or a listener that
    raises, that this lane met: then it waits by itself.
    """
    if error is None or not (trouble.undefined(error) or trouble.denied(error) or isinstance(error, KeyRefused | FilterRaised)):
        return False
    whole = shift.lane(lane.name)
    if whole.lacks is None:
        lacks = str(error) if isinstance(error, GroundstateError) else trouble.told(error)
        log.error(
            "%s is not carried out: %s; %sthe others go on",
            whole.name,
            lacks,
            "" if isinstance(error, FilterRaised) else "it begins by itself after that, and ",
            extra={"event": "reaction_unfit", "reaction": whole.name},
        )
        whole.lacks = lacks  # who reads it can read the line
    _wait(whole)
    return True


def look_over(shift: Shift) -> None:
    """At a start, before the first record is there that could not be loaded: which lanes will meet that."""
    with contextlib.suppress(DBAPIError):  # a courtesy
        if _misfit(shift, shift.lanes) is not None:
            for lane in shift.lanes:
                met(shift, lane, _misfit(shift, [lane]))


def look_again(shift: Shift) -> bool:
    """Those that lacked something a while ago; whether any of them can go on."""
    now = time.monotonic()
    lacking = [lane for lane in shift.lanes if lane.lacks is not None and lane.not_before <= now]
    return bool([lane for lane in lacking if _goes_on(shift, lane)])


def over(lane: Lane) -> None:
    """It was carried out: what it lacked is there, whatever that was."""
    if lane.lacks is None:
        return
    lane.lacks, lane.seen_lacking = None, False
    log.warning(
        "%s goes on: what it lacked is there", lane.name, extra={"event": "reaction_fits", "reaction": lane.name}
    )  # a warning, so that who read the first line reads this one


def _goes_on(shift: Shift, lane: Lane) -> bool:
    error = _misfit(shift, [lane])
    if error is not None:
        lane.seen_lacking = True
        _wait(lane)
        return False
    if not lane.seen_lacking and lane.wants:
        return False  # what it lacks, loading none does not tell: it is over once something of it was carried out
    if lane.seen_lacking:
        lane.trouble = 0  # else it may be met again at once, and the pauses grow on
    over(lane)
    for part in filter(None, (lane, lane.late)):
        part.not_before = 0.0
        part.sweep()  # what was hinted meanwhile was taken in vain
    lane.due = True
    return True


def _misfit(shift: Shift, lanes: Sequence[Lane]) -> Exception | None:
    questions = [lane.question for lane in lanes]
    try:
        with shift.database.reading(wait=barred.WAIT) as connection:
            lacking = fitting.misfit(connection, questions, rights=True)
            raised = next((one.filter_raised for one in questions if one.filter_raised is not None), None)
            return lacking or raised or next(filter(None, (key_columns.refused(connection, one) for one in questions)), None)
    except DBAPIError as error:
        if trouble.locked(error) or trouble.denied(error):  # by the very migration, perhaps
            return error
        raise


def _wait(whole: Lane) -> None:
    postpone(whole)
    whole.not_before = min(whole.not_before, time.monotonic() + LONGEST_S)
    if whole.late is not None:
        whole.late.not_before = whole.not_before
