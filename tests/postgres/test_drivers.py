"""The user's own code beside us: async sessions on asyncpg and on psycopg, and sync ones, whose commits wake reactions at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import create_engine, insert, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.engine.charging import ASK, charging
from tests.engine.kit import Order, World, until


def of(url: str, driver: str) -> str:
    return make_url(url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)


def by_hints_alone(world: World) -> None:
    """A worker that has swept, and will not again."""
    life = world.worker()
    life.quiet()
    life.worker.components.sweeps.next = float("inf")


async def _writes_async(url: str, number: int) -> None:
    engine = create_async_engine(url)
    async with AsyncSession(engine) as session, session.begin():
        session.add(Order(id=number))
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(insert(Order).values(id=number + 1))
    async with AsyncSession(engine) as session:
        assert await session.scalar(select(Order.id).where(Order.id == number)) == number
    await engine.dispose()


def _writes_sync(url: str, number: int) -> None:
    engine = create_engine(url)
    with Session(engine) as session, session.begin():
        session.add(Order(id=number))
    with Session(engine) as session, session.begin():
        session.execute(insert(Order).values(id=number + 1))
    engine.dispose()


WRITERS: dict[str, Callable[[str, int], Any]] = {
    "asyncpg": lambda url, number: asyncio.run(_writes_async(of(url, "asyncpg"), number)),
    "psycopg_async": lambda url, number: asyncio.run(_writes_async(of(url, "psycopg_async"), number)),
    "psycopg": lambda url, number: _writes_sync(of(url, "psycopg"), number),
}


def test_commits_by_any_driver_in_one_process_wake_reactions_at_once(world: World) -> None:
    gateway = charging(world, ASK)
    by_hints_alone(world.there())
    for number, write in enumerate(WRITERS.values()):
        write(world.url, 10 * number)
    until(lambda: world.count(Order.status == "paid") == 2 * len(WRITERS))
    assert len(gateway.ledger) == 2 * len(WRITERS)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "psycopg_async"])
def test_an_engine_of_the_users_own_is_what_a_store_is_made_from(driver: str, postgres_url: str) -> None:
    make: Any = create_engine if driver == "psycopg" else create_async_engine
    engine = make(of(postgres_url, driver))
    world = World(engine)
    try:
        charging(world, ASK)
        world.orders(2)
        world.settled()
        assert world.count(Order.status == "paid") == 2
    finally:
        world.close()
