"""`groundstate status`: the fleet, told by its locks, and what waits for it. Reads alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import Console
from rich.text import Text

from groundstate.app.app import App
from groundstate.app.store import Store
from groundstate.app.telling import hints_in_words
from groundstate.cli import report, said
from groundstate.cli.common import (
    AppOption,
    Asked,
    DebugOption,
    JsonOption,
    at,
    console,
    find_app,
    looking,
    plain,
    say_json,
    tell_of_an_empty,
    title_of,
)
from groundstate.engine import held, living, odd_times, overview, put_back
from groundstate.engine.held import Filter
from groundstate.engine.living import is_in_words
from groundstate.engine.overview import Overview, ReactionSeen
from groundstate.engine.question import Question
from groundstate.engine.registry import gone_in_words
from groundstate.engine.wording import counted
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database

OPEN = ("begun", "doubt", "failed", "held")
ASKED_MOST = 100  # held attempts of a reaction, of which it is asked what can be done with each
_TYPED = {
    "retry": "groundstate retry {}",
    "settle --absent": "groundstate settle {} --absent",
    "settle --outcome": "groundstate settle {} --outcome JSON",
    "forget": "groundstate forget {}",
}


@dataclass(frozen=True)
class HeldSeen:
    """What is held of one reaction. lists: the command that lists them. can: what a person can do with each of them, as it is typed, where
    that is the same for all that are held; PK stands for the record where there are several. Nothing where it is not.
    """

    count: int
    lists: str
    can: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """One store at a glance."""

    status: Overview
    held: Mapping[str, HeldSeen] = field(default_factory=dict)


def status(
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - read by common.guarded
) -> None:
    """Who works, by locks, and what waits: of each reaction its rows, for how long, in doubt, failed, held. SELECTs alone.

    What each of these rows is, `groundstate pending` tells. Ends with 0 also where nobody works.
    """
    found = find_app(app)
    tell_of_an_empty(found)
    asked = Asked(found.parts)
    seen = asked.each(lambda store: ask(found, store))
    if as_json:
        say_json("status", {"app": found.name, "stores": [_content(found, store, one) for store, one in seen], **asked.said})
    else:
        for store, one in seen:
            _show(console(), found.name, title_of(store), one, _hints(found, store))
    asked.end()


def ask(app: App, store: Store) -> Seen:
    """One store of the app."""
    with looking(store) as (database, lives):
        questions = [Question(spec, database) for spec in app.reactions_of(store)]
        schedules = app.schedules_of(store)
        status = overview.overview(app.name, database, questions, schedules, lives=lives)
        declared: dict[str, Question | ScheduleSpec] = {one.spec.name: one for one in questions}
        declared |= {spec.name: spec for spec in schedules}
        where = f" --store {shlex.quote(store.label)}" if len(app.parts) > 1 else ""
        some = [one for one in status.reactions if "held" in one.attempts]
        return Seen(status, {one.name: _held(app.name, database, declared, one, where) for one in some})


def _held(app: str, database: Database, declared: Mapping[str, Question | ScheduleSpec], seen: ReactionSeen, where: str) -> HeldSeen:
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
    hints: str  # by what they go
    status: Overview
    held: Mapping[str, HeldSeen]  # by reaction


def _content(app: App, store: Store, seen: Seen) -> _Store:
    alive = sum(1 for one in living.of_app(app.name, seen.status.lives or ()) if one.alive)
    return _Store(store.label, alive, _hints(app, store), seen.status, seen.held)


def _hints(app: App, store: Store) -> str:
    return hints_in_words(app.transport, postgres=store.settings().url.get_backend_name() == "postgresql")


def _show(out: Console, app: str, name: str, shown: Seen, hints: str) -> None:
    seen = shown.status
    out.print(Text(f"{plain(name)} at {at(seen.now)}{', a standby' if seen.standby else ''}", style="bold"), soft_wrap=True)
    out.print()
    _workers(out, seen)
    _reactions(out, seen)
    said.show(out, app, seen)
    for reaction, one in shown.held.items():
        out.print(Text(plain(_held_in_words(reaction, one)), style="yellow"), soft_wrap=True)
    out.print(Text(plain(hints)), soft_wrap=True)
    for words in _warnings(seen):
        out.print(Text(plain(words), style="yellow"), soft_wrap=True)


def _held_in_words(name: str, one: HeldSeen) -> str:
    what = f"{counted(one.count, 'attempt is', 'attempts are')} held of {name}"
    if not one.can:
        return f"{what}: `{one.lists}` lists {'it' if one.count == 1 else 'them'}, and what you can do."
    return f"{what} (`{one.lists}` says why): {' or '.join(f'`{words}`' for words in one.can)}."


def _workers(out: Console, seen: Overview) -> None:
    made = report.table("worker", "of app", "host", "pid", "it", "since", "calls begun")
    for one in seen.lives or ():
        begins = f"{one.begins:,}" if one.begins is not None else "?"
        row = (f"{one.life:x}", one.app or "-", one.host or "-", one.pid or "-", is_in_words(one), at(one.began_at, seen.now), begins)
        made.add_row(*(plain(cell) for cell in row))
    if made.row_count:
        report.print_table(out, made)
    else:
        out.print("No worker is here.")
    out.print()


def _reactions(out: Console, seen: Overview) -> None:
    made = report.table("reaction", "rows", "ready since", *OPEN, "oldest", "it is")
    for one in seen.reactions:
        counts = [_count(one, state) for state in OPEN]
        rows = f"{'at least ' if one.at_least else ''}{one.rows:,}" if one.rows else "-"
        late = f", {one.too_late:,} too late" if one.too_late else ""
        since = at(one.overdue_since, seen.now) if one.overdue_since else "-"
        made.add_row(plain(one.name), rows + late, since, *counts, at(_oldest(one), seen.now), _state(one))
    if made.row_count:
        report.print_table(out, made)
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
    found += [f"{one.name}: {one.odd_time}: {odd_times.CURE}." for one in seen.reactions if one.odd_time]
    found += [f"{one.name} is not carried out: {one.lacks}." for one in seen.reactions if one.lacks]
    if suspects:
        found.append(
            f"The database went back in time: {suspects} start each call as a doubt, until"
            " `groundstate trust`, for which wait until nothing is in doubt."
        )
    waits = [one.name for one in seen.reactions if one.waits]
    if waits:
        found.append(put_back.in_words(waits))
    found += [
        f"{counted(count, 'attempt is', 'attempts are')} of reaction {name!r}, which this code does not declare."
        for name, count in seen.undeclared.items()
    ]
    if seen.gone:
        found.append(f"{gone_in_words(seen.gone)}.")
    if seen.careful:
        found.append("Careful mode: two workers ended uncleanly, so batches are small until the record that does it is found.")
    return found
