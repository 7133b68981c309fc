"""What the parts of a running worker share: the store, the present life, the lanes, and what the next look depends on. Does nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from groundstate.engine.lane import Lane
from groundstate.engine.life import Life
from groundstate.engine.tally import Tally
from groundstate.engine.watching import NOBODY, Watched
from groundstate.rules.attempt import Attempt
from groundstate.store.port import Database


@dataclass
class Shift:
    """The state of one worker, of its transactions' thread alone. Times are seconds of the monotonic clock."""

    app: str
    database: Database
    life: Life
    store: str = ""  # its name, as lines of the log have it
    lanes: list[Lane] = field(default_factory=list)  # one for each reaction
    schedules: list[str] = field(default_factory=list)  # their names
    enrolled: bool = False  # whether the rows of schedules say what this code says
    stopping: float | None = None  # when waiting for calls ends; None: not stopping
    next_due: float | None = None  # when an attempt is to be looked at; 0: ask
    took: int = 0  # what was done since the last sweep began
    bounded: tuple[int, int] = (0, 0)  # the life that saw to attempts of a clock that stood ahead, after so many of its steps back
    turn: int = 0  # so that lanes are begun with in turn
    left_begun: bool = False  # begun attempts without a call may stand that nobody carries out: looked for at the next turn
    alone: Attempt | None = None  # careful mode: one that is suspected, whose turn it is: nothing else is begun before
    others: bool = False  # whether other workers of this app are known to be at work on a store with row locks
    beside_others_until: float = 0.0  # somebody else writes to an embedded store
    unheard_s: float = 0.0  # for how long slow batches have had an embedded store since others were last let in
    tally: Tally = field(default_factory=Tally)
    watched: Watched = NOBODY

    @property
    def parts(self) -> list[Lane]:
        """The lanes, and those of what is too late, each after its own."""
        return [part for lane in self.lanes for part in (lane, lane.late) if part is not None]

    @property
    def embedded(self) -> bool:
        return not self.database.locks_rows

    def hold_back(self, names: frozenset[str]) -> None:
        """These reactions wait for a person; the lanes of the others are as they were."""
        for lane in self.lanes:
            if lane.name in names:
                for part in filter(None, (lane, lane.late)):
                    part.admitted = False
        self.life.waiting = names

    def lane(self, name: str) -> Lane:
        """Raises KeyError."""
        return next(lane for lane in self.lanes if lane.name == name)

    def look_for_due(self) -> None:
        """An attempt may have a time of its own now: it is asked for at the next turn."""
        self.next_due = 0.0

    @property
    def beside_others(self) -> bool:
        """Whether somebody else has lately written to an embedded store."""
        if self.life.others_wrote:
            self.beside_others_until = time.monotonic() + OTHERS_S
        return time.monotonic() < self.beside_others_until

    @property
    def hold_s(self) -> float:
        """How long a transaction aims to hold its locks."""
        if not self.embedded:
            return HOLD_S
        return HOLD_BESIDE_OTHERS_S if self.beside_others else HOLD_EMBEDDED_S

    def stay_out(self, took_s: float) -> None:
        """Lets other writers of an embedded store in: its busy handler is unfair to who waits (rules.md 18).

        Who has waited for a while looks each tenth of a second alone, and would miss a twentieth: after slow batches he is let in surely.
        """
        if not self.embedded:
            return
        if self.beside_others:
            time.sleep(took_s)
            return
        self.unheard_s += took_s if took_s > HOLD_S else 0.0
        if self.unheard_s < UNHEARD_MOST_S:
            time.sleep(took_s / 20)
        else:
            self.unheard_s = 0.0
            time.sleep(BUSY_LOOKS_S)

    def in_turn(self, lanes: list[Lane]) -> list[Lane]:
        """These lanes, first the one that was first the longest ago."""
        self.turn += 1
        ordered = sorted(lanes, key=lambda lane: lane.first_at)
        if ordered:
            ordered[0].first_at = self.turn
        return ordered


HOLD_S = 0.05  # how long a batch aims to hold its locks
HOLD_EMBEDDED_S = 0.012  # the lock is over the whole database there
HOLD_BESIDE_OTHERS_S = 0.004  # and this while another process writes (rules.md 18)
OTHERS_S = 5.0  # for so long after somebody else wrote, an embedded store is left free half of the time
UNHEARD_MOST_S = 1.0
BUSY_LOOKS_S = 0.11  # SQLite's busy handler sleeps for up to 0.1 s


LONG = 50  # so many rows in one batch, and more behind them, are a backlog in which others may help


def moved_on(lane: Lane, cursor: tuple[object, ...] | None, read: int, limit: int, taken: int) -> None:
    """After a batch of the backlog: the pass goes on after the cursor, or is at its end."""
    lane.cursor = cursor
    lane.long |= read >= limit >= (LONG if lane.question.spec.call is not None else min(LONG, lane.batch))
    if read < limit:
        lane.swept()
    elif taken * 2 < read:
        lane.crowded = True  # most were attempted already: left out by SQL for the rest of this pass (hazard 27)


def postpone(lane: Lane) -> None:
    """After trouble that is this lane's alone: the others go on."""
    lane.trouble = min(lane.trouble + 1, 8)
    lane.not_before = time.monotonic() + 0.05 * 2**lane.trouble
