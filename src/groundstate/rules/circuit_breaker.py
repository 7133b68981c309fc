"""The circuit breaker pauses the calls to an external service that fails for several records in a row, and then probes it (hazard 10,
rules.md 21). Pure: times are arguments, in seconds.

Failures of different records may be those of the service, or those of broken records, and their number does not tell which. So the probes
are by turns a record that was not tried yet and one that was: a service that carries out a new one works.
"""

from __future__ import annotations

from dataclasses import dataclass, field

IN_A_ROW = 5  # failures or calls in doubt, in a row and on distinct records, that open the breaker
FIRST_S = 1.0  # seconds: the first pause; each failed probe doubles it
LONGEST_S = 15.0  # seconds: the longest pause, so that calls wait no longer for a service that works again
TOGETHER_FIRST = 2  # calls that may be in flight at once right after a pause
DOUBLES_EACH_S = 1.0  # seconds: after each such span twice as many calls may be in flight, whatever was answered meanwhile


@dataclass
class Breaker:
    """A Breaker counts the failures of one external service, in the memory of one worker. Records begun before a pause still count."""

    in_a_row: int = IN_A_ROW
    failed: set[object] = field(default_factory=set)
    pause_s: float = 0.0
    until: float = 0.0
    probing: bool = False
    calls_fail: bool = False  # whether a call failed or was throttled: then the answer of a lookup does not end the pause
    asked: bool = False  # whether it is probed because the service asked for a pause, and not because of failures
    tried_new: bool = False  # whether the last probe was a record that had not been tried: then the next one may be any
    together: int = 0  # after a pause: the limit on calls in flight, raised by each answer; 0: no limit but the slots
    back_at: float = 0.0  # when the service answered after the last pause, in seconds

    def succeeded(self, now: float, times: int = 1) -> None:
        """Note that the service answered. After a pause the limit on simultaneous calls rises by one for each answer, so that it doubles
        each time all of them are answered; where calls take long, it doubles each second.
        """
        self.failed.clear()
        self.pause_s = 0.0
        if self.probing:
            self.together, self.back_at = TOGETHER_FIRST, max(now, self.until)
        elif self.together:
            self.together += times
        self.probing = self.asked = self.calls_fail = self.tried_new = False

    def record_lookup_answer(self, now: float) -> None:
        """Note that a lookup was answered without an outcome: the service is up, but this does not show whether it carries out calls."""
        self.tried_new = False
        if not self.calls_fail:
            self.succeeded(now)

    def record_failure(self, record: object, now: float, *, lookup: bool = False, again: bool = False) -> None:
        """Count a record whose call failed or came in doubt, or whose lookup raised. Enough of these in a row open the breaker, and a
        failed probe doubles the pause.

        A probe after a pause that the service asked for is an exception: the service said that it is up, so its failure only counts as one
        of a row. again: the record had been tried before.
        """
        self.tried_new = self.probing and not (again or lookup)
        if self.asked and now >= self.until:
            self.probing = self.asked = False
            self.together, self.back_at = TOGETHER_FIRST, now
        self.failed.add(record)
        self.calls_fail |= not lookup
        if self.probing or len(self.failed) >= self.in_a_row:
            self.together = 0
            if now >= self.until:
                self.pause_s = min(self.pause_s * 2 or FIRST_S, LONGEST_S)
                self.until = now + self.pause_s
            self.probing = True

    def record_throttled(self, now: float, wait_s: float, *, again: bool = False) -> None:
        """Note that the service throttled us: it asked for a pause of `wait_s` seconds. again: the record had been tried before."""
        self.tried_new = self.probing and not again
        self.until = max(self.until, now + wait_s)
        self.asked, self.probing, self.calls_fail = self.asked or not self.probing, True, True

    def room(self, free: int, flying: int, now: float) -> int:
        """Return how many calls may be begun: none in a pause, one at a time while probing, and gradually more afterwards.

        free: the number of free slots. flying: the number of calls in flight. now: seconds.
        """
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
        """Return when (in seconds) more calls may be begun even if no answer comes until then; None where only an answer can allow more."""
        if now < self.until:
            return self.until
        return self.back_at + (self._doubled(now) + 1) * DOUBLES_EACH_S if self.together else None

    def _doubled(self, now: float) -> int:
        """Return how often the limit on simultaneous calls has doubled just because time passed since the service answered again."""
        return max(int((now - self.back_at) / DOUBLES_EACH_S), 0)

    @property
    def open(self) -> bool:
        return self.probing

    @property
    def wants_new(self) -> bool:
        """Whether the next probe is to be of a record that has not been tried yet, where one waits."""
        return self.probing and not self.tried_new
