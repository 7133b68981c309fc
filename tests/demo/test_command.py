"""`groundstate demo` must refuse what it cannot do, with the cure, before it starts or changes anything."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import typer
from sqlalchemy import text
from typer.testing import CliRunner, Result

from groundstate.demo import database
from groundstate.demo.command import demo


def run(*arguments: str) -> Result:
    cli = typer.Typer()
    cli.command()(demo)
    return CliRunner().invoke(cli, list(arguments), env={"COLUMNS": "300"})


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    done = run("--folder", str(tmp_path))
    assert done.exit_code == 2
    assert "is not an empty folder" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = run("--folder", str(tmp_path / "file" / "below"))
    assert done.exit_code == 2
    assert "give another --folder" in " ".join(done.output.split())  # a long path wraps


@pytest.mark.parametrize("url", ["sqlite:///x.db", "nonsense", "postgresql://nobody@127.0.0.1:1/none"])
def test_a_postgres_url_that_is_none_or_leads_nowhere_is_refused(tmp_path: Path, url: str) -> None:
    done = run("--folder", str(tmp_path / "f"), "--postgres", url)
    assert done.exit_code == 2
    assert "--postgres" in done.output
    assert "Traceback" not in done.output


def test_a_postgres_database_that_is_in_use_is_refused_and_left_alone(tmp_path: Path, postgres_url: str) -> None:
    engine = database.create_shop_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("create table orders (mine integer)"))
    done = run("--folder", str(tmp_path / "f"), "--postgres", postgres_url)
    assert done.exit_code == 2
    assert "has tables already (orders)" in done.output
    with engine.connect() as connection:
        assert connection.execute(text("select count(*) from orders")).scalar_one() == 0
        assert not connection.dialect.has_table(connection, "groundstate_attempt")
    engine.dispose()


@pytest.mark.parametrize("arguments", [["--orders", "0"], ["--kills", "-1"], ["--seed", "x"]])
def test_numbers_out_of_range_are_refused(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert arguments[0] in done.output


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None if name == "aiosmtpd" else there(name, package))
    done = run("--folder", str(tmp_path / "f"))
    assert done.exit_code == 2
    assert "The demo needs aiosmtpd: pip install 'groundstate[demo]'" in done.output
    assert not (tmp_path / "f").exists()
