"""Code whose records of a reaction have another key, or another table: attempts know theirs by the old one, so nothing is called."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import ExternalService, IdempotencyKey, InDoubt
from groundstate.engine.operate import plan
from groundstate.engine.rows import reaction_registry
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from groundstate.store.tables import reaction as reaction_table
from groundstate.values.errors import StateRefusedError
from tests.engine.charging import SAME_KEY, left_in_doubt
from tests.engine.kit import CALL_LIMIT, QUICK, Gateway, Life, World, until


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    region: Mapped[str] = mapped_column(default="eu")
    status: Mapped[str] = mapped_column(default="placed")


class Invoice(Base):
    __tablename__ = "invoices"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")


class LaterBase(DeclarativeBase): ...


class LaterOrder(LaterBase):
    """As Order, with a key of two columns, which partitions want."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    region: Mapped[str] = mapped_column(primary_key=True, default="eu")
    status: Mapped[str] = mapped_column(default="placed")


class TextBase(DeclarativeBase): ...


class TextOrder(TextBase):
    __tablename__ = "orders"
    id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")


def code(url: str, base: Any, record: Any, gateway: Gateway | None = None, in_doubt: InDoubt = SAME_KEY) -> tuple[World, Gateway]:
    """A process whose reaction `paid` is on these records."""
    world = World(url, base)
    gateway = gateway or world.gateway()
    made = gateway
    bank = ExternalService("bank")

    @bank.call(in_doubt=in_doubt, timeout=CALL_LIMIT, retry=QUICK)
    async def charge(order: record, key: IdempotencyKey) -> str:
        return await made.act(int(order.id), key)

    @world.app.on(record, record.status == "placed", call=charge, name="paid")
    def paid(order: record, outcome: str) -> None:
        order.status = "paid"

    return world, gateway


LATER = pytest.mark.parametrize(
    ("base", "record", "words"),
    [
        (LaterBase, LaterOrder, "its records were orders (id int), and are orders (id int, region str) now"),
        (TextBase, TextOrder, "its records were orders (id int), and are orders (id str) now"),
        (Base, Invoice, "its records were orders (id int), and are invoices (id int) now"),
    ],
    ids=["a key of two columns", "a key of another type", "another table"],
)


def paid(world: World) -> int:
    """How many orders are."""
    with world.engine.connect() as connection:
        return len(connection.execute(select(Order.id).where(Order.status == "paid")).all())


def started(world: World) -> Life:
    world._there = True
    return world.worker()


def needs(world: World) -> str:
    """What a plan says that a person is to say of `paid`."""
    database, *_ = connect.open_store(world.app.stores[0].settings())
    try:
        questions = [ConditionQuery(spec, database) for spec in world.app.reactions.values()]
        [one] = plan.build_plan("shop", database, questions, []).reactions
        return one.needs or ""
    finally:
        database.close()


@LATER
def test_nothing_is_called_for_records_that_attempts_know_by_another_key(database_url: str, base: Any, record: Any, words: str) -> None:
    old, gateway = code(database_url, Base, Order)
    new, _ = code(database_url, base, record, gateway)
    left_in_doubt(old, gateway, Order(id=1))
    if record is Invoice:
        old.add(Invoice(id=1))
    assert words in needs(new)
    assert "1 attempt stands of records by the old one" in needs(new)
    life = started(new)
    until(lambda: len(life.worker.refused_reactions) == 1)
    life.sweep()
    life.quiet()
    assert words in life.worker.refused_reactions[0].message
    assert gateway.called(1) == 1
    life.stop()
    with pytest.raises(StateRefusedError, match="1 attempt stands of records by the old one"):
        new.app.init(accept=["paid=call"])
    old.settled()
    assert (old.states(), len({key for _, key in gateway.ledger})) == ([], 1)  # under one key, by the code that began it
    old.close()
    new.close()


def test_what_is_accepted_for_the_new_key_is_carried_out_by_new_code_alone(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    old, gateway = code(database_url, Base, Order, in_doubt=InDoubt.hold())
    new, _ = code(database_url, LaterBase, LaterOrder, gateway, in_doubt=InDoubt.hold())
    old.there()
    old.add(Order(id=1))
    before = old.worker()
    until(lambda: paid(old) == 1)
    old.add(Order(id=2, status="kept"))
    before.quiet()
    new._there = True
    with caplog.at_level(logging.ERROR, logger="groundstate"):
        new.app.init()  # nothing matches, and nothing stands: it is accepted without a word
        before.sweep()
        until(lambda: "no longer carried out here" in caplog.text)
    with old.engine.begin() as connection:
        connection.execute(update(Order).where(Order.id == 2).values(status="placed"))
    before.sweep()
    before.quiet()
    assert gateway.called(2) == 0
    after = new.worker()
    until(lambda: paid(old) == 2)
    assert gateway.called(2) == 1
    after.stop()
    before.stop()
    old.close()
    new.close()


def test_a_reaction_that_older_code_wrote_down_says_nothing_of_its_records_until_it_is_started_again(database_url: str) -> None:
    world, _ = code(database_url, Base, Order)
    world.there()
    with world.engine.begin() as connection:
        connection.execute(reaction_table.update().where(reaction_table.c.name == "paid").values(record=None))
    world.settled()
    with world.engine.connect() as connection:
        assert reaction_registry.read_known_reactions(connection, "shop")["paid"].record == "orders (id int)"
        assert connection.execute(select(Order.id)).all() == []
    world.close()
