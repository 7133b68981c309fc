"""J: flights are counted on the rows of their carriers, which all handlers share. Steps a second, and each flight is counted."""

from __future__ import annotations

import time
from functools import partial

from sqlalchemy import create_engine, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.harness import Place, Row, Size, alternate, carry_out_all, engine_on, expect
from benchmarks.shop import set_up
from groundstate import App, Store

STORES: tuple[str, ...] = ("sqlite", "postgres")
CARRIERS = (1, 16, 1_000)
BATCH = 500


class Base(DeclarativeBase):
    """The airport's tables."""


class Carrier(Base):
    """Who flies, and how often."""

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
    """For few and many shared rows: one worker of ours, and a plain ORM loop, each on a fresh database."""

    def on(contender: str, carriers: int) -> float:
        with place.database() as url:
            app = airport(url)
            set_up(app)
            _fill(url, size.orders, carriers)
            seconds = carry_out_all(app) if contender == "ours" else orm(url)
            expect("flights counted", _counted(url), size.orders)
            return size.orders / seconds

    rows = []
    for carriers in CARRIERS:
        found = alternate(size.rounds, {name: partial(on, name, carriers) for name in ("ours", "ORM")})
        figure = f"flights counted on {carriers:,} carrier{'s' if carriers > 1 else ''}"
        rows.append(Row("J", place.name, figure, "steps/s", found["ours"], size.orders, {"ORM loop": found["ORM"]}))
    return rows


def airport(url: str) -> App:
    """A handler that reads its flight's carrier by its key and counts the flight there."""
    app = App("airport", Store(url, Base))

    @app.on(Flight, Flight.status == "landed")
    def counted(flight: Flight, session: Session) -> None:
        carrier = session.get_one(Carrier, flight.carrier_id)
        carrier.flights += 1
        flight.status = "counted"

    return app


def orm(url: str) -> float:
    """Batches of 500: loaded and locked, the carriers locked as they come, the unit of work, a commit."""
    with engine_on(url) as engine:
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


def _fill(url: str, flights: int, carriers: int) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(insert(Carrier), [{"id": number} for number in range(1, carriers + 1)])
        connection.execute(insert(Flight), [{"id": number, "carrier_id": number % carriers + 1} for number in range(1, flights + 1)])
    engine.dispose()


def _counted(url: str) -> int:
    engine = create_engine(url)
    with engine.connect() as connection:
        counted = connection.execute(select(func.sum(Carrier.flights))).scalar_one()
    engine.dispose()
    return int(counted)
