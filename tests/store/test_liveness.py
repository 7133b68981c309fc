"""What every kind of lock promises as `Liveness`, with real processes that are killed and forked."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from groundstate.store import postgres_liveness
from groundstate.store.connect import open_store, resolve_settings
from groundstate.store.port import SLOTS_FROM, Liveness
from groundstate.store.postgres_liveness import SessionLiveness
from groundstate.store.sqlite_liveness import FlockLiveness
from groundstate.values.errors import StoppedError, StoreRefusedError
from tests.patience import until
from tests.store.children import forked, holder

ONE, OTHER = 2**62 - 1, 2**61 + 7


class Place:
    """Where lives are held: a maker of them, and how a child process gets there."""

    def __init__(self, url: str, kind: str, make: Callable[[], Liveness]) -> None:
        self.url, self.kind, self._make = url, kind, make
        self.made: list[Liveness] = []

    def lives(self) -> Liveness:
        self.made.append(self._make())
        return self.made[-1]


@pytest.fixture(params=["sqlite", "flock", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "flock":
        url = str(tmp_path / "shop.db")
        place = Place(url, "flock", lambda: FlockLiveness(url))
    else:
        url = request.getfixturevalue(f"{request.param}_url")
        place = Place(url, "own", open_store(resolve_settings(url))[1])
    yield place
    for lives in place.made:
        lives.release()


def test_a_life_is_held_until_it_is_released(place: Place) -> None:
    mine, other = place.lives(), place.lives()
    assert not mine.has_lock()
    mine.take_lock(ONE)
    assert mine.has_lock()
    assert other.alive_by_worker([ONE, OTHER]) == {ONE: True, OTHER: False}
    assert mine.alive_by_worker([ONE, OTHER]) == {ONE: True, OTHER: False}
    mine.release()
    mine.release()
    assert not mine.has_lock()
    until(lambda: other.alive_by_worker([ONE]) == {ONE: False})


def test_a_life_is_not_taken_twice(place: Place) -> None:
    place.lives().take_lock(ONE)
    with pytest.raises(StoreRefusedError, match="is in use"):
        place.lives().take_lock(ONE)


def test_a_second_life_may_follow_the_first(place: Place) -> None:
    lives = place.lives()
    lives.take_lock(ONE)
    lives.take_lock(OTHER)
    assert lives.has_lock()
    until(lambda: lives.alive_by_worker([ONE, OTHER]) == {ONE: False, OTHER: True})


def test_the_living_are_not_adopted(place: Place) -> None:
    mine, other = place.lives(), place.lives()
    mine.take_lock(ONE)
    other.take_lock(OTHER)
    with other.try_to_adopt(ONE) as got:
        assert not got
    with mine.try_to_adopt(ONE) as got:
        assert not got, "a life does not adopt itself"
    assert mine.has_lock()


def test_one_alone_adopts_a_dead_life(place: Place) -> None:
    mine, other = place.lives(), place.lives()
    mine.take_lock(ONE)
    other.take_lock(OTHER)
    dead = 12345
    with mine.try_to_adopt(dead) as got:
        assert got
        with other.try_to_adopt(dead) as too:
            assert not too
        with mine.try_to_adopt(dead) as again:
            assert not again
        assert other.alive_by_worker([dead]) == {dead: True}
    assert other.alive_by_worker([dead]) == {dead: False}

    def fails() -> None:
        with other.try_to_adopt(dead) as got:
            assert got
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    with mine.try_to_adopt(dead) as got:
        assert got


def test_who_is_not_alive_adopts_nobody(place: Place) -> None:
    with place.lives().try_to_adopt(ONE) as got:
        assert not got


def test_a_killed_process_is_dead_and_can_be_adopted(place: Place) -> None:
    mine = place.lives()
    mine.take_lock(OTHER)
    with holder(place.url, ONE, place.kind) as process:
        assert mine.alive_by_worker([ONE]) == {ONE: True}
        with mine.try_to_adopt(ONE) as got:
            assert not got
        process.kill()
        process.wait()
        until(lambda: mine.alive_by_worker([ONE]) == {ONE: False})
    with mine.try_to_adopt(ONE) as got:
        assert got


def test_a_forked_child_is_refused_and_leaves_the_parents_lock(place: Place) -> None:
    mine, other = place.lives(), place.lives()
    mine.take_lock(ONE)

    def child() -> str:
        mine.release()
        said = []
        for use in (
            mine.has_lock,
            lambda: mine.take_lock(OTHER),
            lambda: mine.alive_by_worker([ONE]),
            lambda: mine.try_to_adopt(OTHER).__enter__(),
        ):
            with pytest.raises(StoppedError) as refusal:
                use()
            said.append(str(refusal.value))
        return said[0]

    with forked(child) as said:
        assert "after the fork" in said
        assert mine.has_lock()
        assert other.alive_by_worker([ONE]) == {ONE: True}


def test_a_forked_child_does_not_keep_a_dead_life_alive(place: Place) -> None:
    mine, other = place.lives(), place.lives()
    mine.take_lock(ONE)
    with forked(lambda: "forked") as said:
        assert said == "forked"
        # As the kernel does at a kill: descriptors are closed, nothing is unlocked.
        drop(mine)
        until(lambda: other.alive_by_worker([ONE]) == {ONE: False})


def drop(lives: Liveness) -> None:
    lives.abandon_after_fork()  # type: ignore[attr-defined]  # each kind has it, and the port does not promise it


# Files alone


@pytest.mark.parametrize("place", ["sqlite", "flock"], indirect=True)
def test_a_lock_file_that_was_removed_holds_nothing(place: Place) -> None:
    mine = place.lives()
    mine.take_lock(ONE)
    folder = Path(place.url.removeprefix("sqlite:///")).parent
    for file in folder.glob("*-groundstate-lock*"):
        file.unlink()
    assert not mine.has_lock()


@pytest.mark.parametrize("place", ["sqlite", "flock"], indirect=True)
def test_a_lock_whose_file_another_thread_is_just_closing_is_held_no_more(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = place.lives()
    mine.take_lock(ONE)

    def closed(_file: int) -> os.stat_result:
        raise OSError(errno.EBADF, "Bad file descriptor")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", closed)
        assert not mine.has_lock()
    assert mine.has_lock()


@pytest.mark.parametrize("place", ["flock"], indirect=True)
def test_ended_lives_leave_no_files(place: Place, tmp_path: Path) -> None:
    mine = place.lives()
    mine.take_lock(ONE)
    with mine.try_to_adopt(OTHER) as got:
        assert got
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_room_for_locks_is_refused(tmp_path: Path) -> None:
    lives = open_store(resolve_settings(f"sqlite:///{tmp_path}/nowhere/shop.db"))[1]()
    with pytest.raises(StoreRefusedError, match="cannot be opened"):
        lives.take_lock(ONE)


# PostgreSQL alone


@pytest.fixture
def session_lives(postgres_url: str) -> Iterator[SessionLiveness]:
    lives = open_store(resolve_settings(postgres_url))[1]()
    assert isinstance(lives, SessionLiveness)
    yield lives
    lives.release()


def conninfo(url: str) -> str:
    return url.replace("postgresql+psycopg", "postgresql")


def test_a_lost_connection_is_a_lost_life(session_lives: SessionLiveness, postgres_url: str) -> None:
    session_lives.take_lock(ONE)
    assert session_lives._connection is not None
    pid = session_lives._connection.info.backend_pid
    with psycopg.connect(conninfo(postgres_url), autocommit=True) as other:
        with session_lives.try_to_adopt(OTHER) as got:
            assert got
            other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        assert not session_lives.has_lock()
        with session_lives.try_to_adopt(OTHER) as got:
            assert not got
        assert session_lives.alive_by_worker([ONE]) == {ONE: False}
        session_lives.take_lock(ONE)
        assert session_lives.has_lock()


def test_hazard_31_the_server_looks_after_the_connection_of_a_life(session_lives: SessionLiveness) -> None:
    session_lives.take_lock(ONE)
    assert session_lives._connection is not None
    wanted = {"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "2", "tcp_keepalives_count": "3", "idle_session_timeout": "0"}
    for name, value in wanted.items():
        assert session_lives._connection.execute("SELECT current_setting(%s)", (name,)).fetchone() == (value,)


class TwoSessions:
    """As a pooler in transaction mode: each statement may go to another session than the one before."""

    def __init__(self, first: Any, second: Any) -> None:
        self.sessions = [first, second]

    def execute(self, *statement: Any) -> Any:
        self.sessions.reverse()
        return self.sessions[0].execute(*statement)

    def close(self) -> None:
        for session in self.sessions:
            session.close()


def test_hazard_33_a_pooler_that_changes_sessions_is_refused_at_the_start(
    session_lives: SessionLiveness, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = session_lives._new_connection
    answers = iter([TwoSessions(plain(), plain())])
    monkeypatch.setattr(session_lives, "_new_connection", lambda: next(answers, None) or plain())
    with pytest.raises(StoreRefusedError, match="direct='postgresql://"):
        session_lives.take_lock(ONE)
    assert not session_lives.has_lock()


def test_hazard_33_a_pooler_that_changes_sessions_later_is_seen(session_lives: SessionLiveness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_liveness, "ASK_S", 0.0)  # it is asked now and then, and is to be now
    session_lives.take_lock(ONE)
    other = session_lives._new_connection()
    monkeypatch.setattr(session_lives, "_connection", TwoSessions(session_lives._connection, other))
    assert not session_lives.has_lock()
    assert other.closed


class Generous(psycopg.Connection[Any]):
    """As a database whose advisory locks exclude nobody: whoever asks for one is told that he has it."""

    def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        asks = "SELECT pg_try_advisory_lock" in str(query)
        return super().execute("SELECT %s::bigint IS NOT NULL" if asks else query, *arguments, **options)


def test_hazard_34_locks_that_do_not_exclude_are_refused(session_lives: SessionLiveness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psycopg, "connect", Generous.connect)
    with pytest.raises(StoreRefusedError, match="can hold one advisory lock"):
        session_lives.take_lock(ONE)


def test_a_server_that_is_not_there_is_an_operational_error() -> None:
    lives = open_store(resolve_settings("postgresql://nobody:hunter2@127.0.0.1:1/none"))[1]()
    with pytest.raises(OperationalError) as caught:
        lives.take_lock(ONE)
    assert "hunter2" not in str(caught.value)
    assert lives.alive_by_worker([ONE]) == {ONE: None}


# ---- slots ---------------------------------------------------------------------------------------------------------------------
SLOTS = tuple(SLOTS_FROM + number for number in (0, 1, 2, 2**61 - 1))


def test_of_each_group_of_slots_as_many_are_taken_as_are_wanted_and_free(place: Place) -> None:
    mine, other = place.lives(), place.lives()
    mine.take_lock(ONE)
    other.take_lock(OTHER)
    got = mine.take_slots([(1, SLOTS[:2]), (5, SLOTS[2:])])
    assert len(got & set(SLOTS[:2])) == 1
    assert got >= set(SLOTS[2:])
    assert other.take_slots([(5, SLOTS)]) == set(SLOTS) - got
    assert other.take_slots([(5, sorted(got))]) == set()
    mine.give_slots_back([SLOTS[2]])
    assert other.take_slots([(1, SLOTS[2:])]) == {SLOTS[2]}
    assert mine.has_lock()


def test_slots_die_with_their_life(place: Place) -> None:
    mine, other = place.lives(), place.lives()
    mine.take_lock(ONE)
    assert mine.take_slots([(9, SLOTS)]) == set(SLOTS)
    mine.release()
    other.take_lock(OTHER)
    got: set[int] = set()

    def all_got() -> bool:
        got.update(other.take_slots([(9, [one for one in SLOTS if one not in got])]))
        return got == set(SLOTS)

    until(all_got)


def test_nobody_takes_slots_who_is_not_alive(place: Place) -> None:
    mine = place.lives()
    assert mine.take_slots([(9, SLOTS)]) == set()
    mine.give_slots_back(SLOTS)
    mine.take_lock(ONE)
    assert mine.take_slots([]) == set()
    assert mine.take_slots([(9, SLOTS)]) == set(SLOTS)


def test_a_server_whose_table_of_locks_is_full_gives_no_slots_and_the_life_goes_on(postgres_url: str) -> None:
    mine, other = open_store(resolve_settings(postgres_url))[1](), open_store(resolve_settings(postgres_url))[1]()
    mine.take_lock(ONE)
    other.take_lock(OTHER)
    many = [SLOTS_FROM + number for number in range(200_000)]
    assert mine.take_slots([(len(many), many)]) == set()
    assert mine.has_lock()
    assert len(other.take_slots([(100, many)])) == 100, "what was got before the table was full was kept"
    mine.release()
    other.release()
