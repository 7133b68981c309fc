"""How long a test waits for what it needs. No test hurries: a machine may be busy with other things, and only a hang takes so long.

A number of seconds in a test is never a promise of speed. What is about speed or lateness is measured by benchmarks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

HANG_S = 120.0  # far below the limit of pytest-timeout in pyproject.toml, which would not tell what was waited for
HANG = timedelta(seconds=HANG_S)
LONG_RUN_S = 540.0  # of a program that does what many tests do
LOOKS_S = 0.02  # again and again, where something is looked at by many at once
FIRST_S, LONGEST_S, GROWS = 0.005, 0.05, 1.3  # one that waits looks at first soon: looking costs what the others could use


def until(holds: Callable[[], Any], told: Callable[[], object] = lambda: "it did not come true in time") -> None:
    """Returns once it holds. Fails the test where it never does; `told` says then what was there instead."""
    end, wait_s = time.monotonic() + HANG_S, FIRST_S
    while not holds():
        assert time.monotonic() < end, told()
        time.sleep(wait_s)
        wait_s = min(wait_s * GROWS, LONGEST_S)
