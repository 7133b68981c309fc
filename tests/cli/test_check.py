"""`check`: problems end with 1, advice does not, and the DDL that it prints works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Shop, groundstate, module_named


def findings(shop: Shop, kind: str, subject: str | None = None, code: int = 0) -> list[dict[str, Any]]:
    said = shop.run("check", "--json")
    assert said.code == code, said.err
    found: list[dict[str, Any]] = said.json["stores"][0]["findings"]
    return [one for one in found if one["kind"] == kind and subject in (None, one["subject"])]


def test_the_index_that_it_prints_is_used_and_ends_the_finding(shop: Shop) -> None:
    shop.order("placed", 3)
    shop.order("packed", 3)
    found = findings(shop, "index")
    assert {one["subject"] for one in found} == {"paid", "packed", "noted", "mailed", "seen"}
    assert {one["level"] for one in found} == {"advice"}
    with shop.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for one in found:
            connection.exec_driver_sql(one["cure"].rstrip(";"))
    assert findings(shop, "index") == []


def test_hazard_28_a_large_table_without_an_index_is_a_problem(sqlite_shop: Shop) -> None:
    sqlite_shop.sql(
        "INSERT INTO orders (status) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12000) SELECT 'packed' FROM n"
    )
    (packed,) = findings(sqlite_shop, "index", "packed", code=1)
    assert packed["level"] == "problem"
    assert "12,000 rows" in packed["words"]
    said = sqlite_shop.run("check")
    assert said.code == 1
    assert "CREATE INDEX ix_orders_packed ON orders (id) WHERE status = 'paid';" in said.out


def test_on_postgresql_the_index_is_made_beside_the_running_shop(postgres_shop: Shop) -> None:
    (packed,) = findings(postgres_shop, "index", "packed")
    assert packed["cure"] == "CREATE INDEX CONCURRENTLY ix_orders_packed ON orders (id) WHERE status = 'paid';"


def test_two_writers_without_a_version_are_advice(shop: Shop) -> None:
    (version,) = findings(shop, "version")
    assert version["subject"] == "Order"
    assert "version_id_col" in version["cure"]


def test_hazard_46_a_plain_integer_key_on_sqlite_is_advice(sqlite_shop: Shop) -> None:
    (found,) = findings(sqlite_shop, "autoincrement")
    assert found["subject"] == "orders"


APP = """
from datetime import datetime, timedelta
from sqlalchemy import DateTime
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from groundstate import App, ExternalService, InDoubt, IdempotencyKey, Store, UtcDateTime

class Base(DeclarativeBase): ...

class Bill(Base):
    __tablename__ = "bills"
    __table_args__ = {"sqlite_autoincrement": True}
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="due", index=True)
    aware: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    naive: Mapped[datetime | None] = mapped_column(DateTime)
    right: Mapped[datetime | None] = mapped_column(UtcDateTime)

app = App(NAME, Store(URL, Base))
bank = ExternalService("bank")

@bank.call(in_doubt=InDoubt.same_key(kept_for=timedelta(hours=24)))
def charge(bill: Bill, key: IdempotencyKey) -> str:
    return "x"

@app.on(Bill, Bill.status == "due", call=charge)
def paid(bill: Bill, outcome: str) -> None:
    bill.status = "paid"
"""
AGAIN = """
@app.on(Bill, Bill.status == "paid")
def next_month(bill: Bill) -> None:
    bill.status = "due"
"""


def of(folder: Path, url: str, words: str) -> tuple[int, list[dict[str, Any]]]:
    _, module = module_named(folder, url, words)
    assert groundstate("init", "--tables", "--app", f"{module}:app").code == 0
    said = groundstate("check", "--json", "--app", f"{module}:app")
    return said.code, said.json["stores"][0]["findings"]


def test_hazard_64_datetimes_that_come_back_naive_are_told(folder: Path, sqlite_url: str) -> None:
    code, found = of(folder, sqlite_url, APP)
    assert code == 1
    assert {(one["subject"], one["level"]) for one in found if one["kind"] == "datetime"} == {
        ("bills.aware", "problem"),
        ("bills.naive", "advice"),
    }


def test_hazard_64_aware_datetimes_are_right_on_postgresql(folder: Path, postgres_url: str) -> None:
    code, found = of(folder, postgres_url, APP)
    assert code == 0
    assert {one["subject"] for one in found if one["kind"] == "datetime"} == {"bills.naive"}


def test_a_table_with_an_index_and_autoincrement_has_neither_finding(folder: Path, sqlite_url: str) -> None:
    _, found = of(folder, sqlite_url, APP)
    assert [one for one in found if one["kind"] in ("index", "autoincrement", "key", "version")] == []


def test_an_event_that_comes_again_under_one_key_is_told(folder: Path, sqlite_url: str) -> None:
    _, found = of(folder, sqlite_url, APP + AGAIN)
    (key,) = [one for one in found if one["kind"] == "key"]
    assert key["subject"] == "paid"
    assert "next_month sets status to 'due' again" in key["words"]
    assert key["level"] == "advice"


NEW = """
@app.on(Bill, Bill.status == "new")
def due(bill: Bill) -> None:
    bill.status = "due"
"""
ROUND_ABOUT = """
AGAIN = "due"

@app.on(Bill, Bill.status == "paid", Bill.naive.is_(None))
def looked_at(bill: Bill) -> None:
    if bill.id > 3:
        bill.status = "kept"
        return
    bill.status, bill.naive = "reviewed", datetime.now()

@app.on(Bill, Bill.status.in_(["reviewed", "sent back"]), Bill.naive.is_not(None))
def sent_back(bill: Bill) -> None:
    bill.status = AGAIN
"""
UNDO = """
@app.on(Bill, Bill.status == "kept")
def let_go(bill: Bill) -> None:
    bill.status = "gone"

@app.on(Bill, Bill.status.in_(["gone", "lost"]))
def kept(bill: Bill) -> None:
    bill.status = "kept"
"""
BOUNDED = """
@app.on(Bill, Bill.status == "kept", Bill.id < 5)
def let_go(bill: Bill) -> None:
    bill.status = "gone"

@app.on(Bill, Bill.status == "gone")
def kept(bill: Bill) -> None:
    bill.status = "kept"

@app.on(Bill, Bill.status == "sought")
def sought(bill: Bill) -> None:
    bill.status = "found" if bill.id > 3 else "lost"

@app.on(Bill, Bill.status == "lost")
def lost(bill: Bill) -> None:
    bill.status = "sought"

@app.on(Bill, Bill.status == "asleep")
def woken(bill: Bill) -> None:
    bill.status = "awake"

@app.on(Bill, Bill.status == "awake", due=Bill.right)
def tired(bill: Bill) -> None:
    bill.status = "asleep"
"""


def test_a_state_that_leads_to_the_call_without_coming_again_is_not_told(folder: Path, sqlite_url: str) -> None:
    _, found = of(folder, sqlite_url, APP + NEW)
    assert [one for one in found if one["kind"] in ("key", "ring")] == []


def test_a_call_whose_state_comes_again_by_way_of_others_is_told(folder: Path, sqlite_url: str) -> None:
    _, found = of(folder, sqlite_url, APP + ROUND_ABOUT)
    (key,) = [one for one in found if one["kind"] == "key"]
    assert key["subject"] == "paid"
    assert "sent_back sets status to 'due' again, by way of looked_at" in key["words"]


def test_a_call_with_rounds_of_its_own_may_come_again(folder: Path, sqlite_url: str) -> None:
    rounds = APP.replace("call=charge)", "call=charge, occurrence=())") + AGAIN
    _, found = of(folder, sqlite_url, rounds)
    assert [one for one in found if one["kind"] == "key"] == []


FOUND = """
@charge.lookup
def NAME(bill: Bill, key: IdempotencyKey) -> str | Absent:
    return Absent()

@app.on(Bill, Bill.status == "seen", call=charge)
def paid_again(bill: Bill, outcome: str) -> None:
    bill.status = "paid again"
"""


@pytest.mark.parametrize(("name", "told"), [("_", ["paid"]), ("find_charge", [])])
def test_a_find_without_a_name_is_told_once_with_the_cure(folder: Path, sqlite_url: str, name: str, told: list[str]) -> None:
    app = APP.replace("import App", "import Absent, App").replace(
        "hours=24)", "hours=24), settle_after=timedelta(seconds=1)"
    ) + FOUND.replace("NAME", name)
    _, found = of(folder, sqlite_url, app)
    finds = [one for one in found if one["kind"] == "lookup"]
    assert [one["subject"] for one in finds] == told
    assert all("def find_charge(...)" in one["cure"] for one in finds)


def test_two_reactions_that_undo_each_other_are_a_problem(folder: Path, sqlite_url: str) -> None:
    _, found = of(folder, sqlite_url, APP + UNDO)
    (ring,) = [one for one in found if one["kind"] == "ring"]
    assert ring["level"] == "problem"
    assert "let_go, kept undo each other" in ring["words"]


def test_a_ring_that_something_may_end_or_that_waits_for_its_time_is_not_told(folder: Path, sqlite_url: str) -> None:
    _, found = of(folder, sqlite_url, APP + BOUNDED)
    assert [one for one in found if one["kind"] == "ring"] == []


def test_missing_tables_of_ours_are_a_problem(shop: Shop) -> None:
    shop.sql("DROP TABLE groundstate_worker")
    (found,) = findings(shop, "tables", code=1)
    assert "groundstate_worker is missing" in found["words"]


def test_an_unlogged_table_of_ours_is_a_problem(postgres_shop: Shop) -> None:
    postgres_shop.sql("ALTER TABLE groundstate_attempt SET UNLOGGED")
    (found,) = findings(postgres_shop, "tables", code=1)
    assert "SET LOGGED" in found["words"]


def test_a_missing_file_is_not_made(folder: Path, sqlite_url: str) -> None:
    _, module = module_named(folder, sqlite_url)
    said = groundstate("check", "--app", f"{module}:app")
    assert said.code == 4
    assert not (folder / "test.db").exists()


@pytest.mark.parametrize("kind", ["text", "json"])
def test_nothing_of_the_database_is_changed(sqlite_shop: Shop, kind: str) -> None:
    sqlite_shop.order("placed")
    before = sqlite_shop.report()["to_do"]
    assert sqlite_shop.run("check", *(["--json"] if kind == "json" else [])).code == 0
    assert sqlite_shop.report()["to_do"] == before


def test_a_column_that_the_code_has_and_the_table_has_not_is_a_problem(shop: Shop) -> None:
    shop.sql("ALTER TABLE orders DROP COLUMN mailed")
    found = findings(shop, "columns", code=1)
    assert {one["subject"] for one in found} == {"paid", "packed", "noted", "mailed"}
    assert {(one["level"], one["words"], one["cure"]) for one in found} == {
        ("problem", "column orders.mailed is missing", "run your migrations")
    }
    assert findings(shop, "index", "seen", code=1)  # of the others all is told


HELD = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from groundstate import App, ExternalService, InDoubt, Store

class Base(DeclarativeBase): ...

class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]
    mailed: Mapped[str | None]
    noted: Mapped[str | None]

app = App(NAME, Store(URL, Base))
smtp = ExternalService("smtp")

@smtp.call(in_doubt=InDoubt.hold())
def send(order: Order) -> str: return "sent"

@app.on(Order, Order.status == "paid", CLAUSES)
def mailed(order: Order, outcome: str) -> None: order.mailed = outcome

@app.on(Order, Order.status == "paid", Order.mailed.is_not(None))
def packed(order: Order) -> None: order.status = "packed"

@app.on(Order, Order.status != "new", done_column=Order.noted)
def noted(order: Order) -> None: order.noted = "yes"
"""


@pytest.mark.parametrize(("clauses", "found"), [
    ("Order.mailed.is_(None), call=send", ["mailed"]),
    ("call=send, done_column=Order.mailed", []),
], ids=["without a done column", "with one"])  # fmt: skip
def test_a_doubt_that_waits_for_a_person_and_keeps_others_waiting_is_advice(
    folder: Path, sqlite_url: str, clauses: str, found: list[str]
) -> None:
    _, said = of(folder, sqlite_url, HELD.replace("CLAUSES", clauses))
    held = [one for one in said if one["kind"] == "held record"]
    assert [one["subject"] for one in held] == found
    assert all("keeps packed from the same record" in one["words"] for one in held)
