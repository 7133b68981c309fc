"""Whether our tables were here before and are gone, with all that was known of calls in doubt: asked before they are made. Makes nothing.

Where our tables are there, and know who worked, a start sees by itself that a database went back (restore.py). Where they vanished, and are
made anew by hand or by a migration, nothing in them tells; but witness files may, and so may those of our tables that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, inspect, select

from groundstate.engine import restore
from groundstate.store import tables
from groundstate.store.carried import schema_of
from groundstate.store.naming import name_of
from groundstate.store.port import Database, Lives, Witness
from groundstate.values.errors import StoreRefused

CORE = (tables.attempt, tables.reaction, tables.worker)  # a database of an older version lacks the table of rates, and nothing vanished
SHOWN = 5


@dataclass(frozen=True)
class Traces:
    """What is left of tables that were here.

    lives: whose witness this database does not know, and how many calls each began. gone: tables of ours that are missing beside others
    that are there.
    """

    lives: tuple[tuple[int, int], ...] = ()
    gone: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.lives or self.gone)


def traces(database: Database, witness: Witness | None) -> Traces:
    """What is left. Nothing where the next start sees by itself what happened. Makes no file."""
    if database.missing() is not None:
        return Traces(tuple(unknown_lives(database, witness)))
    with database.reading() as connection:
        looked = inspect(connection)
        missing = tuple(table.name for table in CORE if not looked.has_table(table.name, schema=schema_of(connection, table)))
        if not missing and _knows_somebody(connection):
            return Traces()
    left = len(missing) < len(CORE)
    gone = missing if left and not _seen_by_a_start(database, missing) else ()
    return Traces(tuple(unknown_lives(database, witness)), gone)


def unknown_lives(database: Database, witness: Witness | None) -> list[tuple[int, int]]:
    """Lives of which a witness tells begun calls that this database does not know, and how many each began."""

    def begins() -> dict[int, int]:
        if database.missing() is not None:
            return {}
        with database.reading() as connection:
            there = inspect(connection).has_table(tables.worker.name, schema=schema_of(connection, tables.worker))
        return restore.begins_in(database) if there else {}

    return [(life, count) for life, count, _ in restore.lost_lives(witness, begins)]


def refuse(found: Traces, database: Database, witness: Witness | None) -> None:
    """Refuses to make our tables as if nothing had been here. Raises StoreRefused, with what a person can say."""
    said = []
    if found.gone:
        said.append(f"{', '.join(found.gone)} of groundstate's tables is missing, and others are there")
    if found.lives and witness is not None:
        listed = ", ".join(f"{witness.place(life)} ({_calls(count)})" for life, count in found.lives[:SHOWN])
        more = f", and {len(found.lives) - SHOWN} more" if len(found.lives) > SHOWN else ""
        said.append(f"a witness tells of begun calls that this database does not know, and that nobody has settled: {listed}{more}")
    raise StoreRefused(
        f"{name_of(database.settings.url)}: {'; '.join(said)}. Nothing was changed."
        " If groundstate's tables were dropped, or a backup was put back: `groundstate init --after-restore` makes them, and puts each row"
        " that would be called in doubt. If this is a new database, of which nothing was ever called, and a witness is another one's:"
        " `groundstate init --new-database`, which erases the witness"
    )


def refuse_living(lives: Lives, some: Sequence[int]) -> None:
    """The witness of a worker that runs is no other database's. Raises StoreRefused."""
    seen = lives.alive(some) if some else {}
    alive = [life for life in some if seen.get(life) is True]
    if alive:
        listed = ", ".join(f"{life:x}" for life in alive)
        raise StoreRefused(f"--new-database: workers that have a witness here are running (lives {listed}): stop them first")


def _calls(count: int) -> str:
    return f"{count:,} call{'' if count == 1 else 's'} begun"


def _knows_somebody(connection: Connection) -> bool:
    """Whether anything was written down of a reaction, or of a life."""
    reaction = connection.execute(select(tables.reaction.c.name).where(tables.reaction.c.name != "").limit(1)).first()
    return reaction is not None or connection.execute(select(tables.worker.c.life).limit(1)).first() is not None


def _seen_by_a_start(database: Database, missing: Sequence[str]) -> bool:
    """PostgreSQL gives a table that is made anew another oid, which is compared with what was written down."""
    compared = database.locks_rows and database.settings.failover != "lossless"
    return compared and tables.reaction.name not in missing
