"""`in_order`, `per`, `limit` and `Rate`: what is refused where it is declared, with the cure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import JSON
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import App, DeclarationError, DeclarationWarning, ExternalService, InDoubt, InOrder, Rate, Store

SECOND = timedelta(seconds=1)


class Base(DeclarativeBase):
    pass


class Hook(Base):
    __tablename__ = "hooks"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str | None]
    number: Mapped[int]
    later: Mapped[int | None]
    body: Mapped[Any] = mapped_column(JSON)
    status: Mapped[str] = mapped_column(default="new")


class Other(Base):
    __tablename__ = "others"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str]


def declared(**options: Any) -> Any:
    service = options.pop("service", None)
    app = App("hooks", Store("sqlite:///hooks.db", Base))
    if service is not None:

        @service.call(in_doubt=InDoubt.hold())
        def send(hook: Hook) -> str:
            return "ok"

        @app.on(Hook, Hook.status == "new", call=send, **options)
        def sent(hook: Hook, answer: str) -> None:
            hook.status = "sent"

        return sent.spec

    @app.on(Hook, Hook.status == "new", **options)
    def read(hook: Hook) -> None:
        hook.status = "read"

    return read.spec


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a limit of nothing": (lambda: ExternalService("a", limit=0), "at least 1 call must be possible; leave it out for 100 in each worker"),
    "a limit that is true": (lambda: ExternalService("a", limit=True), "at least 1 call must be possible"),
    "a limit for each part of nothing": (lambda: ExternalService("a", limit_per=0), "limit_per=0"),
    "a rate that is a number": (lambda: ExternalService("a", rate=5), "give a Rate, such as Rate(10, timedelta(seconds=1))"),  # type: ignore[arg-type]
    "a rate of nothing": (lambda: ExternalService("a", rate=Rate(0, SECOND)), "at least 1 call must be possible in the span"),
    "a rate of half a call": (lambda: ExternalService("a", rate_per=Rate(0.5, SECOND)), "at least 1 call"),  # type: ignore[arg-type]
    "a rate in no time": (lambda: ExternalService("a", rate=Rate(5, timedelta())), "give a span of more than zero"),
    "a rate in a number of seconds": (lambda: ExternalService("a", rate=Rate(5, 1)), "such as each=timedelta(minutes=1)"),  # type: ignore[arg-type]
    "an order that is a column": (lambda: declared(in_order=Hook.tenant), "give InOrder(by, order), such as InOrder(Hook.account)"),
    "an order by another record's column": (
        lambda: declared(in_order=InOrder(Other.tenant)),
        "in_order=InOrder(by=Other.tenant) is no column of Hook",
    ),
    "an order by a text": (lambda: declared(in_order=InOrder("tenant")), "is no column of Hook"),  # type: ignore[arg-type]
    "an order by what can be null": (lambda: declared(in_order=InOrder(Hook.tenant, Hook.later)), "order by a column that cannot be NULL"),
    "an order by what has none": (lambda: declared(in_order=InOrder(Hook.body)), "InOrder(by=Hook.body) is of type"),
    "past_held without an order": (
        lambda: declared(in_order=InOrder(Hook.tenant, past_held=True)),
        "as in InOrder(by, order, past_held=True)",
    ),
    "a part without a call": (lambda: declared(per=Hook.tenant), "there is no call=: leave it out"),
    "a part that is another record's": (
        lambda: declared(per=Other.tenant, service=ExternalService("a")),
        "per=Other.tenant is no column of Hook",
    ),
    "a part that is a JSON": (lambda: declared(per=Hook.body, service=ExternalService("a")), "use a column of text, integer"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_meant_is_refused_with_the_cure(words: str) -> None:
    declare, cure = REFUSED[words]
    with pytest.raises(DeclarationError) as refused:
        declare()
    assert cure in str(refused.value)


def test_limits_for_each_part_that_nothing_tells_apart_are_warned_of() -> None:
    with pytest.warns(DeclarationWarning, match=r"neither is kept here: add per=, as in per=Hook.tenant"):
        declared(service=ExternalService("a", rate_per=Rate(5, SECOND)))


def test_what_is_right_is_kept_as_columns_of_the_record() -> None:
    spec = declared(
        service=ExternalService("a", limit=3, limit_per=1), per=Hook.tenant, in_order=InOrder(Hook.tenant, Hook.number, past_held=True)
    )
    assert spec.per.key == spec.in_order.by.key == "tenant"
    assert (spec.in_order.order.key, spec.in_order.past_held) == ("number", True)
    assert (spec.call.service.limit, spec.call.service.limit_per, spec.call.service.rate) == (3, 1, None)
