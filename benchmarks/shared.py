"""Workload J: handlers count flights on the rows of their carriers, which all handlers share. Steps a second; every flight is counted."""

from __future__ import annotations

import time
from functools import partial

from sqlalchemy import create_engine, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.harness import Place, Row, Size, carry_out_all, create_durable_engine, median_of_rounds, require_count
from benchmarks.shop import create_tables
from groundstate import App, Store

STORES: tuple[str, ...] = ("sqlite", "postgres")
CARRIERS = (1, 16, 1_000)
BATCH = 500


class Base(DeclarativeBase):
    """The declarative base of the airport's tables."""


class Carrier(Base):
    """An airline and the number of its flights."""

    __tablename__ = "carriers"

    id: Mapped[int] = mapped_column(primary_key=True)
    flights: Mapped[int] = mapped_column(default=0)


class Flight(Base):
    """One flight."""

    __tablename__ = "flights"

    id: Mapped[int] = mapped_column(primary_key=True)
    carrier_id: Mapped[int]
    status: Mapped[str] = mapped_column(default="landed", index=True)


def run(place: Place, size: Size) -> list[Row]:
    """Measure few and many shared rows: one worker, and a plain ORM loop, each on a new database."""

    def measure_rate(contender: str, carriers: int) -> float:
        with place.database() as url:
            app = create_airport_app(url)
            create_tables(app)
            _insert_flights(url, size.orders, carriers)
            seconds = carry_out_all(app) if contender == "ours" else run_plain_orm(url)
            require_count("flights counted", _count_counted_flights(url), size.orders)
            return size.orders / seconds

    rows = []
    for carriers in CARRIERS:
        found = median_of_rounds(size.rounds, {name: partial(measure_rate, name, carriers) for name in ("ours", "ORM")})
        figure = f"flights counted on {carriers:,} carrier{'s' if carriers > 1 else ''}"
        rows.append(Row("J", place.name, figure, "steps/s", found["ours"], size.orders, {"ORM loop": found["ORM"]}))
    return rows


def create_airport_app(url: str) -> App:
    """Return an app whose handler loads the carrier of its flight by key and counts the flight."""
    app = App("airport", Store(url, Base))

    @app.on(Flight, Flight.status == "landed")
    def counted(flight: Flight, session: Session) -> None:
        carrier = session.get_one(Carrier, flight.carrier_id)
        carrier.flights += 1
        flight.status = "counted"

    return app


def run_plain_orm(url: str) -> float:
    """Carry out the flights by a plain ORM loop, and return the seconds.

    It works in batches of 500: load and lock the flights, lock each carrier, flush, commit.
    """
    with create_durable_engine(url) as engine:
        started = time.perf_counter()
        last, flights = 0, [Flight()]
        while flights:
            with Session(engine) as session:
                batch = select(Flight).where(Flight.status == "landed", Flight.id > last).order_by(Flight.id).limit(BATCH)
                flights = list(session.scalars(batch.with_for_update(skip_locked=True, key_share=True)))
                last = flights[-1].id if flights else last
                with session.no_autoflush:
                    carriers = {
                        key: session.get_one(Carrier, key, with_for_update=True) for key in sorted({one.carrier_id for one in flights})
                    }
                for flight in flights:
                    carriers[flight.carrier_id].flights += 1
                    flight.status = "counted"
                session.commit()
        return time.perf_counter() - started


def _insert_flights(url: str, flights: int, carriers: int) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(insert(Carrier), [{"id": number} for number in range(1, carriers + 1)])
        connection.execute(insert(Flight), [{"id": number, "carrier_id": number % carriers + 1} for number in range(1, flights + 1)])
    engine.dispose()


def _count_counted_flights(url: str) -> int:
    engine = create_engine(url)
    with engine.connect() as connection:
        counted = connection.execute(select(func.sum(Carrier.flights))).scalar_one()
    engine.dispose()
    return int(counted)
