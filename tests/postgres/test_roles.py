"""Roles without power, row-level security, and tables in schemas of their own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate.engine.operate.check import check_database
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.findings import Finding
from groundstate.store import connect
from tests.docs.blocks import ROOT, blocks_of
from tests.engine.charging import ASK, charging
from tests.engine.kit import Order, World, until
from tests.postgres.pairs import asked
from tests.postgres.roles import role

OURS = "groundstate_attempt, groundstate_reaction, groundstate_worker, groundstate_rate"


def name_of(login: str) -> str:
    return str(make_url(login).username)


def findings(world: World) -> list[Finding]:
    database = connect.open_store(world.app.stores[0].settings())[0]
    try:
        return check_database(
            database, [ConditionQuery(spec, database) for spec in world.app.reactions.values()], world.app.stores[0].metadatas
        )
    finally:
        database.close()


@contextmanager
def worker_as(owner: World, login: str) -> Iterator[World]:
    """The owner's shop, as a role that owns nothing and has the rights of the docs."""
    asked(owner.url, "revoke all on schema public from public")
    grants = next(block.code for block in blocks_of(ROOT / "docs" / "operating.md") if "to app_worker" in block.code)
    for line in grants.split(";"):
        if "to app_worker" in line:
            asked(owner.url, line.replace("app_worker, app_reader", "app_worker").replace("app_worker", name_of(login)))
    made = World(login)
    made.engine.dispose()
    made.engine = create_engine(owner.url)
    made._there = True
    try:
        yield made
    finally:
        made.close()


def test_a_role_that_owns_nothing_carries_out_adopts_and_reads_the_servers_identity(world: World) -> None:
    charging(world, ASK)
    world.orders(2)
    with role(world.url, options="") as login, worker_as(world, login) as mine:
        gateway = charging(mine, ASK)
        gateway.plan(1, "done_hang")
        first = mine.worker()
        until(lambda: gateway.waiting == 1)
        assert first.database.identity() == asked_identity(world)
        first.kill()
        second = mine.worker()
        mine.forward(60)
        until(lambda: mine.count(Order.status == "paid") == 2)
        second.quiet()
        assert [gateway.done(number) for number in (1, 2)] == [1, 1]


def asked_identity(world: World) -> str | None:
    database = connect.open_store(world.app.stores[0].settings())[0]
    try:
        return database.identity()
    finally:
        database.close()


POLICY = "create policy one_tenant on orders to {} using (round = 1) with check (true)"


def test_rows_that_a_policy_hides_are_a_finding_and_a_warning(world: World, caplog: pytest.LogCaptureFixture) -> None:
    charging(world, ASK)
    world.add(Order(id=1), Order(id=2, round=2))
    with role(world.url, options="") as login, worker_as(world, login) as mine:
        gateway = charging(mine, ASK)
        asked(world.url, "alter table orders enable row level security")
        asked(world.url, POLICY.format(name_of(login)))
        found = [one for one in findings(mine) if one.kind == "row security"]
        assert [(one.level, one.subject) for one in found] == [("problem", "orders")]
        assert name_of(login) in found[0].words
        assert [one.kind for one in findings(world) if one.kind == "row security"] == [], "its owner sees all"
        with caplog.at_level(logging.WARNING, "groundstate"):
            life = mine.worker()
            until(lambda: "policies may hide rows of orders" in caplog.text)
        life.quiet()
        assert [world.order(number).status for number in (1, 2)] == ["paid", "placed"]
        cure = (found[0].cure or "").partition(", and no RESTRICTIVE")[0]
        asked(world.url, cure)  # as it is said
        assert [one.kind for one in findings(mine) if one.kind == "row security"] == []
        until(lambda: world.order(2).status == "paid")
        assert gateway.done(2) == 1
        asked(world.url, f"create policy narrow on orders as restrictive to {name_of(login)} using (round = 1)")
        assert [one.kind for one in findings(mine) if one.kind == "row security"] == ["row security"]


class Elsewhere(DeclarativeBase):
    pass


class Invoice(Elsewhere):
    __tablename__ = "invoices"
    __table_args__ = {"schema": "Sales Dept"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")


def test_records_in_another_schema_and_our_tables_in_one_of_their_own(postgres_url: str) -> None:
    """Our tables have no schema in their names: they are where the role's search_path leads."""
    for schema in ('"Sales Dept"', "ours"):
        asked(postgres_url, f"create schema {schema}")
    with role(postgres_url, {"search_path": "ours"}) as login:
        world = World(login, Elsewhere)
        try:

            @world.app.on(Invoice, Invoice.status == "open")
            def paid(invoice: Invoice) -> None:
                invoice.status = "paid"

            world.add(Invoice(id=1), Invoice(id=2))
            world.settled()
            assert asked(postgres_url, "select count(*) from \"Sales Dept\".invoices where status = 'paid'") == 2
            assert asked(postgres_url, "select count(*) from pg_tables where schemaname = 'ours' and tablename ~ '^groundstate_'") == 4
            index = next(one.cure for one in findings(world) if one.kind == "index")
            assert index is not None
            asked(postgres_url, index)
            assert [one.kind for one in findings(world)] == []
        finally:
            world.close()
