"""In a batch the condition of each record still holds when its handler runs, as if records were handled one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import ForeignKey, Table, delete, event, exists, func, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column, relationship

from groundstate import ExternalService, Failure, InDoubt, InOrder, Retry, after, every_child
from groundstate.engine.handle import recheck_conditions, run_batch
from groundstate.engine.handle.run_batch import Feed
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.transaction import watch_statements
from groundstate.store import connect
from groundstate.store.tables import UtcDateTime
from tests.engine.kit import World, ms, until

PAIRS = 20


class Base(DeclarativeBase):
    pass


class Job(Base):
    __tablename__ = "again_jobs"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    ran: Mapped[int] = mapped_column(default=0)
    line: Mapped[int | None] = mapped_column(default=None)
    round: Mapped[int] = mapped_column(default=1)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=lambda: datetime.now(UTC) - timedelta(hours=1))
    done_at: Mapped[str | None] = mapped_column(default=None)
    within_id: Mapped[int | None] = mapped_column(ForeignKey("again_jobs.id", ondelete="CASCADE"))
    parts: Mapped[list[Part]] = relationship(order_by="Part.id")
    within: Mapped[list[Job]] = relationship(passive_deletes=True)


class Part(Base):
    __tablename__ = "again_parts"
    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int | None] = mapped_column(ForeignKey("again_jobs.id"))
    ready: Mapped[bool] = mapped_column(default=True)


class Account(Base):
    __tablename__ = "again_accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(default=0)


class Log(Base):
    __tablename__ = "again_log"
    id: Mapped[int] = mapped_column(primary_key=True)
    words: Mapped[str]


class Stop(Base):
    __tablename__ = "again_stops"
    job_id: Mapped[int] = mapped_column(primary_key=True)


JOBS: Table = Job.__table__  # type: ignore[assignment]


@pytest.fixture
def jobs(database_url: str, whole_batches: None) -> Iterator[World]:
    made = World(database_url, Base)
    yield made
    made.close()


def _by_the_session(rival: Job, session: Session) -> None:
    rival.status = "superseded"


def _and_flushed(rival: Job, session: Session) -> None:
    rival.status = "superseded"
    session.flush()


def _deleted(rival: Job, session: Session) -> None:
    session.delete(rival)


def _by_an_update(rival: Job, session: Session) -> None:
    session.execute(update(Job).where(Job.id == rival.id).values(status="superseded"))


def _by_a_delete(rival: Job, session: Session) -> None:
    session.execute(delete(Job).where(Job.id == rival.id))


def _by_its_table(rival: Job, session: Session) -> None:
    session.connection().execute(JOBS.update().where(JOBS.c.id == rival.id).values(status="superseded"))


def _by_a_text(rival: Job, session: Session) -> None:
    session.execute(text("update again_jobs set status = 'superseded' where id = :id"), {"id": rival.id})


WAYS = {
    "session": _by_the_session,
    "flush": _and_flushed,
    "session.delete": _deleted,
    "update": _by_an_update,
    "delete": _by_a_delete,
    "table": _by_its_table,
    "text": _by_a_text,
}


def _once(job: Job, session: Session, way: Callable[[Job, Session], None]) -> None:
    """Of two new jobs one is enough."""
    job.status, job.ran = "running", job.ran + 1
    rival = session.get(Job, job.id ^ 1)
    if rival is not None:
        way(rival, session)


def _pairs() -> list[Job]:
    return [Job(id=number) for number in range(2, 2 * PAIRS + 2)]


def _stored(world: World) -> list[tuple[Any, ...]]:
    with world.session() as session:
        return [tuple(row) for row in session.execute(select(Job.id, Job.status, Job.ran, Job.done_at).order_by(Job.id))]


def _one_is_left_of_each(world: World) -> None:
    running = [key // 2 for key, status, ran, _ in _stored(world) if status == "running" and ran == 1]
    assert sorted(running) == list(range(1, PAIRS + 1)), _stored(world)
    assert not [row for row in _stored(world) if row[1] != "running" and row[2]], "a handler ran on one that was let go"
    assert world.attempts() == []


def _of_pairs(rows: list[tuple[Any, ...]]) -> dict[int, list[Any]]:
    """What each pair is left as, whichever of the two came first."""
    pairs: dict[int, list[Any]] = {}
    for key, *rest in rows:
        pairs.setdefault(key // 2, []).append(rest)
    return {pair: sorted(both, key=str) for pair, both in pairs.items()}


def _one_at_a_time(world: World, act: Callable[[Job, Session], None]) -> list[tuple[Any, ...]]:
    """What a loop leaves that asks the condition before each record."""
    with world.engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
    world.add(*_pairs())
    while True:
        with Session(world.engine) as session, session.begin():
            one = session.scalars(select(Job).where(Job.status == "new").order_by(Job.id).limit(1)).first()
            if one is None:
                return _stored(world)
            act(one, session)


@pytest.mark.parametrize("way", WAYS)
def test_a_record_that_an_earlier_handler_of_its_batch_has_moved_on_is_not_handled(jobs: World, way: str) -> None:
    @jobs.app.on(Job, Job.status == "new")
    def started(job: Job, session: Session) -> None:
        _once(job, session, WAYS[way])

    jobs.add(*_pairs())
    jobs.settled()
    _one_is_left_of_each(jobs)
    ours = _of_pairs(_stored(jobs))
    assert ours == _of_pairs(_one_at_a_time(jobs, lambda job, session: _once(job, session, WAYS[way])))


@pytest.mark.parametrize("way", WAYS)
def test_nor_where_another_record_of_the_batch_fails(jobs: World, way: str) -> None:
    @jobs.app.on(Job, Job.status == "new", retry=Retry(times=3, first=timedelta(hours=1)))
    def started(job: Job, session: Session) -> None:
        if job.id == 100:
            raise RuntimeError("always")
        _once(job, session, WAYS[way])

    jobs.add(*_pairs(), Job(id=100))
    jobs.settled()
    assert [one.record for one in jobs.attempts()] == ["100"]
    running = [key // 2 for key, status, ran, _ in _stored(jobs) if status == "running" and ran == 1]
    assert sorted(running) == list(range(1, PAIRS + 1))


@pytest.mark.parametrize("way", WAYS)
def test_nor_by_the_handler_of_what_is_too_late(jobs: World, way: str) -> None:
    @jobs.app.on(Job, Job.status == "new", due=after(Job.at, valid_for=timedelta(minutes=1)))
    def started(job: Job) -> None:
        raise AssertionError("all are too late")

    @started.expired
    def late(job: Job, session: Session) -> None:
        _once(job, session, WAYS[way])

    jobs.add(*_pairs())
    jobs.settled()
    _one_is_left_of_each(jobs)


def test_nor_by_a_handler_that_gives_up(jobs: World) -> None:
    @jobs.app.on(Job, Job.status == "new", retry=Retry(times=1, first=ms(1)))
    def started(job: Job) -> None:
        raise RuntimeError("always")

    @started.gave_up
    def gave_up(job: Job, failure: Failure, session: Session) -> None:
        _once(job, session, _by_the_session)

    jobs.add(*_pairs())
    life = jobs.worker()
    # What failed waits for its next try, and a worker counts as idle meanwhile.
    until(lambda: not [row for row in _stored(jobs) if row[1] == "new"] and jobs.attempts() == [])
    life.stop()
    _one_is_left_of_each(jobs)


@pytest.mark.parametrize("way", WAYS)
def test_an_outcome_that_an_earlier_one_of_the_same_commit_overtook_is_overtaken(jobs: World, way: str) -> None:
    if "delete" in way:
        pytest.skip("a record with a call in flight may not be deleted")
    service = ExternalService("service")
    late: list[int] = []

    @service.call_many(size=100, in_doubt=InDoubt.hold())
    def ask(some: Sequence[Job]) -> list[str]:
        return ["yes" for _ in some]

    @jobs.app.on(Job, Job.status == "new", call=ask)
    def started(job: Job, outcome: str, session: Session) -> None:
        _once(job, session, WAYS[way])

    @started.overtaken
    def overtaken(job: Job, outcome: str) -> None:
        late.append(job.id)

    jobs.add(*_pairs())
    jobs.settled()
    _one_is_left_of_each(jobs)
    assert len(set(late)) == PAIRS


def test_a_line_goes_on_after_records_of_it_that_were_moved_on(jobs: World) -> None:
    order: list[int] = []

    @jobs.app.on(Job, Job.status == "new", in_order=InOrder(Job.line, Job.id))
    def started(job: Job, session: Session) -> None:
        order.append(job.id)
        _once(job, session, _by_an_update)

    jobs.add(*[Job(id=number, line=number % 3) for number in range(2, 2 * PAIRS + 2)])
    jobs.settled()
    _one_is_left_of_each(jobs)
    for line in range(3):
        assert [key for key in order if key % 3 == line] == sorted(key for key in order if key % 3 == line)


def test_a_record_that_went_into_another_round_is_handled_for_that_round(jobs: World) -> None:
    seen: list[tuple[int, int]] = []

    @jobs.app.on(Job, Job.status == "new", occurrence=[Job.round])
    def started(job: Job, session: Session) -> None:
        seen.append((job.id, job.round))
        assert session.scalar(text("select round from again_jobs where id = :id"), {"id": job.id}) == job.round
        job.status = "running"
        session.execute(text("update again_jobs set round = 2 where id = :id and status = 'new'"), {"id": job.id ^ 1})

    jobs.add(Job(id=2), Job(id=3), Job(id=4), Job(id=5))
    jobs.settled()
    assert jobs.attempts() == []
    assert sorted(round_ for _, round_ in seen) == [1, 1, 2, 2]


def test_a_record_that_was_written_and_still_meets_its_condition_is_handled_as_it_is_now(jobs: World) -> None:
    @jobs.app.on(Job, Job.status == "new")
    def started(job: Job, session: Session) -> None:
        job.status, job.ran = "running", job.ran + 1
        session.execute(text("update again_jobs set ran = ran + 10 where id > :id"), {"id": job.id})

    jobs.add(Job(id=1), Job(id=2), Job(id=3))
    jobs.settled()
    assert [row[2] for row in _stored(jobs)] == [1, 11, 21]


# ---- conditions that read other rows ------------------------------------------------------------------------------------------------
Other = aliased(Job)


def test_a_condition_that_reads_other_rows_of_its_table_is_asked_before_each_handler(jobs: World) -> None:
    @jobs.app.on(Job, Job.status == "new", ~exists().where(Other.line == Job.line, Other.status == "running"))
    def started(job: Job) -> None:
        job.status = "running"

    jobs.add(*[Job(id=number, line=number // 4) for number in range(4, 24)])
    jobs.settled()
    assert sorted(row[0] // 4 for row in _stored(jobs) if row[1] == "running") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("how", ["session", "table", "new"])
def test_a_condition_that_reads_another_table_is_asked_again_where_that_was_written(jobs: World, how: str) -> None:
    @jobs.app.on(Job, Job.status == "new", ~exists().where(Stop.job_id == Job.id))
    def started(job: Job, session: Session) -> None:
        job.status = "running"
        assert session.scalar(select(func.count()).select_from(Stop).where(Stop.job_id == job.id)) == 0, "its condition does not hold"
        if how == "table":
            session.connection().execute(Base.metadata.tables["again_stops"].insert().values(job_id=job.id + 1))
        elif how == "new":
            session.add(Stop(job_id=job.id + 1))
        else:
            session.add(Stop(job_id=job.id + 1))
            session.flush()

    jobs.add(*[Job(id=number) for number in range(1, 10)])
    jobs.settled()
    assert jobs.attempts() == []
    assert 5 <= len([row for row in _stored(jobs) if row[1] == "running"]) < 9


@pytest.mark.parametrize("how", ["member", "collection"])
def test_a_condition_on_every_child_is_asked_again_where_a_child_was_changed(jobs: World, how: str) -> None:
    @jobs.app.on(Job, Job.status == "new", every_child(Job.parts, Part.ready))
    def started(job: Job, session: Session) -> None:
        job.status = "running"
        asked = select(func.count()).select_from(Part).where(Part.job_id == job.id, ~Part.ready)
        assert session.scalar(asked) == 0, "its condition does not hold any more"
        other = session.get(Part, job.id + 1)
        if other is not None and how == "member":
            other.ready = False
        elif other is not None:
            job.parts.append(Part(id=100 + job.id, ready=False))
            session.execute(update(Part).where(Part.id == other.id).values(ready=False))

    jobs.add(*[Job(id=number, parts=[Part(id=number)]) for number in range(1, 10)])
    jobs.settled()
    assert jobs.attempts() == []
    running = {row[0] for row in _stored(jobs) if row[1] == "running"}
    assert 5 <= len(running) < 9


# ---- what the database does by itself -----------------------------------------------------------------------------------------------
OF_SQLITE = (
    "create trigger again_rival after update on again_jobs when new.status = 'running' begin"
    " update again_jobs set status = 'superseded' where id = new.id + 1 - 2 * (new.id % 2) and status = 'new'; end"
)
FUNCTION = (
    "create function again_rival() returns trigger language plpgsql as $$ begin"
    " update again_jobs set status = 'superseded' where id = new.id # 1 and status = 'new'; return new; end $$"
)
OF_POSTGRES = (
    "create trigger again_rival after update on again_jobs for each row when (new.status = 'running') execute function again_rival()"
)


def test_a_record_that_a_trigger_moved_on_is_not_handled(jobs: World) -> None:
    @jobs.app.on(Job, Job.status == "new")
    def started(job: Job) -> None:
        job.status, job.ran = "running", 1

    jobs.there()
    for statement in [FUNCTION, OF_POSTGRES] if jobs.postgres else [OF_SQLITE]:
        jobs.run(statement)
    jobs.add(*_pairs())
    jobs.settled()
    _one_is_left_of_each(jobs)


def test_a_record_that_went_with_another_by_a_foreign_key_is_not_handled(jobs: World) -> None:
    seen: list[int] = []
    if not jobs.postgres:
        pytest.skip("foreign keys are off in SQLite, unless its user turns them on")

    @jobs.app.on(Job, Job.status == "new")
    def started(job: Job, session: Session) -> None:
        seen.append(job.id)
        session.delete(job)

    jobs.add(*[Job(id=number, within_id=None if number % 3 == 1 else number - 1) for number in range(1, 10)])
    jobs.settled()
    assert seen == [1, 4, 7]
    assert _stored(jobs) == []


# ---- what it costs ------------------------------------------------------------------------------------------------------------------
def _its_own(job: Job, session: Session) -> None:
    pass


def _an_account(job: Job, session: Session) -> None:
    account = session.get(Account, job.id % 3)
    assert account is not None
    account.number += 1


def _an_account_each(job: Job, session: Session) -> None:
    account = session.get(Account, job.id)
    assert account is not None
    account.number += 1


def _a_new_row(job: Job, session: Session) -> None:
    session.add(Log(words=f"{job.id}"))


def _a_statement(job: Job, session: Session) -> None:
    session.execute(Base.metadata.tables["again_log"].insert().values(words=f"{job.id}"))


PLAIN = {"own": _its_own, "account": _an_account, "accounts": _an_account_each, "new row": _a_new_row, "statement": _a_statement}


@pytest.mark.parametrize("what", PLAIN)
def test_a_batch_whose_handlers_write_nothing_that_its_condition_reads_asks_nothing_again(jobs: World, what: str) -> None:
    @jobs.app.on(Job, Job.status == "new")
    def started(job: Job, session: Session) -> None:
        PLAIN[what](job, session)
        job.status = "running"

    jobs.add(*[Account(id=number) for number in range(100)])
    watched, ran = _statements(jobs)
    with mock.patch.object(recheck_conditions.BatchWrites, "may_affect_condition_of", return_value=False):
        unwatched, _ = _statements(jobs)
    assert ran == 30
    assert _of_rows(watched) == _of_rows(unwatched)
    assert len(watched) <= len(unwatched) + 4, "it is asked once a minute of each table whether anything hangs on it"


def test_a_batch_of_handlers_that_delete_their_own_records_asks_nothing_again(jobs: World) -> None:
    @jobs.app.on(Stop, Stop.job_id > 0)
    def stopped(stop: Stop, session: Session) -> None:
        session.delete(stop)

    def records() -> list[Any]:
        return [Stop(job_id=number) for number in range(1, 31)]

    watched, ran = _statements(jobs, records)
    with mock.patch.object(recheck_conditions.BatchWrites, "may_affect_condition_of", return_value=False):
        unwatched, _ = _statements(jobs, records)
    assert ran == 30
    assert _of_rows(watched) == _of_rows(unwatched)


def _of_rows(said: list[str]) -> list[str]:
    return [one for one in said if "again_" in one]


def _new_jobs() -> list[Any]:
    return [Job(id=number) for number in range(1, 31)]


def _statements(world: World, records: Callable[[], list[Any]] = _new_jobs) -> tuple[list[str], int]:
    """The statements of one batch of new records, and how many records it carried out."""
    world.add(*records())
    database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
    database.connect()
    watch_statements(database)
    incarnation = Incarnation(world.app.name, database, make_lives(), None)
    query = ConditionQuery(next(iter(world.app.reactions.values())), database)
    said: list[str] = []

    def note_commit(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        said.append(statement)

    event.listen(database.engine, "before_cursor_execute", note_commit)
    try:
        done = run_batch.carry_out_batch(incarnation, query, Feed(limit=500))
    finally:
        database.close()
    world.run("delete from again_jobs")
    return said, done.done
