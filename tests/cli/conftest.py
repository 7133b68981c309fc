"""A shop of each test's own on each store, and `groundstate` run in this process with what it printed and its exit code."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from groundstate.app.app import App
from groundstate.cli.common import find_app
from groundstate.cli.main import main
from groundstate.engine.rows import attempts
from groundstate.engine.sql import transaction
from groundstate.rules.attempt import Attempt, State
from groundstate.store import connect
from groundstate.store.port import Database, Liveness
from tests.cli import shop as shop_text

_numbers = itertools.count()


@dataclass
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def groundstate(*arguments: str) -> Said:
    """Runs the command in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return Said(code, out.getvalue(), err.getvalue())


@dataclass
class Shop:
    """The app, its database, and rows put there by hand."""

    url: str
    name: str
    module: str
    engine: Engine
    opened: list[Database] = field(default_factory=list)

    @property
    def app(self) -> str:
        return f"{self.module}:app"

    def load(self) -> App:
        """The app, imported."""
        return find_app(self.app)

    def run(self, *arguments: str) -> Said:
        return groundstate(*arguments, "--app", self.app)

    def report(self, *arguments: str) -> dict[str, Any]:
        said = self.run("pending", "--json", *arguments)
        assert said.code == 0, said.err
        report: dict[str, Any] = said.json["stores"][0]["report"]
        return report

    def sql(self, statement: str, **given: Any) -> None:
        with self.engine.begin() as connection:
            if connection.dialect.name == "postgresql" and "groundstate_attempt" in statement:
                connection.execute(text("SET LOCAL groundstate.ours = 'on'"))  # the word that the trigger there asks for
            connection.execute(text(statement), given)

    def order(self, status: str, count: int = 1, **columns: Any) -> None:
        names = ["status", *columns]
        for _ in range(count):
            listed = ", ".join(f":{name}" for name in names)
            self.sql(f"INSERT INTO orders ({', '.join(names)}) VALUES ({listed})", status=status, **columns)

    def attempt(self, reaction: str, record: str, state: State, **other: Any) -> Attempt:
        now = datetime.now(UTC)
        blocks = None if reaction == "mailed" else "orders"
        made = Attempt(**{
            "app": self.name, "reaction": reaction, "record": record, "occurrence": "", "state": state, "worker": 7, "call": 1,
            "call_no": 1, "unsure": state is State.DOUBT, "since": now, "first_at": now, "deadline": now + timedelta(seconds=25),
            "blocks": blocks, **other,
        })  # fmt: skip
        database, _ = self.open()
        with transaction.writing_transaction(database, self.name) as tx:
            attempts.insert_attempts(tx, [made])
        return made

    @contextlib.contextmanager
    def a_worker(self, says: str | None = None) -> Iterator[None]:
        """While it lasts, a worker lives: by its lock, with a row that says this of it. It carries out nothing."""
        _, lives = self.open()
        lives.take_lock(77)
        self.sql(
            "INSERT INTO groundstate_worker (id, app, host, pid, began_at, begins, says)"
            " VALUES (77, :app, 'h', 1, '2026-01-01 00:00:00.000000', 0, :says)",
            app=self.name, says=says,
        )  # fmt: skip
        try:
            yield
        finally:
            self.sql("DELETE FROM groundstate_worker WHERE id = 77")
            lives.release()

    def open(self) -> tuple[Database, Liveness]:
        database, make_lives, _ = connect.open_store(connect.resolve_settings(self.url))
        self.opened.append(database)
        return database, make_lives()


def module_named(folder: Path, url: str, words: str = shop_text.TEXT) -> tuple[str, str]:
    """Writes the app into the folder; its name and its module's."""
    number = next(_numbers)
    name, module = f"shop{number}", f"groundstate_cli_shop_{number}"
    (folder / f"{module}.py").write_text(f"from __future__ import annotations\nURL = {url!r}\nNAME = {name!r}\n{words}")
    return name, module


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as it likes, whatever the width of somebody's terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, empty, and Python's path as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GROUNDSTATE_APP", raising=False)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    for name in [name for name in sys.modules if name.startswith("groundstate_cli_shop_")]:
        del sys.modules[name]


def made(folder: Path, url: str, words: str = shop_text.TEXT) -> Shop:
    name, module = module_named(folder, url, words)
    driver = make_url(url)
    return Shop(url, name, module, create_engine(driver.set(drivername="postgresql+psycopg") if url.startswith("postgres") else driver))


@pytest.fixture
def bare(folder: Path, database_url: str) -> Iterator[Shop]:
    """A shop whose database has nothing in it, on each store."""
    shop = made(folder, database_url)
    yield shop
    _close(shop)


@pytest.fixture
def shop(bare: Shop) -> Shop:
    """A shop with its tables and no rows, all reactions accepted, on each store."""
    said = bare.run("init", "--tables", "--accept", "all")
    assert said.code == 0, said.err
    return bare


@pytest.fixture
def sqlite_shop(folder: Path, sqlite_url: str) -> Iterator[Shop]:
    """The same on SQLite alone."""
    shop = made(folder, sqlite_url)
    assert shop.run("init", "--tables", "--accept", "all").code == 0
    yield shop
    _close(shop)


@pytest.fixture
def postgres_shop(folder: Path, postgres_url: str) -> Iterator[Shop]:
    """The same on PostgreSQL alone."""
    shop = made(folder, postgres_url)
    assert shop.run("init", "--tables", "--accept", "all").code == 0
    yield shop
    _close(shop)


def _close(shop: Shop) -> None:
    shop.engine.dispose()
    for database in shop.opened:
        database.close()
