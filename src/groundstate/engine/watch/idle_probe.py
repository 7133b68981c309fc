"""One query that shows which of groundstate's tables contain any row, so that a sweep queries no empty table. An idle worker sends hardly
any other query. The query writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Text, and_, bindparam, case, cast, exists, func, literal_column, null, or_, select

from groundstate.engine.watch.worker_state import WorkerState
from groundstate.store.port import Database
from groundstate.store.tables import attempt, rate, reaction, worker

_ONE: Any = literal_column("1")


@dataclass(frozen=True)
class IdleProbe:
    """The state of groundstate's tables at one moment, as one query found it.

    now: time of the database's clock. asked_s: the same moment in seconds of the host's clock, which goes on while the host is suspended.
    attempts: whether any attempt exists. strangers: whether there is a row of another worker that has not ended, or an attempt of another
    worker that is begun or in doubt. ended: whether any worker is recorded as ended uncleanly. old_rates: whether rate counts exist that no
    longer apply. known: a text that changes when a reaction is accepted or trusted. workers: ids of this app's workers that have not ended;
    empty on an embedded store.
    """

    now: datetime
    asked_s: float
    attempts: bool
    strangers: bool
    ended: bool
    old_rates: bool
    known: str
    workers: tuple[int, ...]


def run_idle_probe(worker_state: WorkerState) -> IdleProbe:
    """Query groundstate's tables now, and return what was found."""
    asked_s = worker_state.clock.uptime_s()
    given = {"app": worker_state.app, "worker": worker_state.incarnation.id}
    with worker_state.database.reading() as connection:
        row = connection.execute(_build_statement(worker_state.database), given).one()
    return IdleProbe(
        now=row.now,
        asked_s=asked_s,
        attempts=bool(row.attempts),
        strangers=bool(row.strangers),
        ended=bool(row.ended),
        old_rates=bool(row.old_rates),
        known=str(row.known),
        workers=tuple(row.workers or ()),
    )


@lru_cache(maxsize=128)
def _build_statement(database: Database) -> Any:
    incarnation: Any = bindparam("worker")
    mine = reaction.c.app == bindparam("app")
    others_rows = and_(worker.c.ended_at.is_(None), worker.c.id != incarnation)
    others_left = and_(attempt.c.state.in_(["begun", "doubt"]), attempt.c.worker != incarnation)
    # Any value other than False counts as suspect, since a person may have edited the column.
    suspects = func.sum(case((reaction.c.suspect.is_(False), 0), else_=1))
    known = [func.coalesce(cast(one, Text), "") for one in (func.count(), func.max(cast(reaction.c.seen_at, Text)), suspects)]
    workers: Any = null()
    if database.locks_rows:
        workers = select(func.array_agg(worker.c.id)).where(worker.c.app == bindparam("app"), worker.c.ended_at.is_(None)).scalar_subquery()
    return select(
        database.now().label("now"),
        exists(select(_ONE).select_from(attempt)).label("attempts"),
        or_(exists(select(_ONE).where(others_rows)), exists(select(_ONE).where(others_left))).label("strangers"),
        exists(select(_ONE).where(worker.c.ended_at.is_not(None))).label("ended"),
        exists(select(_ONE).where(rate.c.until < database.now())).label("old_rates"),
        select(known[0] + " " + known[1] + " " + known[2]).where(mine).scalar_subquery().label("known"),
        workers.label("workers"),
    )
