"""The database is put back from a copy, under nobody's eyes: a SQLite file's whole folder, or the rows alone of a PostgreSQL.

On SQLite the workers are started without being told, and are to notice. On PostgreSQL the reactions with a call are to wait for a person,
who starts a worker with --after-restore. On both a person says `trust` when each call of the lost time is in its order, or listed.
"""

from __future__ import annotations

import time
from contextlib import suppress

from sqlalchemy.exc import DBAPIError

from groundstate.testing.torture.fleet import Seen
from groundstate.testing.torture.hands import Hands

CLEAN = 0.4  # of the restores come after an end at which every worker was drained, the others after all were killed
TOLD_AT_ONCE = 0.5  # of those on PostgreSQL: the first worker is started with --after-restore; else others run before it, and wait
CUT_SHORT = 0.3  # of those who put the lost time in doubt are killed while they do
UP_WITHIN_S = 60.0  # as the machine lets us run
LOOKS_EVERY_S = 3.0


class Restores:
    """One at a time: taken, some time lost, put back, and looked after until a person trusts it."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands
        self._looks_at = 0.0
        self.suspect = False  # nobody has said yet that the lost time is dealt with

    def put_back(self) -> None:
        """The act."""
        hands, place, dice = self._hands, self._hands.place, self._hands.dice
        hands.end_troubles()
        # What other code called in the lost time, at a service that this one does not ask, nobody could find (docs/limits.md).
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
        """Trust, where it is time for it."""
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
            if hands.place.store == "sqlite":  # a snapshot of a disk is of one moment: nobody writes meanwhile
                hands.judge.stopped |= {one.pid for one in hands.fleet.all()}
                hands.fleet.halt()
            hands.place.copy.take()
            hands.tell("a copy is taken")
            hands.fleet.wake_due(all_of_them=True)

    def _start_untold(self) -> None:
        """As after any other end: whoever comes first is to notice."""
        hands = self._hands
        if hands.dice.random() < CUT_SHORT:
            hands.staff()
            hands.pause(hands.dice.uniform(0, 0.4))
            hands.kill(hands.some(2))
        self._wait_for_one("worker")

    def _start_waiting(self) -> None:
        """Those that run before a person says something may call nobody."""
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
        """Until a process of that kind carries out: then all that it found is in doubt."""
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
