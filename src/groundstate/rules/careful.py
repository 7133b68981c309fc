"""Careful mode: how many records may be carried out together after lives ended uncleanly (hazard 25, rules.md 30). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

STRETCH = timedelta(minutes=10)  # two unclean ends within it make careful; a clean stretch of it ends careful mode
UNCLEAN_ENDS = 2
TOGETHER = 64  # records a careful batch starts with; halved at each death under it


@dataclass(frozen=True, slots=True)
class Care:
    """Whether all lives on the store are careful now."""

    careful: bool = False

    def together(self, before: int) -> int:
        """How many may be carried out together with a record that was among `before` when its worker ended; 0: never was."""
        return TOGETHER if before <= 0 else max(before // 2, 1)


def care(ends: Iterable[datetime], now: datetime) -> Care:
    """By the unclean ends that are still remembered. One that lies ahead was told by a clock that stood wrong, and says nothing."""
    latest = sorted(end for end in ends if end <= now + STRETCH)[-UNCLEAN_ENDS:]
    close = len(latest) == UNCLEAN_ENDS and latest[-1] - latest[0] <= STRETCH
    return Care(careful=close and now - latest[-1] < STRETCH)
