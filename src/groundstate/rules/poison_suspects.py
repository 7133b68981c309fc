"""Decides which attempts are suspected of killing their worker, and so are carried out alone in careful mode (hazard 25, rules.md 30).
Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

STRETCH = timedelta(minutes=10)  # two unclean ends of workers within it start careful mode, and this long without one ends it
UNCLEAN_ENDS = 2  # unclean ends within STRETCH that start careful mode
TOGETHER = 64  # records that may be in progress at once in careful mode: the next unclean end suspects no more than these
DIED = "its worker ended while it was carried out"
_LIVES = re.compile(r"\(workers ([0-9a-f]+(?:, [0-9a-f]+)*)\)$")
_TOLD_MOST = 8  # worker ends that the `why` of an attempt lists, the latest ones


@dataclass(frozen=True, slots=True)
class Care:
    """Care says whether all workers of an app on this database are in careful mode now. ends: the worker incarnations that ended uncleanly,
    as far as they are remembered.
    """

    careful: bool = False
    ends: frozenset[int] = frozenset()

    def alone(self, why: str | None, *, has_call: bool) -> bool:
        """Return whether an attempt is suspected, by its `why`, so that nothing else may be in progress in its worker.

        It is suspected if it was in progress at two unclean ends. Without a call one end is enough, because nothing recorded that it was in
        progress at the ends that started careful mode.
        """
        return self.careful and suspected(self.ends.intersection(ends_met(why)), has_call=has_call)


def suspected(ends: Iterable[int], *, has_call: bool) -> bool:
    """Return whether an attempt in progress at these unclean ends is suspected. If it is in progress alone at one more end, it is held."""
    return len(set(ends)) >= (UNCLEAN_ENDS if has_call else 1)


def care(ends: Iterable[datetime], now: datetime) -> Care:
    """Return whether careful mode is on, by the times of the unclean ends still remembered. An end far in the future was recorded by a
    wrong clock and is ignored.
    """
    latest = sorted(end for end in ends if end <= now + STRETCH)[-UNCLEAN_ENDS:]
    close = len(latest) == UNCLEAN_ENDS and latest[-1] - latest[0] <= STRETCH
    return Care(careful=close and now - latest[-1] < STRETCH)


def ended_under(ends: Sequence[int], *, alone: bool = False) -> str:
    """Return the `why` of an attempt in progress when these workers ended, the latest last. alone: at the last end it was the only one."""
    times = f", {len(ends)} times" if len(ends) > 1 else ""
    last = ", the last time alone" if alone else ""
    return f"{DIED}{times}{last} (workers {', '.join(f'{life:x}' for life in ends[-_TOLD_MOST:])})"


def ends_met(why: str | None) -> list[int]:
    """Return the worker incarnations at whose unclean end an attempt with this `why` was in progress."""
    told = _LIVES.search(why) if why is not None and why.startswith(DIED) else None
    return [] if told is None else [int(one, 16) for one in told.group(1).split(", ")]
