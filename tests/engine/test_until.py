"""`until` beside others: on a loop whose threads are all taken, with keys as a URL has them, and on a loop that is not asyncio's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import App, DeclarationError, Store
from tests.engine.kit import HANG_S, Order, World
from tests.patience import HANG


class Base(DeclarativeBase):
    pass


class Upload(Base):
    __tablename__ = "uploads"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    part: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def uploads(database_url: str) -> World:
    """A world of uploads."""
    return World(database_url, Base)


def test_it_answers_and_an_app_starts_and_stops_while_the_default_executor_of_its_loop_is_full(world: World) -> None:
    gate = threading.Event()
    world.orders(1, note="there")

    async def ask() -> bool:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        taken = loop.run_in_executor(None, gate.wait, HANG_S)
        try:
            async with world.app.running():
                return await world.app.until(Order, 1, Order.note == "there", timeout=HANG)
        finally:
            gate.set()
            await taken

    assert asyncio.run(ask())


def test_a_text_stands_for_the_key_that_it_is_the_text_of(world: World) -> None:
    world.orders(1)
    assert asyncio.run(world.app.until(Order, "1", timeout=HANG))
    with pytest.raises(DeclarationError, match="that is no primary key of it: 'one' is not a whole number"):
        asyncio.run(world.app.until(Order, "one", timeout=HANG))


def test_a_uuid_may_be_given_as_its_text(uploads: World) -> None:
    number = uuid4()
    uploads.add(Upload(id=number, part=2))
    for key in ((number, 2), (str(number), "2"), (number.hex, 2)):
        assert asyncio.run(uploads.app.until(Upload, key, timeout=HANG))
    with pytest.raises(DeclarationError, match="that is no primary key of it: 'none' is not a UUID"):
        asyncio.run(uploads.app.until(Upload, ("none", 2), timeout=HANG))
    uploads.close()


def test_where_no_loop_of_asyncio_runs_it_is_refused_in_words() -> None:
    app = App("trio", Store("sqlite:///trio.db", Base))
    waits: Coroutine[Any, Any, bool] = app.until(Upload, (uuid4(), 1), timeout=HANG)
    runs: Coroutine[Any, Any, None] = app.running().__aenter__()
    for refused in (waits, runs):
        with pytest.raises(DeclarationError, match="needs asyncio's loop, and none runs here: under trio"):
            refused.send(None)
