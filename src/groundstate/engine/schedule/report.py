"""Reports on schedules: the last tick, the next tick, and what happens to missed ticks. Runs only SELECTs."""

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
class ScheduleReport:
    """What is reported of one schedule, with times in the schedule's own time zone.

    Attributes:
        words: The schedule's definition in words.
        last: The schedule's cursor (the time of its last tick); None if it is missing or cannot be read.
        next: The time of the next tick; None if there is none.
        missed: How many ticks are due since the cursor.
        at_least: Whether counting stopped at a bound, so that more ticks than `missed` may be due.
        fate: What happens to the missed ticks, or why no tick is carried out, in words; empty if there is nothing to say.
    """

    name: str
    words: str
    last: datetime | None
    next: datetime | None
    missed: int
    at_least: bool
    fate: str


def report_schedules(
    app: str, database: Database, connection: Connection, specs: Sequence[ScheduleSpec], at: datetime | None
) -> list[ScheduleReport]:
    """Return one report per schedule, as of the time `at`. If `at` is None, the time is now by the database's clock."""
    if not specs:
        return []
    now = at or connection.execute(select(database.now())).scalar_one()
    known = cursors.read_cursors_as_stored(database, connection, app, specs)
    return [_report_schedule(spec, known.get(spec.name), now) for spec in specs]


def _report_schedule(spec: ScheduleSpec, mark: ScheduleCursor | None, now: datetime) -> ScheduleReport:
    said = ScheduleReport(spec.name, spec.as_text, None, None, 0, at_least=False, fate="")
    if mark is None:
        return replace(said, next=_tick_after(spec, now), fate="it is new here, and starts when a worker does")
    if mark.words != spec.as_text:
        fate = f"it was {mark.words!r} here: it starts anew when a worker does, and earlier ticks are not carried out"
        return replace(said, next=_tick_after(spec, now), fate=fate)
    if mark.moment is None:
        return replace(said, fate=mark.illegible_message(spec.name))
    last = mark.moment.astimezone(spec.timing.tzinfo)
    if mark.moment > now:
        cure = cursors.cure_for_cursor(spec.name)
        fate = f"its mark lies in the future, and no tick is carried out before that time: if a clock was wrong, {cure}"
        return replace(said, last=last, next=_tick_after(spec, mark.moment), fate=fate)
    decision = schedule.decide_ticks(spec, mark.moment, now)
    count = len(decision.run) + (decision.left_out.count if decision.left_out else 0)
    newest = decision.run[-1] if decision.run else decision.mark or mark.moment
    at_least = decision.left_out is not None and decision.left_out.at_least
    return replace(said, last=last, next=_tick_after(spec, newest), missed=count, at_least=at_least, fate=_fate_in_words(spec, decision))


def _tick_after(spec: ScheduleSpec, mark: datetime) -> datetime | None:
    """Return the schedule's first tick after the time `mark`; None if that tick lies beyond the last possible datetime."""
    try:
        return spec.timing.first_tick_after(mark).astimezone(spec.timing.tzinfo)
    except OverflowError:
        return None


def _fate_in_words(spec: ScheduleSpec, decision: Decision) -> str:
    """Return a phrase that says how many missed ticks will be carried out, and how many left out; empty if no tick was missed."""
    if not decision.run and decision.left_out is None:
        return ""
    if not decision.run:
        late = (
            f"it is more than {ON_TIME.total_seconds():g} s late" if _left_out_count(decision.left_out) == 1 else "the latest is too late"
        )
        return f"{_left_out_in_words(decision.left_out)} left out: {late}, and missed='none'"
    if len(decision.run) > 1:
        what = f"{len(decision.run):,} are carried out, oldest first"
    else:
        what = "it is carried out" if decision.left_out is None else "the latest is carried out"
    if spec.missed == "none":
        what += f", if that is within {ON_TIME.total_seconds():g} s of its time"
    return what if decision.left_out is None else f"{what}, {_left_out_in_words(decision.left_out)} left out"


def _left_out_count(left_out: LeftOut | None) -> int:
    return left_out.count if left_out else 0


def _left_out_in_words(left_out: LeftOut | None) -> str:
    count = _left_out_count(left_out)
    at_least = "at least " if left_out is not None and left_out.at_least else ""
    return "1 is" if count == 1 else f"{at_least}{count:,} are"
