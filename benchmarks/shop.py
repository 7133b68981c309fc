"""The orders of most workloads, and the apps that carry them out.

The module imports only what a user's module would, since the start of workers is timed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import Float, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import Absent, App, ExternalService, IdempotencyKey, InDoubt, ReactionContext, Store, Unknown, UtcDateTime
from groundstate.app.declared import reactions_of
from groundstate.engine.operate.check import check_database
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect

STEPS = {"placed": "paid", "paid": "packed", "packed": "shipped"}


class Base(DeclarativeBase):
    """The declarative base of the shop's tables."""


class Order(Base):
    """One order."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    receipt: Mapped[str | None] = mapped_column(default=None)


class Timer(Base):
    """A record with a due time, which is carried out once."""

    __tablename__ = "timers"

    id: Mapped[int] = mapped_column(primary_key=True)
    due_at: Mapped[datetime] = mapped_column(UtcDateTime)
    done_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class Visit(Base):
    """A row that another program writes to the same database."""

    __tablename__ = "visits"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]
    at: Mapped[float | None] = mapped_column(Float, default=None)


def ignore_order(_order: int) -> None:
    """Do nothing; the default for `heard`."""


def create_steps_app(url: str) -> App:
    """Return an app that carries out three steps of each order, in the database only."""
    return create_steps_app_on(Store(url, Base))


def create_steps_app_on(store: Store) -> App:
    """Return the app of `create_steps_app` on a given store."""
    app = App("steps", store)

    @app.on(Order, Order.status == "placed")
    def paid(order: Order) -> None:
        order.status = "paid"

    @app.on(Order, Order.status == "paid")
    def packed(order: Order) -> None:
        order.status = "packed"

    @app.on(Order, Order.status == "packed")
    def shipped(order: Order) -> None:
        order.status = "shipped"

    return app


def create_packing_app(url: str, heard: Callable[[int], None] = ignore_order) -> App:
    """Return an app that carries out one step of each order, in the database only. heard: called first in the handler."""
    app = App("packing", Store(url, Base))

    @app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None:
        heard(order.id)
        order.status = "packed"

    return app


def create_reminding_app(url: str, heard: Callable[[int], None] = ignore_order) -> App:
    """Return an app that carries out timers, in the database only. heard: called first in the handler."""
    app = App("reminding", Store(url, Base))

    @app.on(Timer, Timer.done_at.is_(None), due=Timer.due_at)
    def reminded(timer: Timer, ctx: ReactionContext) -> None:
        heard(timer.id)
        timer.done_at = ctx.now

    return app


def create_charging_app(url: str, *, limit: int, call_s: float = 0.002, heard: Callable[[int], None] = ignore_order) -> App:
    """Return an app with one external call of `call_s` seconds for each order. heard: called first in the call and in its lookup."""
    app = App("charging", Store(url, Base))
    bank = ExternalService("bank", limit=limit)

    @bank.call(in_doubt=InDoubt.lookup(settle_after=timedelta(seconds=1)), timeout=timedelta(seconds=60))
    async def charge(order: Order, key: IdempotencyKey) -> str:
        heard(order.id)
        await asyncio.sleep(call_s)
        return key[:8]

    @charge.lookup
    async def charge_lookup(order: Order, key: IdempotencyKey) -> str | Absent | Unknown:  # noqa: ARG001  # a real bank finds by the key
        heard(order.id)
        return Absent()

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status, order.receipt = "paid", outcome

    return app


def create_tables(app: App) -> None:
    """Create the tables of the shop and of groundstate."""
    app.init(tables=True, accept=True)


def create_proposed_indexes(app: App) -> list[str]:
    """Create the indexes that `groundstate check` proposes, and return their DDL."""
    made: list[str] = []
    for store in app.stores:
        database, _, _ = connect.open_store(store.settings())
        try:
            findings = check_database(database, [ConditionQuery(spec, database) for spec in reactions_of(app, store)], store.metadatas)
        finally:
            database.close()
        made += [one.cure for one in findings if one.kind == "index" and one.cure]
        engine = create_engine(store.settings().url)
        # CREATE INDEX CONCURRENTLY must not run in a transaction.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for ddl in made:
                connection.execute(text(ddl))
        engine.dispose()
    return made
