"""What a living worker says of itself to who looks from another process: what it pauses, slows down, or leaves to others. Values alone.

It is one text in the worker's own row, for `status` and `why`. Nothing is decided by it, and it means nothing once its worker is no more.
Whatever cannot be read in it says nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from groundstate.engine.cells import LATEST

T = TypeVar("T")


@dataclass(frozen=True)
class Pause:
    """An endpoint that fails, or that asked for a pause.

    part: which of the outside, by `per`; None for one without parts. until: no call is made before that; once it is past, one call at a
    time probes whether the endpoint answers again. answered: the last that was heard of it.
    """

    outside: str
    part: str | None
    since: datetime
    until: datetime
    answered: str


@dataclass(frozen=True)
class Failing:
    """A reaction without a call whose handler failed for many different records, and carried out none between: as a `Pause`."""

    reaction: str
    since: datetime
    until: datetime


@dataclass(frozen=True)
class Lacks:
    """A reaction that it does not carry out, and why, with the cure: a right, a column, a key that leads to no record, a listener."""

    reaction: str
    why: str


@dataclass(frozen=True)
class Step:
    """One reaction on one record, in a ring."""

    reaction: str
    table: str
    record: str
    occurrence: str


@dataclass(frozen=True)
class Ring:
    """Reactions that undo each other on a record, or on some: they are carried out with pauses of up to a minute. since: of the pauses."""

    since: datetime
    steps: tuple[Step, ...]

    @property
    def records(self) -> tuple[tuple[str, str], ...]:
        """The records that go round, each once: table and key."""
        return tuple(dict.fromkeys((step.table, step.record) for step in self.steps))

    @property
    def reactions(self) -> tuple[str, ...]:
        """Each once, in their order."""
        return tuple(dict.fromkeys(step.reaction for step in self.steps))


@dataclass(frozen=True)
class Says:
    """All that a worker says. Of pauses and rings the first are named, and all counted.

    held: it carries out nothing until it is told to. drains: it was told to stop, and begins nothing new. leaves: the reactions whose
    backlogs it leaves to other workers, since more at once would do no more. aside: those whose conditions take so long that they are
    asked beside the others. failing: those whose handlers failed for many different records in a row. troubled: those that it tries again
    and again, since they could not be carried out as a whole, as its log says. lacks: those that it does not carry out, since something is
    missing.
    """

    held: bool = False
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


NOTHING = Says()


def written(says: Says) -> str | None:
    """As it stands in the row, in letters that every database has; None where nothing is said."""
    found = {name: value for name, value in dataclasses.asdict(says).items() if value}
    return json.dumps(found, default=datetime.isoformat, separators=(",", ":")) if found else None


def read(text: str | None) -> Says:
    """What was written, as far as it can be read."""
    try:
        found = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return NOTHING
    if not isinstance(found, dict):
        return NOTHING
    paused, rings = _each(found, "paused", _pause), _each(found, "rings", _ring)
    return Says(
        held=found.get("held") is True,
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
            continue  # it says nothing
    return tuple(made)


def _count(found: dict[str, Any], name: str, least: int) -> int:
    count = found.get(name)
    return max(count, least) if type(count) is int else least


def _pause(one: Any) -> Pause:
    part = None if one["part"] is None else _text(one["part"])
    return Pause(_text(one["outside"]), part, _moment(one["since"]), _moment(one["until"]), _text(one["answered"]))


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
