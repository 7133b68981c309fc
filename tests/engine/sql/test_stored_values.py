"""What is stored, is loaded, and is found by no clause of its type: named by `check` and `pending --states`. And defaults in local time."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Boolean, DateTime, Enum, func, make_url, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.types import UserDefinedType

from groundstate import UtcDateTime
from groundstate.engine.operate.check import check_database
from groundstate.engine.operate.unanswered_states import find_unanswered_states
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from tests.engine.kit import World

LOCAL: Any = datetime.now  # as users write it


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


class StoredBase(DeclarativeBase):
    pass


class Thing(StoredBase):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")
    gift: Mapped[bool] = mapped_column(Boolean, server_default="true")
    size: Mapped[Size] = mapped_column(Enum(Size, native_enum=False), default=Size.SMALL)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=lambda: datetime.now(UTC))
    local: Mapped[datetime] = mapped_column(DateTime, default=LOCAL)
    count: Mapped[int] = mapped_column(default=0)
    note: Mapped[str | None] = mapped_column(default=None)
    written: Mapped[datetime] = mapped_column(DateTime, server_default=func.now())


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url, StoredBase)
    yield made
    made.close()


def found(world: World, kind: str) -> dict[str, str]:
    """What `check` finds of this kind, by its subject."""
    database = connect.open_store(connect.resolve_settings(world.url, None, None, "lossy"))[0]
    try:
        questions = [ConditionQuery(spec, database) for spec in world.app.reactions.values()]
        findings = check_database(database, questions, [StoredBase.metadata])
        with database.reading() as connection:
            told = {
                f"{one.table}.{one.column}"
                for one in find_unanswered_states(connection, questions, [])
                if "no clause of its type" in str(one.value)
            }
    finally:
        database.close()
    named = {one.subject: one.words for one in findings if one.kind == kind and one.level == "problem"}
    assert kind != "stored" or told == named.keys()
    return named


def declared(world: World) -> None:
    @world.app.on(Thing, Thing.status == "open", Thing.gift, Thing.size == Size.SMALL, Thing.at < func.now(), Thing.count < 1)
    def opened(thing: Thing) -> None:
        thing.status = "seen"

    @world.app.on(Thing, Thing.note.is_not(None))
    def noted(thing: Thing) -> None:
        thing.note = None

    world.there()


def test_what_sqlalchemy_wrote_is_odd_nowhere(world: World) -> None:
    declared(world)
    world.add(Thing(id=1, gift=True), Thing(id=2, gift=False, size=Size.LARGE, count=7, note="  "))
    assert found(world, "stored") == {}


def test_a_truth_that_sqlite_keeps_as_text_is_named(world: World) -> None:
    declared(world)
    world.add(Thing(id=1))
    if world.postgres:
        assert found(world, "stored") == {}
        return
    named = found(world, "stored")
    assert named.keys() == {"things.gift"}
    assert "'true' (text), which is loaded as True" in named["things.gift"]
    assert "opened does not find them" in named["things.gift"]


def test_an_enum_that_is_written_by_its_value_is_named(world: World) -> None:
    declared(world)
    world.add(Thing(id=1, gift=True))
    world.run("UPDATE things SET size = 's'")
    assert found(world, "stored").keys() == {"things.size"}


def test_text_with_spaces_around_it_is_named(world: World) -> None:
    declared(world)
    world.add(Thing(id=1, gift=True), Thing(id=2, gift=True))
    world.run("UPDATE things SET status = 'open ' WHERE id = 2")
    assert "'open ' with spaces around it, and clauses ask for 'open'" in found(world, "stored")["things.status"]


def test_a_type_that_has_no_equality_is_left_out_and_the_others_are_looked_at(postgres_url: str) -> None:
    class Point(UserDefinedType[str]):
        cache_ok = True

        def get_col_spec(self, **_: Any) -> str:
            return "point"

    class PlaceBase(DeclarativeBase):
        pass

    class Place(PlaceBase):
        __tablename__ = "places"
        id: Mapped[int] = mapped_column(primary_key=True)
        where: Mapped[Any] = mapped_column(Point)
        size: Mapped[Size] = mapped_column(Enum(Size, native_enum=False))

    world = World(postgres_url, PlaceBase)
    try:

        @world.app.on(Place, func.point_above(Place.where, func.point(0, 0)), Place.size == Size.SMALL)
        def seen(place: Place) -> None:
            place.size = Size.LARGE

        world.there()
        world.run("INSERT INTO places (id, \"where\", size) VALUES (1, '(1,1)', 's')")
        assert found(world, "stored").keys() == {"places.size"}
    finally:
        world.close()


def test_times_in_another_form_and_text_among_numbers_are_named(world: World) -> None:
    declared(world)
    world.add(Thing(id=1, gift=True), Thing(id=2, gift=True))
    if world.postgres:
        return  # its types take no such values
    world.run("UPDATE things SET at = '2026-01-02T03:04:05.000000', count = 'none' WHERE id = 2")
    assert found(world, "stored").keys() == {"things.at", "things.count"}


@pytest.mark.parametrize(
    ("clause", "is_odd"), [(Thing.at <= func.now(), False), (Thing.at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), True)]
)
def test_a_time_as_sqlites_own_clock_writes_it_is_odd_only_where_it_is_asked_for_itself(sqlite_url: str, clause: Any, is_odd: bool) -> None:
    world = World(sqlite_url, StoredBase)
    try:

        @world.app.on(Thing, Thing.status == "open", clause)
        def opened(thing: Thing) -> None:
            thing.status = "seen"

        world.add(Thing(id=1, gift=True))
        world.run("UPDATE things SET at = '2026-01-02 03:04:05'")
        assert found(world, "stored").keys() == ({"things.at"} if is_odd else set())
        world.settled()
        with Session(world.engine) as session:
            assert session.get_one(Thing, 1).status == ("open" if is_odd else "seen")
    finally:
        world.close()


@pytest.fixture
def kolkata(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Kolkata")  # half an hour off all others, and the same in each season
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("kolkata")
def test_a_due_column_whose_default_is_the_hosts_wall_clock_is_a_problem(world: World) -> None:
    @world.app.on(Thing, Thing.status == "open", due=Thing.local)
    def local(thing: Thing) -> None:
        thing.status = "seen"

    @world.app.on(Thing, Thing.status == "late", due=Thing.at)
    def right(thing: Thing) -> None:
        thing.status = "seen"

    world.there()
    named = found(world, "time")
    assert named.keys() == {"local"}
    assert "+5.5 h off the database's clock" in named["local"]


def test_local_times_that_stand_there_already_are_due_by_their_zone_on_postgresql(postgres_url: str) -> None:
    world = World(postgres_url, StoredBase)
    try:

        @world.app.on(Thing, Thing.status == "open", due=func.timezone("Asia/Kolkata", Thing.local))
        def local(thing: Thing) -> None:
            thing.status = "seen"

        world.add(Thing(id=1, gift=True), Thing(id=2, gift=True))
        world.run("UPDATE things SET local = (now() AT TIME ZONE 'Asia/Kolkata') - interval '1 minute' WHERE id = 1")
        world.run("UPDATE things SET local = (now() AT TIME ZONE 'Asia/Kolkata') + interval '1 minute' WHERE id = 2")
        world.settled()
        assert [world.get(Thing, number).status for number in (1, 2)] == ["seen", "open"]
    finally:
        world.close()


def test_text_is_a_default_of_sqlite_in_local_time(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()

    class LocalBase(DeclarativeBase):
        pass

    class Alarm(LocalBase):
        __tablename__ = "alarms"
        id: Mapped[int] = mapped_column(primary_key=True)
        at: Mapped[datetime] = mapped_column(DateTime, server_default=text("(datetime('now', 'localtime'))"))
        rang: Mapped[bool] = mapped_column(default=False)

    world = World(sqlite_url, LocalBase)
    try:

        @world.app.on(Alarm, Alarm.rang.is_(False), due=Alarm.at)
        def ring(alarm: Alarm) -> None:
            alarm.rang = True

        world.there()
        assert found(world, "time").keys() == {"ring"}
    finally:
        world.close()
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "UTC"])
def test_a_due_column_whose_server_default_is_in_the_zone_of_who_writes_is_a_problem_where_that_is_not_utc(
    postgres_url: str, zone: str
) -> None:
    world = World(postgres_url, StoredBase)
    try:

        @world.app.on(Thing, Thing.status == "open", due=Thing.written)
        def reminded(thing: Thing) -> None:
            thing.status = "seen"

        world.there()
        world.run(f"ALTER DATABASE {make_url(postgres_url).database} SET TimeZone = '{zone}'")
        named = found(world, "time")
        assert named.keys() == ({"reminded"} if zone != "UTC" else set())
        assert zone == "UTC" or f"whose zone is {zone} here" in named["reminded"]
    finally:
        world.close()


def test_bytes_with_a_nul_in_a_condition_are_written_down_with_an_escape(database_url: str) -> None:
    class Base(DeclarativeBase):
        pass

    class File(Base):
        __tablename__ = "files"
        id: Mapped[int] = mapped_column(primary_key=True)
        head: Mapped[bytes]
        seen: Mapped[bool] = mapped_column(default=False)

    world = World(database_url, Base)
    try:

        @world.app.on(File, File.head == b"\x00\x01", File.seen.is_(False))
        def looked_at(file: File) -> None:
            file.seen = True

        world.add(File(id=1, head=b"\x00\x01"), File(id=2, head=b"\x01"))
        world.settled()
        with Session(world.engine) as session:
            assert [session.get_one(File, number).seen for number in (1, 2)] == [True, False]
    finally:
        world.close()
