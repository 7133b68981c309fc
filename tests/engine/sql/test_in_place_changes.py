"""What a handler changes inside of a value, where SQLAlchemy does not see it, is its record's failure and no silent loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import JSON, PickleType, select, update
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.orm.attributes import flag_modified

from groundstate import ExternalService, InDoubt, Retry
from tests.engine.kit import World, ms


class Base(DeclarativeBase):
    pass


class Paper(Base):
    __tablename__ = "paper"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    done: Mapped[str | None] = mapped_column(default=None)
    data: Mapped[Any] = mapped_column(JSON, default=lambda: {"items": [], "n": 1})
    told: Mapped[Any] = mapped_column(MutableDict.as_mutable(JSON), default=lambda: {"items": []})
    things: Mapped[Any] = mapped_column(PickleType, default=lambda: [1, (2, [3])])

    def mark(self) -> None:
        self.data["marked"] = True


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url, Base)
    yield made
    made.close()


Edit = Callable[[Paper, Session], None]


def by_an_alias(paper: Paper, session: Session) -> None:
    data = paper.data
    data["n"] = 2
    paper.data = data


def by_a_method(paper: Paper, session: Session) -> None:
    paper.mark()


def by_what_was_got_of_it(paper: Paper, session: Session) -> None:
    paper.data.get("items").append(1)


def by_an_operator(paper: Paper, session: Session) -> None:
    paper.data |= {"n": 2}


def by_a_shallow_copy(paper: Paper, session: Session) -> None:
    paper.data["items"].append(1)
    paper.data = dict(paper.data)


def within_a_mutable(paper: Paper, session: Session) -> None:
    paper.told["items"].append(1)


def within_a_pickle(paper: Paper, session: Session) -> None:
    paper.things[1][1].append(4)


def true_for_one(paper: Paper, session: Session) -> None:
    paper.data["n"] = True


LOST = [
    (by_an_alias, "data"),
    (by_a_method, "data"),
    (by_what_was_got_of_it, "data"),
    (by_an_operator, "data"),
    (by_a_shallow_copy, "data"),
    (within_a_mutable, "told"),
    (within_a_pickle, "things"),
    (true_for_one, "data"),
]


def flagged(paper: Paper, session: Session) -> None:
    paper.data["n"] = 2
    flag_modified(paper, "data")


def flagged_and_flushed(paper: Paper, session: Session) -> None:
    flagged(paper, session)
    session.flush()


def made_anew(paper: Paper, session: Session) -> None:
    paper.data = {**paper.data, "n": 2}


def made_anew_and_flushed(paper: Paper, session: Session) -> None:
    made_anew(paper, session)
    session.flush()


def of_a_mutable(paper: Paper, session: Session) -> None:
    paper.told["items"].append(1)
    paper.told["n"] = 2


def of_a_mutable_and_flushed(paper: Paper, session: Session) -> None:
    of_a_mutable(paper, session)
    session.flush()


def by_a_statement(paper: Paper, session: Session) -> None:
    paper.data["n"] = 2
    session.execute(update(Paper).where(Paper.id == paper.id).values(data=paper.data))


def there_and_back(paper: Paper, session: Session) -> None:
    paper.data["n"] = 2
    paper.data["n"] = 1
    paper.data["items"] = paper.data.pop("items")


def deleted(paper: Paper, session: Session) -> None:
    paper.data["n"] = 2
    session.delete(paper)


WRITTEN = [
    (flagged, {"n": 2, "items": []}),
    (flagged_and_flushed, {"n": 2, "items": []}),
    (made_anew, {"n": 2, "items": []}),
    (made_anew_and_flushed, {"n": 2, "items": []}),
    (of_a_mutable, {"n": 1, "items": []}),
    (of_a_mutable_and_flushed, {"n": 1, "items": []}),
    (by_a_statement, {"n": 2, "items": []}),
    (there_and_back, {"n": 1, "items": []}),
]


def declare(world: World, edit: Edit, **options: Any) -> None:
    @world.app.on(Paper, Paper.status == "new", **options)
    def edited(paper: Paper, session: Session) -> None:
        if paper.done != "leave it":
            edit(paper, session)
        paper.status = "edited"


def paper(world: World, number: int) -> Any:
    with world.session() as session:
        return session.scalars(select(Paper).where(Paper.id == number)).one()


@pytest.mark.parametrize(("edit", "name"), LOST, ids=[edit.__name__ for edit, _ in LOST])
def test_a_change_that_would_be_lost_is_the_failure_of_its_record_and_the_others_go_on(world: World, edit: Edit, name: str) -> None:
    declare(world, edit, retry=Retry(times=1))
    world.add(*[Paper(id=number, done="leave it" if number == 2 else None) for number in (1, 2, 3)])
    world.settled()
    assert [paper(world, number).status for number in (1, 2, 3)] == ["new", "edited", "new"]
    for one in world.attempts():
        assert f"the handler changed the inside of Paper.{name}, which SQLAlchemy does not see" in (one.error or "")
        assert f"flag_modified(record, '{name}')" in (one.error or "")
    assert [one.record for one in world.attempts()] == ["1", "3"]


@pytest.mark.parametrize(("edit", "data"), WRITTEN, ids=[edit.__name__ for edit, _ in WRITTEN])
def test_a_change_that_is_written_or_taken_back_is_none(world: World, edit: Edit, data: Any) -> None:
    declare(world, edit)
    world.add(Paper(id=1), Paper(id=2))
    world.settled()
    assert world.attempts() == []
    assert [(paper(world, number).status, paper(world, number).data) for number in (1, 2)] == [("edited", data)] * 2


def test_what_is_changed_inside_of_a_record_that_is_deleted_is_no_loss(world: World) -> None:
    declare(world, deleted)
    world.add(Paper(id=1))
    world.settled()
    assert world.attempts() == []
    with world.session() as session:
        assert session.scalars(select(Paper)).all() == []


def test_a_change_that_a_mutable_sees_brings_what_is_within_it_along(world: World) -> None:
    declare(world, of_a_mutable)
    world.add(Paper(id=1))
    world.settled()
    assert paper(world, 1).told == {"items": [1], "n": 2}


def test_gave_up_changes_nothing_unseen_either(world: World, caplog: pytest.LogCaptureFixture) -> None:
    @world.app.on(Paper, Paper.status == "new", retry=Retry(times=1))
    def edited(paper: Paper) -> None:
        raise RuntimeError("a bug")

    @edited.gave_up
    def _(paper: Paper, failure: Any) -> None:
        paper.data["error"] = str(failure)
        paper.status = "given up"

    world.add(Paper(id=1))
    world.settled()
    assert paper(world, 1).status == "new"
    assert "its gave_up handler failed: the handler changed the inside of Paper.data" in caplog.text


def test_the_handler_of_a_call_that_loses_a_change_holds_the_outcome(world: World) -> None:
    calls: list[int] = []

    @ExternalService("press").call(in_doubt=InDoubt.repeat(), retry=Retry(times=1, first=ms(5)))
    def print_it(paper: Paper) -> str:
        calls.append(paper.id)
        return "printed"

    @world.app.on(Paper, Paper.status == "new", call=print_it)
    def printed(paper: Paper, outcome: str, session: Session) -> None:
        by_a_method(paper, session)
        paper.status = "printed"

    world.add(Paper(id=1))
    world.settled()
    assert (paper(world, 1).status, world.states(), calls) == ("new", ["held"], [1])
    assert "the handler changed the inside of Paper.data" in (world.attempt().error or "")
