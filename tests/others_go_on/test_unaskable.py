"""A condition that the database cannot ask of any row: it is named with what the database said, and the others go on.

Of one that it cannot ask of some rows alone: test_poisoned_conditions.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, event, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import StateRefusedError
from groundstate.cli.common import open_store_read_only
from groundstate.engine.operate.check import check_database
from groundstate.engine.operate.plan import build_plan
from groundstate.engine.sql.condition_query import ConditionQuery
from tests.engine.kit import Base, until
from tests.others_go_on.conftest import OTHERS, a_world


class Shelves(DeclarativeBase): ...


class Box(Shelves):
    __tablename__ = "boxes"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")
    label: Mapped[str] = mapped_column(default="no number, and no JSON")


NO_FUNCTION: Any = func.nosuch(Box.label) == "x"


def test_rows_left_as_a_baseline_of_such_a_condition_keep_nobody_waiting(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    there = [True]
    with a_world(sqlite_url, caplog, Base, Shelves) as beside:

        @beside.app.on(Box, Box.status == "open", NO_FUNCTION)
        def shut(box: Box) -> None:
            box.status = "shut"

        def add_function(connection: Any, _record: object) -> None:
            if there:
                connection.create_function("nosuch", 1, lambda _label: "x")

        event.listen(Engine, "connect", add_function)
        try:
            beside.handled(lambda _order: None)
            Shelves.metadata.create_all(beside.engine)
            with beside.session() as session, session.begin():
                session.add(Box(id=1))
            beside.app.init(tables=True, accept=["done"], baseline=["shut"])
            there.clear()
            beside._there = True
            beside.engine.dispose()
            beside.placed()
            beside.worker()
            beside.until_done()
            until(lambda: beside.told("condition_failed"))
            assert beside.told("turn_failed") == []
            assert beside.states() == ["held"]
        finally:
            event.remove(Engine, "connect", add_function)


def test_a_condition_cannot_be_asked(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    words = "nosuch"
    with a_world(database_url, caplog, Base, Shelves) as beside:

        @beside.app.on(Box, Box.status == "open", NO_FUNCTION)
        def shut(box: Box) -> None:
            box.status = "shut"

        beside.handled(lambda _order: None)
        Shelves.metadata.create_all(beside.engine)
        with beside.session() as session, session.begin():
            session.add(Box(id=1))
        with pytest.raises(
            StateRefusedError,
            match=f"all else was done, but these reactions are not started: shut: its condition cannot be asked: .*{words}",
        ):
            beside.there()
        beside._there = True
        beside.placed()
        assert {one.reaction: one.rows for one in beside.pending().to_do} == {"done": OTHERS + 1}
        assert words in beside.pending().unseen["shut"]
        assert words in (beside.status("shut").unseen or "") + (beside.status("shut").lacks or "")
        assert words in beside.why_of("boxes", "1").answers[0].next
        with open_store_read_only(beside.app.stores[0]) as (database, _lives):
            planned = build_plan(beside.app.name, database, [ConditionQuery(spec, database) for spec in beside.app.reactions.values()], [])
        assert {one.reaction: words in (one.lacks or "") for one in planned.reactions} == {"shut": True, "done": False}
        assert planned.needs_person
        with open_store_read_only(beside.app.stores[0]) as (database, _lives):
            found = check_database(database, [ConditionQuery(spec, database) for spec in beside.app.reactions.values()], [])
        assert [one.subject for one in found if one.level == "problem" and words in one.words] == ["shut"]
        beside.worker()
        beside.until_done()
        until(lambda: beside.told("condition_unaskable") or beside.told("reaction_unfit"))
        (line,) = beside.told("condition_unaskable") + beside.told("reaction_unfit")
        assert line.startswith("ERROR shut is not")
        assert words in line
        assert (beside.status().rows, beside.status().lacks) == (0, None)
