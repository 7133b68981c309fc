"""A reaction that the database has not all of: it waits, which all reports say, and the others are carried out and reported as ever."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import exists, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.engine.kit import Base, until
from tests.others_go_on.conftest import OTHERS, a_world


class Shelves(DeclarativeBase): ...


class Box(Shelves):
    __tablename__ = "boxes"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")
    colour: Mapped[str | None] = mapped_column(default=None)
    size: Mapped[int] = mapped_column(default=1)


class Lid(Shelves):
    __tablename__ = "lids"
    id: Mapped[int] = mapped_column(primary_key=True)


CLAUSES: dict[str, tuple[Any, str, str]] = {
    "a column of its record": (Box.status == "open", "ALTER TABLE boxes DROP COLUMN colour", "column boxes.colour is missing"),
    "a column of its condition": (Box.size == 1, "ALTER TABLE boxes DROP COLUMN size", "column boxes.size is missing"),
    "a table of its condition": (exists(select(Lid.id).where(Lid.id == Box.id)), "DROP TABLE lids", "lids"),
}


@pytest.mark.parametrize("which", CLAUSES)
def test_something_is_missing(database_url: str, caplog: pytest.LogCaptureFixture, which: str) -> None:
    clause, statement, words = CLAUSES[which]
    with a_world(database_url, caplog, Base, Shelves) as beside:

        @beside.app.on(Box, clause)
        def shut(box: Box) -> None:
            box.status, box.size = "shut", 0

        beside.handled(lambda _order: None)
        beside.add(Box(id=1), Lid(id=1))
        beside.run(statement)
        beside.placed()
        assert {one.reaction: one.rows for one in beside.pending().to_do}["done"] == OTHERS + 1
        beside.worker()
        beside.until_done()
        until(lambda: beside.told("reaction_unfit"))
        assert words in beside.pending().lacks["shut"]
        assert words in (beside.status("shut").lacks or "")
        assert words in beside.why_of("boxes", "1").answers[0].next
        assert (beside.status().rows, beside.status().lacks) == (0, None)
        (line,) = beside.told("reaction_unfit")
        assert line.startswith("ERROR shut is not carried out")
