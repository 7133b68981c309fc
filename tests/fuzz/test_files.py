"""Files that somebody damaged, locked, filled or took the rights from: told in words, with a documented exit code, and nothing is lost."""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError

from groundstate.cli.common import error_in_words
from groundstate.engine.operate import action
from groundstate.engine.recover import startup
from groundstate.rules.attempt import State
from groundstate.store import sqlite
from groundstate.values.errors import GroundstateError
from tests.cli.conftest import Said, Shop
from tests.fuzz.conftest import examples
from tests.fuzz.test_attempt_rows import packed, rows, working
from tests.patience import until

NOBODY = 65534
READS = [["pending", "--states"], ["pending", "--json"], ["why", "orders", "1"], ["held", "--long"], ["check"]]
WRITES = [["retry", "mailed", "3"], ["settle", "paid", "2", "--outcome", '"r"'], ["forget", "paid", "1"], ["trust"], ["init"]]


@pytest.fixture
def filled(sqlite_shop: Shop) -> Shop:
    """A shop with something in each table, as one file."""
    shop = sqlite_shop
    shop.sql(
        "INSERT INTO orders (status) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400) SELECT 'paid' FROM n"
    )
    for number, state in enumerate((State.FAILED, State.HELD, State.HELD, State.DOUBT, State.BEGUN), 1):
        shop.attempt("mailed" if number == 3 else "paid", str(number), state, why="by the test", unsure=number == 2, failures=1)
    shop.sql(
        "INSERT INTO groundstate_worker (id, app, host, pid, began_at, ended_at, begins)"
        " VALUES (7, 'x', 'h', 1, '2026-01-01 00:00:00.000000', NULL, 0)"
    )
    for database in shop.opened:
        database.close()
    shop.engine.dispose()
    with sqlite3.connect(_path(shop)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return shop


def _path(shop: Shop) -> Path:
    return Path(shop.url.removeprefix("sqlite:///"))


def _put(shop: Shop, content: bytes) -> None:
    path = _path(shop)
    for name in ("", "-wal", "-shm"):
        path.with_name(path.name + name).unlink(missing_ok=True)
    path.write_bytes(content)


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    kind, seed = draw(st.sampled_from(["cut", "page", "zeros", "noise", "empty"])), draw(st.integers(0, 10_000))
    dice = random.Random(seed)

    def damage(good: bytes) -> bytes:
        content = bytearray(good)
        if kind == "cut":
            return bytes(content[: dice.randrange(1, len(content))])
        if kind == "page":
            return bytes(content[: 4096 * dice.randrange(1, len(content) // 4096)])
        if kind == "empty":
            return b""
        for _ in range(dice.randrange(1, 6)):
            start, length = dice.randrange(len(content)), dice.randrange(1, 5000)
            some = bytes(length) if kind == "zeros" else dice.randbytes(length)
            content[start : start + length] = some[: len(content) - start]
        return bytes(content)

    return damage


@examples(8)
@given(damages())
def test_a_damaged_file_is_told_by_each_command_and_a_worker_starts_or_says_why_not(filled: Shop, damage: Callable[[bytes], bytes]) -> None:
    good = filled.__dict__.setdefault("good", _path(filled).read_bytes())
    bad = damage(good)
    for command in (*READS, *WRITES):
        _put(filled, bad)
        said = filled.run(*command)
        assert said.code in (0, 1, 3, 4), (command, said)
        assert "Traceback" not in said.out + said.err
        assert "--debug" not in said.err, (command, said)
    _put(filled, bad)
    app = importlib.import_module(filled.module).app
    try:
        app.start()
        failure = app.failure
        app.stop(timedelta(seconds=1))
    except (GroundstateError, DBAPIError) as error:
        failure = error
    assert failure is None or "--debug" not in error_in_words(failure)
    _put(filled, good)


def test_a_damaged_file_names_the_cure_wherever_the_damage_lies(filled: Shop) -> None:
    good = bytearray(_path(filled).read_bytes())
    for page in range(1, len(good) // 4096):
        good[4096 * page : 4096 * page + 200] = b"\xff" * 200
    _put(filled, bytes(good))
    for command in (["pending"], ["retry", "paid", "1"], ["init"], ["run"]):
        said = filled.run(*command)
        assert said.code == 4, said
        assert "damaged" in said.err
        assert "put back a backup" in said.err


# ---- rights, locks, room ---------------------------------------------------------------------------------------------------------
def in_a_child(shop: Shop, *arguments: str, before: Callable[[], None]) -> Said:
    """The command in a child that can be limited, with all that it imports imported before."""
    shop.run(*arguments, "--help")
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads: the child uses none of theirs
        child = os.fork()
    if child == 0:
        said = Said(99, "", "")
        with suppress(BaseException):
            before()
            said = shop.run(*arguments)
        os.write(writing, json.dumps([said.code, said.out, said.err]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        code, out, err = json.loads(answer.read())
    os.waitpid(child, 0)
    return Said(code, out, err)


def as_nobody() -> None:
    """Rights bind again. Who is not root has no need of it."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


@pytest.fixture
def public(filled: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """The same shop where everybody may look."""
    folder = Path("/tmp") / f"groundstate-fuzz-{os.getpid()}-{random.randrange(10**9)}"
    folder.mkdir()
    shutil.copy(_path(filled), folder / "test.db")
    module = importlib.import_module(filled.module)
    store = module.app.stores[0]
    monkeypatch.setattr(type(store), "settings", _settings_at(store, f"sqlite:///{folder}/test.db"))
    folder.chmod(0o755)
    filled.run("pending")  # whatever a command imports late is imported by root
    yield Shop(f"sqlite:///{folder}/test.db", filled.name, filled.module, filled.engine)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def _settings_at(store: object, url: str) -> Callable[..., object]:
    from groundstate.store import connect

    return lambda _store: connect.resolve_settings(url)


@pytest.mark.parametrize(("of_file", "of_folder"), [(0o444, 0o755), (0o444, 0o555), (0o644, 0o555), (0o000, 0o755)])
def test_a_file_or_folder_without_the_right_to_write_is_told_and_left_as_it_is(public: Shop, of_file: int, of_folder: int) -> None:
    path = _path(public)
    for one in path.parent.iterdir():
        if one != path:
            one.unlink()
    path.chmod(of_file)
    path.parent.chmod(of_folder)
    before = path.read_bytes()
    for command in (["retry", "mailed", "3"], ["settle", "paid", "2", "--outcome", '"r"'], ["init"], ["run"], ["trust"]):
        said = in_a_child(public, *command, before=as_nobody)
        assert said.code == 4, (command, said)
        assert str(path) in said.err
        assert "let this user" in said.err
    for command in (["pending"], ["held"]):
        said = in_a_child(public, *command, before=as_nobody)
        assert said.code == 4, (command, said)
        assert "Traceback" not in said.err
    assert path.read_bytes() == before


def without_room(shop: Shop) -> Callable[[], None]:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        action.PATIENCE_S = startup.LOCKED_OUT_S = 0.1
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    return limit


def test_without_room_on_the_disk_nothing_is_done_and_nothing_is_lost(filled: Shop) -> None:
    before = _path(filled).read_bytes()
    for command in (["init"], ["run"], ["retry", "mailed", "3"], ["settle", "paid", "2", "--outcome", '"r"'], ["trust"]):
        said = in_a_child(filled, *command, before=without_room(filled))
        assert said.code in (1, 4), (command, said)
        assert "disk" in said.err, (command, said)
        assert "Traceback" not in said.err
    assert _path(filled).read_bytes() == before
    assert filled.run("retry", "mailed", "3").code in (0, 1)


def test_a_person_meets_a_lock_of_somebody_elses_for_some_seconds_and_is_told(filled: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "WAIT", timedelta(milliseconds=50))
    monkeypatch.setattr(action, "PATIENCE_S", 0.1)
    other = sqlite3.connect(_path(filled), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        for command in (*WRITES, ["rename", "paid", "charged"]):
            said = filled.run(*command)
            assert said.code in (1, 4) if command != ["init"] else said.code in (0, 4), (command, said)
            assert said.code == 0 or "try again" in said.err, (command, said)
        for command in READS:
            assert filled.run(*command).code in (0, 1), command
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert filled.run("settle", "paid", "2", "--outcome", '"r"').code in (0, 1)


# ---- beside the database ---------------------------------------------------------------------------------------------------------
def _spoilt(path: Path, kind: str) -> None:
    match kind:
        case "folder":
            path.mkdir()
        case "noise":
            path.write_bytes(os.urandom(10_000))
        case "link":
            path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize("kind", ["folder", "noise", "link"])
def test_rubbish_in_place_of_the_lock_file_is_refused_or_locked_all_the_same(sqlite_shop: Shop, kind: str) -> None:
    shop = sqlite_shop
    lock = Path(f"{_path(shop)}-groundstate-lock")
    lock.unlink(missing_ok=True)
    _spoilt(lock, kind)
    shop.order("placed", 2)
    shop.attempt("mailed", "9", State.BEGUN)
    for command in (*READS, ["rename", "mailed", "sent"], ["rename", "sent", "mailed"]):
        said = shop.run(*command)
        assert said.code in (0, 1), (command, said)
    if kind == "folder":
        said = shop.run("run")
        assert said.code == 4
        assert str(lock) in said.err
        return
    with working(shop):
        until(lambda: packed(shop, 1, 2))


@pytest.mark.parametrize("kind", ["folder", "noise", "link"])
def test_rubbish_in_place_of_a_witness_stops_nobody(sqlite_shop: Shop, kind: str) -> None:
    shop = sqlite_shop
    _spoilt(_path(shop).with_name("test.db-groundstate-witness-7"), kind)
    shop.sql(
        "INSERT INTO groundstate_worker (id, app, host, pid, began_at, ended_at, begins)"
        " VALUES (7, 'x', 'h', 1, '2026-01-01 00:00:00.000000', NULL, 0)"
    )
    shop.order("placed", 2)
    with working(shop):
        until(lambda: packed(shop, 1, 2))
        until(lambda: rows(shop, "SELECT ended_at IS NULL FROM groundstate_worker WHERE id = 7") in ([], [(0,)]))
    assert shop.report()["suspects"] == []
