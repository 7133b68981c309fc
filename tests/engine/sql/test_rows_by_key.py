"""Rows that handlers ask for by their key: read without a flush where no answer depends on it, and kept for the handlers after them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from tests.engine.kit import World, until


class Base(DeclarativeBase):
    pass


class Carrier(Base):
    __tablename__ = "key_carriers"
    id: Mapped[int] = mapped_column(primary_key=True)
    flights: Mapped[int] = mapped_column(default=0)


class Terminal(Base):
    """Loaded together with its flights."""

    __tablename__ = "key_terminals"
    id: Mapped[int] = mapped_column(primary_key=True)
    gates: Mapped[int] = mapped_column(default=0)
    flights: Mapped[list[Flight]] = relationship(lazy="selectin")


class Flight(Base):
    __tablename__ = "key_flights"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="landed")
    terminal_id: Mapped[int | None] = mapped_column(ForeignKey("key_terminals.id"))


FUNCTION = """create function counts() returns trigger language plpgsql as $$
begin update key_carriers set flights = flights + 100; return new; end $$"""
TRIGGERS = {
    "sqlite": ["create trigger counts after update on key_flights begin update key_carriers set flights = flights + 100; end"],
    "postgresql": [
        FUNCTION,
        "create trigger counts after update on key_flights for each row execute function counts()",
    ],
}


class Airport:
    """A world whose handlers do `act`, and what they saw."""

    def __init__(self, url: str) -> None:
        self.world = World(url, Base)
        self.seen: list[Any] = []

    def run(self, act: Callable[[Flight, Session], Any], flights: int = 1, triggers: Sequence[str] = ()) -> None:
        @self.world.app.on(Flight, Flight.status == "landed")
        def counted(flight: Flight, session: Session) -> None:
            self.seen.append(act(flight, session))
            flight.status = "counted"

        self.world.there()
        for statement in triggers:
            self.world.run(statement)
        self.world.add(Carrier(id=1), Carrier(id=2), Terminal(id=1), *[Flight(id=number) for number in range(1, flights + 1)])
        self.world.worker()
        until(lambda: len(self.seen) >= flights)

    def counted(self) -> int:
        """How many flights are, as it was committed."""
        with self.world.session() as session:
            return session.scalar(select(func.count()).where(Flight.status == "counted")) or 0


@pytest.fixture
def airport(database_url: str) -> Iterator[Airport]:
    made = Airport(database_url)
    yield made
    made.world.close()


def test_a_row_is_read_without_flushing_what_the_handlers_before_it_changed(airport: Airport) -> None:
    def read(flight: Flight, session: Session) -> bool:
        flight.status = "seen"
        session.get_one(Carrier, 1)
        return flight in session.dirty

    airport.run(read)
    assert airport.seen == [True]


def test_a_row_is_loaded_once_for_all_handlers_of_a_batch(airport: Airport) -> None:
    loaded: list[int] = []

    def count(flight: Flight, session: Session) -> None:
        carrier = session.get_one(Carrier, 1)
        carrier.flights += 1
        session.flush()

    event.listen(Carrier, "load", listener := lambda carrier, _context: loaded.append(carrier.id))
    try:
        airport.run(count, flights=20)
    finally:
        event.remove(Carrier, "load", listener)
    assert len(loaded) < 20


@pytest.mark.usefixtures("whole_batches")
def test_records_are_written_by_one_statement_also_where_rows_beside_them_are_changed(airport: Airport) -> None:
    updates: list[str] = []

    def note_commit(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("UPDATE key_flights"):
            updates.extend([statement] * (len(parameters) if isinstance(parameters, list) else 1))

    def count(flight: Flight, session: Session) -> None:
        session.get_one(Carrier, flight.id % 2 + 1).flights += 1

    event.listen(Engine, "before_cursor_execute", note_commit)
    try:
        airport.run(count, flights=20)
        until(lambda: airport.counted() == 20)
    finally:
        event.remove(Engine, "before_cursor_execute", note_commit)
    with airport.world.session() as session:
        assert [session.get_one(Carrier, key).flights for key in (1, 2)] == [10, 10]
    assert len(updates) == 1


def test_a_record_that_was_put_into_a_collection_is_written_with_it(airport: Airport) -> None:
    def park(flight: Flight, session: Session) -> None:
        terminal = session.get_one(Terminal, 1)
        terminal.gates += 1
        terminal.flights.append(flight)

    airport.run(park, flights=3)
    until(lambda: airport.counted() == 3)
    with airport.world.session() as session:
        terminal = session.get_one(Terminal, 1)
        assert (terminal.gates, sorted(one.id for one in terminal.flights)) == (3, [1, 2, 3])


@pytest.mark.parametrize("asked", ["after it changed", "after another change"])
def test_what_a_trigger_does_to_the_row_is_read(airport: Airport, asked: str) -> None:
    def read(flight: Flight, session: Session) -> int:
        flight.status = "seen"
        if asked == "after another change":
            session.get_one(Carrier, 2).flights += 1
        return session.get_one(Carrier, 1).flights

    airport.run(read, triggers=TRIGGERS[airport.world.engine.dialect.name])
    assert airport.seen == [100]


def test_what_is_loaded_with_others_is_loaded_after_a_flush(airport: Airport) -> None:
    def read(flight: Flight, session: Session) -> list[int]:
        flight.terminal_id = 1
        return [one.id for one in session.get_one(Terminal, 1).flights]

    airport.run(read)
    assert airport.seen == [[1]]


def test_a_row_that_is_new_in_the_session_is_found_and_one_that_is_not_there_is_none(airport: Airport) -> None:
    def read(_flight: Flight, session: Session) -> tuple[Any, Any]:
        session.add(Carrier(id=7))
        return session.get(Carrier, 7) is not None, session.get(Carrier, 8)

    airport.run(read)
    assert airport.seen == [(True, None)]


def test_a_row_whose_key_was_changed_is_found_by_its_new_key(airport: Airport) -> None:
    def read(_flight: Flight, session: Session) -> bool:
        session.get_one(Carrier, 1).id = 9
        return session.get(Carrier, 9) is not None

    airport.run(read)
    assert airport.seen == [True]


def test_what_is_no_key_is_refused_as_ever(airport: Airport) -> None:
    def read(_flight: Flight, session: Session) -> str:
        try:
            session.get(Carrier, (1, 2))
        except Exception as error:  # noqa: BLE001  # whatever SQLAlchemy says
            return str(error)
        return ""

    airport.run(read)
    assert "Incorrect number of values" in airport.seen[0]
