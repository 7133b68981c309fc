"""Values of a condition that no driver can be given: refused where they are declared, whatever the store, as far as it is known."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import BigInteger, Numeric, String, cast, or_, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from groundstate import App, DeclarationError, Store, UtcDateTime

URLS = {"sqlite": "sqlite:///never-opened.db", "postgres": "postgresql://never:asked@localhost/nothing"}


class Code:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Code({self.text!r})"


class CodeType(TypeDecorator[Code]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002  # as SQLAlchemy calls it
        return None if value is None else value.text


class Base(DeclarativeBase): ...


class Box(Base):
    __tablename__ = "boxes"
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[Any] = mapped_column(CodeType)
    count: Mapped[int] = mapped_column(BigInteger)
    price: Mapped[Decimal] = mapped_column(Numeric)
    at: Mapped[Any] = mapped_column(UtcDateTime)
    status: Mapped[str]


class Lid(Base):
    __tablename__ = "lids"
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[Any] = mapped_column(CodeType)


def shut(box: Box) -> None:
    box.status = "shut"


@pytest.fixture(params=URLS)
def app(request: pytest.FixtureRequest) -> App:
    return App("declared", Store(URLS[request.param], Base))


NOT_TAKEN = (
    r"cannot be asked with '[xy]%?'.* \(AttributeError: 'str' object has no attribute 'text'\): give it a value of the column's type"
)
ANY: Any = Box.code


@pytest.mark.parametrize(
    "clause",
    [
        ANY.like("x%"),
        ANY == "x",
        ANY.in_([Code("x"), "y"]),
        or_(Box.status == "open", ANY == "x"),
        Box.id.in_(select(Lid.id).where(Lid.code == "x")),
    ],
)
def test_a_value_that_its_type_does_not_take_is_refused_with_the_cure(app: App, clause: Any) -> None:
    with pytest.raises(DeclarationError, match=f"reaction shut: .* {NOT_TAKEN}"):
        app.on(Box, Box.status == "open", clause)(shut)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**64])
def test_an_integer_that_no_column_can_hold_is_refused(app: App, value: int) -> None:
    with pytest.raises(DeclarationError, match=f"reaction shut: its condition cannot be asked with {value}, since integers have 64 bits"):
        app.on(Box, Box.count < value)(shut)


def test_at_rest_takes_no_such_value_either(app: App) -> None:
    with pytest.raises(DeclarationError, match=rf"at_rest\(Box, ...\): .*{NOT_TAKEN}"):
        app.at_rest(Box, ANY == "x")


def test_values_that_their_types_take_are_taken(app: App) -> None:
    clauses = [
        ANY.in_([Code("x")]),
        ANY.in_([Code("x"), Code("y")]),
        ANY.is_(None),
        cast(ANY, String).like("x%"),
        Box.count < 2**63 - 1,
        Box.price < Decimal(2**70),
    ]
    for number, clause in enumerate(clauses):
        app.on(Box, Box.status == "open", clause, name=f"shut {number}")(shut)


def test_of_a_store_that_is_known_at_the_start_alone_nothing_is_refused() -> None:
    app = App("declared", Store(lambda: URLS["sqlite"], Base))
    app.on(Box, ANY == "x", Box.status == "open")(shut)
