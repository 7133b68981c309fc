"""The command `groundstate`, and `python -m groundstate`: the signal to end is heard before anything else is imported.

A process that is number 1, as in a container, ignores a signal that it has no handler for. Until `groundstate run` has its own, the command
and the app's module are imported, for a second or more, and nothing is begun that could be left behind: so the process ends at once.
"""

from __future__ import annotations

import importlib
import os
import signal


def main() -> None:
    """Runs one command, and ends the process with its exit code."""
    signal.signal(signal.SIGTERM, _end_at_once)
    importlib.import_module("groundstate.cli.main").main()


def _end_at_once(number: int, _frame: object) -> None:
    os._exit(128 + number)


if __name__ == "__main__":
    main()
