"""Limits, rates and parts of a service, for the whole fleet.

How many calls are under way at once is measured at a provider, which notes when each request came and went. How many are begun in a span
of time is read from the counts that the database got (`LetGo`): when the system lets the body of a call run is no matter of the rate.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import Absent, ExternalService, IdempotencyKey, InDoubt, NotDone, Rate, Retry, Unknown
from groundstate.engine.call import semaphore
from groundstate.rules import circuit_breaker
from tests.engine.kit import CALL_LIMIT, QUICK, World, ms, until
from tests.patience import LOOKS_S
from tests.testing.planting import Change, planted


class Tenants(DeclarativeBase):
    pass


class Delivery(Tenants):
    __tablename__ = "deliveries"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str | None]
    status: Mapped[str] = mapped_column(default="new")


@dataclass
class Request:
    """One request at the provider, a lookup among them."""

    record: int
    tenant: str | None
    came: float
    went: float = 0.0
    find: bool = False


@dataclass
class Provider:
    """Notes what it is asked for. `takes_s`: how long a call takes; dead: tenants whose endpoint refuses."""

    takes_s: float = 0.0
    dead: set[str] = field(default_factory=set)
    unclear: set[int] = field(default_factory=set)  # records whose first call ends in doubt
    requests: list[Request] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    hangs: bool = False

    async def deliver(self, one: Delivery) -> str:
        request = Request(one.id, one.tenant, time.monotonic())
        self.requests.append(request)
        try:
            if one.tenant in self.dead:
                raise NotDone("no answer")
            if one.id in self.unclear:
                self.unclear.discard(one.id)
                raise RuntimeError("the line went dead")
            await asyncio.sleep(self.takes_s)
            while self.hangs and not self.gate.is_set():  # noqa: ASYNC110  # an event of threads
                await asyncio.sleep(LOOKS_S)
        finally:
            request.went = time.monotonic()
        return "ok"

    def at_once(self, of: Callable[[Request], object] = lambda _request: None) -> int:
        """How many requests were under way at once, at most, of any one group."""
        edges = [(one.came, 1, of(one)) for one in self.requests] + [(one.went or 1e18, -1, of(one)) for one in self.requests]
        now: Counter[object] = Counter()
        most = 0
        for _, step, group in sorted(edges, key=lambda edge: edge[:2]):
            now[group] += step
            most = max(most, now[group])
        return most


class LetGo:
    """Every count of begun calls that was ever committed, kept by triggers: for each part, how many in which slice of time."""

    def __init__(self, world: World) -> None:
        self._world = world.there()
        if world.postgres:
            world.run("create table let_go (n bigserial primary key, part text not null, counts text not null)")
            world.run(
                "create function keep_count() returns trigger language plpgsql as $$"
                " begin insert into let_go (part, counts) values (new.tenant, new.counts); return null; end $$"
            )
            world.run("create trigger kept after insert or update on groundstate_rate for each row execute function keep_count()")
        else:
            world.run("create table let_go (n integer primary key autoincrement, part text not null, counts text not null)")
            for change in ("insert", "update"):
                keeps = "begin insert into let_go (part, counts) values (new.tenant, new.counts); end"
                world.run(f"create trigger kept_{change} after {change} on groundstate_rate for each row {keeps}")

    def written(self) -> list[tuple[str, dict[int, int]]]:
        """The part, and its counts by the end of each slice, as they were written one after another."""
        with self._world.engine.connect() as connection:
            rows = connection.exec_driver_sql("select part, counts from let_go order by n").all()
        return [(part, {int(end): count for end, count in json.loads(counts).items()}) for part, counts in rows]

    def by_part(self) -> dict[str, dict[int, int]]:
        """How many were begun in each slice of time, by its end."""
        parts: dict[str, dict[int, int]] = {}
        for part, counts in self.written():
            mine = parts.setdefault(part, {})
            for end, count in counts.items():
                mine[end] = max(mine.get(end, 0), count)
        return parts

    def count(self) -> int:
        return sum(sum(counts.values()) for counts in self.by_part().values())

    def in_any(self, span: timedelta) -> int:
        """How many were begun within any span of time, at most, of any one part."""
        width = span // timedelta(microseconds=1)
        return max(
            sum(count for end, count in counts.items() if first <= end <= first + width)
            for counts in self.by_part().values()
            for first in counts
        )

    def lasted(self) -> timedelta:
        """From the first slice to the last one."""
        ends = [end for counts in self.by_part().values() for end in counts]
        return timedelta(microseconds=max(ends) - min(ends))


def tenant(request: Request) -> object:
    return request.tenant


def delivering(
    world: World, service: ExternalService, provider: Provider, in_doubt: InDoubt | None = None, retry: Retry = QUICK, **options: Any
) -> None:
    @service.call(in_doubt=in_doubt or InDoubt.repeat(), timeout=CALL_LIMIT, retry=retry)
    async def deliver(one: Delivery, key: IdempotencyKey) -> str:
        return await provider.deliver(one)

    if in_doubt is not None and in_doubt.kind == "lookup":

        @deliver.lookup
        def _(one: Delivery, key: IdempotencyKey) -> str | Absent | Unknown:
            now = time.monotonic()
            provider.requests.append(Request(one.id, one.tenant, now, now, find=True))
            return Absent()

    @world.app.on(Delivery, Delivery.status == "new", call=deliver, **options)
    def delivered(one: Delivery, answer: str) -> None:
        one.status = "delivered"


@pytest.fixture
def shop(database_url: str) -> Any:
    made = World(database_url, Tenants)
    yield made
    made.close()


def all_delivered(world: World, count: int) -> None:
    def left() -> int:
        with world.engine.connect() as connection:
            return int(connection.exec_driver_sql("select count(*) from deliveries where status = 'delivered'").scalar_one())

    until(lambda: left() >= count)


def deliveries(world: World, count: int, *tenants: str | None, first: int = 1) -> None:
    world.add(*[Delivery(id=first + number, tenant=tenants[number % len(tenants)] if tenants else None) for number in range(count)])


# ---- so many at once -----------------------------------------------------------------------------------------------------------
def test_two_workers_together_never_have_more_calls_in_the_air_than_the_limit(shop: World) -> None:
    provider = Provider(takes_s=0.005, hangs=True)
    delivering(shop, ExternalService("hooks", limit=3), provider)
    deliveries(shop, 60)
    one, two = shop.worker(), shop.worker()
    until(lambda: len(provider.requests) >= 3)
    one.sweep()
    two.sweep()
    provider.gate.set()
    all_delivered(shop, 60)
    assert provider.at_once() == 3


def test_each_part_has_a_limit_of_its_own_in_two_workers_together(shop: World) -> None:
    provider = Provider(takes_s=0.005, hangs=True)
    delivering(shop, ExternalService("hooks", limit_per=2), provider, per=Delivery.tenant)
    deliveries(shop, 60, "a", "b", None)
    one, two = shop.worker(), shop.worker()
    until(lambda: Counter(map(tenant, provider.requests)) >= Counter({"a": 2, "b": 2, None: 20}))  # what has no part is not limited by it
    one.sweep()
    two.sweep()
    provider.gate.set()
    all_delivered(shop, 60)
    assert provider.at_once(lambda one: one.tenant or one.record) == 2


def test_slots_of_a_worker_that_dies_are_free_for_the_next_one(shop: World) -> None:
    provider = Provider(hangs=True)
    delivering(shop, ExternalService("hooks", limit=2), provider)
    deliveries(shop, 10)
    one = shop.worker()
    until(lambda: len(provider.requests) == 2)
    one.kill()
    provider.gate.set()
    shop.worker()
    all_delivered(shop, 10)


def test_a_worker_that_needs_its_slots_no_more_gives_them_to_another(shop: World) -> None:
    provider = Provider(hangs=True)
    delivering(shop, ExternalService("hooks", limit=2), provider)
    deliveries(shop, 2)
    one = shop.worker()
    until(lambda: len(provider.requests) == 2)
    two = shop.worker()
    deliveries(shop, 1, first=10)
    two.sweep()
    two.sweep()
    assert len(provider.requests) == 2, "a third call beside two"
    provider.gate.set()
    all_delivered(shop, 3)
    until(lambda: not one.worker.components.call_turns.limits._slots._held and not two.worker.components.call_turns.limits._slots._held)


@pytest.mark.parametrize("for_good", [True, False], ids=["another_life", "the_same_life_where_it_can"])
def test_a_life_that_lost_its_lock_has_lost_its_slots_and_counts_what_still_flies(shop: World, for_good: bool) -> None:
    provider = Provider(hangs=True)
    delivering(shop, ExternalService("hooks", limit=2), provider)
    deliveries(shop, 5)
    one = shop.worker()
    until(lambda: len(provider.requests) == 2)
    old = one.worker.incarnation
    one.lose_lock(for_good=for_good)
    until(lambda: (one.worker.incarnation is not old or old.taken == 2) and one.worker.incarnation.sound)
    one.sweep()
    assert provider.at_once() == 2, "it takes what still flies for nothing"
    provider.gate.set()
    all_delivered(shop, 5)
    assert provider.at_once() == 2


def test_an_outside_without_a_limit_takes_no_slots(shop: World, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(semaphore.Slots, "take_slots", lambda _self, needed, _now: taken.append(dict(needed)))
    delivering(shop, ExternalService("hooks"), Provider())
    deliveries(shop, 3)
    shop.settled()
    assert not any(taken)


def test_without_slots_two_workers_would_exceed_the_limit(shop: World) -> None:
    provider = Provider(hangs=True)
    delivering(shop, ExternalService("hooks", limit=2), provider)
    deliveries(shop, 10)
    everything = Change(semaphore.Slots, "take_slots", "self.worker_state.incarnation.liveness.take_slots(", "_everything(")
    with mock.patch.object(semaphore, "_everything", _everything, create=True), planted(everything):
        shop.worker(), shop.worker()
        until(lambda: len(provider.requests) == 4)
    assert provider.at_once() == 4
    provider.gate.set()
    all_delivered(shop, 10)


def _everything(wanted: list[tuple[int, list[int]]]) -> set[int]:
    return {number for most, numbers in wanted for number in numbers[:most]}


# ---- so many in a span of time -------------------------------------------------------------------------------------------------
SPAN = ms(300)
SLOW = Retry(first=timedelta(seconds=20))


def test_two_workers_together_never_begin_more_calls_in_a_span_than_the_rate(shop: World) -> None:
    provider = Provider()
    delivering(shop, ExternalService("hooks", rate=Rate(5, SPAN)), provider)
    let_go = LetGo(shop)
    deliveries(shop, 18)
    shop.worker(), shop.worker()
    all_delivered(shop, 18)
    assert let_go.count() >= len(provider.requests) == 18, "a call went out that was not counted"
    assert let_go.in_any(SPAN) <= 5
    assert let_go.lasted() >= 3 * SPAN


def test_each_part_has_a_rate_of_its_own(shop: World) -> None:
    provider = Provider()
    delivering(shop, ExternalService("hooks", rate_per=Rate(2, SPAN)), provider, per=Delivery.tenant)
    let_go = LetGo(shop)
    deliveries(shop, 16, "a", "b", "c", None)
    shop.worker(), shop.worker()
    all_delivered(shop, 16)
    counted = {part: sum(counts.values()) for part, counts in let_go.by_part().items()}
    assert counted.keys() == {"=a", "=b", "=c"}
    assert min(counted.values()) >= 4, "a call went out that was not counted"  # one that was held up and not sent counts twice
    assert let_go.in_any(SPAN) <= 2


def test_a_rate_holds_through_the_death_of_a_worker(shop: World) -> None:
    provider = Provider(hangs=True)
    span = timedelta(seconds=2)
    delivering(shop, ExternalService("hooks", rate=Rate(3, span)), provider)
    let_go = LetGo(shop)
    deliveries(shop, 8)
    one = shop.worker()
    until(lambda: len(provider.requests) == 3)
    one.kill()
    provider.gate.set()
    shop.worker()
    until(lambda: len(provider.requests) > 3)
    assert let_go.count() >= len(provider.requests), "a call went out that was not counted"
    assert let_go.in_any(span) <= 3


def test_finds_are_within_the_rate_too(shop: World) -> None:
    provider = Provider(unclear={1, 2, 3})
    delivering(shop, ExternalService("hooks", rate=Rate(2, SPAN)), provider, in_doubt=InDoubt.lookup(settle_after=ms(1)), retry=SLOW)
    let_go = LetGo(shop)
    deliveries(shop, 3)
    shop.worker()
    until(lambda: sum(not one.find for one in provider.requests) == 3)
    shop.forward(60)  # the doubts are asked after from now on
    all_delivered(shop, 3)
    assert sum(one.find for one in provider.requests) >= 3
    assert let_go.count() >= len(provider.requests), "a call or a lookup went out that was not counted"
    assert let_go.in_any(SPAN) <= 2


def test_a_worker_sleeps_until_the_next_token_is_free(shop: World) -> None:
    delivering(shop, ExternalService("hooks", rate=Rate(1, timedelta(hours=1))), Provider())
    deliveries(shop, 3)
    life = shop.worker()
    all_delivered(shop, 1)
    turns = vars(life.worker.loop.iteration)
    count = 0
    real = life.worker.loop.iteration.run_iteration

    def counted() -> None:
        nonlocal count
        count += 1
        real()

    turns["run_iteration"] = counted
    life.worker.components.sweeps.next_look = float("inf")
    life.sweep_no_more()  # nothing but the rate could wake it, and each second a look whether its lock is still its own
    before, started = count, time.monotonic()
    until(lambda: time.monotonic() - started > 0.3)
    assert count - before < 10 + 2 * (time.monotonic() - started)
    assert not life.worker.wait_until_idle(0.3), "rows that wait for a token are still to be carried out"
    shop.forward(2 * 3600)
    life.worker.components.call_turns.limits._free_at.clear()
    life.worker.components.signals.wake.set()
    all_delivered(shop, 2)


def test_a_clock_that_was_set_back_neither_exceeds_the_rate_nor_stops_it_for_longer_than_a_span(shop: World) -> None:
    provider = Provider()
    delivering(shop, ExternalService("hooks", rate=Rate(2, ms(400))), provider)
    let_go = LetGo(shop)
    deliveries(shop, 2)
    life = shop.worker()
    all_delivered(shop, 2)
    shop.forward(-3600)
    deliveries(shop, 2, first=10)
    life.sweep()
    all_delivered(shop, 4)  # and not after the hour by which the clock was set back
    written = [counts for _, counts in let_go.written() if counts]  # none are left once all are out of the span
    assert all(sum(counts.values()) <= 2 for counts in written), "more than the rate count at once"
    assert max(written[-1]) < min(written[0]), "what was begun before counts from when it was set back"


def test_nothing_of_the_rates_is_left_at_rest(shop: World) -> None:
    delivering(shop, ExternalService("hooks", rate=Rate(5, ms(20)), rate_per=Rate(5, ms(20))), Provider(), per=Delivery.tenant)
    deliveries(shop, 6, "a", "b")
    life = shop.worker()
    all_delivered(shop, 6)

    def nothing() -> bool:
        life.sweep()
        with shop.engine.connect() as connection:
            return bool(connection.exec_driver_sql("select count(*) from groundstate_rate").scalar_one() == 0)

    until(nothing)


def test_a_count_that_somebody_made_unreadable_counts_in_full_for_one_span(shop: World) -> None:
    delivering(shop, ExternalService("hooks", rate=Rate(2, ms(300))), Provider())
    shop.there()
    shop.run(
        "insert into groundstate_rate (app, service, tenant, counts, until) values ('shop', 'hooks', '', 'x', :until)",
        until="2999-01-01 00:00:00.000000",
    )
    deliveries(shop, 2)
    shop.worker()
    all_delivered(shop, 2)


# ---- one part fails ------------------------------------------------------------------------------------------------------------
def test_w24_one_tenants_dead_endpoint_pauses_that_tenant_alone(
    shop: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "groundstate")
    monkeypatch.setattr(circuit_breaker, "FIRST_S", 3600.0)  # the pause lasts as long as the test
    monkeypatch.setattr(circuit_breaker, "LONGEST_S", 3600.0)
    provider = Provider(dead={"dead"})
    delivering(shop, ExternalService("hooks", limit=4), provider, retry=SLOW, per=Delivery.tenant)
    deliveries(shop, 30, "dead")
    life = shop.worker()
    until(lambda: life.pauses)
    deliveries(shop, 10, "a", "b", first=100)
    all_delivered(shop, 10)
    assert "the service hooks, dead fails: it pauses" in caplog.text
    assert len([one for one in provider.requests if one.tenant == "dead"]) < 15


def test_a_find_that_answers_absent_does_not_end_the_pause_of_an_endpoint_whose_calls_fail(
    shop: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "groundstate")
    monkeypatch.setattr(circuit_breaker, "FIRST_S", 0.01)
    monkeypatch.setattr(circuit_breaker, "LONGEST_S", 0.01)
    provider = Provider(unclear=set(range(1, 7)))
    delivering(shop, ExternalService("hooks", limit=8), provider, in_doubt=InDoubt.lookup(settle_after=ms(1)), retry=SLOW)
    deliveries(shop, 6)
    life = shop.worker()
    until(lambda: shop.states() == ["doubt"] * 6)
    shop.forward(60)
    until(lambda: shop.states() == ["failed"] * 6)
    assert life.pauses
    assert "answers again" not in caplog.text
    waiting = shop.attempts()
    assert all(one.next_at is not None and one.next_at - one.deadline >= SLOW.first / 2 for one in waiting), "called again at once"
    shop.forward(60)
    all_delivered(shop, 6)
    assert "the service hooks answers again" in caplog.text
    assert not shop.attempts()


def test_calls_that_a_stop_cuts_off_say_nothing_of_their_endpoint(shop: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "groundstate")
    provider = Provider(hangs=True)
    delivering(shop, ExternalService("hooks"), provider)
    deliveries(shop, 10)
    life = shop.worker()
    until(lambda: len(provider.requests) == 10)
    life.stop(0)
    assert shop.states() == ["doubt"] * 10
    assert "the worker stopped while it was in the air" in caplog.text
    assert not life.pauses
    assert "fails: it pauses" not in caplog.text


def test_a_tenant_with_many_rows_does_not_stand_before_the_others(shop: World) -> None:
    provider = Provider(takes_s=0.002)
    delivering(shop, ExternalService("hooks", limit=4, limit_per=2), provider, per=Delivery.tenant)
    deliveries(shop, 100, "many")
    deliveries(shop, 10, *[f"t{number}" for number in range(10)], first=1000)
    shop.worker()
    all_delivered(shop, 110)
    order = [one.tenant for one in provider.requests]
    assert max(order.index(f"t{number}") for number in range(10)) < 40
