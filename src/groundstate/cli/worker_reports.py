"""Prints what the living workers of an app report: pauses, records that change in endless circles, and reactions with backlogs that a
worker leaves to other workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console
from rich.text import Text

from groundstate.cli import pending_tables
from groundstate.cli.common import escape_for_terminal, format_time_for_people
from groundstate.engine.operate import living_workers
from groundstate.engine.operate.fleet_status import Overview
from groundstate.engine.operate.living_workers import WorkerSeen
from groundstate.engine.rows.worker_report import Ring, WorkerReport
from groundstate.engine.watch.postponement import FAILING_MOST

PAUSES_SHOWN = 20  # the largest number of pauses that the table lists
RINGS_SHOWN = 5  # the largest number of endless circles of reactions that are printed


@dataclass(frozen=True)
class _Pause:
    what: str
    since: datetime
    until: datetime
    why: str


def print_worker_reports(out: Console, app: str, seen: Overview) -> None:
    """Print the workers' reports. Prints nothing if they report nothing."""
    alive = [one for one in living_workers.workers_of_app(app, seen.workers or ()) if one.alive]
    _print_pauses(out, alive, seen.now)
    for words in [*_sentences_about_rings(alive, seen.now), *_sentences_about_reactions(alive)]:
        out.print(Text(escape_for_terminal(words), style="yellow"), soft_wrap=True)


# ---- pauses ----------------------------------------------------------------------------------------------------------------------
def _print_pauses(out: Console, alive: Sequence[WorkerSeen], now: datetime) -> None:
    found: dict[str, list[_Pause]] = {}
    for one in (one for incarnation in alive for one in _pauses_in_report(incarnation.says)):
        found.setdefault(one.what, []).append(one)
    made = pending_tables.make_table("paused", "since", "until", "in", "its last answer")
    for what, some in list(found.items())[:PAUSES_SHOWN]:
        until = max(one.until for one in some)
        when = format_time_for_people(until, now) if until > now else "one at a time probes it"
        latest = max(some, key=lambda one: one.until)
        since = format_time_for_people(min(one.since for one in some), now)
        made.add_row(
            escape_for_terminal(what),
            since,
            when,
            _workers_in_words(len(some), alive),
            escape_for_terminal(pending_tables.shorten(latest.why)),
        )
    if made.row_count:
        pending_tables.print_table(out, made)
        more = max(len(found), *(incarnation.says.paused_count + len(incarnation.says.failing) for incarnation in alive)) - made.row_count
        if more > 0:
            out.print(f"And {more:,} more that are paused.")
        out.print()


def _pauses_in_report(says: WorkerReport) -> list[_Pause]:
    named = [(one.service if one.tenant is None else f"{one.service}, {one.tenant}", one) for one in says.paused]
    found = [_Pause(name, one.since, one.until, one.answered) for name, one in named]
    why = f"its handler failed for {FAILING_MOST} or more records in a row"
    return found + [_Pause(f"reaction {one.reaction}", one.since, one.until, why) for one in says.failing]


def _workers_in_words(count: int, alive: Sequence[WorkerSeen]) -> str:
    return "the worker" if len(alive) == 1 else f"{count} of {len(alive)} workers"


# ---- sentences -------------------------------------------------------------------------------------------------------------------
def _sentences_about_rings(alive: Sequence[WorkerSeen], now: datetime) -> list[str]:
    found = {frozenset(ring.steps): ring for incarnation in alive for ring in incarnation.says.rings}
    words = [_ring_in_words(ring, now) for ring in list(found.values())[:RINGS_SHOWN]]
    more = max([incarnation.says.rings_count for incarnation in alive] + [len(found)]) - len(words)
    return words + ([f"And {more:,} more go round."] if more > 0 else [])


def _ring_in_words(ring: Ring, now: datetime) -> str:
    names, records = ring.reactions, ring.records
    which = ", ".join(f"{table} {record}" for table, record in records)
    undo = f"{' and '.join(names)} undo each other" if len(names) > 1 else f"{names[0]} makes its own condition hold again"
    return (
        f"{which} {'goes' if len(records) == 1 else 'go'} round since {format_time_for_people(ring.since, now)}: {undo}, so each comes"
        " after pauses of up to a"
        " minute. Let one leave a state that no other undoes."
    )


def _sentences_about_reactions(alive: Sequence[WorkerSeen]) -> list[str]:
    words = []
    for name, count in _count_workers_by_reaction(alive, lambda says: says.leaves):
        goes = f"{len(alive) - count} of {len(alive)} workers go on with its backlog"
        others = f"the other {count} leave it to them" if count > 1 else "the other leaves it to them"
        words.append(f"{name}: {goes}, and {others}, since more at once do no more.")
    for name, count in _count_workers_by_reaction(alive, lambda says: says.aside):
        why = "its condition takes long, so that it is asked beside the others: `groundstate check` says which index it lacks"
        words.append(f"{name}: {why} (in {_workers_in_words(count, alive)}).")
    everywhere = living_workers.reactions_that_all_workers_lack(alive)
    for name, count in _count_workers_by_reaction(
        alive, lambda says: [one.reaction for one in says.lacks if one.reaction not in everywhere]
    ):
        why = next(one.why for incarnation in alive for one in incarnation.says.lacks if one.reaction == name)
        words.append(f"{name}: not carried out in {_workers_in_words(count, alive)}: {why}.")
    for name, count in _count_workers_by_reaction(alive, lambda says: says.troubled):
        why = "it could not be carried out at all the last times, and is tried again each few seconds: the log says why"
        words.append(f"{name}: {why} (in {_workers_in_words(count, alive)}).")
    return words + living_workers.handler_locks_in_words(alive)


def _count_workers_by_reaction(alive: Sequence[WorkerSeen], which: Callable[[WorkerReport], Iterable[str]]) -> list[tuple[str, int]]:
    """Return a pair (reaction, number of workers) for each reaction that `which` finds in reports of workers, sorted by name."""
    found: dict[str, int] = {}
    for incarnation in alive:
        for name in which(incarnation.says):
            found[name] = found.get(name, 0) + 1
    return sorted(found.items())
