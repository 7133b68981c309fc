"""Finds what keeps every worker from carrying out a reaction on a record now, apart from the record's own attempts.

It reads which workers are alive, what the workers report, which locks are held in the database, and the limits and rates of external
services. `next_step.py` and `why.py` use it for explanations. It runs only SELECTs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import Connection, func, select

from groundstate.engine.call.limiter import AT_ONCE, service_scope
from groundstate.engine.call.rate_limit import rate_of
from groundstate.engine.call.semaphore import WHOLE, LimitedScope, limit_of_scope
from groundstate.engine.operate import living_workers
from groundstate.engine.operate.living_workers import WorkerSeen
from groundstate.engine.rows.worker_report import Failing, Pause, Ring, WorkerReport
from groundstate.engine.sql import db_errors, lock_waits
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.lock_ids import slot_lock_ids
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.engine.watch.postponement import FAILING_MOST
from groundstate.rules import rate as rates
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.specs import ServiceSpec
from groundstate.store.port import Liveness
from groundstate.store.tables import attempt as attempts
from groundstate.store.tables import rate as rate_table
from groundstate.values import keys

T = TypeVar("T")
SLOTS_MOST = 10_000  # if an external service allows more calls at once than this, it is not checked whether all its slots are taken


@dataclass(frozen=True)
class Hindrance:
    """A reason why a reaction is not carried out now, or not in the usual way.

    If `how` is False, the reaction is not carried out, and `words` says what happens instead, beginning with a verb ('waits for ...'). If
    `how` is True, the reaction is carried out, and `words` says in which way or when. `at` is when the hindrance ends; None if not known.
    """

    words: str
    at: datetime | None = None
    how: bool = False

    def phrase_after(self, next_: str) -> str:
        """Return a phrase made of the next step's phrase (`next_`) and, after it, this hindrance."""
        return f"{next_}, {self.words}" if self.how else f"{next_}, but it {self.words}"

    @property
    def phrase_instead(self) -> str:
        """Return the phrase that is shown instead of 'carried out now'."""
        return f"carried out {self.words}" if self.how else self.words


@dataclass(frozen=True)
class Workers:
    """The workers of one app on one database, and the condition queries of the app's reactions.

    `seen` is what the database shows of each worker. `locks` can tell which locks are taken.
    """

    app: str
    connection: Connection
    locks: Liveness
    seen: Sequence[WorkerSeen]
    queries: Collection[ConditionQuery]
    now: datetime

    @property
    def is_any_alive(self) -> bool | None:
        """Return True if some worker is alive, False if none is, and None if this cannot be seen."""
        if any(one.alive for one in self.seen):
            return True
        return None if any(one.alive is None for one in self.seen) else False

    @property
    def able_workers(self) -> list[WorkerSeen]:
        """Return the workers that may be alive and that begin new work."""
        return living_workers.workers_that_begin_work(self.seen)

    def first_if_all_report(self, found: Sequence[T | None]) -> T | None:
        """Return the first item of `found` if every able worker reports something, else None.

        `found` has one item for each able worker: its report on the subject, or None if it reports nothing.
        """
        said = [one for one in found if one is not None]
        return said[0] if said and len(said) == len(self.able_workers) else None


def find_reported_cycle(workers: Workers, query: ConditionQuery, record: str, occurrence: str) -> Ring | None:
    """Return the cycle (reactions that undo each other's changes) that some worker reports with this reaction on this record; None if no
    worker reports one.
    """
    for ring in (ring for incarnation in workers.seen for ring in incarnation.says.rings):
        for step in ring.steps:
            if (step.reaction, step.record, step.occurrence) == (query.spec.name, record, occurrence):
                return ring
    return None


def describe_ring(ring: Ring, name: str) -> str:
    """Return a phrase on what happens to the reaction `name` in a cycle (reactions that undo each other's changes)."""
    others = [one for one in ring.reactions if one != name]
    by = f"since {' and '.join(others)} undo{'es' if len(others) == 1 else ''} it" if others else "by itself"
    return f"goes round, {by}, and is slowed down: it is carried out after pauses of up to a minute"


def find_hindrance(  # noqa: PLR0913  # each argument describes the same next step
    workers: Workers,
    query: ConditionQuery,
    key: PrimaryKey | None,
    occurrence: str,
    *,
    calls: bool,
    attempt: Attempt | None = None,
    suspect: bool = False,
) -> Hindrance | None:
    """Return what keeps workers from carrying out this reaction on the record now, or None if no hindrance is found.

    `query` is the reaction's condition query, or its query for expired records if the record has expired. `key` is None if the record does
    not exist. `calls` says whether the next step calls the external service. `attempt` is the reaction's own attempt; None if there is
    none. `suspect` says whether the reaction begins each call as an attempt in doubt.
    """
    found = _find_all_hindrances(workers, query, key, occurrence, calls=calls)
    first = next(found, None)
    if first is None and suspect and calls and attempt is None:
        words = "in doubt first, since the database went back in time and it may have been called: until `groundstate trust`"
        return Hindrance(words, how=True)
    return first or _hindrance_of_careful_mode(workers, attempt)


def _find_all_hindrances(
    workers: Workers, query: ConditionQuery, key: PrimaryKey | None, occurrence: str, *, calls: bool
) -> Iterator[Hindrance]:
    """Yield each hindrance that keeps workers from this reaction on the record, the one that probably lasts longest first."""
    yield from _hindrance_without_worker(workers)
    words = lock_waits.describe_lock_against_writers(workers.connection, {table.name for table in query.mapper.tables})
    if words is not None:
        yield Hindrance(f"waits: {words}")
    if key is not None:
        ring = find_reported_cycle(workers, query, query.keys.record_text(key), occurrence)
        if ring is not None:
            yield Hindrance(describe_ring(ring, query.spec.name))
        yield from _hindrance_of_row_lock(workers, query, key)
    busy = lock_waits.describe_workers_in_long_transactions(workers.connection)
    if busy and len(busy) >= len(workers.able_workers):
        yield Hindrance(f"waits for {busy[0]}: nothing else is carried out by that worker meanwhile")
    if not query.takes_expired_records:  # workers report nothing about `expired` handlers
        yield from _hindrance_of_handler_lock(workers, query, key)
        yield from _hindrances_reported_by_workers(workers, query)
    if calls and query.spec.call is not None:
        yield from _hindrances_of_service(workers, query.spec.call.service, _tenant_of_record(workers.connection, query, key))
    if workers.first_if_all_report([True if query.spec.name in incarnation.says.aside else None for incarnation in workers.able_workers]):
        words = "when it is found: its condition takes long to ask, and is asked beside the others (`groundstate check` says why)"
        yield Hindrance(words, how=True)


def _hindrance_without_worker(workers: Workers) -> Iterator[Hindrance]:
    if not workers.is_any_alive:
        yield Hindrance("as soon as a worker runs" if workers.is_any_alive is False else "by a worker, if one lives", how=True)
    elif not workers.able_workers:
        if any(one.says.drains for one in workers.seen):
            yield Hindrance("waits for a worker: those that live were told to stop, and begin nothing new")
        else:
            yield Hindrance("waits for a go: those that live were started with --wait-for-go, and were not told to go yet")


def _hindrance_of_row_lock(workers: Workers, query: ConditionQuery, key: PrimaryKey) -> Iterator[Hindrance]:
    """Yield a hindrance if a session other than a worker of groundstate has locked the record's row."""
    for one in lock_waits.find_locked_records(workers.connection, [query], timedelta(), key):
        if not one.ours:
            since = lock_waits.since_in_words(one.since)
            yield Hindrance(f"waits until pid {one.pid} ({one.who}) unlocks its row, which a transaction{since} has locked")


def _hindrance_of_handler_lock(workers: Workers, query: ConditionQuery, key: PrimaryKey | None) -> Iterator[Hindrance]:
    """Yield a hindrance if some worker reports that the handler met a lock of another transaction, for this record or for all records."""
    record = None if key is None else query.keys.record_text(key)
    for lock in (lock for incarnation in workers.able_workers for lock in incarnation.says.locks):
        if lock.reaction == query.spec.name and (not lock.records or record in lock.records):
            yield Hindrance(f"waits: {lock.why}; it is tried again by itself")


def _hindrances_reported_by_workers(workers: Workers, query: ConditionQuery) -> Iterator[Hindrance]:
    """Yield a hindrance for each trouble that every able worker reports for this reaction, on any of its records."""
    name = query.spec.name
    failing = workers.first_if_all_report(
        [next((one for one in incarnation.says.failing if one.reaction == name), None) for incarnation in workers.able_workers]
    )
    if failing is not None:
        yield _hindrance_of_failing_handler(failing, workers.now)
    if workers.first_if_all_report([True if name in incarnation.says.troubled else None for incarnation in workers.able_workers]):
        yield Hindrance(
            "waits, since it could not be carried out at all the last times, as the log says; it is tried again each few seconds"
        )


def _hindrance_of_failing_handler(one: Failing, now: datetime) -> Hindrance:
    failed = f"since its handler failed for {FAILING_MOST} or more records in a row"
    if one.until > now:
        return Hindrance(f"waits, {failed}: one at a time probes it", one.until)
    return Hindrance(f"now, one record at a time, {failed}", how=True)


# ---- its external service ------------------------------------------------------------------------------------------------------
def _tenant_of_record(connection: Connection, query: ConditionQuery, key: PrimaryKey | None) -> str | None:
    """Return `=` and the value of the record's `per` column as text; None if there is no such column or value. Loads no record."""
    per = query.spec.per
    if per is None or key is None:
        return None
    try:
        value = connection.execute(select(per).where(query.keys.has_key_among([key]))).scalar()
    except Exception as error:
        if not db_errors.is_conversion_error(error):
            raise
        return None
    return None if value is None else f"={keys.canonical_text(value)}"


def _hindrances_of_service(workers: Workers, service: ServiceSpec, tenant: str | None) -> Iterator[Hindrance]:
    paused = workers.first_if_all_report([_find_pause(workers, incarnation.says, service, tenant) for incarnation in workers.able_workers])
    if paused is not None and not paused.how:
        yield paused
    places: list[LimitedScope] = [(service, tenant), service_scope(service)]
    for place in places:
        most = limit_of_scope(place)
        if most is not None and most <= SLOTS_MOST:
            taken = living_workers.read_liveness(workers.locks, slot_lock_ids(workers.app, service.name, place[1] or WHOLE, most))
            if all(taken.values()):
                yield Hindrance(f"waits for a free slot: as many calls to {_name_of_scope(place)} as may be, {most:,}, are under way")
    if service.limit is None and workers.able_workers and _has_full_workers_only(workers, service):
        yield Hindrance(f"waits until a call to {service.name} ends: each worker has {AT_ONCE} of them under way, and it has no limit=")
    for place in places:
        yield from _hindrances_of_rate(workers, place)
    if paused is not None:
        yield paused


def _find_pause(workers: Workers, says: WorkerReport, service: ServiceSpec, tenant: str | None) -> Hindrance | None:
    for one in says.paused:
        if (one.service, one.tenant) == (service.name, None if tenant is None else tenant[1:]):
            return _hindrance_of_pause(one, workers.now)
    if tenant is not None and says.paused_count > len(says.paused):
        return Hindrance(f"now, or after a pause: {says.paused_count:,} parts of services are paused, more than are named", how=True)
    return None


def _hindrance_of_pause(one: Pause, now: datetime) -> Hindrance:
    name = one.service if one.tenant is None else f"{one.service}, {one.tenant}"
    answered = f" (its last answer: {one.answered})" if one.answered else ""
    waits = f"waits for the service {name}, which is paused{answered}"
    waits += "; one call at a time probes it, in turn of a record that was tried before and of one that was not"
    return Hindrance(f"{waits}; the next probe goes out", one.until) if one.until > now else Hindrance(waits)


def _name_of_scope(place: LimitedScope) -> str:
    service, tenant = place
    return f"{service.name}, {tenant[1:]}" if tenant else service.name


def _has_full_workers_only(workers: Workers, service: ServiceSpec) -> bool:
    """Return whether every able worker has its maximum of calls in flight to this external service, which has no limit of its own."""
    of = attempts.c
    names = [one.spec.name for one in workers.queries if one.spec.call is not None and one.spec.call.service is service]
    begun = (of.app == workers.app, of.state == State.BEGUN.value, of.reaction.in_(names))
    counted = select(of.worker, func.count()).where(*begun).group_by(of.worker)
    flying = {row[0]: row[1] for row in workers.connection.execute(counted)}
    return all(flying.get(incarnation.id, 0) >= AT_ONCE for incarnation in workers.able_workers)


def _hindrances_of_rate(workers: Workers, place: LimitedScope) -> Iterator[Hindrance]:
    rate, (service, tenant) = rate_of(place), place
    if rate is None:
        return
    of = rate_table.c
    mine = (of.app == workers.app, of.service == service.name, of.tenant == (tenant or WHOLE))
    found = rates.read_call_count(
        workers.connection.execute(select(of.counts).where(*mine)).scalar(), rate, rates.microseconds_since_epoch(workers.now)
    )
    if rates.calls_left(found, rate) == 0:
        at = rates.next_call_allowed_at(found, rate)
        words = f"waits for the rate of {_name_of_scope(place)}, {rate.times:,} in {rate.each.total_seconds():g} s: the next is free"
        yield Hindrance(words, None if at is None else rates.datetime_from_microseconds(at))


# ---- careful mode ----------------------------------------------------------------------------------------------------------------
def _hindrance_of_careful_mode(workers: Workers, attempt: Attempt | None) -> Hindrance | None:
    care = living_workers.careful_mode_of(workers.seen, workers.now)
    if not care.careful:
        return None
    if attempt is not None and care.must_run_alone(attempt.why, has_call=attempt.unsure or attempt.call_no > 0):
        return Hindrance("alone, once nothing else is under way, since its worker ended each time (careful mode)", how=True)
    return Hindrance("in careful mode: among few others, and after what is suspected of having ended workers", how=True)
