"""Reports on schedules: the last tick, the next one, and what becomes of those that were missed. Runs only SELECTs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, select

from groundstate.engine.schedule import cursors
from groundstate.engine.schedule.cursors import ScheduleCursor
from groundstate.rules import schedule
from groundstate.rules.schedule import ON_TIME, Decision, LeftOut, ScheduleSpec
from groundstate.store.port import Database


@dataclass(frozen=True)
class Scheduled:
    """One schedule, with times in its own zone. `missed` counts ticks since its cursor, up to a bound; `fate` says what becomes of them."""

    name: str
    words: str
    last: datetime | None
    next: datetime | None
    missed: int
    at_least: bool
    fate: str


def scheduled(app: str, database: Database, connection: Connection, specs: Sequence[ScheduleSpec], at: datetime | None) -> list[Scheduled]:
    """Return a report on each of these schedules, as of the time `at`, or now if that is None."""
    if not specs:
        return []
    now = at or connection.execute(select(database.now())).scalar_one()
    known = cursors.as_they_stand(database, connection, app, specs)
    return [_one(spec, known.get(spec.name), now) for spec in specs]


def _one(spec: ScheduleSpec, mark: ScheduleCursor | None, now: datetime) -> Scheduled:
    said = Scheduled(spec.name, spec.words, None, None, 0, at_least=False, fate="")
    if mark is None:
        return replace(said, next=_following(spec, now), fate="it is new here, and starts when a worker does")
    if mark.words != spec.words:
        fate = f"it was {mark.words!r} here: it starts anew when a worker does, and what lies before that is not carried out"
        return replace(said, next=_following(spec, now), fate=fate)
    if mark.at is None:
        return replace(said, fate=mark.illegible(spec.name))
    last = mark.at.astimezone(spec.timing.tzinfo)
    if mark.at > now:
        fate = f"its mark lies in the future, and nothing is carried out before that: if a clock was wrong, {cursors.cure(spec.name)}"
        return replace(said, last=last, next=_following(spec, mark.at), fate=fate)
    decision = schedule.decide(spec, mark.at, now)
    count = len(decision.run) + (decision.left_out.count if decision.left_out else 0)
    newest = decision.run[-1] if decision.run else decision.mark or mark.at
    at_least = decision.left_out is not None and decision.left_out.at_least
    return replace(said, last=last, next=_following(spec, newest), missed=count, at_least=at_least, fate=_fate(spec, decision))


def _following(spec: ScheduleSpec, mark: datetime) -> datetime | None:
    try:
        return spec.timing.following(mark).astimezone(spec.timing.tzinfo)
    except OverflowError:
        return None


def _fate(spec: ScheduleSpec, decision: Decision) -> str:
    """Return in words what becomes of missed ticks: first of those that are carried out, then of those that are left out."""
    if not decision.run and decision.left_out is None:
        return ""
    if not decision.run:
        late = f"it is more than {ON_TIME.total_seconds():g} s late" if _count(decision.left_out) == 1 else "the latest is too late"
        return f"{_are(decision.left_out)} left out: {late}, and missed='none'"
    if len(decision.run) > 1:
        what = f"{len(decision.run):,} are carried out, oldest first"
    else:
        what = "it is carried out" if decision.left_out is None else "the latest is carried out"
    if spec.missed == "none":
        what += f", if that is within {ON_TIME.total_seconds():g} s of its time"
    return what if decision.left_out is None else f"{what}, {_are(decision.left_out)} left out"


def _count(left_out: LeftOut | None) -> int:
    return left_out.count if left_out else 0


def _are(left_out: LeftOut | None) -> str:
    count = _count(left_out)
    at_least = "at least " if left_out is not None and left_out.at_least else ""
    return "1 is" if count == 1 else f"{at_least}{count:,} are"
