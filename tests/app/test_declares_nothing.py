"""What is declared without parentheses, too late, or not at all: refused or told, since nothing of it would ever be carried out."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import App, DeclarationError, ExternalService, InDoubt, Store


class Base(DeclarativeBase):
    pass


class Job(Base):
    __tablename__ = "jobs"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


def app_at(url: str) -> App:
    return App("declares nothing", Store(url, Base))


def test_on_and_every_without_parentheses_are_refused() -> None:
    app: Any = app_at("sqlite:///never-opened.db")

    def handler(job: Job) -> None: ...

    with pytest.raises(DeclarationError, match=r"on\(handler\) is given a function for the record.*@app\.on\(Order, "):
        app.on(handler)
    with pytest.raises(DeclarationError, match=r"every\(handler\) is given a function for the schedule.*@app\.every\('0 7"):
        app.every(handler)


def test_a_call_and_its_find_say_how_they_are_written() -> None:
    bank: Any = ExternalService("bank")

    def pay(job: Job) -> str:
        return ""

    with pytest.raises(
        DeclarationError, match=r"call\(pay\): too many positional arguments: write @bank\.call\(in_doubt=InDoubt\.hold\(\)\)"
    ):
        bank.call(pay)
    with pytest.raises(DeclarationError, match=r"call\(\): missing a required argument: 'in_doubt': write @bank\.call\("):
        bank.call()
    with pytest.raises(DeclarationError, match=r"call\(\): got an unexpected keyword argument 'tries': write @bank\.call\("):
        bank.call(in_doubt=InDoubt.hold(), tries=3)
    with pytest.raises(DeclarationError, match=r"call_many\(pay\): .*: write @bank\.call_many\(size=10, in_doubt="):
        bank.call_many(pay)
    with pytest.raises(DeclarationError, match=r"lookup\(\): missing .*: write @charge\.lookup, without parentheses, above"):
        bank.call(in_doubt=InDoubt.hold())(pay).lookup()


def test_an_app_that_declares_nothing_says_so_at_its_start(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    app = app_at(database_url)
    app.init(tables=True)
    app.run_until_idle(timedelta(seconds=60))
    told = [one for one in caplog.records if getattr(one, "event", "") == "nothing_declared"]
    assert [(one.levelno, one.getMessage()) for one in told] == [
        (logging.WARNING, "app declares nothing declares no reaction: is the module that declares them imported?")
    ]


def test_an_app_with_a_schedule_alone_declares_something(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = app_at(f"sqlite:///{tmp_path / 'app.db'}")

    @app.every("0 7 * * *")
    def morning() -> None: ...

    app.init(tables=True)
    app.run_until_idle(timedelta(seconds=60))
    assert "nothing_declared" not in [getattr(one, "event", "") for one in caplog.records]


def test_what_is_declared_while_the_app_runs_is_refused_and_not_after_it_was_stopped(database_url: str) -> None:
    app = app_at(database_url)

    @app.on(Job, Job.status == "new")
    def done(job: Job) -> None:
        job.status = "done"

    def late(job: Job) -> None:
        job.status = "late"

    def tick() -> None: ...

    app.init(tables=True)
    app.start()
    try:
        with pytest.raises(DeclarationError, match=r"late is declared while App\('declares nothing'\) runs in this process"):
            app.on(Job, Job.status == "done")(late)
        with pytest.raises(DeclarationError, match=r"tick is declared while .* import the module that declares it before app\.start\(\)"):
            app.every("0 7 * * *")(tick)
    finally:
        app.stop()
    app.on(Job, Job.status == "done")(late)
    assert list(app.reactions) == ["done", "late"]


def test_a_process_that_carries_nothing_out_may_declare_late(database_url: str) -> None:
    app = app_at(database_url)
    app.init(tables=True)
    app.start(hints_only=True)
    try:

        @app.on(Job, Job.status == "new")
        def done(job: Job) -> None: ...

    finally:
        app.stop()
    assert list(app.reactions) == ["done"]
