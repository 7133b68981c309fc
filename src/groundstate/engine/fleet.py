"""The other workers of this app on this database, and what is not done by all of them: sweeping, and looking where a hint says.

While hints come and go, one worker asks every condition for all, elected by a lock that dies with its life; a hint of a few rows wakes
one worker, and a second one a moment later in case the first is gone. All of it may be wrong: who is not told sweeps by himself, rarely.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from groundstate.engine.pulse import Pulse
from groundstate.engine.shift import Shift
from groundstate.rules import hint
from groundstate.rules.crowd import FEW

BEAT_S = 1.5  # times the number of workers: how often one that does not sweep looks whether it is to
BEAT_MOST_S = 60.0
BACKUP_S = 0.05  # after so long a second worker looks where a hint said
HELPS_AFTER_S = 0.15  # and for many rows others, where nobody has told them by then to leave it to those
JITTER_S = 0.05
STRANGERS_MOST = 1_000  # who tell of themselves and are not among the lives of this database
STRANGERS_S = 0.5  # and how often, at most, it is looked because of one
CUT_OFF_S = 3.0  # after so long without hints a worker sweeps for itself alone
STUCK_S = 3.0  # a worker that sweeps for all and has not turned for so long gives that up


@dataclass
class Fleet:
    """Of one worker. hints: whether hints come from other processes just now."""

    shift: Shift
    hints: Callable[[], bool]
    lives: tuple[int, ...] = ()
    leads: bool = False  # sweeps for all
    lock: int = 0  # of who sweeps; another one for other code, set when the worker comes up
    turned_at: float = 0.0
    next_beat: float = 0.0
    _beat_at: float = 0.0
    _alone_since: float | None = None
    _life: tuple[int, int] = (0, 0)  # with how often its lock was taken: the lock of who sweeps died with the one before
    _strangers: set[int] = field(default_factory=set)

    @property
    def alone(self) -> bool:
        """Whether nobody sweeps for this worker: an embedded store, which is cheap to ask, or no hints."""
        return self.shift.embedded or not self.hints()

    @property
    def sweeps(self) -> bool:
        """Whether it asks every condition each second."""
        return self.alone or (self.leads and self._life == self.shift.life.holder)

    @property
    def size(self) -> int:
        return len({*self.lives, self.shift.life.id})

    def beat_is_due(self, now: float) -> bool:
        return not self.alone and (now >= self.next_beat or self._life != self.shift.life.holder)

    def heard(self, pulse: Pulse, now: float) -> None:
        """After a look at our tables: who is there, and whether it is this one that sweeps."""
        self.lives, self._beat_at = pulse.lives, now
        self.shift.others = self.size > 1 and not self.shift.embedded
        life = self.shift.life
        if self._life != life.holder:
            self._life, self.leads = life.holder, False
        if not self.alone:
            self._alone_since = None
            if not self.leads and self.shift.stopping is None:
                self.leads = self.lock in life.lives.take_slots([(1, [self.lock])])
        elif self._alone_since is None:
            self._alone_since = now
        elif now - self._alone_since > CUT_OFF_S:
            self.resign()  # the others may have hints, and wait for who tells them of a backlog
        self.next_beat = now + min(BEAT_S * self.size, BEAT_MOST_S) * (0.75 + life.dice.random() / 2)

    def knows(self, life: int, now: float) -> bool:
        """Whether it is of this app on this database. Who is heard of for the first time is looked for at the next turn."""
        if life in self.lives:
            return True
        if life not in self._strangers and len(self._strangers) < STRANGERS_MOST:
            self._strangers.add(life)
            self.next_beat = min(self.next_beat, max(now, self._beat_at + STRANGERS_S))
        return False

    def stand_down(self) -> None:
        """From another thread: a worker that hangs in a handler lets another one sweep."""
        if time.monotonic() - self.turned_at > STUCK_S:
            self.resign()

    def resign(self) -> None:
        """Lets another one sweep for all: who stops, who hangs, and who is cut off from hints."""
        if self.leads and not self.shift.embedded:
            self.leads = False
            self.shift.life.lives.give_slots_back([self.lock])

    def wakes(self, dice: int, rows: int) -> float | None:
        """In how many seconds this worker is to look where a hint says; None: others do."""
        wanted = max(-(-rows // hint.ROWS_EACH), 1)
        before = hint.place(self.shift.life.id, self.lives, dice)
        if before < min(wanted, FEW):
            return 0.0
        if before < wanted:
            return HELPS_AFTER_S + self.shift.life.dice.random() * JITTER_S
        return BACKUP_S if before == wanted else None
