"""Finds held outcomes that this code cannot give to its handlers, by loading each as `retry` would. It runs only SELECTs."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from groundstate.engine.rows import attempts, outcome_json
from groundstate.engine.rows.corrupt_rows import attempts_as_they_stand
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database
from groundstate.store.tables import attempt as table

AT_ONCE = 1000  # attempts that are read by one statement


@dataclass(frozen=True)
class NotLoaded:
    """One held attempt whose outcome cannot be loaded, and the reason."""

    record: str
    occurrence: str
    why: str


def find(spec: ReactionSpec, database: Database, connection: Connection) -> tuple[NotLoaded, ...]:
    """Return all attempts of one reaction whose outcome cannot be loaded, by record and occurrence.

    Outcomes that were kept only as text are left out: no code can load them.
    """
    found: list[NotLoaded] = []
    order = (table.c.record, table.c.occurrence)
    mine = [table.c.app == spec.app, table.c.reaction == spec.name, table.c.outcome.is_not(None)]
    last: tuple[str, str] | None = None
    while True:
        further = [] if last is None else [attempts.rows_after_cursor(order, last)]
        page = attempts_as_they_stand(database, connection, attempts.select_attempts(*mine, *further).order_by(*order).limit(AT_ONCE))
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
    return outcome_json.not_loaded(spec.outcome_type, written)
