"""Both type checkers accept the right samples and refuse each marked line of the wrong ones, and no other."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RIGHT = {"good.py", "models.py"}
SAMPLES = sorted([*(HERE / name for name in RIGHT), *HERE.glob("bad_*.py")])
MARK = "  # refused: "

Lines = set[tuple[str, int]]


def _marked() -> Lines:
    return {(path.name, number) for path in SAMPLES for number, line in enumerate(path.read_text().splitlines(), 1) if MARK in line}


def _said(*command: str) -> str:
    done = subprocess.run([sys.executable, "-m", *command, *map(str, SAMPLES)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, f"expected errors alone\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _by_mypy() -> Lines:
    found = re.findall(r"^(.+?):(\d+): error: ", _said("mypy", "--strict", "--no-pretty"), flags=re.MULTILINE)
    return {(Path(path).name, int(line)) for path, line in found}


def _by_pyright() -> Lines:
    told = json.loads(_said("pyright", "--outputjson", "--pythonpath", sys.executable))
    errors = [one for one in told["generalDiagnostics"] if one["severity"] == "error"]
    return {(Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in errors}


def test_there_are_marks_in_each_wrong_sample_and_none_in_the_right_ones() -> None:
    assert {name for name, _ in _marked()} == {path.name for path in SAMPLES} - RIGHT


def test_mypy_refuses_the_marked_lines_and_no_others() -> None:
    assert _by_mypy() == _marked()


def test_pyright_refuses_the_marked_lines_and_no_others() -> None:
    assert _by_pyright() == _marked()


def test_what_the_types_accept_can_be_declared() -> None:
    good = importlib.import_module("tests.typing.good")
    good.app.check_declarations()
    assert len(good.app.reactions) == 11
