"""Times at the edges of every calendar: their records fail, the reports say so, and everything else is carried out and shown as usual."""

from __future__ import annotations

import importlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Shop, folder, made, no_terminal
from tests.patience import until

__all__ = ["folder", "no_terminal"]

TEXT = """
from datetime import datetime, timedelta
from sqlalchemy import func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from groundstate import App, Instant, Key, Outside, Retry, Store, after, hold

class Base(DeclarativeBase): ...

class Plain(Base):
    __tablename__ = "plains"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    at: Mapped[datetime | None] = mapped_column(Instant)

class Called(Base):
    __tablename__ = "calleds"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    at: Mapped[datetime | None] = mapped_column(Instant)

class Computed(Base):
    __tablename__ = "computeds"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    at: Mapped[datetime | None] = mapped_column(Instant)

app = App(NAME, Store(URL, Base))
bank = Outside("bank")
SOON = Retry(times=None, first=timedelta(milliseconds=5), longest=timedelta(milliseconds=20))

@app.on(Plain, Plain.status == "new", due=after(Plain.at, -timedelta(days=3)), retry=SOON)
def plain(record: Plain) -> None:
    record.status = "done"

@bank.call(in_doubt=hold(), retry=SOON)
def charge(record: Called) -> str:
    return "r1"

@app.on(Called, Called.status == "new", due=after(Called.at, -timedelta(days=3), valid_for=timedelta(days=30_000)), call=charge)
def called(record: Called, outcome: str) -> None:
    record.status = "done"

@called.expired
def _(record: Called) -> None:
    record.status = "expired"

BEFORE = after(func.coalesce(Computed.at, Computed.at), -timedelta(days=3))

@app.on(Computed, Computed.status == "new", due=BEFORE, retry=SOON, occurrence=[])
def computed(record: Computed) -> None:
    record.status = "done"
"""
TABLES = ("plains", "calleds", "computeds")
FAILS = ["0001-01-01 00:00:00.000000", "0001-01-02 00:00:00.000000"]  # three days before is in no calendar
NEVER = ["9999-12-31 23:59:59.999999"]
OF_POSTGRES = ["-infinity", "0044-03-15 00:00:00 BC"], ["infinity", "20000-01-01 00:00:00"]
OF_SQLITE = ["-infinity", "0000-00-00 00:00:00.000000"], ["infinity", "zzz"]
GOOD = 20


@pytest.fixture
def edges(folder: Path, database_url: str) -> Any:
    shop = made(folder, database_url, TEXT)
    assert shop.run("init", "--tables", "--accept", "all").code == 0
    yield shop
    shop.engine.dispose()
    for database in shop.opened:
        database.close()


def fill(shop: Shop) -> tuple[int, int]:
    """Twenty good rows a table, then those that fail, then those that never become due; how many there are of the latter two."""
    fails, never = OF_POSTGRES if "postgres" in shop.url else OF_SQLITE
    fails, never = [*FAILS, *fails], [*NEVER, *never]
    good = [(datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S.%f")] * GOOD
    for table in TABLES:
        for number, at in enumerate([*good, *fails, *never], 1):
            shop.sql(f"INSERT INTO {table} (id, status, at) VALUES ({number}, 'new', '{at}')")
    return len(fails), len(never)


def ids(shop: Shop, table: str, status: str) -> list[int]:
    with shop.engine.connect() as connection:
        found = connection.exec_driver_sql(f"SELECT id FROM {table} WHERE status = '{status}' ORDER BY id")
        return [row[0] for row in found]


def reports_are_fine(shop: Shop) -> None:
    said = [shop.run(*one) for one in (["pending"], ["pending", "--states"], ["status"], ["timers"], ["held"], ["plan"], ["check"])]
    said += [shop.run("why", table, str(number)) for table in TABLES for number in (1, GOOD + 1, GOOD + 3, GOOD + 6)]
    assert {one.code for one in said} <= {0, 1, 3}, [one.err for one in said if one.code not in (0, 1, 3)]
    assert not any("Traceback" in one.out + one.err for one in said)


def test_records_whose_time_is_in_no_calendar_fail_and_the_others_are_carried_out(edges: Shop) -> None:
    fails, never = fill(edges)
    reports_are_fine(edges)
    bad = list(range(GOOD + 1, GOOD + fails + 1))
    for table in ("plains", "calleds"):
        for number in (bad[0], bad[-1]):
            assert "cannot be read" in edges.run("why", table, str(number)).out, (table, number)
    app = importlib.import_module(edges.module).app
    app.start()
    try:
        until(lambda: all(set(range(1, GOOD + 1)) <= set(ids(edges, table, "done")) for table in TABLES))
        wanted = {(name, str(number)) for name in ("plain", "called") for number in bad}
        until(lambda: wanted <= failed(edges))
        assert app.failure is None
    finally:
        app.stop(timedelta(seconds=5))
    for table in ("plains", "calleds"):
        assert ids(edges, table, "new") == list(range(GOOD + 1, GOOD + fails + never + 1))
    reports_are_fine(edges)
    report = edges.report()
    assert {(one["reaction"], one["record"]) for one in report["failed"]} >= wanted
    assert all("cannot be" in one["error"] for one in report["failed"]), report["failed"]


def failed(shop: Shop) -> set[tuple[str, str]]:
    with shop.engine.connect() as connection:
        return {tuple(row) for row in connection.exec_driver_sql("SELECT reaction, record FROM groundstate_attempt WHERE state = 'failed'")}
