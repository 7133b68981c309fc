"""Decides how long a batch's transaction may hold its locks, and how long a worker sleeps after it. On an embedded store a lock covers the
whole store, so other processes can write only while this worker sleeps (rules.md 18).
"""

from __future__ import annotations

from collections.abc import Callable

from groundstate.store.port import Database

HOLD_S = 0.05  # the most seconds for which a batch should hold its row locks
HOLD_EMBEDDED_S = 0.012  # the most seconds for which a batch should hold the lock of an embedded store, which covers the whole store
# The most seconds for which a batch should hold the lock of an embedded store to which other processes write (rules.md 18).
HOLD_BESIDE_OTHERS_S = 0.004
# Seconds: after another process wrote to an embedded store, this worker leaves the store free half of the time for this long.
OTHERS_S = 5.0
UNHEARD_MOST_S = 1.0  # seconds: when slow batches have locked an embedded store for this long in total, this worker sleeps for BUSY_LOOKS_S
BUSY_LOOKS_S = 0.11  # seconds of sleep: a little more than the 0.1 s after which a waiting writer of SQLite tries again


class BatchLocks:
    """Decides how long the batches of one worker hold their locks. Only the worker's own thread calls its methods.

    others_wrote: returns whether another process wrote to the embedded store since the worker last looked for such writes.
    """

    def __init__(self, database: Database, others_wrote: Callable[[], bool]) -> None:
        self._database = database
        self._others_wrote = others_wrote
        self._beside_others_until = 0.0  # monotonic time until which the store counts as shared, since another process wrote to it
        self._unheard_s = 0.0  # seconds for which slow batches have locked an embedded store since other writers last had a chance

    @property
    def has_other_writers(self) -> bool:
        """Return whether another process wrote to the embedded store in the last OTHERS_S seconds."""
        if self._others_wrote():
            self._beside_others_until = self._database.clock.monotonic() + OTHERS_S
        return self._database.clock.monotonic() < self._beside_others_until

    @property
    def target_hold_s(self) -> float:
        """Return the most seconds for which a batch's transaction should hold its locks."""
        if self._database.locks_rows:
            return HOLD_S
        return HOLD_BESIDE_OTHERS_S if self.has_other_writers else HOLD_EMBEDDED_S

    def sleep_for_other_writers(self, took_s: float) -> None:
        """After a batch that took `took_s` seconds, sleep so that other writers get the lock of an embedded store (rules.md 18).

        SQLite does not queue waiting writers: each of them tries again only every tenth of a second, and would miss a short pause. So after
        slow batches the sleep is long enough for each writer to try once.
        """
        if self._database.locks_rows:
            return
        if self.has_other_writers:
            self._database.clock.sleep(took_s)
            return
        self._unheard_s += took_s if took_s > HOLD_S else 0.0
        if self._unheard_s < UNHEARD_MOST_S:
            self._database.clock.sleep(took_s / 20)
        else:
            self._unheard_s = 0.0
            self._database.clock.sleep(BUSY_LOOKS_S)
