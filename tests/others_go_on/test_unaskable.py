"""A condition that the database cannot ask, of any row or of some: it is named with what the database said, and the others go on."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Integer, cast, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import StateRefused
from groundstate.cli.common import looking
from groundstate.engine.plan import plan
from groundstate.engine.question import Question
from tests.engine.kit import Base, until
from tests.others_go_on.conftest import OTHERS, a_world


class Shelves(DeclarativeBase): ...


class Box(Shelves):
    __tablename__ = "boxes"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")
    label: Mapped[str] = mapped_column(default="no number, and no JSON")


NO_FUNCTION: Any = func.nosuch(Box.label) == "x"
OF_SOME_ROWS: dict[str, Any] = {"sqlite": func.json_extract(Box.label, "$.size") > 1, "postgres": cast(Box.label, Integer) > 1}


@pytest.mark.parametrize("of_some", [False, True], ids=["no such function", "some rows"])
def test_a_condition_cannot_be_asked(database_url: str, caplog: pytest.LogCaptureFixture, *, of_some: bool) -> None:
    store = "postgres" if database_url.startswith("postgres") else "sqlite"
    clause = OF_SOME_ROWS[store] if of_some else NO_FUNCTION
    words = {False: "nosuch", True: "malformed JSON" if store == "sqlite" else "invalid input syntax for type integer"}[of_some]
    with a_world(database_url, caplog, Base, Shelves) as beside:

        @beside.app.on(Box, Box.status == "open", clause)
        def shut(box: Box) -> None:
            box.status = "shut"

        beside.handled(lambda _order: None)
        Shelves.metadata.create_all(beside.engine)
        with beside.session() as session, session.begin():
            session.add(Box(id=1))
        with pytest.raises(
            StateRefused, match=f"the rest was done, and these are not started: shut: its condition cannot be asked: .*{words}"
        ):
            beside.there()
        beside._there = True
        beside.placed()
        assert {one.reaction: one.rows for one in beside.pending().to_do} == {"done": OTHERS + 1}
        assert words in beside.pending().unseen["shut"]
        assert words in (beside.status("shut").unseen or "") + (beside.status("shut").lacks or "")
        assert words in beside.why_of("boxes", "1").answers[0].next
        with looking(beside.app.stores[0]) as (database, _lives):
            planned = plan(beside.app.name, database, [Question(spec, database) for spec in beside.app.reactions.values()], [])
        assert {one.reaction: words in (one.lacks or "") for one in planned.reactions} == {"shut": True, "done": False}
        assert planned.needs_somebody
        beside.worker()
        beside.until_done()
        until(lambda: beside.told("condition_unaskable") or beside.told("reaction_unfit"))
        (line,) = beside.told("condition_unaskable") + beside.told("reaction_unfit")
        assert line.startswith("ERROR shut is not")
        assert words in line
        assert (beside.status().rows, beside.status().lacks) == (0, None)
