"""A handler that ends our transaction, in whatever way: refused there and then with the cure, for its record alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from groundstate import Outside, Retry, hold
from tests.engine.kit import Order, World

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
}
OF_POSTGRES: dict[str, Callable[[Any], Any]] = {
    "execute": lambda driver: driver.execute("COMMIT"),
    "bytes": lambda driver: driver.execute(b"COMMIT"),
    "some": lambda driver: driver.execute("SELECT 1; ABORT; SELECT 2"),
    "prepared": lambda driver: driver.execute("PREPARE TRANSACTION 'x'"),
    "chained": lambda driver: driver.execute("ROLLBACK AND CHAIN"),
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
    assert [number for number, said in words.items() if "StateRefused" not in said] == [], words


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


def test_a_handler_of_a_call_that_ends_our_transaction_keeps_its_outcome(world: World) -> None:
    outside, calls = Outside("bank"), []

    @outside.call(in_doubt=hold(), retry=Retry(times=1))
    def charge(order: Order) -> str:
        calls.append(order.id)
        return "r1"

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str, session: Session) -> None:
        order.status = "paid"
        session.connection().commit()

    world.orders(1)
    world.settled()
    assert world.attempt().state == "held"
    assert world.attempt().outcome is not None
    assert "remove session.connection().commit()" in (world.attempt().error or "")
    assert calls == [1]
