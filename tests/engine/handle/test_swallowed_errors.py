"""A handler that catches the error of a statement is told which error that was, and what lets it go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import ExternalService, InDoubt, Retry
from tests.engine.kit import World, ms, until

ONCE = Retry(times=1, first=ms(1))


class Base(DeclarativeBase):
    pass


class Tag(Base):
    __tablename__ = "swallowed_tags"
    name: Mapped[str] = mapped_column(primary_key=True)


class Job(Base):
    __tablename__ = "swallowed_jobs"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


@pytest.fixture
def jobs(postgres_url: str) -> Iterator[World]:
    made = World(postgres_url, Base)
    yield made
    made.close()


def _tagged(session: Session) -> None:
    with suppress(Exception):  # it is there already
        session.execute(insert(Tag).values(name="x"))


def _and_changes(job: Job, session: Session) -> None:
    _tagged(session)
    job.status = "done"


def _and_asks(job: Job, session: Session) -> None:
    _tagged(session)
    session.scalar(select(Tag.name).limit(1))
    job.status = "done"


def _and_asks_in_vain(job: Job, session: Session) -> None:
    _and_asks_and_catches(session)
    job.status = "done"


def _and_asks_and_catches(session: Session) -> None:
    _tagged(session)
    with suppress(Exception):  # that one as well
        session.execute(text("select 1"))


def _by_the_connection(job: Job, session: Session) -> None:
    with suppress(Exception):  # it is there already
        session.connection().execute(Tag.__table__.insert().values(name="x"))  # type: ignore[attr-defined]
    job.status = "done"


WAYS: dict[str, Callable[[Job, Session], None]] = {
    "changes": _and_changes,
    "asks": _and_asks,
    "asks in vain": _and_asks_in_vain,
    "connection": _by_the_connection,
}


def _says_both(error: str | None) -> None:
    assert error is not None
    assert "swallowed_tags_pkey" in error, "the error that was caught"
    assert "with session.begin_nested():" in error, "the cure"
    assert "current transaction is aborted" not in error
    assert "test_swallowed_errors.py" in error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_swallowed_error_is_named_with_its_cure(jobs: World, way: str, count: int) -> None:
    @jobs.app.on(Job, Job.status == "new", retry=ONCE)
    def done(job: Job, session: Session) -> None:
        if job.id < 100:
            WAYS[way](job, session)
        job.status = "done"

    jobs.add(Tag(name="x"), *[Job(id=number) for number in range(1, count + 1)], Job(id=100))
    jobs.settled()
    assert [one.record for one in jobs.attempts()] == [str(number) for number in range(1, count + 1)]
    for attempt in jobs.attempts():
        _says_both(attempt.error)
    assert jobs.get(Job, 100).status == "done"


def test_the_cure_cures(jobs: World) -> None:
    @jobs.app.on(Job, Job.status == "new", retry=ONCE)
    def done(job: Job, session: Session) -> None:
        with suppress(Exception), session.begin_nested():  # it is there already
            session.execute(insert(Tag).values(name="x"))
        job.status = "done"

    jobs.add(Tag(name="x"), *[Job(id=number) for number in range(1, 4)])
    jobs.settled()
    assert jobs.attempts() == []
    assert [jobs.get(Job, number).status for number in (1, 2, 3)] == ["done"] * 3


def test_it_is_named_beside_an_outcome(jobs: World) -> None:
    service = ExternalService("service")

    @service.call(in_doubt=InDoubt.hold())
    def ask(job: Job) -> str:
        return "yes"

    @jobs.app.on(Job, Job.status == "new", call=ask)
    def done(job: Job, outcome: str, session: Session) -> None:
        _and_changes(job, session)

    jobs.add(Tag(name="x"), Job(id=1), Job(id=2))
    jobs.settled()
    for attempt in jobs.attempts():
        _says_both(attempt.error)
        assert attempt.outcome == '["yes"]'
    assert len(jobs.attempts()) == 2


def test_it_is_named_of_a_tick(jobs: World) -> None:
    @jobs.app.every("* * * * *", retry=ONCE, missed="latest")
    def swept(session: Session) -> None:
        _tagged(session)
        session.execute(text("select 1"))

    jobs.add(Tag(name="x"))
    jobs.settled()
    jobs.forward(120)
    jobs.settled()
    _says_both(jobs.attempt().error)


def test_it_is_named_of_prepare(jobs: World) -> None:
    service = ExternalService("service")

    @service.call(in_doubt=InDoubt.hold(), retry=ONCE)
    def ask(number: int) -> str:
        return "yes"

    def prepared(job: Job, session: Session) -> int:
        with suppress(Exception):  # as above
            session.execute(text("select 1 / 0"))
        return job.id

    @jobs.app.on(Job, Job.status == "new", call=ask, prepare=prepared)
    def done(job: Job, outcome: str) -> None:
        job.status = "done"

    jobs.add(Job(id=1))
    jobs.worker()
    until(lambda: jobs.states() in (["failed"], ["held"]))
    assert "division by zero" in (jobs.attempt().error or "")
    assert "begin_nested" in (jobs.attempt().error or "")


def test_an_error_of_a_savepoint_is_not_named_for_a_later_one(jobs: World) -> None:
    @jobs.app.on(Job, Job.status == "new", retry=ONCE)
    def done(job: Job, session: Session) -> None:
        with suppress(Exception), session.begin_nested():  # as above
            session.execute(text("select 1 / 0"))
        _and_asks(job, session)

    jobs.add(Tag(name="x"), Job(id=1))
    jobs.settled()
    _says_both(jobs.attempt().error)
