"""The thread that looks at all limits goes on whatever is added to them meanwhile."""

from __future__ import annotations

import threading

from groundstate.store import limits


class Looked:
    """Something to be looked at."""

    def look(self, now: float) -> None:
        assert now


def test_what_is_added_while_all_are_gone_through_ends_nothing() -> None:
    kept: list[Looked] = []
    over = threading.Event()

    def add() -> None:
        while not over.is_set():
            kept.append(Looked())
            limits.look_at(kept[-1])

    adds = threading.Thread(target=add)
    adds.start()
    try:
        while len(kept) < 20_000:
            assert len(limits._all()) <= len(kept) + len(limits._limits) + len(limits._others)
    finally:
        over.set()
        adds.join()
    assert set(kept) <= set(limits._all())
    assert limits._thread[0].is_alive()
