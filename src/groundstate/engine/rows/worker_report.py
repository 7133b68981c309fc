"""Data classes for what a running worker reports to other processes: what it pauses, slows down, or leaves to other workers.

The report is JSON in the worker's own row; `status` and `why` show it. No decision depends on the report, and it is void once its worker
has ended. A part of the report that cannot be parsed is left out.
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
    """A pause of calls to an external service, which failed or asked for a pause.

    Attributes:
        part: The tenant (the value of `per`); None for a service without `per`.
        until: No call is made before this time; from then on, one call at a time probes whether the service answers again.
        answered: The service's last answer or error.
    """

    service: str
    tenant: str | None
    since: datetime
    until: datetime
    answered: str


@dataclass(frozen=True)
class Failing:
    """A reaction that makes no calls pauses, because its handler failed for many different records, one after another."""

    reaction: str
    since: datetime
    until: datetime


@dataclass(frozen=True)
class Lacks:
    """A reaction that the worker does not carry out because something is missing, such as a right, a column, a usable key or a listener.
    `why` names what is missing, and the cure.
    """

    reaction: str
    why: str


@dataclass(frozen=True)
class HandlerLock:
    """Records that wait because their reaction's handler met a lock of another transaction; `why` names the lock and its holder.

    records: their keys as texts, not all of them if there are many; empty if the whole reaction waits, since a table is locked.
    """

    reaction: str
    why: str
    records: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One step of a ring (reactions that make each other's conditions hold again and again): a reaction, and the record that it changed."""

    reaction: str
    table: str
    record: str
    occurrence: str


@dataclass(frozen=True)
class Ring:
    """A cycle of reactions that make each other's conditions hold again and again. The worker slows it down by pauses of up to a minute.

    since: when the pauses began.
    """

    since: datetime
    steps: tuple[Step, ...]

    @property
    def records(self) -> tuple[tuple[str, str], ...]:
        """Return the records in this ring as pairs (table, key), each pair once."""
        return tuple(dict.fromkeys((step.table, step.record) for step in self.steps))

    @property
    def reactions(self) -> tuple[str, ...]:
        """Return the names of the reactions in this ring, each once, in the order of the steps."""
        return tuple(dict.fromkeys(step.reaction for step in self.steps))


@dataclass(frozen=True)
class WorkerReport:
    """Everything that a worker reports about itself. Only some pauses and rings are listed; the counts include those not listed.

    Attributes:
        waits_for_go: The worker was started with --wait-for-go, and carries out nothing until it is told to go.
        drains: The worker was asked to stop, and begins nothing new.
        leaves: Reactions whose backlog this worker leaves to other workers, since more workers at once would not be faster.
        aside: Reactions that run apart from the others, since the queries of their conditions are slow.
        failing: Reactions whose handlers failed for many different records in a row.
        troubled: Reactions that fail as a whole, whatever the record, and that the worker tries again and again; its log says why.
        lacks: Reactions that the worker does not carry out because something is missing.
        locks: Reactions, or records of them, that wait because a handler met a lock of another transaction.
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
    locks: tuple[HandlerLock, ...] = ()


NOTHING = WorkerReport()


def report_to_json(says: WorkerReport) -> str | None:
    """Return the report as JSON in ASCII, which every encoding of a database includes; None for an empty report."""
    found = {name: value for name, value in dataclasses.asdict(says).items() if value}
    return json.dumps(found, default=datetime.isoformat, separators=(",", ":")) if found else None


def report_from_json(text: str | None) -> WorkerReport:
    """Parse a report that `report_to_json` made. Parts that cannot be parsed are left out."""
    try:
        found = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return NOTHING
    if not isinstance(found, dict):
        return NOTHING
    paused, rings = _parse_list(found, "paused", _parse_pause), _parse_list(found, "rings", _parse_ring)
    return WorkerReport(
        waits_for_go=found.get("waits_for_go") is True,
        drains=found.get("drains") is True,
        paused=paused,
        paused_count=_parse_count(found, "paused_count", len(paused)),
        rings=rings,
        rings_count=_parse_count(found, "rings_count", len(rings)),
        leaves=_parse_list(found, "leaves", _check_text),
        aside=_parse_list(found, "aside", _check_text),
        failing=_parse_list(
            found, "failing", lambda one: Failing(_check_text(one["reaction"]), _parse_time(one["since"]), _parse_time(one["until"]))
        ),
        troubled=_parse_list(found, "troubled", _check_text),
        lacks=_parse_list(found, "lacks", lambda one: Lacks(_check_text(one["reaction"]), _check_text(one["why"]))),
        locks=_parse_list(found, "locks", _parse_lock),
    )


def _parse_list(found: dict[str, Any], name: str, make: Callable[[Any], T]) -> tuple[T, ...]:
    made: list[T] = []
    some = found.get(name)
    for one in some if isinstance(some, list) else ():
        try:
            made.append(make(one))
        except (ValueError, TypeError, LookupError, ArithmeticError):
            continue  # an entry that cannot be parsed is left out
    return tuple(made)


def _parse_count(found: dict[str, Any], name: str, least: int) -> int:
    count = found.get(name)
    return max(count, least) if type(count) is int else least


def _parse_lock(one: Any) -> HandlerLock:
    return HandlerLock(_check_text(one["reaction"]), _check_text(one["why"]), tuple(_check_text(record) for record in one["records"]))


def _parse_pause(one: Any) -> Pause:
    tenant = None if one["tenant"] is None else _check_text(one["tenant"])
    return Pause(_check_text(one["service"]), tenant, _parse_time(one["since"]), _parse_time(one["until"]), _check_text(one["answered"]))


def _parse_ring(one: Any) -> Ring:
    steps = tuple(Step(*(_check_text(step[name]) for name in ("reaction", "table", "record", "occurrence"))) for step in one["steps"])
    if not steps:
        raise ValueError(one)
    return Ring(_parse_time(one["since"]), steps)


def _check_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _parse_time(value: Any) -> datetime:
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None or not LATEST.replace(year=1000) < moment < LATEST:
        raise ValueError(value)
    return moment
