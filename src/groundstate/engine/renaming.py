"""New names for a reaction or an app in our tables, and trust in reactions after a restore. No key changes by a rename (hazard 62)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update

from groundstate.engine import illegible, living, put_back
from groundstate.engine.cells import lives_among
from groundstate.engine.deeds import Person
from groundstate.engine.transaction import Transaction
from groundstate.engine.trouble import Illegible, reading_ours
from groundstate.engine.wording import counted
from groundstate.rules.attempt import State
from groundstate.store.tables import attempt, rate, reaction, worker
from groundstate.store.written import THIS_TRANSACTION, WAITS
from groundstate.values import keys
from groundstate.values.errors import Conflict, NotFound

log = logging.getLogger("groundstate")


@dataclass(frozen=True)
class Renamed:
    """What was renamed: how many attempts, and how many reactions (a new name of an app concerns all of its)."""

    old: str
    new: str
    attempts: int
    reactions: int = 1


@dataclass(frozen=True)
class Trusted:
    """Reactions that are trusted again. `in_doubt` of their attempts are still settled by their policy, `held` wait for a person."""

    reactions: tuple[str, ...]
    in_doubt: int
    held: int


def trust(person: Person, name: str | None = None) -> Trusted:
    """After a restore was looked into: what is taken from now on is called, and no longer starts as a doubt. None: every reaction.

    Of a database that may have been put back it says that it was not: reactions that waited for a person go on.

    Raises:
        NotFound: the app has no such reaction.
    """
    mine = and_(reaction.c.app == person.app, reaction.c.name != "")
    with person.life.transaction() as tx:
        known = list(tx.connection.execute(select(reaction.c.name).where(mine).order_by(reaction.c.name)).scalars())
        if name is not None and name not in known:
            raise NotFound(f"app {person.app!r} has no reaction {name!r} here: there are {', '.join(known) or 'none'}")
        suspect = reaction.c.suspect.is_not(False)
        those = and_(mine, suspect) if name is None else and_(mine, suspect, reaction.c.name == name)
        answered = put_back.answer(tx, mine if name is None else and_(mine, reaction.c.name == name))
        trusted = tx.connection.execute(update(reaction).where(those).values(suspect=False).returning(reaction.c.name)).scalars()
        cleared = sorted({*answered, *trusted})
        concerned = [name] if name is not None else known
        doubts = _count(tx.connection, person.app, concerned, attempt.c.state == State.DOUBT.value)
        held = _count(tx.connection, person.app, concerned, and_(attempt.c.state == State.HELD.value, attempt.c.unsure))
    for one in cleared:
        log.warning("%s is trusted again, said by %s", one, person.by, extra={"event": "trusted", "reaction": one, "by": person.by})
    return Trusted(tuple(cleared), doubts, held)


def rename(person: Person, old: str, new: str) -> Renamed:
    """Carries a reaction's attempts over to its new name; its calls keep their keys.

    Raises:
        NotFound: nothing is known of `old`. Conflict: `new` has attempts of its own, or a worker runs.
    """
    _check_name(old, new)
    renamed: Renamed = illegible.mending(person.life, partial(_rename, person, old, new))
    return renamed


def _rename(person: Person, old: str, new: str) -> Renamed:
    with person.life.transaction() as tx:
        _nobody_works(person, tx.connection, person.app)
        rows = _rows(tx.connection, person.app)
        if old not in rows and not _count(tx.connection, person.app, [old]):
            raise NotFound(f"app {person.app!r} has no reaction {old!r} here: there are {', '.join(sorted(rows)) or 'none'}")
        standing = _count(tx.connection, person.app, [new])
        if standing:
            raise Conflict(
                f"{new} has {counted(standing, 'attempt', 'attempts')} of its own: settle or forget them first"
                f" (`groundstate held --reaction {new}`, and with `--baseline` the rows that were left out)"
            )
        before = rows.get(old)
        key_name = before.key_name if before is not None else old
        _take_over(tx, (person.app, old), (person.app, new), key_name, [one for one in (before, rows.get(new)) if one is not None])
        mine = and_(attempt.c.app == person.app, attempt.c.reaction == old)
        count = tx.connection.execute(update(attempt).where(mine).values(reaction=new)).rowcount
    log.warning(
        "reaction %s is %s now, with %d attempts, said by %s",
        old,
        new,
        count,
        person.by,
        extra={"event": "reaction_renamed", "old": old, "new": new, "count": count, "by": person.by},
    )
    return Renamed(old, new, count)


def rename_app(person: Person, old: str, new: str) -> Renamed:
    """The same for a whole app, in this store. Its calls keep the keys that were made of its old name.

    Raises:
        NotFound: nothing is known of `old`. Conflict: `new` has attempts of its own, or a worker of either runs.
    """
    _check_name(old, new)
    renamed: Renamed = illegible.mending(person.life, partial(_rename_app, person, old, new))
    return renamed


def _rename_app(person: Person, old: str, new: str) -> Renamed:
    with person.life.transaction() as tx:
        _nobody_works(person, tx.connection, old, new)
        before, there = _rows(tx.connection, old), _rows(tx.connection, new)
        with_attempts = set(tx.connection.execute(select(attempt.c.reaction).where(attempt.c.app == old).distinct()).scalars())
        names = sorted(with_attempts | before.keys())
        if not names:
            apps = sorted(tx.connection.execute(select(reaction.c.app).where(reaction.c.name != "").distinct()).scalars())
            raise NotFound(f"nothing is known of an app {old!r} here: there are {', '.join(apps) or 'none'}")
        standing = _count(tx.connection, new)
        if standing:
            raise Conflict(f"app {new!r} has {counted(standing, 'attempt', 'attempts')} of its own: settle or forget them first")
        for name in names:
            row = before.get(name)
            key_name = keys.key_name_under(old, row.key_name if row is not None else name)
            _take_over(tx, (old, name), (new, name), key_name, [one for one in (row, there.get(name)) if one is not None])
        count = tx.connection.execute(update(attempt).where(attempt.c.app == old).values(app=new)).rowcount
        tx.connection.execute(update(worker).where(worker.c.app == old).values(app=new))
        tx.connection.execute(delete(rate).where(rate.c.app == new))
        tx.connection.execute(update(rate).where(rate.c.app == old).values(app=new))
    log.warning(
        "app %s is %s now, with %d reactions and %d attempts, said by %s",
        old,
        new,
        len(names),
        count,
        person.by,
        extra={"event": "app_renamed", "old": old, "new": new, "count": count, "by": person.by},
    )
    return Renamed(old, new, count, len(names))


def _check_name(old: str, new: str) -> None:
    if not new.strip() or not new.isprintable():
        raise Conflict(f"{new!r} is no name: it has printable characters, and at least one")
    if old == new:
        raise Conflict(f"{old} has that name already")


def _rows(connection: Connection, app: str) -> dict[str, Any]:
    with reading_ours():
        return {row.name: row for row in connection.execute(select(reaction).where(reaction.c.app == app, reaction.c.name != ""))}


def _take_over(tx: Transaction, old: tuple[str, str], new: tuple[str, str], key_name: str, rows: Sequence[Any]) -> None:
    """One row under the new name for what stood under both: the condition as it was accepted last, and suspect if either was."""
    both = or_(*[and_(reaction.c.app == app, reaction.c.name == name) for app, name in (old, new)])
    tx.connection.execute(delete(reaction).where(both))
    seen: list[datetime] = [row.seen_at for row in rows]
    tx.connection.execute(
        insert(reaction).values(
            app=new[0],
            name=new[1],
            key_name=key_name,
            condition=rows[-1].condition if rows else "",
            record=rows[-1].record if rows else None,
            suspect=any(row.suspect for row in rows),
            seen_at=max(seen, default=tx.now),
            mark=next((row.mark for row in rows if row.mark is not None), None),
            wrote=WAITS if any(row.wrote == 0 for row in rows) else THIS_TRANSACTION,
        )
    )


def _nobody_works(person: Person, connection: Connection, *apps: str) -> None:
    """A running worker says the old name, and would not know its own attempts any more."""
    columns = (worker.c.life, worker.c.host, worker.c.pid, worker.c.server)
    statement = select(*columns).where(worker.c.app.in_(apps), worker.c.ended_at.is_(None))
    rows = list(connection.execute(statement))
    if len(lives_among(row.life for row in rows)) < len(rows):
        raise Illegible("a row of groundstate_worker has no number that a life can have")
    alive = living.alive_of(person.life.lives, [row.life for row in rows])
    seen = [living.LifeSeen(row.life, alive.get(row.life), row.host, row.pid, server=row.server) for row in rows]
    running = [f"pid {one.pid} on {one.host}" for one in living.may_return(person.database, connection, seen) if one.alive is not False]
    if running:
        where = ", ".join(running)
        raise Conflict(f"a worker of the app runs ({where}): stop it, rename, and start the code that says the new name")


def _count(connection: Connection, app: str, names: Sequence[str] | None = None, *where: Any) -> int:
    statement = select(func.count()).select_from(attempt).where(attempt.c.app == app, *where)
    if names is not None:
        statement = statement.where(attempt.c.reaction.in_(list(names)))
    return int(connection.execute(statement).scalar_one())
