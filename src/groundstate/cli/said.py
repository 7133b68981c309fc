"""What the living workers of an app say of themselves, set out for people: what is paused, what goes round, who leaves what to whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console
from rich.text import Text

from groundstate.cli import report
from groundstate.cli.common import at, plain
from groundstate.engine import living
from groundstate.engine.lane import FAILING_MOST
from groundstate.engine.living import LifeSeen
from groundstate.engine.overview import Overview
from groundstate.engine.says import Ring, Says

PAUSES_SHOWN = 20
RINGS_SHOWN = 5


@dataclass(frozen=True)
class _Pause:
    what: str
    since: datetime
    until: datetime
    why: str


def show(out: Console, app: str, seen: Overview) -> None:
    """Nothing where they say nothing."""
    alive = [one for one in living.of_app(app, seen.lives or ()) if one.alive]
    _pauses(out, alive, seen.now)
    for words in [*_rings(alive, seen.now), *_of_reactions(alive)]:
        out.print(Text(plain(words), style="yellow"), soft_wrap=True)


# ---- pauses ----------------------------------------------------------------------------------------------------------------------
def _pauses(out: Console, alive: Sequence[LifeSeen], now: datetime) -> None:
    found: dict[str, list[_Pause]] = {}
    for one in (one for life in alive for one in _pauses_of(life.says)):
        found.setdefault(one.what, []).append(one)
    made = report.table("paused", "since", "until", "in", "its last answer")
    for what, some in list(found.items())[:PAUSES_SHOWN]:
        until = max(one.until for one in some)
        when = at(until, now) if until > now else "one at a time probes it"
        latest = max(some, key=lambda one: one.until)
        since = at(min(one.since for one in some), now)
        made.add_row(plain(what), since, when, _how_many(len(some), alive), plain(report.brief(latest.why)))
    if made.row_count:
        report.print_table(out, made)
        more = max(len(found), *(life.says.paused_count + len(life.says.failing) for life in alive)) - made.row_count
        if more > 0:
            out.print(f"And {more:,} more that are paused.")
        out.print()


def _pauses_of(says: Says) -> list[_Pause]:
    named = [(one.outside if one.part is None else f"{one.outside}, {one.part}", one) for one in says.paused]
    found = [_Pause(name, one.since, one.until, one.answered) for name, one in named]
    why = f"its handler failed for {FAILING_MOST} or more records in a row"
    return found + [_Pause(f"reaction {one.reaction}", one.since, one.until, why) for one in says.failing]


def _how_many(count: int, alive: Sequence[LifeSeen]) -> str:
    return "the worker" if len(alive) == 1 else f"{count} of {len(alive)} workers"


# ---- sentences -------------------------------------------------------------------------------------------------------------------
def _rings(alive: Sequence[LifeSeen], now: datetime) -> list[str]:
    found = {frozenset(ring.steps): ring for life in alive for ring in life.says.rings}
    words = [_ring(ring, now) for ring in list(found.values())[:RINGS_SHOWN]]
    more = max([life.says.rings_count for life in alive] + [len(found)]) - len(words)
    return words + ([f"And {more:,} more go round."] if more > 0 else [])


def _ring(ring: Ring, now: datetime) -> str:
    names, records = ring.reactions, ring.records
    which = ", ".join(f"{table} {record}" for table, record in records)
    undo = f"{' and '.join(names)} undo each other" if len(names) > 1 else f"{names[0]} makes its own condition hold again"
    return (
        f"{which} {'goes' if len(records) == 1 else 'go'} round since {at(ring.since, now)}: {undo}, so each comes after pauses of up to a"
        " minute. Let one leave a state that no other undoes."
    )


def _of_reactions(alive: Sequence[LifeSeen]) -> list[str]:
    words = []
    for name, count in _counted(alive, lambda says: says.leaves):
        goes = f"{len(alive) - count} of {len(alive)} workers go on with its backlog"
        others = f"the other {count} leave it to them" if count > 1 else "the other leaves it to them"
        words.append(f"{name}: {goes}, and {others}, since more at once do no more.")
    for name, count in _counted(alive, lambda says: says.aside):
        why = "its condition takes long, so that it is asked beside the others: `groundstate check` says which index it lacks"
        words.append(f"{name}: {why} (in {_how_many(count, alive)}).")
    everywhere = living.lacked(alive)
    for name, count in _counted(alive, lambda says: [one.reaction for one in says.lacks if one.reaction not in everywhere]):
        why = next(one.why for life in alive for one in life.says.lacks if one.reaction == name)
        words.append(f"{name}: not carried out in {_how_many(count, alive)}: {why}.")
    for name, count in _counted(alive, lambda says: says.troubled):
        why = "it could not be carried out at all the last times, and is tried again each few seconds: the log says why"
        words.append(f"{name}: {why} (in {_how_many(count, alive)}).")
    return words


def _counted(alive: Sequence[LifeSeen], which: Callable[[Says], Iterable[str]]) -> list[tuple[str, int]]:
    """By reaction, how many say it."""
    found: dict[str, int] = {}
    for life in alive:
        for name in which(life.says):
            found[name] = found.get(name, 0) + 1
    return sorted(found.items())
