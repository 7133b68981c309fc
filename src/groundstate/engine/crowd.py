"""Backlogs that several workers go through: each tells what it did, which asks the others to help, and some are told to leave it to them.

The worker that sweeps for all keeps the door (rules/crowd.py). All of it may be lost: nobody is kept out for longer than the door is
known to be kept, and whoever sweeps never is. A forged word costs pace, and no more than that.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable

from groundstate.engine.fleet import Fleet
from groundstate.engine.shift import Shift
from groundstate.rules.crowd import Door, LetIn, Report
from groundstate.rules.hint import EVERYBODY, Hint

log = logging.getLogger("groundstate")
TELLS_EACH_S = 0.2
KEPT_OUT_S = 2.0  # so long holds what was said of who is let in
ARRIVES_S = 0.5  # who comes up beside others first listens whether they are at a backlog
UNHEARD_MOST = 1_000  # words that wait for the next turn


class Crowd:
    """Of one worker; for its transactions' thread alone, but for `hear`."""

    def __init__(self, shift: Shift, fleet: Fleet, say: Callable[[Hint], None]) -> None:
        self._shift = shift
        self._fleet = fleet
        self._say = say
        self._door = Door()
        self._unheard: deque[tuple[Hint, float]] = deque(maxlen=UNHEARD_MOST)
        self._kept_out: dict[str, float] = {}  # until when, by the names of reactions; another dict after each change
        self._life = 0
        self._rows = 0
        self._began: float | None = None  # the work that is not told of yet
        self._next_told = 0.0
        self._settled = 0  # how many go on with a backlog, as the log has it; 0: all

    # ---- from other threads --------------------------------------------------------------------------------------------------------
    def hear(self, hint: Hint) -> bool:
        """Takes what another worker tells of a backlog. Whether this one has a part in it."""
        if hint.crew == self._fleet.lock and (hint.did is not None or hint.let_in is not None):
            self._unheard.append((hint, time.monotonic()))
        if hint.let_in is not None:
            return _is_in(self._shift.life.id, hint.let_in[1])
        return hint.did is None or not self._kept_out.keys() >= set(hint.reactions)

    # ---- its own thread ------------------------------------------------------------------------------------------------------------
    def did(self, rows: int, began: float) -> None:
        """After a batch of a backlog that began then."""
        self._rows += rows
        if self._began is None:
            self._began = began

    def turn(self) -> None:
        """Tells, listens, and says who is let in where that is this worker's to say."""
        now = time.monotonic()
        if self._life != self._shift.life.id:
            self._arrive(now)
        self._tell(now)
        while self._unheard:
            self._take(*self._unheard.popleft())
        if self._keeps_the_door:
            self._say_who_goes_on(now)
        over = [name for name, until in self._kept_out.items() if self._fleet.sweeps or now >= until]
        if over:
            self._let_in(over)

    @property
    def _keeps_the_door(self) -> bool:
        return self._fleet.sweeps and not self._fleet.alone

    @property
    def kept_out(self) -> list[str]:
        """The reactions whose backlogs this worker leaves to others just now."""
        return sorted(self._kept_out)

    def wait_until(self) -> float | None:
        """When this worker is to look at what it was kept from; None: it is kept from nothing."""
        return min(self._kept_out.values(), default=None)

    def _arrive(self, now: float) -> None:
        self._life = self._shift.life.id
        if not self._fleet.sweeps:
            self._keep_out([lane.name for lane in self._shift.lanes], now + ARRIVES_S)

    def _tell(self, now: float) -> None:
        """The others of a backlog that is more than the next batch, and of what was done of it."""
        long = [lane for lane in self._shift.parts if lane.long]
        if not long or now < self._next_told:
            return
        self._next_told = now + TELLS_EACH_S
        for lane in long:
            lane.long = False
        report = None if self._began is None else Report(self._shift.life.id, self._rows, now - self._began)
        self._rows, self._began = 0, None
        if self._fleet.size > 1:
            names = tuple(sorted({lane.name for lane in long}))
            if report is not None and self._keeps_the_door:
                self._door.hear(report, names, now)
            self._say(Hint(reactions=names, rows=EVERYBODY, crew=self._fleet.lock, did=report))

    def _say_who_goes_on(self, now: float) -> None:
        me = self._shift.life.id
        lives = sorted({*self._fleet.lives, me})
        found = self._door.look(me, lives, now)
        if found is not None:
            settled = 0 if found.lives is None else self._door.climb.settled
            if settled not in (0, self._settled):
                words = "of %d workers %d go on with the backlog of %s, the others leave it to them: as many as did most so far"
                names = ", ".join(found.reactions)
                log.info(words, len(lives), settled, names, extra={"event": "backlog_left", "workers": settled, "reactions": names})
            self._settled = settled
            self._say(Hint(reactions=found.reactions, rows=EVERYBODY, crew=self._fleet.lock, let_in=(me, found)))

    def _take(self, hint: Hint, at: float) -> None:
        if hint.did is not None:
            ours = [lane.name for lane in self._shift.lanes if lane.name in hint.reactions]
            if ours and self._keeps_the_door and self._fleet.knows(hint.did.life, at):
                self._door.hear(hint.did, ours, at)
        elif hint.let_in is not None and not self._fleet.sweeps and self._fleet.knows(hint.let_in[0], at):
            if _is_in(self._shift.life.id, hint.let_in[1]):
                self._let_in(hint.reactions)
                for lane in self._shift.parts:
                    if lane.name in hint.reactions:
                        lane.hear_whole(spread=True)
            else:
                self._keep_out(hint.reactions, at + KEPT_OUT_S)

    def _keep_out(self, names: Iterable[str], until: float) -> None:
        """From these backlogs. What is fresh is still carried out; what is left over is looked at afterwards."""
        lanes = [lane for lane in self._shift.parts if lane.name in names and lane.question.spec.call is None]
        for lane in lanes:
            lane.leave_to_others()
        self._kept_out = self._kept_out | {lane.name: until for lane in lanes}

    def _let_in(self, names: Iterable[str]) -> None:
        for lane in self._shift.parts:
            if lane.name in names:
                lane.left_to_others = False
        self._kept_out = {name: until for name, until in self._kept_out.items() if name not in set(names)}


def _is_in(life: int, found: LetIn) -> bool:
    return found.lives is None or life in found.lives
