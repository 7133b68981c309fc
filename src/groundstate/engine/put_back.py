"""Rows of ours on PostgreSQL that somebody else wrote: the database may have been put back by a restore of data alone (hazard 46).

It need not have been: an ALTER TABLE that rewrites, or an UPDATE by hand, looks the same. So nothing is put in doubt. Reactions with a call
wait until a person has said which of the two it was: `groundstate trust`, or a start with --after-restore. The others go on.

The sign is in our own row of groundstate_reaction and in those of the lives. A start that meets it marks the reactions of every app, since
lives are forgotten after a while, and one app's answer is not another's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, exists, insert, literal_column, not_, null, or_, select, update

from groundstate.engine.life import Life
from groundstate.engine.store_begins import OWN_ROW
from groundstate.engine.transaction import Transaction
from groundstate.rules.reaction import ReactionSpec
from groundstate.store.port import Database
from groundstate.store.tables import reaction, worker
from groundstate.store.written import THIS_TRANSACTION, WAITS, is_marked, somebody_else_wrote

log = logging.getLogger("groundstate")
MARKED = is_marked(reaction.name)
_OWN_ROW_TELLS = and_(OWN_ROW, somebody_else_wrote(reaction.name))
_LIFE_TELLS = somebody_else_wrote(worker.name)
_ONE: ColumnElement[int] = literal_column("1")
_own = reaction.alias("groundstate_own")  # apart from the reactions that a statement is about
_TELLS = or_(
    exists(select(_ONE).where(_own.c.app == "", _own.c.name == "", somebody_else_wrote(_own.name))),
    exists(select(_ONE).select_from(worker).where(_LIFE_TELLS)),
)
CURE = "`groundstate run --after-restore` where a backup was put back, `groundstate trust` where none was"


@dataclass(frozen=True)
class Waiting:
    """Which reactions of an app wait for a person. all_of_them: the sign is there, and no start has met it yet."""

    names: frozenset[str] = frozenset()
    all_of_them: bool = False

    def among(self, specs: Iterable[ReactionSpec]) -> frozenset[str]:
        """Those of these that wait: a reaction without a call never does."""
        return frozenset(spec.name for spec in specs if spec.call is not None and (self.all_of_them or spec.name in self.names))


NOBODY = Waiting()


def can_tell(database: Database) -> bool:
    """Whether such rows are a sign here."""
    return database.locks_rows and database.settings.failover != "lossless"


def waiting(database: Database, connection: Connection, app: str) -> Waiting:
    """Who waits. SELECTs alone; works on a standby."""
    if not can_tell(database):
        return NOBODY
    marked = select(reaction.c.name).where(reaction.c.app == app, MARKED)
    names = frozenset(connection.execute(marked).scalars())
    return Waiting(names, bool(connection.execute(select(_TELLS)).scalar_one()))


def look(life: Life, specs: Iterable[ReactionSpec]) -> frozenset[str]:
    """For a start, before it writes to any such row: which of these reactions wait. Marks them where the sign is new."""
    if not can_tell(life.database):
        return frozenset()
    given = list(specs)
    with life.database.reading() as connection:
        seen = waiting(life.database, connection, life.app)
    if not seen.all_of_them:
        return seen.among(given)
    with life.transaction() as tx:
        mark(tx)
        known = set(tx.connection.execute(select(reaction.c.name).where(reaction.c.app == life.app)).scalars())
        key_names = {spec.name: spec.key_name or spec.name for spec in given}
        for name in sorted(seen.among(given) - known):
            # Accepted in the time that may be lost: under a condition that matched nothing, so that it counts as new.
            row = {"app": life.app, "name": name, "key_name": key_names[name], "condition": "1 = 0", "suspect": False, "seen_at": tx.now}
            tx.connection.execute(insert(reaction).values(**row, wrote=WAITS))
    return seen.among(given)


def mark(tx: Transaction) -> None:
    """Where the sign is there: every reaction of every app waits, whatever becomes of the rows that tell. Schedules call nobody."""
    if not can_tell(tx.database):
        return
    others = and_(reaction.c.name != "", reaction.c.mark.is_(None), not_(MARKED))
    tx.connection.execute(update(reaction).where(others, _TELLS).values(wrote=WAITS, seen_at=tx.now))


def answer(tx: Transaction, *those: ColumnElement[bool]) -> list[str]:
    """A person said what it was: nothing tells of it any more, and the marked reactions for which `those` hold go on; returns their names.

    The others stay marked. Nothing to answer on SQLite.
    """
    if not tx.database.locks_rows:
        return []
    mark(tx)
    tx.connection.execute(update(reaction).where(_OWN_ROW_TELLS).values(wrote=THIS_TRANSACTION))
    tx.connection.execute(update(worker).where(_LIFE_TELLS).values(wrote=THIS_TRANSACTION))
    marked = update(reaction).where(MARKED, *those).values(wrote=THIS_TRANSACTION, seen_at=tx.now).returning(reaction.c.name)
    return list(tx.connection.execute(marked).scalars())


def sign_from_now_on(life: Life) -> None:
    """Our own row as older code left it says nothing: from now on it does. Where no failover can lose a commit, what tells is answered.

    PostgreSQL alone.
    """
    silent = exists(select(_ONE).where(_own.c.app == "", _own.c.name == "", _own.c.wrote.is_(null())))
    with life.database.reading() as connection:
        says_nothing, tells = connection.execute(select(silent, _TELLS)).one()
    if says_nothing or (tells and not can_tell(life.database)):
        with life.transaction() as tx:
            tx.connection.execute(update(reaction).where(OWN_ROW, reaction.c.wrote.is_(null())).values(wrote=THIS_TRANSACTION))
            if not can_tell(life.database):
                answer(tx, reaction.c.app == life.app)


def in_words(names: Iterable[str]) -> str:
    """For people, who look at a store."""
    return f"The database may have been put back: {', '.join(sorted(names))} wait for a person to say what it was: {CURE}."


def say(names: Iterable[str]) -> None:
    """Once for each start that meets it."""
    listed = sorted(names)
    log.error(
        "the database may have been put back: rows of ours were written by somebody else, as by a restore of data alone, an ALTER TABLE"
        " that rewrites, or an UPDATE by hand. %s are not carried out until a person has said what it was: %s",
        ", ".join(listed),
        CURE,
        extra={"event": "may_have_gone_back", "reactions": listed},
    )
