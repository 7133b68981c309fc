"""The lab's clock leaps within a transaction, and its conditions are asked with its one moment all the same."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from groundstate import App, ExternalService, InDoubt, ReactionContext, Store, after
from groundstate.testing import Lab
from groundstate.testing.search.schedule_search import CleanRun
from groundstate.testing.simulate.crash_plan import Move, Schedule
from tests.engine.sql.test_transaction_time import HOUR, Base, Note
from tests.testing.searching import limited_to
from tests.testing.shops import NOWHERE


@pytest.fixture(params=["sqlite", "postgres"])
def postgres(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("postgres_url") if request.param == "postgres" else None


def _just_before_the_records(seen: CleanRun) -> Iterator[Schedule]:
    """A statement's values are bound before its crossing: a leap there is one between this statement and the next."""
    for one, following in zip(seen.crossings, seen.crossings[1:], strict=False):
        if "SELECT groundstate_attempt" in str(one) and Note.__tablename__ in str(following):
            yield Schedule((Move(one.number, "leap"),))


@pytest.mark.parametrize(("by", "called"), [(50, False), (-50, False), (50, True)], ids=["ahead", "back", "ahead, with a call"])
def test_a_clock_that_leaps_at_any_crossing_makes_nothing_early_or_too_late_within_a_transaction(
    postgres: str | None, by: int, *, called: bool
) -> None:
    app = App(f"moment-{called}-{by}", Store(NOWHERE, Base))
    noon = datetime(2026, 11, 1, 12, tzinfo=UTC)

    @ExternalService("bell").call(in_doubt=InDoubt.hold())
    async def ring(one: Note) -> str:
        raise NotImplementedError

    due, wrong = after(Note.due_at, valid_for=HOUR), list[ReactionContext]()
    if called:

        @app.on(Note, Note.status == "open", due=due, call=ring, name="rung")
        def rung(one: Note, _told: str) -> None:
            one.status = "rung"

    else:

        @app.on(Note, Note.status == "open", due=due, name="rung")
        def rung(one: Note, ctx: ReactionContext) -> None:
            one.status = "rung"
            if not ctx.due <= ctx.now < ctx.due + HOUR:
                wrong.append(ctx)

    @rung.expired
    def _(one: Note, ctx: ReactionContext) -> None:
        one.status = "late"
        if ctx.now < ctx.due + HOUR:
            wrong.append(ctx)

    with Lab(postgres=postgres) as lab, limited_to(_just_before_the_records):
        if called:
            lab.fake(ring, lambda one: f"r{one.id}")
        lab.clock.starts(noon)
        lab.clock.leaps(timedelta(minutes=by))
        rows = [Note(id=1, due_at=noon - timedelta(minutes=30)), Note(id=2, due_at=noon + timedelta(minutes=20))]
        lab.crash_everywhere(app, *rows, budget=0)
    assert wrong == []
