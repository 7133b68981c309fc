"""What a handler's source tells of the states that it leaves, and what is not told of one that cannot be followed."""

from __future__ import annotations

import enum
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import App, Store
from groundstate.engine.operate.source_constants import attributes_set_per_path
from groundstate.engine.operate.state_circles import StateSteps
from groundstate.rules.column_demands import ANY, OTHER

PLACED = "placed"


class Base(DeclarativeBase): ...


class Step(enum.Enum):
    OUT = "o"
    BACK = "b"


class Ball(Base):
    __tablename__ = "balls"
    id: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[Step]
    status: Mapped[str]
    note: Mapped[str | None]
    flag: Mapped[bool]


def branches(ball: Ball, outcome: Any) -> None:
    if outcome is None:
        ball.status, ball.note = PLACED, str(outcome)
    elif outcome:
        ball.step = Step.OUT
        return
    else:
        raise ValueError(outcome)
    ball.flag = True


def unsure(ball: Ball) -> None:
    ball.note = None if ball.flag else "x"
    ball.status += "s"


def by_another(ball: Ball) -> None:
    _hand_on(ball)


def by_statement(ball: Ball, session: Session) -> None:
    session.delete(ball)


def by_another_name(ball: Ball) -> None:
    other = ball
    other.status = PLACED


def by_setattr(ball: Ball) -> None:
    setattr(ball, "status", PLACED)  # noqa: B010  # as somebody may write it


def _hand_on(ball: Ball) -> None:
    ball.status = "handed on"


def test_each_way_through_a_handler_is_told_by_itself() -> None:
    found = attributes_set_per_path(branches)
    assert found is not None
    assert sorted(found, key=len) == [{"step": Step.OUT}, {"status": "placed", "note": OTHER, "flag": True}]
    assert attributes_set_per_path(unsure) == [{"note": ANY, "status": OTHER}]


@pytest.mark.parametrize("handler", [by_another, by_statement, by_another_name, by_setattr, "no function", len])
def test_of_what_cannot_be_followed_nothing_is_told(handler: Any) -> None:
    assert attributes_set_per_path(handler) is None


def test_rings_of_enums_flags_and_nulls_are_found() -> None:
    app = App("circles", Store("sqlite:///never-opened.db", Base))

    @app.on(Ball, Ball.step == Step.OUT)
    def out(ball: Ball) -> None:
        ball.step = Step.BACK

    @app.on(Ball, Ball.step.in_([Step.BACK]))
    def back(ball: Ball) -> None:
        ball.step = Step.OUT

    @app.on(Ball, Ball.note.is_(None), ~Ball.flag)
    def noted(ball: Ball) -> None:
        ball.note = f"ball {ball.id}"

    @app.on(Ball, Ball.note.is_not(None), Ball.flag.is_(False))
    def unnoted(ball: Ball) -> None:
        ball.note = None

    @app.on(Ball, Ball.status == "a", Ball.flag)
    def leaves(ball: Ball) -> None:
        ball.status = "b"

    @app.on(Ball, Ball.status == "b", Ball.flag.is_(False))
    def of_others(ball: Ball) -> None:
        ball.status = "a"

    assert list(StateSteps(list(app.reactions.values())).find_endless_cycles()) == [["out", "back"], ["noted", "unnoted"]]
