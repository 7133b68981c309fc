"""Records of the user's that cannot be loaded: a value that the mapped class does not know. The others are carried out all the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

import pytest
from sqlalchemy import Enum as EnumColumn
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import ExternalService, InDoubt, Retry, UtcDateTime
from groundstate.rules.attempt import State
from groundstate.values.errors import ConflictError
from tests.engine.kit import HANG_S, World, until
from tests.engine.operate.test_actions import retry

ONCE = Retry(first=timedelta(hours=1), longest=timedelta(hours=1))


class Base(DeclarativeBase):
    pass


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


class Parcel(Base):
    __tablename__ = "parcels"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    size: Mapped[Size] = mapped_column(EnumColumn(Size, native_enum=False, create_constraint=False), default=Size.SMALL)
    sent_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url, Base)
    yield made
    made.close()


def bad(world: World, status: str) -> None:
    """Ten parcels, of which the third and the seventh cannot be loaded."""
    world.add(*[Parcel(id=number, status=status) for number in range(1, 11)])
    world.run("UPDATE parcels SET size = 'HUGE' WHERE id = 3")
    world.run(f"UPDATE parcels SET sent_at = '{'infinity' if world.postgres else 'soon'}' WHERE id = 7")


def put_right(world: World) -> None:
    world.run("UPDATE parcels SET size = 'LARGE', sent_at = NULL")


def counted(world: World, status: str) -> int:
    with world.engine.connect() as connection:
        return int(connection.exec_driver_sql(f"SELECT count(*) FROM parcels WHERE status = '{status}'").scalar_one())


def packing(world: World, retry: Retry = ONCE) -> Any:
    @world.app.on(Parcel, Parcel.status == "new", retry=retry)
    def packed(parcel: Parcel) -> None:
        parcel.status = "packed"

    return packed


def labelling(world: World, retry: Retry = ONCE) -> Any:
    gate = threading.Event()
    gate.set()
    carrier = ExternalService("carrier")

    @carrier.call(in_doubt=InDoubt.hold(), retry=retry)
    def label(parcel: Parcel) -> str:
        assert gate.wait(HANG_S)
        return f"label {parcel.id}"

    @world.app.on(Parcel, Parcel.status == "new", call=label, name="paid")
    def labelled(parcel: Parcel, outcome: str) -> None:
        parcel.status = "labelled"

    return gate


def test_the_others_are_carried_out_and_what_cannot_be_read_has_failed_with_the_reason(world: World) -> None:
    packing(world)
    bad(world, "new")
    world.settled()
    assert counted(world, "packed") == 8
    assert {one.record for one in world.attempts()} == {"3", "7"}
    assert {one.state for one in world.attempts()} == {State.FAILED}
    assert "HUGE" in str(world.attempts()[0].error)
    put_right(world)
    world.forward(2 * 3600)
    world.settled()
    assert counted(world, "packed") == 10
    assert world.attempts() == []


def test_with_a_call_as_well_and_none_is_made_for_them(world: World) -> None:
    labelling(world)
    bad(world, "new")
    world.settled()
    assert counted(world, "labelled") == 8
    assert [(one.record, one.state, one.call_no, one.unsure) for one in world.attempts()] == [
        ("3", State.FAILED, 0, False),
        ("7", State.FAILED, 0, False),
    ]
    world.forward(2 * 3600)
    world.settled()
    assert [one.failures for one in world.attempts()] == [2, 2]
    put_right(world)
    world.forward(2 * 3600)
    world.settled()
    assert counted(world, "labelled") == 10
    assert world.attempts() == []


@pytest.mark.parametrize("with_call", [False, True])
def test_after_the_last_try_it_is_held_for_a_person(world: World, with_call: bool) -> None:
    (labelling if with_call else packing)(world, Retry(times=1))
    bad(world, "new")
    world.settled()
    assert world.states() == ["held", "held"]


def test_an_outcome_for_a_record_that_became_unreadable_meanwhile_is_kept_until_it_is_put_right(world: World) -> None:
    gate = labelling(world)
    gate.clear()
    world.add(Parcel(id=1))
    life = world.worker()
    until(lambda: world.states() == ["begun"])
    world.run("UPDATE parcels SET size = 'HUGE'")
    gate.set()
    until(lambda: world.states() == ["held"])
    put_right(world)
    assert retry(world, "1").became == "concluded"
    until(lambda: counted(world, "labelled") == 1)
    until(lambda: world.attempts() == [])
    life.stop()


def test_a_person_is_told_to_put_the_record_right_first(world: World) -> None:
    labelling(world)
    bad(world, "new")
    world.settled()
    with pytest.raises(ConflictError, match=r"its record cannot be read: LookupError.*put the record right first"):
        retry(world, "3")


def test_hazard_46_after_a_restore_what_cannot_be_read_is_in_doubt_like_the_others(world: World) -> None:
    labelling(world)
    bad(world, "new")
    life = world.worker(after_restore=True)
    life.quiet()
    life.stop()
    assert len(world.attempts()) == 10
    assert all(one.unsure for one in world.attempts())


def test_a_baseline_has_them_as_well(world: World) -> None:
    bad(world.there(), "new")
    packing(world)
    world.app.init(baseline=["packed"])
    assert len(world.attempts()) == 10
    assert {one.why for one in world.attempts()} == {"baseline"}
