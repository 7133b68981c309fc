"""`groundstate why TABLE PK`: every reaction on one record. Reads alone."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from groundstate.app.app import App
from groundstate.app.store import Store
from groundstate.cli import report
from groundstate.cli.common import (
    AppOption,
    Asked,
    Code,
    CommandFailed,
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
    title_of,
)
from groundstate.engine import why as engine
from groundstate.engine.pending import Open
from groundstate.engine.question import Question
from groundstate.engine.why import Answer, Why, WhySchedule
from groundstate.rules.schedule import ScheduleSpec
from groundstate.values.errors import NotFound

_MARKS = {True: ("true ", "green"), False: ("false", "red"), None: ("NULL ", "red")}


def why(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="The record's table, or its class; or a schedule.", show_default=False)],
    record: Annotated[
        str | None, typer.Argument(metavar="[PK]", help="Its primary key; of several columns a JSON array.", show_default=False)
    ] = None,
    only: StoreOption = None,
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - read by common.guarded
) -> None:
    """Every reaction on one record: which clauses of its condition hold, what it waits for, what comes next. SELECTs alone.

    Of a schedule: its last tick, the next one, those that were missed, and those that failed; with a tick's time that one.
    """
    found = find_app(app)
    if table in found.schedules:
        _why_schedule(found, found.schedules[table], record, only, as_json=as_json)
        return
    if record is None:
        raise CommandFailed(f"which record of {table}? Give its primary key")
    asked = Asked(chosen(found.parts, only))
    answers = _ask(found, asked, table, record)
    if as_json:
        stores = [{"store": store.label, "why": said} for store, said in answers]
        say_json("why", {"app": found.name, "why": answers[0][1], "stores": stores, **asked.said})
    else:
        for store, said in answers:
            if len(found.parts) > 1:
                console().print(Text(plain(title_of(store)), style="bold"), soft_wrap=True)
            _show(console(), said)
    asked.end()


def _ask(app: App, asked: Asked, table: str, record: str) -> list[tuple[Store, Why]]:
    """What each store that has the record, or attempts on it, says of it; where none has, the first that has such a table."""
    missing: list[NotFound] = []

    def ask_one(store: Store) -> Why | None:
        with looking(store) as (database, lives):
            questions = [Question(spec, database) for spec in app.reactions_of(store)]
            try:
                return engine.why(app.name, database, questions, lives, table, record)
            except NotFound as error:
                missing.append(error)
                return None
            except ValueError as error:
                raise CommandFailed(str(error), Code.USAGE) from None

    answers = [(store, said) for store, said in asked.each(ask_one) if said is not None]
    having = [(store, said) for store, said in answers if said.exists or said.others or any(one.attempts for one in said.answers)]
    if not answers:
        raise missing[0] if missing else NotFound(f"no reaction is on a table {table!r}")
    return having or answers[:1]


def _why_schedule(app: App, spec: ScheduleSpec, tick: str | None, only: str | None, *, as_json: bool) -> None:
    missing: list[NotFound] = []

    def ask_one(store: Store) -> WhySchedule | None:
        with looking(store) as (database, lives):
            try:
                return engine.why_schedule(app.name, database, spec, lives, tick)
            except NotFound as error:
                missing.append(error)
                return None

    asked = Asked(chosen(spec.store.parts, only))
    answers = [(store, said) for store, said in asked.each(ask_one) if said is not None]
    if not answers:
        raise missing[0]
    if as_json:
        stores = [{"store": store.label, "schedule": said} for store, said in answers]
        say_json("why", {"app": app.name, "schedule": answers[0][1], "stores": stores, **asked.said})
    else:
        for store, said in answers:
            if len(spec.store.parts) > 1:
                console().print(Text(plain(title_of(store)), style="bold"), soft_wrap=True)
            _show_schedule(console(), said)
    asked.end()


def _show_schedule(out: Console, said: WhySchedule) -> None:
    one = said.schedule
    out.print(Text(f"{plain(one.name)}: {plain(one.words)}, at {at(said.now)}", style="bold"))
    out.print(Text(f"  last: {report.in_zone(one.last)}"))
    if one.fate:
        missed = f"{'at least ' if one.at_least else ''}{one.missed:,} missed: " if one.missed else ""
        out.print(Text(f"  {missed}{plain(one.fate)}", style="yellow"), soft_wrap=True)
    out.print(Text(f"  next: {report.in_zone(one.next)}"))
    for attempt in said.ticks:
        _show_attempt(out, said.now, attempt)


def _show(out: Console, said: Why) -> None:
    there = "" if said.exists else ", which is not there any more"
    out.print(Text(f"{plain(said.table)} {plain(said.record)}{there}, at {at(said.now)}", style="bold"))
    for one in said.answers:
        out.print()
        _show_answer(out, said, one)
    if said.others:
        out.print()
        out.print(Text("Attempts of reactions that are not on this table in this code", style="bold"))
        for attempt in said.others:
            _show_attempt(out, said.now, attempt)


def _show_answer(out: Console, said: Why, one: Answer) -> None:
    style = "green" if one.holds else "dim"
    words = "its condition holds" if one.holds else "its condition does not hold"
    if said.exists and not one.clauses:
        words = "its condition was not asked"
    out.print(Text.assemble((plain(one.reaction), f"bold {style}"), f"  {words}"))
    for clause in one.clauses:
        mark, colour = _MARKS[clause.holds]
        out.print(Text.assemble("  ", (mark, colour), " ", plain(clause.sql)), soft_wrap=True)
    if one.timed:
        due = at(one.due, said.now) if one.due else plain(one.no_due or "never, since its due time is NULL")
        out.print(Text(f"  due: {due}"), soft_wrap=True)
    for attempt in one.attempts:
        _show_attempt(out, said.now, attempt)
    if one.goes_round is not None and one.goes_round not in one.next:
        out.print(Text(f"  {plain(one.goes_round)}", style="yellow"), soft_wrap=True)
    for other in one.waits_for:
        why_ = f": {plain(other.why)}" if other.why else ""
        rounds = "" if other.round is None else f" (round {plain(other.round)})"
        waits = f"  waits for {plain(other.reaction)}{rounds} on {plain(other.record)}, which is {other.standing}{why_}"
        out.print(Text(waits, style="yellow"), soft_wrap=True)
    when = f", {at(one.next_at, said.now)}" if one.next_at else ""
    out.print(Text(f"  next: {plain(one.next)}{when}"), soft_wrap=True)


def _show_attempt(out: Console, now: datetime, one: Open) -> None:
    which = "round" if one.record else "tick"
    rounds = f" ({which} {plain(one.occurrence)})" if one.occurrence else ""
    line = f"  {plain(one.reaction)}{rounds} is {one.standing} since {at(one.since, now)}, failures {one.tries}"
    if one.has_outcome:
        line += ", an outcome is in hand"
    out.print(Text(line, style="yellow"), soft_wrap=True)
    for name, words in (("why", one.why), ("error", one.error)):
        if words:
            out.print(Text(f"    {name}: {plain(words)}"), soft_wrap=True)
    if one.settled_from is not None:
        out.print(Text(f"    to be settled: {one.next}, from {at(one.settled_from, now)}"), soft_wrap=True)
    if one.key_kept_until is not None:
        out.print(Text(f"    its key is good until {at(one.key_kept_until)}"), soft_wrap=True)
