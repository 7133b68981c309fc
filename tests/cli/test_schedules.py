"""What the commands say of schedules, and what persons do with their ticks."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from groundstate.store import connect
from groundstate.values import keys
from tests.cli.conftest import Said, groundstate

TEXT = """
from datetime import timedelta
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from groundstate import App, ReactionContext, Retry, Store

class Base(DeclarativeBase): ...

class Report(Base):
    __tablename__ = "reports"
    id: Mapped[int] = mapped_column(primary_key=True)
    tick: Mapped[str]

app = App(NAME, Store(URL, Base))

@app.every("0 7 * * *", zone="Europe/Berlin", missed="all", max_missed=2)
def daily(session: Session, ctx: ReactionContext) -> None:
    session.add(Report(tick=ctx.due.isoformat()))

@app.every("*/10 * * * *", zone="Europe/Berlin", retry=Retry(times=1))
def often(session: Session, ctx: ReactionContext) -> None:
    raise ValueError("not today")

@app.every(timedelta(days=5000))
def seldom() -> None: ...
"""
_numbers = itertools.count()


class Ticking:
    """An app with three schedules of which one always fails, and its database."""

    def __init__(self, url: str, folder: Path) -> None:
        self.name = f"ticking{next(_numbers)}"
        (folder / f"{self.name}.py").write_text(TEXT.replace("NAME", repr(self.name)).replace("URL", repr(url)))
        self.engine = create_engine(connect.resolve_settings(url, None, None, "lossy").url)
        self.run("init", "--tables")

    def run(self, *arguments: str) -> Said:
        return groundstate(*arguments, "--app", f"{self.name}:app")

    def work(self) -> None:
        self.app.run_until_idle()

    @property
    def app(self) -> Any:
        return sys.modules[self.name].app

    def mark(self, name: str, at: datetime | str) -> None:
        written = at if isinstance(at, str) else keys.datetime_text(at)
        with self.engine.begin() as connection:
            connection.execute(text("update groundstate_reaction set mark = :mark where name = :name"), {"mark": written, "name": name})


@pytest.fixture
def ticking(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ticking]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    made = Ticking(database_url, tmp_path)
    yield made
    made.engine.dispose()
    sys.modules.pop(made.name, None)


def ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def of(said: Said, name: str) -> dict[str, Any]:
    schedules = said.json["stores"][0]["report"]["schedules"]
    return next(one for one in schedules if one["name"] == name)


def test_pending_says_before_anything_runs_what_was_missed_and_what_will_become_of_it(ticking: Ticking) -> None:
    assert of(ticking.run("pending", "--json"), "daily")["fate"] == "it is new here, and starts when a worker does"
    ticking.work()
    ticking.mark("daily", ago(5))
    said = of(ticking.run("pending", "--json"), "daily")
    assert said["missed"] in {4, 5}
    assert said["fate"] == f"2 are carried out, oldest first, {said['missed'] - 2} are left out"
    shown = ticking.run("pending").out
    assert said["words"] == "every 0 7 * * * in Europe/Berlin"
    assert "Schedules" in shown
    assert "daily" in shown
    assert "Nothing is left to do." not in shown
    ticking.work()
    assert of(ticking.run("pending", "--json"), "daily")["missed"] == 0


def test_pending_at_a_moment_says_what_would_have_been_missed_then(ticking: Ticking) -> None:
    ticking.work()
    then = (datetime.now(UTC) + timedelta(days=10)).strftime("%Y-%m-%dT%H:%MZ")
    said = of(ticking.run("pending", "--json", "--at", then), "daily")
    assert said["missed"] in {9, 10, 11}
    assert of(ticking.run("pending", "--json"), "daily")["missed"] == 0


def test_timers_lists_the_next_tick_of_each_schedule(ticking: Ticking) -> None:
    ticking.work()
    listed = [one["timer"]["reaction"] for one in ticking.run("timers", "--json").json["timers"]]
    assert listed == ["often", "daily", "seldom"]
    assert [one["timer"]["reaction"] for one in ticking.run("timers", "daily", "--json").json["timers"]] == ["daily"]


def test_a_held_tick_is_listed_explained_retried_and_forgotten(ticking: Ticking) -> None:
    ticking.work()
    ticking.mark("often", ago(1))
    ticking.work()
    held = ticking.run("held", "--json").json["held"]
    assert [(one["reaction"], one["record"], one["key"], one["can"]) for one in held] == [("often", "", None, ["retry", "forget"])]
    tick = held[0]["occurrence"]
    assert f"tick {tick}" in " ".join(ticking.run("held").out.split())
    assert "ValueError: not today" in ticking.run("held", "--long").out
    explained = ticking.run("why", "often")
    assert (explained.code, f"(tick {tick}) is held" in " ".join(explained.out.split())) == (0, True)
    assert (
        ticking.run("why", "often", tick, "--json")
        .json["schedule"]["ticks"][0]["error"]
        .startswith("the handler raised ValueError: not today (")
    )
    assert ticking.run("why", "often", "2020-01-01T00:00Z").code == 3
    assert "which makes no call" in ticking.run("settle", "often", tick, "--outcome", "1").err
    assert ticking.run("retry", "often").code == 0
    report = ticking.run("pending", "--json").json["stores"][0]["report"]
    assert [(one["reaction"], one["next"]) for one in report["failed"]] == [("often", "tried again")]
    assert (report["undeclared"], report["newcomers"]) == ({}, [])
    ticking.work()
    forgotten = ticking.run("forget", "often", tick)
    assert (forgotten.code, f"often on tick {tick}: gone" in forgotten.out) == (0, True)
    assert ticking.run("held", "--json").json["held"] == []


def test_init_baseline_starts_a_schedule_with_now(ticking: Ticking) -> None:
    ticking.work()
    ticking.mark("daily", "yesterday")
    assert "says 'yesterday', which is no time" in of(ticking.run("pending", "--json"), "daily")["fate"]
    assert "daily starts with now" in ticking.run("init", "--baseline", "daily").out
    assert of(ticking.run("pending", "--json"), "daily")["fate"] == ""


def test_check_advises_where_the_clock_takes_an_hour_of_ticks_away(ticking: Ticking) -> None:
    said = ticking.run("check", "--json")
    found = {one["subject"]: one for one in said.json["stores"][0]["findings"] if one["kind"] == "fold"}
    assert list(found) == ["often"], "what fires once a day has no such hour, and a timedelta has none"
    assert "02:00+01:00" in found["often"]["words"]
    assert (found["often"]["level"], found["often"]["cure"]) == (
        "advice", "fold='both', or a timedelta instead of a cron expression"
    )  # fmt: skip
