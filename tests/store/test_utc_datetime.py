"""`UtcDateTime`: a time without a zone is refused with the cure, or taken as UTC where that was said. On both stores."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, insert, select, update
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import App, DeclarationError, StateRefusedError, Store, UtcDateTime

NAIVE = datetime(2026, 7, 1, 12)  # noqa: DTZ001  # what is refused
NOON = NAIVE.replace(tzinfo=UTC)


class Base(DeclarativeBase): ...


class Visit(Base):
    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    old: Mapped[datetime | None] = mapped_column(UtcDateTime(naive="utc"))


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_engine(database_url)
    Base.metadata.create_all(made)
    yield made
    made.dispose()


def test_a_time_without_a_zone_is_refused_wherever_it_would_be_bound(engine: Engine) -> None:
    statements: list[Any] = [
        insert(Visit).values(id=1, at=NAIVE),
        update(Visit).values(at=NAIVE),
        select(Visit).where(Visit.at < NAIVE),
        select(Visit).where(Visit.at.in_([NOON, NAIVE])),
    ]
    for statement in statements:
        with engine.connect() as connection, pytest.raises(StatementError, match=r"has no zone.*naive='utc'") as refused:
            connection.execute(statement)
        assert isinstance(refused.value.orig, StateRefusedError)
    with Session(engine) as session:
        session.add(Visit(id=1, at=NAIVE))
        with pytest.raises(StatementError, match="has no zone"):
            session.flush()


def test_a_date_is_no_instant(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(StatementError, match=r"is given datetime.date\(2026, 7, 1\): give an aware"):
        connection.execute(insert(Visit).values(id=1, at=date(2026, 7, 1)))


def test_where_it_was_said_what_has_no_zone_is_in_utc(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.add(Visit(id=1, old=NAIVE, at=NOON.astimezone(timezone(timedelta(hours=2)))))
    with Session(engine) as session:
        assert session.scalars(select(Visit).where(Visit.old == NAIVE, Visit.at == NOON)).one().old == NOON


def test_a_duration_beside_an_instant_is_a_duration(database_url: str, engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.add(Visit(id=1, at=NOON))
    if database_url.startswith("postgresql"):  # on SQLite a clause like this is refused
        with Session(engine) as session:
            assert session.scalars(select(Visit.id).where(Visit.at + timedelta(hours=1) == NOON + timedelta(hours=1))).one() == 1
            assert session.scalars(select(Visit.id).where(func.now() - Visit.at > timedelta(days=-99_999))).one() == 1


def test_a_clause_that_compares_with_a_time_without_a_zone_is_refused_when_it_is_declared() -> None:
    app = App("naive", Store("sqlite:///never-opened.db", Base))
    for clause in (Visit.at < NAIVE, Visit.at.between(NOON, NAIVE), Visit.at.in_([NAIVE])):
        with pytest.raises(DeclarationError, match=r"compares with a value that is refused: an UtcDateTime column is given .* has no zone"):
            app.on(Visit, clause, name="wrong")(lambda _visit: None)
    app.on(Visit, Visit.at < NOON, Visit.old < NAIVE, name="right")(lambda _visit: None)


def test_another_choice_than_there_is_is_refused() -> None:
    with pytest.raises(DeclarationError, match="choose 'refuse', or 'utc'"):
        UtcDateTime(naive="local")  # type: ignore[arg-type]


class Shown(UtcDateTime):
    cache_ok = True


class Rounded(UtcDateTime):
    cache_ok = True

    def __init__(self, digits: int = 6) -> None:
        super().__init__()
        self.digits = digits


def test_it_is_a_value_that_is_copied_and_shown_with_its_option() -> None:
    for kind, shown in ((UtcDateTime(), "UtcDateTime()"), (UtcDateTime(naive="utc"), "UtcDateTime(naive='utc')")):
        assert repr(kind) == repr(kind.copy()) == repr(pickle.loads(pickle.dumps(kind))) == shown
    assert (repr(Shown()), repr(Shown(naive="utc")), repr(Rounded(3))) == ("Shown()", "Shown(naive='utc')", "Rounded(digits=3)")
    assert UtcDateTime()._static_cache_key != UtcDateTime(naive="utc")._static_cache_key
