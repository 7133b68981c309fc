"""One statement that tells what a worker need not ask further: most of what a sweep looks at beside conditions is not there at all.

An idle fleet asks this and little else. Reads alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Text, and_, bindparam, case, cast, exists, func, literal_column, null, or_, select

from groundstate.engine import leaps
from groundstate.engine.shift import Shift
from groundstate.store.port import Database
from groundstate.store.tables import attempt, rate, reaction, worker

_ONE: Any = literal_column("1")


@dataclass(frozen=True)
class Pulse:
    """What stands in our tables.

    asked_s: when it was asked, by the clock that goes on while the host sleeps. attempts: whether there are any. strangers: whether some
    other life left anything. ended: whether a life did that ended uncleanly. old_rates: whether counts say nothing any more. known: changes
    when what was accepted or trusted does. lives: those of this app that began and did not end; none on an embedded store.
    """

    now: datetime
    asked_s: float
    attempts: bool
    strangers: bool
    ended: bool
    old_rates: bool
    known: str
    lives: tuple[int, ...]


def take(shift: Shift) -> Pulse:
    """Asks it now."""
    asked_s = leaps.boot_s()
    given = {"app": shift.app, "life": shift.life.id}
    with shift.database.reading() as connection:
        row = connection.execute(_statement(shift.database), given).one()
    return Pulse(
        now=row.now,
        asked_s=asked_s,
        attempts=bool(row.attempts),
        strangers=bool(row.strangers),
        ended=bool(row.ended),
        old_rates=bool(row.old_rates),
        known=str(row.known),
        lives=tuple(row.lives or ()),
    )


@lru_cache(maxsize=128)
def _statement(database: Database) -> Any:
    life: Any = bindparam("life")
    mine = reaction.c.app == bindparam("app")
    others_rows = and_(worker.c.ended_at.is_(None), worker.c.life != life)
    others_left = and_(attempt.c.state.in_(["begun", "doubt"]), attempt.c.worker != life)
    # Not trusted is whatever is not plainly trusted, since somebody may have edited it.
    suspects = func.sum(case((reaction.c.suspect.is_(False), 0), else_=1))
    known = [func.coalesce(cast(one, Text), "") for one in (func.count(), func.max(cast(reaction.c.seen_at, Text)), suspects)]
    lives: Any = null()
    if database.locks_rows:
        lives = select(func.array_agg(worker.c.life)).where(worker.c.app == bindparam("app"), worker.c.ended_at.is_(None)).scalar_subquery()
    return select(
        database.now().label("now"),
        exists(select(_ONE).select_from(attempt)).label("attempts"),
        or_(exists(select(_ONE).where(others_rows)), exists(select(_ONE).where(others_left))).label("strangers"),
        exists(select(_ONE).where(worker.c.ended_at.is_not(None))).label("ended"),
        exists(select(_ONE).where(rate.c.until < database.now())).label("old_rates"),
        select(known[0] + " " + known[1] + " " + known[2]).where(mine).scalar_subquery().label("known"),
        lives.label("lives"),
    )
