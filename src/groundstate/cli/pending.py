"""`groundstate pending`: lists what is left to do. Only reads."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

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
    find_app,
    moment_of,
    open_store_read_only,
    say_json,
    tell_of_an_empty,
    title_of,
)
from groundstate.engine.operate import pending as engine
from groundstate.engine.operate.pending import Pending
from groundstate.engine.sql.condition_query import ConditionQuery


def pending(  # noqa: PLR0913  # each parameter is an option of the command
    app: AppOption = None,
    states: Annotated[bool, typer.Option("--states", help="Also values of tested columns that no reaction answers.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Attempts of each kind that are listed; all are counted.")] = engine.SHOWN,
    then: Annotated[
        str | None, typer.Option("--at", metavar="MOMENT", help="What would be due then, such as 2026-12-24T18:00Z; without a zone in UTC.")
    ] = None,
    *,
    only: StoreOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - `common.guarded` reads it
) -> None:
    """List what is left to do, which calls are in doubt and how they will be settled, what failed and when it is tried again, and what is
    held.

    This command only runs SELECTs. It ends with exit code 0 even if work is left.
    """
    found = find_app(app)
    tell_of_an_empty(found)
    moment = None if then is None else moment_of("--at", then)
    asked = StoreReader(chosen(databases_of(found), only))
    reports = asked.each(lambda store: ask(found, store, states=states, shown=limit, then=moment))
    if as_json:
        said = [{"store": store.label, "report": one} for store, one in reports]
        say_json("pending", {"app": found.name, "stores": said, **asked.said})
    else:
        for store, one in reports:
            pending_tables.show(console(), found.name, title_of(store), one)
    asked.end()


def ask(app: App, store: Store, *, states: bool = False, shown: int = engine.SHOWN, then: datetime | None = None) -> Pending:
    """Return the report on one store of the app. then: include what would be due at this time."""
    with open_store_read_only(store) as (database, liveness):
        queries = [ConditionQuery(spec, database, then) for spec in reactions_of(app, store)]
        rested = [(record, clause) for record, clause in app.rested if store.owns_class(record)] if states else None
        schedules = schedules_of(app, store)
        return engine.pending(app.name, database, queries, liveness, schedules=schedules, rested=rested, shown=shown, then=then)
