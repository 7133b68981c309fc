"""A server that is killed and started again beneath a worker: nothing is lost, nothing doubled, and it goes on by itself.

On a server without WAL for others (`wal_level = minimal`, no WAL senders): nothing of ours decodes or replicates.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from tools.servers.postgres import PostgresServer

from groundstate.engine.recover import startup
from tests.engine.charging import ASK, charging
from tests.engine.kit import HANG_S, Life, Order, World, ms, until
from tests.postgres.pooler import pooling
from tests.postgres.starting import refusing


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(max_connections=30, settings={"wal_level": "minimal", "max_wal_senders": "0"}) as made:
        yield made
        made.kill()


@pytest.fixture
def world(server: PostgresServer) -> Iterator[World]:
    made = World(server.create_database())
    yield made
    server.start()
    made.close()


def killed_and_started(server: PostgresServer, world: World) -> None:
    server.kill()
    server.start()
    world.engine.dispose()  # the test's own connections


def goes_on(life: Life, first: int) -> None:
    """The same life, with its lock taken again."""
    until(lambda: life.worker.incarnation.taken == 2 and life.worker.incarnation.sound)
    assert life.worker.incarnation.id == first


def test_a_server_killed_amid_calls_loses_none_and_doubles_none(server: PostgresServer, world: World) -> None:
    gateway = charging(world, ASK)
    for number in range(1, 41, 4):
        gateway.plan(number, "done_hang")  # done, and the answer comes when the server is gone
        gateway.plan(number + 1, "hang")  # not done yet
    world.orders(40)
    life = world.worker()
    until(lambda: gateway.waiting == 20 and world.count(Order.status == "paid") == 20)
    first = life.worker.incarnation.id
    server.kill()
    gateway.gate.set()
    server.start()
    world.engine.dispose()
    goes_on(life, first)
    world.orders_from(41, 45)
    until(lambda: world.count(Order.status == "paid") == 45)
    life.quiet()
    assert [gateway.done(number) for number in range(1, 46)] == [1] * 45
    assert world.attempts() == []


def test_a_server_started_anew_while_a_worker_comes_up_is_no_end_of_the_start(
    server: PostgresServer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restarted(shift: Any) -> None:
        killed_and_started(server, world)
        with shift.incarnation.open_transaction():  # as where there is something to adopt
            pass

    _comes_up_all_the_same(world, monkeypatch, restarted)


def test_a_connection_that_is_cut_while_a_worker_comes_up_is_no_end_of_the_start(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(shift: Any) -> None:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
        with shift.incarnation.open_transaction() as tx:
            world.run(others)
            tx.connection.execute(text("SELECT 1"))

    _comes_up_all_the_same(world, monkeypatch, cut)


def _comes_up_all_the_same(world: World, monkeypatch: pytest.MonkeyPatch, happens: Callable[[Any], None]) -> None:
    """With another life than the one to which this happened before it was up, and carries out."""
    gateway = charging(world, ASK)
    world.orders(3)
    really = startup.shorten_waits_of_wrong_clock
    met: list[int] = []

    def happens_before(shift: Any, **more: Any) -> None:
        if not met:
            met.append(shift.incarnation.id)
            happens(shift)
        really(shift, **more)

    monkeypatch.setattr(startup, "shorten_waits_of_wrong_clock", happens_before)
    life = world.worker()
    assert len(met) == 1
    assert life.worker.incarnation.id not in met
    until(lambda: world.count(Order.status == "paid") == 3)
    assert [gateway.done(number) for number in (1, 2, 3)] == [1] * 3


def test_a_lock_on_our_tables_is_waited_out_by_a_start(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.there()
    life = world.worker(start=False)
    vars(life.database)["reading"] = partial(life.database.reading, wait=ms(100))  # it is 5 s
    with world.engine.connect() as other, other.begin():
        other.execute(text("LOCK TABLE groundstate_reaction IN ACCESS EXCLUSIVE MODE"))
        starting = threading.Thread(target=life.worker.start)
        starting.start()
        until(lambda: any(vars(one).get("event") == "database_trouble" for one in caplog.records))
    starting.join(HANG_S)
    assert life.worker.failure is None
    assert life.worker.incarnation.sound


def test_a_server_killed_again_and_again_amid_batches_loses_no_row_and_answers_none_twice(server: PostgresServer, world: World) -> None:
    @world.app.on(Order, Order.status == "placed")
    def counted(order: Order) -> None:
        order.status, order.round = "counted", order.round + 1

    world.orders(2000)
    life = world.worker()
    for least in (1, 700):
        until(lambda least=least: _so_many(world) >= least)  # type: ignore[misc]
        killed_and_started(server, world)
    until(lambda: world.count(Order.status == "counted") == 2000)
    life.quiet()
    assert world.count(Order.round == 2) == 2000


def _so_many(world: World) -> int:
    return world.count(Order.status == "counted")


def test_a_restarted_server_is_noticed_by_the_first_transaction_on_it(server: PostgresServer, world: World) -> None:
    gateway = charging(world, ASK)
    world.orders(1)
    life = world.worker()
    life.quiet()
    life.worker.components.succession.next_check = life.worker.components.sweeps.next = float(
        "inf"
    )  # nobody looks at the lock, or at anything
    killed_and_started(server, world)
    world.orders_from(2, 2)  # and a hint comes first
    until(lambda: world.order(2).status == "paid")
    assert life.worker.incarnation.taken == 2, "it went on beside a lock that anybody could have taken"
    assert gateway.called(2) == 1


def test_a_crash_of_one_backend_which_ends_all_sessions_is_noticed_by_the_next_transaction(server: PostgresServer, world: World) -> None:
    gateway = charging(world, ASK)
    world.orders(1)
    life = world.worker()
    life.quiet()
    life.worker.components.succession.next_check = life.worker.components.sweeps.next = float("inf")
    with world.engine.connect() as mine:
        os.kill(int(mine.exec_driver_sql("select pg_backend_pid()").scalar_one()), signal.SIGKILL)
        with pytest.raises(OperationalError):
            until(lambda: mine.exec_driver_sql("select 1").scalar_one() == 2)
    world.engine.dispose()
    until(lambda: _answers(world))
    world.orders_from(2, 2)
    until(lambda: world.order(2).status == "paid")
    assert life.worker.incarnation.taken == 2
    assert gateway.called(2) == 1


def _answers(world: World) -> bool:
    try:
        return world.count() == 1
    except OperationalError:
        return False


def test_a_restart_behind_a_pooler_is_noticed_though_no_connection_to_the_pooler_was_lost(server: PostgresServer) -> None:
    url = server.create_database()
    with pooling(server.port or 0) as port:
        world = World(make_url(url).set(port=port).render_as_string(hide_password=False), direct=url)
        world.engine.dispose()
        world.engine = create_engine(url)
        try:
            gateway = charging(world, ASK)
            world.orders(1)
            life = world.worker()
            life.quiet()
            life.worker.components.succession.next_check = life.worker.components.sweeps.next = float("inf")
            killed_and_started(server, world)
            world.orders_from(2, 2)
            until(lambda: world.order(2).status == "paid")
            assert life.worker.incarnation.taken == 2
            assert gateway.called(2) == 1
        finally:
            world.close()


def test_a_server_that_is_down_for_a_while_is_waited_for_and_the_log_says_when_all_is_well_again(
    server: PostgresServer, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "groundstate")
    gateway = charging(world, ASK)
    gateway.plan(1, "done_hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    server.stop()
    until(lambda: life.in_trouble)
    gateway.gate.set()
    server.start()
    world.engine.dispose()
    until(lambda: world.order().status == "paid")
    assert gateway.called(1) == 1
    until(lambda: "the database works again" in caplog.text)
    events = [vars(one).get("event") for one in caplog.records]
    assert events[0] == "worker_began"
    assert events[events.index("lock_lost") :].count("worker_resumed") == 1
    assert events.count("worker_began") == 1, "it is the same life"
    assert events.count("database_back") == 1
    assert max(events.index(one) for one in ("lock_lost", "database_trouble")) < events.index("database_back")


@pytest.mark.parametrize("says", ["the database system is starting up", "the database system is shutting down"])
def test_a_worker_waits_for_a_server_that_is_restarted(
    server: PostgresServer, world: World, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It answers as it does while it recovers, or stops: it is there, and takes nobody just now. Then nobody answers for a while."""
    charging(world, ASK)
    world.orders(1)
    life = world.worker(start=False)
    server.kill()
    starting = threading.Thread(target=life.worker.start)
    with refusing(server.port or 0, "57P03", says) as refused:
        starting.start()
        until(lambda: refused.count > 2)
    until(lambda: "refused" in caplog.text)
    server.start()
    world.engine.dispose()
    starting.join(HANG_S)
    until(lambda: world.order().status == "paid")
