"""Checks, before groundstate's tables are created, whether they existed before and are gone, with all that was known of calls in doubt.
Creates nothing.

If the tables exist and list incarnations, a start itself notices a database that went back (restore.py). If they vanished and are created
anew, by hand or by a migration, nothing in them shows it; but witness files may, and so may those of the tables that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, inspect, select

from groundstate.engine.recover import restore
from groundstate.store import tables
from groundstate.store.engine_settings import schema_of
from groundstate.store.port import Database, Liveness, Witness
from groundstate.store.safe_name import name_of
from groundstate.values.errors import StoreRefusedError

# The tables that every version has; a database of an older version lacks the table of rates.
CORE = (tables.attempt, tables.reaction, tables.worker)
SHOWN = 5


@dataclass(frozen=True)
class Traces:
    """What is left of groundstate tables that existed before.

    workers: id and begun calls of each incarnation whose witness file this database does not account for. gone: tables of groundstate that
    are missing while others exist.
    """

    workers: tuple[tuple[int, int], ...] = ()
    gone: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.workers or self.gone)


def traces(database: Database, witness: Witness | None) -> Traces:
    """Return what is left of former tables, or nothing if the next start itself notices what happened. Creates no file."""
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
    """Return the id and begun calls of each incarnation whose witness file counts calls that this database does not know."""

    def begins() -> dict[int, int]:
        if database.missing() is not None:
            return {}
        with database.reading() as connection:
            there = inspect(connection).has_table(tables.worker.name, schema=schema_of(connection, tables.worker))
        return restore.begins_in(database) if there else {}

    return [(incarnation, count) for incarnation, count, _ in restore.lost_lives(witness, begins)]


def refuse(found: Traces, database: Database, witness: Witness | None) -> None:
    """Refuse to create groundstate's tables as if none had existed. Always raises StoreRefusedError, with what a person can do."""
    said = []
    if found.gone:
        said.append(f"{', '.join(found.gone)} of groundstate's tables is missing, and others are there")
    if found.workers and witness is not None:
        listed = ", ".join(f"{witness.place(incarnation)} ({_calls(count)})" for incarnation, count in found.workers[:SHOWN])
        more = f", and {len(found.workers) - SHOWN} more" if len(found.workers) > SHOWN else ""
        said.append(f"a witness tells of begun calls that this database does not know, and that nobody has settled: {listed}{more}")
    raise StoreRefusedError(
        f"{name_of(database.settings.url)}: {'; '.join(said)}. Nothing was changed."
        " If groundstate's tables were dropped, or a backup was put back: `groundstate init --after-restore` makes them, and puts each row"
        " that would be called in doubt. If this is a new database, of which nothing was ever called, and a witness is another one's:"
        " `groundstate init --new-database`, which erases the witness"
    )


def refuse_living(liveness: Liveness, some: Sequence[int]) -> None:
    """Raise StoreRefusedError if one of these workers runs: the witness file of a running worker belongs to no other database."""
    seen = liveness.alive(some) if some else {}
    alive = [incarnation for incarnation in some if seen.get(incarnation) is True]
    if alive:
        listed = ", ".join(f"{incarnation:x}" for incarnation in alive)
        raise StoreRefusedError(f"--new-database: workers that have a witness here are running ({listed}): stop them first")


def _calls(count: int) -> str:
    return f"{count:,} call{'' if count == 1 else 's'} begun"


def _knows_somebody(connection: Connection) -> bool:
    """Return whether any reaction or any worker incarnation is recorded."""
    reaction = connection.execute(select(tables.reaction.c.name).where(tables.reaction.c.name != "").limit(1)).first()
    return reaction is not None or connection.execute(select(tables.worker.c.id).limit(1)).first() is not None


def _seen_by_a_start(database: Database, missing: Sequence[str]) -> bool:
    """Return whether a start notices that these tables were created anew: on PostgreSQL they have another oid, which is compared with the
    recorded one.
    """
    compared = database.locks_rows and database.settings.failover != "lossless"
    return compared and tables.reaction.name not in missing
