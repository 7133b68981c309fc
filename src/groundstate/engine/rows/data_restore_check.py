"""Notices on PostgreSQL that something other than groundstate wrote our rows: the data may have been restored from a backup (hazard 46).

An ALTER TABLE that rewrites the table, or an UPDATE by hand, leaves the same sign as a restore, so no attempt is put in doubt because of
it. Instead, reactions with a call wait until a person says whether it was a restore: by `groundstate trust`, or by a start with
--after-restore. Reactions without a call go on.

The sign can be in our own row of groundstate_reaction and in the rows of worker incarnations. A start that sees the sign marks the
reactions of every app, since the sign may be gone later: rows of incarnations are deleted after a while, and a person's answer removes the
sign although the person answers for one app only.
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
from groundstate.store.wrote_column import THIS_TRANSACTION, WAITS, is_marked_as_waiting, is_written_by_others

log = logging.getLogger("groundstate")
MARKED = is_marked_as_waiting(reaction.name)
_OWN_ROW_TELLS = and_(OWN_ROW, is_written_by_others(reaction.name))
_LIFE_TELLS = is_written_by_others(worker.name)
_ONE: ColumnElement[int] = literal_column("1")
_own = reaction.alias("groundstate_own")  # an alias, since the enclosing statement may be about other rows of this table
_TELLS = or_(
    exists(select(_ONE).where(_own.c.app == "", _own.c.name == "", is_written_by_others(_own.name))),
    exists(select(_ONE).select_from(worker).where(_LIFE_TELLS)),
)
CURE = "`groundstate run --after-restore` where a backup was put back, `groundstate trust` where none was"


@dataclass(frozen=True)
class Waiting:
    """Says which reactions of an app wait until a person says whether a backup was put back.

    Attributes:
        names: The reactions that a start of a worker has marked as waiting.
        all_of_them: Whether every reaction waits, since there is a sign of a restore and no start has marked the reactions yet.
    """

    names: frozenset[str] = frozenset()
    all_of_them: bool = False

    def names_of_waiting(self, specs: Iterable[ReactionSpec]) -> frozenset[str]:
        """Return the names of the given reactions that wait. A reaction without a call never waits."""
        return frozenset(spec.name for spec in specs if spec.call is not None and (self.all_of_them or spec.name in self.names))


NOBODY = Waiting()


def can_show_restore(database: Database) -> bool:
    """Return whether our rows on this database can show that a backup was restored. The sign is that something other than groundstate wrote
    them. True on PostgreSQL, unless the app declares that a failover of its server loses no commit.
    """
    return database.locks_rows and database.settings.failover != "lossless"


def find_waiting_reactions(database: Database, connection: Connection, app: str) -> Waiting:
    """Return which reactions of the app wait for a person. Only SELECTs are run, so it works on a standby too."""
    if not can_show_restore(database):
        return NOBODY
    marked = select(reaction.c.name).where(reaction.c.app == app, MARKED)
    names = frozenset(connection.execute(marked).scalars())
    return Waiting(names, bool(connection.execute(select(_TELLS)).scalar_one()))


def mark_and_list_waiting_reactions(incarnation: Incarnation, specs: Iterable[ReactionSpec]) -> frozenset[str]:
    """Return those of these reactions that must wait for a person because a backup may have been put back. If no earlier start has marked
    them, mark them first. A start must call this before it writes to any row that can show a restore.
    """
    if not can_show_restore(incarnation.database):
        return frozenset()
    given = list(specs)
    with incarnation.database.reading() as connection:
        seen = find_waiting_reactions(incarnation.database, connection, incarnation.app)
    if not seen.all_of_them:
        return seen.names_of_waiting(given)
    with incarnation.open_transaction() as tx:
        mark_reactions_if_restored(tx)
        known = set(tx.connection.execute(select(reaction.c.name).where(reaction.c.app == incarnation.app)).scalars())
        key_names = {spec.name: spec.key_name or spec.name for spec in given}
        for name in sorted(seen.names_of_waiting(given) - known):
            # The row of this reaction is missing, since the reaction was accepted after the backup was taken. Insert a row with a
            # condition that matches nothing, so that the reaction counts as new.
            row = {
                "app": incarnation.app,
                "name": name,
                "key_name": key_names[name],
                "condition": "1 = 0",
                "suspect": False,
                "seen_at": tx.now,
            }
            tx.connection.execute(insert(reaction).values(**row, wrote=WAITS))
    return seen.names_of_waiting(given)


def mark_reactions_if_restored(tx: Transaction) -> None:
    """Mark every reaction of every app as waiting if our rows show that a backup may have been put back. The marks stay even when these
    rows are gone. Schedules are not marked, since they make no calls.
    """
    if not can_show_restore(tx.database):
        return
    others = and_(reaction.c.name != "", reaction.c.mark.is_(None), not_(MARKED))
    tx.connection.execute(update(reaction).where(others, _TELLS).values(wrote=WAITS, seen_at=tx.now))


def record_answer(tx: Transaction, *those: ColumnElement[bool]) -> list[str]:
    """Record that a person has said whether a backup was put back: remove the sign of it from our rows, and unmark the reactions for which
    the clauses `those` hold. Returns the names of these reactions.

    Other marked reactions stay marked. Does nothing on SQLite.
    """
    if not tx.database.locks_rows:
        return []
    mark_reactions_if_restored(tx)
    tx.connection.execute(update(reaction).where(_OWN_ROW_TELLS).values(wrote=THIS_TRANSACTION))
    tx.connection.execute(update(worker).where(_LIFE_TELLS).values(wrote=THIS_TRANSACTION))
    marked = update(reaction).where(MARKED, *those).values(wrote=THIS_TRANSACTION, seen_at=tx.now).returning(reaction.c.name)
    return list(tx.connection.execute(marked).scalars())


def enable_restore_sign(incarnation: Incarnation) -> None:
    """Fill in the column `wrote` of our own row if an older version left it empty, so that a later restore of the data can be detected.
    But if the app declares that a failover loses no commit, clear everything by which a restore is detected.

    Call it on PostgreSQL only.
    """
    silent = exists(select(_ONE).where(_own.c.app == "", _own.c.name == "", _own.c.wrote.is_(null())))
    with incarnation.database.reading() as connection:
        says_nothing, tells = connection.execute(select(silent, _TELLS)).one()
    if says_nothing or (tells and not can_show_restore(incarnation.database)):
        with incarnation.open_transaction() as tx:
            tx.connection.execute(update(reaction).where(OWN_ROW, reaction.c.wrote.is_(null())).values(wrote=THIS_TRANSACTION))
            if not can_show_restore(incarnation.database):
                record_answer(tx, reaction.c.app == incarnation.app)


def waiting_message(names: Iterable[str]) -> str:
    """Return a sentence that says which reactions wait, why, and what a person has to do."""
    return f"The database may have been put back: {', '.join(sorted(names))} wait for a person to say what it was: {CURE}."


def log_waiting_reactions(names: Iterable[str]) -> None:
    """Log that these reactions wait for a person, since a backup may have been put back. Each start that notices it calls this once."""
    listed = sorted(names)
    log.error(
        "the database may have been put back: rows of groundstate were written by something else, such as a restore of data only, an ALTER"
        " TABLE that rewrites the table, or an UPDATE by hand. %s are not carried out until a person has said what it was: %s",
        ", ".join(listed),
        CURE,
        extra={"event": "may_have_gone_back", "reactions": listed},
    )
