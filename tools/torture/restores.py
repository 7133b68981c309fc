"""Restores the database from a copy while no process works on it: a SQLite file's whole folder, or only the rows of a PostgreSQL.

On SQLite the workers start without being told, and must notice the restore. On PostgreSQL the reactions with a call must wait for a person,
who starts a worker with --after-restore. On both a person says `trust` when each call of the lost time is in its order, or listed.
"""

from __future__ import annotations

import time
from contextlib import suppress

from sqlalchemy.exc import DBAPIError

from tools.torture.fleet import Seen
from tools.torture.hands import Hands

CLEAN = 0.4  # share of the restores that follow a clean end of all workers; the others follow kills
# share of the restores on PostgreSQL whose first worker starts with --after-restore; in the others some run before it, and wait
TOLD_AT_ONCE = 0.5
CUT_SHORT = 0.3  # share of the restores whose workers are killed while they put the lost time in doubt
UP_WITHIN_S = 60.0  # seconds of run time: a worker must have started by then
LOOKS_EVERY_S = 3.0  # seconds between two checks whether the lost time is over


class Restores:
    """One restore at a time: a copy is taken, time passes, the copy is restored, and it is watched until a person trusts it."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands
        self._looks_at = 0.0
        self.suspect = False  # whether a restore has not been trusted yet

    def put_back(self) -> None:
        """Take a copy, let the shop run on, restore the copy, and start workers again."""
        hands, place, dice = self._hands, self._hands.place, self._hands.dice
        hands.end_troubles()
        # A call that other code made in the lost time, at a service that this code does not ask, could not be found (docs/limits.md).
        hands.kill([one for one in hands.fleet.all() if one.code != hands.deploys.code])
        self._take()
        hands.go_on(dice.uniform(0.5, 2))
        if dice.random() < 0.5:
            hands.kill(hands.some(1))
        hands.go_on(dice.uniform(0.5, 2))
        clean = place.store == "sqlite" and dice.random() < CLEAN
        with hands.orders.closed():
            hands.end_all(drained=clean)
            place.recover()
            place.copy.put_back()
            hands.tell("the copy is back")
            hands.done["orders lost with the time"] += hands.judge.went_back(hands.codes)
            self.suspect = True
            if place.store == "sqlite":
                self._start_untold()
            else:
                self._start_waiting()
            hands.judge.knows_that_it_went_back()
            hands.tell("the workers know of it")
        hands.done[f"copies put back after {'a clean end' if clean else 'kills'}"] += 1

    def look(self) -> None:
        """Say `trust` after a restore, once the lost time is dealt with."""
        if not self.suspect or time.monotonic() < self._looks_at:
            return
        self._looks_at = time.monotonic() + LOOKS_EVERY_S
        with suppress(DBAPIError):
            if self._hands.judge.lost_time_is_over(wider=self._hands.deploys.code.variant == "wider") and self._hands.deploys.trust():
                self.suspect = False
                self._hands.tell("trusted")
                self._hands.done["trusted after a copy was put back"] += 1

    def _take(self) -> None:
        hands = self._hands
        with hands.orders.closed():
            if hands.place.store == "sqlite":  # a disk snapshot shows one instant, so no worker may write meanwhile
                hands.judge.stopped |= {one.pid for one in hands.fleet.all()}
                hands.fleet.halt()
            hands.place.copy.take()
            hands.tell("a copy is taken")
            hands.fleet.wake_due(all_of_them=True)

    def _start_untold(self) -> None:
        """Start workers as after any other end; the first one must notice the restore."""
        hands = self._hands
        if hands.dice.random() < CUT_SHORT:
            hands.staff()
            hands.pause(hands.dice.uniform(0, 0.4))
            hands.kill(hands.some(2))
        self._wait_for_one("worker")

    def _start_waiting(self) -> None:
        """Start workers that may make no call, and then a worker with --after-restore."""
        hands, dice = self._hands, self._hands.dice
        if dice.random() > TOLD_AT_ONCE:
            hands.go_on(dice.uniform(1, 4))
            if dice.random() < 0.5:
                hands.end_all(drained=dice.random() < 0.5)
        if dice.random() < CUT_SHORT:
            one = hands.bear("restorer")
            hands.pause(dice.uniform(0, 0.4))
            hands.kill([one])
        hands.bear("restorer")
        self._wait_for_one("restorer")

    def _wait_for_one(self, what: str) -> None:
        """Wait until a process of that kind has started; it has put all that it found in doubt by then."""
        hands, end = self._hands, self._hands.judge.clock.awake_s + UP_WITHIN_S

        def there() -> list[Seen]:
            return [one for one in hands.fleet.living() if one.what == what]

        while not any(one.up for one in there()):
            if hands.judge.clock.awake_s > end:
                hands.judge.fault("OthersGoOn", f"no worker came up within {UP_WITHIN_S:g} s after a copy was put back")
                return
            if what == "worker":
                hands.staff()
            elif not there():  # the database was in trouble at its start
                hands.bear(what)
            hands.fleet.wait(lambda: any(one.up for one in there()), 0.2)
            hands.look()
