"""What is said of a database in trouble: in its words, with the cure, and not again and again."""

from __future__ import annotations

import logging
import sqlite3
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from groundstate import Retry
from groundstate.cli.common import error_in_words
from groundstate.clock import SYSTEM_CLOCK
from groundstate.engine.recover import startup
from groundstate.engine.schedule.run_ticks import TickRunner, _SchedulePlan
from groundstate.engine.sql import db_errors
from groundstate.engine.sql.safe_text import describe_exception, safe_str
from groundstate.store.postgres import silence_driver_warnings
from groundstate.values.errors import StoreRefusedError
from tests.engine.kit import Order, World

FULL = sqlite3.OperationalError("database or disk is full")
OF_SPACE = "free some space where the database lies, and try again: nothing is lost by it"
TROUBLES: list[tuple[Exception, str]] = [
    (FULL, f"OperationalError: database or disk is full; {OF_SPACE}"),
    (sqlite3.OperationalError("disk I/O error"), f"OperationalError: disk I/O error; {OF_SPACE}"),
    (
        sqlite3.OperationalError("database is locked"),
        "OperationalError: database is locked: another process, or another connection, keeps the file's write lock",
    ),
]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a start are tried again at once."""
    monkeypatch.setattr(startup, "PAUSE_S", 0.001)
    monkeypatch.setattr(startup, "PAUSE_LONGEST_S", 0.001)


def shift() -> Any:
    return SimpleNamespace(stopping=None, is_embedded=True, store="shop", clock=SYSTEM_CLOCK)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(("orig", "said"), TROUBLES, ids=["full", "io", "locked"])
def test_trouble_at_a_start_is_said_at_once_with_its_cure_and_not_at_each_try(
    caplog: pytest.LogCaptureFixture, orig: Exception, said: str
) -> None:
    caplog.set_level(logging.INFO, logger="groundstate")
    tries = iter(range(30))

    def step() -> None:
        if next(tries) < 29:
            raise OperationalError("INSERT", None, orig)

    startup.retry_start_step(shift(), step)
    told, back = ([one for one in caplog.records if getattr(one, "event", "") == f"database_{word}"] for word in ("trouble", "back"))
    assert [one.getMessage() for one in told] == [f"the database is in trouble, tried again in 0.0 s: {said}"]
    assert vars(told[0])["wait_s"] == 0.001
    assert len(back) == 1


@pytest.mark.usefixtures("soon")
def test_a_start_that_is_given_up_since_the_disk_is_full_says_so_and_nothing_of_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "LOCKED_OUT_S", 0.0)

    def step() -> None:
        raise OperationalError("INSERT", None, FULL)

    with pytest.raises(StoreRefusedError, match=r"nothing can be written where shop lies .*free some space") as met:
        startup.retry_start_step(shift(), step)
    assert "lock" not in str(met.value)


@pytest.mark.parametrize(("orig", "said"), TROUBLES, ids=["full", "io", "locked"])
def test_what_a_schedule_waits_for_is_said_with_its_cure(caplog: pytest.LogCaptureFixture, orig: Exception, said: str) -> None:
    plan: Any = _SchedulePlan(SimpleNamespace(name="hourly"))  # type: ignore[arg-type]  # its name alone is asked for
    runner = TickRunner.__new__(TickRunner)
    vars(runner)["_worker_state"] = shift()
    runner._postpone(plan, OperationalError("INSERT", None, orig))
    (line,) = caplog.records
    assert vars(line)["event"] == "schedule_waits"
    assert line.getMessage() == f"schedule hourly waits for the database, and is tried again: {said}"


def test_a_server_that_does_not_answer_is_not_said_to_have_said_something() -> None:
    error = OperationalError("SELECT 1", None, psycopg.errors.ConnectionTimeout("connection timeout expired"))
    assert error_in_words(error).startswith("the database does not answer: it is stopped")
    assert "the server does not answer: it is stopped" in db_errors.error_in_one_line(error)


def test_the_address_that_sqlalchemy_puts_after_its_errors_is_told_nowhere(world: World, caplog: pytest.LogCaptureFixture) -> None:
    @world.app.on(Order, Order.status == "placed", Order.id == 1, retry=Retry(times=1))
    def paid(order: Order, session: Session) -> None:
        order.status = "paid"
        session.add(Order(id=2))

    world.orders(2)
    world.settled()
    error = world.attempt().error or ""
    assert error.startswith("its flush was refused: (")
    assert "sqlalche.me" not in error + "".join(line.getMessage() for line in caplog.records)


def test_what_is_before_and_after_that_address_stays() -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE some (a int UNIQUE)"))
        connection.execute(text("INSERT INTO some VALUES (1)"))
        with pytest.raises(IntegrityError) as met:
            connection.execute(text("INSERT INTO some VALUES (1)"))
    engine.dispose()
    assert "sqlalche.me" in str(met.value)
    assert safe_str(met.value) == "(sqlite3.IntegrityError) UNIQUE constraint failed: some.a\n[SQL: INSERT INTO some VALUES (1)]"
    assert describe_exception(ValueError(f"{met.value} and more")).endswith("(1)] and more")


def test_a_statement_that_was_prepared_before_a_migration_is_tried_again_and_told_in_one_line(
    postgres_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world = postgres_world

    @world.app.on(Order, Order.status == "placed")
    def paid(order: Order) -> None:
        order.status = "paid"

    life = world.there().worker()
    for number in range(1, 15):  # psycopg prepares what it has executed five times
        world.orders_from(number, number)
        life.sweep()
        life.quiet()
    caplog.clear()
    world.run("alter table orders alter column note type text")
    world.orders_from(20, 22)
    life.sweep()
    life.quiet()
    assert world.count(Order.status == "paid") == 17
    lines = [one for one in caplog.records if "cached plan" in one.getMessage()]
    assert [(one.levelname, one.exc_info) for one in lines] == [("WARNING", None)]
    assert "the next try prepares it anew" in lines[0].getMessage()
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


@pytest.mark.parametrize(
    ("thread", "words", "heard"),
    [
        ("groundstate-shop", "error ignored terminating %r: %s", False),
        ("groundstate-aside-paid", "error ignored in rollback on %s: %s", False),
        ("groundstate-shop", "connection closed", True),
        ("groundstate-sync-call", "error ignored terminating %r: %s", True),
        ("MainThread", "error ignored terminating %r: %s", True),
    ],
)
def test_what_the_driver_ignores_on_our_threads_is_not_told_beside_our_own_line(
    caplog: pytest.LogCaptureFixture, thread: str, words: str, heard: bool
) -> None:
    silence_driver_warnings()
    told = logging.getLogger("psycopg")
    line = told.makeRecord("psycopg", logging.WARNING, __file__, 1, words, ("a pipeline", "lost") if "%" in words else (), None)
    line.threadName = thread
    told.handle(line)
    assert (line in caplog.records) is heard
