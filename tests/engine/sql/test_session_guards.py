"""A handler writes to the stores of its app by its own session; by any other connection it is refused at once, and the others go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextvars import copy_context
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import ExternalService, InDoubt, Retry
from tests.engine.kit import Base, Order, World, until

ONCE = Retry(times=1)
REFUSED = "is another connection than its session's"
Way = Callable[[Engine], object]


class Own(DeclarativeBase):
    """Tables that no condition reads."""


class Note(Own):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    words: Mapped[str] = mapped_column(default="")


class Other(DeclarativeBase):
    """What the app does not know."""


class Later(Other):
    __tablename__ = "later"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url, Base, Own)
    made.add(Note(id=1, words="first"))
    yield made
    made.close()


def notes(world: World) -> list[str]:
    with world.session() as session:
        return list(session.scalars(select(Note.words).order_by(Note.id)))


def its_record(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.get_one(Order, 1).receipt = "by the other one"


def another_row_by_the_orm(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.get_one(Note, 1).words = "edited"


def a_new_row(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.add(Note(words="second"))


def by_a_statement(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(update(Note).values(words="edited"))


def by_a_statement_that_commits_itself(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(insert(Note).values(words="second"))


def in_a_loop_of_its_own(engine: Engine) -> None:
    async def write() -> None:
        await asyncio.to_thread(by_a_statement, engine)

    asyncio.run(write())


WAYS = [its_record, another_row_by_the_orm, a_new_row, by_a_statement, by_a_statement_that_commits_itself, in_a_loop_of_its_own]


def declare(world: World, way: Way) -> None:
    @world.app.on(Order, Order.status == "placed", retry=ONCE)
    def paid(order: Order) -> None:
        if order.id == 1:
            way(world.engine)
        order.status = "paid"


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_handler_that_writes_by_another_connection_fails_at_once_and_the_others_are_carried_out(world: World, way: Way) -> None:
    declare(world, way)
    world.there()
    world.orders(3)
    world.settled()
    assert [world.order(number).status for number in (1, 2, 3)] == ["placed", "paid", "paid"]
    assert (world.attempt().record, world.order(1).receipt, notes(world)) == ("1", None, ["first"])
    assert REFUSED in (world.attempt().error or "")


def test_gave_up_writes_by_its_own_session_as_well(world: World, caplog: pytest.LogCaptureFixture) -> None:
    @world.app.on(Order, Order.status == "placed", retry=ONCE)
    def paid(order: Order) -> None:
        raise RuntimeError("a bug")

    @paid.gave_up
    def _(order: Order, failure: Any) -> None:
        by_a_statement(world.engine)
        order.status = "given up"

    world.there()
    world.orders(1)
    world.settled()
    assert (world.order().status, notes(world)) == ("placed", ["first"])
    assert REFUSED in caplog.text


def test_the_handler_of_a_call_writes_by_its_own_session_as_well(world: World) -> None:
    @ExternalService("bank").call(in_doubt=InDoubt.hold(), retry=ONCE)
    def charge(order: Order) -> str:
        return "r1"

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        by_a_statement(world.engine)
        order.status = "paid"

    world.there()
    world.orders(1)
    world.settled()
    assert (world.order().status, world.states(), notes(world)) == ("placed", ["held"], ["first"])
    assert REFUSED in (world.attempt().error or "")


def test_the_handler_of_a_schedule_writes_by_its_own_session_as_well(world: World) -> None:
    tried: list[BaseException] = []

    @world.app.every(timedelta(seconds=1), retry=ONCE)
    def tick() -> None:
        try:
            by_a_statement(world.engine)
        except Exception as error:
            tried.append(error)
            raise

    world.there()
    world.worker()
    world.forward(2)
    until(lambda: bool(tried))
    assert REFUSED in str(tried[0])
    assert notes(world) == ["first"]


def test_a_hook_of_a_flush_writes_by_the_connection_that_it_is_given(world: World) -> None:
    def audit(session: Session, _context: Any, _instances: Any) -> None:
        if any(isinstance(one, Order) for one in session.dirty):
            by_a_statement(world.engine)

    declare(world, lambda _engine: None)
    event.listen(Session, "before_flush", audit)
    try:
        world.there()
        world.orders(1)
        world.settled()
    finally:
        event.remove(Session, "before_flush", audit)
    assert (world.order().status, notes(world)) == ("placed", ["first"])
    assert REFUSED in (world.attempt().error or "")


def test_a_handler_reads_by_another_connection(world: World) -> None:
    read: list[str] = []

    def look(engine: Engine) -> None:
        with Session(engine) as session:
            read.append(session.get_one(Note, 1).words)

    declare(world, look)
    world.there()
    world.orders(1)
    world.settled()
    assert (world.order().status, read) == ("paid", ["first"])


def test_a_handler_writes_by_all_that_is_made_of_its_own_session(world: World) -> None:
    @world.app.on(Order, Order.status == "placed")
    def paid(order: Order, session: Session) -> None:
        session.add(Note(id=2, words="by the session"))
        session.execute(update(Note).where(Note.id == 1).values(words="by its statement"))
        session.connection().execute(insert(Note).values(id=3, words="by its connection"))
        with Session(session.connection(), join_transaction_mode="create_savepoint") as within:
            within.add(Note(id=4, words="by a session on it"))
            within.commit()
        order.status = "paid"

    world.there()
    world.orders(1)
    world.settled()
    assert notes(world) == ["by its statement", "by the session", "by its connection", "by a session on it"]


def test_a_handler_writes_to_a_database_that_is_no_store_of_its_app(world: World, tmp_path: Path) -> None:
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    Other.metadata.create_all(other)

    def write(_: Engine) -> None:
        with Session(other) as session, session.begin():
            session.add(Later())

    declare(world, write)
    world.there()
    world.orders(1)
    world.settled()
    with Session(other) as session:
        assert len(session.scalars(select(Later)).all()) == 1
    other.dispose()
    assert world.order().status == "paid"


def test_what_a_handler_leaves_behind_writes_after_it(world: World) -> None:
    left: list[Any] = []

    def leave(engine: Engine) -> None:
        def task() -> None:
            by_a_statement(engine)

        left.append(copy_context())
        left.append(task)

    declare(world, leave)
    world.there()
    world.orders(1)
    world.settled()
    context, task = left
    context.run(task)
    assert notes(world) == ["edited"]
