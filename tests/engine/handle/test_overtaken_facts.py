"""A fact concludes: whatever other tables say by then, what was done outside is written, and the reaction that takes it back finds it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import ForeignKey, exists
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from groundstate import Absent, App, ExternalService, InDoubt, Store, every_child
from groundstate.engine.operate import actions
from groundstate.testing import Lab
from tests.engine.kit import CALL_LIMIT, HANG_S, Gateway, World, ms, until
from tests.engine.operate.test_actions import acting


class Base(DeclarativeBase):
    pass


class Sale(Base):
    __tablename__ = "fact_sales"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="paid")
    booking: Mapped[str | None] = mapped_column(default=None)  # of the same name as the shipment's


class Shipment(Base):
    __tablename__ = "fact_shipments"
    id: Mapped[int] = mapped_column(primary_key=True)
    sale_id: Mapped[int] = mapped_column(ForeignKey("fact_sales.id"))
    booking: Mapped[str | None] = mapped_column(default=None)
    unbooked: Mapped[str | None] = mapped_column(default=None)
    note: Mapped[str | None] = mapped_column(default=None)
    sale: Mapped[Sale] = relationship()
    parcels: Mapped[list[Parcel]] = relationship()


class Parcel(Base):
    __tablename__ = "fact_parcels"
    id: Mapped[int] = mapped_column(primary_key=True)
    shipment_id: Mapped[int] = mapped_column(ForeignKey("fact_shipments.id"))
    packed: Mapped[bool] = mapped_column(default=True)


@pytest.fixture
def shop(database_url: str) -> Iterator[World]:
    made = World(database_url, Base)
    yield made
    made.close()


PAID = Shipment.sale.has(Sale.status == "paid")
CANCEL = "update fact_sales set status = 'cancelled'"
CLAUSES: dict[str, tuple[Callable[[], Any], str]] = {
    "has": (lambda: PAID, CANCEL),
    "exists": (lambda: exists().where(Sale.id == Shipment.sale_id, Sale.status == "paid"), CANCEL),
    "every_child": (lambda: every_child(Shipment.parcels, Parcel.packed.is_(True)), "update fact_parcels set packed = false"),
    "a column of the same name": (lambda: Shipment.sale.has(Sale.booking.is_(None)), "update fact_sales set booking = 'x'"),
}


def _booking(world: World, clause: Any, in_doubt: InDoubt | None = None, *, done_column: bool = True, find: Any = None) -> Gateway:
    gateway = world.gateway()
    carrier = ExternalService("carrier")

    @carrier.call(in_doubt=in_doubt or InDoubt.hold(), timeout=CALL_LIMIT)
    async def book(one: Shipment) -> str:
        return await gateway.act(one.id)

    if find is not None:

        @book.lookup
        def _(one: Shipment) -> str | Absent:
            told: str = find(one)
            return told

    clauses = [clause] if done_column else [Shipment.booking.is_(None), clause]
    given: Any = {"done_column": Shipment.booking} if done_column else {}

    @world.app.on(Shipment, *clauses, call=book, name="booked", **given)
    def booked(one: Shipment, number: str) -> None:
        one.booking = number

    return gateway


def _unbooking(world: World) -> None:
    @world.app.on(Shipment, Shipment.booking.is_not(None), Shipment.sale.has(Sale.status == "cancelled"), done_column=Shipment.unbooked)
    def taken_back(one: Shipment) -> None:
        one.unbooked = one.booking


def _flying(world: World, gateway: Gateway, step: str = "done_hang") -> Any:
    gateway.plan(1, step)
    world.add(Sale(id=1), Shipment(id=1, sale_id=1), Parcel(id=1, shipment_id=1))
    life = world.worker()
    if step == "done_hang":
        until(lambda: gateway.waiting == 1)
    return life


def _lands(gateway: Gateway, life: Any) -> None:
    gateway.gate.set()
    life.quiet()


@pytest.mark.parametrize("policy", [InDoubt.hold(), InDoubt.repeat()], ids=["hold", "repeat"])
@pytest.mark.parametrize("which", CLAUSES)
def test_a_fact_is_written_though_a_clause_over_another_table_no_longer_holds(shop: World, which: str, policy: InDoubt) -> None:
    clause, change = CLAUSES[which]
    gateway = _booking(shop, clause(), policy)
    life = _flying(shop, gateway)
    shop.run(change)
    _lands(gateway, life)
    assert shop.get(Shipment, 1).booking == "r1"
    assert shop.attempts() == []
    assert gateway.called(1) == 1


def test_what_was_booked_for_a_cancelled_sale_is_taken_back(shop: World) -> None:
    gateway = _booking(shop, PAID)
    _unbooking(shop)
    life = _flying(shop, gateway)
    shop.run(CANCEL)
    _lands(gateway, life)
    until(lambda: shop.get(Shipment, 1).unbooked == "r1")
    assert shop.attempts() == []


def test_a_find_tells_of_a_fact_likewise(shop: World) -> None:
    asked, answers = threading.Event(), threading.Event()

    def found(one: Shipment) -> str:
        asked.set()
        assert answers.wait(HANG_S)
        return f"r{one.id}"

    gateway = _booking(shop, PAID, InDoubt.lookup(settle_after=ms(1)), find=found)
    _flying(shop, gateway, "raise")
    until(asked.is_set)
    shop.run(CANCEL)
    answers.set()
    until(lambda: shop.get(Shipment, 1).booking == "r1")
    until(lambda: shop.attempts() == [])


def test_a_person_gives_a_fact_likewise(shop: World) -> None:
    gateway = _booking(shop, PAID)
    _flying(shop, gateway, "raise")
    until(lambda: shop.states() == ["held"])
    shop.run(CANCEL)
    with acting(shop) as person:
        assert actions.settle(person, "booked", "1", outcome='"by hand"').became == "concluded"
    assert shop.get(Shipment, 1).booking == "by hand"
    assert shop.attempts() == []


def test_a_fact_that_somebody_wrote_meanwhile_is_held(shop: World) -> None:
    gateway = _booking(shop, PAID)
    life = _flying(shop, gateway)
    shop.run(CANCEL)
    shop.run("update fact_shipments set booking = 'by hand'")
    _lands(gateway, life)
    assert shop.get(Shipment, 1).booking == "by hand"
    assert "booking had a value already" in (shop.attempt().why or "")


def test_a_clause_over_another_table_that_tests_the_fact_of_this_record_holds_it(shop: World) -> None:
    gateway = _booking(shop, exists().where(Sale.id == Shipment.sale_id, (Sale.status == "paid") | (Shipment.booking == "y")))
    life = _flying(shop, gateway)
    shop.run(CANCEL)
    _lands(gateway, life)
    assert "booking is tested by a clause that no longer held" in (shop.attempt().why or "")


def test_without_fact_what_was_done_is_held_where_a_clause_over_another_table_no_longer_holds(shop: World) -> None:
    gateway = _booking(shop, PAID, done_column=False)
    life = _flying(shop, gateway)
    shop.run(CANCEL)
    _lands(gateway, life)
    assert shop.attempt().why == "overtaken: a clause over other tables no longer held"
    assert shop.get(Shipment, 1).booking is None


def test_the_lab_cancels_at_every_crossing_and_no_booking_of_a_cancelled_sale_stays() -> None:
    app = App("facts", Store("sqlite:///facts.db", Base))

    @ExternalService("carrier").call(in_doubt=InDoubt.lookup(settle_after=timedelta(seconds=30)))
    async def book(one: Shipment) -> str:
        raise NotImplementedError

    @book.lookup
    async def _(one: Shipment) -> str | Absent:
        raise NotImplementedError

    @app.on(Shipment, PAID, call=book, done_column=Shipment.booking)
    def booked(one: Shipment, number: str) -> None:
        one.booking = number

    @app.on(Shipment, Shipment.booking.is_not(None), Shipment.sale.has(Sale.status == "cancelled"), done_column=Shipment.unbooked)
    def taken_back(one: Shipment) -> None:
        one.unbooked = one.booking

    def cancel(session: Session) -> None:
        session.get_one(Sale, 1).status = "cancelled"

    with Lab() as lab:
        ledger = lab.fake(book, lambda one: f"r{one.id}")
        lab.meanwhile(cancel)

        def at_the_end(session: Session) -> None:
            one = session.get_one(Shipment, 1)
            if session.get_one(Sale, 1).status == "cancelled" and one.booking is not None:
                assert one.unbooked == one.booking
            assert (one.booking is not None) == bool(ledger.effects)

        found = lab.crash_everywhere(app, Sale(id=1), Shipment(id=1, sale_id=1), at_the_end=at_the_end, budget=0)
    assert not found.held
