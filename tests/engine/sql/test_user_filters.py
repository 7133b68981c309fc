"""A filter of the user's that hides rows from every ORM statement: what it hides is deleted for us, in whatever way we ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import ForeignKey, event
from sqlalchemy.orm import DeclarativeBase, Mapped, ORMExecuteState, Session, mapped_column, relationship, with_loader_criteria

from groundstate import ExternalService, InDoubt, UtcDateTime, every_child
from groundstate.engine.operate.pending import build_pending_report
from groundstate.engine.operate.why import explain_record
from groundstate.engine.sql.condition_query import ConditionQuery
from tests.engine.kit import World, until


class SoftBase(DeclarativeBase):
    pass


class Soft:
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class Parcel(Soft, SoftBase):
    __tablename__ = "parcels"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    items: Mapped[list[Piece]] = relationship(back_populates="parcel")


class Piece(Soft, SoftBase):
    __tablename__ = "pieces"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")
    parcel_id: Mapped[int] = mapped_column(ForeignKey("parcels.id"))
    parcel: Mapped[Parcel] = relationship(back_populates="items")


def hide(state: ORMExecuteState) -> None:
    """SQLAlchemy's own recipe."""
    if state.is_select and not state.is_column_load and not state.is_relationship_load:
        criteria = with_loader_criteria(Soft, lambda cls: cls.deleted_at.is_(None), include_aliases=True)
        state.statement = state.statement.options(criteria)


@pytest.fixture
def soft(database_url: Any) -> Iterator[World]:
    event.listen(Session, "do_orm_execute", hide)
    made = World(database_url, SoftBase)
    yield made
    made.close()
    event.remove(Session, "do_orm_execute", hide)


def status(world: World, number: int) -> Any:
    with world.engine.connect() as connection:
        return connection.exec_driver_sql(f"SELECT status FROM parcels WHERE id = {number}").scalar_one()


def report(world: World) -> Any:
    life = world.worker(start=False)
    questions = [ConditionQuery(spec, life.database) for spec in world.app.reactions.values()]
    said = build_pending_report(world.app.name, life.database, questions, life.worker.incarnation.liveness)
    return said, explain_record(world.app.name, life.database, questions, life.worker.incarnation.liveness, "parcels", "1")


def test_what_is_hidden_is_neither_carried_out_nor_reported(soft: World) -> None:
    @soft.app.on(Parcel, Parcel.status == "new")
    def sent(parcel: Parcel) -> None:
        parcel.status = "sent"

    soft.add(Parcel(id=1), Parcel(id=2), Parcel(id=3, deleted_at=datetime.now(UTC)))
    assert report(soft)[0].to_do[0].rows == 2
    soft.settled()
    assert [status(soft, number) for number in (1, 2, 3)] == ["sent", "sent", "new"]
    assert report(soft)[0].to_do[0].rows == 0
    assert soft.attempts() == []


def test_a_record_that_is_hidden_while_its_call_is_made_was_deleted(soft: World) -> None:
    gateway = soft.gateway()
    service = ExternalService("bank")

    @service.call(in_doubt=InDoubt.hold())
    def charge(parcel: Parcel) -> str:
        return gateway.act_sync(parcel.id)

    @soft.app.on(Parcel, Parcel.status == "new", call=charge)
    def paid(parcel: Parcel, outcome: str) -> None:
        parcel.status = "paid"

    soft.add(Parcel(id=1), Parcel(id=2))
    gateway.plan(1, "hang")
    soft.worker()
    until(lambda: gateway.waiting == 1 and status(soft, 2) == "paid")
    soft.run("UPDATE parcels SET deleted_at = '2026-01-01 00:00:00.000000' WHERE id = 1")
    gateway.gate.set()
    until(lambda: soft.states() == ["held"])
    assert "the record was deleted" in (soft.attempt().why or "")
    assert soft.attempt().outcome is not None
    said, answer = report(soft)
    assert [one.record for one in said.held] == ["1"]
    assert said.to_do[0].rows == 0
    assert not answer.exists


def test_children_that_are_hidden_count_for_nobody(soft: World) -> None:
    @soft.app.on(Parcel, Parcel.status == "new", every_child(Parcel.items, Piece.status == "packed"))
    def sent(parcel: Parcel) -> None:
        parcel.status = "sent"

    soft.add(Parcel(id=1), Parcel(id=2))
    soft.add(
        Piece(id=1, parcel_id=1, status="packed"),
        Piece(id=2, parcel_id=1, deleted_at=datetime.now(UTC)),
        Piece(id=3, parcel_id=2, status="packed"),
        Piece(id=4, parcel_id=2),
    )
    soft.settled()
    assert [status(soft, number) for number in (1, 2)] == ["sent", "new"]
