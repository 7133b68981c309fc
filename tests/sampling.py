"""Of tests that are nearly alike a quarter is run each time, and every one by `./gs test --thorough`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

EVERY = 4


def a_few(cases: Iterable[Any], every: int = EVERY) -> list[Any]:
    """For `parametrize`: all cases. The first, and then one of so many as `every` says, run each time; the others run with --thorough."""
    return [pytest.param(case, marks=[pytest.mark.thorough] if number % every else []) for number, case in enumerate(cases)]
