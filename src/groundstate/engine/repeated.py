"""When something that goes on is said again in the log: at once, then at gaps that double, up to a minute."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_S = 1.0
LONGEST_S = 60.0
WORDS_MOST = 20  # of one trouble that are each said at once


@dataclass
class Repeated:
    """Of one trouble, from its beginning to its end."""

    _gap_s: float = FIRST_S
    _next: float = 0.0
    _said: set[str] = field(default_factory=set)

    def is_new(self, words: str) -> bool:
        """Whether these were not said yet."""
        return words not in self._said

    def may_say(self, words: str, now: float) -> bool:
        """Whether this is said now. Other words than those before are said at once."""
        if words not in self._said and len(self._said) < WORDS_MOST:
            self._said.add(words)
            self._next = max(self._next, now + self._gap_s)
            return True
        if now < self._next:
            return False
        self._gap_s = min(self._gap_s * 2, LONGEST_S)
        self._next = now + self._gap_s
        return True
