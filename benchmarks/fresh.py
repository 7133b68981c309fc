"""F: how soon a fresh order is carried out, committed, while a large backlog is worked off. Milliseconds after its own commit."""

from __future__ import annotations

import time
from functools import partial

from sqlalchemy.orm import Session

from benchmarks.harness import CarriedOut, CommitClock, Place, Row, Size, engine_on, fill, line_of, percentile, process, told_by, wait_until
from benchmarks.shop import Order, packing_app, set_up

STORES: tuple[str, ...] = ("sqlite", "postgres")
EACH_S = 0.02
FOREIGN_S = 0.1


def run(place: Place, size: Size) -> list[Row]:
    """Hinted in the process, beside a worker without a backlog; and on SQLite, written by another process."""
    beside, alone = hinted(place, size, size.backlog), hinted(place, size, 0)
    of = f"fresh among {size.backlog:,}"
    rows = [
        Row("F", place.name, f"{of}, median", "ms", percentile(beside, 0.5), len(beside), {"no backlog": percentile(alone, 0.5)}, "50"),
        Row("F", place.name, f"{of}, p99", "ms", percentile(beside, 0.99), len(beside), {"no backlog": percentile(alone, 0.99)}),
    ]
    if place.name == "sqlite":
        told, quiet = foreign(place, size, size.backlog), foreign(place, size, 0)
        of = f"{of}, by another process"
        rows += [
            Row("F", place.name, f"{of}, median", "ms", percentile(told, 0.5), len(told), {"no backlog": percentile(quiet, 0.5)}),
            Row("F", place.name, f"{of}, p99", "ms", percentile(told, 0.99), len(told), {"no backlog": percentile(quiet, 0.99)}),
        ]
    return rows


def hinted(place: Place, size: Size, backlog: int) -> list[float]:
    """Orders placed by an ordinary session of this process."""
    done = CarriedOut()
    with place.database() as url, engine_on(url) as engine, CommitClock() as clock, done.listening():
        app = packing_app(url)
        set_up(app)
        if backlog:
            fill(url, backlog, "placed")
        app.start()
        try:
            took: list[float] = []
            if backlog:
                done.any.wait(60)
            for _ in range(size.samples):
                with Session(engine) as session:
                    order = Order(status="placed")
                    session.add(order)
                    session.flush()
                    number = order.id
                    session.commit()
                wait_until("a fresh order is carried out", partial(done.at.__contains__, number))
                took.append((done.at[number] - clock.at) * 1000)
                time.sleep(EACH_S)
                if backlog and len(done.at) >= backlog:
                    break  # what follows would not be amid a backlog
        finally:
            app.stop()
    return took


def foreign(place: Place, size: Size, backlog: int) -> list[float]:
    """Orders placed by a process that knows nothing of us."""
    done = CarriedOut()
    seconds = min(size.samples * FOREIGN_S, size.beside_s)
    with place.database() as url, done.listening():
        app = packing_app(url)
        set_up(app)
        if backlog:
            fill(url, backlog, "placed")
        app.start()
        try:
            with process("benchmarks.bare", "insert", url, "orders", seconds, FOREIGN_S) as other:
                line_of(other)
                rows = told_by(other)["rows"]
            numbers = [number for number, _, _ in rows]
            wait_until("all of the other's orders are carried out", lambda: all(number in done.at for number in numbers), 120)
        finally:
            app.stop()
    return [(done.at[number] - committed) * 1000 for number, _, committed in rows]
