"""A soft-delete filter of the user's: what it hides counts as deleted for us, wherever it is met, and what it does not is carried out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Mapped, ORMExecuteState, Session, mapped_column

from groundstate import ExternalService, InDoubt, Retry
from groundstate.engine import publish_report
from groundstate.values.errors import NotFoundError
from tests.engine.kit import HANG_S, ms, until
from tests.engine.sql.test_user_filters import Soft, SoftBase, hide
from tests.others_go_on.conftest import ONE, OTHERS, Beside, a_world


class Sack(Soft, SoftBase):
    __tablename__ = "sacks"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")


class Crate(SoftBase):
    __tablename__ = "crates"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")


def wants_a_tenant(state: ORMExecuteState) -> None:
    if state.is_select and state.bind_mapper is not None and state.bind_mapper.class_ is Crate:
        state.session.info["tenant"]


@pytest.fixture
def beside(database_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[Beside]:
    event.listen(Session, "do_orm_execute", hide)
    with a_world(database_url, caplog, SoftBase, kind=Sack) as made:
        yield made
    event.remove(Session, "do_orm_execute", hide)


def hide_one(beside: Beside) -> None:
    """As somebody else's session deletes it."""
    beside.run("UPDATE sacks SET deleted_at = :now WHERE id = 1", now=datetime.now(UTC).isoformat(sep=" "))


def is_nowhere(beside: Beside) -> None:
    report = beside.pending()
    assert (report.to_do[0].rows, report.counts["failed"], report.counts["held"]) == (0, 0, 0)
    assert (beside.status().rows, beside.status().attempts) == (0, {})
    with pytest.raises(NotFoundError, match="has no record '1'"):
        beside.why()


def test_what_is_hidden_before_it_is_carried_out_or_while_it_fails_is_nowhere(beside: Beside) -> None:
    beside.handled(lambda _sack: 1 / 0, retry=Retry(times=None, first=ms(60_000)))
    beside.add(Sack(id=ONE))
    hide_one(beside)
    beside.placed()
    assert beside.pending().to_do[0].rows == OTHERS
    life = beside.worker()
    beside.until_done()
    life.quiet()
    is_nowhere(beside)
    assert beside.told("handler_failed") == []
    beside.run("UPDATE sacks SET deleted_at = NULL")
    life.sweep()
    until(lambda: beside.states() == ["failed"], beside.attempts)
    beside.listed("division by zero", "failed")
    hide_one(beside)
    beside.forward(120)
    until(lambda: beside.states() == [], beside.attempts)
    is_nowhere(beside)


def test_what_is_hidden_while_it_is_called_was_deleted_under_its_call(beside: Beside) -> None:
    gate = threading.Event()

    def wait() -> str:
        assert gate.wait(HANG_S)
        return "receipt"

    beside.called(wait, in_doubt=InDoubt.hold(), service=ExternalService("desk", limit=20))
    beside.placed()
    beside.worker()
    beside.until_done()
    hide_one(beside)
    gate.set()
    until(lambda: beside.states() == ["held"], beside.attempts)
    beside.listed("the record was deleted", "held")
    beside.told_once("the record was deleted", "outcome_held")


def test_a_listener_that_raises_for_one_class_stops_its_reactions_alone_and_they_are_named(beside: Beside) -> None:
    @beside.app.on(Crate, Crate.status == "placed", name="stacked")
    def stacked(crate: Crate) -> None:
        crate.status = "stacked"

    beside.handled(lambda _sack: None)
    beside.add(Crate(id=1))
    beside.placed()
    event.listen(Session, "do_orm_execute", wants_a_tenant)
    try:
        life = beside.worker()
        beside.until_done()
        life.quiet()
        life.sweep()
        life.quiet()
        assert beside.attempts() == []
        (words,) = beside.told("reaction_unfit")
        assert "a listener for do_orm_execute raised for Crate" in words
        assert list(beside.pending().lacks) == ["stacked"]
        assert "raised for Crate" in str(beside.status("stacked").lacks)
    finally:
        event.remove(Session, "do_orm_execute", wants_a_tenant)


def test_what_a_listener_keeps_workers_from_is_told_by_who_meets_none(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_report, "EACH_S", 0.02)

    @beside.app.on(Crate, Crate.status == "placed", name="stacked")
    def stacked(crate: Crate) -> None:
        crate.status = "stacked"

    beside.add(Crate(id=1))
    event.listen(Session, "do_orm_execute", wants_a_tenant)
    try:
        beside.worker().quiet()
    finally:
        event.remove(Session, "do_orm_execute", wants_a_tenant)
    until(lambda: "raised for Crate" in beside.pending().lacks.get("stacked", ""))
    assert "raised for Crate" in str(beside.status("stacked").lacks)
    (found,) = beside.why_of("crates", "1").answers
    assert found.next.startswith("not carried out: a listener for do_orm_execute raised for Crate")
