"""Careful mode: who is suspected after lives ended uncleanly, and is carried out alone (hazard 25, rules.md 30). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

STRETCH = timedelta(minutes=10)  # two unclean ends within it make careful; a clean stretch of it ends careful mode
UNCLEAN_ENDS = 2
TOGETHER = 64  # records that may be under way together, so that no more than these are suspected by the next end
DIED = "its worker ended while it was carried out"
_LIVES = re.compile(r"\(lives ([0-9a-f]+(?:, [0-9a-f]+)*)\)$")
_TOLD_MOST = 8  # ends of which an attempt tells, the latest


@dataclass(frozen=True, slots=True)
class Care:
    """Whether all lives of an app on the store are careful now. ends: the lives that ended uncleanly, as far as that is remembered."""

    careful: bool = False
    ends: frozenset[int] = frozenset()

    def alone(self, why: str | None, *, has_call: bool) -> bool:
        """Whether an attempt is suspected, by its `why`: it was under way at both ends that made careful, or, where nothing tells of those
        since it makes no call, at one since. Then nothing else is under way in its worker.
        """
        return self.careful and suspected(self.ends.intersection(ends_met(why)), has_call=has_call)


def suspected(ends: Iterable[int], *, has_call: bool) -> bool:
    """Whether who was under way at these ends is suspected; if he is alone at one more, he is held."""
    return len(set(ends)) >= (UNCLEAN_ENDS if has_call else 1)


def care(ends: Iterable[datetime], now: datetime) -> Care:
    """By the unclean ends that are still remembered. One that lies ahead was told by a clock that stood wrong, and says nothing."""
    latest = sorted(end for end in ends if end <= now + STRETCH)[-UNCLEAN_ENDS:]
    close = len(latest) == UNCLEAN_ENDS and latest[-1] - latest[0] <= STRETCH
    return Care(careful=close and now - latest[-1] < STRETCH)


def ended_under(ends: Sequence[int], *, alone: bool = False) -> str:
    """The `why` of an attempt that was under way when these lives ended, the latest last. alone: and nothing else was, at the last."""
    times = f", {len(ends)} times" if len(ends) > 1 else ""
    last = ", the last time alone" if alone else ""
    return f"{DIED}{times}{last} (lives {', '.join(f'{life:x}' for life in ends[-_TOLD_MOST:])})"


def ends_met(why: str | None) -> list[int]:
    """The lives at whose end an attempt with this `why` was under way."""
    told = _LIVES.search(why) if why is not None and why.startswith(DIED) else None
    return [] if told is None else [int(one, 16) for one in told.group(1).split(", ")]
