"""An UPDATE or DELETE that a session executes is refused where it hits the record of an open attempt; others are taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import ForeignKey, bindparam, create_engine, delete, event, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import ExternalService, InDoubt
from groundstate.values.errors import StateRefusedError
from tests.engine.charging import charging
from tests.engine.kit import CALL_LIMIT, Base, Gateway, Order, World, until

TABLE: Any = Order.__table__
HOLD = InDoubt.hold()
MOVED = "1 cannot be given another primary key now: paid is begun on it.*let the record keep its key"
DELETED = "1 cannot be deleted now: paid is begun on it.*mark the record as gone by a column"
Way = Callable[[Session], object]


class Own(DeclarativeBase):
    """Tables whose keys SQL does not write as our texts."""


class Line(Own):
    __tablename__ = "lines"
    day: Mapped[date] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url, Base, Own)
    yield made
    made.close()


def in_the_air(world: World, **options: Any) -> Gateway:
    """Order 1 is in the air, and the orders 2 and 3 wait for nothing."""
    gateway = charging(world, HOLD, **options)
    gateway.plan(1, "hang")
    world.there()
    world.add(Order(id=1), Order(id=2, status="new"), Order(id=3, status="new"))
    world.worker()
    until(lambda: gateway.waiting == 1)
    return gateway


def passes(world: World, way: Way) -> None:
    with world.session() as session, session.begin():
        way(session)


REFUSED: dict[str, tuple[str, Way]] = {
    "update by the orm": (MOVED, lambda session: session.execute(update(Order).where(Order.id == 1).values(id=30))),
    "update by an attribute": (MOVED, lambda session: session.execute(update(Order).where(Order.id == 1).values({Order.id: 30}))),
    "update by a parameter": (MOVED, lambda session: session.execute(update(Order).where(Order.id == 1), {"id": 30})),
    "update in order": (MOVED, lambda session: session.execute(update(Order).where(Order.id == 1).ordered_values((Order.id, 30)))),
    "update of an expression": (MOVED, lambda session: session.execute(update(Order).values(id=Order.id + 100))),
    "update of the table": (MOVED, lambda session: session.execute(TABLE.update().where(TABLE.c.id == 1).values(id=30))),
    "many of the table": (
        MOVED,
        lambda session: session.execute(TABLE.update().where(TABLE.c.id == bindparam("old")), [{"old": 2, "id": 20}, {"old": 1, "id": 30}]),
    ),
    "by a query": (MOVED, lambda session: session.query(Order).filter(Order.id == 1).update({"id": 30})),
    "delete by the orm": (DELETED, lambda session: session.execute(delete(Order).where(Order.id == 1))),
    "delete of all": (DELETED, lambda session: session.execute(delete(Order))),
    "delete of the table": (DELETED, lambda session: session.execute(TABLE.delete().where(TABLE.c.status == "placed"))),
    "delete by a query": (DELETED, lambda session: session.query(Order).filter_by(id=1).delete()),
    "delete by a subquery": (
        DELETED,
        lambda session: session.execute(delete(Order).where(Order.id.in_(select(Order.id).where(Order.status == "placed")))),
    ),
}

TAKEN: dict[str, Way] = {
    "the key of another record": lambda session: session.execute(update(Order).where(Order.id == 2).values(id=20)),
    "another record": lambda session: session.execute(delete(Order).where(Order.id != 1)),
    "another column": lambda session: session.execute(update(Order).where(Order.id == 1).values(note="x")),
    "its own key": lambda session: session.execute(update(Order).where(Order.id == 1).values(id=1, note="x")),
    "many by their keys": lambda session: session.execute(update(Order), [{"id": 1, "note": "x"}, {"id": 2, "note": "y"}]),
}


@pytest.mark.parametrize("way", REFUSED)
def test_a_statement_of_a_session_neither_deletes_nor_renames_a_record_in_the_air(world: World, way: str) -> None:
    gateway = in_the_air(world)
    words, act = REFUSED[way]
    with world.session() as session:
        with pytest.raises(StateRefusedError, match=words):
            act(session)
        session.get_one(Order, 2).note = "the session goes on"
        session.commit()
    gateway.gate.set()
    world.lives[0].quiet()
    assert (gateway.called(1), world.order(1).status, world.order(2).note) == (1, "paid", "the session goes on")


@pytest.mark.parametrize("way", TAKEN)
def test_a_statement_that_does_neither_is_taken(world: World, way: str) -> None:
    gateway = in_the_air(world)
    passes(world, TAKEN[way])
    gateway.gate.set()
    world.lives[0].quiet()
    assert (len(gateway.calls), world.order(1).status) == (1, "paid")


def test_once_no_attempt_is_open_statements_are_taken(world: World) -> None:
    gateway = in_the_air(world)
    gateway.gate.set()
    world.lives[0].quiet()
    passes(world, lambda session: session.execute(update(Order).where(Order.id == 1).values(id=30)))
    passes(world, lambda session: session.execute(delete(Order).where(Order.id == 30)))
    assert world.count() == 2


def test_a_record_whose_outcome_is_held_gets_no_other_key_and_may_be_deleted(world: World) -> None:
    def refuses(_order: Order, _outcome: str) -> None:
        raise ValueError("no")

    charging(world, HOLD, handler=refuses)
    world.orders(1)
    world.settled()
    assert world.states() == ["held"]
    with pytest.raises(StateRefusedError, match="paid is held on it"):
        passes(world, lambda session: session.execute(update(Order).values(id=30)))
    passes(world, lambda session: session.execute(delete(Order)))


@pytest.mark.parametrize("way", ["flush", "statement"])
def test_a_call_of_a_reaction_with_a_done_column_keeps_its_record_as_well(world: World, way: str) -> None:
    gateway = in_the_air(world, done_column=Order.receipt, handler=_receipt)

    def act(session: Session) -> None:
        if way == "flush":
            session.get_one(Order, 1).id = 30
            session.flush()
        else:
            session.execute(update(Order).where(Order.id == 1).values(id=30))

    with pytest.raises(StateRefusedError, match=MOVED):
        passes(world, act)
    gateway.gate.set()
    world.lives[0].quiet()
    assert gateway.called(1) == 1


def _receipt(order: Order, outcome: str) -> None:
    order.receipt = outcome


def test_a_key_of_two_columns_is_found_too(world: World) -> None:
    gateway = world.gateway()
    gateway.plan(1, "hang")

    @ExternalService("bank").call(in_doubt=HOLD, timeout=CALL_LIMIT)
    async def charge(line: Line) -> str:
        return await gateway.act(line.number)

    @world.app.on(Line, Line.status == "placed", call=charge)
    def paid(line: Line, outcome: str) -> None:
        line.status = "paid"

    world.add(Line(day=date(2026, 1, 1), number=1), Line(day=date(2026, 1, 1), number=2, status="new"))
    world.worker()
    until(lambda: gateway.waiting == 1)
    with pytest.raises(StateRefusedError, match="cannot be deleted now: paid is begun"):
        passes(world, lambda session: session.execute(delete(Line).where(Line.day == date(2026, 1, 1))))
    with pytest.raises(StateRefusedError, match="cannot be given another primary key now: paid is begun"):
        passes(world, lambda session: session.execute(update(Line).values(number=Line.number + 5)))
    passes(world, lambda session: session.execute(delete(Line).where(Line.number == 2)))
    gateway.gate.set()
    world.lives[0].quiet()
    assert world.get(Line, (date(2026, 1, 1), 1)).status == "paid"


class Pet(Own):
    __tablename__ = "pets"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    status: Mapped[str] = mapped_column(default="placed")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "pet"}  # noqa: RUF012  # as SQLAlchemy has it


class Cat(Pet):
    __mapper_args__ = {"polymorphic_identity": "cat"}  # noqa: RUF012


class Dog(Pet):
    __tablename__ = "dogs"
    id: Mapped[int] = mapped_column(ForeignKey("pets.id"), primary_key=True)
    tag: Mapped[str | None]
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


def test_the_rows_of_subclasses_are_found_and_those_of_others_are_not(world: World) -> None:
    gateway = world.gateway()
    for number in (1, 2):
        gateway.plan(number, "hang")
    bank = ExternalService("bank")

    @bank.call(in_doubt=HOLD, timeout=CALL_LIMIT)
    async def groom(pet: Pet) -> str:
        return await gateway.act(pet.id)

    def done(pet: Pet, outcome: str) -> None:
        pet.status = "done"

    world.app.on(Pet, Pet.status == "placed", call=groom, name="paid")(done)
    world.app.on(Cat, Cat.status == "cat's own", name="cats")(_rests)
    world.app.on(Dog, Dog.status == "dog's own", name="dogs")(_rests)
    world.add(Pet(id=1), Dog(id=2), Cat(id=3, status="new"), Dog(id=4, status="new"))
    world.worker()
    until(lambda: gateway.waiting == 2)
    pets: Any = Pet.__table__
    dogs: Any = Dog.__table__
    refused: list[Way] = [
        lambda session: session.execute(delete(Pet)),
        lambda session: session.execute(pets.delete().where(pets.c.id == 2)),
        lambda session: session.execute(dogs.delete()),
        lambda session: session.execute(dogs.update().values(id=dogs.c.id + 10)),
        lambda session: session.execute(update(Pet).where(Pet.id == 1).values(id=10)),
    ]
    for way in refused:
        with pytest.raises(StateRefusedError, match="paid is begun on it"):
            passes(world, way)
    passes(world, lambda session: session.execute(delete(Cat)))
    passes(world, lambda session: session.execute(dogs.delete().where(dogs.c.id == 4)))
    gateway.gate.set()
    world.lives[0].quiet()
    assert len(gateway.calls) == 2


def _rests(pet: Pet) -> None:
    pet.status = "rests"


def test_the_handler_of_a_call_deletes_its_own_record_by_a_statement_and_no_other(world: World) -> None:
    def paid(order: Order, outcome: str, session: Session) -> None:
        session.execute(delete(Order).where(Order.id == (1 if order.id == 3 else order.id)))

    gateway = in_the_air(world, handler=paid)
    world.set(2, status="placed")
    world.set(3, status="placed")
    world.lives[0].sweep()
    until(lambda: sorted(world.states()) == ["begun", "held"])
    assert [one.record for one in world.attempts() if one.state.value == "held"] == ["3"]
    gateway.gate.set()
    world.lives[0].quiet()
    assert (gateway.called(1), gateway.called(2), world.count()) == (1, 1, 1)


def test_where_no_attempt_is_open_one_query_is_asked_and_without_reactions_none(world: World) -> None:
    charging(world, HOLD)
    world.orders(1, status="new")
    world.worker().quiet()
    said: list[str] = []
    event.listen(world.engine, "before_cursor_execute", lambda *arguments: said.append(arguments[2]))
    passes(world, lambda session: session.execute(delete(Order)))
    assert len([one for one in said if "groundstate_attempt" in one]) == 1
    said.clear()
    passes(world, lambda session: session.execute(delete(Line)))
    passes(world, lambda session: session.execute(update(Order).values(note="x")))
    assert not [one for one in said if "groundstate_attempt" in one]


@pytest.mark.parametrize("way", ["flush", "statement"])
def test_another_database_with_the_same_tables_is_not_asked_for_attempts(world: World, way: str, tmp_path: Path) -> None:
    in_the_air(world)
    archive = create_engine(f"sqlite:///{tmp_path / 'archive.db'}")
    Base.metadata.create_all(archive)
    with Session(archive) as session, session.begin():
        session.add(Order(id=1))
        session.flush()
        if way == "flush":
            session.delete(session.get_one(Order, 1))
        else:
            session.execute(delete(Order))
    with Session(archive) as session:
        assert session.get(Order, 1) is None
    archive.dispose()
