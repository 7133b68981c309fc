"""Defines every metric (name, kind, labels, description) and reads its values, for Prometheus and OpenTelemetry; it imports neither."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from groundstate.app.app import App
from groundstate.app.declared import reactions_of
from groundstate.engine.health import WorkerHealth
from groundstate.engine.operate.fleet_status import STATES, Overview
from groundstate.telemetry.cached_queries import DatabaseStatusCache, Seen
from groundstate.values.errors import StoppedError

TURNING_S = 60.0  # seconds: a worker whose last loop iteration is longer ago than this is not up


@dataclass(frozen=True)
class Measure:
    """A Measure defines one metric. whole: it describes the database, and is the same in each worker; else it describes this process."""

    name: str
    kind: Literal["gauge", "counter"]
    unit: str  # "s" for seconds, or "1"
    labels: tuple[str, ...]
    words: str
    whole: bool = False


@dataclass(frozen=True)
class Value:
    """A Value is a metric's value for some label values, in the order of the Measure's labels."""

    labels: tuple[str, ...]
    value: float


def _gauge(name: str, labels: str, words: str, *, unit: str = "1", whole: bool = False) -> Measure:
    return Measure(name, "gauge", unit, ("app", *labels.split()), words, whole=whole)


def _counter(name: str, labels: str, words: str, *, unit: str = "1") -> Measure:
    return Measure(name, "counter", unit, ("app", *labels.split()), words)


PENDING = _gauge("groundstate_pending_rows", "store reaction", "Rows that wait to be carried out; 10,000: at least so many.", whole=True)
OLDEST = _gauge(
    "groundstate_pending_oldest_seconds", "store reaction",
    "How long the first of them has waited: since it was due; without a due time, since this process first saw it waiting.",
    unit="s", whole=True,
)  # fmt: skip
TOO_LATE = _gauge("groundstate_too_late_rows", "store reaction", "Rows past their valid_for, for which expired answers.", whole=True)
ATTEMPTS = _gauge("groundstate_attempts", "store reaction state", "Attempts that stand: begun, doubt, failed, held.", whole=True)
ATTEMPTS_OLDEST = _gauge(
    "groundstate_attempts_oldest_seconds", "store reaction state", "How long ago the first of them began.", unit="s", whole=True
)
UNDECLARED = _gauge(
    "groundstate_undeclared_attempts", "store reaction", "Attempts of reactions that this code does not declare.", whole=True
)
SUSPECT = _gauge(
    "groundstate_reaction_suspect", "store reaction", "1: the database went back, or may have, and nobody has trusted it since.", whole=True
)
ANSWERS = _gauge("groundstate_store_answers", "store", "1: the database answered lately; 0: what is told of it alone is missing.")
ANSWERED = _gauge("groundstate_store_answer_age_seconds", "store", "How old that answer is.", unit="s")
UP = _gauge("groundstate_worker_up", "store", "1: its thread turns, its loop of calls comes round, and its lock is its own.")
TURNED = _gauge("groundstate_worker_turn_age_seconds", "store", "Since its own thread came round, or was to.", unit="s")
LOOP_LATE = _gauge("groundstate_call_loop_late_seconds", "store", "For how long the loop of async calls has not come round.", unit="s")
WAITS_FOR_GO = _gauge("groundstate_worker_waits_for_go", "store", "1: it was started with --wait-for-go, and waits for a go.")
CAREFUL = _gauge("groundstate_worker_careful", "store", "1: careful mode: two workers ended uncleanly.")
REFUSED = _gauge("groundstate_reaction_refused", "store reaction", "1: it is new or changed, and waits for a person to accept it.")
UNFIT = _gauge("groundstate_reaction_unfit", "store reaction", "1: its record has a column that the table has not, or a table is missing.")
LIVES = _counter(
    "groundstate_worker_incarnations", "store", "Incarnations begun: more than one for a process means that its lock was lost."
)
BEGUN = _counter("groundstate_calls_begun", "store service reaction kind", "Calls and lookups that were sent.")
ENDED = _counter(
    "groundstate_calls_ended", "store service reaction kind ending",
    "The same, by how they ended: outcome, not_done, busy, in_doubt, absent, unknown, not_sent.",
)  # fmt: skip
IN_THE_AIR = _gauge("groundstate_calls_in_the_air", "store service", "Calls and lookups under way.")
GOING_ROUND = _gauge("groundstate_records_going_round", "store", "Rings of records that undo each other, and are slowed down.")
HANGING = _gauge("groundstate_calls_hanging", "store", "Calls that went on past their time limit.")
PAUSED = _gauge(
    "groundstate_breaker_open", "store service", "Of how many of its parts the endpoint fails, so that it pauses and is probed."
)
DONE = _counter("groundstate_records", "store reaction ending", "Records of reactions without a call: done, failed, expired.")
BATCHES = _counter("groundstate_batches", "store", "Transactions of those.")
SWEEPS = _counter("groundstate_sweeps", "store", "Sweeps that came to their end.")
SWEPT = _counter("groundstate_sweeps_seconds", "store", "How long they took together, from the first look to the last.", unit="s")
SWEEP_AGE = _gauge("groundstate_sweep_age_seconds", "store", "Since the last sweep came to its end.", unit="s")
TRANSPORT = _gauge("groundstate_transport_up", "transport", "1: hints come and go; 0: rows are found by the sweep alone.")

MEASURES: tuple[Measure, ...] = (
    PENDING, OLDEST, TOO_LATE, ATTEMPTS, ATTEMPTS_OLDEST, UNDECLARED, SUSPECT, ANSWERS, ANSWERED, UP, TURNED, LOOP_LATE, WAITS_FOR_GO,
    CAREFUL, REFUSED, UNFIT, LIVES, BEGUN, ENDED, IN_THE_AIR, HANGING, PAUSED, GOING_ROUND, DONE, BATCHES, SWEEPS, SWEPT, SWEEP_AGE,
    TRANSPORT,
)  # fmt: skip

Values = dict[Measure, list[Value]]
Told = Iterator[tuple[Measure, float, *tuple[str, ...]]]


class Meter:
    """A Meter reads the values of one app's metrics; any thread may call it. The databases are queried at most every few seconds."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._looking = DatabaseStatusCache(app)

    def values(self) -> Values:
        """Return the values of every metric; the list of a metric is empty where no value is known now."""
        found: Values = {measure: [] for measure in MEASURES}
        for measure, value, *labels in self._all():
            found[measure].append(Value((self._app.name, *labels), value))
        return found

    def close(self) -> None:
        """Close the connections to the databases."""
        self._looking.close()

    def _all(self) -> Told:
        stores = self._looking.seen()
        for seen in stores:
            yield from of_store(seen, time.monotonic())
        told = set[str]()
        for worker_health in self._app.worker_health():
            told.add(worker_health.store)
            yield from of_worker(worker_health, outsides_of(self._app, worker_health.store, stores))
        with suppress(StoppedError):
            down = self._app.down
            for seen in stores:
                if seen.name in down and seen.name not in told:  # its worker never started in this process
                    yield UP, 0, seen.name
            for name, up in self._app.transports.items():
                yield TRANSPORT, up, name


def of_store(seen: Seen, now: float) -> Told:
    """Yield the metrics that come from one database."""
    yield ANSWERS, seen.answer is not None, seen.name
    if seen.answer is None:
        return
    yield ANSWERED, now - seen.at, seen.name
    for name, count in seen.answer.undeclared.items():
        yield UNDECLARED, count, seen.name, name
    for one in seen.answer.reactions:
        labels = (seen.name, one.name)
        for state in STATES:
            standing = one.attempts.get(state)
            yield ATTEMPTS, standing.count if standing else 0, *labels, state
            yield ATTEMPTS_OLDEST, _since(seen.answer, standing.since if standing else None), *labels, state
        if one.makes == "rows" or not one.asked:
            continue
        yield PENDING, one.rows, *labels
        yield OLDEST, max(seen.waited_s(one.name, now), _since(seen.answer, one.overdue_since)), *labels
        yield TOO_LATE, one.too_late, *labels
        yield SUSPECT, one.suspect or one.waits, *labels


def of_worker(worker_health: WorkerHealth, services: Sequence[str]) -> Told:
    """Yield the metrics that come from one worker of this process."""
    store = worker_health.store
    yield UP, is_up(worker_health, TURNING_S), store
    yield TURNED, worker_health.turned_s, store
    yield LOOP_LATE, worker_health.loop_late_s, store
    yield WAITS_FOR_GO, worker_health.waits_for_go, store
    yield CAREFUL, worker_health.careful, store
    yield LIVES, worker_health.workers, store
    yield HANGING, worker_health.hanging, store
    yield GOING_ROUND, worker_health.going_round, store
    yield BATCHES, worker_health.batches, store
    yield SWEEPS, worker_health.sweeps, store
    yield SWEPT, worker_health.sweeps_s, store
    yield SWEEP_AGE, worker_health.swept_s, store
    for name in worker_health.refused:
        yield REFUSED, 1, store, name
    for name in worker_health.lacking:
        yield UNFIT, 1, store, name
    for service in services:
        yield IN_THE_AIR, worker_health.in_the_air.get(service, 0), store, service
        yield PAUSED, worker_health.pauses.get(service, 0), store, service
    for (service, reaction, kind), count in worker_health.begun.items():
        yield BEGUN, count, store, service, reaction, kind
    for (service, reaction, kind, ending), count in worker_health.ended_calls.items():
        yield ENDED, count, store, service, reaction, kind, ending
    for ending, by_reaction in (("done", worker_health.done), ("failed", worker_health.failed), ("expired", worker_health.expired)):
        for reaction, count in by_reaction.items():
            yield DONE, count, store, reaction, ending


def is_up(worker_health: WorkerHealth, turning_s: float) -> bool:
    """Return whether a worker carries out work, as far as can be seen; the metric UP says what that means."""
    return worker_health.ended is None and worker_health.sound and max(worker_health.turned_s, worker_health.loop_late_s) <= turning_s


def outsides_of(app: App, name: str, stores: Sequence[Seen]) -> list[str]:
    """Return the names of the external services that the reactions of a store call."""
    of = [spec for one in stores if one.name == name for spec in reactions_of(app, one.store)]
    return sorted({spec.call.service.name for spec in of if spec.call is not None})


def _since(answer: Overview, moment: datetime | None) -> float:
    return max((answer.now - moment).total_seconds(), 0.0) if moment is not None else 0.0
