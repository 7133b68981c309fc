"""Finds stored outcomes (what calls returned) that this version of the application cannot give to its handlers, by loading each outcome as
the command `retry` would. It runs only SELECTs.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from groundstate.engine.rows import attempts, outcome_json
from groundstate.engine.rows.corrupt_rows import fetch_attempts_despite_corrupt_rows
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database
from groundstate.store.tables import attempt as table

AT_ONCE = 1000  # attempts that are read by one statement


@dataclass(frozen=True)
class UnloadableOutcome:
    """The record and occurrence of one attempt whose outcome cannot be loaded, and the reason (`why`)."""

    record: str
    occurrence: str
    why: str


def find_unloadable_outcomes(spec: ReactionSpec, database: Database, connection: Connection) -> tuple[UnloadableOutcome, ...]:
    """Return all attempts of one reaction whose outcome cannot be loaded, ordered by record and occurrence.

    Outcomes that were stored only as text are left out, since no version can load them.
    """
    found: list[UnloadableOutcome] = []
    order = (table.c.record, table.c.occurrence)
    mine = [table.c.app == spec.app, table.c.reaction == spec.name, table.c.outcome.is_not(None)]
    last: tuple[str, str] | None = None
    while True:
        further = [] if last is None else [attempts.rows_after_cursor(order, last)]
        page = fetch_attempts_despite_corrupt_rows(
            database, connection, attempts.select_attempts(*mine, *further).order_by(*order).limit(AT_ONCE)
        )
        for one in page:
            why = None if one.outcome is None else _reason_not_loaded(spec, one.outcome)
            if why is not None:
                found.append(UnloadableOutcome(one.record, one.occurrence, why))
        before, last = last, (page[-1].record, page[-1].occurrence) if page else None
        if len(page) < AT_ONCE or last == before:
            return tuple(found)


def _reason_not_loaded(spec: ReactionSpec, written: str) -> str | None:
    if spec.call is None:
        return "this code makes no call here, so that no handler takes an outcome"
    return outcome_json.why_not_loadable(spec.outcome_type, written)
