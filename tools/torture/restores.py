"""Restores the database from a copy while no process works on it: a SQLite file's whole folder, or only the rows of a PostgreSQL.

On SQLite the workers start without being told, and must notice the restore. On PostgreSQL the reactions with a call must wait for a person,
who starts a worker with --after-restore. On both a person says `trust` when each call of the lost time is in its order, or listed.
"""

from __future__ import annotations

import time
from contextlib import suppress

from sqlalchemy.exc import DBAPIError

from tools.torture.fleet import ShopProcess
from tools.torture.hands import Operator

CLEAN = 0.4  # share of the restores that follow a clean end of all workers; the others follow kills
# share of the restores on PostgreSQL whose first worker starts with --after-restore; in the others some run before it, and wait
TOLD_AT_ONCE = 0.5
CUT_SHORT = 0.3  # share of the restores whose workers are killed while they put the lost time in doubt
UP_WITHIN_S = 60.0  # seconds of run time: a worker must have started by then
LOOKS_EVERY_S = 3.0  # seconds between two checks whether the lost time is over


class Restores:
    """One restore at a time: a copy is taken, time passes, the copy is restored, and it is watched until a person trusts it."""

    def __init__(self, hands: Operator) -> None:
        self._hands = hands
        self._looks_at = 0.0
        self.suspect = False  # whether a restore has not been trusted yet

    def copy_and_restore(self) -> None:
        """Take a copy, let the shop run on, restore the copy, and start workers again."""
        hands, place, dice = self._hands, self._hands.place, self._hands.dice
        hands.end_troubles()
        # A call that other code made in the lost time, at a service that this code does not ask, could not be found (docs/limits.md).
        hands.kill_workers([one for one in hands.fleet.all_processes() if one.code != hands.deploys.code])
        self._take_copy()
        hands.run_with_checks(dice.uniform(0.5, 2))
        if dice.random() < 0.5:
            hands.kill_workers(hands.draw_workers(1))
        hands.run_with_checks(dice.uniform(0.5, 2))
        clean = place.store == "sqlite" and dice.random() < CLEAN
        with hands.orders.paused():
            hands.end_all_processes(drained=clean)
            place.wait_for_recovery()
            place.copy.restore()
            hands.log_action("the copy is back")
            hands.done["orders lost with the time"] += hands.judge.record_restore(hands.codes)
            self.suspect = True
            if place.store == "sqlite":
                self._start_unaware_workers()
            else:
                self._start_restorer()
            hands.judge.record_restore_is_known()
            hands.log_action("the workers know of it")
        hands.done[f"copies put back after {'a clean end' if clean else 'kills'}"] += 1

    def trust_if_due(self) -> None:
        """Say `trust` after a restore, once the lost time is dealt with."""
        if not self.suspect or time.monotonic() < self._looks_at:
            return
        self._looks_at = time.monotonic() + LOOKS_EVERY_S
        with suppress(DBAPIError):
            if self._hands.judge.is_lost_time_over(wider=self._hands.deploys.code.variant == "wider") and self._hands.deploys.run_trust():
                self.suspect = False
                self._hands.log_action("trusted")
                self._hands.done["trusted after a copy was put back"] += 1

    def _take_copy(self) -> None:
        hands = self._hands
        with hands.orders.paused():
            if hands.place.store == "sqlite":  # a disk snapshot shows one instant, so no worker may write meanwhile
                hands.judge.stopped |= {one.pid for one in hands.fleet.all_processes()}
                hands.fleet.suspend_all()
            hands.place.copy.take_copy()
            hands.log_action("a copy is taken")
            hands.fleet.resume_due(all_of_them=True)

    def _start_unaware_workers(self) -> None:
        """Start workers as after any other end; the first one must notice the restore."""
        hands = self._hands
        if hands.dice.random() < CUT_SHORT:
            hands.keep_workers_running()
            hands.let_shop_run(hands.dice.uniform(0, 0.4))
            hands.kill_workers(hands.draw_workers(2))
        self._wait_for_start("worker")

    def _start_restorer(self) -> None:
        """Start workers that may make no call, and then a worker with --after-restore."""
        hands, dice = self._hands, self._hands.dice
        if dice.random() > TOLD_AT_ONCE:
            hands.run_with_checks(dice.uniform(1, 4))
            if dice.random() < 0.5:
                hands.end_all_processes(drained=dice.random() < 0.5)
        if dice.random() < CUT_SHORT:
            one = hands.fork_process("restorer")
            hands.let_shop_run(dice.uniform(0, 0.4))
            hands.kill_workers([one])
        hands.fork_process("restorer")
        self._wait_for_start("restorer")

    def _wait_for_start(self, what: str) -> None:
        """Wait until a process of that kind has started; it has put all that it found in doubt by then."""
        hands, end = self._hands, self._hands.judge.clock.awake_s + UP_WITHIN_S

        def living_of_kind() -> list[ShopProcess]:
            return [one for one in hands.fleet.living_workers() if one.what == what]

        while not any(one.up for one in living_of_kind()):
            if hands.judge.clock.awake_s > end:
                hands.judge.add_fault("OthersGoOn", f"no worker came up within {UP_WITHIN_S:g} s after a copy was put back")
                return
            if what == "worker":
                hands.keep_workers_running()
            elif not living_of_kind():  # the database was in trouble at its start
                hands.fork_process(what)
            hands.fleet.wait_until(lambda: any(one.up for one in living_of_kind()), 0.2)
            hands.check_all()
