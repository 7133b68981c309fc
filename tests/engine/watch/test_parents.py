"""A child that is done wakes its parent, however it was concluded: no sweep is needed for a fan-in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from groundstate import Absent, ExternalService, Failure, InDoubt, Retry, UtcDateTime, after, every_child
from groundstate.engine.operate import actions
from groundstate.engine.sql import commit_hooks
from groundstate.engine.sql.commit_hooks import TouchedRecords
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch import sweeps
from groundstate.engine.watch.hint_publisher import HintPublisher
from groundstate.store import connect
from groundstate.transport.memory import MemoryTransport
from tests.engine.kit import CALL_LIMIT, QUICK, Gateway, World, ms, until


class Base(DeclarativeBase):
    pass


class Video(Base):
    __tablename__ = "parent_videos"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="waiting")
    renditions: Mapped[list[Rendition]] = relationship(back_populates="video")


class Rendition(Base):
    __tablename__ = "parent_renditions"
    id: Mapped[int] = mapped_column(primary_key=True)
    video_id: Mapped[int | None] = mapped_column(ForeignKey("parent_videos.id"), index=True)
    state: Mapped[str] = mapped_column(default="resting")
    file: Mapped[str | None] = mapped_column(default=None)
    due_at: Mapped[datetime] = mapped_column(UtcDateTime, default=lambda: datetime(2020, 1, 1, tzinfo=UTC))
    video: Mapped[Video | None] = relationship(back_populates="renditions")


class Ear:
    """Which videos were named by what the engine itself committed."""

    def __init__(self) -> None:
        self.videos: set[Any] = set()

    def note_commit(self, touched: TouchedRecords) -> None:
        if touched.ours:
            self.videos |= {key[0] for key in touched.keys.get(Video, ())}


@pytest.fixture
def films(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(sweeps, "LOOK_S", 3600)
    monkeypatch.setattr(sweeps, "LOOK_BUSY_S", 3600)
    made = World(database_url, Base)

    @made.app.on(Video, Video.status == "waiting", every_child(Video.renditions, Rendition.file.is_not(None)))
    def ready(video: Video) -> None:
        video.status = "ready"

    yield made
    made.close()


def _call(world: World, policy: Any, *, retry: Retry = QUICK, **options: Any) -> tuple[Gateway, Any]:
    gateway = world.gateway()
    encoder = ExternalService("encoder")

    @encoder.call(in_doubt=policy, timeout=CALL_LIMIT, retry=retry)
    async def encode(one: Rendition) -> str:
        return await gateway.act(one.id)

    if policy.kind == "lookup":

        @encode.lookup
        def _(one: Rendition) -> str | Absent:
            return f"found {one.id}"

    @world.app.on(Rendition, Rendition.state == "raw", call=encode, name="encoded", **options)
    def encoded(one: Rendition, file: str) -> None:
        one.state, one.file = "done", file

    return gateway, encoded


def _set_raw(world: World) -> None:
    with world.session() as session, session.begin():
        session.get_one(Rendition, 1).state = "raw"


def _begin(world: World) -> Any:
    """A worker that is hinted at and does not sweep, and a video with one rendition that rests."""
    world.add(Video(id=1), Rendition(id=1, video_id=1))
    life = world.worker()
    life.quiet()
    life.hints_alone()
    return life


def _plain(world: World) -> Callable[[], None]:
    @world.app.on(Rendition, Rendition.state == "raw")
    def cut(one: Rendition) -> None:
        one.state, one.file = "done", "f"

    return lambda: None


def _plain_one_by_one(world: World) -> Callable[[], None]:
    """Another record of the batch fails, so that it is done with savepoints."""

    @world.app.on(Rendition, Rendition.state == "raw")
    def cut(one: Rendition) -> None:
        if one.id == 2:
            raise RuntimeError("no")
        one.state, one.file = "done", "f"

    return lambda: world.add(Rendition(id=2, video_id=None, state="raw"))


def _called(world: World) -> Callable[[], None]:
    gateway, _ = _call(world, InDoubt.hold())
    gateway.plan(1, "done_hang")

    def then() -> None:
        until(lambda: gateway.waiting == 1)
        gateway.gate.set()

    return then


def _found(world: World) -> Callable[[], None]:
    gateway, _ = _call(world, InDoubt.lookup(settle_after=ms(1)))
    gateway.plan(1, "raise")
    return lambda: None


def _by_a_person(world: World) -> Callable[[], None]:
    gateway, _ = _call(world, InDoubt.hold())
    gateway.plan(1, "raise")

    def then() -> None:
        until(lambda: world.states() == ["held"])
        database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
        try:
            person = actions.build_person(world.app.name, list(world.app.reactions.values()), database, make_lives(), by="ada")
            actions.settle(person, "encoded", "1", outcome='"by hand"')
        finally:
            database.close()

    return then


def _overtaken(world: World) -> Callable[[], None]:
    gateway, encoded = _call(world, InDoubt.hold())
    gateway.plan(1, "done_hang")

    @encoded.overtaken
    def when_overtaken(one: Rendition, file: str) -> None:
        one.file = file

    def then() -> None:
        until(lambda: gateway.waiting == 1)
        world.run("update parent_renditions set state = 'other'")
        gateway.gate.set()

    return then


def _fact_overtaken(world: World) -> Callable[[], None]:
    """By the default: a fact that was NULL is written although the condition is false."""
    gateway = world.gateway()
    encoder = ExternalService("encoder")

    @encoder.call(in_doubt=InDoubt.hold(), timeout=CALL_LIMIT)
    async def encode(one: Rendition) -> str:
        return await gateway.act(one.id)

    @world.app.on(Rendition, Rendition.state == "raw", call=encode, done_column=Rendition.file)
    def encoded(one: Rendition, file: str) -> None:
        one.file = file

    gateway.plan(1, "done_hang")

    def then() -> None:
        until(lambda: gateway.waiting == 1)
        world.run("update parent_renditions set state = 'other'")
        gateway.gate.set()

    return then


def _gave_up(world: World) -> Callable[[], None]:
    gateway, encoded = _call(world, InDoubt.hold(), retry=Retry(times=1))
    gateway.plan(1, "refuse")

    @encoded.gave_up
    def when_gave_up(one: Rendition, failure: Failure) -> None:
        one.state, one.file = "failed", failure.error

    return lambda: None


def _plain_gave_up(world: World) -> Callable[[], None]:
    @world.app.on(Rendition, Rendition.state == "raw", retry=Retry(times=1))
    def cut(_one: Rendition) -> None:
        raise RuntimeError("no")

    @cut.gave_up
    def when_gave_up(one: Rendition, failure: Failure) -> None:
        one.state, one.file = "failed", failure.error

    return lambda: None


def _expired(world: World) -> Callable[[], None]:
    _, encoded = _call(world, InDoubt.hold(), due=after(Rendition.due_at, timedelta(hours=1), valid_for=timedelta(hours=1)))

    @encoded.expired
    def when_expired(one: Rendition) -> None:
        one.state, one.file = "late", "none"

    return lambda: None


def _plain_expired(world: World) -> Callable[[], None]:
    @world.app.on(Rendition, Rendition.state == "raw", due=after(Rendition.due_at, timedelta(hours=1), valid_for=timedelta(hours=1)))
    def cut(one: Rendition) -> None:
        one.state, one.file = "done", "f"

    @cut.expired
    def when_expired(one: Rendition) -> None:
        one.state, one.file = "late", "none"

    return lambda: None


def _tick(world: World) -> Callable[[], None]:
    @world.app.every(timedelta(seconds=1))
    def tidied(session: Session) -> None:
        for one in session.query(Rendition).filter(Rendition.state == "raw"):
            one.state, one.file = "done", "f"

    return lambda: None


WAYS = [
    _plain,
    _plain_one_by_one,
    _called,
    _found,
    _by_a_person,
    _overtaken,
    _fact_overtaken,
    _gave_up,
    _plain_gave_up,
    _expired,
    _plain_expired,
    _tick,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))
def test_a_child_wakes_its_parent_however_it_is_concluded(films: World, way: Callable[[World], Callable[[], None]]) -> None:
    then = way(films)
    _begin(films)
    ear = Ear()
    commit_hooks.add_listener(ear)
    try:
        _set_raw(films)
        then()
        until(lambda: films.get(Video, 1).status == "ready")
        assert ear.videos == {1}
    finally:
        commit_hooks.remove_listener(ear)


def _commit(world: World, act: Callable[[Session], None]) -> None:
    with world.session() as session, session.begin():
        act(session)


def _moves(session: Session) -> None:
    session.get_one(Rendition, 2).video_id = 2


def _moves_by_the_relationship(session: Session) -> None:
    session.get_one(Rendition, 2).video = session.get_one(Video, 2)


def _is_let_go(session: Session) -> None:
    video = session.get_one(Video, 1)
    video.renditions.remove(session.get_one(Rendition, 2))


def _is_deleted(session: Session) -> None:
    session.delete(session.get_one(Rendition, 2))


@pytest.mark.parametrize("act", [_moves, _moves_by_the_relationship, _is_let_go, _is_deleted], ids=lambda act: act.__name__.strip("_"))
def test_the_parent_that_a_child_leaves_is_woken_as_well(films: World, act: Callable[[Session], None]) -> None:
    films.add(Video(id=1), Video(id=2), Rendition(id=1, video_id=1, file="f"), Rendition(id=2, video_id=1))
    life = films.worker()
    life.quiet()
    life.hints_alone()
    _commit(films, act)
    until(lambda: films.get(Video, 1).status == "ready")


def test_a_handler_that_moves_a_child_to_another_parent_wakes_both(films: World) -> None:
    @films.app.on(Rendition, Rendition.state == "raw")
    def moved(one: Rendition) -> None:
        one.state, one.video_id = "moved", 2

    films.add(Video(id=1), Video(id=2), Rendition(id=1, video_id=1, file="f"), Rendition(id=2, video_id=1))
    life = films.worker()
    life.quiet()
    life.hints_alone()
    ear = Ear()
    commit_hooks.add_listener(ear)
    try:
        with films.session() as session, session.begin():
            session.get_one(Rendition, 2).state = "raw"
        until(lambda: films.get(Video, 1).status == "ready")
        assert {1, 2} <= ear.videos
    finally:
        commit_hooks.remove_listener(ear)


def test_a_process_for_hints_alone_tells_of_the_parent_of_what_it_commits(films: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_hooks, "_parents", {})  # as in a process in which no worker ever ran
    films.there()
    database = connect.open_store(films.app.stores[0].settings())[0]
    database.connect()
    ear = _All()
    try:
        HintPublisher("shop", MemoryTransport(), [ConditionQuery(spec, database) for spec in films.app.reactions.values()])
        commit_hooks.add_listener(ear)
        films.add(Video(id=7), Rendition(id=1, video_id=7))
        assert (7,) in ear.videos
        ear.videos.clear()
        with films.session() as session, session.begin():
            session.get_one(Rendition, 1).file = "f"
        assert ear.videos == {(7,)}
    finally:
        commit_hooks.remove_listener(ear)
        database.close()


class _All:
    def __init__(self) -> None:
        self.videos: set[Any] = set()

    def note_commit(self, touched: TouchedRecords) -> None:
        self.videos |= set(touched.keys.get(Video, ()))


def test_a_parent_that_is_not_loaded_with_its_child_makes_all_parents_be_looked_at(films: World) -> None:
    films.worker()
    films.add(Video(id=1), Rendition(id=1, video_id=1))
    with films.session() as session, session.begin():
        one = session.get_one(Rendition, 1)
        session.expire(one, ["video_id"])
        one.file = "f"
        session.flush()
        assert commit_hooks.touched_in_session(session).whole == {Video}
