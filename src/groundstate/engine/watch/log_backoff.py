"""Decides when a lasting problem is logged: at once, and then again after pauses that double, up to a minute."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_S = 1.0
LONGEST_S = 60.0
WORDS_MOST = 20  # how many different texts about one problem are logged without a pause


@dataclass
class RepeatedTrouble:
    """Remembers what was logged about one problem, from the beginning of the problem to its end."""

    _gap_s: float = FIRST_S
    _next: float = 0.0
    _said: set[str] = field(default_factory=set)

    def is_new(self, words: str) -> bool:
        """Return True if this text was not logged yet."""
        return words not in self._said

    def is_due_to_be_logged(self, words: str, now: float) -> bool:
        """Return whether to log this text now: at once if it is new, else after a pause. now: monotonic time in seconds."""
        if words not in self._said and len(self._said) < WORDS_MOST:
            self._said.add(words)
            self._next = max(self._next, now + self._gap_s)
            return True
        if now < self._next:
            return False
        self._gap_s = min(self._gap_s * 2, LONGEST_S)
        self._next = now + self._gap_s
        return True
