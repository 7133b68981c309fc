"""What an app left on a database on which no worker of it lives any more: perhaps it has another name in the code now."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from groundstate import App, Store
from groundstate.engine.operate.action import Person
from groundstate.engine.operate.pending import Pending, build_pending_report
from groundstate.engine.operate.plan import Plan, build_plan
from groundstate.engine.operate.renaming import rename_app
from groundstate.engine.rows import incarnation as lives
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from tests.engine.charging import ASK, charging
from tests.engine.kit import Base, Gateway, Order, World, until


@pytest.fixture
def left(database_url: str) -> Iterator[tuple[World, Gateway]]:
    """A worker of the app 'shop' died while two calls were in the air."""
    world = World(database_url)
    gateway = charging(world, ASK)
    for number in (1, 2):
        gateway.plan(number, "done_hang")
    world.orders(2)
    life = world.worker()
    until(lambda: gateway.waiting == 2)
    life.kill()
    gateway.gate.set()
    yield world, gateway
    world.close()


def renamed(url: str) -> World:
    """Other code on the same database."""
    world = World(url)
    world.app = App("renamed", Store(url, Base))
    return world


def asked(world: World) -> tuple[Pending, Plan]:
    database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
    database.connect()
    try:
        questions = [ConditionQuery(spec, database) for spec in world.app.reactions.values()]
        return (
            build_pending_report(world.app.name, database, questions, make_lives()),
            build_plan(world.app.name, database, questions, [], make_lives()),
        )
    finally:
        database.close()


def said(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    return [one for one in caplog.records if vars(one).get("event") == event]


def test_an_app_that_is_renamed_in_the_code_alone_is_told_what_its_old_name_left_and_how_it_is_mended(
    left: tuple[World, Gateway], caplog: pytest.LogCaptureFixture
) -> None:
    world, gateway = left
    new = renamed(world.url)
    charging(new, ASK, gateway=gateway)
    new.app.init(baseline=["paid"])
    new._there = True
    worker = new.worker()
    worker.quiet()
    worker.stop()
    (told,) = said(caplog, "left_by_other_app")
    assert told.levelname == "WARNING"
    assert "2 attempts are open of app 'shop' (2 in doubt: paid)" in told.getMessage()
    assert "groundstate rename --whole-app shop renamed" in told.getMessage()
    (adopted,) = said(caplog, "adopted")
    assert adopted.getMessage().endswith("in doubt until a worker runs whose code declares them (2 of app 'shop')")
    report, planned = asked(new)
    assert [(one.app, one.in_doubt, one.held, one.ours) for one in report.others] == [("shop", 2, 0, True)]
    assert report.left
    assert "beside what app 'shop' left in doubt" in report.in_flight
    assert planned.others == report.others
    assert planned.needs_person
    new.close()


def test_nothing_is_told_once_the_app_is_renamed_in_the_database_too(left: tuple[World, Gateway], caplog: pytest.LogCaptureFixture) -> None:
    world, gateway = left
    new = renamed(world.url)
    charging(new, ASK, gateway=gateway)
    database, make_lives, _ = connect.open_store(new.app.stores[0].settings())
    database.connect()
    rename_app(Person(lives.Incarnation("renamed", database, make_lives(), None), {}, "the test"), "shop", "renamed")
    database.close()
    new._there = True
    new.worker().quiet()
    until(lambda: new.count(Order.status == "paid") == 2)
    assert gateway.called(1) == gateway.called(2) == 1
    report, planned = asked(new)
    assert report.others == planned.others == ()
    assert not said(caplog, "left_by_other_app")
    new.close()


def test_another_app_that_is_stopped_and_works_on_other_tables_is_one_quiet_line(
    left: tuple[World, Gateway], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "groundstate")
    world, _ = left
    new = renamed(world.url)

    @new.app.on(Order, Order.status == "paid")
    def packed(order: Order) -> None:
        order.status = "packed"

    world.force("update groundstate_attempt set blocks = 'invoices'")
    new.app.init(accept=True)
    new._there = True
    worker = new.worker()
    worker.quiet()
    (told,) = said(caplog, "left_by_other_app")
    assert (told.levelname, told.getMessage()) == (
        "INFO",
        "Other apps on this database of which no worker lives have open attempts: shop (2 in doubt).",
    )
    report, planned = asked(new)
    assert [(one.app, one.ours) for one in report.others] == [("shop", False)]
    assert not report.left
    assert not planned.needs_person
    new.close()


def test_an_app_of_which_a_worker_lives_settles_its_own_and_is_not_told_of(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    world = World(database_url)
    gateway = charging(world, ASK)
    gateway.plan(1, "hang")
    world.orders(1)
    world.worker()
    until(lambda: gateway.waiting == 1)
    new = renamed(database_url)

    @new.app.on(Order, Order.status == "paid")
    def packed(order: Order) -> None:
        order.status = "packed"

    new.app.init(accept=True)
    new._there = True
    new.worker()
    report, planned = asked(new)
    assert report.others == planned.others == ()
    assert not planned.needs_person
    assert not said(caplog, "left_by_other_app")
    gateway.gate.set()
    until(lambda: world.order().status == "packed")
    new.close()
    world.close()
