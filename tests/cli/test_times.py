"""What is due, what was, what will be: `pending`, `pending --at`, `timers`, `why` and `check`, on each store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text

from tests.cli.conftest import Said, groundstate, module_named

APP = """
from datetime import datetime, timedelta
from sqlalchemy import func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from groundstate import App, UtcDateTime, Store, after

class Base(DeclarativeBase): ...

class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    placed_at: Mapped[datetime] = mapped_column(UtcDateTime)
    remind_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)

app = App(NAME, Store(URL, Base))

@app.on(Order, Order.status == "placed", due=after(Order.placed_at, timedelta(hours=24)))
def cancel_unpaid(order: Order) -> None:
    order.status = "cancelled"

@app.on(Order, Order.status == "placed", due=after(Order.remind_at, valid_for=timedelta(hours=6)))
def reminded(order: Order) -> None:
    order.status = "reminded"

@reminded.expired
def _(order: Order) -> None:
    order.status = "not reminded"
"""
CLOCK = """
@app.on(Order, Order.status == "paid", Order.placed_at < func.now())
def by_the_clock(order: Order) -> None:
    order.status = "old"
"""
HOUR = timedelta(hours=1)


class Timed:
    """An app with due times, on a database of its own."""

    def __init__(self, folder: Path, url: str, words: str = APP) -> None:
        _, module = module_named(folder, url, words)
        self.app = f"{module}:app"
        driver = make_url(url)
        self.postgres = url.startswith("postgres")
        self.engine = create_engine(driver.set(drivername="postgresql+psycopg") if self.postgres else driver)
        assert groundstate("init", "--tables", "--accept", "cancel_unpaid", "--app", self.app).code == 0
        self.now = datetime.now(UTC).replace(microsecond=0)

    def run(self, *arguments: str) -> Said:
        return groundstate(*arguments, "--app", self.app)

    def order(self, number: int, placed: timedelta, remind: timedelta | None = None) -> None:
        given = {"id": number, "at": self._written(placed), "remind": None if remind is None else self._written(remind)}
        with self.engine.begin() as connection:
            connection.execute(text("INSERT INTO orders (id, status, placed_at, remind_at) VALUES (:id, 'placed', :at, :remind)"), given)

    def _written(self, since: timedelta) -> Any:
        moment = self.now + since
        return moment if self.postgres else moment.replace(tzinfo=None).isoformat(" ", timespec="microseconds")

    def to_do(self, *arguments: str) -> dict[str, dict[str, Any]]:
        said = self.run("pending", "--json", *arguments)
        assert said.code == 0, said.err
        return {one["reaction"]: one for one in json.loads(said.out)["stores"][0]["report"]["to_do"]}


@pytest.fixture
def timed(folder: Path, database_url: str) -> Iterator[Timed]:
    made = Timed(folder, database_url)
    yield made
    made.engine.dispose()


def times(one: dict[str, Any]) -> tuple[Any, ...]:
    since, next_due = (None if one[name] is None else datetime.fromisoformat(one[name]) for name in ("overdue_since", "next_due"))
    return (one["rows"], one["too_late"], one["upcoming"], since, next_due)


def test_pending_tells_what_is_overdue_too_late_and_still_to_come(timed: Timed) -> None:
    timed.order(1, -30 * HOUR, -9 * HOUR)
    timed.order(2, -25 * HOUR, -2 * HOUR)
    timed.order(3, -20 * HOUR, 5 * HOUR)
    found = timed.to_do()
    assert times(found["cancel_unpaid"]) == (2, 0, 1, timed.now - 6 * HOUR, timed.now + 4 * HOUR)
    assert times(found["reminded"]) == (1, 1, 1, timed.now - 2 * HOUR, timed.now + 5 * HOUR)
    shown = timed.run("pending").out
    assert "due 1 d after orders.placed_at" in shown
    assert "1: expired answers" in shown


def test_pending_at_a_moment_tells_what_would_be_due_then_and_carries_nothing_out(timed: Timed) -> None:
    timed.order(1, -20 * HOUR, 5 * HOUR)
    then = timed.now + 10 * HOUR
    found = timed.to_do("--at", then.isoformat())
    assert times(found["cancel_unpaid"]) == (1, 0, 0, timed.now + 4 * HOUR, None)
    assert times(found["reminded"]) == (1, 0, 0, timed.now + 5 * HOUR, None)
    assert times(timed.to_do("--at", (then + 2 * HOUR).isoformat())["reminded"])[:2] == (0, 1)
    assert "What would be due at" in timed.run("pending", "--at", then.isoformat()).out
    with timed.engine.connect() as connection:
        assert connection.execute(text("SELECT status FROM orders")).scalars().all() == ["placed"]


@pytest.mark.parametrize("typed", ["tomorrow", "", "2026-13-01", "18:00"])
def test_a_moment_that_is_none_is_told_with_an_example(timed: Timed, typed: str) -> None:
    said = timed.run("pending", "--at", typed)
    assert (said.code, "write it as 2026-12-24T18:00Z" in said.err) == (2, True)


@pytest.mark.parametrize("typed", ["9999-12-31T23:59Z", "9999-12-31T23:59-01:00", "0001-01-01", "0001-01-01T00:00+05:00"])
def test_a_moment_at_an_end_of_the_calendar_is_refused_in_words(timed: Timed, typed: str) -> None:
    said = timed.run("pending", "--at", typed)
    assert said.code == 2
    assert "is too far away; give a time in the years 1900 to 9000" in said.err or "is no point in time" in said.err


@pytest.mark.parametrize("typed", ["1900-01-01", "9000-12-31T23:59Z"])
def test_a_moment_that_is_nearly_there_is_answered(timed: Timed, typed: str) -> None:
    timed.order(1, HOUR, HOUR)
    said = timed.run("pending", "--at", typed)
    assert said.code == 0, said.err


def test_timers_lists_what_becomes_due_next(timed: Timed) -> None:
    for number in range(1, 6):
        timed.order(number, -number * HOUR, (number + 0.5) * HOUR)
    said = json.loads(timed.run("timers", "-n", "4", "--json").out)["timers"]
    listed = [(one["timer"]["reaction"], one["timer"]["record"], datetime.fromisoformat(one["timer"]["due"])) for one in said]
    assert listed == [("reminded", str(n), timed.now + (n + 0.5) * HOUR) for n in (1, 2, 3, 4)]
    alone = timed.run("timers", "cancel_unpaid").out
    assert "reminded" not in alone
    assert alone.index("│" if "│" in alone else "5") >= 0
    assert timed.run("timers", "nobody").code == 3


def test_timers_says_so_where_nothing_is_to_come(timed: Timed) -> None:
    timed.order(1, -30 * HOUR)
    assert timed.run("timers").out.strip() == "Nothing will become due."


def test_why_tells_when_it_is_due_and_that_it_never_is_or_is_too_late(timed: Timed) -> None:
    timed.order(1, -20 * HOUR)
    timed.order(2, -1 * HOUR, -9 * HOUR)
    first, second = timed.run("why", "orders", "1").out, timed.run("why", "orders", "2").out
    assert "next: carried out when it is due" in first
    assert "due: never, since its due time is NULL" in first
    assert "next: nothing: its due time is NULL" in first
    assert "next: too late: its expired handler answers, as soon as a worker runs" in second


def test_check_prints_the_index_that_finds_what_is_due_next(timed: Timed) -> None:
    found = [one for one in json.loads(timed.run("check", "--json").out)["stores"][0]["findings"] if one["kind"] == "index"]
    assert {one["subject"] for one in found} == {"cancel_unpaid", "reminded"}
    assert all("found by sorting all rows" in one["words"] for one in found)
    with timed.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for one in found:
            connection.execute(text(one["cure"]))
    assert [one for one in json.loads(timed.run("check", "--json").out)["stores"][0]["findings"] if one["kind"] == "index"] == []


def test_check_tells_of_a_clock_in_a_clause_and_of_times_that_do_not_sort(folder: Path, sqlite_url: str) -> None:
    timed = Timed(folder, sqlite_url, APP + CLOCK)
    timed.order(1, -HOUR, HOUR)
    with timed.engine.begin() as connection:
        connection.execute(text("UPDATE orders SET remind_at = '2026-12-24T18:00:00Z'"))
    said = timed.run("check", "--json")
    found = {one["subject"]: one for one in json.loads(said.out)["stores"][0]["findings"] if one["kind"] == "time"}
    assert said.code == 1
    assert found["by_the_clock"]["level"] == "advice"
    assert (found["reminded"]["level"], "'2026-12-24T18:00:00Z'" in found["reminded"]["words"]) == ("problem", True)
    timed.engine.dispose()


def test_a_due_time_that_does_not_sort_as_a_time_is_told_by_each_report(folder: Path) -> None:
    timed = Timed(folder, f"sqlite:///{folder}/odd.db")
    timed.order(1, -20 * HOUR, -HOUR)
    with timed.engine.begin() as connection:
        connection.execute(text("UPDATE orders SET remind_at = replace(remind_at, ' ', 'T')"))
    words, cure = "which does not sort as a time among others", "write it as 2026-12-24 18:00:00.000000, in UTC"
    for report in (("pending",), ("status",), ("why", "orders", "1"), ("check",)):
        said = timed.run(*report).out
        assert (words in said, cure in said, "carried out now" in said) == (True, True, False), said
    assert timed.to_do()["reminded"]["odd_time"].startswith("Order.remind_at holds '")
    assert timed.to_do()["cancel_unpaid"]["odd_time"] is None
    timed.engine.dispose()
