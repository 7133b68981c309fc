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
    choose_stores,
    console,
    find_app,
    open_store_read_only,
    parse_moment,
    print_json,
    store_title,
    warn_if_nothing_declared,
)
from groundstate.engine.operate import pending as engine
from groundstate.engine.operate.pending import Pending
from groundstate.engine.sql.condition_query import ConditionQuery


def pending(  # noqa: PLR0913  # each parameter is an option of the command
    app: AppOption = None,
    states: Annotated[bool, typer.Option("--states", help="Also list values, of columns in conditions, that no reaction handles.")] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=100_000, help="How many attempts of each kind are listed at most; all are counted.")
    ] = engine.SHOWN,
    then: Annotated[
        str | None,
        typer.Option("--at", metavar="MOMENT", help="List what would be due at this time, as in 2026-12-24T18:00Z; UTC if it has no zone."),
    ] = None,
    *,
    only: StoreOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - `common.exit_with_code_on_error` reads the option
) -> None:
    """List what is left to do, which calls are in doubt and how they will be settled, what failed and when it is tried again, and what is
    held.

    This command only runs SELECTs. It ends with exit code 0 even if work is left.
    """
    found = find_app(app)
    warn_if_nothing_declared(found)
    moment = None if then is None else parse_moment("--at", then)
    asked = StoreReader(choose_stores(databases_of(found), only))
    reports = asked.read_each(lambda store: read_pending(found, store, states=states, shown=limit, then=moment))
    if as_json:
        said = [{"store": store.label, "report": one} for store, one in reports]
        print_json("pending", {"app": found.name, "stores": said, **asked.unusable_stores_json})
    else:
        for store, one in reports:
            pending_tables.print_report(console(), found.name, store_title(store), one)
    asked.report_unreadable()


def read_pending(app: App, store: Store, *, states: bool = False, shown: int = engine.SHOWN, then: datetime | None = None) -> Pending:
    """Return the report on one store of the app.

    states: whether to list also states that no reaction handles. shown: the largest number of attempts of each kind that are listed. then:
    the time for which the report says what is due; now if left out.
    """
    with open_store_read_only(store) as (database, liveness):
        queries = [ConditionQuery(spec, database, then) for spec in reactions_of(app, store)]
        rested = [(record, clause) for record, clause in app.rested if store.owns_class(record)] if states else None
        schedules = schedules_of(app, store)
        return engine.build_pending_report(
            app.name, database, queries, liveness, schedules=schedules, rested=rested, shown=shown, then=then
        )
