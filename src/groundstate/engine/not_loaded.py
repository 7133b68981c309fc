"""Held outcomes that this code cannot give to its handlers: tried one by one, as `retry` would load them. SELECTs only."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from groundstate.engine import attempts, outcomes
from groundstate.engine.illegible import attempts_as_they_stand
from groundstate.rules.reaction import ReactionSpec
from groundstate.store.port import Database
from groundstate.store.tables import attempt as table

AT_ONCE = 1000


@dataclass(frozen=True)
class NotLoaded:
    """One held attempt with such an outcome, and why."""

    record: str
    occurrence: str
    why: str


def find(spec: ReactionSpec, database: Database, connection: Connection) -> tuple[NotLoaded, ...]:
    """All of one reaction, by record and occurrence. Outcomes of which a text alone is kept are left aside: no code can load those."""
    found: list[NotLoaded] = []
    order = (table.c.record, table.c.occurrence)
    mine = [table.c.app == spec.app, table.c.reaction == spec.name, table.c.outcome.is_not(None)]
    last: tuple[str, str] | None = None
    while True:
        further = [] if last is None else [attempts.after(order, last)]
        page = attempts_as_they_stand(database, connection, attempts.rows(*mine, *further).order_by(*order).limit(AT_ONCE))
        for one in page:
            why = None if one.outcome is None else _why(spec, one.outcome)
            if why is not None:
                found.append(NotLoaded(one.record, one.occurrence, why))
        before, last = last, (page[-1].record, page[-1].occurrence) if page else None
        if len(page) < AT_ONCE or last == before:
            return tuple(found)


def _why(spec: ReactionSpec, written: str) -> str | None:
    if spec.call is None:
        return "this code makes no call here, so that no handler takes an outcome"
    return outcomes.not_loaded(spec.outcome_type, written)
