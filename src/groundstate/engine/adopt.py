"""Adoption: what a dead life left is taken over, once, by whoever holds that very lock. Settles nothing itself.

No heartbeat and no clock takes part: a life whose lock is taken is not dead, and one whose lock is free is. But where the server was
started anew since that lock was taken, or is another one, every lock was freed at once: then the living have some seconds to come back.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from sqlalchemy import delete, or_, select, update

from groundstate.engine import attempts
from groundstate.engine.life import Life, left_by, lives_seen, may_return
from groundstate.engine.plain import say_held
from groundstate.engine.pulse import Pulse
from groundstate.engine.transaction import Transaction
from groundstate.engine.trouble import reading_ours
from groundstate.rules import attempt as rules
from groundstate.rules import careful
from groundstate.rules.attempt import Attempt
from groundstate.store import tables

log = logging.getLogger("groundstate")
AT_ONCE = 1000  # attempts adopted in one transaction


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
    count, said_so = 0, True
    while True:
        with life.transaction() as tx:
            # With the first of its attempts: it must not go on under its number once some of them are another's.
            said_so = not _remember_its_end(tx, dead) and said_so
            some = _left_behind(tx, life, dead)
            if not some:
                break
            alone = {one.call for one in some if one.together == 1}
            changed = [(one, rules.adopted(one, _adopter(life, one, dead), tx.now, alone=one.call in alone).attempt) for one in some]
            attempts.save(tx.connection, changed)
            for _, after in changed:
                say_held(after)
            count += len(changed)
    if life.witness:
        life.witness.erase(dead)
    if count:
        _say_adopted(life, dead, count, said_so=said_so)
    return count


def _say_adopted(life: Life, dead: int, count: int, *, said_so: bool) -> None:
    """Of an unclean end somebody should ask why; another one was told of before, or is what a drain may leave."""
    if dead not in life.past and not said_so:
        log.warning(
            "a worker ended while %d attempts were under way: adopted, to be settled each by its policy",
            count,
            extra={"event": "adopted", "count": count, "life": f"{dead:x}", "end": "unclean"},
        )
        return
    who = "this worker's last life, whose lock was lost," if dead in life.past else "a worker ended, and"
    log.info(
        "%s left %d calls in doubt: adopted, to be settled each by its policy",
        who,
        count,
        extra={"event": "adopted", "count": count, "life": f"{dead:x}", "end": "lock_lost" if dead in life.past else "clean"},
    )


def _adopter(life: Life, one: Attempt, dead: int) -> int:
    """Whose it is from now on. What this code does not declare is in doubt, and stays the dead life's: who declares it adopts it then.

    A living worker that cannot settle it would else keep it from one that can, for as long as it lives.
    """
    return life.id if one.app == life.app and one.reaction in life.declared else dead


def _left_behind(tx: Transaction, life: Life, dead: int) -> list[Attempt]:
    statement = attempts.rows(tables.attempt.c.worker == dead, left_by(life)).limit(AT_ONCE)
    return attempts.fetch(tx.connection, attempts.locked(tx.database, statement))


def _remember_its_end(tx: Transaction, dead: int) -> bool:
    """Its row stays for a while: two unclean ends within some minutes make all lives careful (rules.md 30). False: it has none, since it
    said by itself that it is over.
    """
    written = tx.connection.execute(
        update(tables.worker).where(tables.worker.c.life == dead, tables.worker.c.ended_at.is_(None)).values(ended_at=tx.now)
    )
    return written.rowcount > 0


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
    """Sets how careful this life is, and forgets ends that are long past. Where nothing is written it is here that a leap is noticed."""
    now, ends = seen.now, _ends(life) if seen.ended else []
    if life.pace.leapt(now, seen.asked_s):
        with life.transaction():
            pass  # its begin follows the clock
    new = careful.care(ends, now)
    if new.careful and not life.care.careful:
        log.warning(
            "%d workers ended uncleanly within %d minutes: careful, small batches until that is over",
            len(ends),
            careful.STRETCH.seconds // 60,
            extra={"event": "careful_mode", "count": len(ends)},
        )
    life.care = new
    if ends and abs(now - max(ends)) > careful.STRETCH:  # until then an older end still says that the latest was not the only one
        _forget_ends(life)


def _ends(life: Life) -> list[datetime]:
    with life.database.reading() as connection, reading_ours():
        return list(connection.execute(select(tables.worker.c.ended_at).where(tables.worker.c.ended_at.is_not(None))).scalars())


def _forget_ends(life: Life) -> None:
    """Their rows go. Witnesses first: an adopter that died may have left one, and one without a row tells of a restore (hazard 46)."""
    with life.transaction() as tx:
        past, ahead = tx.now - careful.STRETCH - timedelta(seconds=1), tx.now + careful.STRETCH
        long_past = or_(tables.worker.c.ended_at < past, tables.worker.c.ended_at > ahead)
        if life.witness:
            for gone in tx.connection.execute(select(tables.worker.c.life).where(long_past)).scalars().all():
                life.witness.erase(gone)
        tx.connection.execute(delete(tables.worker).where(long_past))
