"""Several apps on one database: none takes away what another hears by, nor makes it careful, nor speaks for it in its reports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from groundstate.engine.operate import fleet_status, pending, triggers, why
from groundstate.engine.sql import commit_hooks
from groundstate.engine.sql.commit_hooks import TouchedRecords
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch.hint_publisher import HintPublisher
from groundstate.rules.hint_codec import Hint, decode_hint
from groundstate.store import connect
from groundstate.transport.memory import MemoryTransport
from groundstate.transport.postgres import PostgresTransport
from tests.engine.kit import HANG_S, Order, World, until

PLACED = "INSERT INTO orders (id, status, round) VALUES (1, 'placed', 1)"


@dataclass
class Two:
    """`shop` packs what was placed, and `mailer` mails what was packed."""

    shop: World
    mailer: World

    @property
    def worlds(self) -> tuple[World, World]:
        return self.shop, self.mailer


@pytest.fixture
def two(database_url: str) -> Iterator[Two]:
    yield from both(database_url)


@pytest.fixture
def two_on_postgres(postgres_url: str) -> Iterator[Two]:
    yield from both(postgres_url)


def both(url: str) -> Iterator[Two]:
    made = Two(World(url), World(url))
    made.mailer.app.name = "mailer"

    @made.shop.app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"

    @made.mailer.app.on(Order, Order.status == "packed")
    def mailed(order: Order) -> None:
        order.status = "mailed"

    for world in made.worlds:
        world.there()
    yield made
    for world in made.worlds:
        world.close()


def questions(world: World, database: Any) -> list[ConditionQuery]:
    return [ConditionQuery(spec, database) for spec in world.app.reactions.values()]


# ---- triggers --------------------------------------------------------------------------------------------------------------------
def install(world: World) -> None:
    database = connect.open_store(world.app.stores[0].settings())[0]
    wanted = triggers.tables_read(questions(world, database))
    triggers.run_statements(database, triggers.install_statements(world.app.name, database, wanted))
    database.close()


def found(world: World) -> list[tuple[str, str]]:
    database = connect.open_store(world.app.stores[0].settings())[0]
    wanted = triggers.tables_read(questions(world, database))
    with database.reading() as connection:
        told: list[tuple[str, str]] = [
            (one.table, one.state) for one in triggers.read_triggers(world.app.name, database, connection, wanted)
        ]
    database.close()
    return told


def remove(world: World) -> None:
    database = connect.open_store(world.app.stores[0].settings())[0]
    with database.reading() as connection:
        statements = triggers.removal_statements(world.app.name, connection)
    triggers.run_statements(database, statements)
    database.close()


def heard(listening: psycopg.Connection[Any], address: str) -> list[str]:
    """The channels on which something came so far, each once a notification."""
    with psycopg.connect(address, autocommit=True) as other:
        other.execute("NOTIFY groundstate_rows_shop, 'end'")
    channels: list[str] = []
    for one in listening.notifies(timeout=HANG_S):
        if one.payload == "end":
            return sorted(channels)
        channels.append(one.channel)
    raise AssertionError("the end was not heard")


def test_each_app_has_triggers_of_its_own_and_what_a_worker_writes_is_told_to_the_other_apps(two_on_postgres: Two) -> None:
    shop, mailer = two_on_postgres.worlds
    address = shop.url.replace("+psycopg", "")
    shop.run("CREATE TABLE old (id int)")
    install(mailer)
    shop.run("CREATE TRIGGER groundstate_rows_mailer AFTER INSERT ON old EXECUTE FUNCTION groundstate_rows('old', 'mailer')")
    assert found(shop) == [("orders", "missing")], "another app's triggers are nothing that is needless"
    assert found(mailer) == [("orders", "installed"), ("old", "needless")]
    install(shop)
    with psycopg.connect(address, autocommit=True) as listening:
        listening.execute("LISTEN groundstate_rows_shop; LISTEN groundstate_rows_mailer")
        shop.run(PLACED)
        assert heard(listening, address) == ["groundstate_rows_mailer", "groundstate_rows_shop"]
        shop.settled()
        assert shop.order().status == "packed"
        assert set(heard(listening, address)) == {"groundstate_rows_mailer"}, "its own workers tell each other by themselves"
    remove(shop)
    assert (found(shop), found(mailer)) == ([("orders", "missing")], [("orders", "installed"), ("old", "needless")])
    remove(mailer)
    with shop.engine.connect() as connection:
        left = "SELECT count(*) FROM pg_proc WHERE proname = 'groundstate_rows'"
        assert connection.exec_driver_sql(left).scalar_one() == 0, "the last app takes the function along"


def test_triggers_of_an_app_that_has_nothing_here_any_more_are_needless_and_removed_with_those_of_any_other(two_on_postgres: Two) -> None:
    shop, mailer = two_on_postgres.worlds
    install(mailer)
    shop.run("DELETE FROM groundstate_reaction WHERE app = 'mailer'")
    assert found(shop) == [("orders", "missing"), ("orders", "needless")]
    remove(shop)
    assert found(mailer) == [("orders", "missing")]


def test_a_worker_hears_at_once_what_the_worker_of_another_app_wrote(two_on_postgres: Two) -> None:
    shop, mailer = two_on_postgres.worlds
    install(mailer)
    way: Any = connect.hint_connection_arguments(mailer.app.stores[0].settings())
    told = HintPublisher("mailer", PostgresTransport(way[0], also=(triggers.channel_name("mailer"),)), [])
    told.start()
    try:
        life = mailer.worker(messenger=told)
        told.add_receiver(life.worker)
        life.quiet()
        commit_hooks.remove_listener(life.worker)  # as in a process of its own, where only the trigger tells
        life.hints_alone()
        shop.run(PLACED)
        shop.settled()
        until(lambda: shop.order().status == "mailed")
    finally:
        told.stop()


class Sent(MemoryTransport):
    """Keeps what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.hints: list[Hint] = []

    def send(self, hint: bytes) -> None:
        found = decode_hint(hint)
        assert found is not None
        self.hints.append(found)


def test_what_a_worker_of_another_app_in_this_process_wrote_is_told_to_workers_elsewhere(two: Two) -> None:
    database = connect.open_store(two.mailer.app.stores[0].settings())[0]
    sent = Sent()
    told = HintPublisher("mailer", sent, questions(two.mailer, database))  # which carries nothing out here
    for app in ("mailer", "shop"):
        touched = TouchedRecords(ours=app)
        touched.add(Order, [(1,)], None)
        told.note_commit(touched)
        told._send_collected()
    assert [(one.reactions, one.in_hand) for one in sent.hints] == [(("mailed",), False)]
    database.close()


# ---- careful mode, and reports -----------------------------------------------------------------------------------------------------
def test_workers_of_one_app_that_crash_make_no_other_app_careful(two: Two) -> None:
    shop, mailer = two.worlds
    other = mailer.worker()
    for _ in range(2):
        shop.worker().kill()
    third = shop.worker()
    third.quiet()
    other.sweep()
    other.quiet()
    assert (third.worker.incarnation.care.careful, other.worker.incarnation.care.careful) == (True, False)
    seen = {world.app.name: looked(world) for world in two.worlds}
    assert {app: one.careful for app, one in seen.items()} == {"shop": True, "mailer": False}
    assert "2 workers ended uncleanly" in (seen["shop"].last_end or "")
    assert seen["mailer"].last_end == "no worker ended uncleanly in the last minutes"


def looked(world: World) -> fleet_status.Overview:
    database, make_lives, _ = connect.open_store(world.app.stores[0].settings())
    seen = fleet_status.build_overview(world.app.name, database, questions(world, database), [], liveness=make_lives())
    database.close()
    return seen


def test_the_living_worker_of_another_app_carries_out_nothing_of_this_one(two: Two) -> None:
    shop, mailer = two.worlds
    mailer.worker()
    shop.run(PLACED)
    database, make_lives, _ = connect.open_store(shop.app.stores[0].settings())
    said = why.explain_record("shop", database, questions(shop, database), make_lives(), "orders", "1")
    assert said.answers[0].next == "carried out as soon as a worker runs"
    report = pending.build_pending_report("shop", database, questions(shop, database), make_lives())
    assert "no worker lives" in report.in_flight
    assert [one.app for one in report.workers] == ["mailer"]
    database.close()
