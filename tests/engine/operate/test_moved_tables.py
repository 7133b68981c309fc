"""What is open keeps others off its record also where the table is renamed, moved to another schema, or spelled in another way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import App, ExternalService, IdempotencyKey, InDoubt, Store
from groundstate.engine.operate import moved_tables
from groundstate.engine.operate.plan import build_plan
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from groundstate.values.errors import StateRefusedError
from tests.engine.charging import charging
from tests.engine.kit import CALL_LIMIT, QUICK, Gateway, World


@pytest.fixture
def held(database_url: str) -> Iterator[World]:
    """A call for order 1 may have been made, and waits for a person."""
    yield from in_doubt(database_url)


@pytest.fixture
def held_on_postgres(postgres_url: str) -> Iterator[World]:
    yield from in_doubt(postgres_url)


def in_doubt(url: str) -> Iterator[World]:
    world = World(url)
    gateway = charging(world, InDoubt.hold())
    gateway.plan(1, "done_raise")
    world.orders(1)
    world.settled()
    assert (world.attempt().state.value, world.attempt().unsure) == ("held", True)
    yield world
    world.close()


def other_code(url: str, table: str, schema: str | None = None, *, app: str = "shop") -> tuple[World, Any]:
    """Code that declares its records of this table, with `paid` as it was, and a reaction `seen` beside it."""

    class OtherBase(DeclarativeBase): ...

    class Record(OtherBase):
        __tablename__ = table
        __table_args__ = {"schema": schema}  # noqa: RUF012  # as SQLAlchemy has it
        id: Mapped[int] = mapped_column(primary_key=True)
        status: Mapped[str]
        note: Mapped[str | None]

    new = World(url, OtherBase)
    if app != "shop":
        new.app = App(app, Store(url, OtherBase))
    else:
        gateway, bank = Gateway(), ExternalService("bank")

        @bank.call(in_doubt=InDoubt.hold(), timeout=CALL_LIMIT, retry=QUICK)
        async def charge(order: Any, key: IdempotencyKey) -> str:
            return await gateway.act(order.id, key)

        @new.app.on(Record, Record.status == "placed", call=charge)
        def paid(order: Any, outcome: str) -> None:
            order.status = f"paid {outcome}"

    @new.app.on(Record, Record.note.is_(None))
    def seen(order: Any) -> None:
        order.note = "seen"

    new._there = True
    return new, Record


def notes(world: World, table: str) -> list[str | None]:
    with world.engine.connect() as connection:
        return list(connection.exec_driver_sql(f"select note from {table} order by id").scalars())


def works(new: World) -> None:
    """A worker of it, until all is quiet."""
    new.app.init(accept=["seen"])
    new.settled()


def test_what_is_in_doubt_follows_a_table_that_is_renamed(held: World, caplog: pytest.LogCaptureFixture) -> None:
    held.run("alter table orders rename to purchases")
    new, _ = other_code(held.url, "purchases")
    works(new)
    assert notes(held, "purchases") == [None]
    assert held.attempt().blocks == "purchases"
    assert held.attempt().unsure
    caplog.clear()
    works(new)
    assert notes(held, "purchases") == [None]
    new.close()


def test_what_is_in_doubt_follows_a_table_that_is_moved_to_another_schema(held_on_postgres: World) -> None:
    world = held_on_postgres
    world.run("create schema sales")
    world.run("alter table orders set schema sales")
    new, _ = other_code(world.url, "orders", "sales")
    works(new)
    assert notes(world, "sales.orders") == [None]
    assert world.attempt().blocks == "sales.orders"
    new.close()


@pytest.mark.parametrize("written", ["with its schema", "without"])
def test_a_table_is_the_same_with_its_default_schema_and_without(held: World, written: str) -> None:
    default = "public" if held.postgres else "main"
    if written == "with its schema":
        held.force(f"update groundstate_attempt set blocks = '{default}.orders'")
    new, record = other_code(held.url, "orders", None if written == "with its schema" else default, app="spelled otherwise")
    new.app.init(accept=True)
    life = new.worker()
    life.quiet()
    assert notes(held, "orders") == [None], "it waits for the call of the other app"
    with Session(new.engine) as session:
        session.delete(session.get(record, 1))
        with pytest.raises(StateRefusedError, match="cannot be deleted now"):
            session.flush()
    held.force("delete from groundstate_attempt")
    life.quiet()
    assert notes(held, "orders") == ["seen"]
    new.close()


def test_where_both_tables_are_there_a_person_is_told(held: World, caplog: pytest.LogCaptureFixture) -> None:
    held.run("create table purchases (id integer primary key, status varchar not null, note varchar)")
    new, _ = other_code(held.url, "purchases")
    new.app.init(accept=["seen"])
    database, _, _ = connect.open_store(new.app.stores[0].settings())
    database.connect()
    try:
        questions = [ConditionQuery(spec, database) for spec in new.app.reactions.values()]
        planned = build_plan(new.app.name, database, questions, [])
    finally:
        database.close()
    words = "1 call is in the air or in doubt on records of orders, and this code declares paid on purchases"
    assert [one.startswith(words) for one in planned.elsewhere] == [True]
    assert planned.needs_person
    new.settled()
    told = [one for one in caplog.records if vars(one).get("event") == "table_unclear"]
    assert [(one.levelname, vars(one)["reaction"], vars(one)["was"], vars(one)["now"]) for one in told] == [
        ("WARNING", "paid", "orders", "purchases")
    ]
    assert held.attempt().blocks == "orders", "it is left as it is"
    new.close()


def test_before_the_migration_has_made_the_new_table_nothing_is_said_of_it(held: World) -> None:
    new, _ = other_code(held.url, "purchases")
    database, _, _ = connect.open_store(new.app.stores[0].settings())
    database.connect()
    try:
        with database.reading() as connection:
            questions = [ConditionQuery(spec, database) for spec in new.app.reactions.values()]
            assert list(moved_tables.find_calls_on_other_tables(connection, "shop", questions)) == []
    finally:
        database.close()
    new.close()
