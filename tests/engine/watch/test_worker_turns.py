"""What one turn of a worker does: which commits are shared, what is locked and loaded together, and what goes on after its end."""

from __future__ import annotations

import decimal
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest
from sqlalchemy import (
    ColumnElement,
    DateTime,
    Double,
    ForeignKey,
    Numeric,
    String,
    create_engine,
    exists,
    func,
    select,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, column_property, mapped_column, relationship, selectinload

from groundstate import App, ExternalService, IdempotencyKey, InDoubt, Store
from groundstate.engine.call import begin, conclude
from groundstate.engine.sql import bulk_update
from groundstate.engine.sql.call_write_guard import outside_of_call
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from tests.engine.charging import ASK, charging
from tests.engine.kit import Gateway, Order, World, ms, until


# ---- commits -------------------------------------------------------------------------------------------------------------------
def test_what_returned_is_concluded_and_its_slot_taken_again_by_one_commit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    charging(world, InDoubt.hold(), limit=1)
    world.orders(5)
    concluding: list[int] = []
    beginning: list[int] = []
    real_conclude, real_begin = conclude.conclude_results, begin.begin_calls

    def concluded(life: Any, tx: Any, *more: Any, **named: Any) -> Any:
        concluding.append(life.transactions)
        return real_conclude(life, tx, *more, **named)

    def begun(life: Any, tx: Any, *more: Any) -> Any:
        result = real_begin(life, tx, *more)
        if result.in_flights:
            beginning.append(life.transactions)
        return result

    monkeypatch.setattr(conclude, "conclude_results", concluded)
    monkeypatch.setattr(begin, "begin_calls", begun)
    life = world.worker(wait_for_go=True)
    vars(life.worker.incarnation)["transactions"] = 0
    real = life.worker.incarnation.open_transaction

    def counted(**named: Any) -> Any:
        life.worker.incarnation.transactions += 1  # type: ignore[attr-defined]  # the test's own
        return real(**named)

    vars(life.worker.incarnation)["open_transaction"] = counted
    life.worker.begin_work()
    life.quiet()
    assert world.count(Order.status == "paid") == 5
    assert len(concluding) == len(beginning) == 5
    assert beginning[1:] == concluding[:-1]


def test_the_commit_that_writes_down_a_failure_takes_no_slot_again_before_the_breaker_has_heard_of_it(world: World) -> None:
    gateway = charging(world, InDoubt.hold(), limit=5)
    for number in range(1, 41):
        gateway.plan(number, *["refuse"] * 20)
    world.orders(40)
    life = world.worker()
    until(lambda: life.pauses)
    assert len(gateway.calls) < 10


def test_an_outcome_whose_record_a_user_keeps_locked_is_tried_less_and_less_often(postgres_world: World) -> None:
    world = postgres_world
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    with world.engine.begin() as connection:
        connection.execute(text("select * from orders where id = 1 for update"))
        gateway.gate.set()
        until(lambda: life.worker.components.call_turns._locked_s > 0.2)
        assert world.states() == ["begun"]
    life.quiet()
    assert world.order().status == "paid"
    assert gateway.called(1) == 1


# ---- after the end -------------------------------------------------------------------------------------------------------------
def test_a_life_whose_call_still_runs_in_a_thread_keeps_its_lock_after_the_stop(world: World) -> None:
    gateway = charging(world, ASK, sync=True)
    gateway.plan(1, "hang")
    world.orders(1)
    first = world.worker()
    until(lambda: gateway.waiting == 1)
    first.stop(limit_s=0.05)
    assert first.ended
    assert world.states() == ["doubt"]
    assert world.lives_written() == [], "whoever adopts it would take this for an unclean end"
    world.forward(3600)
    second = world.worker()
    second.sweep()
    second.sweep()
    assert world.attempt().worker == first.worker.incarnation.id, "adopted while its call may still land"
    gateway.gate.set()
    until(lambda: gateway.done(1) == 1)
    until(lambda: not first.worker.incarnation.liveness.has_lock())
    second.sweep()
    until(lambda: all(one.worker == second.worker.incarnation.id for one in world.attempts()))
    world.forward(3600)
    until(lambda: world.order().status == "paid")
    assert gateway.called(1) == 1


def test_a_condition_that_cannot_be_asked_at_its_far_end_leaves_the_other_reactions_alone(world: World) -> None:
    charging(world, InDoubt.hold())

    @world.app.on(Order, Order.status == "paid")
    def noted(order: Order) -> None:
        order.status = "noted"

    world.there()
    life = world.worker()
    life.quiet()
    lane = life.worker.queues[0]
    asked: list[int] = []

    def broken(*_: Any, **__: Any) -> Any:
        asked.append(1)
        return text("select nothing_of_that_name")

    def was_asked() -> bool:
        lane.rows._newest = True  # again and again: the turn that ends a pass forgets it
        life.worker.components.signals.wake.set()
        return bool(asked)

    vars(lane.query.selects)["select_cursors_after"] = broken
    until(was_asked)
    world.orders(3, status="paid")
    until(lambda: world.count(Order.status == "noted") == 3)


# ---- locked, asked and loaded at once --------------------------------------------------------------------------------------------
class Shapes(DeclarativeBase):
    pass


class Crate(Shapes):
    __tablename__ = "crates"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]
    weight: Mapped[int]
    labels: Mapped[list[Label]] = relationship()


class Label(Shapes):
    __tablename__ = "labels"
    id: Mapped[int] = mapped_column(primary_key=True)
    crate: Mapped[int] = mapped_column(ForeignKey("crates.id"))
    owner: Mapped[Crate] = relationship(lazy="joined", overlaps="labels")


class Counted(Shapes):
    __tablename__ = "counted"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]
    crates: Mapped[int] = column_property(select(func.count(Crate.id)).scalar_subquery())


def _questions(url: str, model: Any, *condition: ColumnElement[bool], load: Any = ()) -> ConditionQuery:
    app = App("shapes", Store(url, Shapes))
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.hold(), load=load)
    async def charge(record: Any, key: IdempotencyKey) -> str:
        return key

    def done(record: Any, outcome: str) -> None:
        record.status = outcome

    app.on(model, *condition, call=charge)(done)
    database, _, _ = connect.open_store(app.stores[0].settings())
    return ConditionQuery(app.reactions["done"], database)


@pytest.mark.parametrize(
    ("model", "condition", "alone"),
    [
        (Crate, [Crate.status == "new", Crate.weight > 3], True),
        (Crate, [(Crate.status == "new") | ~Crate.weight.in_([1, 2]), Crate.weight.is_not(None)], True),
        (Crate, [exists().where(Label.crate == Crate.id)], False),
        (Crate, [Crate.weight > select(func.count(Label.id)).scalar_subquery()], False),
        (Crate, [func.abs(Crate.weight) == 3], False),
        (Label, [Label.id > 3], False),
        (Counted, [Counted.status == "new"], False),
    ],
    ids=["columns", "operators", "exists", "subquery", "a function", "a joined relationship", "a column that asks"],
)
def test_one_statement_locks_asks_and_loads_only_where_the_row_alone_is_read(
    postgres_url: str, model: Any, condition: list[Any], alone: bool
) -> None:
    assert _questions(postgres_url, model, *condition).selects.reads_only_own_row is alone


def test_what_a_call_wants_loaded_with_its_record_is_read_after_the_lock(postgres_url: str) -> None:
    assert not _questions(postgres_url, Crate, Crate.status == "new", load=[selectinload(Crate.labels)]).selects.reads_only_own_row


def test_a_record_that_a_handler_read_before_its_lock_is_read_again_under_it(world: World) -> None:
    """One transaction concludes for one reaction and begins for another: what the first left in the session may be old."""
    gateway = charging(world, InDoubt.hold())
    seen: list[str | None] = []

    def paid(order: Order, outcome: str, session: Session) -> None:
        order.status, order.receipt = "paid", outcome
        session.get(Order, 2)  # unlocked
        with outside_of_call(), create_engine(world.engine.url).begin() as other:
            if world.postgres:
                other.execute(text("update orders set note = 'new', status = 'listed' where id = 2"))
        if not world.postgres:
            session.execute(text("update orders set note = 'new', status = 'listed' where id = 2"))

    world.app.reactions.clear()
    mail = world.gateway()
    post = ExternalService("post")

    @post.call(in_doubt=InDoubt.hold())
    async def send(order: Order) -> str:
        seen.append(order.note)
        return await mail.act(order.id)

    world.app.on(Order, Order.status == "placed", call=_charge(gateway), name="paid")(paid)

    @world.app.on(Order, Order.status == "listed", call=send)
    def mailed(order: Order, outcome: str) -> None:
        order.status, order.mailed = "mailed", outcome

    world.add(Order(id=1), Order(id=2, status="waits"))
    life = world.worker()
    until(lambda: world.order(2).status == "mailed")
    life.quiet()
    assert seen == ["new"]


def _charge(gateway: Gateway) -> Any:
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.hold(), timeout=ms(20_000))
    async def charge(order: Order, key: IdempotencyKey) -> str:
        return await gateway.act(order.id, key)

    return charge


# ---- written at once -------------------------------------------------------------------------------------------------------------
class Values(DeclarativeBase):
    pass


class Sample(Values):
    __tablename__ = "samples"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    code: Mapped[str | None] = mapped_column(String(6))
    word: Mapped[str | None]
    count: Mapped[int | None]
    share: Mapped[float | None] = mapped_column(Double)
    good: Mapped[bool | None]
    at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    day: Mapped[date | None]
    token: Mapped[uuid.UUID | None]
    price: Mapped[decimal.Decimal | None] = mapped_column(Numeric(8, 2))


@pytest.fixture
def samples(database_url: str) -> Iterator[World]:
    made = World(database_url, Values)
    yield made
    made.close()


def _values(number: int) -> dict[str, Any]:
    return {
        "code": f"c{number}", "word": f"'\\\"{{}},é 漢 {number}" if number % 5 else None, "count": number * 10**6 if number % 3 else None,
        "share": number / 7, "good": bool(number % 2), "at": datetime(2026, 1, 1 + number % 28, 3, tzinfo=UTC),
        "day": date(2026, 2, 1 + number % 28), "token": uuid.UUID(int=number), "price": decimal.Decimal(number) / 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    "names", [("code", "word", "count", "share", "good", "at", "day", "token"), ("price", "word")], ids=["plain", "not"]
)
def test_a_batch_of_different_values_is_written_as_each_of_them_was_set(samples: World, names: tuple[str, ...]) -> None:
    @samples.app.on(Sample, Sample.status == "new")
    def valued(sample: Sample) -> None:
        sample.status = "done"
        for name in names:
            setattr(sample, name, _values(sample.id)[name])

    samples.add(*[Sample(id=number) for number in range(1, 41)])
    samples.settled()
    with samples.session() as session:
        for sample in session.scalars(select(Sample)):
            for name in names:
                found = getattr(sample, name)
                if name == "at" and found.tzinfo is None:
                    found = found.replace(tzinfo=UTC)  # SQLite keeps none
                assert found == _values(sample.id)[name], (sample.id, name)


def test_a_text_that_is_too_long_for_its_column_is_refused_and_never_cut(postgres_url: str) -> None:
    world = World(postgres_url, Values)

    @world.app.on(Sample, Sample.status == "new")
    def valued(sample: Sample) -> None:
        sample.status, sample.code = "done", f"number {sample.id}" if sample.id == 20 else f"n{sample.id}"

    world.add(*[Sample(id=number) for number in range(1, 41)])
    life = world.worker()
    until(lambda: world.states() == ["failed"])
    life.stop()
    assert (world.get(Sample, 19).code, world.get(Sample, 20).code) == ("n19", None)
    world.close()


def test_many_different_values_are_one_statement_for_postgres(postgres_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world = postgres_world
    sent: list[int] = []
    real = bulk_update._update_from_arrays

    def counted(*arguments: Any) -> Any:
        sent.append(1)
        return real(*arguments)

    monkeypatch.setattr(bulk_update, "_update_from_arrays", counted)

    @world.app.on(Order, Order.status == "placed")
    def noted(order: Order) -> None:
        order.status, order.note = "noted", f"note {order.id}"

    world.orders(100)
    world.settled()
    assert world.count(Order.note.is_not(None)) == 100
    assert 0 < len(sent) <= 5


# ---- what proves progress ----------------------------------------------------------------------------------------------------------
def test_a_status_that_is_the_same_by_its_column_s_collation_is_no_progress_and_no_reason_to_call_again(sqlite_url: str) -> None:
    world = World(sqlite_url)
    world.there()
    world.run("alter table orders rename to old")
    world.run(
        "create table orders (id integer primary key, status text collate nocase, receipt text, mailed text, round integer, note text)"
    )

    def shouted(order: Order, outcome: str) -> None:
        order.status, order.receipt = "PLACED", outcome

    gateway = charging(world, InDoubt.hold(), handler=shouted)
    world.there()
    world.orders(1)
    life = world.worker()
    until(lambda: world.states() == ["held"])
    life.quiet()
    assert gateway.called(1) == 1
    world.close()
