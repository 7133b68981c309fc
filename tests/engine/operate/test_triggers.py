"""Triggers of PostgreSQL tell, at commit and without data, which tables other programs wrote; removed, nothing of them stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Column, Integer, MetaData, Table, event, text
from sqlalchemy.orm import Session

from groundstate.engine.operate import triggers
from groundstate.engine.rows import reaction_registry
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch.hint_publisher import HintPublisher
from groundstate.store import connect
from groundstate.transport.postgres import PostgresTransport
from tests.engine.kit import HANG_S, Order, World, until

PLAIN = "INSERT INTO orders (id, status, round) VALUES ({}, 'placed', 1)"


class Shop:
    """A world whose tables tell who wrote them, and somebody who listens."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.database, _, _ = connect.open_store(world.app.stores[0].settings())
        self.address = world.url.replace("+psycopg", "")
        self.listening = psycopg.connect(self.address, autocommit=True)
        self.listening.execute("LISTEN groundstate_rows_shop")

    @property
    def questions(self) -> list[ConditionQuery]:
        return [ConditionQuery(spec, self.database) for spec in self.world.app.reactions.values()]

    def install(self) -> None:
        triggers.run_statements(
            self.database, triggers.install_statements(self.world.app.name, self.database, triggers.tables_read(self.questions))
        )

    def remove(self) -> None:
        with self.database.reading() as connection:
            statements = triggers.removal_statements(self.world.app.name, connection)
        triggers.run_statements(self.database, statements)

    def found(self) -> dict[str, str]:
        with self.database.reading() as connection:
            return {
                one.table: one.state
                for one in triggers.read_triggers(self.world.app.name, self.database, connection, triggers.tables_read(self.questions))
            }

    def heard(self) -> list[str]:
        """What came so far: whatever was sent before a word of our own."""
        with psycopg.connect(self.address, autocommit=True) as other:
            other.execute("NOTIFY groundstate_rows_shop, 'end'")
        said: list[str] = []
        for one in self.listening.notifies(timeout=HANG_S):
            if one.payload == "end":
                return said
            said.append(one.payload.rpartition(" ")[0])
        raise AssertionError("the end was not heard")

    def close(self) -> None:
        self.listening.close()
        self.database.close()


@pytest.fixture
def shop(postgres_world: World) -> Iterator[Shop]:
    @postgres_world.app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        order.status = "packed"

    postgres_world.there()
    made = Shop(postgres_world)
    yield made
    made.close()


def test_a_hint_comes_at_commit_and_not_before_and_none_at_rollback(shop: Shop) -> None:
    shop.install()
    with psycopg.connect(shop.address) as writer:
        writer.execute(PLAIN.format(1))
        assert shop.heard() == []
        writer.commit()
        assert shop.heard() == ["orders"]
        writer.execute(PLAIN.format(2))
        writer.rollback()
        assert shop.heard() == []


def test_a_transaction_tells_of_each_table_once(shop: Shop) -> None:
    shop.install()
    with psycopg.connect(shop.address) as writer:
        for number in range(5):
            writer.execute(PLAIN.format(number))
        writer.execute("UPDATE orders SET note = 'x'")
        writer.execute("DELETE FROM orders WHERE id = 3")
    assert shop.heard() == ["orders"]


def test_removed_nothing_of_them_stays_and_nothing_is_told(shop: Shop) -> None:
    shop.install()
    shop.install()  # may be said again
    assert shop.found() == {"orders": "installed"}
    shop.remove()
    assert shop.found() == {"orders": "missing"}
    shop.world.run(PLAIN.format(1))
    assert shop.heard() == []
    with shop.world.engine.connect() as connection:
        left = (
            "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'groundstate%' AND tgname NOT LIKE 'groundstate_keep%' AND NOT tgisinternal"
        )
        assert connection.execute(text(left)).scalar_one() == 0
        functions = "SELECT proname FROM pg_proc WHERE proname LIKE 'groundstate%'"
        assert connection.execute(text(functions)).scalars().all() == ["groundstate_keep"]  # which keeps the rows of open calls


@pytest.mark.parametrize(
    ("edit", "state"),
    [
        ("ALTER TABLE orders DISABLE TRIGGER groundstate_rows_shop", "stale"),
        ("CREATE OR REPLACE FUNCTION groundstate_rows() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'", "stale"),
        ("DROP TRIGGER groundstate_rows_shop ON orders", "missing"),
    ],
)
def test_what_somebody_did_to_them_is_seen_and_mended(shop: Shop, edit: str, state: str) -> None:
    shop.install()
    shop.world.run(edit)
    assert shop.found() == {"orders": state}
    shop.install()
    assert shop.found() == {"orders": "installed"}


def test_a_trigger_on_a_table_that_no_reaction_reads_is_seen(shop: Shop) -> None:
    shop.install()
    shop.world.run('CREATE TABLE "Old 50%" (id int)')
    shop.world.run("CREATE TRIGGER groundstate_rows AFTER INSERT ON \"Old 50%\" EXECUTE FUNCTION groundstate_rows('old')")
    assert shop.found() == {"orders": "installed", '"Old 50%"': "needless"}
    shop.remove()
    shop.world.run('INSERT INTO "Old 50%" VALUES (1)')
    assert shop.heard() == []


def test_tables_in_schemas_in_parts_and_with_quoted_names_are_told_of(shop: Shop) -> None:
    table = Table('Half "50%"', MetaData(), Column("id", Integer), schema="It's", postgresql_partition_by="RANGE (id)")
    shop.world.run('CREATE SCHEMA "It\'s"')
    with shop.world.engine.begin() as connection:
        table.create(connection)
        connection.exec_driver_sql('CREATE TABLE part PARTITION OF "It\'s"."Half ""50%%""" FOR VALUES FROM (0) TO (9)')
    wanted = {table.fullname: table}
    triggers.run_statements(shop.database, triggers.install_statements(shop.world.app.name, shop.database, wanted))
    with shop.database.reading() as connection:
        assert [(one.table, one.state) for one in triggers.read_triggers(shop.world.app.name, shop.database, connection, wanted)] == [
            (table.fullname, "installed")
        ]
    with shop.world.engine.begin() as connection:
        connection.execute(table.insert().values(id=1))
    assert shop.heard() == [table.fullname]
    shop.world.run("UPDATE part SET id = 2")  # by the part's own name
    assert shop.heard() == []
    shop.remove()
    with shop.world.engine.begin() as connection:
        connection.execute(table.delete())
    assert shop.heard() == []


def test_a_writer_needs_no_right_but_that_on_the_table(shop: Shop) -> None:
    shop.install()
    role = f"writer_{shop.world.url.rpartition('/')[2]}"
    for statement in (f"CREATE ROLE {role} LOGIN", f"GRANT INSERT ON orders TO {role}"):
        shop.world.run(statement)
    try:
        with psycopg.connect(shop.address.replace("postgres@", f"{role}@")) as writer:
            writer.execute(PLAIN.format(1))
        assert shop.heard() == ["orders"]
    finally:
        shop.world.run(f"DROP OWNED BY {role}")
        shop.world.run(f"DROP ROLE {role}")


def test_what_workers_write_is_not_told(shop: Shop) -> None:
    shop.install()
    shop.world.run(PLAIN.format(1))
    shop.world.settled()
    assert shop.world.order().status == "packed"
    assert shop.heard() == ["orders"]


def test_our_triggers_count_for_none_that_change_rows(shop: Shop) -> None:
    def counted() -> bool:
        with shop.database.reading() as connection:
            return reaction_registry.has_triggers(connection, shop.database, shop.questions[0])

    shop.install()
    assert not counted()
    shop.world.run("CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
    shop.world.run("CREATE TRIGGER theirs BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION theirs()")
    assert counted()


def test_a_worker_hears_of_what_another_program_wrote(shop: Shop) -> None:
    shop.install()
    way: Any = connect.hint_connection_arguments(shop.world.app.stores[0].settings())
    told = HintPublisher("shop", PostgresTransport(way[0], also=(triggers.channel_name("shop"),)), shop.questions)
    told.start()
    try:
        life = shop.world.worker(messenger=told)
        told.add_receiver(life.worker)
        life.quiet()
        life.hints_alone()
        shop.world.run(PLAIN.format(7))
        until(lambda: shop.world.order(7).status == "packed")
        with Session(shop.world.engine) as session:
            assert session.get(Order, 7) is not None
    finally:
        told.stop()


def test_whose_writes_fire_no_trigger_is_told_with_the_cure_where_there_is_one(shop: Shop) -> None:
    def unheard() -> tuple[str, ...]:
        with shop.database.reading() as connection:
            [one] = triggers.read_triggers(shop.world.app.name, shop.database, connection, triggers.tables_read(shop.questions))
            return one.unheard

    shop.install()
    assert unheard() == ()
    role, name = f"loader_{uuid4().hex[:8]}", f"from_afar_{uuid4().hex[:8]}"
    with psycopg.connect(shop.address, autocommit=True) as person:
        person.execute(f"CREATE ROLE {role}")
        try:
            person.execute(f"ALTER ROLE {role} SET session_replication_role = replica")
            person.execute(f"CREATE SUBSCRIPTION {name} CONNECTION 'host=nowhere' PUBLICATION p WITH (connect = false, slot_name = NONE)")
            person.execute("SET allow_system_table_mods = on")  # as ALTER SUBSCRIPTION ... REFRESH writes it, with a publisher
            person.execute(
                "INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate)"
                " SELECT oid, 'orders'::regclass, 'r' FROM pg_subscription WHERE subname = %s",
                [name],
            )
            by_subscription, by_role = unheard()
            assert f"subscription {name} writes" in by_subscription
            cure = "ALTER TABLE orders ENABLE ALWAYS TRIGGER groundstate_rows_shop"
            assert (f"what role {role} writes" in by_role, by_role.endswith(cure)) == (True, True)
            person.execute(cure)
            assert unheard() == (by_subscription,)
            with psycopg.connect(shop.address) as writer:
                writer.execute("SET session_replication_role = replica")
                writer.execute(PLAIN.format(1))
            assert shop.heard() == ["orders"]
        finally:
            person.execute(f"DROP SUBSCRIPTION IF EXISTS {name}")
            person.execute(f"DROP ROLE {role}")
    assert shop.found() == {"orders": "installed"}


def test_it_is_asked_once_for_all_tables_whose_writes_fire_no_trigger(shop: Shop) -> None:
    metadata = MetaData()
    wanted = {name: Table(name, metadata, Column("id", Integer)) for name in ("first", "second", "third")}
    metadata.create_all(shop.world.engine)
    triggers.run_statements(shop.database, triggers.install_statements(shop.world.app.name, shop.database, wanted))
    asked: list[str] = []
    event.listen(shop.database.engine, "before_cursor_execute", lambda _connection, _cursor, statement, *_: asked.append(statement))
    with shop.database.reading() as connection:
        found = triggers.read_triggers(shop.world.app.name, shop.database, connection, wanted)
    assert [one.state for one in found] == ["installed"] * 3
    assert sum("pg_db_role_setting" in statement for statement in asked) == 1
