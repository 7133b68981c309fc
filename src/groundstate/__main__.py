"""The entry point of `groundstate` and `python -m groundstate`. It handles SIGTERM before it imports the commands.

A process with the id 1, as in a container, ignores signals that it has no handler for. Importing the command and the app's module takes a
second or more. During that time nothing is in progress that could be left unfinished, so SIGTERM ends the process at once; after that,
`groundstate run` installs its own handler.
"""

from __future__ import annotations

import importlib
import os
import signal


def main() -> None:
    """Run one command, and end the process with its exit code."""
    signal.signal(signal.SIGTERM, _exit_at_once)
    importlib.import_module("groundstate.cli.main").main()


def _exit_at_once(number: int, _frame: object) -> None:
    os._exit(128 + number)


if __name__ == "__main__":
    main()
