"""The entry point of `groundstate` and `python -m groundstate`. It handles SIGTERM before it imports the commands.

A process with the id 1, as in a container, ignores a signal for which it has no handler, and the imports of the command and of the app's
module take a second or more. The handler that is installed here ends the process at once, since no work has begun yet. Later
`groundstate run` installs its own handler instead.
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
