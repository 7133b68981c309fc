"""`groundstate status`: the fleet, told by its locks, and what waits for it. Reads alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console
from rich.text import Text

from groundstate.app.app import App
from groundstate.app.store import Store
from groundstate.cli import report
from groundstate.cli.common import (
    AppOption,
    Asked,
    DebugOption,
    JsonOption,
    at,
    console,
    find_app,
    looking,
    name_of,
    plain,
    say_json,
    title_of,
)
from groundstate.engine import fitting, overview, put_back
from groundstate.engine.living import is_in_words
from groundstate.engine.overview import Overview, ReactionSeen
from groundstate.engine.question import Question

OPEN = ("begun", "doubt", "failed", "held")


def status(
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - read by common.guarded
) -> None:
    """Who works, by locks, and what waits: of each reaction its rows, for how long, in doubt, failed, held. SELECTs alone.

    What each of these rows is, `groundstate pending` tells. Ends with 0 also where nobody works.
    """
    found = find_app(app)
    asked = Asked(found.parts)
    seen = asked.each(lambda store: ask(found, store))
    if as_json:
        say_json("status", {"app": found.name, "stores": [_content(name_of(store), one) for store, one in seen], **asked.said})
    else:
        for store, one in seen:
            _show(console(), title_of(store), one)
    asked.end()


def ask(app: App, store: Store) -> Overview:
    """One store of the app."""
    with looking(store) as (database, lives):
        questions = [Question(spec, database) for spec in app.reactions_of(store)]
        return overview.overview(app.name, database, questions, app.schedules_of(store), lives=lives)


@dataclass(frozen=True)
class _Store:
    store: str
    alive: int
    status: Overview


def _content(name: str, seen: Overview) -> _Store:
    return _Store(name, sum(1 for one in seen.lives or () if one.alive), seen)


def _show(out: Console, name: str, seen: Overview) -> None:
    out.print(Text(f"{plain(name)} at {at(seen.now)}{', a standby' if seen.standby else ''}", style="bold"), soft_wrap=True)
    out.print()
    _workers(out, seen)
    _reactions(out, seen)
    for words in _warnings(seen):
        out.print(Text(plain(words), style="yellow"), soft_wrap=True)


def _workers(out: Console, seen: Overview) -> None:
    made = report.table("worker", "of app", "host", "pid", "it", "since", "calls begun")
    for one in seen.lives or ():
        begins = f"{one.begins:,}" if one.begins is not None else "?"
        row = (f"{one.life:x}", one.app or "-", one.host or "-", one.pid or "-", is_in_words(one), at(one.began_at, seen.now), begins)
        made.add_row(*(plain(cell) for cell in row))
    if made.row_count:
        out.print(made)
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
        out.print(made)
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
        return "not started"
    if one.waits:
        return "waits for a person"
    if one.suspect:
        return "suspect"
    return "schedule" if one.makes == "rows" else "on"


def _warnings(seen: Overview) -> Sequence[str]:
    names = ", ".join(one.name for one in seen.reactions if not one.on)
    suspects = ", ".join(one.name for one in seen.reactions if one.suspect)
    found = [f"Not started until a person accepts them: {names}. See `groundstate pending`."] if names else []
    found += [f"{one.name} is not carried out: {fitting.with_cure(one.lacks)}." for one in seen.reactions if one.lacks]
    if suspects:
        found.append(
            f"The database went back in time: {suspects} start each call as a doubt, until"
            " `groundstate trust`, for which wait until nothing is in doubt."
        )
    waits = [one.name for one in seen.reactions if one.waits]
    if waits:
        found.append(put_back.in_words(waits))
    found += [f"{count:,} attempts are of reaction {name!r}, which this code does not declare." for name, count in seen.undeclared.items()]
    if seen.careful:
        found.append("Careful mode: two workers ended uncleanly, so batches are small until the record that does it is found.")
    return found
