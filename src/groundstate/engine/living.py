"""Which lives this database knows, and by which lock each is told to be alive. Reads alone, and takes no lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from groundstate.engine import cells, illegible
from groundstate.engine.begin import LONG_AGO
from groundstate.rules import careful
from groundstate.store import tables
from groundstate.store.port import Database, Lives

ADOPTABLE = ("begun", "doubt")


@dataclass(frozen=True)
class LifeSeen:
    """A life that left something here. alive: by its lock; None where that cannot be seen (a standby, a lock file not readable)."""

    life: int
    alive: bool | None
    host: str | None = None  # None: it has no row any more, and attempts of it are left
    pid: int | None = None
    began_at: datetime | None = None
    ended_at: datetime | None = None  # ended uncleanly, and adopted then
    begins: int | None = 0
    app: str | None = None


def lives_of(database: Database, connection: Connection, lives: Lives) -> list[LifeSeen]:
    """Every life that left a row, or an attempt that is begun or in doubt."""
    attempt = tables.attempt
    rows = sorted(illegible.read_lives(database, connection), key=lambda row: row["began_at"] or LONG_AGO)
    left = connection.execute(select(attempt.c.worker).where(attempt.c.state.in_(ADOPTABLE)).distinct()).scalars().all()
    strangers = sorted(cells.lives_among(left) - {row["life"] for row in rows})
    seen = alive_of(lives, [row["life"] for row in rows if row["ended_at"] is None] + strangers)
    found = [LifeSeen(alive=False if row["ended_at"] is not None else seen[row["life"]], **row) for row in rows]
    return [*found, *(LifeSeen(life, seen[life]) for life in strangers)]


def alive_of(lives: Lives, wanted: Sequence[int]) -> dict[int, bool | None]:
    """Whether each one's lock is taken; None where this user may not look."""
    if not wanted:
        return {}
    try:
        return lives.alive(list(wanted))
    except OSError:  # a lock file that this user may not open
        return dict.fromkeys(wanted)


def lock_in_words(database: Database) -> str:
    """The lock that tells who is alive."""
    if database.name == "postgresql":
        return "PostgreSQL's advisory lock of each life, which the server frees when the life's connection is gone"
    return "the operating system's lock of each life on the file beside the database, which it frees when the process is gone"


def is_careful(seen: Sequence[LifeSeen], now: datetime) -> bool:
    """Whether two lives ended uncleanly within some minutes, so that all are careful now (hazard 25)."""
    return careful.care([one.ended_at for one in seen if one.ended_at is not None], now).careful


def last_end_in_words(seen: Sequence[LifeSeen]) -> str:
    """Whether the last life ended cleanly."""
    dead = [one for one in seen if one.alive is False and one.ended_at is None]
    adopted = [one.ended_at for one in seen if one.ended_at is not None]
    unseen = [one for one in seen if one.alive is None]
    if dead:
        return f"{_so_many(dead)} ended uncleanly, and the next worker to start, or one that runs, adopts what is left"
    if unseen:
        return "whether the last life ended cleanly cannot be seen from here"
    if adopted:
        return f"{_so_many(adopted)} ended uncleanly, the last seen at {max(adopted):%Y-%m-%d %H:%M:%S}Z, and what was left is adopted"
    if seen:
        return "no life ended uncleanly in the last minutes"
    return "the last life ended cleanly, or none has been here"


def _so_many(lives: Sequence[object]) -> str:
    return "1 life" if len(lives) == 1 else f"{len(lives)} lives"
