"""An app that declares no reaction looks healthy everywhere: the commands that look say so, on stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TEXT = """
from sqlalchemy.orm import DeclarativeBase
from groundstate import App, Store
class Base(DeclarativeBase): ...
app = App("empty", Store("sqlite:///empty.db", Base))
"""


@pytest.mark.parametrize("command", ["check", "plan", "pending", "status"])
def test_a_command_that_looks_says_that_nothing_is_declared(tmp_path: Path, command: str) -> None:
    (tmp_path / "empty_shop.py").write_text(TEXT)
    run = [sys.executable, "-m", "groundstate"]
    where = {"cwd": tmp_path, "env": {**os.environ, "GROUNDSTATE_APP": "empty_shop:app"}, "capture_output": True, "text": True}
    subprocess.run([*run, "init"], check=True, **where)  # type: ignore[call-overload]
    said = subprocess.run([*run, command, "--json"], check=False, **where)  # type: ignore[call-overload]
    assert said.stderr == "app empty declares no reaction: is the module that declares them imported?\n"
    assert json.loads(said.stdout)["command"] == command
