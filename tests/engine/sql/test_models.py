"""Hazard 24: one contract for every kind of model, through the fast and the slow way of writing, without and with a call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import DDL, event, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlmodel import SQLModel

from groundstate import ExternalService, InDoubt, Retry
from groundstate.engine.sql.transaction import OurSession
from tests.engine.kinds import KINDS, Base, CardPayment, Kind, Payment, triggered_by
from tests.engine.kit import World, ms

COUNT = 12  # more than share one UPDATE


def _nothing(*_: Any) -> None:
    """A listener on flushes: where there is one, every change goes through the unit of work."""


@pytest.fixture(params=["fast", "slow"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "slow":
        event.listen(OurSession, "before_flush", _nothing)
    yield request.param
    if request.param == "slow":
        event.remove(OurSession, "before_flush", _nothing)


@pytest.fixture
def models(database_url: str) -> Iterator[World]:
    made = World(database_url, Base, SQLModel)
    yield made
    made.close()


def _declare(world: World, bank: ExternalService, number: int, kind: Kind) -> None:
    state = getattr(kind.model, kind.state)
    new, middle, done = kind.states

    @bank.call(in_doubt=InDoubt.hold(), retry=Retry(times=1, first=ms(5)))
    def ask(record: Any) -> str:
        assert getattr(record, kind.state) == middle
        return "yes"

    @world.app.on(kind.model, state == new, *kind.clauses, name=f"first_{number}", retry=Retry(times=1, first=ms(5)))
    def first(record: Any) -> None:
        kind.first(record)
        setattr(record, kind.state, middle)

    @world.app.on(kind.model, state == middle, *kind.clauses, call=ask, name=f"then_{number}")
    def then(record: Any, outcome: str) -> None:
        assert outcome == "yes"
        kind.then(record)
        setattr(record, kind.state, done)


def test_hazard_24_every_kind_of_model_is_carried_out(models: World, way: str) -> None:
    bank = ExternalService("bank")
    for number, kind in enumerate(KINDS.values()):
        _declare(models, bank, number, kind)
    for kind in KINDS.values():
        models.add(*[kind.make(number) for number in range(1, COUNT + 1)])
    models.settled()
    errors = {one.reaction: one.error for one in models.attempts()}
    wrong = {}
    with models.session() as session:
        for number, (name, kind) in enumerate(KINDS.items()):
            records = list(session.scalars(select(kind.model)).unique())
            good = [record for record in records if getattr(record, kind.state) == kind.states[2] and kind.true(record)]
            if len(good) != COUNT or len(records) != COUNT:
                wrong[name] = (len(good), len(records), errors.get(f"first_{number}") or errors.get(f"then_{number}"))
    assert wrong == {}
    assert errors == {}


def test_hazard_24_a_table_in_a_schema(postgres_url: str, way: str) -> None:
    class Own(DeclarativeBase):
        pass

    class Deal(Own):
        __tablename__ = "deals"
        __table_args__ = {"schema": "Other Place"}  # noqa: RUF012  # as SQLAlchemy's own examples
        id: Mapped[int] = mapped_column(primary_key=True)
        status: Mapped[str] = mapped_column(default="new")

    event.listen(Own.metadata, "before_create", DDL('create schema if not exists "Other Place"'))  # type: ignore[no-untyped-call]  # SQLAlchemy has no types there
    world = World(postgres_url, Own)
    try:
        world.run('create schema "Other Place"')
        _declare(world, ExternalService("bank"), 1, Kind(Deal, lambda number: Deal(id=number)))
        world.add(*[Deal(id=number) for number in range(1, COUNT + 1)])
        world.settled()
        assert world.attempts() == []
        with world.engine.connect() as connection:
            assert connection.execute(text('select distinct status from "Other Place".deals')).all() == [("done",)]
    finally:
        world.close()


def test_hazard_24_a_trigger_that_takes_the_change_back_is_no_progress(database_url: str, way: str) -> None:
    class Own(DeclarativeBase):
        pass

    class Stubborn(Own):
        __tablename__ = "stubborn"
        id: Mapped[int] = mapped_column(primary_key=True)
        status: Mapped[str] = mapped_column(default="new")

    triggered_by(Stubborn.__table__, "status = 'new'", "new.status <> 'new'")
    world = World(database_url, Own)
    try:

        @world.app.on(Stubborn, Stubborn.status == "new", retry=Retry(times=1))
        def first(record: Stubborn) -> None:
            record.status = "middle"

        world.add(Stubborn(id=1))
        world.settled()
        assert "made no progress" in (world.attempt().error or "")
    finally:
        world.close()


def test_hazard_24_attempts_on_a_child_of_joined_tables_block_by_the_base(models: World) -> None:
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.hold(), retry=Retry(times=1))
    def charge(payment: CardPayment) -> str:
        raise RuntimeError("the line went dead")

    @models.app.on(CardPayment, CardPayment.status == "new", call=charge)
    def charged(payment: CardPayment, outcome: str) -> None:
        payment.status = "charged"

    @models.app.on(Payment, Payment.status == "new", Payment.kind == "late")
    def cancelled(payment: Payment) -> None:
        payment.status = "cancelled"

    models.add(CardPayment(id=1, card="1"))
    models.settled()
    assert models.attempt().blocks == "payments"
