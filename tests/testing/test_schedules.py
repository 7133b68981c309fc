"""A schedule in the lab: killed at every crossing of its ticks, each is carried out once, and none is lost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, registry

from groundstate import App, ReactionContext, Retry, Store
from groundstate.store import tables
from groundstate.testing import Lab
from groundstate.values import keys

HOUR = timedelta(hours=1)


class Base(DeclarativeBase):
    pass


class Report(Base):
    __tablename__ = "reports"
    id: Mapped[int] = mapped_column(primary_key=True)
    tick: Mapped[str]
    status: Mapped[str] = mapped_column(default="new")


class Stands:
    """A row of groundstate_reaction: the app ran before, and stopped two hours and a half ago."""

    def __init__(self, app: App, name: str, lab: Lab) -> None:
        self.app, self.name, self.key_name = app.name, name, name
        self.condition, self.suspect, self.seen_at = app.schedules[name].as_text, False, lab.clock.now
        self.mark = keys.datetime_text(lab.clock.now - 2.5 * HOUR)


registry().map_imperatively(Stands, tables.reaction)


def reporting(*, fails: bool = False, **options: Any) -> App:
    """An app whose schedule writes reports, which a reaction sends. fails: a tick fails while no attempt stands."""
    app = App("reporting", Store("sqlite:///reporting.db", Base, tables.metadata))

    @app.every(HOUR, missed="all", **options)
    def hourly(session: Session, ctx: ReactionContext) -> None:
        if fails and session.execute(select(tables.attempt.c.app)).first() is None:
            raise ValueError("not yet")
        session.add(Report(tick=ctx.due.isoformat()))

    @app.on(Report, Report.status == "new")
    def sent(report: Report) -> None:
        report.status = "sent"

    return app


def never_twice(session: Session) -> None:
    ticks = list(session.scalars(select(Report.tick)))
    assert len(ticks) == len(set(ticks))


def once_each(lab: Lab) -> Callable[[Session], None]:
    wanted = [(lab.clock.now - hours * HOUR).isoformat() for hours in (1.5, 0.5)]

    def check(session: Session) -> None:
        assert sorted(session.scalars(select(Report.tick))) == wanted

    return check


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_killed_at_each_crossing_of_its_ticks_a_schedule_carries_out_each_once(store: str, request: pytest.FixtureRequest) -> None:
    app = reporting()
    with Lab(postgres=request.getfixturevalue("postgres_url") if store == "postgres" else None) as lab:
        row = Stands(app, "hourly", lab)
        found = lab.crash_everywhere(app, row, always=never_twice, at_the_end=once_each(lab), budget=0 if lab.postgres else 10, seed=44)
    assert found.deaths > 5


def test_killed_at_each_crossing_a_tick_that_failed_once_is_carried_out_once(lab: Lab) -> None:
    app = reporting(fails=True, retry=Retry(first=timedelta(milliseconds=5)))
    row = Stands(app, "hourly", lab)
    found = lab.crash_everywhere(app, row, always=never_twice, at_the_end=once_each(lab), may_fail=["hourly"], budget=20, seed=44)
    assert found.deaths > 5
