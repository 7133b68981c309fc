"""Adoption: a worker that finds the lock of another worker free takes over the attempts of that dead worker. This module settles nothing.

A worker whose lock is taken is alive, and a worker whose lock is free is dead; neither a heartbeat nor a clock is used. But a restart of
the server, or a change to another server, frees all locks at once; and if this worker lost its own lock, other workers may have lost their
locks too. In both cases the workers have some seconds to take their locks again before they count as dead.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import and_, delete, or_, select, update

from groundstate.engine.rows import attempts
from groundstate.engine.rows.attempt_log import log_if_held, name_attempt
from groundstate.engine.rows.incarnation import (
    Incarnation,
    clause_left_to_adopt,
    incarnations_that_may_return,
    other_incarnations_with_remains,
)
from groundstate.engine.sql.db_errors import OtherServer, reading_own_rows
from groundstate.engine.sql.transaction import Transaction
from groundstate.engine.watch.idle_probe import IdleProbe
from groundstate.rules import attempt as rules
from groundstate.rules import poison_suspects
from groundstate.rules.attempt import Attempt, State
from groundstate.store import tables

log = logging.getLogger("groundstate")
AT_ONCE = 1000  # the most attempts adopted in one transaction
TOLD_MOST = 3  # the most records that a log line names


@dataclass(frozen=True)
class _Process:
    """The host and process id of a worker; both are None if its row is gone."""

    host: str | None = None
    pid: int | None = None


def _read_process(tx: Transaction, dead: int) -> _Process:
    row = tables.worker.c
    found = tx.connection.execute(select(row.host, row.pid).where(row.id == dead)).first()
    return _Process() if found is None else _Process(found.host, found.pid)


def adopt_all(incarnation: Incarnation) -> int:
    """Take over the attempts of every dead worker, and return how many attempts were changed."""
    strangers = other_incarnations_with_remains(incarnation)
    if not strangers:
        return 0
    count = 0
    seen = incarnation.liveness.alive_by_worker(strangers)
    dead = [stranger for stranger in strangers if seen.get(stranger) is not True]
    waits = incarnations_that_may_return(incarnation, dead)
    for stranger in dead:
        if stranger in waits:
            continue
        with incarnation.liveness.try_to_adopt(stranger) as is_dead:
            if is_dead:
                count += _adopt_attempts_of(incarnation, stranger)
    return count


def _adopt_attempts_of(incarnation: Incarnation, dead: int) -> int:
    count, said_so, who, records, others = 0, True, _Process(), list[str](), Counter[str]()
    while True:
        with incarnation.open_transaction() as tx:
            who = who if count else _read_process(tx, dead)
            # The end is recorded in the transaction that takes the first attempts, so that the other worker cannot go on without them.
            said_so = not _record_end(incarnation, tx, dead) and said_so
            # If this worker lost its lock, the other worker may have lost its own lock too, and may have taken it again.
            if not incarnation.liveness.has_lock(ask=True):
                raise OtherServer("the lock was lost while another worker's calls were adopted")
            some = _read_left_attempts(tx, incarnation, dead)
            if not some:
                break
            changed = _states_after_adoption(incarnation, tx, dead, some)
            attempts.update_attempts(tx.connection, changed)
            for _, after in changed:
                log_if_held(incarnation, after)
            count += len(changed)
            others.update(after.app for _, after in changed if after.worker != incarnation.id)
            records += [name_attempt(incarnation, one) for one in some[: max(TOLD_MOST - len(records), 0)]]
    if incarnation.witness:
        incarnation.witness.delete_count_of(dead)
    if count:
        words = f"({', '.join(records)}{' and others' if count > len(records) else ''}): {_describe_what_follows(count, others)}"
        _log_adoption(incarnation, dead, count, who, words, said_so=said_so)
    return count


def _states_after_adoption(incarnation: Incarnation, tx: Transaction, dead: int, some: Sequence[Attempt]) -> list[tuple[Attempt, Attempt]]:
    """Return for each of these attempts the pair (attempt before the adoption, attempt after it).

    If the worker ended uncleanly, its end is recorded on each attempt that was in progress: careful mode suspects these attempts of having
    ended the worker.
    """
    row = tables.worker.c
    remembered = set(tx.connection.execute(select(row.id).where(row.ended_at.is_not(None))).scalars())
    under_way = [one for one in some if one.state is State.BEGUN]
    changed = []
    for one in some:
        ends = (
            [*(end for end in poison_suspects.worker_ends_in_why(one.why) if end in remembered), dead]
            if dead in remembered - incarnation.past
            else []
        )
        alone = one.together == 1 and len(under_way) == 1
        changed.append(
            (one, rules.adopt_attempt(one, _owner_after_adoption(incarnation, one, dead), tx.now, alone=alone, ends=ends).attempt)
        )
    return changed


def _log_adoption(incarnation: Incarnation, dead: int, count: int, who: _Process, words: str, *, said_so: bool) -> None:
    """Log an adoption. If the worker ended uncleanly, log a warning, so that a person looks for the cause. After a clean end or a lost
    lock, log at INFO.

    count: number of attempts. words: which records these are, and what happens to them. said_so: whether the worker recorded its own end.
    """
    place = "" if who.pid is None else f" (process {who.pid} on {who.host})"
    if dead not in incarnation.past and not said_so:
        log.warning(
            "worker %x%s ended while %s under way %s",
            dead,
            place,
            "1 attempt was" if count == 1 else f"{count} attempts were",
            words,
            extra={"event": "adopted", "count": count, "worker": f"{dead:x}", "end": "unclean", "host": who.host, "pid": who.pid},
        )
        return
    whose = "this worker's last incarnation, whose lock was lost," if dead in incarnation.past else f"worker {dead:x}{place} ended, and"
    log.info(
        "%s left %s in doubt %s",
        whose,
        "1 call" if count == 1 else f"{count} calls",
        words,
        extra={
            "event": "adopted",
            "count": count,
            "worker": f"{dead:x}",
            "end": "lock_lost" if dead in incarnation.past else "clean",
            "host": who.host,
            "pid": who.pid,
        },
    )


def _describe_what_follows(count: int, others: Counter[str]) -> str:
    own = count - others.total()
    settled = "adopted, to be settled each by its policy"
    if not others:
        return settled
    listed = ", ".join(f"{number} of app {app!r}" for app, number in sorted(others.items()))
    left = f"in doubt until a worker runs whose code declares them ({listed})"
    return f"{own} {settled}; the others are {left}" if own else left


def _owner_after_adoption(incarnation: Incarnation, one: Attempt, dead: int) -> int:
    """Return the id of the worker that owns an attempt after the adoption: this worker, if it declares the attempt's reaction.

    Otherwise the dead worker stays the owner, so that a worker that declares the reaction can take over the attempt later. This worker
    cannot settle the attempt. If it became the owner, no other worker would settle the attempt either.
    """
    return incarnation.id if one.app == incarnation.app and one.reaction in incarnation.declared else dead


def _read_left_attempts(tx: Transaction, incarnation: Incarnation, dead: int) -> list[Attempt]:
    statement = attempts.select_attempts(tables.attempt.c.worker == dead, clause_left_to_adopt(incarnation)).limit(AT_ONCE)
    return attempts.fetch_attempts(tx.connection, attempts.lock_selected_rows(tx.database, statement))


def _record_end(incarnation: Incarnation, tx: Transaction, dead: int) -> bool:
    """Record in a dead worker's row that it ended uncleanly. Return False if there is no such row, or its end is recorded already.

    The row stays for a while: two unclean ends within some minutes put all workers of the app into careful mode (rules.md 30). But if the
    server was restarted or replaced after the worker began, the row is deleted: the restart, and not a harmful record, may have ended the
    worker.
    """
    row = tables.worker.c
    still_there = (row.id == dead, row.ended_at.is_(None))
    before = select(row.id).where(*still_there, row.server != incarnation.server_start)  # `server` is NULL in rows of older versions
    if incarnation.server_start is not None and tx.connection.execute(before).first() is not None:
        if incarnation.witness:
            # The file is erased before the row is deleted: a witness file without a row would look like a restore (hazard 46).
            incarnation.witness.delete_count_of(dead)
        return tx.connection.execute(delete(tables.worker).where(*still_there)).rowcount > 0
    return tx.connection.execute(update(tables.worker).where(*still_there).values(ended_at=tx.now)).rowcount > 0


def delete_rows_of_past_incarnations(incarnation: Incarnation) -> None:
    """Delete the rows of this worker's earlier incarnations. Each of these ended because it lost its lock, and not because of a harmful
    record. So these rows must not put workers into careful mode.
    """
    over = (
        incarnation.past.difference(other_incarnations_with_remains(incarnation)) if incarnation.past else set()
    )  # an incarnation that still has attempts keeps its row until they are adopted
    if not over:
        return
    if incarnation.witness:
        for one in over:
            incarnation.witness.delete_count_of(one)
    with incarnation.open_transaction() as tx:
        tx.connection.execute(delete(tables.worker).where(tables.worker.c.id.in_(over)))
    incarnation.past -= over


def update_careful_mode(incarnation: Incarnation, seen: IdleProbe) -> None:
    """Switch careful mode on or off, depending on when workers of this app ended uncleanly. Delete the rows of workers of any app whose
    unclean end is long past.

    Also notice and handle a leap of the clock. Only transactions notice a leap otherwise, and an idle worker has none.
    """
    now, ends = seen.now, _read_unclean_ends(incarnation) if seen.ended else {}
    mine = ends.get(incarnation.app, {})
    if incarnation.pace.measure_leap(now, seen.asked_s, incarnation.clock.uptime_s()):
        with incarnation.open_transaction():
            pass  # every transaction compares the clocks at its beginning, and handles a leap
    new = replace(poison_suspects.care_from_ends(mine.values(), now), ends=frozenset(mine))
    if new.careful and not incarnation.care.careful:
        lately = sum(abs(now - ended_at) <= poison_suspects.STRETCH for ended_at in mine.values())
        log.warning(
            "%d workers ended uncleanly within %d minutes: careful mode begins: attempts that were under way are carried out alone",
            lately,
            poison_suspects.STRETCH.seconds // 60,
            extra={"event": "careful_mode", "count": lately},
        )
    incarnation.care = new
    # Careful mode depends on the number of an app's unclean ends. So the app's rows are kept until its latest unclean end is long past.
    over = [app for app, some in ends.items() if abs(now - max(some.values())) > poison_suspects.STRETCH]
    if over:
        _delete_old_ends(incarnation, over)


def _read_unclean_ends(incarnation: Incarnation) -> dict[str, dict[int, datetime]]:
    """Return when workers ended uncleanly, as a dict from app to a dict from worker id to time."""
    found: dict[str, dict[int, datetime]] = {}
    with incarnation.database.reading() as connection, reading_own_rows():
        row = tables.worker.c
        for app, one, ended_at in connection.execute(select(row.app, row.id, row.ended_at).where(row.ended_at.is_not(None))):
            found.setdefault(app, {})[one] = ended_at
    return found


def _delete_old_ends(incarnation: Incarnation, apps: Sequence[str]) -> None:
    """Delete the rows of workers of these apps, if the worker's unclean end is long past.

    Before a row is deleted, the worker's witness file is erased, if it still exists: a witness file without a row would look like a restore
    (hazard 46).
    """
    with incarnation.open_transaction() as tx:
        past, ahead = tx.now - poison_suspects.STRETCH - timedelta(seconds=1), tx.now + poison_suspects.STRETCH
        long_past = and_(tables.worker.c.app.in_(apps), or_(tables.worker.c.ended_at < past, tables.worker.c.ended_at > ahead))
        if incarnation.witness:
            for gone in tx.connection.execute(select(tables.worker.c.id).where(long_past)).scalars().all():
                incarnation.witness.delete_count_of(gone)
        tx.connection.execute(delete(tables.worker).where(long_past))
