"""Adoption: what a dead life left is taken over, once, by whoever holds that very lock. Settles nothing itself.

No heartbeat and no clock takes part: a life whose lock is taken is not dead, and one whose lock is free is. But where the server was
started anew since that lock was taken, or is another one, every lock was freed at once; and where this worker lost its own, others may have
lost theirs with it: then the living have some seconds to come back.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import and_, delete, or_, select, update

from groundstate.engine import attempts
from groundstate.engine.attempt_log import of_attempt, say_held
from groundstate.engine.life import Life, left_by, lives_seen, may_return
from groundstate.engine.pulse import Pulse
from groundstate.engine.transaction import Transaction
from groundstate.engine.trouble import OtherServer, reading_ours
from groundstate.rules import attempt as rules
from groundstate.rules import careful
from groundstate.rules.attempt import Attempt, State
from groundstate.store import tables

log = logging.getLogger("groundstate")
AT_ONCE = 1000  # attempts adopted in one transaction
TOLD_MOST = 3  # records that the log names


@dataclass(frozen=True)
class _Who:
    """The process of a life; None where its row is gone."""

    host: str | None = None
    pid: int | None = None


def _who(tx: Transaction, dead: int) -> _Who:
    row = tables.worker.c
    found = tx.connection.execute(select(row.host, row.pid).where(row.life == dead)).first()
    return _Who() if found is None else _Who(found.host, found.pid)


def adopt_all(life: Life) -> int:
    """Adopts from every dead life; returns how many attempts changed hands."""
    strangers = lives_seen(life)
    if not strangers:
        return 0
    count = 0
    seen = life.lives.alive(strangers)
    dead = [stranger for stranger in strangers if seen.get(stranger) is not True]
    waits = may_return(life, dead)
    for stranger in dead:
        if stranger in waits:
            continue
        with life.lives.adopting(stranger) as is_dead:
            if is_dead:
                count += _adopt(life, stranger)
    return count


def _adopt(life: Life, dead: int) -> int:
    count, said_so, who, records, others = 0, True, _Who(), list[str](), Counter[str]()
    while True:
        with life.transaction() as tx:
            who = who if count else _who(tx, dead)
            # With the first of its attempts: it must not go on under its number once some of them are another's.
            said_so = not _remember_its_end(life, tx, dead) and said_so
            if not life.lives.held(ask=True):  # with ours went the lock of the dead one, who may have come back
                raise OtherServer("the lock was lost while another life was adopted")
            some = _left_behind(tx, life, dead)
            if not some:
                break
            changed = _adopted(life, tx, dead, some)
            attempts.save(tx.connection, changed)
            for _, after in changed:
                say_held(life, after)
            count += len(changed)
            others.update(after.app for _, after in changed if after.worker != life.id)
            records += [of_attempt(life, one) for one in some[: max(TOLD_MOST - len(records), 0)]]
    if life.witness:
        life.witness.erase(dead)
    if count:
        words = f"({', '.join(records)}{' and others' if count > len(records) else ''}): {_what_becomes_of_them(count, others)}"
        _say_adopted(life, dead, count, who, words, said_so=said_so)
    return count


def _adopted(life: Life, tx: Transaction, dead: int, some: Sequence[Attempt]) -> list[tuple[Attempt, Attempt]]:
    """What becomes of these: suspected of that end by careful mode is what was under way, where it was an unclean one."""
    row = tables.worker.c
    remembered = set(tx.connection.execute(select(row.life).where(row.ended_at.is_not(None))).scalars())
    under_way = [one for one in some if one.state is State.BEGUN]
    changed = []
    for one in some:
        ends = [*(end for end in careful.ends_met(one.why) if end in remembered), dead] if dead in remembered - life.past else []
        alone = one.together == 1 and len(under_way) == 1
        changed.append((one, rules.adopted(one, _adopter(life, one, dead), tx.now, alone=alone, ends=ends).attempt))
    return changed


def _say_adopted(life: Life, dead: int, count: int, who: _Who, words: str, *, said_so: bool) -> None:
    """Of an unclean end somebody should ask why; another one was told of before, or is what a drain may leave.

    words: which records those are, and what becomes of them.
    """
    place = "" if who.pid is None else f" (process {who.pid} on {who.host})"
    if dead not in life.past and not said_so:
        log.warning(
            "the worker of life %x%s ended while %s under way %s",
            dead,
            place,
            "1 attempt was" if count == 1 else f"{count} attempts were",
            words,
            extra={"event": "adopted", "count": count, "life": f"{dead:x}", "end": "unclean", "host": who.host, "pid": who.pid},
        )
        return
    whose = "this worker's last life, whose lock was lost," if dead in life.past else f"the worker of life {dead:x}{place} ended, and"
    log.info(
        "%s left %s in doubt %s",
        whose,
        "1 call" if count == 1 else f"{count} calls",
        words,
        extra={
            "event": "adopted",
            "count": count,
            "life": f"{dead:x}",
            "end": "lock_lost" if dead in life.past else "clean",
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


def _adopter(life: Life, one: Attempt, dead: int) -> int:
    """Whose it is from now on. What this code does not declare is in doubt, and stays the dead life's: who declares it adopts it then.

    A living worker that cannot settle it would else keep it from one that can, for as long as it lives.
    """
    return life.id if one.app == life.app and one.reaction in life.declared else dead


def _left_behind(tx: Transaction, life: Life, dead: int) -> list[Attempt]:
    statement = attempts.rows(tables.attempt.c.worker == dead, left_by(life)).limit(AT_ONCE)
    return attempts.fetch(tx.connection, attempts.locked(tx.database, statement))


def _remember_its_end(life: Life, tx: Transaction, dead: int) -> bool:
    """Its row stays for a while: two unclean ends within some minutes make all lives of its app careful (rules.md 30). But where the server
    was started anew since its lock was taken, or is another one, that may be what ended it, and says nothing of any record: the row goes.
    False: it has none, since it said by itself that it is over, or it is this worker's last life.
    """
    row = tables.worker.c
    still_there = (row.life == dead, row.ended_at.is_(None))
    before = select(row.life).where(*still_there, row.server != life.incarnation)  # NULL: of older code
    if life.incarnation is not None and tx.connection.execute(before).first() is not None:
        if life.witness:
            life.witness.erase(dead)  # before its row: one without a row tells of a restore (hazard 46)
        return tx.connection.execute(delete(tables.worker).where(*still_there)).rowcount > 0
    return tx.connection.execute(update(tables.worker).where(*still_there).values(ended_at=tx.now)).rowcount > 0


def forget_past(life: Life) -> None:
    """Earlier lives of this process ended by a lost lock, perhaps all at once with their server: no record killed anybody there, and their
    rows must make nobody careful.
    """
    over = life.past.difference(lives_seen(life)) if life.past else set()  # others are still to be adopted
    if not over:
        return
    if life.witness:
        for one in over:
            life.witness.erase(one)
    with life.transaction() as tx:
        tx.connection.execute(delete(tables.worker).where(tables.worker.c.life.in_(over)))
    life.past -= over


def look_at_ends(life: Life, seen: Pulse) -> None:
    """Sets how careful this life is, by ends of lives of its app: who crashes in another one touches no record of this. Forgets those of
    any app that are long past. Where nothing is written it is here that a leap is noticed.
    """
    now, ends = seen.now, _ends(life) if seen.ended else {}
    mine = ends.get(life.app, {})
    if life.pace.leapt(now, seen.asked_s):
        with life.transaction():
            pass  # its begin follows the clock
    new = replace(careful.care(mine.values(), now), ends=frozenset(mine))
    if new.careful and not life.care.careful:
        lately = sum(abs(now - ended_at) <= careful.STRETCH for ended_at in mine.values())
        log.warning(
            "%d workers ended uncleanly within %d minutes: careful, and who was under way at each is carried out alone, until that is over",
            lately,
            careful.STRETCH.seconds // 60,
            extra={"event": "careful_mode", "count": lately},
        )
    life.care = new
    # Until then an older end still says that the latest was not the only one.
    over = [app for app, some in ends.items() if abs(now - max(some.values())) > careful.STRETCH]
    if over:
        _forget_ends(life, over)


def _ends(life: Life) -> dict[str, dict[int, datetime]]:
    """When lives ended uncleanly, by their app."""
    found: dict[str, dict[int, datetime]] = {}
    with life.database.reading() as connection, reading_ours():
        row = tables.worker.c
        for app, one, ended_at in connection.execute(select(row.app, row.life, row.ended_at).where(row.ended_at.is_not(None))):
            found.setdefault(app, {})[one] = ended_at
    return found


def _forget_ends(life: Life, apps: Sequence[str]) -> None:
    """Their rows go. Witnesses first: an adopter that died may have left one, and one without a row tells of a restore (hazard 46)."""
    with life.transaction() as tx:
        past, ahead = tx.now - careful.STRETCH - timedelta(seconds=1), tx.now + careful.STRETCH
        long_past = and_(tables.worker.c.app.in_(apps), or_(tables.worker.c.ended_at < past, tables.worker.c.ended_at > ahead))
        if life.witness:
            for gone in tx.connection.execute(select(tables.worker.c.life).where(long_past)).scalars().all():
                life.witness.erase(gone)
        tx.connection.execute(delete(tables.worker).where(long_past))
