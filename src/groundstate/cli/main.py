"""`groundstate`: the list of the commands. Only the module of the command that was typed is imported."""

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
    "init": ("groundstate.cli.init:init", "Create groundstate's four tables; start reactions on rows that exist."),
    "run": ("groundstate.cli.run:run", "Run the workers of an app until SIGTERM or SIGINT."),
    "pending": ("groundstate.cli.pending:pending", "List what is left to do, in doubt, failed and held. Only reads."),
    "status": ("groundstate.cli.status:status", "Show which workers are alive, and how much work waits. Only reads."),
    "timers": ("groundstate.cli.timers:timers", "List what becomes due next. Only reads."),
    "why": ("groundstate.cli.why:why", "Explain every reaction on one record: what holds, and what comes next. Only reads."),
    "held": ("groundstate.cli.actions:held", "List the attempts that wait for a person, and why. Only reads."),
    "retry": ("groundstate.cli.actions:retry", "Try a held or failed attempt again."),
    "settle": ("groundstate.cli.actions:settle", "Say what became of a held call that groundstate cannot look up by itself."),
    "forget": ("groundstate.cli.actions:forget", "Delete held attempts whose condition no longer holds."),
    "trust": ("groundstate.cli.actions:trust", "After a backup was restored: trust reactions again."),
    "rename": ("groundstate.cli.actions:rename", "Give a reaction's attempts and keys to its new name."),
    "plan": ("groundstate.cli.plan:plan", "Show what this code would do on this database. Only reads."),
    "check": ("groundstate.cli.check:check", "Find missing indexes, with their DDL, and what would lose or repeat an effect. Only reads."),
    "triggers": ("groundstate.cli.triggers:triggers", "Send hints for rows that other programs write, on PostgreSQL."),
    "demo": ("groundstate.demo.command:demo", "Watch a small shop that is killed again and again, and whose books balance."),
}
UNGUARDED = {"demo"}  # commands with exit codes of their own


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, and end the process with its exit code (`groundstate.cli.common.Code`)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a character that the encoding lacks is printed as an escape
    asked = next((one for one in given if not one.startswith("-")), None)
    _make_command_line(asked)(args=given, prog_name="groundstate")


def _open_closed_streams() -> None:
    """Open os.devnull in place of each standard stream that the caller has closed.

    Otherwise the next file or connection that is opened would get the number of the closed stream, and what a library prints on that stream
    would be written into this file or connection.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)  # it gets the closed stream's number, the lowest free one
        if number and getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # it stays open until the process ends


def _make_command_line(asked: str | None) -> typer.Typer:
    """Return the command line. Only the module of the command that was typed is imported; the other commands have just their help line."""
    line = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="rich" if asked in COMMANDS else None,  # importing rich takes a while, and the list of commands must come at once
    )
    line.callback()(_root_command)
    for name, (place, words) in COMMANDS.items():
        function = _import_command(name, place) if name == asked else _stand_in_for_other_command
        line.command(name, short_help=words, help=None if name == asked else words)(function)
    return line


def _import_command(name: str, place: str) -> Callable[..., Any]:
    module, _, attribute = place.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    if name in UNGUARDED:
        return function
    wrap: Callable[..., Callable[..., Any]] = importlib.import_module("groundstate.cli.common").exit_with_code_on_error
    return wrap(name, function)


def _stand_in_for_other_command() -> None:
    """Do nothing. This is registered for each command that was not typed, whose module is not imported."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"groundstate {importlib.import_module('importlib.metadata').version('groundstate')}")
        raise typer.Exit


def _root_command(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Run event-driven applications whose state is in your own tables: after a crash you know what is left to do.

    Exit codes: 0 done, 1 findings or not possible now, 2 wrong arguments, 3 not found, 4 database or transport cannot be used, 5 an error
    in groundstate itself.
    """


if __name__ == "__main__":
    main()
