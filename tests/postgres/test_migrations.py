"""Beside migrations and long transactions of others: a locked table keeps its own reactions waiting, and nobody else's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import App, Store
from groundstate.cli import pending, status
from groundstate.engine.call import result_log
from groundstate.engine.operate import why
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect, postgres
from groundstate.values.errors import StoreRefusedError
from tests.engine.charging import ASK, charging
from tests.engine.kit import Base, Order, World, ms, until


class Own(DeclarativeBase):
    """Beside the kit's, whose tables every test has."""


class Ticket(Own):
    __tablename__ = "tickets"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")


@pytest.fixture
def world(postgres_url: str) -> Iterator[World]:
    made = World(postgres_url, Base, Own)
    yield made
    made.close()


def closing(world: World) -> None:
    @world.app.on(Ticket, Ticket.status == "open")
    def closed(ticket: Ticket) -> None:
        ticket.status = "closed"


def shows(world: World, question: str) -> object:
    with world.engine.connect() as connection:
        return connection.exec_driver_sql(question).scalar()


@pytest.mark.parametrize("calls", [True, False], ids=["with_a_call", "without"])
def test_a_locked_table_is_waited_for_and_said_and_others_go_on(world: World, calls: bool, caplog: pytest.LogCaptureFixture) -> None:
    gateway = charging(world, ASK)
    closing(world)
    world.there()
    if calls:
        gateway.plan(1, "done_hang")
        world.orders(1)
    life = world.worker()
    if calls:
        until(lambda: gateway.waiting == 1)
    else:
        life.quiet()
    locked = "orders" if calls else "tickets"
    with caplog.at_level(logging.INFO, "groundstate"), world.engine.begin() as migration:
        migration.exec_driver_sql(f"lock table {locked} in access exclusive mode")
        gateway.gate.set()
        life.worker.components.sweeps.next = 0.0
        life.worker.components.signals.wake.set()
        until(lambda: told(caplog, "reaction_barred"))
        pid = migration.exec_driver_sql("select pg_backend_pid()").scalar_one()
        name, other = ("paid", "closed") if calls else ("closed", "paid")
        (line,) = told(caplog, "reaction_barred")
        assert line.startswith(f"{name} waits: pid {pid} (")
        assert f"has locked the table {locked}, in a transaction since" in line
        assert line.endswith("; the others go on")
        until(lambda: f"the table {locked}" in life.worker.reasons_of_waiting_reactions.get(name, ""))
        assert other not in life.worker.reasons_of_waiting_reactions
        if calls:
            world.add(Ticket(id=1))
            until(lambda: shows(world, "select status from tickets") == "closed")
        else:
            world.add(Order(id=2))
            until(lambda: shows(world, "select status from orders where id = 2") == "paid")
    world.add(Ticket(id=3))
    until(lambda: shows(world, "select count(*) from tickets where status = 'open'") == 0)
    until(lambda: name not in life.worker.reasons_of_waiting_reactions)
    if calls:
        until(lambda: world.order().status == "paid")
        assert gateway.called(1) == 1


def test_an_index_is_made_concurrently_beside_a_busy_worker_and_beside_an_idle_one(world: World) -> None:
    """It waits for every transaction that was open when it began: none of ours stays so."""
    gateway = charging(world, ASK)
    closing(world)
    gateway.plan(1, "hang")  # a call in the air holds no transaction
    world.orders(1)
    world.add(*[Ticket(id=number) for number in range(1, 5001)])
    life = world.worker()
    with world.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as migration:
        migration.exec_driver_sql("set statement_timeout = 15000")
        until(lambda: gateway.waiting == 1)
        migration.exec_driver_sql("create index concurrently while_busy on orders (note)")
        until(lambda: shows(world, "select count(*) from tickets where status = 'open'") == 0)
        migration.exec_driver_sql("create index concurrently while_idle on tickets (status)")
    gateway.gate.set()
    life.quiet()
    open_ones = "select count(*) from pg_stat_activity where application_name like 'groundstate%%' and xact_start is not null"
    until(lambda: shows(world, f"{open_ones} and datname = current_database()") == 0)


def test_a_row_that_a_long_transaction_has_locked_is_left_and_the_others_are_carried_out(world: World) -> None:
    gateway = charging(world, ASK)
    world.orders(20)
    with world.engine.begin() as somebody:
        somebody.exec_driver_sql("update orders set note = 'mine' where id = 7")
        world.worker()
        until(lambda: shows(world, "select count(*) from orders where status = 'paid'") == 19)
        assert gateway.called(7) == 0
    until(lambda: world.order(7).status == "paid")
    assert world.order(7).note == "mine"


def test_an_answer_that_waits_for_a_locked_row_is_told_with_who_has_it_and_when_it_is_over(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "groundstate")
    monkeypatch.setattr(result_log, "TOLD_AFTER_S", 0.05)
    gateway = charging(world, ASK)
    gateway.plan(1, "done_hang")
    world.orders(1)
    world.worker()
    until(lambda: gateway.waiting == 1)
    with world.engine.begin() as somebody:
        somebody.exec_driver_sql("set application_name = 'a forgotten psql'")
        somebody.exec_driver_sql("select * from orders for update")
        pid = somebody.exec_driver_sql("select pg_backend_pid()").scalar_one()
        gateway.gate.set()
        until(lambda: told(caplog, "answer_waits"))
        (line,) = told(caplog, "answer_waits")
        said = f"paid on orders 1: the result of its call cannot be written, since pid {pid} (a forgotten psql, idle in transaction)"
        assert said in line
        database, lives, _witness = connect.open_store(world.app.stores[0].settings())
        questions = [ConditionQuery(one, database) for one in world.app.reactions.values()]
        (answer,) = why.explain_record(world.app.name, database, questions, lives(), "orders", "1").answers
        database.close()
        assert f"pid {pid} (a forgotten psql" in answer.next
    until(lambda: told(caplog, "answer_written"))
    assert world.order().status == "paid"
    assert len(told(caplog, "answer_waits")) == 1


@pytest.mark.parametrize("look", [status.read_status, pending.read_pending])
def test_who_looks_while_a_table_of_ours_is_locked_is_told_by_whom(
    world: World, monkeypatch: pytest.MonkeyPatch, look: Callable[[App, Store], object]
) -> None:
    monkeypatch.setattr(postgres, "WAIT", ms(50))
    charging(world, ASK)
    world.orders(1)
    with world.engine.begin() as somebody:
        somebody.exec_driver_sql("set application_name = 'a forgotten psql'")
        somebody.exec_driver_sql("lock table groundstate_attempt")
        pid = somebody.exec_driver_sql("select pg_backend_pid()").scalar_one()
        words = rf"pid {pid} \(a forgotten psql, idle in transaction\) has locked the table groundstate_attempt, in a transaction since .*"
        with pytest.raises(StoreRefusedError, match=f"{words}: nothing can be seen before that ends"):
            look(world.app, world.app.stores[0])


def told(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    return [one.getMessage() for one in caplog.records if getattr(one, "event", None) == event]


def test_a_column_that_is_added_while_a_worker_runs_disturbs_nothing(world: World) -> None:
    charging(world, ASK)
    world.orders(5)
    life = world.worker()
    life.quiet()
    first = life.worker.incarnation.id
    world.run("alter table orders add column since timestamptz not null default now(), alter column note type varchar(500)")
    world.orders_from(6, 30)  # by statements that were prepared before it
    until(lambda: world.count(Order.status == "paid") == 30)
    assert life.worker.incarnation.id == first


def test_a_worker_is_started_while_a_table_is_locked(world: World) -> None:
    charging(world, ASK)
    closing(world)
    world.add(Ticket(id=1), Order(id=1))
    with world.engine.begin() as migration:
        migration.exec_driver_sql("lock table tickets in access exclusive mode")
        world.worker()
        until(lambda: shows(world, "select status from orders where id = 1") == "paid")
    until(lambda: shows(world, "select status from tickets") == "closed")
