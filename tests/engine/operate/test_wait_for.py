"""`wait_for` beside others: on a loop whose threads are all taken, with keys as a URL has them, and on a loop that is not asyncio's."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import exists, false, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import App, DeclarationError, Store, UtcDateTime
from tests.engine.kit import HANG_S, Order, World
from tests.patience import HANG


class Base(DeclarativeBase):
    pass


class Upload(Base):
    __tablename__ = "uploads"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    part: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime | None] = mapped_column(UtcDateTime)


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
                return await world.app.wait_for(Order, 1, Order.note == "there", timeout=HANG)
        finally:
            gate.set()
            await taken

    assert asyncio.run(ask())


def test_a_text_stands_for_the_key_that_it_is_the_text_of(world: World) -> None:
    world.orders(1)
    assert asyncio.run(world.app.wait_for(Order, "1", timeout=HANG))
    with pytest.raises(DeclarationError, match="that is no primary key of it: 'one' is not a whole number"):
        asyncio.run(world.app.wait_for(Order, "one", timeout=HANG))


def test_a_uuid_may_be_given_as_its_text(uploads: World) -> None:
    number = uuid4()
    uploads.add(Upload(id=number, part=2))
    for key in ((number, 2), (str(number), "2"), (number.hex, 2), [number, 2], [str(number), 2], f'["{number}",2]'):
        assert asyncio.run(uploads.app.wait_for(Upload, key, timeout=HANG))
    with pytest.raises(DeclarationError, match="that is no primary key of it: 'none' is not a UUID"):
        asyncio.run(uploads.app.wait_for(Upload, ("none", 2), timeout=HANG))
    uploads.close()


@pytest.mark.parametrize("key", [(1,), [1, 2, 3], "[1]", "one", 1])
def test_a_key_of_another_number_of_columns_is_refused(uploads: World, key: object) -> None:
    with pytest.raises(DeclarationError, match=r"its primary key has 2 columns: give a tuple|is not a JSON array of 2 values"):
        _ = uploads.app.wait_for(Upload, key, timeout=HANG)
    uploads.close()


def test_without_clauses_it_waits_until_the_record_exists(world: World) -> None:
    world.orders(1)
    assert asyncio.run(world.app.wait_for(Order, 1, timeout=HANG))
    assert not asyncio.run(world.app.wait_for(Order, 2, timeout=timedelta()))


OTHERS: dict[str, tuple[Callable[[], object], str]] = {
    "another table": (lambda: Upload.part == 1, "uploads.part is not of Order"),
    "a subquery that says nothing of it": (lambda: exists().where(Upload.part == 1), "a subquery says nothing of the Order in question"),
    "True": (lambda: True, "a clause is Python's True"),
    "is None": (lambda: Order.note is None, "a clause is Python's False"),
    "a constant": (false, "the condition has the constant FALSE"),
    "a text": (lambda: text("note is null"), "a clause is text"),
    "a value of another type": (lambda: Order.note, "note is a column and no condition"),
}


@pytest.mark.parametrize("clause", OTHERS)
def test_a_clause_that_asks_nothing_of_the_record_is_refused_as_by_app_on(world: World, clause: str) -> None:
    given, words = OTHERS[clause]
    clause_: Any = given()
    with pytest.raises(DeclarationError, match=re.escape(words)):
        world.app.on(Order, clause_, name="one")(print)
    with pytest.raises(DeclarationError, match=rf"wait_for\(Order, 1\): {re.escape(words)}"):
        _ = world.app.wait_for(Order, 1, clause_, timeout=HANG)


def test_what_python_makes_of_a_clause_is_read_in_the_call(world: World) -> None:
    with pytest.raises(DeclarationError, match="Python's `and` drops one of its sides"):
        _ = world.app.wait_for(Order, 1, Order.note == "a" and Order.status == "b", timeout=HANG)
    with pytest.raises(DeclarationError, match="Python compares the column itself"):
        _ = world.app.wait_for(Order, 1, Order.note in ("a", "b"), timeout=HANG)  # type: ignore[arg-type]


def test_a_clause_may_have_the_present_time_in_it_and_a_key_any_python(uploads: World) -> None:
    number, part = uuid4(), 2
    uploads.add(Upload(id=number, part=part, at=datetime.now(UTC)))
    for _ in range(2):
        waits = uploads.app.wait_for(Upload, part and (number, part), Upload.at < datetime.now(UTC) + HANG, timeout=HANG)
        assert asyncio.run(waits)
    uploads.close()


def test_what_is_no_mapped_class_is_refused_in_words(world: World) -> None:
    with pytest.raises(DeclarationError, match="is no mapped class"):
        _ = world.app.wait_for(Order.__table__, 1, timeout=HANG)  # type: ignore[arg-type]


def test_where_no_loop_of_asyncio_runs_it_is_refused_in_words() -> None:
    app = App("trio", Store("sqlite:///trio.db", Base))
    waits: Coroutine[Any, Any, bool] = app.wait_for(Upload, (uuid4(), 1), timeout=HANG)
    runs: Coroutine[Any, Any, None] = app.running().__aenter__()
    for refused in (waits, runs):
        with pytest.raises(DeclarationError, match="needs asyncio's loop, and none runs here: under trio"):
            refused.send(None)
