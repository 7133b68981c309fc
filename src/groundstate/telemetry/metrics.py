"""Defines every metric (name, kind, labels, description) and reads its values. Imports neither Prometheus nor OpenTelemetry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from groundstate.app.app import App
from groundstate.app.declared import reactions_of
from groundstate.clock import SYSTEM_CLOCK, Clock
from groundstate.engine.health import WorkerHealth
from groundstate.engine.operate.fleet_status import STATES, Overview
from groundstate.telemetry.cached_queries import CachedStatus, DatabaseStatusCache
from groundstate.values.errors import StoppedError

TURNING_S = 60.0  # a worker counts as up if no iteration of its loops has lasted longer than this many seconds


@dataclass(frozen=True)
class Measure:
    """The definition of one metric.

    whole: True if the metric describes the database, so that each process reports the same value; False if it describes this process.
    """

    name: str
    kind: Literal["gauge", "counter"]
    unit: str  # "s" for seconds, or "1" for a number without a unit
    labels: tuple[str, ...]
    words: str
    whole: bool = False


@dataclass(frozen=True)
class Value:
    """One value of a metric, and the values of the metric's labels, in the order of `Measure.labels`."""

    labels: tuple[str, ...]
    value: float


def _define_gauge(name: str, labels: str, words: str, *, unit: str = "1", whole: bool = False) -> Measure:
    return Measure(name, "gauge", unit, ("app", *labels.split()), words, whole=whole)


def _define_counter(name: str, labels: str, words: str, *, unit: str = "1") -> Measure:
    return Measure(name, "counter", unit, ("app", *labels.split()), words)


PENDING = _define_gauge(
    "groundstate_pending_rows", "store reaction", "Rows that wait to be carried out; 10,000 means at least that many.", whole=True
)
OLDEST = _define_gauge(
    "groundstate_pending_oldest_seconds", "store reaction",
    "How long the oldest of them has waited: since it was due; without a due time, since this process first saw it waiting.",
    unit="s", whole=True,
)  # fmt: skip
TOO_LATE = _define_gauge("groundstate_too_late_rows", "store reaction", "Rows past their valid_for, for the expired handler.", whole=True)
ATTEMPTS = _define_gauge("groundstate_attempts", "store reaction state", "Attempts that exist: begun, doubt, failed, held.", whole=True)
ATTEMPTS_OLDEST = _define_gauge(
    "groundstate_attempts_oldest_seconds", "store reaction state", "How long ago the oldest of them began.", unit="s", whole=True
)
UNDECLARED = _define_gauge(
    "groundstate_undeclared_attempts", "store reaction", "Attempts of reactions that this code does not declare.", whole=True
)
SUSPECT = _define_gauge(
    "groundstate_reaction_suspect", "store reaction",
    "1: the database went back in time, or may have, and `groundstate trust` was not run since.", whole=True,
)  # fmt: skip
ANSWERS = _define_gauge(
    "groundstate_store_answers", "store", "1: the database answered lately; 0: metrics that only it can tell are missing."
)
ANSWERED = _define_gauge("groundstate_store_answer_age_seconds", "store", "How old the last answer of the database is.", unit="s")
UP = _define_gauge("groundstate_worker_up", "store", "1: the worker's thread runs, the loop of its calls iterates, and it has its lock.")
TURNED = _define_gauge(
    "groundstate_worker_turn_age_seconds", "store",
    "Since the last iteration of the worker's thread, or since the iteration that was to follow a wait.", unit="s",
)  # fmt: skip
LOOP_LATE = _define_gauge(
    "groundstate_call_loop_late_seconds", "store", "For how long the event loop of async calls has been blocked.", unit="s"
)
WAITS_FOR_GO = _define_gauge("groundstate_worker_waits_for_go", "store", "1: it was started with --wait-for-go, and waits for a go.")
CAREFUL = _define_gauge("groundstate_worker_careful", "store", "1: careful mode: two workers ended uncleanly.")
REFUSED = _define_gauge("groundstate_reaction_refused", "store reaction", "1: it is new or changed, and waits for a person to accept it.")
UNFIT = _define_gauge("groundstate_reaction_unfit", "store reaction", "1: its record has a column or a table that the database lacks.")
LIVES = _define_counter(
    "groundstate_worker_incarnations", "store", "Incarnations begun: more than one for a process means that its lock was lost."
)
BEGUN = _define_counter("groundstate_calls_begun", "store service reaction kind", "Calls and lookups that were sent.")
ENDED = _define_counter(
    "groundstate_calls_ended", "store service reaction kind ending",
    "Calls and lookups that ended, by how: outcome, not_done, busy, in_doubt, absent, unknown, not_sent.",
)  # fmt: skip
IN_THE_AIR = _define_gauge("groundstate_calls_in_the_air", "store service", "Calls and lookups in flight.")
GOING_ROUND = _define_gauge("groundstate_records_going_round", "store", "Rings of records whose reactions undo each other: slowed down.")
HANGING = _define_gauge("groundstate_calls_hanging", "store", "Calls that went on past their time limit.")
PAUSED = _define_gauge(
    "groundstate_breaker_open", "store service", "For how many of its tenants the service fails, so that it pauses and is probed."
)
DONE = _define_counter("groundstate_records", "store reaction ending", "Records of reactions without a call: done, failed, expired.")
BATCHES = _define_counter("groundstate_batches", "store", "Transactions of reactions without a call.")
SWEEPS = _define_counter("groundstate_sweeps", "store", "Completed sweeps.")
SWEPT = _define_counter("groundstate_sweeps_seconds", "store", "How long the completed sweeps took together.", unit="s")
SWEEP_AGE = _define_gauge("groundstate_sweep_age_seconds", "store", "Since the last sweep ended.", unit="s")
TRANSPORT = _define_gauge("groundstate_transport_up", "transport", "1: hints are sent and received; 0: rows are found only by the sweep.")

MEASURES: tuple[Measure, ...] = (
    PENDING, OLDEST, TOO_LATE, ATTEMPTS, ATTEMPTS_OLDEST, UNDECLARED, SUSPECT, ANSWERS, ANSWERED, UP, TURNED, LOOP_LATE, WAITS_FOR_GO,
    CAREFUL, REFUSED, UNFIT, LIVES, BEGUN, ENDED, IN_THE_AIR, HANGING, PAUSED, GOING_ROUND, DONE, BATCHES, SWEEPS, SWEPT, SWEEP_AGE,
    TRANSPORT,
)  # fmt: skip

Values = dict[Measure, list[Value]]
MetricValues = Iterator[tuple[Measure, float, *tuple[str, ...]]]


class Meter:
    """Reads the values of one app's metrics. May be used from any thread. The databases are queried at most once in `FRESH_S` seconds."""

    def __init__(self, app: App, clock: Clock = SYSTEM_CLOCK) -> None:
        self._app = app
        self._clock = clock
        self._statuses = DatabaseStatusCache(app, clock)

    def values(self) -> Values:
        """Return the values of every metric; the list of a metric is empty if no value is known now."""
        found: Values = {measure: [] for measure in MEASURES}
        for measure, value, *labels in self._read_current_values():
            found[measure].append(Value((self._app.name, *labels), value))
        return found

    def close(self) -> None:
        """Close the connections to the databases."""
        self._statuses.close()

    def _read_current_values(self) -> MetricValues:
        stores = self._statuses.current_statuses()
        for seen in stores:
            yield from metrics_of_store(seen, self._clock.monotonic())
        told = set[str]()
        for worker_health in self._app.worker_health():
            told.add(worker_health.store)
            yield from metrics_of_worker(worker_health, services_called_in(self._app, worker_health.store, stores))
        with suppress(StoppedError):
            down = self._app.down
            for seen in stores:
                if seen.name in down and seen.name not in told:  # no worker of this store has started in this process
                    yield UP, 0, seen.name
            for name, up in self._app.transports.items():
                yield TRANSPORT, up, name


def metrics_of_store(seen: CachedStatus, now: float) -> MetricValues:
    """Yield a tuple (metric, value, *values of its labels) for each value that comes from one database."""
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
            yield ATTEMPTS_OLDEST, _seconds_since(seen.answer, standing.since if standing else None), *labels, state
        if one.makes == "rows" or not one.asked:
            continue
        yield PENDING, one.rows, *labels
        yield OLDEST, max(seen.first_record_waited_s(one.name, now), _seconds_since(seen.answer, one.overdue_since)), *labels
        yield TOO_LATE, one.too_late, *labels
        yield SUSPECT, one.suspect or one.waits, *labels


def metrics_of_worker(worker_health: WorkerHealth, services: Sequence[str]) -> MetricValues:
    """Yield a tuple (metric, value, *values of its labels) for each value that comes from one worker of this process."""
    store = worker_health.store
    yield UP, is_worker_up(worker_health, TURNING_S), store
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


def is_worker_up(worker_health: WorkerHealth, turning_s: float) -> bool:
    """Whether a worker is up: it holds its lock, and each of its loops had an iteration in the last `turning_s` seconds."""
    return worker_health.ended is None and worker_health.sound and max(worker_health.turned_s, worker_health.loop_late_s) <= turning_s


def services_called_in(app: App, name: str, stores: Sequence[CachedStatus]) -> list[str]:
    """Return the names of the external services that the reactions of a store call."""
    of = [spec for one in stores if one.name == name for spec in reactions_of(app, one.store)]
    return sorted({spec.call.service.name for spec in of if spec.call is not None})


def _seconds_since(answer: Overview, moment: datetime | None) -> float:
    return max((answer.now - moment).total_seconds(), 0.0) if moment is not None else 0.0
