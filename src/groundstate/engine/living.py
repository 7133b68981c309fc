"""Which lives this database knows, and by which lock each is told to be alive. Reads alone, and takes no lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from groundstate.engine import cells, illegible, says, wording
from groundstate.engine.life import RECONNECT
from groundstate.engine.says import Says
from groundstate.rules import careful
from groundstate.rules.policy import LONG_AGO
from groundstate.store import tables
from groundstate.store.port import Database, Lives

ADOPTABLE = ("begun", "doubt")


@dataclass(frozen=True)
class LifeSeen:
    """A life that left something here.

    alive: by its lock; None where that cannot be seen (a standby, a lock file not readable), or not yet: `known_in_s`.
    known_in_s: in how many seconds at most it is known, where its lock was freed because the server was started anew, or is another one.
    server: on which its lock was taken, as JSON; None on SQLite, and of lives of older code.
    says: what it says of itself, where it lives.
    """

    life: int
    alive: bool | None
    host: str | None = None  # None: it has no row any more, so it said that it is over, and attempts of it are left
    pid: int | None = None
    began_at: datetime | None = None
    ended_at: datetime | None = None  # ended uncleanly, and adopted then
    begins: int | None = 0
    app: str | None = None
    left: int = 0  # its attempts that are begun or in doubt
    server: str | None = None
    known_in_s: float | None = None
    says: Says = says.NOTHING

    @property
    def said_so(self) -> bool:
        """Whether it ended by its own word: what it left then was cut off by a drain, or was in doubt already."""
        return self.host is None and self.pid is None and self.began_at is None


_TOLD = {one.name for one in fields(LifeSeen)} - {"says"}  # of a row's columns


def is_in_words(one: LifeSeen) -> str:
    """What became of a life."""
    if one.ended_at is not None:
        return "ended uncleanly, adopted"
    if one.known_in_s is not None:
        return f"alive or ended: {wording.known_in(one.known_in_s)}"
    if one.alive is None:
        return "cannot be seen"
    if one.alive:
        return "lives, and drains" if one.says.drains else "lives, and waits for a go (--held)" if one.says.held else "lives"
    return f"ended, and left {_calls(one.left)} in doubt" if one.said_so else "ended uncleanly"


def lives_of(database: Database, connection: Connection, lives: Lives) -> list[LifeSeen]:
    """Every life that left a row, or an attempt that is begun or in doubt."""
    attempt = tables.attempt
    rows = sorted(illegible.read_lives(database, connection), key=lambda row: row["began_at"] or LONG_AGO)
    standing = select(attempt.c.worker, func.count(), func.min(attempt.c.app), func.max(attempt.c.app))
    left, apps = dict[Any, int](), dict[Any, str | None]()
    for life, count, first, last in connection.execute(standing.where(attempt.c.state.in_(ADOPTABLE)).group_by(attempt.c.worker)):
        left[life], apps[life] = count, str(first) if first == last else None
    strangers = sorted(cells.lives_among(list(left)) - {row["life"] for row in rows})
    seen = alive_of(lives, [row["life"] for row in rows if row["ended_at"] is None] + strangers)
    found = [
        LifeSeen(
            alive=False if row["ended_at"] is not None else seen[row["life"]],
            left=left.get(row["life"], 0),
            says=says.read(row["says"]) if seen.get(row["life"]) else says.NOTHING,
            **{name: value for name, value in row.items() if name in _TOLD},
        )
        for row in rows
    ]
    found = may_return(database, connection, found)
    return [*found, *(LifeSeen(life, seen[life], left=left.get(life, 0), app=apps.get(life)) for life in strangers)]


def of_app(app: str, seen: Sequence[LifeSeen]) -> list[LifeSeen]:
    """Those that are of this app, or of which that is not known. Others adopt what it left, and carry out nothing of it."""
    return [one for one in seen if one.app is None or one.app == app]


def lacked(seen: Sequence[LifeSeen]) -> dict[str, str]:
    """By reaction, why none of these carries it out, where each that is able says so: only a worker meets what it has no right to."""
    each = [{one.reaction: one.why for one in life.says.lacks} for life in able(seen)]
    return {name: why for name, why in each[0].items() if all(name in other for other in each)} if each else {}


def able(seen: Sequence[LifeSeen]) -> list[LifeSeen]:
    """Those that may live, and begin something new."""
    return [one for one in seen if one.alive is not False and not (one.says.held or one.says.drains)]


def may_return(database: Database, connection: Connection, found: Sequence[LifeSeen]) -> list[LifeSeen]:
    """The same, where those whose lock was freed by a start of the server are told as such for as long as they may come back.

    That is some seconds from the server's start. After that they are awaited by a worker that is there already, for some seconds from when
    it came; where none is there, nobody came back.
    """
    freed = [one.life for one in found if one.alive is False and one.ended_at is None and one.server is not None]
    if not freed:
        return list(found)
    here, up_s = connection.execute(select(database.incarnation, database.up_s)).one()
    left_s = RECONNECT.total_seconds() - (up_s or 0.0)
    if left_s <= 0 and not any(one.alive and one.server == here for one in found):
        return list(found)
    known_in_s = left_s if left_s > 0 else RECONNECT.total_seconds()
    return [replace(one, alive=None, known_in_s=known_in_s) if one.life in freed and one.server != here else one for one in found]


class WhoLives(dict[int, bool | None]):
    """Of each life whether it is alive, as `LifeSeen.alive`; and of some in how many seconds that is known."""

    def __init__(self, seen: Sequence[LifeSeen]) -> None:
        super().__init__((one.life, one.alive) for one in seen)
        self.known_in_s = {one.life: one.known_in_s for one in seen if one.known_in_s is not None}


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
    return care_of(seen, now).careful


def care_of(seen: Sequence[LifeSeen], now: datetime) -> careful.Care:
    """The same, with the lives that ended so."""
    ends = {one.life: one.ended_at for one in seen if one.ended_at is not None}
    return replace(careful.care(ends.values(), now), ends=frozenset(ends))


def last_end_in_words(seen: Sequence[LifeSeen]) -> str:
    """Whether the last life ended cleanly."""
    awaited = [one for one in seen if one.known_in_s is not None]
    over = [one for one in seen if one.alive is False and one.ended_at is None]
    dead, left = [one for one in over if not one.said_so], sum(one.left for one in over if one.said_so)
    adopted = [one.ended_at for one in seen if one.ended_at is not None]
    unseen = [one for one in seen if one.alive is None]
    if awaited:
        return f"{_so_many(awaited)} may be alive or have ended: {wording.known_in(max(one.known_in_s or 0.0 for one in awaited))}"
    if dead:
        return f"{_so_many(dead)} ended uncleanly, and the next worker to start, or one that runs, adopts what is left"
    if left:
        return f"the last life ended, and left {_calls(left)} in doubt, which the next worker to start, or one that runs, adopts"
    if unseen:
        return "whether the last life ended cleanly cannot be seen from here"
    if adopted:
        return f"{_so_many(adopted)} ended uncleanly, the last seen at {max(adopted):%Y-%m-%d %H:%M:%S}Z, and what was left is adopted"
    if seen:
        return "no life ended uncleanly in the last minutes"
    return "the last life ended cleanly, or none has been here"


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count:,} calls"


def _so_many(lives: Sequence[object]) -> str:
    return "1 life" if len(lives) == 1 else f"{len(lives)} lives"
