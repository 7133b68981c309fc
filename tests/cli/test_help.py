"""Help, without what only commands need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from groundstate.cli.main import COMMANDS
from tests.cli.conftest import groundstate
from tests.patience import HANG_S

_HEAVY = ("sqlalchemy", "pydantic", "rich", "psycopg", "groundstate.app", "groundstate.engine", "groundstate.store")


def test_help_imports_neither_sqlalchemy_nor_rich() -> None:
    program = f"""
import sys
sys.argv = ["groundstate", "--help"]
from groundstate.cli.main import main
try:
    main()
finally:
    print("imported:", [name for name in {_HEAVY} if name in sys.modules], file=sys.stderr)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines()[-1] == "imported: []"
    for command in COMMANDS:
        assert f"\n  {command} " in ended.stdout


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_has_a_help_of_its_own(command: str) -> None:
    said = groundstate(command, "--help")
    assert said.code == 0
    assert f"groundstate {command}" in said.out
    assert "Stands for" not in said.out


def test_without_a_command_the_list_of_commands_is_printed_and_the_code_is_of_usage() -> None:
    said = groundstate()
    assert said.code == 2
    assert "pending" in said.out + said.err


def test_a_command_that_is_not_there_is_refused() -> None:
    said = groundstate("pendign")
    assert said.code == 2
    assert "pendign" in said.err


def test_an_option_that_is_not_there_is_refused() -> None:
    said = groundstate("pending", "--nix")
    assert said.code == 2
    assert "--nix" in said.err


def test_version() -> None:
    said = groundstate("--version")
    assert said.code == 0
    assert said.out.startswith("groundstate ")
