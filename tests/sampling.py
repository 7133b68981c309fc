"""Of tests that are nearly alike some are run each time, and every one by `./gs test --thorough`.

Which they are, a test says by `a_few`. Where it has many cases on each of two stores, the first is run on both, and each other one on one
of them, in turn: no case and no store is left to --thorough.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any
from zlib import crc32

import pytest

EVERY = 4
STORES = ("sqlite", "postgres")


def a_few(cases: Iterable[Any], every: int = EVERY) -> list[Any]:
    """For `parametrize`: all cases. The first, and then one of so many as `every` says, run each time; the others run with --thorough."""
    return [pytest.param(case, marks=[pytest.mark.thorough] if number % every else []) for number, case in enumerate(cases)]


def each_case_on_one_store(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Those that another one of the same case stands for: on the other store, where the first case of the test is on both."""
    tests: dict[str, dict[str, dict[str, pytest.Item]]] = defaultdict(lambda: defaultdict(dict))
    for item in items:
        spec = getattr(item, "callspec", None)
        if spec is not None and spec.params.get("database_url") in STORES:
            store = spec.params["database_url"]
            case = f"-{spec.id}-".replace(f"-{store}-", "-", 1)
            tests[item.nodeid.partition("[")[0]][case][store] = item
    left_out = []
    for test, cases in tests.items():
        turn = crc32(test.encode())  # so that of those with two cases not all have the second on the same store
        on_both = [case for case in cases.values() if len(case) == len(STORES)]
        left_out += [case[STORES[(turn + number) % 2]] for number, case in enumerate(on_both) if number]
    return left_out
