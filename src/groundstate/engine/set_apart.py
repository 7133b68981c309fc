"""Lanes whose condition raises for some rows: it is looked for which ones, these fail, each by itself, and the others go on meanwhile.

What the search finds on its way is carried out by its keys, a culprit too: it fails there as a record does that cannot be read. After
that the condition is asked of all rows but the culprits, and of some of these now and then: whoever answers again is none any more.
"""

from __future__ import annotations

import logging
import time

from sqlalchemy.exc import DBAPIError

from groundstate.engine import barred, limited_lines, trouble, unfit
from groundstate.engine.lane import Lane
from groundstate.engine.raising import Search
from groundstate.engine.shift import Shift, postpone

log = logging.getLogger("groundstate")
STEP_S = 0.02  # of one turn, so that the others go on
FOUND_MOST = 2_000  # keys that are found and not yet carried out
FEW = 50  # of a reaction with lines or parts at once, of which more would be looked for by their groups
AGAIN_S = 5.0  # so often some of the culprits are asked again
AGAIN_AT_ONCE = 20
WAITS_S = 60.0  # where they are too many
PLAIN_S = 10.0  # so long after it raised last it is asked plainly again, where no culprit is left; twice as long each time it raised then
PLAIN_MOST_S = 3600.0


def met(shift: Shift, lane: Lane, error: BaseException | None) -> bool:
    """Whether it was a value in some row that this lane's condition met: then it is looked for whose it is."""
    if not isinstance(error, DBAPIError) or not trouble.of_a_value(error):
        return False
    whole, now = shift.lane(lane.name), time.monotonic()
    if whole.search is not None or now < whole.raises_until:  # what asks for rows beside those that are given waits for its end
        postpone(lane)
        return True
    if shift.life.lines.may_tell(whole.name, limited_lines.CONDITION_RAISES, now):
        log.warning(
            "%s: its condition cannot be asked of some record (%s): it is looked for which ones, these fail, and the others go on",
            whole.name,
            trouble.said(error),
            extra={"event": "condition_raises", "reaction": whole.name},
        )
    _begin(whole, now)
    return True


def turn(shift: Shift) -> None:
    """Goes on with what is looked for, for a short while each."""
    for lane in shift.lanes:
        if not lane.question.in_turn or not lane.on or lane.barred is not None or lane.lacks is not None:
            continue
        now = time.monotonic()
        if not lane.plain_s:  # some were found when its rows were counted
            _begin(lane, now)
        if lane.not_before > now:
            continue
        try:
            if lane.search is not None:
                _go_on(shift, lane, lane.search)
            elif now >= lane.asked_again + AGAIN_S:
                _ask_again(shift, lane, now)
        except DBAPIError as error:
            if trouble.locked(error):
                barred.are_barred(shift, [lane])
                continue
            if trouble.transient(error):
                raise
            if unfit.met(shift, lane, error):
                continue
            postpone(lane)
            say_failed(lane, error)


def _looks_on(search: Search) -> bool:
    return not search.over and len(search.ready) < FOUND_MOST


def is_waiting(lane: Lane) -> bool:
    """Whether there is a step to be done at the next turn, whatever else is."""
    search = lane.search
    if search is None or not lane.on or lane.barred is not None or lane.lacks is not None:
        return False
    return not lane.fresh or _looks_on(search)


def _parts(whole: Lane) -> list[Lane]:
    return [part for part in (whole, whole.late) if part is not None]


def _begin(whole: Lane, now: float) -> None:
    if not whole.plain_s or not whole.question.in_turn:
        whole.plain_s = min(2 * whole.plain_s, PLAIN_MOST_S) or PLAIN_S
    whole.question.ask_in_turn(whole.question.apart)
    whole.raised_at, search = now, Search()
    for part in _parts(whole):
        part.search = search
        part.sweep()


def _go_on(shift: Shift, lane: Lane, search: Search) -> None:
    until_s = time.monotonic() + STEP_S
    if _looks_on(search):
        with shift.database.reading(wait=barred.WAIT) as connection:
            while _looks_on(search) and time.monotonic() < until_s:
                search.page(connection, lane.question)
                if lane.groups is not None:
                    search.ready.clear()  # the pass of its lines or parts finds them
        if search.over and not search.too_many:
            search.ready += search.culprits
            lane.question.ask_in_turn(search.culprits)
    room = max((FEW if lane.groups is not None else lane.batch) - len(lane.fresh), 0)
    lane.fresh.update(dict.fromkeys(search.ready[:room]))
    del search.ready[:room]
    if search.over and not search.ready:
        _end(lane, search)


def _end(lane: Lane, search: Search) -> None:
    now = time.monotonic()
    lane.raised_at = lane.asked_again = now
    if search.too_many:
        lane.raises_until = now + WAITS_S
        _say_failed(lane, search.in_words(lane.question))
    for part in _parts(lane):
        part.search = None
        if search.too_many:
            part.not_before = lane.raises_until
        part.sweep()


def _ask_again(shift: Shift, lane: Lane, now: float) -> None:
    """Some of the culprits, by their keys; where none is left, all is asked as before after a while."""
    lane.asked_again, question = now, lane.question
    if not question.apart:
        if now >= lane.raised_at + lane.plain_s:
            question.ask_plainly()
        return
    some = shift.life.dice.sample(list(question.apart), min(AGAIN_AT_ONCE, len(question.apart)))
    lane.fresh.update(dict.fromkeys(some))


def say_failed(lane: Lane, error: BaseException, what: str = "") -> None:
    """Its condition cannot be asked of any record. The words of a database are enough."""
    _say_failed(lane, trouble.told(error), what, None if isinstance(error, DBAPIError) else error)


def _say_failed(lane: Lane, words: str, what: str = "", error: BaseException | None = None) -> None:
    log.error(
        "%s could not be asked%s, tried again: %s",
        lane.name,
        what,
        words,
        exc_info=error,
        extra={"event": "condition_failed", "reaction": lane.name},
    )
