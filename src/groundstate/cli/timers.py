"""`groundstate timers`: lists what becomes due next. Only reads: a timer is a column of a record, and is stored nowhere else."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Annotated, NoReturn

import typer
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from groundstate.app.app import App
from groundstate.app.declared import databases_of, reactions_of, schedules_of
from groundstate.app.store import Store
from groundstate.cli import pending_tables
from groundstate.cli.common import (
    AppOption,
    DebugOption,
    JsonOption,
    StoreOption,
    StoreReader,
    chosen,
    console,
    escape_for_terminal,
    find_app,
    format_time_for_people,
    open_store_read_only,
    say_json,
)
from groundstate.engine.schedule import upcoming
from groundstate.engine.sql import raising_rows
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.values.errors import NotFoundError, StateRefusedError

SHOWN = 20


def timers(
    app: AppOption = None,
    reaction: Annotated[str | None, typer.Argument(help="Of this reaction alone.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="How many are listed.")] = SHOWN,
    only: StoreOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - `common.guarded` reads it
) -> None:
    """List the records that become due next, and the next tick of each schedule, the soonest first.

    This command only runs SELECTs. `groundstate pending` lists what is due already.
    """
    found = find_app(app)
    if reaction is not None and reaction not in found.reactions and reaction not in found.schedules:
        names = ", ".join(sorted({**found.reactions, **found.schedules}))
        raise NotFoundError(f"{found.name} has no reaction and no schedule {reaction!r}: there are {names}")
    asked = StoreReader(chosen(databases_of(found), only))
    answers = asked.each(lambda store: _upcoming_timers_of_store(found, store, reaction, limit))
    several = len(databases_of(found)) > 1
    said = sorted(((store.label, now, one) for store, (now, some) in answers for one in some), key=lambda one: one[2].due)[:limit]
    if as_json:
        say_json("timers", {"app": found.name, "timers": [{"store": name, "timer": one} for name, _, one in said], **asked.said})
    else:
        made = pending_tables.table("due", "reaction", "on", "record", *(["store"] if several else []))
        for name, now, one in said:
            made.add_row(
                format_time_for_people(one.due, now),
                *map(escape_for_terminal, (one.reaction, one.table, one.record)),
                *([escape_for_terminal(name)] if several else []),
            )
        if said:
            pending_tables.print_table(console(), made)
        else:
            console().print("Nothing is to become due.")
    asked.end()


def _upcoming_timers_of_store(app: App, store: Store, reaction: str | None, limit: int) -> tuple[datetime, list[upcoming.Timer]]:
    with open_store_read_only(store) as (database, _lives), database.reading() as connection:
        queries = [ConditionQuery(spec, database) for spec in reactions_of(app, store) if reaction in (None, spec.name)]
        schedules = [spec for spec in schedules_of(app, store) if reaction in (None, spec.name)]
        now = upcoming.now(database, connection)
        ticks = upcoming.ticks(app.name, database, connection, schedules)
        timers = (timer for query in queries for timer in _timers(connection, query, limit))
        return now, [*timers, *ticks]


def _timers(connection: Connection, query: ConditionQuery, limit: int) -> list[upcoming.Timer]:
    """Return the timers of one reaction, without rows for which its condition raises."""
    ask = partial(upcoming.timers, connection, [query], limit)
    return raising_rows.ask_excluding_raising_rows(connection, query, ask, partial(_raise, query), known=False) or []


def _raise(query: ConditionQuery, error: Exception, words: str) -> NoReturn:
    raise error if isinstance(error, DBAPIError) else StateRefusedError(f"{query.spec.name}: {words}")
