"""When an endpoint, and not a record, fails: the pause and the probe (hazard 10, rules.md 21). Pure: the seconds are arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

IN_A_ROW = 5  # failures or doubts on distinct records that open it
FIRST_S = 1.0
LONGEST_S = 15.0  # so long calls wait, at most, for a service that is back
TOGETHER_FIRST = 2  # calls at once after a pause
DOUBLES_EACH_S = 1.0  # and so soon there may be twice as many, whatever was answered meanwhile


@dataclass
class Breaker:
    """Of one outside, in memory, a worker each. Records begun before the pause still count."""

    in_a_row: int = IN_A_ROW
    failed: set[object] = field(default_factory=set)
    pause_s: float = 0.0
    until: float = 0.0
    probing: bool = False
    calls_fail: bool = False  # calls are among what failed, or wanted a pause: no find's answer ends that
    asked: bool = False  # it is probed since the endpoint wanted a pause, and not for failures
    together: int = 0  # after a pause: among so many calls may be by the answers since; 0: as many as there are slots
    back_at: float = 0.0  # when it answered after the last pause

    def succeeded(self, now: float, times: int = 1) -> None:
        """The endpoint answered. After a pause it is given more by degrees: one more for each answer, so twice as many each round; and
        where a round takes long, twice as many each second.
        """
        self.failed.clear()
        self.pause_s = 0.0
        if self.probing:
            self.together, self.back_at = TOGETHER_FIRST, max(now, self.until)
        elif self.together:
            self.together += times
        self.probing = self.asked = self.calls_fail = False

    def answered_a_question(self, now: float) -> None:
        """A find was answered, without an outcome: the endpoint is there, and whether it carries out calls is not known by that."""
        if not self.calls_fail:
            self.succeeded(now)

    def went_wrong(self, record: object, now: float, *, find: bool = False) -> None:
        """A failure or doubt on a record, or a find that raised. Opens after enough in a row; a failed probe doubles the pause.

        But not a probe after a pause that the endpoint wanted: it said that it is there, and one record that fails then is one of a row.
        """
        if self.asked and now >= self.until:
            self.probing = self.asked = False
            self.together, self.back_at = TOGETHER_FIRST, now
        self.failed.add(record)
        self.calls_fail |= not find
        if self.probing or len(self.failed) >= self.in_a_row:
            self.together = 0
            if now >= self.until:
                self.pause_s = min(self.pause_s * 2 or FIRST_S, LONGEST_S)
                self.until = now + self.pause_s
            self.probing = True

    def asked_to_wait(self, now: float, wait_s: float) -> None:
        """Busy: the endpoint itself wants a pause."""
        self.until = max(self.until, now + wait_s)
        self.asked, self.probing, self.calls_fail = self.asked or not self.probing, True, True

    def room(self, free: int, flying: int, now: float) -> int:
        """How many calls may be begun: none in a pause, one at a time while probing, and more by degrees afterwards."""
        if now < self.until:
            return 0
        if self.probing:
            return 1 if flying == 0 and free > 0 else 0
        if not self.together:
            return free
        together = max(self.together, TOGETHER_FIRST << min(self._doubled(now), 30))
        if together >= flying + free:
            self.together, self.until, self.back_at = 0, 0.0, 0.0
            return free
        return min(free, max(together - flying, 0))

    def more_at(self, now: float) -> float | None:
        """When there may be more room though nothing is answered until then; None where only an answer makes some."""
        if now < self.until:
            return self.until
        return self.back_at + (self._doubled(now) + 1) * DOUBLES_EACH_S if self.together else None

    def _doubled(self, now: float) -> int:
        """How often the number of calls has doubled by the time that has passed."""
        return max(int((now - self.back_at) / DOUBLES_EACH_S), 0)

    @property
    def open(self) -> bool:
        return self.probing
