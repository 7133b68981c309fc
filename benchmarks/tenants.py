"""Workload O: one row of each of many tenants, beside one tenant with many rows and one with a dead endpoint; and the time of one query for
work where many rows wait in one line.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.harness import LONGEST, Place, Row, Size, open_driver, require_count, wait_until
from benchmarks.shop import create_proposed_indexes, create_tables
from groundstate import App, ExternalService, InDoubt, InOrder, NotDone, Retry, Store
from groundstate.engine.handle import in_order
from groundstate.engine.sql import group_scan
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.transaction import writing_transaction
from groundstate.store import connect

STORES: tuple[str, ...] = ("sqlite", "postgres")
MANY, DEAD = 0, 1  # ids of the tenant with many rows and of the one with a dead endpoint; the others have higher ids
LIMIT = 100


class Base(DeclarativeBase):
    """The declarative base of the shop's tables."""


class Hook(Base):
    """A message for the endpoint of a tenant."""

    __tablename__ = "hooks"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[int]
    status: Mapped[str] = mapped_column(default="new")


def run(place: Place, size: Size) -> list[Row]:
    """Measure deliveries a second to the other tenants, and the query for work, each with and without the large tenant."""
    beside = _measure_deliveries_a_second(place, size, backlog=size.backlog)
    alone = _measure_deliveries_a_second(place, size, backlog=0)
    figure = f"deliveries to {_count_other_tenants(size):,} tenants beside one with {size.backlog:,} rows and a dead one"
    rows = [Row("O", place.name, figure, "calls/s", beside, _count_other_tenants(size), {"no such tenants": alone})]
    looks = {count: _measure_look_ms(place, count) for count in (1, size.line)}
    figure = f"a look at a line whose head waits, {size.line:,} behind it"
    return [*rows, Row("O", place.name, figure, "ms", looks[size.line], size.line, {"none behind it": looks[1]}, target="10")]


def _count_other_tenants(size: Size) -> int:
    return min(size.calls, 10_000)


# ---- many tenants --------------------------------------------------------------------------------------------------------------
def create_hooks_app(url: str) -> App:
    """Return an app with a call for each hook, with an endpoint for each tenant."""
    app = App("hooks", Store(url, Base))
    tenants = ExternalService("tenants", limit=LIMIT, limit_per=5)

    @tenants.call(in_doubt=InDoubt.repeat(), timeout=timedelta(seconds=60), retry=Retry(first=timedelta(seconds=30)))
    async def deliver(hook: Hook) -> str:
        if hook.tenant == DEAD:
            raise NotDone("no answer")
        return "200"

    @app.on(Hook, Hook.status == "new", call=deliver, per=Hook.tenant)
    def delivered(hook: Hook, answer: str) -> None:
        hook.status = f"delivered {answer}"

    return app


def _measure_deliveries_a_second(place: Place, size: Size, *, backlog: int) -> float:
    others = _count_other_tenants(size)
    with place.database() as url:
        app = create_hooks_app(url)
        create_tables(app)
        create_proposed_indexes(app)
        _insert_hooks(url, 1, backlog, lambda _first: str(MANY))
        _insert_hooks(url, backlog + 1, backlog + (1_000 if backlog else 0), lambda _first: str(DEAD))
        _insert_hooks(url, backlog + 2_001, backlog + 2_000 + others, lambda first: f"i - {first} + {DEAD + 1}")
        app.start(wait=True)
        try:
            started = time.perf_counter()
            app.go()
            wait_until("each tenant's hook is delivered", lambda: _count_undelivered(url) == 0, LONGEST.total_seconds())
            seconds = time.perf_counter() - started
        finally:
            app.stop()
        require_count("hooks of the others", others - _count_undelivered(url), others)
        return others / seconds


def _count_undelivered(url: str) -> int:
    with open_driver(url) as driver:
        return driver.fetch_number("SELECT count(*) FROM hooks WHERE tenant > ? AND status = ?", DEAD, "new")


def _insert_hooks(url: str, first: int, last: int, tenant: Callable[[int], str]) -> None:
    if last < first:
        return
    with open_driver(url) as driver:
        numbers = (
            f"WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last})"
            if driver.embedded
            else f"WITH n AS (SELECT i FROM generate_series({first}, {last}) AS i)"
        )
        driver.execute(f"INSERT INTO hooks (id, tenant, status) {numbers} SELECT i, {tenant(first)}, 'new' FROM n")
        if driver.embedded:
            driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        else:
            driver.execute("VACUUM ANALYZE hooks")


# ---- one long line -------------------------------------------------------------------------------------------------------------
def _measure_look_ms(place: Place, waiting: int) -> float:
    """Return the median milliseconds of a worker's queries for work where `waiting` rows wait for the one call in flight of their line."""
    with place.database() as url:
        app = App("lines", Store(url, Base))

        @app.on(Hook, Hook.status == "new", in_order=InOrder(Hook.tenant, Hook.id))
        def read(hook: Hook) -> None:
            hook.status = "read"

        create_tables(app)
        create_proposed_indexes(app)
        _insert_hooks(url, 1, waiting, lambda _first: "7")
        database = connect.open_store(app.stores[0].settings())[0]
        database.connect()
        try:
            question = ConditionQuery(app.reactions["read"], database)
            return statistics.median(_time_look_s(question, waiting) for _ in range(30)) * 1000
        finally:
            database.close()


def _time_look_s(question: ConditionQuery, waiting: int) -> float:
    found = group_scan.group_passes_for(question)
    last = (waiting,)
    with writing_transaction(question.database, question.spec.app) as tx:
        record = tx.session.get(Hook, waiting)
        started = time.perf_counter()
        page = found.next_page(tx.connection, None, LIMIT) if found is not None else group_scan.Page()
        may = in_order.find_places_of_records_in_turn(tx, question, [(last, record)])
        took = time.perf_counter() - started
    require_count("keys of the line's head", len(page.keys), 1)
    require_count("records whose turn it is", len(may), 1 if waiting == 1 else 0)
    return took
