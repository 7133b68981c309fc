"""`groundstate timers`: lists the records that become due next, and the next ticks of schedules. Only reads."""

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
    choose_stores,
    console,
    escape_for_terminal,
    find_app,
    format_time_for_people,
    open_store_read_only,
    print_json,
)
from groundstate.engine.schedule import upcoming
from groundstate.engine.sql import raising_rows
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.values.errors import NotFoundError, StateRefusedError

SHOWN = 20


def timers(
    app: AppOption = None,
    reaction: Annotated[str | None, typer.Argument(help="Only this reaction or schedule.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="How many are listed at most.")] = SHOWN,
    only: StoreOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - `common.exit_with_code_on_error` reads the option
) -> None:
    """List the records that become due next, and the next tick of each schedule, the soonest first.

    This command only runs SELECTs. `groundstate pending` lists what is due already.
    """
    found = find_app(app)
    if reaction is not None and reaction not in found.reactions and reaction not in found.schedules:
        names = ", ".join(sorted({**found.reactions, **found.schedules}))
        raise NotFoundError(f"{found.name} has no reaction and no schedule {reaction!r}: there are {names}")
    asked = StoreReader(choose_stores(databases_of(found), only))
    answers = asked.read_each(lambda store: _upcoming_timers_of_store(found, store, reaction, limit))
    several = len(databases_of(found)) > 1
    said = sorted(((store.label, now, one) for store, (now, some) in answers for one in some), key=lambda one: one[2].due)[:limit]
    if as_json:
        print_json(
            "timers", {"app": found.name, "timers": [{"store": name, "timer": one} for name, _, one in said], **asked.unusable_stores_json}
        )
    else:
        made = pending_tables.make_table("due", "reaction", "on", "record", *(["store"] if several else []))
        for name, now, one in said:
            made.add_row(
                format_time_for_people(one.due, now),
                *map(escape_for_terminal, (one.reaction, one.table, one.record)),
                *([escape_for_terminal(name)] if several else []),
            )
        if said:
            pending_tables.print_table(console(), made)
        else:
            console().print("Nothing will become due.")
    asked.report_unreadable()


def _upcoming_timers_of_store(app: App, store: Store, reaction: str | None, limit: int) -> tuple[datetime, list[upcoming.Timer]]:
    with open_store_read_only(store) as (database, _lives), database.reading() as connection:
        queries = [ConditionQuery(spec, database) for spec in reactions_of(app, store) if reaction in (None, spec.name)]
        schedules = [spec for spec in schedules_of(app, store) if reaction in (None, spec.name)]
        now = upcoming.database_now(database, connection)
        ticks = upcoming.next_ticks(app.name, database, connection, schedules)
        timers = (timer for query in queries for timer in _timers_of_reaction(connection, query, limit))
        return now, [*timers, *ticks]


def _timers_of_reaction(connection: Connection, query: ConditionQuery, limit: int) -> list[upcoming.Timer]:
    """Return the next `limit` records of one reaction that become due. Rows for which the database cannot evaluate the condition are left
    out.
    """
    ask = partial(upcoming.next_timers, connection, [query], limit)
    return raising_rows.ask_excluding_raising_rows(connection, query, ask, partial(_raise_condition_error, query), known=False) or []


def _raise_condition_error(query: ConditionQuery, error: Exception, words: str) -> NoReturn:
    raise error if isinstance(error, DBAPIError) else StateRefusedError(f"{query.spec.name}: {words}")
