"""The first start of new code: what is written once it has returned belongs to its reactions, and what is not carried out is named."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from itertools import count

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import App, StoppedError, Store
from groundstate.engine.recover import admission
from groundstate.store.tables import metadata as our_tables
from tests.engine.kit import until


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "first_orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")


_numbers = count()


class Migrated:
    """A database whose tables, ours among them, were made by migrations; nobody has said `init`."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url)
        Base.metadata.create_all(self.engine)
        our_tables.create_all(self.engine)
        self.app = App(f"first {next(_numbers)}", Store(url, Base))

        @self.app.on(Order, Order.status == "placed")
        def packed(order: Order) -> None:
            order.status = "packed"

    def add(self, number: int) -> None:
        with Session(self.engine) as session, session.begin():
            session.add(Order(id=number))

    def packed(self) -> bool:
        with self.engine.connect() as connection:
            return bool(connection.execute(text("select min(status) = 'packed' from first_orders")).scalar())

    def close(self) -> None:
        self.app.stop()
        self.engine.dispose()


@pytest.fixture
def migrated(database_url: str) -> Iterator[Migrated]:
    made = Migrated(database_url)
    yield made
    made.close()


def test_a_row_that_is_written_after_the_first_start_is_carried_out(migrated: Migrated, monkeypatch: pytest.MonkeyPatch) -> None:
    """The count of what a new reaction finds is held back, as on a busy machine: the start waits for it."""
    real, may_count = admission.Admission.count_newcomers, threading.Event()

    def late(self: admission.Admission) -> None:
        may_count.wait()
        real(self)

    monkeypatch.setattr(admission.Admission, "count_newcomers", late)
    started = threading.Event()
    starting = threading.Thread(target=_start, args=(migrated.app, started))
    starting.start()
    until(lambda: bool(migrated.app._starting_group and migrated.app._starting_group.slots[0].starting_worker))
    assert not started.is_set()
    may_count.set()
    starting.join()
    assert migrated.app.waiting == {}
    migrated.add(1)
    until(migrated.packed)
    assert migrated.app.refused == []


def test_a_row_that_is_written_within_running_is_carried_out(migrated: Migrated) -> None:
    async def within() -> None:
        async with migrated.app.running():
            assert migrated.app.waiting == {}
            await asyncio.to_thread(migrated.add, 1)
            await asyncio.to_thread(until, migrated.packed)
            assert migrated.app.refused == []

    asyncio.run(within())


def test_a_row_that_is_written_after_a_held_start_is_carried_out_once_it_goes_on(migrated: Migrated) -> None:
    migrated.app.start(wait=True)
    assert migrated.app.waiting == {}
    migrated.add(1)
    assert not migrated.packed()
    migrated.app.go()
    until(migrated.packed)
    assert migrated.app.refused == []


def test_rows_from_before_a_held_start_are_left_to_a_person_and_the_reaction_is_named(migrated: Migrated) -> None:
    migrated.add(1)
    migrated.app.start(wait=True)
    assert [one.name for one in migrated.app.refused] == ["packed"]
    migrated.app.go()
    assert list(migrated.app.waiting) == ["packed"]


def test_rows_from_before_the_first_start_are_left_to_a_person_and_the_reaction_is_named(migrated: Migrated) -> None:
    migrated.add(1)
    migrated.app.start()
    assert list(migrated.app.waiting) == ["packed"]
    assert "1 row that was there before" in migrated.app.waiting["packed"]
    assert [one.name for one in migrated.app.refused] == ["packed"]


def test_a_reaction_that_waits_for_a_migration_is_named_until_it_has_run(migrated: Migrated) -> None:
    with migrated.engine.begin() as connection:
        connection.execute(text("drop table first_orders"))
    migrated.app.start()
    assert "first_orders" in migrated.app.waiting["packed"]
    Base.metadata.create_all(migrated.engine)
    until(lambda: migrated.app.waiting == {})
    migrated.add(1)
    until(migrated.packed)


def test_a_stop_ends_the_wait_of_a_start(migrated: Migrated, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(admission.Admission, "count_newcomers", lambda _self: over.wait())
    starting = threading.Thread(target=_quietly, args=(migrated.app,))
    starting.start()
    until(lambda: bool(migrated.app._starting_group and migrated.app._starting_group.slots[0].starting_worker))
    stopping = threading.Thread(target=migrated.app.stop)
    stopping.start()
    starting.join()
    over.set()
    stopping.join()


def _start(app: App, started: threading.Event) -> None:
    app.start()
    started.set()


def _quietly(app: App) -> None:
    with pytest.raises(StoppedError):
        app.start()
