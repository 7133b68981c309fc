"""Rows under their locks: what is asked again, what is skipped, what is never blocked (hazards 15, 17 to 20, 22, 23, 27, 64)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import ForeignKey, event, exists
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload
from sqlalchemy.orm.exc import StaleDataError

from groundstate import ExternalService, InDoubt, ReactionContext, Retry, UtcDateTime, every_child
from groundstate.engine.sql.call_write_guard import outside_of_call
from tests.engine.charging import charging
from tests.engine.kit import QUICK, Order, World, ms, until


class Base(DeclarativeBase):
    pass


class Video(Base):
    __tablename__ = "videos"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="waiting")
    note: Mapped[str | None] = mapped_column(default=None)
    seen_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    version: Mapped[int] = mapped_column(default=1)
    renditions: Mapped[list[Rendition]] = relationship(back_populates="video")
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012  # as SQLAlchemy's own examples


class Rendition(Base):
    __tablename__ = "renditions"
    id: Mapped[int] = mapped_column(primary_key=True)
    video_id: Mapped[int] = mapped_column(ForeignKey("videos.id"), index=True)
    file: Mapped[str | None] = mapped_column(default=None)
    video: Mapped[Video] = relationship(back_populates="renditions")


@pytest.fixture
def films(database_url: str) -> Iterator[World]:
    made = World(database_url, Base)
    yield made
    made.close()


@pytest.fixture
def postgres_world(postgres_url: str) -> Iterator[World]:
    made = World(postgres_url)
    yield made
    made.close()


@pytest.fixture
def postgres_films(postgres_url: str) -> Iterator[World]:
    made = World(postgres_url, Base)
    yield made
    made.close()


def _once_locked(world: World, database: Any, happens: str) -> list[str]:
    """Lets something be committed by somebody else just after our statement has locked its rows; returns what was done."""
    done: list[str] = []

    def after(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "FOR NO KEY UPDATE" in statement and not done:
            done.append(statement)
            world.run(happens)

    event.listen(database.engine, "after_cursor_execute", after)
    return done


def test_hazard_17_an_attempt_that_was_committed_while_we_waited_for_the_lock_keeps_us_away(postgres_world: World) -> None:
    world = postgres_world

    @world.app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"

    world.there()
    life = world.worker()
    life.quiet()
    done = _once_locked(
        world,
        life.database,
        "insert into groundstate_attempt (app, reaction, record, occurrence, state, worker, call, call_no, unsure, since, first_at,"
        " deadline, failures, blocks, together) values"
        " ('other', 'charge', '1', '', 'held', 1, 1, 1, true, now(), now(), now(), 1, 'orders', 0)",
    )
    world.run("insert into orders (id, status, round) values (1, 'placed', 1)")
    until(lambda: bool(done))
    life.quiet()
    assert world.order().status == "placed", "a record was taken though an attempt on it had been committed meanwhile"
    world.force("delete from groundstate_attempt")
    life.quiet()
    assert world.order().status == "packed"


def test_hazard_17_a_subquery_is_asked_again_after_the_lock(postgres_films: World) -> None:
    world = postgres_films

    @world.app.on(Video, Video.status == "waiting", exists().where(Rendition.video_id == Video.id))
    def ready(video: Video) -> None:
        video.status = "ready"

    world.add(Video(id=1), Rendition(id=1, video_id=1))
    life = world.worker(start=False)
    life.database.connect()
    done = _once_locked(world, life.database, "delete from renditions")
    life.worker.start()
    until(lambda: bool(done))
    life.quiet()
    assert world.get(Video, 1).status == "waiting"


def test_hazard_18_the_children_that_a_decision_read_do_not_change_before_its_commit(films: World) -> None:
    world = films
    refused: list[str] = []

    @world.app.on(Video, Video.status == "waiting", every_child(Video.renditions, Rendition.file.is_not(None)))
    def ready(video: Video) -> None:
        with outside_of_call(), world.engine.connect() as connection:
            if world.postgres:
                connection.exec_driver_sql("set lock_timeout = 50")
            else:
                connection.exec_driver_sql("pragma busy_timeout = 50")
            try:
                connection.exec_driver_sql("update renditions set file = null")
            except OperationalError as error:
                refused.append(str(error))
        video.status = "ready"

    world.add(Video(id=1), Rendition(id=1, video_id=1, file="a"))
    world.settled()
    assert world.get(Video, 1).status == "ready"
    assert refused, "a child could be changed between our check and our commit"


def test_hazard_19_a_row_that_a_user_locked_is_skipped_and_taken_later(postgres_world: World) -> None:
    world = postgres_world

    @world.app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"

    world.orders(5)
    with world.engine.connect() as connection:
        connection.exec_driver_sql("select 1 from orders where id = 3 for update")
        life = world.worker()
        until(lambda: world.count(Order.status == "packed") == 4)
        before = life.transactions
        life.sweep()
        assert life.transactions - before < 50, "it spins on a row that somebody else has locked"
        connection.rollback()
    until(lambda: world.order(3).status == "packed")


def test_outcomes_wait_for_no_attempt_of_a_record_that_another_worker_has_and_so_two_workers_never_for_each_other(
    postgres_world: World,
) -> None:
    world = postgres_world
    gateway = charging(world, InDoubt.hold())
    for number in (1, 2):
        gateway.plan(number, "done_hang")
    world.orders(2)
    life = world.worker()
    until(lambda: gateway.waiting == 2)
    with world.engine.connect() as other, other.begin():  # as a worker that puts an outcome of its own to the record
        other.exec_driver_sql("SELECT 1 FROM orders WHERE id = 1 FOR NO KEY UPDATE")
        other.exec_driver_sql("SELECT 1 FROM groundstate_attempt WHERE record = '1' FOR UPDATE")
        gateway.gate.set()
        until(lambda: world.order(2).status == "paid")
        waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        life.sweep()
        assert other.exec_driver_sql(waits).scalar_one() == 0
        assert not life.in_trouble
    until(lambda: world.order(1).status == "paid")
    assert len(gateway.ledger) == 2


def test_hazard_19_an_outcome_for_a_row_that_a_user_locked_waits_in_memory(postgres_world: World) -> None:
    world = postgres_world
    gateway = charging(world, InDoubt.hold(), limit=10)
    gateway.plan(3, "done_hang")
    world.orders(5)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    with world.engine.connect() as connection:
        connection.exec_driver_sql("select 1 from orders where id = 3 for update")
        gateway.gate.set()
        until(lambda: world.count(Order.status == "paid") == 4)
        life.sweep()
        connection.rollback()
    life.quiet()
    assert world.order(3).status == "paid"
    assert gateway.called(3) == 1
    assert world.attempts() == []


def test_hazard_20_no_lock_is_held_while_a_call_is_in_the_air(world: World) -> None:
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    with world.engine.begin() as connection:
        connection.exec_driver_sql("set lock_timeout = 100" if world.postgres else "pragma busy_timeout = 100")
        connection.exec_driver_sql("update orders set note = 'changed by the shop' where id = 1")
    gateway.gate.set()
    life.quiet()
    assert (world.order().status, world.order().note) == ("paid", "changed by the shop")


def test_hazard_20_rows_that_refer_to_a_locked_record_can_still_be_inserted(postgres_films: World) -> None:
    world = postgres_films

    @world.app.on(Video, Video.status == "waiting")
    def ready(video: Video) -> None:
        with outside_of_call(), world.engine.begin() as connection:
            connection.exec_driver_sql("set lock_timeout = 100")
            connection.exec_driver_sql("insert into renditions (id, video_id) values (7, 1)")
        video.status = "ready"

    world.add(Video(id=1))
    world.settled()
    assert world.get(Video, 1).status == "ready"
    assert world.get(Rendition, 7) is not None


def test_hazard_22_a_record_that_left_and_came_back_is_another_occurrence(world: World) -> None:
    gateway = charging(world, InDoubt.hold(), occurrence=[Order.round])
    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.set(1, round=2)  # it was shipped and placed anew meanwhile
    gateway.gate.set()
    until(lambda: "held" in world.states())
    life.quiet()
    by_occurrence = {one.occurrence: one for one in world.attempts()}
    assert by_occurrence["1"].outcome == '["r1"]'
    assert world.order().receipt in (None, "r2"), "the outcome of the first round was written into the second"


def test_hazard_23_a_version_column_is_honoured_both_ways(films: World) -> None:
    world = films

    @world.app.on(Video, Video.status == "waiting")
    def ready(video: Video) -> None:
        video.status = "ready"

    world.add(*[Video(id=number) for number in range(1, 31)])
    with world.session() as session:
        stale = session.get(Video, 1)
        assert stale is not None
        session.commit()
        world.settled()
        stale.note = "from a stale object"
        with pytest.raises(StaleDataError):
            session.flush()
    assert world.get(Video, 30).version == 2


def test_hazard_27_records_at_the_head_that_failed_are_not_read_again_and_again(world: World) -> None:
    @world.app.on(Order, Order.status == "placed", retry=Retry(times=None, first=timedelta(hours=1)))
    def packed(order: Order) -> None:
        order.status = "packed"

    world.there()
    with world.engine.begin() as connection:
        table: Any = Order.__table__
        connection.execute(table.insert(), [{"id": number, "status": "placed", "round": 1} for number in range(1, 3001)])
        later = "now() + interval '1 hour'" if world.postgres else "strftime('%Y-%m-%d %H:%M:%f000', 'now', '+1 hour')"
        connection.exec_driver_sql(
            "insert into groundstate_attempt (app, reaction, record, occurrence, state, worker, call, call_no, unsure, since, first_at,"
            " deadline, failures, next_at, blocks, together) select 'shop', 'packed', cast(id as text), '', 'failed', 1, 1, 0, false,"
            f" {later}, {later}, {later}, 1, {later}, 'orders', 0 from orders"
        )
    world.add(Order(id=3001))
    life = world.worker()
    life.quiet()
    assert world.order(3001).status == "packed"
    before = life.transactions
    life.sweep()
    life.quiet()
    assert life.transactions - before < 60


@pytest.mark.parametrize("loaded", [False, True])
def test_hazard_15_a_relationship_that_was_not_loaded_is_named_with_the_cure(films: World, loaded: bool) -> None:
    world = films
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.hold(), load=[selectinload(Video.renditions)] if loaded else [], retry=QUICK)
    async def encode(video: Video) -> int:
        return len(video.renditions)

    @world.app.on(Video, Video.status == "waiting", call=encode)
    def ready(video: Video, outcome: int) -> None:
        video.status, video.note = "ready", str(outcome)

    world.add(Video(id=1), Rendition(id=1, video_id=1))
    world.settled()
    if loaded:
        assert (world.get(Video, 1).status, world.get(Video, 1).note) == ("ready", "1")
    else:
        attempt = world.attempt()
        assert attempt.unsure, "it may have been touched after the send"
        assert "renditions" in (attempt.error or "")
        assert "load=" in (attempt.error or "")


def test_a_call_that_writes_its_snapshot_is_told_so(world: World) -> None:
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.hold(), retry=Retry(times=1, first=ms(5)))
    def charge(order: Order) -> str:
        order.status = "paid"
        return "r"

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status = "paid"

    world.orders(1)
    world.settled()
    assert "read-only snapshot" in (world.attempt().error or "")
    assert world.order().status == "placed"


def test_hazard_64_a_moment_and_an_instant_can_be_subtracted(films: World) -> None:
    world = films
    ages: list[timedelta] = []

    @world.app.on(Video, Video.status == "waiting", Video.seen_at.is_not(None))
    def ready(video: Video, ctx: ReactionContext) -> None:
        assert video.seen_at is not None
        ages.append(ctx.now - video.seen_at)
        video.status, video.seen_at = "ready", ctx.now

    world.add(Video(id=1, seen_at=datetime.now(UTC) - timedelta(hours=1)))
    world.settled()
    assert timedelta(minutes=59) < ages[0] < timedelta(minutes=61)
    seen = world.get(Video, 1).seen_at
    assert seen.tzinfo is not None
