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
from groundstate.app.transports import describe_hints
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
    print_json,
    store_title,
    warn_if_nothing_declared,
)
from groundstate.engine.operate import fleet_status, held, living_workers
from groundstate.engine.operate.fleet_status import Overview, ReactionSeen
from groundstate.engine.operate.held import Filter
from groundstate.engine.operate.living_workers import liveness_in_words
from groundstate.engine.rows import data_restore_check
from groundstate.engine.rows.attempt_text import count_with_noun
from groundstate.engine.rows.reaction_registry import undeclared_message
from groundstate.engine.sql import odd_due_times
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database

OPEN = ("begun", "doubt", "failed", "held")
# For a reaction with more held attempts than this, status shows their number and does not look up what a person can do with each.
ASKED_MOST = 100
_TYPED = {
    "retry": "groundstate retry {}",
    "settle --absent": "groundstate settle {} --absent",
    "settle --outcome": "groundstate settle {} --outcome JSON",
    "forget": "groundstate forget {}",
}


@dataclass(frozen=True)
class HeldOfReaction:
    """The held attempts of one reaction.

    lists: the command that lists these attempts. can: the commands that a person can use on each of these attempts; empty if the commands
    differ from attempt to attempt. If there are several attempts, the commands contain PK in place of a record's key, or TICK in place of
    the time of a tick.
    """

    count: int
    lists: str
    can: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoreStatus:
    """The status of one store, and the held attempts, by reaction name."""

    status: Overview
    held: Mapping[str, HeldOfReaction] = field(default_factory=dict)


def status(
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - `common.exit_with_code_on_error` reads the option
) -> None:
    """Show which workers are alive, by their locks, and for each reaction how many rows wait, for how long, and how many are in doubt,
    failed or held.

    This command only runs SELECTs. `groundstate pending` lists the rows. It ends with exit code 0 even if no worker is alive.
    """
    found = find_app(app)
    warn_if_nothing_declared(found)
    asked = StoreReader(databases_of(found))
    seen = asked.read_each(lambda store: read_status(found, store))
    if as_json:
        print_json(
            "status",
            {"app": found.name, "stores": [_store_as_json(found, store, one) for store, one in seen], **asked.unusable_stores_json},
        )
    else:
        for store, one in seen:
            _print_status(console(), found.name, store_title(store), one, _hints_in_words(found, store))
    asked.report_unreadable()


def read_status(app: App, store: Store) -> StoreStatus:
    """Return the status of one store of the app."""
    with open_store_read_only(store) as (database, liveness):
        queries = [ConditionQuery(spec, database) for spec in reactions_of(app, store)]
        schedules = schedules_of(app, store)
        status = fleet_status.build_overview(app.name, database, queries, schedules, liveness=liveness)
        declared: dict[str, ConditionQuery | ScheduleSpec] = {one.spec.name: one for one in queries}
        declared |= {spec.name: spec for spec in schedules}
        where = f" --store {shlex.quote(store.label)}" if len(databases_of(app)) > 1 else ""
        some = [one for one in status.reactions if "held" in one.attempts]
        return StoreStatus(status, {one.name: _read_held(app.name, database, declared, one, where) for one in some})


def _read_held(
    app: str, database: Database, declared: Mapping[str, ConditionQuery | ScheduleSpec], seen: ReactionSeen, where: str
) -> HeldOfReaction:
    count, lists = seen.attempts["held"].count, f"groundstate held --reaction {shlex.quote(seen.name)}{where}"
    if not seen.asked or seen.unseen or count > ASKED_MOST:
        return HeldOfReaction(count, lists)
    page = held.read_held_page(app, database, declared, Filter(reaction=seen.name), limit=ASKED_MOST)
    can = {one.can for one in page.held}
    if len(can) != 1 or page.left:
        return HeldOfReaction(count, lists)
    which = f"{shlex.quote(seen.name)} {'PK' if seen.makes != 'rows' else 'TICK'}"
    if len(page.held) == 1:
        (one,) = page.held
        occurrence = f" --occurrence {shlex.quote(one.occurrence)}" if one.record and one.occurrence else ""
        which = f"{shlex.quote(seen.name)} {shlex.quote(one.record or one.occurrence)}{occurrence}"
    return HeldOfReaction(count, lists, tuple(f"{_TYPED[name].format(which)}{where}" for name in next(iter(can))))


@dataclass(frozen=True)
class _StoreAsJson:
    store: str
    alive: int
    hints: str  # how hints about this store travel
    status: Overview
    held: Mapping[str, HeldOfReaction]  # the held attempts, by reaction name


def _store_as_json(app: App, store: Store, seen: StoreStatus) -> _StoreAsJson:
    alive = sum(1 for one in living_workers.workers_of_app(app.name, seen.status.workers or ()) if one.alive)
    return _StoreAsJson(store.label, alive, _hints_in_words(app, store), seen.status, seen.held)


def _hints_in_words(app: App, store: Store) -> str:
    return describe_hints(app.transport, postgres=store.settings().url.get_backend_name() == "postgresql")


def _print_status(out: Console, app: str, name: str, shown: StoreStatus, hints: str) -> None:
    seen = shown.status
    out.print(
        Text(f"{escape_for_terminal(name)} at {format_time_for_people(seen.now)}{', a standby' if seen.standby else ''}", style="bold"),
        soft_wrap=True,
    )
    out.print()
    _print_workers(out, seen)
    _print_reactions(out, seen)
    worker_reports.print_worker_reports(out, app, seen)
    for reaction, one in shown.held.items():
        out.print(Text(escape_for_terminal(_held_in_words(reaction, one)), style="yellow"), soft_wrap=True)
    out.print(Text(escape_for_terminal(hints)), soft_wrap=True)
    for words in _warning_sentences(seen):
        out.print(Text(escape_for_terminal(words), style="yellow"), soft_wrap=True)


def _held_in_words(name: str, one: HeldOfReaction) -> str:
    what = f"{count_with_noun(one.count, 'attempt is', 'attempts are')} held of {name}"
    if not one.can:
        return f"{what}: `{one.lists}` lists {'it' if one.count == 1 else 'them'}, and says what you can do."
    return f"{what} (`{one.lists}` says why): {' or '.join(f'`{words}`' for words in one.can)}."


def _print_workers(out: Console, seen: Overview) -> None:
    made = pending_tables.make_table("worker", "of app", "host", "pid", "it", "since", "calls begun")
    for one in seen.workers or ():
        begins = f"{one.begins:,}" if one.begins is not None else "?"
        row = (
            f"{one.id:x}",
            one.app or "-",
            one.host or "-",
            one.pid or "-",
            liveness_in_words(one),
            format_time_for_people(one.began_at, seen.now),
            begins,
        )
        made.add_row(*(escape_for_terminal(cell) for cell in row))
    if made.row_count:
        pending_tables.print_table(out, made)
    else:
        out.print("No worker is alive.")
    out.print()


def _print_reactions(out: Console, seen: Overview) -> None:
    made = pending_tables.make_table("reaction", "rows", "ready since", *OPEN, "oldest", "it is")
    for one in seen.reactions:
        counts = [_count_in_words(one, state) for state in OPEN]
        rows = f"{'at least ' if one.at_least else ''}{one.rows:,}" if one.rows else "-"
        late = f", {one.too_late:,} too late" if one.too_late else ""
        since = format_time_for_people(one.overdue_since, seen.now) if one.overdue_since else "-"
        made.add_row(
            escape_for_terminal(one.name),
            rows + late,
            since,
            *counts,
            format_time_for_people(_start_of_oldest_attempt(one), seen.now),
            _state_in_words(one),
        )
    if made.row_count:
        pending_tables.print_table(out, made)
        out.print()


def _count_in_words(one: ReactionSeen, state: str) -> str:
    standing = one.attempts.get(state)
    return f"{standing.count:,}" if standing else "-"


def _start_of_oldest_attempt(one: ReactionSeen) -> datetime | None:
    return min((standing.since for standing in one.attempts.values() if standing.since is not None), default=None)


def _state_in_words(one: ReactionSeen) -> str:
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


def _warning_sentences(seen: Overview) -> Sequence[str]:
    names = ", ".join(one.name for one in seen.reactions if not (one.on or one.partly))
    parts = ", ".join(one.name for one in seen.reactions if one.partly)
    suspects = ", ".join(one.name for one in seen.reactions if one.suspect)
    found = [f"Not started until a person accepts them: {names}. See `groundstate pending`."] if names else []
    found += [f"On only for rows that the accepted condition matches too: {parts}. See `groundstate pending`."] if parts else []
    found += [f"{one.name} cannot be seen: {one.unseen}." for one in seen.reactions if one.unseen and not one.lacks]
    found += [f"{one.name}: {one.odd_time}: {odd_due_times.CURE}." for one in seen.reactions if one.odd_time]
    found += [f"{one.name} is not carried out: {one.lacks}." for one in seen.reactions if one.lacks]
    if suspects:
        found.append(
            f"The database went back in time: each call of {suspects} starts in doubt until `groundstate trust`, which is to be run once"
            " nothing is in doubt any more."
        )
    waits = [one.name for one in seen.reactions if one.waits]
    if waits:
        found.append(data_restore_check.waiting_message(waits))
    found += [
        f"{count_with_noun(count, 'attempt is', 'attempts are')} of reaction {name!r}, which this code does not declare."
        for name, count in seen.undeclared.items()
    ]
    if seen.gone:
        found.append(f"{undeclared_message(seen.gone)}.")
    if seen.careful:
        found.append("Careful mode: two workers ended uncleanly, so batches are small until the record that does it is found.")
    return found
