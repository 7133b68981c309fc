"""Lists the worker incarnations that a database knows, and whether each is alive by its lock. It only reads, and takes no lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from groundstate.engine.rows import attempt_text, corrupt_rows, worker_report
from groundstate.engine.rows.incarnation import RECONNECT
from groundstate.engine.rows.worker_report import WorkerReport
from groundstate.engine.sql import raw_cells
from groundstate.rules import poison_suspects
from groundstate.rules.policy import LONG_AGO
from groundstate.store import tables
from groundstate.store.port import Database, Liveness

ADOPTABLE = ("begun", "doubt")  # the states in which a worker adopts an attempt of an ended one


@dataclass(frozen=True)
class WorkerSeen:
    """A worker incarnation that left a row or an attempt in this database.

    Attributes:
        alive: Whether its lock is held; None if that cannot be seen (a standby, a lock file that is not readable), or is not known yet.
        host: Its host; None if it has no row, since it ended cleanly and only attempts of it are left.
        ended_at: When it was adopted, after it had ended uncleanly.
        left: The number of its attempts that are begun or in doubt.
        server: The start of the server on which it took its lock, as JSON; None on SQLite, and for incarnations of older code.
        known_in_s: Seconds until `alive` is known at the latest, if its lock was freed since the server was restarted or replaced.
        says: What it reports of itself, if it is alive.
    """

    id: int
    alive: bool | None
    host: str | None = None
    pid: int | None = None
    began_at: datetime | None = None
    ended_at: datetime | None = None
    begins: int | None = 0
    app: str | None = None
    left: int = 0
    server: str | None = None
    known_in_s: float | None = None
    says: WorkerReport = worker_report.NOTHING

    @property
    def said_so(self) -> bool:
        """Whether it ended cleanly and deleted its row. Attempts that it left were cut off by a drain, or were in doubt before."""
        return self.host is None and self.pid is None and self.began_at is None


_TOLD = {one.name for one in fields(WorkerSeen)} - {"says"}  # the columns of a worker's row that are passed on as they are


def is_in_words(one: WorkerSeen) -> str:
    """Return the phrase that says whether a worker incarnation is alive, or how it ended."""
    if one.ended_at is not None:
        return "ended uncleanly, adopted"
    if one.known_in_s is not None:
        return f"alive or ended: {attempt_text.known_in(one.known_in_s)}"
    if one.alive is None:
        return "cannot be seen"
    if one.alive:
        return "lives, and drains" if one.says.drains else "lives, and waits for a go (--wait-for-go)" if one.says.waits_for_go else "lives"
    return f"ended, and left {_calls(one.left)} in doubt" if one.said_so else "ended uncleanly"


def workers_of(database: Database, connection: Connection, liveness: Liveness) -> list[WorkerSeen]:
    """Return every worker incarnation that left a row, or an attempt that is begun or in doubt."""
    attempt = tables.attempt
    rows = sorted(corrupt_rows.read_worker_rows(database, connection), key=lambda row: row["began_at"] or LONG_AGO)
    standing = select(attempt.c.worker, func.count(), func.min(attempt.c.app), func.max(attempt.c.app))
    left, apps = dict[Any, int](), dict[Any, str | None]()
    for incarnation, count, first, last in connection.execute(standing.where(attempt.c.state.in_(ADOPTABLE)).group_by(attempt.c.worker)):
        left[incarnation], apps[incarnation] = count, str(first) if first == last else None
    strangers = sorted(raw_cells.lives_among(list(left)) - {row["id"] for row in rows})
    seen = alive_of(liveness, [row["id"] for row in rows if row["ended_at"] is None] + strangers)
    found = [
        WorkerSeen(
            alive=False if row["ended_at"] is not None else seen[row["id"]],
            left=left.get(row["id"], 0),
            says=worker_report.report_from_json(row["says"]) if seen.get(row["id"]) else worker_report.NOTHING,
            **{name: value for name, value in row.items() if name in _TOLD},
        )
        for row in rows
    ]
    found = mark_possible_reconnects(database, connection, found)
    return [
        *found,
        *(
            WorkerSeen(incarnation, seen[incarnation], left=left.get(incarnation, 0), app=apps.get(incarnation))
            for incarnation in strangers
        ),
    ]


def of_app(app: str, seen: Sequence[WorkerSeen]) -> list[WorkerSeen]:
    """Return the workers of this app, and those whose app is not known.

    Workers of other apps adopt its attempts, but carry out none of its reactions.
    """
    return [one for one in seen if one.app is None or one.app == app]


def lacked(seen: Sequence[WorkerSeen]) -> dict[str, str]:
    """Return the reactions that no able worker carries out, each with the reason that the workers report.

    Some reasons only a worker finds, such as a privilege that it lacks.
    """
    each = [{one.reaction: one.why for one in incarnation.says.lacks} for incarnation in able(seen)]
    return {name: why for name, why in each[0].items() if all(name in other for other in each)} if each else {}


def able(seen: Sequence[WorkerSeen]) -> list[WorkerSeen]:
    """Return the workers that may be alive and that begin new work."""
    return [one for one in seen if one.alive is not False and not (one.says.waits_for_go or one.says.drains)]


def mark_possible_reconnects(database: Database, connection: Connection, found: Sequence[WorkerSeen]) -> list[WorkerSeen]:
    """Return the workers, but with `alive` None for those that may still reconnect after a restart of the server freed their locks.

    They may reconnect for some seconds after the server's start. After that a worker that is connected already waits some seconds for them,
    from when it came; if there is none, no worker came back.
    """
    freed = [one.id for one in found if one.alive is False and one.ended_at is None and one.server is not None]
    if not freed:
        return list(found)
    here, up_s = connection.execute(select(database.server_start, database.up_s)).one()
    left_s = RECONNECT.total_seconds() - (up_s or 0.0)
    if left_s <= 0 and not any(one.alive and one.server == here for one in found):
        return list(found)
    known_in_s = left_s if left_s > 0 else RECONNECT.total_seconds()
    return [replace(one, alive=None, known_in_s=known_in_s) if one.id in freed and one.server != here else one for one in found]


class WhoLives(dict[int, bool | None]):
    """Maps each worker's id to its `WorkerSeen.alive`. `known_in_s` says for some of them in how many seconds that will be known."""

    def __init__(self, seen: Sequence[WorkerSeen]) -> None:
        super().__init__((one.id, one.alive) for one in seen)
        self.known_in_s = {one.id: one.known_in_s for one in seen if one.known_in_s is not None}


def alive_of(liveness: Liveness, wanted: Sequence[int]) -> dict[int, bool | None]:
    """Return for each wanted id whether its lock is held; None if this user may not open the lock file."""
    if not wanted:
        return {}
    try:
        return liveness.alive(list(wanted))
    except OSError:  # a lock file that this user may not open
        return dict.fromkeys(wanted)


def lock_in_words(database: Database) -> str:
    """Return the phrase that names the kind of lock which shows that a worker is alive."""
    if database.name == "postgresql":
        return "PostgreSQL's advisory lock of each worker, which the server frees when the worker's connection is gone"
    return "the operating system's lock of each worker on the file beside the database, which it frees when the process is gone"


def is_careful(seen: Sequence[WorkerSeen], now: datetime) -> bool:
    """Whether two workers ended uncleanly within some minutes, so that all are in careful mode now (hazard 25)."""
    return care_of(seen, now).careful


def care_of(seen: Sequence[WorkerSeen], now: datetime) -> poison_suspects.Care:
    """Return the state of careful mode, with the incarnations that ended uncleanly."""
    ends = {one.id: one.ended_at for one in seen if one.ended_at is not None}
    return replace(poison_suspects.care(ends.values(), now), ends=frozenset(ends))


def last_end_in_words(seen: Sequence[WorkerSeen]) -> str:
    """Return the sentence that says whether the last worker incarnation ended cleanly."""
    awaited = [one for one in seen if one.known_in_s is not None]
    over = [one for one in seen if one.alive is False and one.ended_at is None]
    dead, left = [one for one in over if not one.said_so], sum(one.left for one in over if one.said_so)
    adopted = [one.ended_at for one in seen if one.ended_at is not None]
    unseen = [one for one in seen if one.alive is None]
    if awaited:
        return f"{_so_many(awaited)} may be alive or have ended: {attempt_text.known_in(max(one.known_in_s or 0.0 for one in awaited))}"
    if dead:
        return f"{_so_many(dead)} ended uncleanly, and the next worker to start, or one that runs, adopts what is left"
    if left:
        return f"the last worker ended, and left {_calls(left)} in doubt, which the next worker to start, or one that runs, adopts"
    if unseen:
        return "whether the last worker ended cleanly cannot be seen from here"
    if adopted:
        return f"{_so_many(adopted)} ended uncleanly, the last seen at {max(adopted):%Y-%m-%d %H:%M:%S}Z, and what was left is adopted"
    if seen:
        return "no worker ended uncleanly in the last minutes"
    return "the last worker ended cleanly, or none has been here"


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count:,} calls"


def _so_many(some: Sequence[object]) -> str:
    return "1 worker" if len(some) == 1 else f"{len(some)} workers"
