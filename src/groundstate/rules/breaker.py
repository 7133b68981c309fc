"""When an endpoint, and not a record, fails: the pause and the probe (hazard 10, rules.md 21). Pure: the seconds are arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

IN_A_ROW = 5  # failures or doubts on distinct records that open it
FIRST_S = 1.0
LONGEST_S = 60.0


@dataclass
class Breaker:
    """Of one outside, in memory, a worker each. Records begun before the pause still count."""

    in_a_row: int = IN_A_ROW
    failed: set[object] = field(default_factory=set)
    pause_s: float = 0.0
    until: float = 0.0
    probing: bool = False
    together: int = 0  # after a pause: among so many calls may be; 0: as many as there are slots

    def succeeded(self, times: int = 1) -> None:
        """The endpoint answered. After a pause it is given more by degrees: one more for each answer, so twice as many each round."""
        self.failed.clear()
        self.pause_s = 0.0
        if self.probing:
            self.together = 2
        elif self.together:
            self.together += times
        self.probing = False

    def went_wrong(self, record: object, now: float) -> None:
        """A failure or doubt on a record. Opens after enough in a row; a failed probe doubles the pause."""
        self.failed.add(record)
        if self.probing or len(self.failed) >= self.in_a_row:
            self.together = 0
            if now >= self.until:
                self.pause_s = min(self.pause_s * 2 or FIRST_S, LONGEST_S)
                self.until = now + self.pause_s
            self.probing = True

    def asked_to_wait(self, now: float, wait_s: float) -> None:
        """Busy: the endpoint itself wants a pause."""
        self.until = max(self.until, now + wait_s)
        self.probing = True

    def room(self, free: int, flying: int, now: float) -> int:
        """How many calls may be begun: none in a pause, one at a time while probing."""
        if now < self.until:
            return 0
        if self.probing:
            return 1 if flying == 0 and free > 0 else 0
        if self.together >= flying + free:
            self.together = 0
        return min(free, max(self.together - flying, 0)) if self.together else free

    @property
    def open(self) -> bool:
        return self.probing
