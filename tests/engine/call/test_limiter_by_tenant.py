"""Calls by parts of a service (`per`): none is left waiting while a slot or a token is free, and no look is wasted. Counts, no clocks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import ExternalService, InDoubt, InOrder, NotDone, Rate, Retry
from groundstate.engine.sql import group_scan
from groundstate.engine.watch import sweeps
from tests.engine.clocks import Turned
from tests.engine.kit import Life, World, until
from tests.patience import LOOKS_S

HOUR = timedelta(hours=1)


class Base(DeclarativeBase):
    pass


class Hook(Base):
    __tablename__ = "hooks"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[int | None]
    status: Mapped[str] = mapped_column(default="new")


class Leg(Base):
    __tablename__ = "legs"
    trip: Mapped[int] = mapped_column(primary_key=True)
    leg: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[int | None]
    status: Mapped[str] = mapped_column(default="new")


class Endpoint:
    """Refuses (`dead`), or answers so many calls and keeps the others waiting."""

    def __init__(self, answers: float = float("inf")) -> None:
        self.dead, self.answers = False, answers
        self.came: list[int | None] = []
        self.under_way = 0

    async def deliver(self, one: Any) -> str:
        self.came.append(one.tenant)
        if self.dead:
            raise NotDone("no answer")
        self.under_way += 1
        try:
            while self.answers < 1:  # noqa: ASYNC110  # set by another thread
                await asyncio.sleep(LOOKS_S)
            self.answers -= 1
        finally:
            self.under_way -= 1
        return "ok"


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url, Base)
    yield made
    made.close()


def delivering(world: World, service: ExternalService, endpoint: Endpoint, kind: Any = Hook, **options: Any) -> None:
    @service.call(in_doubt=InDoubt.repeat(), timeout=HOUR, retry=Retry(first=HOUR, longest=HOUR))
    async def deliver(one: Any) -> str:
        return await endpoint.deliver(one)

    @world.app.on(kind, kind.status == "new", call=deliver, **options)
    def delivered(one: Any, answer: str) -> None:
        one.status = "delivered"


def written_by_another_program(world: World, count: int, tenants: int, *, first: int = 1) -> None:
    """Rows of which no worker hears."""
    world.there()
    with world.engine.begin() as connection:
        rows = [{"id": number, "tenant": number % tenants} for number in range(first, first + count)]
        connection.execute(text("insert into hooks (id, tenant, status) values (:id, :tenant, 'new')"), rows)


def all_delivered(world: World, table: str = "hooks") -> None:
    def left() -> int:
        with world.engine.connect() as connection:
            return int(connection.exec_driver_sql(f"select count(*) from {table} where status <> 'delivered'").scalar_one())

    until(lambda: left() == 0)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often values and the rest were looked at."""
    looks: Counter[str] = Counter()
    for name in ("read_groups", "read_in_key_order", "first_keys_in_group_of"):
        real = getattr(group_scan.GroupStatements, name)

        def look(self: Any, *given: Any, _real: Callable[..., Any] = real, _name: str = name, **more: Any) -> Any:
            looks[_name] += 1
            return _real(self, *given, **more)

        monkeypatch.setattr(group_scan.GroupStatements, name, look)
    return looks


@pytest.fixture(autouse=True)
def _sweeps_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps.Sweeps, "_pause_s", lambda _self, _now: float("inf"))


def worker(world: World) -> Life:
    """One that looks at nothing by itself but when it is told to sweep."""
    life = world.worker()
    life.hints_alone()
    return life


# ---- nothing waits beside a free slot ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tenants", [1, 4, 40])
def test_one_sweep_is_enough_for_all_rows_of_few_tenants_however_few_slots_there_are(
    world: World, looks: Counter[str], tenants: int
) -> None:
    delivering(world, ExternalService("hooks", limit=2), Endpoint(), per=Hook.tenant)
    life = worker(world)
    written_by_another_program(world, 60, tenants)
    looks.clear()
    life.sweep()
    all_delivered(world)
    # For each call, at most: what comes after the last value, what has none, and the values from the beginning.
    assert looks.total() <= 3 * 60 + 10


def test_one_sweep_of_each_of_two_workers_is_enough(world: World) -> None:
    delivering(world, ExternalService("hooks", limit=2), Endpoint(), per=Hook.tenant)
    lives = [worker(world), worker(world)]
    written_by_another_program(world, 60, 4)
    for life in lives:
        life.sweep()
    all_delivered(world)


def test_one_sweep_is_enough_where_tokens_come_free_one_after_another(world: World, looks: Counter[str]) -> None:
    span = timedelta(milliseconds=100)
    delivering(world, ExternalService("hooks", rate_per=Rate(4, span)), Endpoint(), per=Hook.tenant)
    life = worker(world)
    written_by_another_program(world, 36, 3)
    looks.clear()
    life.sweep()
    all_delivered(world)
    assert looks.total() <= 3 * 36 + 10


def test_one_sweep_is_enough_for_rows_whose_key_has_several_columns_and_for_those_without_a_part(world: World) -> None:
    delivering(world, ExternalService("hooks", limit=2), Endpoint(), Leg, per=Leg.tenant)
    life = worker(world)
    with world.engine.begin() as connection:
        rows = [{"trip": number % 5, "leg": number, "tenant": number % 4 or None} for number in range(40)]
        connection.execute(text("insert into legs (trip, leg, tenant, status) values (:trip, :leg, :tenant, 'new')"), rows)
    life.sweep()
    all_delivered(world, "legs")


def test_one_sweep_is_enough_for_lines_whose_rows_go_one_after_another(world: World) -> None:
    delivering(world, ExternalService("hooks", limit=2), Endpoint(), in_order=InOrder(Hook.tenant, Hook.id))
    life = worker(world)
    written_by_another_program(world, 24, 4)
    life.sweep()
    all_delivered(world)


def test_nothing_is_looked_at_again_while_no_slot_comes_free(world: World, looks: Counter[str]) -> None:
    endpoint = Endpoint(answers=0)
    delivering(world, ExternalService("hooks", limit_per=1), endpoint, per=Hook.tenant)
    life = worker(world)
    written_by_another_program(world, 30, 3)
    life.sweep()
    until(lambda: endpoint.under_way == 3)
    life.turn()
    looks.clear()
    for _ in range(5):
        life.turn()
    assert not looks
    endpoint.answers = float("inf")
    all_delivered(world)


def test_rows_behind_one_that_somebody_has_locked_do_not_wait_for_him(postgres_url: str) -> None:
    world = World(postgres_url, Base)
    delivering(world, ExternalService("hooks", limit=2), Endpoint(), per=Hook.tenant)
    life = worker(world)
    written_by_another_program(world, 40, 2)
    with world.engine.begin() as connection:
        connection.execute(text("select id from hooks where id < 9 for update"))
        life.sweep()
        until(lambda: world.get(Hook, 40).status == world.get(Hook, 39).status == "delivered")
        assert {world.get(Hook, number).status for number in range(9, 41)} == {"delivered"}
    life.sweep()
    all_delivered(world)
    world.close()


# ---- after an outage -----------------------------------------------------------------------------------------------------------
def test_a_service_that_is_back_is_probed_in_time_and_gets_twice_as_many_calls_each_second_though_none_is_answered(
    world: World,
) -> None:
    world.clock = clock = Turned(still=True)
    endpoint = Endpoint(answers=1)
    endpoint.dead = True
    delivering(world, ExternalService("hooks", limit=8), endpoint)
    life = worker(world)
    written_by_another_program(world, 60, 1)
    life.sweep()
    until(lambda: life.pauses and not life.worker.components.call_turns._flying)

    def after(seconds: float, calls: int) -> None:
        """So many more calls have gone out once so much time has passed, and none before."""
        before = len(endpoint.came)
        clock.ahead += seconds - 0.01
        life.turn()
        life.turn()
        assert len(endpoint.came) == before, "a call too early"
        clock.ahead += 0.01
        life.turn()
        until(lambda: len(endpoint.came) == before + calls)

    for seconds in (1, 2, 4, 8, 15):  # each probe fails
        after(seconds, 1)
        until(lambda: not life.worker.components.call_turns._flying)
    endpoint.dead = False
    after(15, 1 + 2)
    after(1, 2)
    after(1, 4)
    assert endpoint.under_way == 8
    endpoint.answers = float("inf")
    until(lambda: len(endpoint.came) >= 60)
