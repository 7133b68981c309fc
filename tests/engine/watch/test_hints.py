"""Waking up: hints after commits of this process, sweeps for rows of others, and that hints do not matter (hazards 27, 40, 63)."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import String, TypeDecorator, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import ExternalService, InDoubt, every_child
from groundstate.app import wait_for
from groundstate.engine.sql import commit_hooks
from groundstate.engine.sql.commit_hooks import TouchedRecords
from groundstate.engine.watch import sweeps
from groundstate.rules.hint_codec import Hint
from tests.engine.charging import charging
from tests.engine.kit import Order, World, until
from tests.engine.rows.test_claim import Rendition, Video
from tests.engine.rows.test_claim import films as films  # noqa: PLC0414  # a fixture
from tests.patience import HANG


@pytest.fixture
def no_sweeps(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Tells a worker not to sweep any more: what is done then was hinted."""

    def stop(life: Any) -> None:
        life.quiet()
        life.hints_alone()

    monkeypatch.setattr(sweeps, "LOOK_S", 3600)
    monkeypatch.setattr(sweeps, "LOOK_BUSY_S", 3600)
    return stop


def _packed(world: World) -> None:
    @world.app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"


def test_a_commit_of_this_process_wakes_the_reaction(world: World, no_sweeps: Callable[[Any], None]) -> None:
    _packed(world)
    world.there()
    life = world.worker()
    no_sweeps(life)
    world.orders(1)
    until(lambda: world.order().status == "packed")
    with world.session() as session, session.begin():
        session.execute(update(Order).values(status="placed"))  # a bulk statement: the class alone is known
    until(lambda: world.count(Order.status == "packed") == 1)


def test_sweeps_become_rarer_when_they_are_dear_and_not_when_one_stalled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _packed(world)
    monkeypatch.setattr(sweeps, "SWEEP_LONGEST_S", 30)
    life = world.worker()
    life.quiet()
    life.stop()
    ended = life.worker.components.sweeps
    pauses: list[float] = []
    for cost_s in (0.001, 0.001, 0.001, 5.0, 0.001, 0.1, 0.1, 0.2, 0.0):
        ended.idle_s = cost_s
        pauses.append(ended._pause_s(time.monotonic()))
    assert pauses == [1.0, 1.0, 1.0, 1.0, 1.0, 10.0, 10.0, 10.0, 1.0]


def test_a_rolled_back_or_nested_commit_gives_no_hint_too_early(world: World, no_sweeps: Callable[[Any], None]) -> None:
    _packed(world)
    world.there()
    life = world.worker()
    no_sweeps(life)
    with world.session() as session:
        session.add(Order(id=3))
        session.flush()
        with session.begin_nested():
            session.add(Order(id=1))
        session.rollback()
        session.add(Order(id=2))
        session.commit()
    until(lambda: world.order(2).status == "packed")
    assert world.order(1) is None


def test_an_async_session_wakes_it_as_well(world: World, no_sweeps: Callable[[Any], None]) -> None:
    _packed(world)
    world.there()
    life = world.worker()
    no_sweeps(life)

    async def place() -> None:
        engine = create_async_engine(world.url.replace("sqlite:", "sqlite+aiosqlite:").replace("postgresql:", "postgresql+asyncpg:"))
        async with AsyncSession(engine) as session:
            session.add(Order(id=1))
            await session.commit()
        await engine.dispose()

    asyncio.run(place())
    until(lambda: world.order().status == "packed")


def test_a_lost_hint_is_found_by_the_sweep(world: World) -> None:
    _packed(world)
    world.there()
    world.worker().quiet()
    with world.engine.begin() as connection:
        connection.exec_driver_sql("insert into orders (id, status, round) values (1, 'placed', 1)")
    until(lambda: world.order().status == "packed")


def test_hints_that_are_lost_or_doubled_change_no_final_state(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = charging(world, InDoubt.hold())
    _ = world.there()
    life = world.worker()
    hear, heard = life.worker.note_commit, 0

    def unreliable(touched: Any) -> None:
        nonlocal heard
        heard += 1
        for _ in range(heard % 3):
            hear(touched)

    monkeypatch.setattr(life.worker, "note_commit", unreliable)
    for number in range(1, 31):
        world.add(Order(id=number))
    until(lambda: world.count(Order.status == "paid") == 30)
    life.quiet()
    assert len(gateway.ledger) == 30
    assert world.attempts() == []


def test_hazard_63_a_child_wakes_its_own_parent_alone(films: World, no_sweeps: Callable[[Any], None]) -> None:
    world = films

    @world.app.on(Video, Video.status == "waiting", every_child(Video.renditions, Rendition.file.is_not(None)))
    def ready(video: Video) -> None:
        video.status = "ready"

    world.add(*[Video(id=number) for number in range(1, 21)])
    world.add(*[Rendition(id=number, video_id=number) for number in range(1, 21)])
    life = world.worker()
    no_sweeps(life)
    lane = life.worker.queues[0]
    with world.session() as session, session.begin():
        rendition = session.get(Rendition, 7)
        assert rendition is not None
        rendition.file = "a"
    until(lambda: world.get(Video, 7).status == "ready")
    assert not lane.rows.backlog, "a child's commit made it ask all parents"


def test_a_fresh_row_is_carried_out_amid_a_backlog(world: World) -> None:
    order: list[int] = []

    @world.app.on(Order, Order.status == "placed")
    def packed(record: Order) -> None:
        order.append(record.id)
        record.status = "packed"

    world.there()
    with world.engine.begin() as connection:
        table: Any = Order.__table__
        connection.execute(table.insert(), [{"id": number, "status": "placed", "round": 1} for number in range(1, 8001)])
    life = world.worker(wait_for_go=True)
    world.add(Order(id=90_000))
    life.worker.begin_work()
    until(lambda: world.count(Order.status == "packed") == 8001)
    assert order.index(90_000) < 1000


def test_a_commit_never_fails_by_who_begins_or_stops_to_listen_meanwhile() -> None:
    class Ear:
        def __init__(self) -> None:
            self.heard = 0

        def note_commit(self, _touched: TouchedRecords) -> None:
            self.heard += 1

    early, told = [Ear(), Ear(), Ear()], TouchedRecords(whole={Order})
    late: list[Ear] = []

    def meanwhile(*_: Any) -> Any:
        """Between any two lines, as another thread."""
        late.append(Ear())
        commit_hooks.add_listener(late[-1])
        return meanwhile

    for ear in early:
        commit_hooks.add_listener(ear)
    before = sys.gettrace()
    sys.settrace(meanwhile)
    try:
        commit_hooks.publish_hint(told)
    finally:
        sys.settrace(before)
    assert len(late) > 3
    assert [ear.heard for ear in early] == [1, 1, 1]
    for ear in [*early, *late]:
        commit_hooks.remove_listener(ear)
    commit_hooks.publish_hint(told)
    assert [ear.heard for ear in early] == [1, 1, 1]


class Slug(TypeDecorator[str]):
    """Text of one kind alone."""

    impl, cache_ok = String, True

    def process_bind_param(self, value: Any, _dialect: Any) -> Any:
        if not value.startswith("order-"):
            raise ValueError(f"{value!r} is no slug")
        return value


class Slugs(DeclarativeBase): ...


class Slugged(Slugs):
    __tablename__ = "slugged"
    id: Mapped[str] = mapped_column(Slug, primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")


def test_a_forged_key_that_the_columns_own_type_refuses_is_no_key(database_url: str) -> None:
    with closing(World(database_url, Slugs)) as world:
        _forge_a_key(world)


def _forge_a_key(world: World) -> None:
    @world.app.on(Slugged, Slugged.status == "placed")
    def packed(one: Slugged) -> None:
        one.status = "packed"

    world.there()
    life = world.worker()
    life.quiet()
    lane = life.worker.queues[0]
    assert lane.query.keys.key_from_text_or_none("order-1") == ("order-1",)
    assert lane.query.keys.key_from_text_or_none("x") is None
    life.worker.receive_remote_hint(Hint("web", ("packed",), 1, 0, keys={"packed": ("x",)}))
    world.add(Slugged(id="order-1"))
    until(lambda: world.get(Slugged, "order-1").status == "packed")
    assert lane.postponement.trouble == 0


def test_until_asks_no_more_often_for_a_flood_of_hints(world: World) -> None:
    world.there().orders(1)
    asked: list[int] = []

    async def flooded() -> bool:
        ends = asyncio.get_running_loop().time() + 0.3

        async def flood() -> None:
            while asyncio.get_running_loop().time() < ends:
                commit_hooks.publish_hint(TouchedRecords(whole={Order}))
                await asyncio.sleep(0)

        flooding = asyncio.create_task(flood())
        moved = await world.app.wait_for(Order, 1, Order.status == "lost", timeout=timedelta(milliseconds=300))
        await flooding
        return moved

    real = wait_for.PolledDatabase.run_query

    def look(one: wait_for.PolledDatabase) -> None:
        asked.append(1)
        real(one)

    started = time.monotonic()
    with mock.patch.object(wait_for.PolledDatabase, "run_query", look):
        assert not asyncio.run(flooded())
    assert 1 <= len(asked) <= (time.monotonic() - started) / wait_for.GAP_S + 3
    world.app.stop()


def test_until_answers_a_web_request_once_the_record_moved(world: World) -> None:
    gateway = charging(world, InDoubt.hold())
    world.orders(1)
    world.worker()

    async def request() -> tuple[bool, bool]:
        moved = await world.app.wait_for(Order, 1, Order.status != "placed", timeout=HANG)
        never = await world.app.wait_for(Order, 1, Order.status == "lost", timeout=timedelta(milliseconds=50))
        return moved, never

    assert asyncio.run(request()) == (True, False)
    assert gateway.done(1) == 1


def test_others_go_on_while_one_reaction_cannot_be_asked(films: World) -> None:
    world = films
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.hold())
    def encode(video: Any) -> str:
        return "ok"

    @world.app.on(Rendition, Rendition.file.is_(None), call=encode, name="rendered")
    def rendered(rendition: Rendition, outcome: str) -> None:
        rendition.file = outcome

    @world.app.on(Video, Video.status == "waiting", call=encode, name="encoded")
    def encoded(video: Video, outcome: str) -> None:
        video.status = outcome

    world.there()
    life = world.worker()
    life.quiet()
    world.run("drop table renditions")
    world.add(Video(id=1))
    until(lambda: world.get(Video, 1).status == "ok")


def test_a_hint_whose_key_no_record_can_have_keeps_no_other_record_waiting(world: World) -> None:
    _packed(world)
    world.there()
    life = world.worker()
    life.quiet()
    life.worker.note_commit(TouchedRecords(keys={Order: {("no number",): None}}))
    world.orders(3)
    until(lambda: world.count(Order.status == "packed") == 3)
