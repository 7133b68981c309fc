"""`groundstate timers`: what becomes due next, over all reactions. Reads alone: a timer is a column, and is stored nowhere else."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Annotated, NoReturn

import typer
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from groundstate.app.app import App
from groundstate.app.store import Store
from groundstate.cli import report
from groundstate.cli.common import (
    AppOption,
    Asked,
    DebugOption,
    JsonOption,
    StoreOption,
    at,
    chosen,
    console,
    find_app,
    looking,
    plain,
    say_json,
)
from groundstate.engine import raising, upcoming
from groundstate.engine.question import Question
from groundstate.values.errors import NotFound

SHOWN = 20


def timers(
    app: AppOption = None,
    reaction: Annotated[str | None, typer.Argument(help="Of this reaction alone.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="How many are listed.")] = SHOWN,
    only: StoreOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - read by common.guarded
) -> None:
    """The records that become due next, and the next tick of each schedule, the soonest first. SELECTs alone.

    What is due already is listed by `groundstate pending`.
    """
    found = find_app(app)
    if reaction is not None and reaction not in found.reactions and reaction not in found.schedules:
        names = ", ".join(sorted({**found.reactions, **found.schedules}))
        raise NotFound(f"{found.name} has no reaction and no schedule {reaction!r}: there are {names}")
    asked = Asked(chosen(found.parts, only))
    answers = asked.each(lambda store: _of(found, store, reaction, limit))
    several = len(found.parts) > 1
    said = sorted(((store.label, now, one) for store, (now, some) in answers for one in some), key=lambda one: one[2].due)[:limit]
    if as_json:
        say_json("timers", {"app": found.name, "timers": [{"store": name, "timer": one} for name, _, one in said], **asked.said})
    else:
        made = report.table("due", "reaction", "on", "record", *(["store"] if several else []))
        for name, now, one in said:
            made.add_row(at(one.due, now), *map(plain, (one.reaction, one.table, one.record)), *([plain(name)] if several else []))
        if said:
            report.print_table(console(), made)
        else:
            console().print("Nothing is to become due.")
    asked.end()


def _of(app: App, store: Store, reaction: str | None, limit: int) -> tuple[datetime, list[upcoming.Timer]]:
    with looking(store) as (database, _lives), database.reading() as connection:
        questions = [Question(spec, database) for spec in app.reactions_of(store) if reaction in (None, spec.name)]
        schedules = [spec for spec in app.schedules_of(store) if reaction in (None, spec.name)]
        now = upcoming.now(database, connection)
        ticks = upcoming.ticks(app.name, database, connection, schedules)
        timers = (timer for question in questions for timer in _timers(connection, question, limit))
        return now, [*timers, *ticks]


def _timers(connection: Connection, question: Question, limit: int) -> list[upcoming.Timer]:
    """Those of one reaction, without rows of which its condition cannot be asked."""
    ask = partial(upcoming.timers, connection, [question], limit)
    return raising.asked_of_the_others(connection, question, ask, _raise, known=False) or []


def _raise(error: DBAPIError, _words: str) -> NoReturn:
    raise error
