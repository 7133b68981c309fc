"""What a call edits in place of its snapshot is lost, and it is told so: JSON, pickles, composites, and records loaded beside it."""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import PurePosixPath
from typing import Any

import pytest
from sqlalchemy import JSON, ForeignKey, LargeBinary, PickleType, create_engine, select
from sqlalchemy.ext.mutable import MutableComposite, MutableDict, MutableList
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, composite, mapped_column, relationship, selectinload
from sqlalchemy.pool import StaticPool

from groundstate import Absent, ExternalService, InDoubt, NotDone, Unknown
from groundstate.engine.sql import readonly_record
from tests.engine.kit import World, ms


class Base(DeclarativeBase):
    pass


@dataclass
class Price:
    amount: int | None
    currency: str | None


@dataclass
class Place(MutableComposite):
    x: int | None
    y: int | None


class Bag:
    def __init__(self) -> None:
        self.things = ["a"]


class Unsaid:
    """Can be copied by nobody, and has a way of its own to say so."""

    def __reduce__(self) -> Any:
        raise TypeError("this cannot be pickled")


def _odd() -> dict[str, Any]:
    return {"deque": deque([[1], 2], maxlen=9), "array": array("d", [1.5]), "path": PurePosixPath("a/b"), "ip": ip_network("::/8")}


class Parcel(Base):
    __tablename__ = "parcel"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    notes: Mapped[Any] = mapped_column(JSON, default=lambda: {"a": {"b": [1, True]}})
    items: Mapped[Any] = mapped_column(JSON, default=lambda: [1, [2]])
    told: Mapped[Any] = mapped_column(MutableDict.as_mutable(JSON), default=lambda: {"a": [1]})
    tags: Mapped[Any] = mapped_column(MutableList.as_mutable(JSON), default=lambda: ["x"])
    pickled: Mapped[Any] = mapped_column(PickleType, default=lambda: {"deep": [Bag()], "of": {1, 2}})
    odd: Mapped[Any] = mapped_column(PickleType, default=_odd)
    raw: Mapped[bytes] = mapped_column(LargeBinary, default=b"x")
    price: Mapped[Price] = composite(mapped_column("amount", default=1), mapped_column("currency", default="EUR"))
    place: Mapped[Place] = composite(mapped_column("x", default=1), mapped_column("y", default=2))
    lines: Mapped[list[Line]] = relationship(back_populates="parcel")


class Line(Base):
    __tablename__ = "parcel_line"
    id: Mapped[int] = mapped_column(primary_key=True)
    parcel_id: Mapped[int] = mapped_column(ForeignKey("parcel.id"))
    name: Mapped[str] = mapped_column(default="n")
    more: Mapped[Any] = mapped_column(JSON, default=dict)
    parcel: Mapped[Parcel] = relationship(back_populates="lines")


def _set(what: Any, name: str, value: Any) -> None:
    setattr(what, name, value)


EDITS: dict[str, tuple[Callable[[Parcel], Any], list[str]]] = {
    "a key": (lambda one: one.notes.update(r=1), ["notes"]),
    "deep in JSON": (lambda one: one.notes["a"]["b"].append(2), ["notes"]),
    "true instead of 1": (lambda one: one.notes["a"]["b"].__setitem__(0, True), ["notes"]),
    "a list in a list": (lambda one: one.items[1].clear(), ["items"]),
    "a MutableDict": (lambda one: one.told.update(r=1), ["told"]),
    "deep in a MutableDict": (lambda one: one.told["a"].append(1), ["told"]),
    "a MutableList": (lambda one: one.tags.append("y"), ["tags"]),
    "an object in a pickle": (lambda one: one.pickled["deep"][0].things.append("b"), ["pickled"]),
    "a set in a pickle": (lambda one: one.pickled["of"].add(3), ["pickled"]),
    "a deque": (lambda one: one.odd["deque"].append(3), ["odd"]),
    "within a deque": (lambda one: one.odd["deque"][0].append(3), ["odd"]),
    "an array": (lambda one: one.odd["array"].append(2.5), ["odd"]),
    "another of what tells nothing": (lambda one: one.odd.update(path=Unsaid()), ["odd"]),
    "a composite": (lambda one: _set(one.price, "amount", 7), ["price"]),
    "a list of records": (lambda one: one.lines.pop(), ["lines"]),
    "a record beside it": (lambda one: _set(one.lines[0], "name", "other"), ["lines.name"]),
    "JSON of a record beside it": (lambda one: one.lines[0].more.update(r=1), ["lines.more"]),
}
READS: dict[str, Callable[[Parcel], Any]] = {
    "nothing": lambda _one: None,
    "a copy": lambda one: dict(one.notes, r=1),
    "the same again": lambda one: (one.notes.update(a={"b": [1, True]}), one.tags[:], one.told.get("a")),
    "what keeps what it computed": lambda one: (str(one.odd["path"]), hash(one.odd["path"]), one.odd["ip"].num_addresses),
    "composites": lambda one: (one.price.amount, one.place.x, one.place._parents),
    "what is loaded": lambda one: [line.parcel_id for line in one.lines],
}


@pytest.fixture
def parcel() -> Iterator[Any]:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Parcel(id=1, lines=[Line(id=1), Line(id=2)]))
        session.commit()
        taken = readonly_record.make_read_only(session.scalars(select(Parcel).options(selectinload(Parcel.lines))).one())
        session.expunge_all()
    yield taken
    engine.dispose()


@pytest.mark.parametrize("edit", EDITS)
def test_each_edit_in_place_is_seen(parcel: Any, edit: str) -> None:
    change, names = EDITS[edit]
    given = readonly_record.copy_editable_values(parcel)
    assert given is not None
    change(parcel)
    assert [name for name in given.edited_paths() if name != "lines.parcel"] == names  # the other side of the list


@pytest.mark.parametrize("read", READS)
def test_nothing_is_seen_where_nothing_was_edited(parcel: Any, read: str) -> None:
    given = readonly_record.copy_editable_values(parcel)
    assert given is not None
    READS[read](parcel)
    assert given.edited_paths() == []


def test_what_sends_made_is_the_call_s_own() -> None:
    assert readonly_record.copy_editable_values({"a": 1}) is None
    assert readonly_record.copy_editable_values(Parcel(id=1)) is None


def _told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if getattr(one, "event", "") == "snapshot_edited"]


@pytest.mark.parametrize("way", ["sync", "async", "many", "find"])
def test_a_call_that_edits_its_snapshot_is_told_so_once_and_its_outcome_counts(
    database_url: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(database_url, Base)
    bank = ExternalService("bank")
    if way == "sync":

        @bank.call(in_doubt=InDoubt.hold())
        def send(parcel: Parcel) -> str:
            parcel.notes["r"] = "sent"
            return "sent"
    elif way == "async":

        @bank.call(in_doubt=InDoubt.hold())
        async def send(parcel: Parcel) -> str:
            parcel.notes["r"] = "sent"
            return "sent"
    elif way == "many":

        @bank.call_many(size=2, in_doubt=InDoubt.hold())
        def send(parcels: Sequence[Parcel]) -> Sequence[str | NotDone]:
            for parcel in parcels:
                parcel.notes["r"] = "sent"
            return ["sent" for _ in parcels]
    else:

        @bank.call(in_doubt=InDoubt.lookup(settle_after=ms(20)))
        def send(parcel: Parcel) -> str:
            raise RuntimeError("the line went dead")

        @send.lookup
        def was_sent(parcel: Parcel) -> str | Absent | Unknown:
            parcel.notes["r"] = "sent"
            return "sent"

    @world.app.on(Parcel, Parcel.status == "new", call=send)
    def sent(parcel: Parcel, outcome: str) -> None:
        parcel.status = outcome

    with caplog.at_level(logging.ERROR, "groundstate"):
        world.add(Parcel(id=1), Parcel(id=2))
        world.worker().quiet()
        if way == "find":
            world.forward(60)
        world.settled()
    with world.session() as session:
        assert [(one.status, one.notes) for one in session.scalars(select(Parcel))] == [("sent", {"a": {"b": [1, True]}})] * 2
    assert len(_told(caplog)) == 1
    assert "of sent edited notes of its snapshot in place" in _told(caplog)[0]
    world.close()


def test_sends_that_edits_its_record_in_place_is_refused_and_the_others_go_on(database_url: str) -> None:
    world = World(database_url, Base)

    def payload(parcel: Parcel) -> dict[str, Any]:
        if parcel.id == 1:
            parcel.notes["id"] = parcel.id
        return {**parcel.notes, "id": parcel.id}

    @ExternalService("bank").call(in_doubt=InDoubt.hold())
    def send(payload: dict[str, Any]) -> str:
        return f"sent {payload['id']}"

    @world.app.on(Parcel, Parcel.status == "new", call=send, prepare=payload)
    def sent(parcel: Parcel, outcome: str) -> None:
        parcel.status = outcome

    world.add(Parcel(id=1), Parcel(id=2))
    world.worker().quiet()
    with world.session() as session:
        assert [(one.status, one.notes) for one in session.scalars(select(Parcel).order_by(Parcel.id))] == [
            ("new", {"a": {"b": [1, True]}}),
            ("sent 2", {"a": {"b": [1, True]}}),
        ]
    words = "`prepare` of sent changed the inside of notes: it may read any row and write none, since it runs again"
    assert words in (world.attempt().error or "")
    world.close()
