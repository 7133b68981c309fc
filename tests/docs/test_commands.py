"""Each command and option is told of in the docs, and the docs tell of no other."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer

from groundstate.cli import main as command_line
from tests.docs.blocks import PAGES, ROOT, SHELLS, blocks_of, commands_of

OPERATING = ROOT / "docs" / "operating.md"
SHOWN = [
    (page, block.line, command)
    for page in PAGES
    for block in blocks_of(page)
    if block.language in SHELLS
    for command in commands_of(block)
    if re.match(r"(\S*/)?groundstate\b", command)
]


def options_of(command: str) -> set[str]:
    """The options that a command really has."""
    group: Any = typer.main.get_command(command_line._make_command_line(command))
    found: set[str] = set()
    for parameter in group.commands[command].params:
        found.update(one for one in [*parameter.opts, *parameter.secondary_opts] if one.startswith("-"))
    return found


def section_of(command: str) -> str:
    """What the docs say of a command: the part of the page from its heading to the next."""
    parts = re.split(r"(?m)^#{2,3} ", OPERATING.read_text())
    found = [part for part in parts if part.startswith(f"groundstate {command}\n")]
    assert len(found) == 1, f"operating.md has {len(found)} sections `### groundstate {command}`"
    return found[0]


@pytest.mark.parametrize("command", command_line.COMMANDS)
def test_each_command_and_option_is_told_of(command: str) -> None:
    common = OPERATING.read_text().partition("## Commands")[2].partition("\n### ")[0]
    told = set(re.findall(r"`(-{1,2}[a-z][a-z-]*)", section_of(command)))
    in_all = {one for one in ("--app", "--json", "--debug", "--help", "-h") if f"`{one}" in common}
    real = options_of(command)
    assert real - told - in_all == set(), f"groundstate {command} has options that are not told of"
    assert told - real - in_all == set(), f"groundstate {command} is said to have options that it has not"


@pytest.mark.parametrize(("page", "line", "command"), SHOWN, ids=[f"{page.name}:{line}" for page, line, _ in SHOWN])
def test_each_command_that_is_shown_exists(page: object, line: int, command: str) -> None:
    words = shlex.split(command, comments=True)
    assert words[1] in command_line.COMMANDS or words[1] in {"--help", "--version"}
    if words[1] in command_line.COMMANDS:
        given = {word.partition("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)}
        assert given <= options_of(words[1]) | {"--help"}
