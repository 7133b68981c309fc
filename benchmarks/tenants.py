"""O: one row of each of many tenants, beside one tenant with many rows and one whose endpoint is dead; and a look at a line of many."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.harness import LONGEST, Place, Row, Size, driver_on, expect, wait_until
from benchmarks.shop import add_indexes, set_up
from groundstate import App, ExternalService, InDoubt, InOrder, NotDone, Retry, Store
from groundstate.engine.handle import in_order
from groundstate.engine.sql import group_scan
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.transaction import writing
from groundstate.store import connect

STORES: tuple[str, ...] = ("sqlite", "postgres")
MANY, DEAD = 0, 1  # the tenant with many rows, and the dead one; the others come after them
LIMIT = 100


class Base(DeclarativeBase):
    """The shop's tables."""


class Hook(Base):
    """What a tenant's endpoint is to be told."""

    __tablename__ = "hooks"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[int]
    status: Mapped[str] = mapped_column(default="new")


def run(place: Place, size: Size) -> list[Row]:
    """Deliveries a second to the others, beside the same with no such tenant; and the time of one look, beside a line of one."""
    beside = _delivered_a_second(place, size, backlog=size.backlog)
    alone = _delivered_a_second(place, size, backlog=0)
    figure = f"deliveries to {_others(size):,} tenants beside one with {size.backlog:,} rows and a dead one"
    rows = [Row("O", place.name, figure, "calls/s", beside, _others(size), {"no such tenants": alone})]
    looks = {count: _look_ms(place, count) for count in (1, size.line)}
    figure = f"a look at a line whose head waits, {size.line:,} behind it"
    return [*rows, Row("O", place.name, figure, "ms", looks[size.line], size.line, {"none behind it": looks[1]}, target="10")]


def _others(size: Size) -> int:
    return min(size.calls, 10_000)


# ---- many tenants --------------------------------------------------------------------------------------------------------------
def hooks_app(url: str) -> App:
    """A call for each hook, each tenant an endpoint of its own."""
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


def _delivered_a_second(place: Place, size: Size, *, backlog: int) -> float:
    others = _others(size)
    with place.database() as url:
        app = hooks_app(url)
        set_up(app)
        add_indexes(app)
        _fill(url, 1, backlog, lambda _first: str(MANY))
        _fill(url, backlog + 1, backlog + (1_000 if backlog else 0), lambda _first: str(DEAD))
        _fill(url, backlog + 2_001, backlog + 2_000 + others, lambda first: f"i - {first} + {DEAD + 1}")
        app.start(wait=True)
        try:
            started = time.perf_counter()
            app.go()
            wait_until("each tenant's hook is delivered", lambda: _left(url) == 0, LONGEST.total_seconds())
            seconds = time.perf_counter() - started
        finally:
            app.stop()
        expect("hooks of the others", others - _left(url), others)
        return others / seconds


def _left(url: str) -> int:
    with driver_on(url) as driver:
        return driver.number("SELECT count(*) FROM hooks WHERE tenant > ? AND status = ?", DEAD, "new")


def _fill(url: str, first: int, last: int, tenant: Callable[[int], str]) -> None:
    if last < first:
        return
    with driver_on(url) as driver:
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
def _look_ms(place: Place, waiting: int) -> float:
    """The median time of all that a look asks where so many wait for the one in the air: a page of values, and whose turn it is."""
    with place.database() as url:
        app = App("lines", Store(url, Base))

        @app.on(Hook, Hook.status == "new", in_order=InOrder(Hook.tenant, Hook.id))
        def read(hook: Hook) -> None:
            hook.status = "read"

        set_up(app)
        add_indexes(app)
        _fill(url, 1, waiting, lambda _first: "7")
        database = connect.open_store(app.stores[0].settings())[0]
        database.connect()
        try:
            question = ConditionQuery(app.reactions["read"], database)
            return statistics.median(_look_s(question, waiting) for _ in range(30)) * 1000
        finally:
            database.close()


def _look_s(question: ConditionQuery, waiting: int) -> float:
    found = group_scan.round_of(question)
    last = (waiting,)
    with writing(question.database, question.spec.app) as tx:
        record = tx.session.get(Hook, waiting)
        started = time.perf_counter()
        page = found.page(tx.connection, None, LIMIT) if found is not None else group_scan.Page()
        may = in_order.places_of_records_that_may_go(tx, question, [(last, record)])
        took = time.perf_counter() - started
    expect("keys of the line's head", len(page.keys), 1)
    expect("records whose turn it is", len(may), 1 if waiting == 1 else 0)
    return took
