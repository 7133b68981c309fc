"""A handler that ends our transaction, in whatever way: refused there and then with the cure, for its record alone."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from groundstate import ExternalService, Failure, InDoubt, Retry
from tests.engine.kit import Order, World
from tests.patience import until

WAYS: dict[str, Callable[[Session], Any]] = {
    "session": lambda session: session.commit(),
    "session_back": lambda session: session.rollback(),
    "session_closed": lambda session: session.close(),
    "session_reset": lambda session: session.reset(),
    "its_transaction": lambda session: session.get_transaction().rollback(),  # type: ignore[union-attr]  # there is one
    "connection": lambda session: session.connection().commit(),
    "connection_back": lambda session: session.connection().rollback(),
    "connection_closed": lambda session: session.connection().close(),
    "connections_transaction": lambda session: session.connection().get_transaction().commit(),  # type: ignore[union-attr]  # there is one
    "connections_savepoint": lambda session: session.connection().get_nested_transaction().rollback(),  # type: ignore[union-attr]  # as above
    "text": lambda session: session.execute(text("COMMIT")),
    "text_back": lambda session: session.execute(text("-- all of it\nrollback")),
    "text_end": lambda session: session.execute(text("END")),
    "driver_text": lambda session: session.connection().exec_driver_sql("COMMIT;"),
    "begin": lambda session: session.execute(text("BEGIN")),
    "pooled": lambda session: session.connection().connection.commit(),
    "driver": lambda session: session.connection().connection.driver_connection.commit(),  # type: ignore[union-attr]  # there is one
    "driver_back": lambda session: session.connection().connection.dbapi_connection.rollback(),  # type: ignore[union-attr]  # as above
    "session_lost": lambda session: session.invalidate(),
    "connection_lost": lambda session: session.connection().invalidate(),
    "driver_closed": lambda session: session.connection().connection.driver_connection.close(),  # type: ignore[union-attr]  # as above
    "cursor": lambda session: session.connection().connection.cursor().execute("COMMIT"),
    "cursor_many": lambda session: session.connection().connection.cursor().executemany("ROLLBACK", [()]),
}
OF_SQLITE: dict[str, Callable[[Any], Any]] = {
    "script": lambda driver: driver.executescript("SELECT 1;"),
    "cursors_script": lambda driver: driver.cursor().executescript("SELECT 1;"),
    "execute": lambda driver: driver.execute("COMMIT"),
    "with": lambda driver: driver.__enter__().__exit__(None, None, None),
    "isolation": lambda driver: setattr(driver, "isolation_level", None),
    "bare_cursor": lambda driver: sqlite3.Cursor(driver).execute("COMMIT"),
    "bare_cursor_many": lambda driver: sqlite3.Cursor(driver).executemany("ROLLBACK", [()]),
}
OF_POSTGRES: dict[str, Callable[[Any], Any]] = {
    "execute": lambda driver: driver.execute("COMMIT"),
    "bytes": lambda driver: driver.execute(b"COMMIT"),
    "some": lambda driver: driver.execute("SELECT 1; ABORT; SELECT 2"),
    "prepared": lambda driver: driver.execute("PREPARE TRANSACTION 'x'"),
    "chained": lambda driver: driver.execute("ROLLBACK AND CHAIN"),
    "created": lambda driver: driver.execute("CREATE TEMP TABLE some (a int); COMMIT"),
    "composed": lambda driver: driver.execute(psycopg.sql.SQL("COMMIT")),
    "stream": lambda driver: list(driver.cursor().stream("COMMIT")),
    "copy": lambda driver: driver.cursor().copy("COMMIT").__enter__(),
    "of_the_server": lambda driver: driver.cursor("some").execute("SELECT 1; COMMIT"),
    "bare_cursor": lambda driver: psycopg.Cursor(driver).execute("COMMIT"),
    "bare_cursor_many": lambda driver: psycopg.Cursor(driver).executemany("ROLLBACK", [()]),
    "of_the_class": psycopg.Connection.commit,
    "of_the_class_back": psycopg.Connection.rollback,
}
# What cannot be refused: it is noticed when the handler returns.
PAST_SQLITE: dict[str, Callable[[Any], Any]] = {
    "commit": sqlite3.Connection.commit,
    "script": lambda driver: sqlite3.Cursor(driver).executescript("SELECT 1;"),
    "rollback": sqlite3.Connection.rollback,
}
PAST_POSTGRES: dict[str, Callable[[Any], Any]] = {
    "commit": lambda driver: driver.pgconn.exec_(b"COMMIT"),
    "script": lambda driver: driver.pgconn.exec_(b"SELECT 1; COMMIT; SELECT 2"),
    "rollback": lambda driver: driver.pgconn.exec_(b"ROLLBACK"),
}


def ways(world: World) -> list[Callable[[Session], Any]]:
    def by_driver(way: Callable[[Any], Any]) -> Callable[[Session], Any]:
        return lambda session: way(session.connection().connection.driver_connection)

    return [*WAYS.values(), *map(by_driver, (OF_POSTGRES if world.postgres else OF_SQLITE).values())]


def test_a_handler_that_ends_our_transaction_is_refused_and_the_records_beside_it_are_carried_out(world: World) -> None:
    some = dict(zip(range(3, 1_000, 3), ways(world), strict=False))  # not one after the other: the reaction would pause

    @world.app.on(Order, Order.status == "placed", retry=Retry(times=1))
    def paid(order: Order, session: Session) -> None:
        order.status = "paid"
        session.add(Order(id=order.id + 1_000, status="beside"))
        session.flush()
        if order.id in some:
            some[order.id](session)

    world.orders(len(some) + 100)
    world.settled()
    assert world.count(Order.status == "paid") == 100
    assert world.count(Order.status == "beside") == 100
    words = {int(one.record): one.error or "" for one in world.attempts()}
    assert sorted(words) == list(some)
    assert [number for number, said in words.items() if "StateRefusedError" not in said] == [], words


def test_savepoints_of_a_handler_and_words_that_only_look_like_an_end_are_no_matter(world: World) -> None:
    @world.app.on(Order, Order.status == "placed", retry=Retry(times=1))
    def paid(order: Order, session: Session) -> None:
        with session.begin_nested() as inner:
            session.add(Order(id=order.id + 1_000, status="beside"))
            session.flush()
            inner.rollback()
        session.execute(text("SAVEPOINT mine"))
        session.execute(text("ROLLBACK TO SAVEPOINT mine"))
        session.execute(text("RELEASE SAVEPOINT mine"))
        session.execute(text("SELECT CASE WHEN 1 = 1 THEN 'COMMIT' END"))
        order.status = "paid"

    world.orders(3)
    world.settled()
    assert world.count(Order.status == "paid") == 3
    assert world.attempts() == []


def charged(world: World, handler: Callable[..., None]) -> list[int]:
    """Each placed order is charged once, and this handler takes the outcome. Returns the orders that were charged."""
    calls: list[int] = []

    @ExternalService("bank").call(in_doubt=InDoubt.hold(), retry=Retry(times=1))
    def charge(order: Order) -> str:
        calls.append(order.id)
        return "r1"

    world.app.on(Order, Order.status == "placed", call=charge)(handler)
    return calls


def test_a_handler_of_a_call_that_ends_our_transaction_keeps_its_outcome(world: World) -> None:
    def paid(order: Order, outcome: str, session: Session) -> None:
        order.status = "paid"
        session.connection().commit()

    calls = charged(world, paid)
    world.orders(1)
    world.settled()
    assert world.attempt().state == "held"
    assert world.attempt().outcome is not None
    assert "remove session.connection().commit()" in (world.attempt().error or "")
    assert calls == [1]


def driver_of(session: Session) -> Any:
    return session.connection().connection.driver_connection


def a_dict(cursor: Any, row: Any) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


def told(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    return [f"{line.levelname} {line.getMessage()}" for line in caplog.records if getattr(line, "event", None) == event]


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("how", PAST_SQLITE)
def test_an_end_that_cannot_be_refused_is_noticed_before_another_handler_runs(
    world: World, caplog: pytest.LogCaptureFixture, how: str, raises: bool
) -> None:
    ran: list[int] = []

    @world.app.on(Order, Order.status == "placed", retry=Retry(times=1))
    def paid(order: Order, session: Session) -> None:
        ran.append(order.id)
        session.add(Order(id=order.id + 1_000, status="beside"))
        session.flush()
        if order.id == 5:
            (PAST_POSTGRES if world.postgres else PAST_SQLITE)[how](driver_of(session))
        order.status = "paid"
        if order.id == 5 and raises:
            raise ValueError("after")

    world.orders(20)
    world.settled()
    assert ran.count(5) == 1
    assert world.count(Order.status == "paid") == 19
    assert world.attempt().record == "5"
    assert world.attempt().state == "held"
    assert "paid on orders 5 ended our transaction" in (world.attempt().error or "")
    assert ("after" in (world.attempt().error or "")) == raises
    assert len(told(caplog, "transaction_ended")) == 1


def test_a_handler_that_ends_our_transaction_when_its_record_is_written_is_told_of(world: World, caplog: pytest.LogCaptureFixture) -> None:
    @world.app.on(Order, Order.status == "placed", retry=Retry(times=1))
    def paid(order: Order, session: Session) -> None:
        order.status = "paid"
        session.flush()
        if order.id == 5:
            (PAST_POSTGRES if world.postgres else PAST_SQLITE)["commit"](driver_of(session))

    world.orders(20)
    world.settled()
    assert world.count(Order.status == "paid") == 20
    (line,) = told(caplog, "transaction_ended")
    assert line.startswith("ERROR paid on orders 5 ended our transaction past its session")


def test_an_outcome_whose_handler_ended_our_transaction_past_us_is_not_lost(world: World) -> None:
    def paid(order: Order, outcome: str, session: Session) -> None:
        (PAST_POSTGRES if world.postgres else PAST_SQLITE)["commit"](driver_of(session))
        order.status = "paid"

    calls = charged(world, paid)
    world.orders(1)
    world.settled()
    assert calls == [1]
    assert world.attempt().state == "held"
    assert world.attempt().outcome is not None
    assert "ended our transaction" in (world.attempt().error or world.attempt().why or "")


# ---- what a handler leaves on the connection -----------------------------------------------------------------------------------------
LEFT_ON_SQLITE: dict[str, tuple[Callable[[Session], Any], str]] = {
    "rows": (lambda session: setattr(driver_of(session), "row_factory", a_dict), "row_factory"),
    "texts": (lambda session: setattr(driver_of(session), "text_factory", bytes), "text_factory"),
}
LEFT_ON_POSTGRES: dict[str, tuple[Callable[[Session], Any], str]] = {
    "rows": (lambda session: setattr(driver_of(session), "row_factory", dict_row), "row_factory"),
    "cursors": (lambda session: setattr(driver_of(session), "cursor_factory", psycopg.RawCursor), "cursor_factory"),
    "dates": (lambda session: session.execute(text("SET DateStyle = 'German'")), "SET datestyle"),
    "letters": (lambda session: session.execute(text("SET client_encoding = 'SQL_ASCII'")), "SET client_encoding"),
    "by_a_function": (lambda session: session.scalar(select(func.set_config("DateStyle", "German", False))), "SET datestyle"),
    "path": (lambda session: session.execute(text("SET search_path TO public")), "SET search_path"),
    "read_only": (lambda session: driver_of(session).execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"), "SET session"),
}


def leaves(world: World, caplog: pytest.LogCaptureFixture, leave: Callable[[Session], Any], words: str) -> None:
    @world.app.on(Order, Order.status == "placed")
    def paid(order: Order, session: Session) -> None:
        order.status = "paid"
        session.flush()
        leave(session)

    @world.app.on(Order, Order.status == "other")
    def other(order: Order, session: Session) -> None:
        assert session.scalar(select(Order.status).where(Order.id == order.id)) == "other"
        order.status = "done"

    world.add(Order(id=1, status="placed"))
    world.worker()
    for number in (2, 3):  # and told once
        until(lambda: world.count(Order.status == "placed") == 0, world.attempts)
        world.add(Order(id=number, status="placed"))
    until(lambda: world.count(Order.status == "placed") == 0, world.attempts)
    world.add(*[Order(id=100 + number, status="other") for number in range(20)])
    until(lambda: world.count(Order.status == "other") == 0, world.attempts)
    assert world.count(Order.status == "paid") == 3
    assert world.count(Order.status == "done") == 20
    assert world.attempts() == []
    (line,) = told(caplog, "setting_left")
    assert line.startswith(f"WARNING a handler left {words}")


@pytest.mark.parametrize("what", LEFT_ON_SQLITE)
def test_what_a_handler_leaves_on_a_connection_of_sqlite_is_gone_after_it(
    sqlite_world: World, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    leaves(sqlite_world, caplog, *LEFT_ON_SQLITE[what])


@pytest.mark.parametrize("what", LEFT_ON_POSTGRES)
def test_what_a_handler_leaves_on_a_connection_of_postgresql_is_gone_after_it(
    postgres_world: World, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    leaves(postgres_world, caplog, *LEFT_ON_POSTGRES[what])


def test_what_ends_with_the_transaction_keeps_its_connection(world: World, caplog: pytest.LogCaptureFixture) -> None:
    @world.app.on(Order, Order.status == "placed")
    def paid(order: Order, session: Session) -> None:
        if world.postgres:
            session.execute(text("SET LOCAL search_path TO public"))
            session.execute(text("SET CONSTRAINTS ALL DEFERRED"))
        else:
            session.execute(text("PRAGMA defer_foreign_keys = ON"))
        driver_of(session).cursor().row_factory = a_dict if not world.postgres else dict_row  # a cursor's own
        order.status = "paid"

    world.orders(3)
    world.settled()
    assert world.count(Order.status == "paid") == 3
    assert told(caplog, "setting_left") == []


@pytest.mark.parametrize("setting", ["query_only=ON", "locking_mode=EXCLUSIVE", "main.busy_timeout(0)"])
def test_a_pragma_that_others_would_find_is_refused(sqlite_world: World, setting: str) -> None:
    world = sqlite_world

    @world.app.on(Order, Order.status == "placed", retry=Retry(times=1))
    def paid(order: Order, session: Session) -> None:
        order.status = "paid"
        if order.id == 1:
            session.execute(text(f"PRAGMA {setting}"))
        if order.id == 2:
            sqlite3.Cursor(driver_of(session)).execute(f"PRAGMA  {setting}")

    world.orders(20)
    world.settled()
    assert world.count(Order.status == "paid") == 18
    assert sorted(one.record for one in world.attempts()) == ["1", "2"]
    assert all("StateRefusedError" in (one.error or "") and "remove PRAGMA" in (one.error or "") for one in world.attempts())


def test_a_connection_on_which_nothing_goes_any_more_is_replaced(sqlite_world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="groundstate")
    world = sqlite_world

    @world.app.on(Order, Order.status == "placed", retry=Retry(times=1))
    def paid(order: Order, session: Session) -> None:
        order.status = "paid"
        session.flush()
        if order.id == 1:
            driver_of(session).set_authorizer(lambda *_: sqlite3.SQLITE_DENY)

    world.orders(20)
    world.settled()
    assert world.count(Order.status == "paid") == 19
    assert "not authorized" in (world.attempt().error or "")
    assert told(caplog, "connection_renewed") != []


@pytest.mark.parametrize("beside", [False, True], ids=["nothing_else", "another_change"])
def test_a_handler_that_catches_what_its_flush_raised_fails_since_all_of_it_is_undone(world: World, beside: bool) -> None:
    def go_on(order: Order, session: Session) -> None:
        session.add(Order(id=order.id + 1_000, status="beside"))
        order.status = "paid"
        with suppress(Exception):
            if order.id == 2:
                session.add(Order(id=1))
            session.flush()
        if beside:
            order.note = "and on it goes"

    world.app.on(Order, Order.status == "placed", retry=Retry(times=1), name="paid")(go_on)
    world.orders(3)
    world.settled()
    (attempt,) = world.attempts()
    assert attempt.record == "2"
    assert (attempt.error or "").startswith("its flush was refused, and it went on (")
    assert world.count(Order.status == "paid") == world.count(Order.status == "beside") == 2


def test_a_gave_up_handler_that_catches_what_its_flush_raised_has_not_answered(world: World) -> None:
    @world.app.on(Order, Order.status == "placed", Order.id == 1, retry=Retry(times=1))
    def paid(_order: Order) -> None:
        raise ValueError("enough")

    @paid.gave_up
    def paid_gave_up(order: Order, _failure: Failure, session: Session) -> None:
        order.status = "given up"
        with suppress(IntegrityError):
            session.add(Order(id=2, status="given up"))
            session.flush()

    world.orders(2)
    world.settled()
    assert world.states() == ["held"]
    assert "its flush was refused, and it went on (" in (world.attempt().why or "")
