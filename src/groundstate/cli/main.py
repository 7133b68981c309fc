"""`groundstate`: the names of the commands, and the loader, which imports only the command that was typed."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("groundstate.cli.init:init", "Create groundstate's four tables; accept reactions on rows that are there."),
    "run": ("groundstate.cli.run:run", "Run a worker until it is told to stop."),
    "pending": ("groundstate.cli.pending:pending", "What is left to do, in doubt, held. Reads only."),
    "status": ("groundstate.cli.status:status", "Who works, by locks, and what waits for them. Reads only."),
    "timers": ("groundstate.cli.timers:timers", "What becomes due next. Reads only."),
    "why": ("groundstate.cli.why:why", "Every reaction on one record: what holds, what it waits for, what comes next."),
    "held": ("groundstate.cli.actions:held", "What waits for a person, and why."),
    "retry": ("groundstate.cli.actions:retry", "Try a held or failed attempt again."),
    "settle": ("groundstate.cli.actions:settle", "Say what became of a call that nobody else can say."),
    "forget": ("groundstate.cli.actions:forget", "Delete held attempts whose condition no longer holds."),
    "trust": ("groundstate.cli.actions:trust", "After a backup was put back: trust reactions again."),
    "rename": ("groundstate.cli.actions:rename", "Carry a reaction's attempts and keys over to its new name."),
    "plan": ("groundstate.cli.plan:plan", "What this code would do on this database, before it does it. Reads only."),
    "check": ("groundstate.cli.check:check", "Missing indexes with their DDL, and what would lose or double something."),
    "triggers": ("groundstate.cli.triggers:triggers", "Hints for rows that other programs write, on PostgreSQL."),
    "demo": ("groundstate.demo.command:demo", "Watch a small shop being killed again and again, and its books balance."),
}
UNGUARDED = {"demo"}  # commands with exit codes of their own


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, and end the process with its exit code (`groundstate.cli.common.Code`)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # write out characters that the terminal cannot show
    asked = next((one for one in given if not one.startswith("-")), None)
    _line(asked)(args=given, prog_name="groundstate")


def _open_what_is_closed() -> None:
    """Open standard streams that the caller has closed on os.devnull.

    Otherwise the next file or connection would get the number of a closed stream, and what a library prints would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)  # gets the lowest free number: the closed stream's
        if number and getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # it stays open until the process ends


def _line(asked: str | None) -> typer.Typer:
    """Return the command line. Only the command that was typed is imported; for the others a line of help is enough."""
    line = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="rich" if asked in COMMANDS else None,  # importing rich takes a while, and the list of commands must come at once
    )
    line.callback()(_root)
    for name, (place, words) in COMMANDS.items():
        function = _loaded(name, place) if name == asked else _unasked
        line.command(name, short_help=words, help=None if name == asked else words)(function)
    return line


def _loaded(name: str, place: str) -> Callable[..., Any]:
    module, _, attribute = place.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    if name in UNGUARDED:
        return function
    guarded: Callable[..., Callable[..., Any]] = importlib.import_module("groundstate.cli.common").guarded
    return guarded(name, function)


def _unasked() -> None:
    """Stands for a command that was not typed."""


def _version(wanted: bool) -> None:
    if wanted:
        print(f"groundstate {importlib.import_module('importlib.metadata').version('groundstate')}")
        raise typer.Exit


def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Run event-driven applications whose state is in your own tables: pull the plug, and know what is left to do.

    Exit codes: 0 done, 1 findings or not possible now, 2 wrong arguments, 3 not found, 4 database or transport cannot be used, 5 an error
    in groundstate itself.
    """


if __name__ == "__main__":
    main()
