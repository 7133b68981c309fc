"""Adoption: what a dead worker incarnation left is taken over, once, by the worker that takes its lock. This module settles nothing.

No heartbeat and no clock takes part: an incarnation whose lock is taken is alive, and one whose lock is free is dead. There are two
exceptions. A restart or change of the server frees every lock at once; and if this worker lost its own lock, others may have lost theirs
with it. Then living workers have some seconds to take their locks again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import and_, delete, or_, select, update

from groundstate.engine.rows import attempts
from groundstate.engine.rows.attempt_log import of_attempt, say_held
from groundstate.engine.rows.incarnation import Incarnation, incarnations_that_may_return, left_by, other_incarnations_with_remains
from groundstate.engine.sql.db_errors import OtherServer, reading_ours
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
class _Who:
    """The host and process id of an incarnation; both are None if its row is gone."""

    host: str | None = None
    pid: int | None = None


def _who(tx: Transaction, dead: int) -> _Who:
    row = tables.worker.c
    found = tx.connection.execute(select(row.host, row.pid).where(row.id == dead)).first()
    return _Who() if found is None else _Who(found.host, found.pid)


def adopt_all(incarnation: Incarnation) -> int:
    """Adopt the attempts of every dead incarnation; return how many attempts this changed."""
    strangers = other_incarnations_with_remains(incarnation)
    if not strangers:
        return 0
    count = 0
    seen = incarnation.liveness.alive(strangers)
    dead = [stranger for stranger in strangers if seen.get(stranger) is not True]
    waits = incarnations_that_may_return(incarnation, dead)
    for stranger in dead:
        if stranger in waits:
            continue
        with incarnation.liveness.adopting(stranger) as is_dead:
            if is_dead:
                count += _adopt(incarnation, stranger)
    return count


def _adopt(incarnation: Incarnation, dead: int) -> int:
    count, said_so, who, records, others = 0, True, _Who(), list[str](), Counter[str]()
    while True:
        with incarnation.transaction() as tx:
            who = who if count else _who(tx, dead)
            # Written together with its first attempts: it must not resume under its id once another worker owns some of them.
            said_so = not _remember_its_end(incarnation, tx, dead) and said_so
            if not incarnation.liveness.held(ask=True):  # the dead one's lock was lost together with ours, so it may have resumed
                raise OtherServer("the lock was lost while another worker's calls were adopted")
            some = _left_behind(tx, incarnation, dead)
            if not some:
                break
            changed = _adopted(incarnation, tx, dead, some)
            attempts.save(tx.connection, changed)
            for _, after in changed:
                say_held(incarnation, after)
            count += len(changed)
            others.update(after.app for _, after in changed if after.worker != incarnation.id)
            records += [of_attempt(incarnation, one) for one in some[: max(TOLD_MOST - len(records), 0)]]
    if incarnation.witness:
        incarnation.witness.erase(dead)
    if count:
        words = f"({', '.join(records)}{' and others' if count > len(records) else ''}): {_what_becomes_of_them(count, others)}"
        _say_adopted(incarnation, dead, count, who, words, said_so=said_so)
    return count


def _adopted(incarnation: Incarnation, tx: Transaction, dead: int, some: Sequence[Attempt]) -> list[tuple[Attempt, Attempt]]:
    """Return each of these attempts as it was and as it is after the adoption. After an unclean end, those that were under way name that
    end, by which careful mode suspects them.
    """
    row = tables.worker.c
    remembered = set(tx.connection.execute(select(row.id).where(row.ended_at.is_not(None))).scalars())
    under_way = [one for one in some if one.state is State.BEGUN]
    changed = []
    for one in some:
        ends = (
            [*(end for end in poison_suspects.ends_met(one.why) if end in remembered), dead]
            if dead in remembered - incarnation.past
            else []
        )
        alone = one.together == 1 and len(under_way) == 1
        changed.append((one, rules.adopted(one, _adopter(incarnation, one, dead), tx.now, alone=alone, ends=ends).attempt))
    return changed


def _say_adopted(incarnation: Incarnation, dead: int, count: int, who: _Who, words: str, *, said_so: bool) -> None:
    """Log an adoption: as a warning after an unclean end, whose cause a person should look for, and as information if the end was logged
    before or a drain may leave such attempts.

    words: which records they are, and what becomes of them.
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


def _what_becomes_of_them(count: int, others: Counter[str]) -> str:
    own = count - others.total()
    settled = "adopted, to be settled each by its policy"
    if not others:
        return settled
    listed = ", ".join(f"{number} of app {app!r}" for app, number in sorted(others.items()))
    left = f"in doubt until a worker runs whose code declares them ({listed})"
    return f"{own} {settled}; the others are {left}" if own else left


def _adopter(incarnation: Incarnation, one: Attempt, dead: int) -> int:
    """Return the incarnation that owns an attempt after the adoption. One that this code does not declare stays in doubt with the dead
    incarnation, so that a worker whose code declares it can adopt it.

    A living worker that cannot settle it would otherwise keep it from others for as long as that worker runs.
    """
    return incarnation.id if one.app == incarnation.app and one.reaction in incarnation.declared else dead


def _left_behind(tx: Transaction, incarnation: Incarnation, dead: int) -> list[Attempt]:
    statement = attempts.select_attempts(tables.attempt.c.worker == dead, left_by(incarnation)).limit(AT_ONCE)
    return attempts.fetch(tx.connection, attempts.locked(tx.database, statement))


def _remember_its_end(incarnation: Incarnation, tx: Transaction, dead: int) -> bool:
    """Write into a dead incarnation's row that it ended. The row stays for a while: two unclean ends within some minutes put all workers of
    its app into careful mode (rules.md 30). But if the server was restarted or replaced since the lock was taken, that may be the cause and
    no record is: then the row is deleted. Return False if no row is open, since the incarnation recorded its own end, or is an earlier one
    of this worker.
    """
    row = tables.worker.c
    still_there = (row.id == dead, row.ended_at.is_(None))
    before = select(row.id).where(*still_there, row.server != incarnation.server_start)  # NULL: older code wrote the row
    if incarnation.server_start is not None and tx.connection.execute(before).first() is not None:
        if incarnation.witness:
            incarnation.witness.erase(dead)  # before its row, since a witness file without a row means a restore (hazard 46)
        return tx.connection.execute(delete(tables.worker).where(*still_there)).rowcount > 0
    return tx.connection.execute(update(tables.worker).where(*still_there).values(ended_at=tx.now)).rowcount > 0


def forget_past(incarnation: Incarnation) -> None:
    """Delete the rows of this process's earlier incarnations. They ended by a lost lock, perhaps all at once with their server: no record
    killed them, and their rows must put no worker into careful mode.
    """
    over = (
        incarnation.past.difference(other_incarnations_with_remains(incarnation)) if incarnation.past else set()
    )  # the others still have to be adopted
    if not over:
        return
    if incarnation.witness:
        for one in over:
            incarnation.witness.erase(one)
    with incarnation.transaction() as tx:
        tx.connection.execute(delete(tables.worker).where(tables.worker.c.id.in_(over)))
    incarnation.past -= over


def look_at_ends(incarnation: Incarnation, seen: IdleProbe) -> None:
    """Set whether this worker is in careful mode, by the unclean ends of its app's incarnations: a crash in another app touches no record
    of this one. Delete ends of any app that are long past. Also follow a leap of the clock, which a worker that writes nothing notices only
    here.
    """
    now, ends = seen.now, _ends(incarnation) if seen.ended else {}
    mine = ends.get(incarnation.app, {})
    if incarnation.pace.leapt(now, seen.asked_s):
        with incarnation.transaction():
            pass  # beginning a transaction follows the clock's leap
    new = replace(poison_suspects.care(mine.values(), now), ends=frozenset(mine))
    if new.careful and not incarnation.care.careful:
        lately = sum(abs(now - ended_at) <= poison_suspects.STRETCH for ended_at in mine.values())
        log.warning(
            "%d workers ended uncleanly within %d minutes: careful, and who was under way at each is carried out alone, until that is over",
            lately,
            poison_suspects.STRETCH.seconds // 60,
            extra={"event": "careful_mode", "count": lately},
        )
    incarnation.care = new
    # All ends of an app are kept until its latest is long past: the older ones show that it was not the only one.
    over = [app for app, some in ends.items() if abs(now - max(some.values())) > poison_suspects.STRETCH]
    if over:
        _forget_ends(incarnation, over)


def _ends(incarnation: Incarnation) -> dict[str, dict[int, datetime]]:
    """Return when incarnations ended uncleanly, by app and incarnation id."""
    found: dict[str, dict[int, datetime]] = {}
    with incarnation.database.reading() as connection, reading_ours():
        row = tables.worker.c
        for app, one, ended_at in connection.execute(select(row.app, row.id, row.ended_at).where(row.ended_at.is_not(None))):
            found.setdefault(app, {})[one] = ended_at
    return found


def _forget_ends(incarnation: Incarnation, apps: Sequence[str]) -> None:
    """Delete rows of ends that are long past. Their witness files go first: an adopter that died may have left one, and a witness file
    without a row means a restore (hazard 46).
    """
    with incarnation.transaction() as tx:
        past, ahead = tx.now - poison_suspects.STRETCH - timedelta(seconds=1), tx.now + poison_suspects.STRETCH
        long_past = and_(tables.worker.c.app.in_(apps), or_(tables.worker.c.ended_at < past, tables.worker.c.ended_at > ahead))
        if incarnation.witness:
            for gone in tx.connection.execute(select(tables.worker.c.id).where(long_past)).scalars().all():
                incarnation.witness.erase(gone)
        tx.connection.execute(delete(tables.worker).where(long_past))
