"""Decides which attempts are suspected of killing their worker. In careful mode a worker carries out a suspected attempt alone (hazard 25).

The functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

# Careful mode starts after two unclean ends of workers within this time. It stops after this time without another unclean end.
STRETCH = timedelta(minutes=10)
UNCLEAN_ENDS = 2  # number of unclean ends of workers within STRETCH that start careful mode
TOGETHER = 64  # number of records that may be in progress at once in careful mode, so that few are suspected after the next unclean end
DIED = "its worker ended while it was carried out"
_LIVES = re.compile(r"\(workers ([0-9a-f]+(?:, [0-9a-f]+)*)\)$")
_TOLD_MOST = 8  # how many ended workers the `why` of an attempt names; older ones are left out


@dataclass(frozen=True, slots=True)
class Care:
    """Care says whether the workers of an app on this database are in careful mode now.

    ends: the worker incarnations (each a worker from taking its lock to losing it) that ended uncleanly and are still remembered.
    """

    careful: bool = False
    ends: frozenset[int] = frozenset()

    def must_run_alone(self, why: str | None, *, has_call: bool) -> bool:
        """Return whether an attempt with this `why` is suspected of killing its worker, so that it must run alone in its worker.

        It is suspected if it was in progress at two unclean ends of workers. For an attempt without a call one end is enough, since
        outside careful mode such an attempt is not recorded.
        """
        return self.careful and is_suspected(self.ends.intersection(worker_ends_in_why(why)), has_call=has_call)


def is_suspected(ends: Iterable[int], *, has_call: bool) -> bool:
    """Return whether an attempt that was in progress at these unclean ends of workers is suspected of having caused them."""
    return len(set(ends)) >= (UNCLEAN_ENDS if has_call else 1)


def care_from_ends(ends: Iterable[datetime], now: datetime) -> Care:
    """Return a Care that says whether careful mode is on, given the times of the remembered unclean ends; it leaves `Care.ends` empty.

    An end far in the future is ignored, since a wrong clock recorded it.
    """
    latest = sorted(end for end in ends if end <= now + STRETCH)[-UNCLEAN_ENDS:]
    close = len(latest) == UNCLEAN_ENDS and latest[-1] - latest[0] <= STRETCH
    return Care(careful=close and now - latest[-1] < STRETCH)


def why_for_ended_workers(ends: Sequence[int], *, alone: bool = False) -> str:
    """Return the text for the `why` of an attempt that was in progress when these workers ended.

    ends: the incarnations of the workers, the latest last. alone: whether nothing else was in progress at the last end.
    """
    times = f", {len(ends)} times" if len(ends) > 1 else ""
    last = ", the last time alone" if alone else ""
    return f"{DIED}{times}{last} (workers {', '.join(f'{life:x}' for life in ends[-_TOLD_MOST:])})"


def worker_ends_in_why(why: str | None) -> list[int]:
    """Return the incarnations of the workers that ended while an attempt with this `why` was in progress; empty for any other `why`."""
    told = _LIVES.search(why) if why is not None and why.startswith(DIED) else None
    return [] if told is None else [int(one, 16) for one in told.group(1).split(", ")]
