"""Workload N: the cost for writers of triggers that notify workers: transactions a second, with and without the triggers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import psycopg

from benchmarks.harness import Place, Row, Size, median_of_rounds, require_count
from benchmarks.shop import create_packing_app, create_tables
from groundstate.engine.operate import triggers
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect

STORES: tuple[str, ...] = ("postgres",)
CONNECTIONS = (1, 8, 32)
STATEMENTS = {
    "1 row": "INSERT INTO orders (status) VALUES ('placed')",
    "500 rows": "INSERT INTO orders (status) SELECT 'placed' FROM generate_series(1, 500)",
}


def run(place: Place, size: Size) -> list[Row]:
    """Measure each shape of transaction with each number of connections."""
    rows = []
    for shape, statement in STATEMENTS.items():
        for count in CONNECTIONS:
            contenders: dict[str, Callable[[], float]] = {
                name: partial(_measure_rate, place, size.telling_s, statement, count, told=name == "ours") for name in ("ours", "bare")
            }
            found = median_of_rounds(size.rounds, contenders)
            what = f"transactions of {shape}, {count} {'connection' if count == 1 else 'connections'}"
            rows.append(
                Row("N", place.name, what, "tx/s", found["ours"], int(found["ours"] * size.telling_s), {"no triggers": found["bare"]})
            )
    return rows


def _measure_rate(place: Place, seconds: float, statement: str, count: int, *, told: bool) -> float:
    with place.database() as url:
        app = create_packing_app(url)
        create_tables(app)
        address = url.replace("+psycopg", "")
        if told:
            database, _, _ = connect.open_store(app.stores[0].settings())
            wanted = triggers.tables_read([ConditionQuery(spec, database) for spec in app.reactions.values()])
            triggers.run_statements(database, triggers.install_statements(app.name, database, wanted))
            database.close()
        with _open_listener(address, triggers.channel_name(app.name)):
            done = [0] * count
            end = time.monotonic() + seconds
            writers = [threading.Thread(target=_write_repeatedly, args=(address, statement, end, done, number)) for number in range(count)]
            started = time.monotonic()
            for one in writers:
                one.start()
            for one in writers:
                one.join()
            passed = time.monotonic() - started
        with psycopg.connect(address) as connection:
            row = connection.execute("SELECT count(DISTINCT xmin::text) FROM orders").fetchone()
            require_count("transactions", row[0] if row else 0, sum(done))
        return sum(done) / passed


def _write_repeatedly(address: str, statement: str, end: float, done: list[int], number: int) -> None:
    with psycopg.connect(address, autocommit=True) as connection:
        while time.monotonic() < end:
            connection.execute(statement)
            done[number] += 1


@contextmanager
def _open_listener(address: str, channel: str) -> Iterator[None]:
    """Within the block, listen to the channel, as a worker does."""
    ended = threading.Event()
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"LISTEN {channel}")

        def listen() -> None:
            while not ended.is_set():
                for _ in connection.notifies(timeout=0.05):
                    pass

        hearing = threading.Thread(target=listen)
        hearing.start()
        try:
            yield
        finally:
            ended.set()
            hearing.join()
