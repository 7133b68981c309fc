"""Times at the edges of the calendar: what can be computed of them is carried out, and the others fail or never become due."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import UtcDateTime, after
from tests.others_go_on.conftest import Beside, a_world


class Dates(DeclarativeBase): ...


class Dated(Dates):
    __tablename__ = "dated"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=lambda: datetime.now(UTC) - timedelta(hours=1))


TOO_EARLY = ["0001-01-01 00:00:00.000000", "0001-01-03 23:59:59.999999"]  # three days before is in no calendar
NEVER = ["9999-12-31 23:59:59.999999"]
OF_SQLITE = ["-infinity", "0000-00-00 00:00:00.000000"], ["infinity"]
OF_POSTGRES = ["-infinity", "0044-03-15 00:00:00 BC"], ["infinity", "20000-01-01 00:00:00"]


@pytest.fixture
def beside(database_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[Beside]:
    with a_world(database_url, caplog, Dates, kind=Dated) as made:
        yield made


def test_a_time_of_which_no_due_time_can_be_computed_fails_its_record_and_the_reports_answer(beside: Beside) -> None:
    early, never = OF_POSTGRES if beside.postgres else OF_SQLITE
    bad = dict(enumerate([*TOO_EARLY, *early], 1))
    beside.ones = tuple(bad)
    beside.handled(lambda _record: None, due=after(Dated.at, -timedelta(days=3)))
    beside.there()
    late = dict(enumerate([*NEVER, *never], 1001))
    with beside.engine.begin() as connection:
        for number, at in {**bad, **late}.items():
            connection.execute(text(f"INSERT INTO dated (id, status, at) VALUES ({number}, 'placed', '{at}')"))
    assert beside.status().rows == len(bad), "they are due, or nobody would ever be told of them"
    beside.go_on("cannot be", event="record_unreadable")
    assert beside.status().rows == 0, "they are held, and not to be carried out"
    first, *others = late
    assert "when it is due" in beside.why(first).next
    assert [said for number in others if "Dated.at holds '" not in (said := beside.why(number).next)] == []


def test_the_column_that_cannot_be_read_is_named_with_what_stands_there(beside: Beside) -> None:
    odd = "infinity" if beside.postgres else "the day before yesterday"
    beside.handled(lambda _record: None)
    beside.there()
    with beside.engine.begin() as connection:
        connection.execute(text(f"INSERT INTO dated (id, status, at) VALUES (1, 'placed', '{odd}')"))
    beside.go_on(f"(dated.at holds '{odd}')", event="record_unreadable")
