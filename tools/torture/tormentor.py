"""Carries out the actions of the plan on the workers and the database of one run; the judge checks the invariants after each."""

from __future__ import annotations

from collections.abc import Callable

from tools.torture.enemy import Intruder
from tools.torture.hands import WORKING, Operator
from tools.torture.ledger import Requests
from tools.torture.restarts import Restarts
from tools.torture.restores import Restores
from tools.torture.rolls import Rolls

STOPPED_AT_MOST = 3  # workers that may be suspended at once
# deploys that must wait until a restore is trusted: see docs/limits.md
AFTER_TRUST = ("roll another service", "roll another occurrence", "roll a wider condition")


class Tormentor:
    """Carries out the actions of a run by their names."""

    def __init__(self, hands: Operator, requests: Requests) -> None:
        self._hands = hands
        self.restores = Restores(hands)
        self._put_off: list[str] = []
        place, dice = hands.place, hands.dice
        enemy, restarts, rolls = Intruder(place, hands.judge, dice), Restarts(hands, requests), Rolls(hands)
        self._acts: dict[str, Callable[[], object]] = {
            "kill": lambda: hands.kill_workers(hands.draw_workers(1)),
            "kill two": lambda: hands.kill_workers(hands.draw_workers(2)),
            "kill all": lambda: hands.kill_workers(hands.fleet.living_workers()),
            "kill a stopped one": self._kill_while_suspended,
            "stop past deadlines": lambda: self._suspend_workers(dice.uniform(6, 8)),
            "stop for a moment": lambda: self._suspend_workers(dice.uniform(0.1, 2)),
            "drain": self._drain_workers,
            "start cold": hands.start_cold_worker,
            "fill the disk": self._fill_disk,
            "deploy": self._deploy_next,
            "put a copy back": self.restores.copy_and_restore,
            "delete an attempt": lambda: self._count_action(enemy.delete_attempt()),
            "move an occurrence": lambda: self._count_action(enemy.move_occurrence()),
            "roll another service": lambda: rolls.roll_to_variant("service"),
            "roll another occurrence": lambda: rolls.roll_to_variant("occurrence"),
            "roll a wider condition": lambda: rolls.roll_to_variant("wider"),
            "cut connections": lambda: place.proxy.cut_connections(dice.randint(1, 6)) if place.proxy else None,
            "stall connections": lambda: place.proxy.stall_connections(dice.randint(1, 4), dice.uniform(0.2, 7)) if place.proxy else None,
            "kill PostgreSQL": lambda: self._cause_trouble(place.kill_server),
            "cut the power": lambda: self._cause_trouble(
                lambda: place.kill_server(lambda: hands.kill_workers(hands.fleet.all_processes()))
            ),
            "kill a backend": lambda: self._cause_trouble(place.kill_backend),
            "restart PostgreSQL": restarts.restart_and_check,
        }

    def carry_out(self, what: str) -> None:
        """Carry out one action, and let the judge check the invariants after it; a rolling deploy is put off until a restore is trusted."""
        hands = self._hands
        if not hands.place.can_cause(what):
            return
        if what in AFTER_TRUST and self.restores.suspect:
            self._put_off.append(what)
            return
        if self._put_off and not self.restores.suspect:
            self.carry_out(self._put_off.pop(0))
        hands.keep_workers_running()
        if what.startswith("kill") and hands.dice.random() < WORKING:
            hands.wait_for_effects(hands.dice.randint(1, 8))
        hands.log_action(f"{what}, version {hands.deploys.code}")
        self._acts[what]()
        hands.done[what] += 1
        self.check_invariants()
        hands.let_shop_run(hands.dice.uniform(0, 2 / hands.plan.a_second))

    def carry_out_postponed(self, tell: Callable[[], None]) -> None:
        """Carry out the actions that were put off; call `tell` meanwhile."""
        clock, patience_s = self._hands.judge.clock, self._hands.plan.settles_within_s
        end = clock.awake_s + patience_s
        while self._put_off:
            while self.restores.suspect:
                self._hands.run_with_checks(0.5)
                self.check_invariants()
                tell()
                if clock.awake_s > end:
                    self._hands.judge.add_fault(
                        "NotLost", f"{patience_s:g} s after a copy was put back calls of the lost time are not settled"
                    )
                    return
            self.carry_out(self._put_off.pop(0))

    def check_invariants(self) -> None:
        """Let the judge check the invariants, and let a person trust a restore once that is due."""
        self._hands.check_all()
        self.restores.trust_if_due()

    # ---- actions -------------------------------------------------------------------------------------------------------------------
    def _kill_while_suspended(self) -> None:
        hands = self._hands
        one = hands.dice.choice(hands.fleet.living_workers())
        hands.fleet.suspend(one, 60)
        hands.judge.stopped.add(one.pid)
        hands.let_shop_run(hands.dice.uniform(0, 0.2))
        hands.kill_workers([one])

    def _drain_workers(self) -> None:
        for one in self._hands.draw_workers(1):
            self._hands.fleet.send_sigterm(one)

    def _suspend_workers(self, for_s: float) -> None:
        hands = self._hands
        awake = [one for one in hands.fleet.living_workers() if one.wakes_at is None]
        stopped = len(hands.fleet.living_workers()) - len(awake)
        if awake and stopped < STOPPED_AT_MOST:
            one = hands.dice.choice(awake)
            hands.judge.stopped.add(one.pid)
            hands.note_trouble()  # it may hold a lock for which others wait
            hands.fleet.suspend(one, for_s)

    def _fill_disk(self) -> None:
        hands = self._hands
        hands.fill_disk(hands.dice.uniform(0.3, 2.5))

    def _cause_trouble(self, how: Callable[[], None]) -> None:
        self._hands.note_trouble()
        how()
        self._hands.note_trouble()

    def _deploy_next(self) -> None:
        hands = self._hands
        hands.end_troubles()
        if not hands.deploys.is_next_a_rename():
            hands.deploys.deploy_version_2()  # workers of the old code run beside the new ones until they are killed or drained
            old = [one for one in hands.fleet.living_workers() if one.code != hands.deploys.code]
            for one in old[: len(old) // 2]:
                hands.fleet.send_sigterm(one)
        else:
            hands.end_all_processes(drained=hands.dice.random() < 0.5)
            hands.deploys.rename_reaction()
        hands.judge.surveys = True
        hands.judge.reset_patience()

    def _count_action(self, what: str) -> None:
        self._hands.done[what] += 1
