"""One contract for both places: a scratch database is filled once, and is then as it was for each run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import JSON, create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import App, Store
from groundstate.testing import Lab
from groundstate.testing.databases.scratch_db import Place
from groundstate.testing.databases.scratch_postgres import PostgresPlace
from groundstate.testing.databases.scratch_sqlite import SqlitePlace
from groundstate.testing.simulate.crash_plan import parse_schedule
from tests.patience import HANG_S, until
from tests.testing.shops import Order, calling, cancel, plain, shop


def pack(order: Order) -> None:
    order.status = "packed"


@pytest.fixture(params=["sqlite", "postgres"])
def postgres(request: pytest.FixtureRequest) -> str | None:
    """The server to be used; None: SQLite."""
    return request.getfixturevalue("postgres_url") if request.param == "postgres" else None


@pytest.fixture
def app() -> App:
    return plain("places", pack)


@pytest.fixture
def place(postgres: str | None, app: App) -> Iterator[Place]:
    made: Place = SqlitePlace(app) if postgres is None else PostgresPlace(app, postgres)
    made.fill(app, [Order(id=1), Order(id=2, receipt="a\tb\n\\c")])
    yield made
    made.close()


def statuses(place: Place) -> list[tuple[int, str, str | None]]:
    with place.session() as session:
        return [(one.id, one.status, one.receipt) for one in session.scalars(select(Order).order_by(Order.id))]


FILLED = [(1, "placed", None), (2, "placed", "a\tb\n\\c")]


def change(session: Session) -> None:
    session.get_one(Order, 1).status = "changed"
    session.delete(session.get_one(Order, 2))
    session.add(Order(status="new"))


def test_each_run_begins_with_what_was_filled(place: Place) -> None:
    for _ in range(2):
        place.reset()
        assert statuses(place) == FILLED
        assert place.commit_as_other_program(change)
        assert len(statuses(place)) == 2
        assert statuses(place)[0][1] == "changed"


def test_numbers_that_the_database_gives_are_the_same_in_each_run(place: Place) -> None:
    given = []
    for _ in range(2):
        place.reset()
        place.commit_as_other_program(lambda session: session.execute(text("DELETE FROM orders")))
        place.commit_as_other_program(lambda session: session.add(Order(status="new")))
        given.append(statuses(place)[0][0])
    assert given[0] == given[1]


def test_a_copy_is_put_back(place: Place) -> None:
    place.reset()
    copy = place.copy()
    place.commit_as_other_program(change)
    place.restore_copy(copy)
    assert statuses(place) == FILLED


def test_the_same_content_is_the_same_state_in_each_run_and_another_is_another(place: Place) -> None:
    states = []
    for _ in range(2):
        place.reset()
        filled = place.state()
        place.commit_as_other_program(change)
        assert place.state() != filled
        states.append((filled, place.state()))
    assert repr(states[0]) == repr(states[1])


def test_someone_else_is_kept_out_by_a_lock_and_comes_in_after_it(place: Place) -> None:
    place.reset()
    with place.session() as session, session.begin():
        session.execute(text("UPDATE orders SET status = 'locked' WHERE id = 1"))
        assert not place.commit_as_other_program(cancel)
    assert place.commit_as_other_program(cancel)
    assert statuses(place)[0][1] == "locked"  # by then it was no longer placed


def test_what_someone_else_raises_is_not_swallowed(place: Place) -> None:
    place.reset()
    with pytest.raises(ZeroDivisionError):
        place.commit_as_other_program(lambda _session: 1 // 0)
    assert statuses(place) == FILLED


def test_our_tables_can_be_asked_and_all_reactions_are_accepted(place: Place) -> None:
    place.reset()
    assert [row[0] for row in place.query_rows(0, "SELECT name FROM groundstate_reaction WHERE name <> ''")] == ["places"]
    with place.connect(0) as connection:
        assert connection.execute(text("SELECT count(*) FROM groundstate_attempt")).scalar_one() == 0


def test_what_waits_for_a_lock_is_known_and_what_left_lets_go_of_it(postgres_url: str, app: App) -> None:
    place = PostgresPlace(app, postgres_url)
    place.fill(app, [Order(id=1)])
    engine = create_engine(place.settings[0].url)
    with engine.connect() as holds, engine.connect() as waits:
        for one in (holds, waits):
            one.exec_driver_sql("SET lock_timeout = 0")
        holds.exec_driver_sql("UPDATE orders SET status = 'held' WHERE id = 1")
        thread = threading.Thread(target=lambda: waits.exec_driver_sql("UPDATE orders SET status = 'waited' WHERE id = 1"))
        thread.start()
        until(lambda: place.waits_for_lock(waits.connection.driver_connection))
        assert not place.waits_for_lock(holds.connection.driver_connection)
        driver: Any = holds.connection.driver_connection
        with place.closing_connections([driver]):
            driver.close()
        thread.join(HANG_S)
        assert not thread.is_alive()
        waits.commit()
        holds.invalidate()
    assert statuses(place)[0][1] == "waited"
    engine.dispose()
    place.close()


def test_nothing_is_left_when_it_is_closed(postgres: str | None, app: App) -> None:
    with Lab(postgres=postgres) as lab:
        lab.crash_everywhere(app, Order(id=1), only="die@12")
        place = lab._places[-1]
        if isinstance(place, SqlitePlace):
            assert place.folder.exists()
    if isinstance(place, SqlitePlace):
        assert not Path(place.folder).exists()
    assert isinstance(place, SqlitePlace) or databases(postgres or "") == []


def databases(url: str) -> list[str]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = connection.execute(text("SELECT datname FROM pg_database WHERE datname LIKE 'groundstate_lab_%'")).scalars().all()
    engine.dispose()
    return list(found)


def test_a_death_a_meanwhile_and_a_second_worker_go_well_on_each(postgres: str | None) -> None:
    made = shop()
    with Lab(postgres=postgres) as lab:
        charges = lab.fake(made.charge, lambda order: f"r{order.id}")
        lab.fake(made.send, lambda order: f"m{order.id}")
        lab.meanwhile(cancel)
        trial = lab._build_trial(made.app, Order(id=1), Order(id=2))
        clean = trial.run_clean()
        for line in [
            f"die@{next(one.number for one in clean.crossings if one.kind == 'done')}",
            "die@30 die@80",
            "meanwhile@25",
            "switch@25 switch@45 workers=2",
            "copy@30 restore@90",
            "call1=late hints=lost",
            "unlock@40",
        ]:
            trial.run(parse_schedule(line))
            assert all(order in (1, 2) for order in (effect.id for effect in charges.effects))
        assert len(charges.effects) >= 1


def test_the_same_schedule_is_the_same_run_on_each(postgres: str | None) -> None:
    made = calling("lookup")
    with Lab(postgres=postgres) as lab:
        lab.fake(made.call, "r1")
        trial = lab._build_trial(made.app, Order(id=1))
        told = [(stage.story, [str(one) for one in stage.crossings]) for stage in (trial.run(parse_schedule("die@30")) for _ in range(2))]
    assert told[0] == told[1]


class Parcels(DeclarativeBase):
    pass


class Parcel(Parcels):
    __tablename__ = "lab_parcels"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    weight: Mapped[Any] = mapped_column(JSON, default=dict)


def test_a_lab_writes_and_reads_json_as_the_users_engine_does(postgres: str | None) -> None:
    engine = create_engine("sqlite:///never-made.db", json_serializer=partial(json.dumps, default=str), json_deserializer=_with_decimals)
    app = App("places_of_json", Store(engine, Parcels))
    seen = []

    @app.on(Parcel, Parcel.status == "new")
    def weighed(parcel: Parcel) -> None:
        seen.append(parcel.weight["kg"])
        parcel.weight, parcel.status = {"kg": Decimal("2.50")}, "weighed"

    with Lab(postgres=postgres) as lab:
        lab.crash_everywhere(app, Parcel(id=1, weight={"kg": Decimal("1.10")}), only="die@3")
    assert {repr(one) for one in seen} == {"Decimal('1.10')"}


def _with_decimals(text_: str) -> Any:
    return {name: Decimal(value) for name, value in json.loads(text_).items()}
