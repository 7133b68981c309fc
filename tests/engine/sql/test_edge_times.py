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
from groundstate import App, ExternalService, InDoubt, IdempotencyKey, Retry, Store, UtcDateTime, after

class Base(DeclarativeBase): ...

class Plain(Base):
    __tablename__ = "plains"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    at: Mapped[datetime | None] = mapped_column(UtcDateTime)

class Called(Base):
    __tablename__ = "calleds"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    at: Mapped[datetime | None] = mapped_column(UtcDateTime)

class Computed(Base):
    __tablename__ = "computeds"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    at: Mapped[datetime | None] = mapped_column(UtcDateTime)

app = App(NAME, Store(URL, Base))
bank = ExternalService("bank")
SOON = Retry(times=None, first=timedelta(milliseconds=5), longest=timedelta(milliseconds=20))

@app.on(Plain, Plain.status == "new", due=after(Plain.at, -timedelta(days=3)), retry=SOON)
def plain(record: Plain) -> None:
    record.status = "done"

@bank.call(in_doubt=InDoubt.hold(), retry=SOON)
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
# What SQLite keeps and compares as text: it sorts among the times to come, or that came, and is none.
NO_TIMES = ["2026-13-45T00:00:00", "T", "", "infinity", 12345, b"\x00\xff", FAILS[0], NEVER[0]]
TO_COME = ["{year}-13-45T00:00:00", "{year}-12-31 25:00:00.000000", "{year}-02-30 00:00:00.000000", "{year}-02-01 00:60:00.000000"]


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


def due_and_next(shop: Shop, table: str, number: int) -> tuple[str, str]:
    lines = [line.strip() for line in shop.run("why", table, str(number)).out.splitlines()]
    due, next_ = ([line for line in lines if line.startswith(word)] for word in ("due: ", "next: "))
    return due[0].removeprefix("due: "), next_[0].removeprefix("next: ")


@pytest.mark.parametrize("table", ["plains", "calleds"])
def test_why_says_of_a_due_time_that_is_none_what_stands_there_and_whether_it_fails(edges: Shop, table: str) -> None:
    fails, never = fill(edges)
    postgres = "postgres" in edges.url
    for number in range(GOOD + 1, GOOD + fails + 1):
        due, next_ = due_and_next(edges, table, number)
        assert "at a time that nobody can tell, since " in due, due
        assert ".at holds '" in due, due
        assert next_.startswith(
            ("it fails, since its record cannot be read: ", "nothing: due at a time", f"{table[:-1].title()}.at holds")
        ), next_
    for number in range(GOOD + fails + 1, GOOD + fails + never + 1):
        due, next_ = due_and_next(edges, table, number)
        assert "NULL" not in due + next_, (due, next_)
        assert "it fails" not in next_, next_
        if number == GOOD + fails + 1:  # 9999-12-31 less three days
            assert (due.startswith("9999-12-28"), next_.startswith("carried out when it is due")) == (True, True), (due, next_)
        elif postgres:
            assert due.startswith(f"never, since {table[:-1].title()}.at holds '"), due
            assert next_ == f"nothing: due {due}"
        else:
            assert due.startswith("at a time that nobody can tell, since "), due
            assert "which does not sort as a time among others" in next_, next_


@pytest.fixture
def odd(folder: Path) -> Any:
    """On SQLite, with one column of plain DateTime."""
    text = TEXT.replace("from sqlalchemy import func", "from sqlalchemy import DateTime, func")
    before, called = text.split('__tablename__ = "calleds"')
    text = f'{before}__tablename__ = "calleds"{called.replace("mapped_column(UtcDateTime)", "mapped_column(DateTime)", 1)}'
    shop = made(folder, f"sqlite:///{folder}/odd.db", text)
    assert shop.run("init", "--tables", "--accept", "all").code == 0
    yield shop
    shop.engine.dispose()
    for database in shop.opened:
        database.close()


def put(shop: Shop, at: object, *, number: int = 1) -> None:
    with shop.engine.begin() as connection:
        for table in TABLES:
            given = (number, "new", at.format(year=datetime.now(UTC).year + 1) if isinstance(at, str) else at)
            connection.exec_driver_sql(f"INSERT INTO {table} (id, status, at) VALUES (?, ?, ?)", given)


@pytest.mark.parametrize("at", [*NO_TIMES, *TO_COME], ids=repr)
def test_a_record_whose_time_is_none_hides_no_other_from_the_reports(odd: Shop, at: object) -> None:
    put(odd, at)
    put(odd, (datetime.now(UTC) + timedelta(days=40)).strftime("%Y-%m-%d %H:%M:%S.%f"), number=2)
    for json_ in ([], ["--json"]):
        for report in (["pending"], ["status"], ["timers"], *(["why", table, "1"] for table in TABLES)):
            said = odd.run(*report, *json_)
            assert said.code in (0, 1), (report, said.err)
            assert "ValueError" not in said.err
    listed = odd.run("timers").out
    assert {name for name in ("plain", "called", "computed") if name in listed} == {"plain", "called", "computed"}
    if at not in (FAILS[0], NEVER[0]):
        words = [one["odd_time"] or "" for one in odd.report()["to_do"] if one["reaction"] != "computed"]
        assert [
            f" holds {at.format(year=datetime.now(UTC).year + 1)!r}" in one if isinstance(at, str) else " holds " in one for one in words
        ] == [True] * 2


def test_a_worker_says_once_at_its_start_which_due_time_is_none(odd: Shop, caplog: pytest.LogCaptureFixture) -> None:
    put(odd, TO_COME[0])
    put(odd, TO_COME[1], number=2)
    app = importlib.import_module(odd.module).app
    app.start()
    try:
        until(lambda: len([one for one in caplog.records if getattr(one, "event", "") == "due_time_odd"]) == 2)
    finally:
        app.stop(timedelta(seconds=5))
    lines = {getattr(one, "reaction", ""): one for one in caplog.records if getattr(one, "event", "") == "due_time_odd"}
    assert set(lines) == {"plain", "called"}
    assert "Plain.at holds '" in lines["plain"].getMessage()
    assert "Cure: write it as 2026-12-24 18:00:00.000000, in UTC" in lines["plain"].getMessage()


def test_a_time_that_is_none_and_sorts_among_those_due_in_a_moment_stops_no_worker(odd: Shop) -> None:
    """It is what the worker reads to know until when it may sleep."""
    soon = datetime.now(UTC) + timedelta(days=3, seconds=1)
    for number in range(1, 61):
        at = (soon + timedelta(seconds=number)).strftime("%Y-%m-%d %H:%M:")
        put(odd, f"{at}60.000000", number=number)
    put(odd, soon.strftime("%Y-%m-%d %H:%M:%S.%f"), number=100)
    app = importlib.import_module(odd.module).app
    app.start()
    try:
        until(lambda: all(100 in ids(odd, table, "done") for table in TABLES))
        assert app.failure is None
    finally:
        app.stop(timedelta(seconds=5))


def failed(shop: Shop) -> set[tuple[str, str]]:
    with shop.engine.connect() as connection:
        return {tuple(row) for row in connection.exec_driver_sql("SELECT reaction, record FROM groundstate_attempt WHERE state = 'failed'")}
