"""N: what triggers that tell workers cost those who write: transactions a second, beside the same without triggers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import psycopg

from benchmarks.harness import Place, Row, Size, alternate, expect
from benchmarks.shop import packing_app, set_up
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
    """Each shape of transaction, by each number of connections."""
    rows = []
    for shape, statement in STATEMENTS.items():
        for count in CONNECTIONS:
            contenders: dict[str, Callable[[], float]] = {
                name: partial(_rate, place, size.telling_s, statement, count, told=name == "ours") for name in ("ours", "bare")
            }
            found = alternate(size.rounds, contenders)
            what = f"transactions of {shape}, {count} {'connection' if count == 1 else 'connections'}"
            rows.append(
                Row("N", place.name, what, "tx/s", found["ours"], int(found["ours"] * size.telling_s), {"no triggers": found["bare"]})
            )
    return rows


def _rate(place: Place, seconds: float, statement: str, count: int, *, told: bool) -> float:
    with place.database() as url:
        app = packing_app(url)
        set_up(app)
        address = url.replace("+psycopg", "")
        if told:
            database, _, _ = connect.open_store(app.stores[0].settings())
            wanted = triggers.tables_read([ConditionQuery(spec, database) for spec in app.reactions.values()])
            triggers.carry_out(database, triggers.to_install(app.name, database, wanted))
            database.close()
        with _listening(address, triggers.channel(app.name)):
            done = [0] * count
            end = time.monotonic() + seconds
            writers = [threading.Thread(target=_write, args=(address, statement, end, done, number)) for number in range(count)]
            started = time.monotonic()
            for one in writers:
                one.start()
            for one in writers:
                one.join()
            passed = time.monotonic() - started
        with psycopg.connect(address) as connection:
            row = connection.execute("SELECT count(DISTINCT xmin::text) FROM orders").fetchone()
            expect("transactions", row[0] if row else 0, sum(done))
        return sum(done) / passed


def _write(address: str, statement: str, end: float, done: list[int], number: int) -> None:
    with psycopg.connect(address, autocommit=True) as connection:
        while time.monotonic() < end:
            connection.execute(statement)
            done[number] += 1


@contextmanager
def _listening(address: str, channel: str) -> Iterator[None]:
    """Somebody who hears, as a worker does."""
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
