"""Lists the workers that a database knows, and tells by each worker's lock whether it is alive. It only reads, and takes no lock."""

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

ADOPTABLE = ("begun", "doubt")  # the states of attempts that a worker takes over from a worker that ended
LOCKS_SHOWN = 5  # the most waits for locks that are described, and the most records that each description names


@dataclass(frozen=True)
class WorkerSeen:
    """A worker incarnation (a worker from taking its lock to losing it) that has a row or an attempt in this database.

    Attributes:
        alive: Whether its lock is held; None if this cannot be seen (on a standby, or if a lock file is not readable), or is not known yet.
        host: Its host; None if the incarnation ended cleanly and deleted its row, so that only its attempts are left.
        ended_at: When another worker found that the incarnation had ended uncleanly; None if no worker found that.
        left: The number of its attempts that are begun or in doubt.
        server: JSON that identifies the server on which the incarnation took its lock, and says when that server was started; None on
        SQLite, and for workers of older versions.
        known_in_s: In at most this number of seconds it will be known whether the incarnation is alive. The value is set only if a restart
        or change of the server has freed the lock; otherwise it is None.
        says: What it reports of itself; empty if it is not alive.
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
    def has_ended_cleanly(self) -> bool:
        """Return whether the worker ended cleanly and so deleted its row.

        If attempts of the worker are left, their calls were cut off at its end, or they were in doubt already.
        """
        return self.host is None and self.pid is None and self.began_at is None


# the columns of a worker's row whose values are copied unchanged to the fields of the same names
_TOLD = {one.name for one in fields(WorkerSeen)} - {"says"}


def liveness_in_words(one: WorkerSeen) -> str:
    """Return a phrase that says whether a worker is alive, or how it ended."""
    if one.ended_at is not None:
        return "ended uncleanly, adopted"
    if one.known_in_s is not None:
        return f"alive or ended: {attempt_text.liveness_known_in(one.known_in_s)}"
    if one.alive is None:
        return "cannot be seen"
    if one.alive:
        return "lives, and drains" if one.says.drains else "lives, and waits for a go (--wait-for-go)" if one.says.waits_for_go else "lives"
    return f"ended, and left {_calls_in_words(one.left)} in doubt" if one.has_ended_cleanly else "ended uncleanly"


def read_workers(database: Database, connection: Connection, liveness: Liveness) -> list[WorkerSeen]:
    """Return every worker incarnation that has a row, or an attempt that is begun or in doubt."""
    attempt = tables.attempt
    rows = sorted(corrupt_rows.read_worker_rows(database, connection), key=lambda row: row["began_at"] or LONG_AGO)
    standing = select(attempt.c.worker, func.count(), func.min(attempt.c.app), func.max(attempt.c.app))
    left, apps = dict[Any, int](), dict[Any, str | None]()
    for incarnation, count, first, last in connection.execute(standing.where(attempt.c.state.in_(ADOPTABLE)).group_by(attempt.c.worker)):
        left[incarnation], apps[incarnation] = count, str(first) if first == last else None
    strangers = sorted(raw_cells.possible_incarnation_ids(list(left)) - {row["id"] for row in rows})
    seen = read_liveness(liveness, [row["id"] for row in rows if row["ended_at"] is None] + strangers)
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


def workers_of_app(app: str, seen: Sequence[WorkerSeen]) -> list[WorkerSeen]:
    """Return the workers of this app, and the workers whose app is not known.

    Workers of other apps are left out: they may take over attempts of this app, but they carry out none of its reactions.
    """
    return [one for one in seen if one.app is None or one.app == app]


def reactions_that_all_workers_lack(seen: Sequence[WorkerSeen]) -> dict[str, str]:
    """Return the reactions that none of the workers carries out, as a dict from name to the reason that the workers report. Workers that
    begin no new work are not considered.

    Some reasons are found only by a worker, such as a privilege that its database role lacks.
    """
    each = [{one.reaction: one.why for one in incarnation.says.lacks} for incarnation in workers_that_begin_work(seen)]
    return {name: why for name, why in each[0].items() if all(name in other for other in each)} if each else {}


def handler_locks_in_words(seen: Sequence[WorkerSeen]) -> list[str]:
    """Return a sentence for each lock of another transaction for which the handlers of these workers wait; the last one counts the rest."""
    found = list(dict.fromkeys(lock for incarnation in seen for lock in incarnation.says.locks))
    words = []
    for lock in found[:LOCKS_SHOWN]:
        records = f" on {', '.join(lock.records[:LOCKS_SHOWN])}" + (", ..." if len(lock.records) > LOCKS_SHOWN else "")
        words.append(f"{lock.reaction}{records if lock.records else ''} waits: {lock.why}; it is tried again by itself.")
    return words + ([f"And {len(found) - LOCKS_SHOWN:,} more wait for locks."] if len(found) > LOCKS_SHOWN else [])


def workers_that_begin_work(seen: Sequence[WorkerSeen]) -> list[WorkerSeen]:
    """Return the workers that may be alive and that begin new work."""
    return [one for one in seen if one.alive is not False and not (one.says.waits_for_go or one.says.drains)]


def mark_possible_reconnects(database: Database, connection: Connection, found: Sequence[WorkerSeen]) -> list[WorkerSeen]:
    """Return the workers, with `alive` set to None for each worker that may still reconnect after a restart of the server freed its lock.

    Workers have some seconds after the server's start to reconnect. The first worker that has reconnected waits some seconds for the other
    workers. If no worker is connected when these seconds are over, all workers count as dead.
    """
    freed = [one.id for one in found if one.alive is False and one.ended_at is None and one.server is not None]
    if not freed:
        return list(found)
    here, up_s = connection.execute(select(database.server_start, database.uptime_s)).one()
    left_s = RECONNECT.total_seconds() - (up_s or 0.0)
    if left_s <= 0 and not any(one.alive and one.server == here for one in found):
        return list(found)
    known_in_s = left_s if left_s > 0 else RECONNECT.total_seconds()
    return [replace(one, alive=None, known_in_s=known_in_s) if one.id in freed and one.server != here else one for one in found]


class LivenessById(dict[int, bool | None]):
    """Maps each worker's id to its `WorkerSeen.alive`. `known_in_s` has, for some ids, the seconds until it is known whether that worker is
    alive.
    """

    def __init__(self, seen: Sequence[WorkerSeen]) -> None:
        super().__init__((one.id, one.alive) for one in seen)
        self.known_in_s = {one.id: one.known_in_s for one in seen if one.known_in_s is not None}


def read_liveness(liveness: Liveness, wanted: Sequence[int]) -> dict[int, bool | None]:
    """Return a dict that says for each wanted id whether its lock is held. The values are None if this user may not open the lock file."""
    if not wanted:
        return {}
    try:
        return liveness.alive_by_worker(list(wanted))
    except OSError:  # a lock file that this user may not open
        return dict.fromkeys(wanted)


def lock_in_words(database: Database) -> str:
    """Return a phrase that names the kind of lock by which it is known whether a worker is alive."""
    if database.name == "postgresql":
        return "PostgreSQL's advisory lock of each worker, which the server frees when the worker's connection is gone"
    return "the operating system's lock of each worker on the file beside the database, which it frees when the process is gone"


def is_careful(seen: Sequence[WorkerSeen], now: datetime) -> bool:
    """Return whether these workers are in careful mode now, since two of them ended uncleanly within some minutes (hazard 25)."""
    return careful_mode_of(seen, now).careful


def careful_mode_of(seen: Sequence[WorkerSeen], now: datetime) -> poison_suspects.Care:
    """Return the state of careful mode, with the ids of the workers that ended uncleanly."""
    ends = {one.id: one.ended_at for one in seen if one.ended_at is not None}
    return replace(poison_suspects.care_from_ends(ends.values(), now), ends=frozenset(ends))


def last_end_in_words(seen: Sequence[WorkerSeen]) -> str:
    """Return a clause (without a period) that says whether the last worker ended cleanly."""
    awaited = [one for one in seen if one.known_in_s is not None]
    over = [one for one in seen if one.alive is False and one.ended_at is None]
    dead, left = [one for one in over if not one.has_ended_cleanly], sum(one.left for one in over if one.has_ended_cleanly)
    adopted = [one.ended_at for one in seen if one.ended_at is not None]
    unseen = [one for one in seen if one.alive is None]
    if awaited:
        known_in = attempt_text.liveness_known_in(max(one.known_in_s or 0.0 for one in awaited))
        return f"{_workers_in_words(awaited)} may be alive or have ended: {known_in}"
    if dead:
        return f"{_workers_in_words(dead)} ended uncleanly, and the next worker to start, or one that runs, adopts what is left"
    if left:
        return f"the last worker ended, and left {_calls_in_words(left)} in doubt, which the next worker to start, or one that runs, adopts"
    if unseen:
        return "whether the last worker ended cleanly cannot be seen from here"
    if adopted:
        last = f"{max(adopted):%Y-%m-%d %H:%M:%S}Z"
        return f"{_workers_in_words(adopted)} ended uncleanly, the last seen at {last}, and what was left is adopted"
    if seen:
        return "no worker ended uncleanly in the last minutes"
    return "the last worker ended cleanly, or none has been here"


def _calls_in_words(count: int) -> str:
    return "1 call" if count == 1 else f"{count:,} calls"


def _workers_in_words(some: Sequence[object]) -> str:
    return "1 worker" if len(some) == 1 else f"{len(some)} workers"
