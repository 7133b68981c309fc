"""`groundstate pending`: what is left to do. Reads alone, and ends with 0 also where there is work."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from groundstate.app.app import App
from groundstate.app.store import Store
from groundstate.cli import report
from groundstate.cli.common import (
    AppOption,
    Asked,
    DebugOption,
    JsonOption,
    StoreOption,
    chosen,
    console,
    find_app,
    looking,
    moment_of,
    say_json,
    tell_of_an_empty,
    title_of,
)
from groundstate.engine import pending as engine
from groundstate.engine.pending import Pending
from groundstate.engine.question import Question


def pending(  # noqa: PLR0913  # the options of a command
    app: AppOption = None,
    states: Annotated[bool, typer.Option("--states", help="Also values of tested columns that no reaction answers.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Attempts of each kind that are listed; all are counted.")] = engine.SHOWN,
    then: Annotated[
        str | None, typer.Option("--at", metavar="MOMENT", help="What would be due then, such as 2026-12-24T18:00Z; without a zone in UTC.")
    ] = None,
    *,
    only: StoreOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - read by common.guarded
) -> None:
    """What is left to do, what is in doubt and how it will be settled, what failed and when next, what is held. SELECTs alone.

    Ends with 0 also where there is work left.
    """
    found = find_app(app)
    tell_of_an_empty(found)
    moment = None if then is None else moment_of("--at", then)
    asked = Asked(chosen(found.parts, only))
    reports = asked.each(lambda store: ask(found, store, states=states, shown=limit, then=moment))
    if as_json:
        said = [{"store": store.label, "report": one} for store, one in reports]
        say_json("pending", {"app": found.name, "stores": said, **asked.said})
    else:
        for store, one in reports:
            report.show(console(), found.name, title_of(store), one)
    asked.end()


def ask(app: App, store: Store, *, states: bool = False, shown: int = engine.SHOWN, then: datetime | None = None) -> Pending:
    """The report on one store of the app; then: with what would be due at that moment."""
    with looking(store) as (database, lives):
        questions = [Question(spec, database, then) for spec in app.reactions_of(store)]
        rested = [(record, clause) for record, clause in app.rested if store.owns_class(record)] if states else None
        schedules = app.schedules_of(store)
        return engine.pending(app.name, database, questions, lives, schedules=schedules, rested=rested, shown=shown, then=then)
