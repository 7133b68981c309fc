"""Arguments that nobody means: each command answers in words, with an exit code that is documented, and changes nothing."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from groundstate.cli.main import COMMANDS
from groundstate.rules.attempt import State
from tests.cli.conftest import Said, Shop, groundstate
from tests.fuzz.conftest import examples

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
OWN = [name for name in COMMANDS if name not in ("run", "demo")]  # those two go on
OPTIONS = [
    "--json", "--debug", "--all", "--yes", "--absent", "--outcome", "--occurrence", "--by", "--reaction", "--record", "--why", "--limit",
    "--after", "--long", "--unsure", "--sure", "--states", "--accept", "--baseline", "--failed", "--whole-app", "--tables", "--", "-", "-l",
]  # fmt: skip
HOSTILE = [
    "", " ", "0", "-1", "9" * 40, "1e400", "1e999999999", "nan", "null", "[", "[" * 5000, "[]", "{}", '["de", 17]', "[1,2,3]",
    '"\\ud800"', '"\\u0000"', "\udcff\udcfe", "a\0b", "\x1b]0;owned\x07", "\u202e", "\n", "'; drop table orders; --", "%s%n",
    "{0.__class__}", "[bold]x[/]", "x" * 20_000, "\u0663", "true", "orders", "Order", "items", "paid", "packed", "1", "all",
    "0001-01-01T00:00:00+05:00", '[Infinity,"a","b","c"]', '[0,"\\u0000","\\ud800",""]',
]  # fmt: skip
words = st.one_of(st.sampled_from(HOSTILE), st.sampled_from(OPTIONS), st.text(max_size=30), st.integers().map(str))


def answers(said: Said, arguments: list[str]) -> None:
    """In words, with an exit code of its own, and nothing for the terminal but text."""
    assert said.code in (0, 1, 2, 3), (arguments, said)
    shown = said.out + said.err
    if "--debug" not in arguments:
        assert "Traceback" not in shown, (arguments, said)
    assert not any(one in shown for one in ("\x1b", "\u202e", "\x07", "\0")), (arguments, said)
    assert said.code == 0 or shown.strip(), (arguments, said)
    if said.out.startswith('{\n  "groundstate"'):
        assert json.loads(said.out)["groundstate"] == 1


@examples(12)
@example("why", ["items", "[" * 5000])
@example("held", ["--after", '[Infinity,"a","b","c"]'])
@example("held", ["--after", '[0,"\\u0000","\\ud800",""]'])
@example("held", ["--record", "\udcff"])
@example("settle", ["paid", "1", "--outcome", "[" * 5000])
@given(st.sampled_from(OWN), st.lists(words, max_size=5))
def test_each_command_answers_whatever_it_is_given(sqlite_shop: Shop, command: str, arguments: list[str]) -> None:
    if not sqlite_shop.report()["held"]:
        sqlite_shop.order("placed", 1)
        sqlite_shop.attempt("paid", "1", State.HELD, unsure=True, why="by the test")
    answers(groundstate(command, "--app", sqlite_shop.app, *arguments), arguments)
    assert sqlite_shop.report()["held"]  # it is not settled by nonsense


@pytest.mark.parametrize(
    "arguments", [["why", "orders", "\0"], ["why", "orders", "9" * 12], ["held", "--why", "\\%_"], ["held", "--record", "\udc80"]]
)
def test_postgresql_is_asked_for_nothing_that_it_cannot_take(postgres_shop: Shop, arguments: list[str]) -> None:
    said = postgres_shop.run(*arguments)
    answers(said, arguments)
    assert "database says" not in said.err


@given(st.lists(words, max_size=4))
@examples(5)
def test_run_refuses_what_it_cannot_read_before_it_starts_anything(sqlite_shop: Shop, arguments: list[str]) -> None:
    said = groundstate("run", "--drain", "nan", "--app", sqlite_shop.app, *[one for one in arguments if one not in ("--", "-")])
    answers(said, arguments)
    assert said.code == 2
    assert importlib.import_module(sqlite_shop.module).app._workers is None


@examples(6)
@given(st.text(max_size=20), st.text(max_size=20))
def test_an_app_of_any_name_is_told_in_words(folder: Any, module: str, name: str) -> None:
    said = groundstate("pending", f"--app={module}:{name}")
    answers(said, [module, name])
    assert said.code == 2


TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=25)


@examples(5)
@given(TEXTS, TEXTS, TEXTS)
def test_hazard_54_hostile_texts_in_rows_reach_neither_terminal_nor_break_json(
    sqlite_shop: Shop, status: str, error: str, why: str
) -> None:
    shop = sqlite_shop
    shop.sql("DELETE FROM orders")
    shop.sql("DELETE FROM groundstate_attempt")
    hostile = "\x1b[2J\u202e\x9b31m"
    shop.order(hostile + status, 1)
    shop.attempt("paid", "1", State.HELD, error=hostile + error, why=why + hostile, outcome=json.dumps([hostile + error]), unsure=False)
    for command in (["pending", "--states"], ["why", "orders", "1"], ["held"], ["held", "--long"], ["retry", "paid", "1"]):
        for form in ([], ["--json"]):
            if command[0] == "retry":
                shop.sql("UPDATE groundstate_attempt SET state = 'held'")
            said = shop.run(*command, *form)
            assert said.code in (0, 1), said
            assert not any(one in said.out + said.err for one in ("\x1b", "\u202e", "\x9b")), said
            if form:
                assert said.out.isascii()
                assert said.json["command"] == command[0]


def test_hazard_54_what_a_command_logs_is_no_escape_either_and_no_line_of_its_own(sqlite_shop: Shop) -> None:
    shop = sqlite_shop
    shop.order("placed", 1)
    shop.attempt("paid", "1", State.HELD, unsure=True, outcome='["\\u001b[2J\\nERROR forged"]', why="by the test", deadline=LONG_AGO)
    line = [
        sys.executable,
        "-m",
        "groundstate.cli.main",
        "settle",
        "paid",
        "1",
        "--outcome",
        '"r"',
        "--by",
        "me\n\x1b[2J",
        "--app",
        shop.app,
    ]
    ended = subprocess.run(line, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert ended.returncode == 0, ended.stderr
    assert b"\x1b" not in ended.stderr + ended.stdout
    assert b"\\x1b[2J" in ended.stderr
    assert not any(one.startswith((b"ERROR", b"\x1b")) for one in ended.stderr.splitlines())


def test_a_terminal_of_few_letters_gets_them_written_out(sqlite_shop: Shop) -> None:
    sqlite_shop.order("Größe 客", 1)
    line = [sys.executable, "-m", "groundstate.cli.main", "pending", "--states", "--app", sqlite_shop.app]
    ended = subprocess.run(line, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "200"})
    assert ended.returncode == 0, ended.stderr
    assert b"Gr\\xf6\\xdfe" in ended.stdout


def test_an_outcome_from_stdin_that_is_no_utf_8_is_told(sqlite_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    sqlite_shop.order("placed", 1)
    sqlite_shop.attempt("paid", "1", State.HELD, unsure=True, why="by the test")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"\xff"'), encoding="utf-8"))
    said = sqlite_shop.run("settle", "paid", "1", "--outcome", "-")
    assert said.code == 2
    assert "is not UTF-8" in said.err
