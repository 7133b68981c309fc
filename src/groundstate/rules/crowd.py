"""How long one worker of several does well to keep out of a backlog. Pure.

Where more work at once than the database and the machine can bear, each waits for the others, and all together do less than a few would.
How long a batch took beside what its own thread had to do tells how much it was held up, and whoever was keeps out for about as long: so of
many as many go on as is good, without a word between them.
"""

from __future__ import annotations

ROWS_FROM = 50  # a smaller batch tells nothing
HELD_UP = 2.0  # times as long as its own work is what a batch takes on a database that has nothing else to do
KEEPS_OUT_MOST_S = 0.25


def keeps_out_s(took_s: float, worked_s: float, rows: int) -> float:
    """In seconds, after a batch of so many rows that took so long, of which the worker's own thread worked so long."""
    if rows < ROWS_FROM or worked_s <= 0:
        return 0.0
    return min(max(took_s / worked_s - HELD_UP, 0.0) * took_s, KEEPS_OUT_MOST_S)


def undisturbed_s(took_s: float, worked_s: float) -> float:
    """How long it would have taken, had nobody held it up: by which the size of batches is chosen."""
    return min(took_s, HELD_UP * worked_s) if worked_s > 0 else took_s
