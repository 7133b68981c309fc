"""The report of a running worker for readers in other processes: what it pauses, slows down, or leaves to other workers. Only values.

The report is JSON in the worker's own row; `status` and `why` show it. No decision depends on it, and it is void once its worker has ended.
A part of it that cannot be read is left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from groundstate.engine.sql.raw_cells import LATEST

T = TypeVar("T")


@dataclass(frozen=True)
class Pause:
    """A pause of calls to an external service that fails, or that asked for a pause.

    Attributes:
        part: The tenant (the value of `per`); None for a service without `per`.
        until: No call is made before this time; after it, one call at a time probes whether the service answers again.
        answered: The service's last answer or error.
    """

    service: str
    tenant: str | None
    since: datetime
    until: datetime
    answered: str


@dataclass(frozen=True)
class Failing:
    """A pause of a reaction without a call, whose handler failed for many different records and succeeded for none in between."""

    reaction: str
    since: datetime
    until: datetime


@dataclass(frozen=True)
class Lacks:
    """A reaction that the worker does not carry out because something is missing (a right, a column, a usable key, a listener); `why` names
    the cure.
    """

    reaction: str
    why: str


@dataclass(frozen=True)
class Step:
    """One reaction on one record, as one step of a ring."""

    reaction: str
    table: str
    record: str
    occurrence: str


@dataclass(frozen=True)
class Ring:
    """A cycle of reactions that make each other's conditions hold again, without end; the worker slows it down by pauses of up to a minute.

    `since` is when the pauses began.
    """

    since: datetime
    steps: tuple[Step, ...]

    @property
    def records(self) -> tuple[tuple[str, str], ...]:
        """The records in this ring, as (table, key), each once."""
        return tuple(dict.fromkeys((step.table, step.record) for step in self.steps))

    @property
    def reactions(self) -> tuple[str, ...]:
        """The names of the reactions in this ring, each once, in the order of the steps."""
        return tuple(dict.fromkeys(step.reaction for step in self.steps))


@dataclass(frozen=True)
class WorkerReport:
    """Everything that a worker reports about itself. Only the first pauses and rings are listed; the counts cover all of them.

    Attributes:
        waits_for_go: The worker was started with --wait-for-go and carries out nothing until it gets a go.
        drains: The worker was asked to stop and begins nothing new.
        leaves: Reactions whose backlog it leaves to other workers, since more workers at once would not be faster.
        aside: Reactions whose condition queries are so slow that they run apart from the others.
        failing: Reactions whose handlers failed for many different records in a row.
        troubled: Reactions that it retries again and again because the reaction as a whole could not be carried out; its log says why.
        lacks: Reactions that it does not carry out because something is missing.
    """

    waits_for_go: bool = False
    drains: bool = False
    paused: tuple[Pause, ...] = ()
    paused_count: int = 0
    rings: tuple[Ring, ...] = ()
    rings_count: int = 0
    leaves: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    failing: tuple[Failing, ...] = ()
    troubled: tuple[str, ...] = ()
    lacks: tuple[Lacks, ...] = ()


NOTHING = WorkerReport()


def report_to_json(says: WorkerReport) -> str | None:
    """Return the report as JSON in ASCII, which every database encoding has; None for an empty report."""
    found = {name: value for name, value in dataclasses.asdict(says).items() if value}
    return json.dumps(found, default=datetime.isoformat, separators=(",", ":")) if found else None


def report_from_json(text: str | None) -> WorkerReport:
    """Parse a report that `written` made; parts that cannot be parsed are left out."""
    try:
        found = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return NOTHING
    if not isinstance(found, dict):
        return NOTHING
    paused, rings = _each(found, "paused", _pause), _each(found, "rings", _ring)
    return WorkerReport(
        waits_for_go=found.get("waits_for_go") is True,
        drains=found.get("drains") is True,
        paused=paused,
        paused_count=_count(found, "paused_count", len(paused)),
        rings=rings,
        rings_count=_count(found, "rings_count", len(rings)),
        leaves=_each(found, "leaves", _text),
        aside=_each(found, "aside", _text),
        failing=_each(found, "failing", lambda one: Failing(_text(one["reaction"]), _moment(one["since"]), _moment(one["until"]))),
        troubled=_each(found, "troubled", _text),
        lacks=_each(found, "lacks", lambda one: Lacks(_text(one["reaction"]), _text(one["why"]))),
    )


def _each(found: dict[str, Any], name: str, make: Callable[[Any], T]) -> tuple[T, ...]:
    made: list[T] = []
    some = found.get(name)
    for one in some if isinstance(some, list) else ():
        try:
            made.append(make(one))
        except (ValueError, TypeError, LookupError, ArithmeticError):
            continue  # an entry that cannot be parsed is left out
    return tuple(made)


def _count(found: dict[str, Any], name: str, least: int) -> int:
    count = found.get(name)
    return max(count, least) if type(count) is int else least


def _pause(one: Any) -> Pause:
    tenant = None if one["tenant"] is None else _text(one["tenant"])
    return Pause(_text(one["service"]), tenant, _moment(one["since"]), _moment(one["until"]), _text(one["answered"]))


def _ring(one: Any) -> Ring:
    steps = tuple(Step(*(_text(step[name]) for name in ("reaction", "table", "record", "occurrence"))) for step in one["steps"])
    if not steps:
        raise ValueError(one)
    return Ring(_moment(one["since"]), steps)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _moment(value: Any) -> datetime:
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None or not LATEST.replace(year=1000) < moment < LATEST:
        raise ValueError(value)
    return moment
