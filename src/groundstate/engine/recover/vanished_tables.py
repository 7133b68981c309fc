"""Checks, before groundstate's tables are created, whether such tables existed before and were dropped, together with the attempts in
doubt. Creates nothing.

If the tables exist and list workers, a start detects by itself whether the database went back in time (restore.py). If the tables were
dropped, newly created tables do not show this. Two traces may show it: witness files, in which workers count their calls outside of the
database, and those of groundstate's tables that were not dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, inspect, select

from groundstate.engine.recover import restore
from groundstate.store import tables
from groundstate.store.engine_settings import translated_schema
from groundstate.store.port import Database, Liveness, Witness
from groundstate.store.safe_name import label_of_url
from groundstate.values.errors import StoreRefusedError

# The tables that every version of groundstate has; the table of rates came later.
CORE = (tables.attempt, tables.reaction, tables.worker)
SHOWN = 5


@dataclass(frozen=True)
class Traces:
    """What is left of groundstate's tables that existed before.

    workers: (worker id, begun calls) for each witness file that counts calls which this database does not know. gone: names of
    groundstate's tables that are missing while others exist.
    """

    workers: tuple[tuple[int, int], ...] = ()
    gone: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.workers or self.gone)


def find_traces(database: Database, witness: Witness | None) -> Traces:
    """Return what is left of former tables; empty traces if there is nothing, or if the next start detects by itself what happened. Creates
    no file.
    """
    if database.missing_file() is not None:
        return Traces(tuple(find_unknown_incarnations(database, witness)))
    with database.reading() as connection:
        looked = inspect(connection)
        missing = tuple(table.name for table in CORE if not looked.has_table(table.name, schema=translated_schema(connection, table)))
        if not missing and _has_any_registration(connection):
            return Traces()
    left = len(missing) < len(CORE)
    gone = missing if left and not _is_noticed_at_start(database, missing) else ()
    return Traces(tuple(find_unknown_incarnations(database, witness)), gone)


def find_unknown_incarnations(database: Database, witness: Witness | None) -> list[tuple[int, int]]:
    """Return (worker id, begun calls) for each witness file that counts calls which this database does not know."""

    def read_begin_counts() -> dict[int, int]:
        if database.missing_file() is not None:
            return {}
        with database.reading() as connection:
            there = inspect(connection).has_table(tables.worker.name, schema=translated_schema(connection, tables.worker))
        return restore.read_begun_counts(database) if there else {}

    return [(incarnation, count) for incarnation, count, _ in restore.find_lost_incarnations(witness, read_begin_counts)]


def refuse_creation(found: Traces, database: Database, witness: Witness | None) -> None:
    """Raise StoreRefusedError, since groundstate's tables existed before and must not simply be created again. The text has the cure."""
    said = []
    if found.gone:
        said.append(f"{', '.join(found.gone)} of groundstate's tables is missing, and others are there")
    if found.workers and witness is not None:
        listed = ", ".join(f"{witness.path_of(incarnation)} ({_calls_in_words(count)})" for incarnation, count in found.workers[:SHOWN])
        more = f", and {len(found.workers) - SHOWN} more" if len(found.workers) > SHOWN else ""
        said.append(f"a witness tells of begun calls that this database does not know, and that nobody has settled: {listed}{more}")
    raise StoreRefusedError(
        f"{label_of_url(database.settings.url)}: {'; '.join(said)}. Nothing was changed."
        " If groundstate's tables were dropped, or a backup was put back: `groundstate init --after-restore` makes them, and puts each row"
        " that would be called in doubt. If this is a new database, of which nothing was ever called, and a witness is another one's:"
        " `groundstate init --new-database`, which erases the witness"
    )


def refuse_if_workers_run(liveness: Liveness, some: Sequence[int]) -> None:
    """Raise StoreRefusedError if one of the workers with these ids runs: its witness file is in use and must not be erased."""
    seen = liveness.alive_by_worker(some) if some else {}
    alive = [incarnation for incarnation in some if seen.get(incarnation) is True]
    if alive:
        listed = ", ".join(f"{incarnation:x}" for incarnation in alive)
        raise StoreRefusedError(f"--new-database: workers that have a witness here are running ({listed}): stop them first")


def _calls_in_words(count: int) -> str:
    return f"{count:,} call{'' if count == 1 else 's'} begun"


def _has_any_registration(connection: Connection) -> bool:
    """Return whether groundstate's tables list any reaction or any worker."""
    reaction = connection.execute(select(tables.reaction.c.name).where(tables.reaction.c.name != "").limit(1)).first()
    return reaction is not None or connection.execute(select(tables.worker.c.id).limit(1)).first() is not None


def _is_noticed_at_start(database: Database, missing: Sequence[str]) -> bool:
    """Return whether a start will notice that these missing tables were created again. On PostgreSQL, a start compares the oid of each
    table with the recorded oid. The record is in the table of reactions, so this table must not be missing.
    """
    compared = database.locks_rows and database.settings.failover != "lossless"
    return compared and tables.reaction.name not in missing
