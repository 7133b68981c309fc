"""The thread that looks at all limits goes on whatever is added to them meanwhile."""

from __future__ import annotations

import threading

from groundstate.store import statement_timeouts


class Looked:
    """Something to be looked at."""

    def do_due_check(self, now: float) -> None:
        assert now


def test_what_is_added_while_all_are_gone_through_ends_nothing() -> None:
    kept: list[Looked] = []
    over = threading.Event()

    def add() -> None:
        while not over.is_set():
            kept.append(Looked())
            statement_timeouts.check_periodically(kept[-1])

    adds = threading.Thread(target=add)
    adds.start()
    try:
        while len(kept) < 20_000:
            assert len(statement_timeouts._all_checked()) <= len(kept) + len(statement_timeouts._limits) + len(statement_timeouts._others)
    finally:
        over.set()
        adds.join()
    assert set(kept) <= set(statement_timeouts._all_checked())
    assert statement_timeouts._thread[0].is_alive()
