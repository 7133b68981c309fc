"""Two versions of one condition side by side: what both match either carries out, and what only one matches waits for a person (A18)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import ColumnElement, ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from groundstate import ExternalService, InDoubt, InOrder, UtcDateTime
from groundstate.engine.operate.fleet_status import build_overview
from groundstate.engine.operate.why import explain_record
from groundstate.engine.recover import admission
from groundstate.engine.rows import reaction_registry
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from groundstate.store.port import Database, Liveness
from groundstate.store.tables import reaction
from tests.engine.kit import CALL_LIMIT, QUICK, World, until


class Base(DeclarativeBase): ...


class Mail(Base):
    __tablename__ = "mails"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    kind: Mapped[str] = mapped_column(default="letter")
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=lambda: datetime.now(UTC) - timedelta(hours=1))
    stamps: Mapped[list[Stamp]] = relationship()


class Stamp(Base):
    __tablename__ = "stamps"
    id: Mapped[int] = mapped_column(primary_key=True)
    mail_id: Mapped[int] = mapped_column(ForeignKey(Mail.id))


def plainly(world: World, *clauses: Any) -> None:
    @world.app.on(Mail, *clauses, name="sent")
    def _(mail: Mail) -> None:
        mail.status = "sent"


def called(world: World, *clauses: Any, **options: Any) -> None:
    post = ExternalService("post", limit=5)

    @post.call(in_doubt=InDoubt.hold(), timeout=CALL_LIMIT, retry=QUICK)
    async def send(_mail: Mail) -> str:
        return "sent"

    @world.app.on(Mail, *clauses, call=send, name="sent", **options)
    def _(mail: Mail, outcome: str) -> None:
        mail.status = outcome


def in_line(world: World, *clauses: Any) -> None:
    called(world, *clauses, in_order=InOrder(Mail.at, Mail.id))


def when_due(world: World, *clauses: Any) -> None:
    @world.app.on(Mail, *clauses, due=Mail.at, name="sent")
    def _(mail: Mail) -> None:
        mail.status = "sent"


Shape = Callable[..., None]
SHAPES = {"plainly": plainly, "by a call": called, "in order": in_line, "when due": when_due}
WIDE, NARROW = (Mail.status == "placed",), (Mail.status == "placed", Mail.kind == "letter")


class Versions:
    """The database, and worlds of the versions on it."""

    def __init__(self, first: World, shape: Shape) -> None:
        self._first, self._shape, self._made = first, shape, [first]

    def of(self, clauses: tuple[Any, ...], *, first: bool = False) -> World:
        """A new process's code."""
        world = self._first if first else World(self._first.url, Base)
        if not first:
            world._there = True
            self._made.append(world)
        self._shape(world, *clauses)
        return world

    def close(self) -> None:
        for world in reversed(self._made[1:]):
            world.close()

    def mail(self, number: int, kind: str = "letter") -> None:
        self._first.add(Mail(id=number, kind=kind))

    def stamped(self, number: int) -> None:
        self._first.add(Mail(id=number, stamps=[Stamp(id=number)]))

    def sent(self) -> list[int]:
        with self._first.session() as session:
            return list(session.scalars(select(Mail.id).where(Mail.status == "sent").order_by(Mail.id)))

    def accepted(self) -> tuple[str, tuple[str, ...]]:
        with self._first.engine.connect() as connection:
            known = reaction_registry.read_known_reactions(connection, "shop")["sent"]
            return known.condition, known.earlier


@pytest.fixture(params=SHAPES)
def versions(request: pytest.FixtureRequest, database_url: str) -> Iterator[Versions]:
    first = World(database_url, Base)
    made = Versions(first, SHAPES[request.param])
    yield made
    made.close()
    first.close()


Asked = tuple[Database, list[ConditionQuery], Liveness]


@contextmanager
def asked(world: World) -> Iterator[Asked]:
    database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
    try:
        yield database, [ConditionQuery(spec, database) for spec in world.app.reactions.values()], make_lives()
    finally:
        database.close()


def next_of(world: World, number: int) -> str:
    with asked(world) as (database, questions, lives):
        [answer] = explain_record("shop", database, questions, lives, "mails", str(number)).answers
        return answer.next


def is_on(world: World) -> tuple[bool, bool]:
    """Whether all of it is carried out, and whether a part of it is."""
    with asked(world) as (database, questions, lives):
        [one] = build_overview("shop", database, questions, [], liveness=lives).reactions
        return one.on, one.partly


def test_of_a_widened_condition_what_both_match_goes_on_and_an_old_worker_takes_back_no_acceptance(versions: Versions) -> None:
    old = versions.of(NARROW, first=True).there()
    versions.mail(1, "parcel")
    versions.mail(5)
    new = versions.of(WIDE)
    assert next_of(new, 5) == "carried out as soon as a worker runs"
    assert "newly matches 1 row that was" in next_of(new, 1)
    runs = new.worker()
    until(lambda: len(runs.worker.refused_reactions) == 1)
    assert "carries out only what the accepted condition matches as well" in runs.worker.refused_reactions[0].message
    versions.mail(2)
    versions.mail(3, "parcel")
    runs.quiet()
    assert versions.sent() == [2, 5]
    assert "newly matches 2 rows that were" in next_of(new, 3)
    assert is_on(new) == (False, True)
    new.app.init(accept=["sent=call"] if versions._shape in (called, in_line) else ["sent"])
    until(lambda: versions.sent() == [1, 2, 3, 5])
    assert is_on(new) == (True, False)
    runs.stop()
    wide, earlier = versions.accepted()
    old.settled()  # an old worker that is started once more, such as by its supervisor
    assert versions.accepted() == (wide, earlier)
    versions.mail(4, "parcel")
    again = versions.of(WIDE)
    again.settled()
    assert (versions.sent(), again.lives[-1].worker.refused_reactions) == ([1, 2, 3, 4, 5], [])


def test_a_narrowed_condition_that_is_rolled_back_carries_out_what_both_match_and_asks_for_the_rest(versions: Versions) -> None:
    versions.of(WIDE, first=True).there()
    new = versions.of(NARROW)
    new.settled()
    versions.mail(1, "parcel")
    versions.mail(2)
    new.settled()
    assert versions.sent() == [2]
    old = versions.of(WIDE)
    runs = old.worker()
    until(lambda: len(runs.worker.refused_reactions) == 1)
    assert "another condition was accepted after this one, and 1 row matches only this one" in runs.worker.refused_reactions[0].message
    versions.mail(3)
    runs.quiet()
    assert versions.sent() == [2, 3]
    assert "another condition was accepted after this one" in next_of(old, 1)
    old.app.init(accept=["sent=call"] if versions._shape in (called, in_line) else ["sent"])
    until(lambda: versions.sent() == [1, 2, 3])


def test_older_code_that_runs_alone_for_a_day_is_what_is_meant_and_the_newer_asks_again(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "OLDER_EACH_S", 0.0)
    old = versions.of(NARROW, first=True).there()
    narrow, _ = versions.accepted()
    new = versions.of(WIDE)
    new.settled()  # nothing is there that only the wider one matches
    wide, earlier = versions.accepted()
    assert (wide != narrow, earlier) == (True, (narrow,))
    runs = old.worker()  # rolled back
    runs.quiet()
    assert versions.accepted() == (wide, (narrow,))
    versions.mail(1, "parcel")
    versions.mail(2)
    old.forward(25 * 3600)
    until(lambda: versions.accepted() == (narrow, (wide,)))
    until(lambda: versions.sent() == [2])
    assert not old.lives[-1].worker.queues[0].query.narrowed
    runs.stop()
    again = versions.of(WIDE)
    again.forward(25 * 3600)
    again.settled()
    assert ([one.rows for one in again.lives[-1].worker.refused_reactions], versions.sent()) == ([1], [2])


def test_what_somebody_edited_to_be_no_array_of_conditions_is_none(database_url: str) -> None:
    world = World(database_url, Base)
    plainly(world, *WIDE)
    world.there()
    for written in ("nonsense", "{}", "[1]", "null", "[" * 100_000):
        with world.engine.begin() as connection:
            connection.execute(reaction.update().where(reaction.c.name == "sent").values(earlier=written))
        with world.engine.connect() as connection:
            assert reaction_registry.read_known_reactions(connection, "shop")["sent"].earlier == ()
    world.close()


@pytest.mark.parametrize("stamped", [Mail.stamps.any, lambda: select(Stamp.id).where(Stamp.mail_id == Mail.id).exists()])
def test_an_accepted_condition_that_asks_other_rows_of_the_record_asks_those_of_each_record(
    versions: Versions, stamped: Callable[[], ColumnElement[bool]]
) -> None:
    versions.of((*WIDE, stamped()), first=True).there()
    versions.mail(1)
    versions.stamped(2)
    new = versions.of(WIDE)
    assert "newly matches 1 row that was" in next_of(new, 1)
    new.worker().quiet()
    assert versions.sent() == [2]
