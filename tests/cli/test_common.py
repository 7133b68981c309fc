"""Finding the app, and errors in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from groundstate.cli.common import Code, escape_for_terminal, exit_code_of
from groundstate.values.errors import NotInitialisedError, StoreRefusedError, TransportDownError, TransportRefusedError
from tests.cli.conftest import Shop, groundstate, module_named


@pytest.fixture
def app(folder: Path) -> str:
    return f"{module_named(folder, f'sqlite:///{folder}/shop.db')[1]}:app"


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("nowhere_to_be_found:app", "there is no module 'nowhere_to_be_found'"),
        ("nowhere_to_be_found.inside:app", "there is no module"),
        ("just_a_name", "is not MODULE:NAME"),
        (":app", "is not MODULE:NAME"),
        ("shop:", "is not MODULE:NAME"),
        ("../shop:app", "is not MODULE:NAME"),
        ("shop-1:app", "is not MODULE:NAME"),
        ("json:loads", "is a function, and no groundstate App"),
        ("json:nix", "has no 'nix' and no App at all"),
    ],
)
def test_a_wrong_app_is_told_in_a_line(folder: Path, named: str, words: str) -> None:
    said = groundstate("pending", "--app", named)
    assert said.code == 2
    assert words in said.err
    assert len(said.err.splitlines()) == 1


def test_a_module_with_another_app_names_it(app: str) -> None:
    module = app.partition(":")[0]
    said = groundstate("pending", "--app", f"{module}:shop")
    assert said.code == 2
    assert f"it has {app}" in said.err


def test_no_app_at_all_says_the_three_ways_to_name_one(folder: Path) -> None:
    said = groundstate("pending")
    assert said.code == 2
    for way in ("--app", "$GROUNDSTATE_APP", "[tool.groundstate]"):
        assert way in said.err


def test_the_environment_names_the_app_before_pyproject_does(folder: Path, app: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pyproject.toml").write_text('[tool.groundstate]\napp = "of_pyproject:app"\n')
    assert "of_pyproject" in groundstate("pending").err
    monkeypatch.setenv("GROUNDSTATE_APP", "of_environment:app")
    assert "of_environment" in groundstate("pending").err
    assert "of_argument" in groundstate("pending", "--app", "of_argument:app").err


def test_pyproject_names_the_app(folder: Path, app: str) -> None:
    (folder / "pyproject.toml").write_text(f'[tool.groundstate]\napp = "{app}"\n')
    assert groundstate("init", "--tables").code == 0


def test_a_pyproject_that_cannot_be_read_is_told(folder: Path) -> None:
    (folder / "pyproject.toml").write_text("[tool.groundstate\n")
    said = groundstate("pending")
    assert said.code == 2
    assert "pyproject.toml cannot be read" in said.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def app(:\n", "SyntaxError"),
        ("import nowhere_to_be_found\n", "No module named 'nowhere_to_be_found'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import os\n\nos.environ['NOT_SET_HERE']\n", "groundstate_cli_shop_broken.py:3)"),
        ("raise SystemExit(3)\n", "ends the process when it is imported"),
        ("from groundstate import App\napp = App('x')\n", "has no store"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_without_a_traceback(folder: Path, text: str, words: str) -> None:
    module = "groundstate_cli_shop_broken"
    (folder / f"{module}.py").write_text(text)
    said = groundstate("pending", "--app", f"{module}:app")
    assert said.code == 2
    assert words in said.err
    assert "Traceback" not in said.err
    assert "Traceback" in groundstate("pending", "--debug", "--app", f"{module}:app").err


def test_an_error_is_json_as_well_where_json_is_asked_for(app: str) -> None:
    said = groundstate("pending", "--json", "--app", app)
    assert said.code == 4
    assert said.json == {
        "groundstate": 1,
        "command": "pending",
        "error": {"kind": "NotInitialisedError", "message": said.json["error"]["message"], "exit_code": 4},
    }
    assert "groundstate init" in said.json["error"]["message"]


def test_what_comes_from_data_cannot_speak_to_the_terminal() -> None:
    assert escape_for_terminal("a\x1b]0;owned\x07b\u202ec\nd") == "a\\x1b]0;owned\\x07b\\u202ec\\nd"
    assert escape_for_terminal("Grüße, 客户 [bold]") == "Grüße, 客户 [bold]"


def test_json_is_plain_ascii_so_that_no_escape_reaches_a_terminal_by_it(sqlite_shop: Shop) -> None:
    sqlite_shop.order("\x1b[31mred\u202e")
    said = sqlite_shop.run("pending", "--states", "--json")
    assert said.out.isascii()
    assert "\x1b" not in said.out
    values = [one["value"] for one in json.loads(said.out)["stores"][0]["report"]["states"]]
    assert values == ["\x1b[31mred\u202e"]


@pytest.mark.parametrize("error", [NotInitialisedError, StoreRefusedError, TransportRefusedError, TransportDownError])
def test_a_database_or_transport_that_cannot_be_used_is_no_error_of_ours(error: type[Exception]) -> None:
    assert exit_code_of(error("because")) == Code.DATABASE
