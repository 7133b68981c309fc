"""Pauses the calls to an external service after failures for several records in a row, and then probes the service with single calls
(hazard 10, rule 21).

The failures may be caused by the service or by broken records, and their number does not tell which. So the probes are, in turn, for a
record that was tried before and for a record that was not. If the call for an untried record succeeds, the service works. The functions are
pure; times are arguments, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

IN_A_ROW = 5  # a pause begins when the calls for this many distinct records in a row have failed or are in doubt
FIRST_S = 1.0  # length of the first pause in seconds; each failed probe doubles it
LONGEST_S = 15.0  # length of the longest pause in seconds
TOGETHER_FIRST = 2  # number of calls that may be in flight right after a pause
DOUBLES_EACH_S = 1.0  # after a pause the limit on calls in flight doubles each time this many seconds pass, even without answers


@dataclass
class Breaker:
    """A Breaker pauses the calls of one worker to one external service after failures. Calls begun before a pause are counted too."""

    in_a_row: int = IN_A_ROW
    failed: set[object] = field(default_factory=set)
    pause_s: float = 0.0
    until: float = 0.0
    probing: bool = False
    calls_fail: bool = False  # whether a call failed or was throttled: then the answer of a lookup does not end the probing
    asked: bool = False  # whether the service is probed because it asked for a pause, and not because of failures
    tried_new: bool = False  # whether the last probe was for an untried record; then the next probe may be for any record
    together: int = 0  # limit on calls in flight after a pause, which each answer raises; 0 where no pause limits the calls
    back_at: float = 0.0  # time, in seconds, at which the service answered again after the last pause

    def record_success(self, now: float, times: int = 1) -> None:
        """Record that the service answered `times` calls.

        If the service is being probed, the answer ends the probing. After that each answer raises the limit on calls in flight by one.
        """
        self.failed.clear()
        self.pause_s = 0.0
        if self.probing:
            self.together, self.back_at = TOGETHER_FIRST, max(now, self.until)
        elif self.together:
            self.together += times
        self.probing = self.asked = self.calls_fail = self.tried_new = False

    def record_lookup_answer(self, now: float) -> None:
        """Record that a lookup was answered without an outcome: the service is up, but its calls may still fail.

        So the answer counts as a success only if no call failed since the last success.
        """
        self.tried_new = False
        if not self.calls_fail:
            self.record_success(now)

    def record_failure(self, record: object, now: float, *, lookup: bool = False, again: bool = False) -> None:
        """Record that the call for this record failed or is in doubt, or that its lookup raised.

        Failures of enough records in a row begin a pause, and a failed probe doubles the pause. If the service itself asked for the last
        pause, a failed probe counts as an ordinary failure: the service asked for time, and was not down.

        Args:
            record: identifies the record; several failures of one record count once.
            now: the time in seconds.
            lookup: whether a lookup failed, and not a call.
            again: whether the record had been tried before.
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
        """Record that the service asked for a pause of `wait_s` seconds. again: whether the call's record had been tried before."""
        self.tried_new = self.probing and not again
        self.until = max(self.until, now + wait_s)
        self.asked, self.probing, self.calls_fail = self.asked or not self.probing, True, True

    def calls_allowed(self, free: int, flying: int, now: float) -> int:
        """Return how many calls may be begun now: none in a pause, one at a time while probing, and gradually more afterwards.

        free: how many more calls the service's `limit=` allows now. flying: the number of calls in flight. now: the time in seconds.
        """
        if now < self.until:
            return 0
        if self.probing:
            return 1 if flying == 0 and free > 0 else 0
        if not self.together:
            return free
        together = max(self.together, TOGETHER_FIRST << min(self._doublings_since_recovery(now), 30))
        if together >= flying + free:
            self.together, self.until, self.back_at = 0, 0.0, 0.0
            return free
        return min(free, max(together - flying, 0))

    def more_allowed_at(self, now: float) -> float | None:
        """Return the time, in seconds, after which more calls may be begun even if none is answered; None if only an answer allows more."""
        if now < self.until:
            return self.until
        return self.back_at + (self._doublings_since_recovery(now) + 1) * DOUBLES_EACH_S if self.together else None

    def _doublings_since_recovery(self, now: float) -> int:
        """Return how often the limit on calls in flight has doubled in the time since the service answered again."""
        return max(int((now - self.back_at) / DOUBLES_EACH_S), 0)

    @property
    def is_open(self) -> bool:
        """Return whether the Breaker is open: no calls are allowed, or only one probe at a time."""
        return self.probing

    @property
    def wants_untried_record(self) -> bool:
        """Return whether the next probe should be a call for a record that has not been tried yet, if such a record waits."""
        return self.probing and not self.tried_new
