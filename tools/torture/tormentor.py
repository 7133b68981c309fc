"""Carries out the actions of the plan on the workers and the database of one run; the judge checks the invariants after each."""

from __future__ import annotations

from collections.abc import Callable

from tools.torture.enemy import Enemy
from tools.torture.hands import WORKING, Hands
from tools.torture.ledger import Requests
from tools.torture.restarts import Restarts
from tools.torture.restores import Restores
from tools.torture.rolls import Rolls

STOPPED_AT_MOST = 3  # workers that may be suspended at once
# deploys that must wait until a restore is trusted: see docs/limits.md
AFTER_TRUST = ("roll another service", "roll another occurrence", "roll a wider condition")


class Tormentor:
    """Carries out the actions of a run by their names."""

    def __init__(self, hands: Hands, requests: Requests) -> None:
        self._hands = hands
        self.restores = Restores(hands)
        self._put_off: list[str] = []
        place, dice = hands.place, hands.dice
        enemy, restarts, rolls = Enemy(place, hands.judge, dice), Restarts(hands, requests), Rolls(hands)
        self._acts: dict[str, Callable[[], object]] = {
            "kill": lambda: hands.kill(hands.some(1)),
            "kill two": lambda: hands.kill(hands.some(2)),
            "kill all": lambda: hands.kill(hands.fleet.living()),
            "kill a stopped one": self._kill_stopped,
            "stop past deadlines": lambda: self._stop(dice.uniform(6, 8)),
            "stop for a moment": lambda: self._stop(dice.uniform(0.1, 2)),
            "drain": self._drain,
            "start cold": hands.bear_cold,
            "fill the disk": self._fill,
            "deploy": self._deploy,
            "put a copy back": self.restores.put_back,
            "delete an attempt": lambda: self._count(enemy.delete_attempt()),
            "move an occurrence": lambda: self._count(enemy.move_occurrence()),
            "roll another service": lambda: rolls.turn("service"),
            "roll another occurrence": lambda: rolls.turn("occurrence"),
            "roll a wider condition": lambda: rolls.turn("wider"),
            "cut connections": lambda: place.proxy.cut(dice.randint(1, 6)) if place.proxy else None,
            "stall connections": lambda: place.proxy.stall(dice.randint(1, 4), dice.uniform(0.2, 7)) if place.proxy else None,
            "kill PostgreSQL": lambda: self._break(place.kill_server),
            "cut the power": lambda: self._break(lambda: place.kill_server(lambda: hands.kill(hands.fleet.all()))),
            "kill a backend": lambda: self._break(place.kill_backend),
            "restart PostgreSQL": restarts.restart,
        }

    def act(self, what: str) -> None:
        """Carry out one action, and let the judge check the invariants after it; a rolling deploy is put off until a restore is trusted."""
        hands = self._hands
        if not hands.place.can(what):
            return
        if what in AFTER_TRUST and self.restores.suspect:
            self._put_off.append(what)
            return
        if self._put_off and not self.restores.suspect:
            self.act(self._put_off.pop(0))
        hands.staff()
        if what.startswith("kill") and hands.dice.random() < WORKING:
            hands.until_effects(hands.dice.randint(1, 8))
        hands.tell(f"{what}, version {hands.deploys.code}")
        self._acts[what]()
        hands.done[what] += 1
        self.look()
        hands.pause(hands.dice.uniform(0, 2 / hands.plan.a_second))

    def catch_up(self, tell: Callable[[], None]) -> None:
        """Carry out the actions that were put off; call `tell` meanwhile."""
        clock, patience_s = self._hands.judge.clock, self._hands.plan.settles_within_s
        end = clock.awake_s + patience_s
        while self._put_off:
            while self.restores.suspect:
                self._hands.go_on(0.5)
                self.look()
                tell()
                if clock.awake_s > end:
                    self._hands.judge.fault("NotLost", f"{patience_s:g} s after a copy was put back calls of the lost time are not settled")
                    return
            self.act(self._put_off.pop(0))

    def look(self) -> None:
        """Let the judge check the invariants, and let a person trust a restore once that is due."""
        self._hands.look()
        self.restores.look()

    # ---- actions -------------------------------------------------------------------------------------------------------------------
    def _kill_stopped(self) -> None:
        hands = self._hands
        one = hands.dice.choice(hands.fleet.living())
        hands.fleet.stop(one, 60)
        hands.judge.stopped.add(one.pid)
        hands.pause(hands.dice.uniform(0, 0.2))
        hands.kill([one])

    def _drain(self) -> None:
        for one in self._hands.some(1):
            self._hands.fleet.drain(one)

    def _stop(self, for_s: float) -> None:
        hands = self._hands
        awake = [one for one in hands.fleet.living() if one.wakes_at is None]
        stopped = len(hands.fleet.living()) - len(awake)
        if awake and stopped < STOPPED_AT_MOST:
            one = hands.dice.choice(awake)
            hands.judge.stopped.add(one.pid)
            hands.in_trouble()  # it may hold a lock for which others wait
            hands.fleet.stop(one, for_s)

    def _fill(self) -> None:
        hands = self._hands
        hands.fill(hands.dice.uniform(0.3, 2.5))

    def _break(self, how: Callable[[], None]) -> None:
        self._hands.in_trouble()
        how()
        self._hands.in_trouble()

    def _deploy(self) -> None:
        hands = self._hands
        hands.end_troubles()
        if not hands.deploys.next_is_a_rename():
            hands.deploys.roll()  # workers of the old code run beside the new ones until they are killed or drained
            old = [one for one in hands.fleet.living() if one.code != hands.deploys.code]
            for one in old[: len(old) // 2]:
                hands.fleet.drain(one)
        else:
            hands.end_all(drained=hands.dice.random() < 0.5)
            hands.deploys.rename()
        hands.judge.surveys = True
        hands.judge.forgive_the_time()

    def _count(self, what: str) -> None:
        self._hands.done[what] += 1
