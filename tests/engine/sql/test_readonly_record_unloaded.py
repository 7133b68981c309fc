"""A call that reads of its record what was not loaded is told how to load just that, and what it is told works."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload, undefer

from groundstate import ExternalService, InDoubt
from tests.engine.kit import CALL_LIMIT, World


class Base(DeclarativeBase): ...


class Parcel(Base):
    __tablename__ = "unloaded_parcels"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    label: Mapped[str | None] = mapped_column(deferred=True, default="fragile")
    items: Mapped[list[Item]] = relationship()


class Item(Base):
    __tablename__ = "unloaded_items"
    id: Mapped[int] = mapped_column(primary_key=True)
    parcel_id: Mapped[int] = mapped_column(ForeignKey("unloaded_parcels.id"))


def send(world: World, read: Callable[[Parcel], Any], load: Sequence[Any]) -> None:
    post = ExternalService("post")

    @post.call(in_doubt=InDoubt.hold(), timeout=CALL_LIMIT, load=load)
    def ship(parcel: Parcel) -> str:
        return str(read(parcel))

    @world.app.on(Parcel, Parcel.status == "placed", call=ship)
    def shipped(parcel: Parcel, outcome: str) -> None:
        parcel.status = outcome

    world.add(Parcel(id=1))
    world.settled()


@pytest.mark.parametrize(("read", "cure"), [
    (lambda parcel: parcel.label, "@service.call(load=[undefer(Parcel.label)])"),
    (lambda parcel: len(parcel.items), "@service.call(load=[selectinload(Parcel.items)])"),
], ids=["a deferred column", "a relationship"])  # fmt: skip
def test_what_was_not_loaded_is_told_with_how_to_load_it(sqlite_url: str, read: Callable[[Parcel], Any], cure: str) -> None:
    world = World(sqlite_url, Base)
    try:
        send(world, read, [])
        assert cure in (world.attempt().error or "")
    finally:
        world.close()


@pytest.mark.parametrize(("read", "load", "status"), [
    (lambda parcel: parcel.label, undefer(Parcel.label), "fragile"),
    (lambda parcel: len(parcel.items), selectinload(Parcel.items), "0"),
], ids=["a deferred column", "a relationship"])  # fmt: skip
def test_what_is_told_works(sqlite_url: str, read: Callable[[Parcel], Any], load: Any, status: str) -> None:
    world = World(sqlite_url, Base)
    try:
        send(world, read, [load])
        with world.session() as session:
            assert session.get_one(Parcel, 1).status == status
    finally:
        world.close()
