"""When a trouble that goes on is logged again: at once, then at gaps that double, up to a minute."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_S = 1.0
LONGEST_S = 60.0
WORDS_MOST = 20  # different texts of one trouble that are logged at once


@dataclass
class Repeated:
    """What was logged about one trouble, from its beginning to its end."""

    _gap_s: float = FIRST_S
    _next: float = 0.0
    _said: set[str] = field(default_factory=set)

    def is_new(self, words: str) -> bool:
        """Return whether this text was not logged yet."""
        return words not in self._said

    def may_say(self, words: str, now: float) -> bool:
        """Return whether this text is logged now. A text that was not logged yet is logged at once."""
        if words not in self._said and len(self._said) < WORDS_MOST:
            self._said.add(words)
            self._next = max(self._next, now + self._gap_s)
            return True
        if now < self._next:
            return False
        self._gap_s = min(self._gap_s * 2, LONGEST_S)
        self._next = now + self._gap_s
        return True
