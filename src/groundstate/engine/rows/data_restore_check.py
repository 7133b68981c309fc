"""Notices rows of ours on PostgreSQL that something else wrote: a sign that a restore of data only may have put the database back (hazard
46).

An ALTER TABLE that rewrites the table, or an UPDATE by hand, looks the same, so nothing is put in doubt by it. Reactions with a call wait
until a person says what it was: `groundstate trust`, or a start with --after-restore. Reactions without a call go on.

The sign can be in our own row of groundstate_reaction and in the rows of worker incarnations. A start that sees it marks the reactions of
every app, since incarnations are deleted after a while, and the answer for one app does not hold for another.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, exists, insert, literal_column, not_, null, or_, select, update

from groundstate.engine.rows.begin_count import OWN_ROW
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql.transaction import Transaction
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database
from groundstate.store.tables import reaction, worker
from groundstate.store.wrote_column import THIS_TRANSACTION, WAITS, is_marked, somebody_else_wrote

log = logging.getLogger("groundstate")
MARKED = is_marked(reaction.name)
_OWN_ROW_TELLS = and_(OWN_ROW, somebody_else_wrote(reaction.name))
_LIFE_TELLS = somebody_else_wrote(worker.name)
_ONE: ColumnElement[int] = literal_column("1")
_own = reaction.alias("groundstate_own")  # an alias, since a statement may be about other rows of the same table
_TELLS = or_(
    exists(select(_ONE).where(_own.c.app == "", _own.c.name == "", somebody_else_wrote(_own.name))),
    exists(select(_ONE).select_from(worker).where(_LIFE_TELLS)),
)
CURE = "`groundstate run --after-restore` where a backup was put back, `groundstate trust` where none was"


@dataclass(frozen=True)
class Waiting:
    """The reactions of an app that wait for a person. `all_of_them` means that the sign of a restore is there and no start
    has seen it yet.
    """

    names: frozenset[str] = frozenset()
    all_of_them: bool = False

    def among(self, specs: Iterable[ReactionSpec]) -> frozenset[str]:
        """Return the names of the waiting reactions among `specs`; a reaction without a call never waits."""
        return frozenset(spec.name for spec in specs if spec.call is not None and (self.all_of_them or spec.name in self.names))


NOBODY = Waiting()


def can_tell(database: Database) -> bool:
    """Whether rows that something else wrote are a sign of a restore here: on PostgreSQL, unless its failover is lossless."""
    return database.locks_rows and database.settings.failover != "lossless"


def waiting(database: Database, connection: Connection, app: str) -> Waiting:
    """Return which reactions of the app wait for a person. Runs only SELECTs, so it works on a standby."""
    if not can_tell(database):
        return NOBODY
    marked = select(reaction.c.name).where(reaction.c.app == app, MARKED)
    names = frozenset(connection.execute(marked).scalars())
    return Waiting(names, bool(connection.execute(select(_TELLS)).scalar_one()))


def mark_and_list_waiting_reactions(incarnation: Incarnation, specs: Iterable[ReactionSpec]) -> frozenset[str]:
    """Return which of these reactions wait for a person, since the database may have been put back, and mark them if no start has done so
    yet. A start calls this before it writes to any row by which a restore is noticed.
    """
    if not can_tell(incarnation.database):
        return frozenset()
    given = list(specs)
    with incarnation.database.reading() as connection:
        seen = waiting(incarnation.database, connection, incarnation.app)
    if not seen.all_of_them:
        return seen.among(given)
    with incarnation.transaction() as tx:
        mark(tx)
        known = set(tx.connection.execute(select(reaction.c.name).where(reaction.c.app == incarnation.app)).scalars())
        key_names = {spec.name: spec.key_name or spec.name for spec in given}
        for name in sorted(seen.among(given) - known):
            # This reaction was accepted after the backup was taken, so its row is lost. It is written with a condition that matches
            # nothing, so that it counts as new.
            row = {
                "app": incarnation.app,
                "name": name,
                "key_name": key_names[name],
                "condition": "1 = 0",
                "suspect": False,
                "seen_at": tx.now,
            }
            tx.connection.execute(insert(reaction).values(**row, wrote=WAITS))
    return seen.among(given)


def mark(tx: Transaction) -> None:
    """If rows of ours show that the database may have been put back, mark every reaction of every app as waiting, so that they wait even
    after those rows are gone. Schedules are not marked, since they make no calls.
    """
    if not can_tell(tx.database):
        return
    others = and_(reaction.c.name != "", reaction.c.mark.is_(None), not_(MARKED))
    tx.connection.execute(update(reaction).where(others, _TELLS).values(wrote=WAITS, seen_at=tx.now))


def answer(tx: Transaction, *those: ColumnElement[bool]) -> list[str]:
    """Record a person's answer on whether the database was put back: no row is a sign of it any more, and the marked reactions for which
    `those` hold go on. Returns their names.

    Other marked reactions stay marked. Does nothing on SQLite.
    """
    if not tx.database.locks_rows:
        return []
    mark(tx)
    tx.connection.execute(update(reaction).where(_OWN_ROW_TELLS).values(wrote=THIS_TRANSACTION))
    tx.connection.execute(update(worker).where(_LIFE_TELLS).values(wrote=THIS_TRANSACTION))
    marked = update(reaction).where(MARKED, *those).values(wrote=THIS_TRANSACTION, seen_at=tx.now).returning(reaction.c.name)
    return list(tx.connection.execute(marked).scalars())


def sign_from_now_on(incarnation: Incarnation) -> None:
    """Fill in the column `wrote` of our own row if older code left it empty, so that the row can show a restore from now on. If no failover
    can lose a commit here, a sign of a restore counts as answered.

    Only for PostgreSQL.
    """
    silent = exists(select(_ONE).where(_own.c.app == "", _own.c.name == "", _own.c.wrote.is_(null())))
    with incarnation.database.reading() as connection:
        says_nothing, tells = connection.execute(select(silent, _TELLS)).one()
    if says_nothing or (tells and not can_tell(incarnation.database)):
        with incarnation.transaction() as tx:
            tx.connection.execute(update(reaction).where(OWN_ROW, reaction.c.wrote.is_(null())).values(wrote=THIS_TRANSACTION))
            if not can_tell(incarnation.database):
                answer(tx, reaction.c.app == incarnation.app)


def in_words(names: Iterable[str]) -> str:
    """Return a sentence for people who look at the store: these reactions wait, and how to answer."""
    return f"The database may have been put back: {', '.join(sorted(names))} wait for a person to say what it was: {CURE}."


def log_waiting_reactions(names: Iterable[str]) -> None:
    """Log an error that these reactions wait for a person, since the database may have been put back. Each start that notices it calls this
    once.
    """
    listed = sorted(names)
    log.error(
        "the database may have been put back: rows of ours were written by somebody else, as by a restore of data alone, an ALTER TABLE"
        " that rewrites, or an UPDATE by hand. %s are not carried out until a person has said what it was: %s",
        ", ".join(listed),
        CURE,
        extra={"event": "may_have_gone_back", "reactions": listed},
    )
