"""`groundstate why TABLE PK`: explains what every reaction does with one record. Only reads."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from groundstate.app.app import App
from groundstate.app.declared import databases_of, reactions_of
from groundstate.app.store import Store
from groundstate.cli import pending_tables
from groundstate.cli.common import (
    AppOption,
    Code,
    CommandFailed,
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
    store_title,
)
from groundstate.engine.operate import why as engine
from groundstate.engine.operate.pending import OpenAttempt
from groundstate.engine.operate.why import Answer, Why, WhySchedule
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules.schedule import ScheduleSpec
from groundstate.values.errors import NotFoundError

_MARKS = {True: ("true ", "green"), False: ("false", "red"), None: ("NULL ", "red")}


def why(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="The record's table or class, or the name of a schedule.", show_default=False)
    ],
    record: Annotated[
        str | None,
        typer.Argument(
            metavar="[PK]",
            help="The record's primary key; a JSON array if it has several columns. For a schedule: a tick.",
            show_default=False,
        ),
    ] = None,
    only: StoreOption = None,
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - `common.exit_with_code_on_error` reads the option
) -> None:
    """Explain every reaction on one record: which clauses of its condition hold, what it waits for, and what comes next.

    For a schedule it shows the last tick, the next one, and the ticks that were missed or failed. With the time of a tick it shows only
    that tick. This command only runs SELECTs.
    """
    found = find_app(app)
    if table in found.schedules:
        _explain_schedule(found, found.schedules[table], record, only, as_json=as_json)
        return
    if record is None:
        raise CommandFailed(f"which record of {table}? Give its primary key")
    asked = StoreReader(choose_stores(databases_of(found), only))
    answers = _explain_record(found, asked, table, record)
    if as_json:
        stores = [{"store": store.label, "why": said} for store, said in answers]
        print_json("why", {"app": found.name, "why": answers[0][1], "stores": stores, **asked.unusable_stores_json})
    else:
        for store, said in answers:
            if len(databases_of(found)) > 1:
                console().print(Text(escape_for_terminal(store_title(store)), style="bold"), soft_wrap=True)
            _print_record(console(), said)
    asked.report_unreadable()


def _explain_record(app: App, asked: StoreReader, table: str, record: str) -> list[tuple[Store, Why]]:
    """Return a pair (store, explanation) for each store that has the record or attempts on the record. If no store has either, return only
    the pair of the first store that has the table.
    """
    missing: list[NotFoundError] = []

    def explain_in(store: Store) -> Why | None:
        with open_store_read_only(store) as (database, liveness):
            queries = [ConditionQuery(spec, database) for spec in reactions_of(app, store)]
            try:
                return engine.explain_record(app.name, database, queries, liveness, table, record)
            except NotFoundError as error:
                missing.append(error)
                return None
            except ValueError as error:
                raise CommandFailed(str(error), Code.USAGE) from None

    answers = [(store, said) for store, said in asked.read_each(explain_in) if said is not None]
    having = [(store, said) for store, said in answers if said.exists or said.others or any(one.attempts for one in said.answers)]
    if not answers:
        raise missing[0] if missing else NotFoundError(f"no reaction is on a table {table!r}")
    return having or answers[:1]


def _explain_schedule(app: App, spec: ScheduleSpec, tick: str | None, only: str | None, *, as_json: bool) -> None:
    missing: list[NotFoundError] = []

    def explain_in(store: Store) -> WhySchedule | None:
        with open_store_read_only(store) as (database, liveness):
            try:
                return engine.explain_schedule(app.name, database, spec, liveness, tick)
            except NotFoundError as error:
                missing.append(error)
                return None

    asked = StoreReader(choose_stores(spec.store.databases, only))
    answers = [(store, said) for store, said in asked.read_each(explain_in) if said is not None]
    if not answers:
        raise missing[0]
    if as_json:
        stores = [{"store": store.label, "schedule": said} for store, said in answers]
        print_json("why", {"app": app.name, "schedule": answers[0][1], "stores": stores, **asked.unusable_stores_json})
    else:
        for store, said in answers:
            if len(spec.store.databases) > 1:
                console().print(Text(escape_for_terminal(store_title(store)), style="bold"), soft_wrap=True)
            _print_schedule(console(), said)
    asked.report_unreadable()


def _print_schedule(out: Console, said: WhySchedule) -> None:
    one = said.schedule
    out.print(
        Text(f"{escape_for_terminal(one.name)}: {escape_for_terminal(one.words)}, at {format_time_for_people(said.now)}", style="bold")
    )
    out.print(Text(f"  last: {pending_tables.tick_in_words(one.last)}"))
    if one.fate:
        missed = f"{'at least ' if one.at_least else ''}{one.missed:,} missed: " if one.missed else ""
        out.print(Text(f"  {missed}{escape_for_terminal(one.fate)}", style="yellow"), soft_wrap=True)
    out.print(Text(f"  next: {pending_tables.tick_in_words(one.next)}"))
    for attempt in said.ticks:
        _print_attempt(out, said.now, attempt)


def _print_record(out: Console, said: Why) -> None:
    there = "" if said.exists else ", which is not there any more"
    out.print(
        Text(
            f"{escape_for_terminal(said.table)} {escape_for_terminal(said.record)}{there}, at {format_time_for_people(said.now)}",
            style="bold",
        )
    )
    for one in said.answers:
        out.print()
        _print_reaction(out, said, one)
    if said.others:
        out.print()
        out.print(Text("Attempts of reactions that are not on this table in this code", style="bold"))
        for attempt in said.others:
            _print_attempt(out, said.now, attempt)


def _print_reaction(out: Console, said: Why, one: Answer) -> None:
    style = "green" if one.holds else "dim"
    words = "its condition holds" if one.holds else "its condition does not hold"
    if said.exists and not one.clauses:
        words = "its condition was not evaluated"
    out.print(Text.assemble((escape_for_terminal(one.reaction), f"bold {style}"), f"  {words}"))
    for clause in one.clauses:
        mark, colour = _MARKS[clause.holds]
        out.print(Text.assemble("  ", (mark, colour), " ", escape_for_terminal(clause.sql)), soft_wrap=True)
    if one.timed:
        due = (
            format_time_for_people(one.due, said.now) if one.due else escape_for_terminal(one.no_due or "never, since its due time is NULL")
        )
        out.print(Text(f"  due: {due}"), soft_wrap=True)
    for attempt in one.attempts:
        _print_attempt(out, said.now, attempt)
    if one.goes_round is not None and one.goes_round not in one.next:
        out.print(Text(f"  {escape_for_terminal(one.goes_round)}", style="yellow"), soft_wrap=True)
    for other in one.waits_for:
        why_ = f": {escape_for_terminal(other.why)}" if other.why else ""
        rounds = "" if other.round is None else f" (round {escape_for_terminal(other.round)})"
        on = f"{escape_for_terminal(other.reaction)}{rounds} on {escape_for_terminal(other.record)}"
        waits = f"  waits for {on}, which is {other.standing}{why_}"
        out.print(Text(waits, style="yellow"), soft_wrap=True)
    when = f", {format_time_for_people(one.next_at, said.now)}" if one.next_at else ""
    out.print(Text(f"  next: {escape_for_terminal(one.next)}{when}"), soft_wrap=True)


def _print_attempt(out: Console, now: datetime, one: OpenAttempt) -> None:
    which = "round" if one.record else "tick"
    rounds = f" ({which} {escape_for_terminal(one.occurrence)})" if one.occurrence else ""
    since = format_time_for_people(one.since, now)
    line = f"  {escape_for_terminal(one.reaction)}{rounds} is {one.standing}, first tried {since}, failures {one.tries}"
    if one.has_outcome:
        line += ", an outcome is in hand"
    out.print(Text(line, style="yellow"), soft_wrap=True)
    for name, words in (("why", one.why), ("error", one.error)):
        if words:
            out.print(Text(f"    {name}: {escape_for_terminal(words)}"), soft_wrap=True)
    if one.settled_from is not None:
        out.print(Text(f"    to be settled: {one.next}, from {format_time_for_people(one.settled_from, now)}"), soft_wrap=True)
    if one.key_kept_until is not None:
        out.print(Text(f"    its key is good until {format_time_for_people(one.key_kept_until)}"), soft_wrap=True)
