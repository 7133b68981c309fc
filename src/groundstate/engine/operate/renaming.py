"""Renames a reaction or an app in groundstate's tables, and marks reactions as trusted after a restore.

A rename changes no idempotency key (hazard 62).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update

from groundstate.engine.operate import living_workers
from groundstate.engine.operate.action import Person
from groundstate.engine.rows import corrupt_rows, data_restore_check
from groundstate.engine.rows.attempt_text import count_with_noun
from groundstate.engine.sql.db_errors import Illegible, reading_own_rows
from groundstate.engine.sql.raw_cells import possible_incarnation_ids
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules.attempt import State
from groundstate.store.tables import attempt, rate, reaction, worker
from groundstate.store.wrote_column import THIS_TRANSACTION, WAITS
from groundstate.values import keys
from groundstate.values.errors import ConflictError, NotFoundError

log = logging.getLogger("groundstate")


@dataclass(frozen=True)
class Renamed:
    """What was renamed, the number of its attempts, and the number of reactions: 1, or all reactions of an app that was renamed."""

    old: str
    new: str
    attempts: int
    reactions: int = 1


@dataclass(frozen=True)
class Trusted:
    """The names of the reactions that are trusted again, with two counts of their attempts.

    `in_doubt` counts attempts that workers settle by the reactions' policies. `held` counts attempts that wait for a person.
    """

    reactions: tuple[str, ...]
    in_doubt: int
    held: int


def trust_reactions(person: Person, name: str | None = None) -> Trusted:
    """Mark one reaction as trusted, or every reaction if `name` is None. Call it after a person has checked the data that was restored.

    From now on, calls of a trusted reaction no longer begin as attempts in doubt. A reaction may also wait because it is not known
    whether the database was restored from a backup. This function ends that wait too.

    Raises:
        NotFoundError: The app has no such reaction.
    """
    mine = and_(reaction.c.app == person.app, reaction.c.name != "")
    with person.incarnation.open_transaction() as tx:
        known = list(tx.connection.execute(select(reaction.c.name).where(mine).order_by(reaction.c.name)).scalars())
        if name is not None and name not in known:
            raise NotFoundError(f"app {person.app!r} has no reaction {name!r} here: there are {', '.join(known) or 'none'}")
        suspect = reaction.c.suspect.is_not(False)
        those = and_(mine, suspect) if name is None else and_(mine, suspect, reaction.c.name == name)
        answered = data_restore_check.record_answer(tx, mine if name is None else and_(mine, reaction.c.name == name))
        trusted = tx.connection.execute(update(reaction).where(those).values(suspect=False).returning(reaction.c.name)).scalars()
        cleared = sorted({*answered, *trusted})
        concerned = [name] if name is not None else known
        doubts = _count_attempts(tx.connection, person.app, concerned, attempt.c.state == State.DOUBT.value)
        held = _count_attempts(tx.connection, person.app, concerned, and_(attempt.c.state == State.HELD.value, attempt.c.unsure))
    for one in cleared:
        log.warning("%s is trusted again, said by %s", one, person.by, extra={"event": "trusted", "reaction": one, "by": person.by})
    return Trusted(tuple(cleared), doubts, held)


def rename(person: Person, old: str, new: str) -> Renamed:
    """Write a reaction's new name into its attempts and its registration. Its calls keep their idempotency keys.

    Raises:
        NotFoundError: This database knows no reaction `old`.
        ConflictError: The reaction `new` has attempts of its own, or a worker of the app is alive.
    """
    _check_name(old, new)
    renamed: Renamed = corrupt_rows.retry_after_mending(person.incarnation, partial(_rename_in_transaction, person, old, new))
    return renamed


def _rename_in_transaction(person: Person, old: str, new: str) -> Renamed:
    with person.incarnation.open_transaction() as tx:
        _require_no_living_worker(person, tx.connection, person.app)
        rows = _read_registry_rows(tx.connection, person.app)
        if old not in rows and not _count_attempts(tx.connection, person.app, [old]):
            raise NotFoundError(f"app {person.app!r} has no reaction {old!r} here: there are {', '.join(sorted(rows)) or 'none'}")
        standing = _count_attempts(tx.connection, person.app, [new])
        if standing:
            raise ConflictError(
                f"{new} has {count_with_noun(standing, 'attempt', 'attempts')} of its own: settle or forget them first"
                f" (`groundstate held --reaction {new}`, and with `--baseline` the rows that were left out)"
            )
        before = rows.get(old)
        key_name = before.key_name if before is not None else old
        _replace_registry_rows(
            tx, (person.app, old), (person.app, new), key_name, [one for one in (before, rows.get(new)) if one is not None]
        )
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
    """Give an app a new name in this database. Its calls keep their idempotency keys, which contain the old name.

    Raises:
        NotFoundError: This database knows no app `old`.
        ConflictError: The app `new` has attempts of its own, or a worker of either app is alive.
    """
    _check_name(old, new)
    renamed: Renamed = corrupt_rows.retry_after_mending(person.incarnation, partial(_rename_app_in_transaction, person, old, new))
    return renamed


def _rename_app_in_transaction(person: Person, old: str, new: str) -> Renamed:
    with person.incarnation.open_transaction() as tx:
        _require_no_living_worker(person, tx.connection, old, new)
        before, there = _read_registry_rows(tx.connection, old), _read_registry_rows(tx.connection, new)
        with_attempts = set(tx.connection.execute(select(attempt.c.reaction).where(attempt.c.app == old).distinct()).scalars())
        names = sorted(with_attempts | before.keys())
        if not names:
            apps = sorted(tx.connection.execute(select(reaction.c.app).where(reaction.c.name != "").distinct()).scalars())
            raise NotFoundError(f"nothing is known of an app {old!r} here: there are {', '.join(apps) or 'none'}")
        standing = _count_attempts(tx.connection, new)
        if standing:
            raise ConflictError(
                f"app {new!r} has {count_with_noun(standing, 'attempt', 'attempts')} of its own: settle or forget them first"
            )
        for name in names:
            row = before.get(name)
            key_name = keys.key_name_with_app(old, row.key_name if row is not None else name)
            _replace_registry_rows(tx, (old, name), (new, name), key_name, [one for one in (row, there.get(name)) if one is not None])
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
        raise ConflictError(f"{new!r} is no name: it has printable characters, and at least one")
    if old == new:
        raise ConflictError(f"{old} has that name already")


def _read_registry_rows(connection: Connection, app: str) -> dict[str, Any]:
    with reading_own_rows():
        return {row.name: row for row in connection.execute(select(reaction).where(reaction.c.app == app, reaction.c.name != ""))}


def _replace_registry_rows(tx: Transaction, old: tuple[str, str], new: tuple[str, str], key_name: str, rows: Sequence[Any]) -> None:
    """Replace the registry rows of the old and the new name by one row with the new name.

    The new row has the condition of the last of `rows`, and is suspect if any of `rows` is.
    """
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


def _require_no_living_worker(person: Person, connection: Connection, *apps: str) -> None:
    """Raise ConflictError if a worker of these apps may be alive.

    A running worker uses the old name, and would not recognise its own attempts after the rename.
    """
    columns = (worker.c.id, worker.c.host, worker.c.pid, worker.c.server)
    statement = select(*columns).where(worker.c.app.in_(apps), worker.c.ended_at.is_(None))
    rows = list(connection.execute(statement))
    if len(possible_incarnation_ids(row.id for row in rows)) < len(rows):
        raise Illegible("a row of groundstate_worker has no number that a worker can have")
    alive = living_workers.read_liveness(person.incarnation.liveness, [row.id for row in rows])
    seen = [living_workers.WorkerSeen(row.id, alive.get(row.id), row.host, row.pid, server=row.server) for row in rows]
    running = [
        f"pid {one.pid} on {one.host}"
        for one in living_workers.mark_possible_reconnects(person.database, connection, seen)
        if one.alive is not False
    ]
    if running:
        where = ", ".join(running)
        raise ConflictError(f"a worker of the app runs ({where}): stop it, rename, and start the code that says the new name")


def _count_attempts(connection: Connection, app: str, names: Sequence[str] | None = None, *where: Any) -> int:
    statement = select(func.count()).select_from(attempt).where(attempt.c.app == app, *where)
    if names is not None:
        statement = statement.where(attempt.c.reaction.in_(list(names)))
    return int(connection.execute(statement).scalar_one())
