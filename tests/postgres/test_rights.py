"""A role that may not do what a worker does, and a column that is not of the type that the code says: one line, and the others go on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import MetaData, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import InDoubt
from groundstate.cli import pending
from groundstate.engine import publish_report
from groundstate.engine.operate.check import check_database
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.findings import Finding
from groundstate.store import connect
from tests.engine.charging import charging
from tests.engine.kit import Base, Order, World, until
from tests.engine.looking import another_that_lives, answer, lives, printed
from tests.postgres.pairs import asked
from tests.postgres.roles import role


class Own(DeclarativeBase):
    """Beside the kit's."""


class Ticket(Own):
    __tablename__ = "tickets"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")


@dataclass
class Shop:
    """A world whose tables belong to a role that is no superuser."""

    world: World
    role: str
    log: pytest.LogCaptureFixture

    def told(self, event: str) -> list[str]:
        return [one.getMessage() for one in self.log.records if getattr(one, "event", None) == event]

    def findings(self) -> list[Finding]:
        database = connect.open_store(self.world.app.stores[0].settings())[0]
        try:
            return check_database(database, [ConditionQuery(one, database) for one in self.world.app.reactions.values()], list[MetaData]())
        finally:
            database.close()


@pytest.fixture
def shop(postgres_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[Shop]:
    caplog.set_level(logging.INFO, "groundstate")
    with role(postgres_url, options="") as login:
        name = str(make_url(login).username)
        asked(postgres_url, f"grant all on schema public to {name}")
        world = World(login, Base, Own)
        charging(world, InDoubt.hold())

        @world.app.on(Ticket, Ticket.status == "open")
        def closed(ticket: Ticket) -> None:
            ticket.status = "closed"

        world.there()
        yield Shop(world, name, caplog)
        world.close()


def tickets_are_closed(shop: Shop) -> None:
    def left() -> int:
        with shop.world.engine.connect() as connection:
            return int(connection.exec_driver_sql("select count(*) from tickets where status = 'open'").scalar_one())

    until(lambda: left() == 0)


def without_a_traceback(shop: Shop) -> None:
    assert not [one for one in shop.log.records if one.exc_info]


@pytest.mark.parametrize("right", ["update", "select"])
def test_a_right_that_is_missing_keeps_its_reaction_waiting_with_one_line_and_check_names_it(shop: Shop, right: str) -> None:
    shop.world.orders(1)
    shop.world.run(f"revoke {right} on orders from {shop.role}")
    life = shop.world.worker()
    until(lambda: "permission denied for table orders" in life.worker.reasons_of_waiting_reactions.get("paid", ""))
    shop.world.add(Ticket(id=1))
    tickets_are_closed(shop)
    life.worker.components.sweeps.next = 0.0
    life.turn()
    assert "closed" not in life.worker.reasons_of_waiting_reactions
    (line,) = shop.told("reaction_unfit")
    assert line.startswith("paid is not carried out: permission denied for table orders: grant it")
    without_a_traceback(shop)
    (found,) = [one for one in shop.findings() if one.kind == "rights"]
    assert (found.level, found.cure) == ("problem", f"GRANT {right.upper()} ON orders TO {shop.role}")
    shop.world.run(f"grant {right} on orders to {shop.role}")
    until(lambda: shop.world.order().status == "paid")
    until(lambda: len(shop.told("reaction_fits")) == 1)


def test_a_right_that_every_living_worker_lacks_is_what_why_status_and_pending_say(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_report, "EACH_S", 0.02)
    shop.world.orders(1)
    shop.world.run(f"revoke update on orders from {shop.role}")
    shop.world.worker()
    words = "permission denied for table orders: grant it to the role that workers connect as"
    until(lambda: any(one.says.lacks for one in lives(shop.world)))
    assert answer(shop.world, 1).next == f"not carried out: {words}"
    assert f"paid is not carried out: {words}" in printed(shop.world)
    assert pending.read_pending(shop.world.app, shop.world.app.stores[0]).lacks == {"paid": words}
    with another_that_lives(shop.world):
        assert answer(shop.world, 1).next == "carried out now"
        assert f"paid: not carried out in 1 of 2 workers: {words}" in printed(shop.world)
        assert pending.read_pending(shop.world.app, shop.world.app.stores[0]).lacks == {}
    shop.world.run(f"grant update on orders to {shop.role}")
    until(lambda: shop.world.order().status == "paid")
    until(lambda: not any(one.says.lacks for one in lives(shop.world)))


def test_a_right_to_a_table_of_ours_that_is_missing_is_told_in_the_databases_words(shop: Shop) -> None:
    life = shop.world.worker()
    life.quiet()
    shop.world.run(f"revoke all on groundstate_attempt from {shop.role}")
    shop.world.orders(1)
    life.worker.components.sweeps.next = 0.0
    life.worker.components.signals.wake.set()
    words = "permission denied for table groundstate_attempt"
    until(lambda: words in life.worker.reasons_of_waiting_reactions.get("paid", ""))
    assert words in shop.log.text
    without_a_traceback(shop)
    (found,) = shop.findings()
    assert (found.level, found.kind) == ("problem", "rights")
    assert words in found.words
    shop.world.run(f"grant select, insert, update on groundstate_attempt to {shop.role}")
    (found,) = [one for one in shop.findings() if one.kind == "rights"]
    assert found.cure == f"GRANT DELETE ON groundstate_attempt TO {shop.role}"
    shop.world.run(f"grant all on groundstate_attempt to {shop.role}")
    until(lambda: shop.world.order().status == "paid")


def test_a_column_of_another_type_keeps_its_reaction_waiting_and_names_it(shop: Shop) -> None:
    life = shop.world.worker()
    life.quiet()
    shop.world.run("alter table orders alter column status drop default, alter column status type integer using 0")
    life.worker.components.sweeps.next = 0.0
    life.worker.components.signals.wake.set()
    until(lambda: "(at orders.status)" in life.worker.reasons_of_waiting_reactions.get("paid", ""))
    (line,) = shop.told("reaction_unfit")
    assert "operator does not exist: integer = character varying (at orders.status)" in line
    shop.world.add(Ticket(id=1))
    tickets_are_closed(shop)
    without_a_traceback(shop)
    assert ("problem", "paid") in [(one.level, one.subject) for one in shop.findings() if one.kind == "columns"]
    shop.world.run("alter table orders alter column status type varchar using 'placed'")
    shop.world.orders(1)
    until(lambda: shop.world.order().status == "paid")
    assert shop.world.count(Order.status == "paid") == 1
