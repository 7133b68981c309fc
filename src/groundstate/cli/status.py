"""`groundstate status`: shows which workers are alive, by their locks, and what waits for them. Only reads."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import Console
from rich.text import Text

from groundstate.app.app import App
from groundstate.app.declared import databases_of, reactions_of, schedules_of
from groundstate.app.store import Store
from groundstate.app.transports import hints_in_words
from groundstate.cli import pending_tables, worker_reports
from groundstate.cli.common import (
    AppOption,
    DebugOption,
    JsonOption,
    StoreReader,
    console,
    escape_for_terminal,
    find_app,
    format_time_for_people,
    open_store_read_only,
    say_json,
    tell_of_an_empty,
    title_of,
)
from groundstate.engine.operate import fleet_status, held, living_workers
from groundstate.engine.operate.fleet_status import Overview, ReactionSeen
from groundstate.engine.operate.held import Filter
from groundstate.engine.operate.living_workers import is_in_words
from groundstate.engine.rows import data_restore_check
from groundstate.engine.rows.attempt_text import counted
from groundstate.engine.rows.reaction_registry import gone_in_words
from groundstate.engine.sql import odd_due_times
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database

OPEN = ("begun", "doubt", "failed", "held")
ASKED_MOST = 100  # held attempts: if a reaction has more, what can be done with each is not looked up
_TYPED = {
    "retry": "groundstate retry {}",
    "settle --absent": "groundstate settle {} --absent",
    "settle --outcome": "groundstate settle {} --outcome JSON",
    "forget": "groundstate forget {}",
}


@dataclass(frozen=True)
class HeldSeen:
    """The held attempts of one reaction.

    lists: the command that lists them. can: the commands that a person can type for each of them, if these are the same for all; PK stands
    for the record if there are several. `can` is empty if they differ.
    """

    count: int
    lists: str
    can: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """The status of one store, with its held attempts by reaction."""

    status: Overview
    held: Mapping[str, HeldSeen] = field(default_factory=dict)


def status(
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - `common.guarded` reads it
) -> None:
    """Show which workers are alive, by their locks, and for each reaction how many rows wait, for how long, and how many are in doubt,
    failed or held.

    This command only runs SELECTs. `groundstate pending` lists the rows. It ends with exit code 0 even if no worker is alive.
    """
    found = find_app(app)
    tell_of_an_empty(found)
    asked = StoreReader(databases_of(found))
    seen = asked.each(lambda store: ask(found, store))
    if as_json:
        say_json("status", {"app": found.name, "stores": [_content(found, store, one) for store, one in seen], **asked.said})
    else:
        for store, one in seen:
            _show(console(), found.name, title_of(store), one, _hints(found, store))
    asked.end()


def ask(app: App, store: Store) -> Seen:
    """Return the status of one store of the app."""
    with open_store_read_only(store) as (database, liveness):
        queries = [ConditionQuery(spec, database) for spec in reactions_of(app, store)]
        schedules = schedules_of(app, store)
        status = fleet_status.overview(app.name, database, queries, schedules, liveness=liveness)
        declared: dict[str, ConditionQuery | ScheduleSpec] = {one.spec.name: one for one in queries}
        declared |= {spec.name: spec for spec in schedules}
        where = f" --store {shlex.quote(store.label)}" if len(databases_of(app)) > 1 else ""
        some = [one for one in status.reactions if "held" in one.attempts]
        return Seen(status, {one.name: _held(app.name, database, declared, one, where) for one in some})


def _held(app: str, database: Database, declared: Mapping[str, ConditionQuery | ScheduleSpec], seen: ReactionSeen, where: str) -> HeldSeen:
    count, lists = seen.attempts["held"].count, f"groundstate held --reaction {shlex.quote(seen.name)}{where}"
    if not seen.asked or seen.unseen or count > ASKED_MOST:
        return HeldSeen(count, lists)
    page = held.held(app, database, declared, Filter(reaction=seen.name), limit=ASKED_MOST)
    can = {one.can for one in page.held}
    if len(can) != 1 or page.left:
        return HeldSeen(count, lists)
    which = f"{shlex.quote(seen.name)} {'PK' if seen.makes != 'rows' else 'TICK'}"
    if len(page.held) == 1:
        (one,) = page.held
        occurrence = f" --occurrence {shlex.quote(one.occurrence)}" if one.record and one.occurrence else ""
        which = f"{shlex.quote(seen.name)} {shlex.quote(one.record or one.occurrence)}{occurrence}"
    return HeldSeen(count, lists, tuple(f"{_TYPED[name].format(which)}{where}" for name in next(iter(can))))


@dataclass(frozen=True)
class _Store:
    store: str
    alive: int
    hints: str  # how hints about this store travel
    status: Overview
    held: Mapping[str, HeldSeen]  # held attempts by the name of their reaction


def _content(app: App, store: Store, seen: Seen) -> _Store:
    alive = sum(1 for one in living_workers.of_app(app.name, seen.status.workers or ()) if one.alive)
    return _Store(store.label, alive, _hints(app, store), seen.status, seen.held)


def _hints(app: App, store: Store) -> str:
    return hints_in_words(app.transport, postgres=store.settings().url.get_backend_name() == "postgresql")


def _show(out: Console, app: str, name: str, shown: Seen, hints: str) -> None:
    seen = shown.status
    out.print(
        Text(f"{escape_for_terminal(name)} at {format_time_for_people(seen.now)}{', a standby' if seen.standby else ''}", style="bold"),
        soft_wrap=True,
    )
    out.print()
    _workers(out, seen)
    _reactions(out, seen)
    worker_reports.show(out, app, seen)
    for reaction, one in shown.held.items():
        out.print(Text(escape_for_terminal(_held_in_words(reaction, one)), style="yellow"), soft_wrap=True)
    out.print(Text(escape_for_terminal(hints)), soft_wrap=True)
    for words in _warnings(seen):
        out.print(Text(escape_for_terminal(words), style="yellow"), soft_wrap=True)


def _held_in_words(name: str, one: HeldSeen) -> str:
    what = f"{counted(one.count, 'attempt is', 'attempts are')} held of {name}"
    if not one.can:
        return f"{what}: `{one.lists}` lists {'it' if one.count == 1 else 'them'}, and what you can do."
    return f"{what} (`{one.lists}` says why): {' or '.join(f'`{words}`' for words in one.can)}."


def _workers(out: Console, seen: Overview) -> None:
    made = pending_tables.table("worker", "of app", "host", "pid", "it", "since", "calls begun")
    for one in seen.workers or ():
        begins = f"{one.begins:,}" if one.begins is not None else "?"
        row = (
            f"{one.id:x}",
            one.app or "-",
            one.host or "-",
            one.pid or "-",
            is_in_words(one),
            format_time_for_people(one.began_at, seen.now),
            begins,
        )
        made.add_row(*(escape_for_terminal(cell) for cell in row))
    if made.row_count:
        pending_tables.print_table(out, made)
    else:
        out.print("No worker is here.")
    out.print()


def _reactions(out: Console, seen: Overview) -> None:
    made = pending_tables.table("reaction", "rows", "ready since", *OPEN, "oldest", "it is")
    for one in seen.reactions:
        counts = [_count(one, state) for state in OPEN]
        rows = f"{'at least ' if one.at_least else ''}{one.rows:,}" if one.rows else "-"
        late = f", {one.too_late:,} too late" if one.too_late else ""
        since = format_time_for_people(one.overdue_since, seen.now) if one.overdue_since else "-"
        made.add_row(
            escape_for_terminal(one.name), rows + late, since, *counts, format_time_for_people(_oldest(one), seen.now), _state(one)
        )
    if made.row_count:
        pending_tables.print_table(out, made)
        out.print()


def _count(one: ReactionSeen, state: str) -> str:
    standing = one.attempts.get(state)
    return f"{standing.count:,}" if standing else "-"


def _oldest(one: ReactionSeen) -> datetime | None:
    return min((standing.since for standing in one.attempts.values() if standing.since is not None), default=None)


def _state(one: ReactionSeen) -> str:
    if not one.asked:
        return "cannot be asked"
    if one.lacks:
        return "not carried out"
    if not one.on:
        return "on in part" if one.partly else "not started"
    if one.waits:
        return "waits for a person"
    if one.suspect:
        return "suspect"
    return "schedule" if one.makes == "rows" else "on"


def _warnings(seen: Overview) -> Sequence[str]:
    names = ", ".join(one.name for one in seen.reactions if not (one.on or one.partly))
    parts = ", ".join(one.name for one in seen.reactions if one.partly)
    suspects = ", ".join(one.name for one in seen.reactions if one.suspect)
    found = [f"Not started until a person accepts them: {names}. See `groundstate pending`."] if names else []
    found += [f"On in part, with what the accepted condition matches too: {parts}. See `groundstate pending`."] if parts else []
    found += [f"{one.name} cannot be seen: {one.unseen}." for one in seen.reactions if one.unseen and not one.lacks]
    found += [f"{one.name}: {one.odd_time}: {odd_due_times.CURE}." for one in seen.reactions if one.odd_time]
    found += [f"{one.name} is not carried out: {one.lacks}." for one in seen.reactions if one.lacks]
    if suspects:
        found.append(
            f"The database went back in time: {suspects} start each call as a doubt, until"
            " `groundstate trust`, for which wait until nothing is in doubt."
        )
    waits = [one.name for one in seen.reactions if one.waits]
    if waits:
        found.append(data_restore_check.in_words(waits))
    found += [
        f"{counted(count, 'attempt is', 'attempts are')} of reaction {name!r}, which this code does not declare."
        for name, count in seen.undeclared.items()
    ]
    if seen.gone:
        found.append(f"{gone_in_words(seen.gone)}.")
    if seen.careful:
        found.append("Careful mode: two workers ended uncleanly, so batches are small until the record that does it is found.")
    return found
