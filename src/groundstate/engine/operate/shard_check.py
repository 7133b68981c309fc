"""Checks that the databases of one app are separate: no two URLs lead to the same database, and no two shards give out the same key.

The idempotency key of a call is made of the record's primary key without the shard, so that a record keeps its idempotency key when it
moves to another shard. If two shards numbered their rows alike, two records would have one idempotency key, and the second call would be
answered with the result of the first. This module only reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, select, text
from sqlalchemy import Sequence as NumberSequence

from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.findings import Finding
from groundstate.engine.sql.table_spelling import sql_table_name
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database
from groundstate.values.errors import StoreRefusedError

SAMPLE = 1_000  # the number of a table's lowest keys, and also of its highest keys, that are looked up on the other shards
_SERVER = text("""
    SELECT (SELECT system_identifier FROM pg_control_system())::text, current_database(), to_regclass('groundstate_attempt')::oid::bigint,
           pg_postmaster_start_time()::text
""")
_NUMBERS = text(r"""
    SELECT sequence.seqincrement, pg_sequence_last_value(sequence.seqrelid), sequence.seqstart, sequence.seqrelid::regclass::text,
           has_sequence_privilege(sequence.seqrelid, 'SELECT')
    FROM pg_sequence AS sequence
    WHERE sequence.seqrelid = coalesce(
        pg_get_serial_sequence(:table, :column),
        (SELECT substring(pg_get_expr(adbin, adrelid) FROM 'nextval\(''(.+)''::regclass')
         FROM pg_attrdef JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum
         WHERE adrelid = to_regclass(:table) AND attname = :column),
        :named
    )::regclass
""")
_KEYS_OF_ITS_OWN = (
    "give records keys that are unique over all shards: a UUID (mapped_column(primary_key=True, default=uuid.uuid4)), or numbers of your"
    " own (mapped_column(primary_key=True, autoincrement=False))"
)


def identify_database(database: Database) -> Any:
    """Return a value that identifies the database: equal for two URLs if they lead to one database."""
    if database.name == "sqlite":
        path = Path(database.settings.url.database or "")
        found = path.stat() if path.exists() else None
        return (found.st_dev, found.st_ino) if found else str(path)
    with database.reading() as connection:
        return tuple(connection.execute(_SERVER).one())


# ---- how a database numbers its rows ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class NumberSeries:
    """The numbers that a database gives to the rows of a table. `one` is any of them, and `step` the distance between two of them."""

    step: int
    one: int

    def has_common_number(self, other: NumberSeries) -> bool:
        """Return whether some number is in both series. The series are taken as endless."""
        return (self.one - other.one) % math.gcd(self.step, other.step) == 0


def read_numbering(database: Database, connection: Connection, table: Table) -> NumberSeries | None:
    """Return how the database numbers the rows of this table; None if the application makes the keys itself."""
    column = table.autoincrement_column
    if column is None or (column.default is not None and not isinstance(column.default, NumberSequence)):
        return None
    if database.name == "sqlite":
        return NumberSeries(1, 1)
    quoted = sql_table_name(table, database)
    named = column.default.name if isinstance(column.default, NumberSequence) else None
    row = connection.execute(_NUMBERS, {"table": quoted, "column": column.name, "named": named}).first()
    if row is None:
        return None
    step, last, start, sequence, may_read = row
    if last is None and may_read:  # no number was taken from the sequence yet, but a person may have changed its start
        last = connection.execute(text(f"SELECT last_value FROM {sequence}")).scalar_one()  # noqa: S608  # quoted by PostgreSQL
    return NumberSeries(int(step), int(start if last is None else last))


class AdmittedDatabases:
    """The databases of one app that were found to be separate so far. Each further database is compared with all of these."""

    def __init__(self) -> None:
        self._which: dict[str, Any] = {}
        self._numbers: dict[str, dict[Table, NumberSeries]] = {}

    def add_and_compare(self, label: str, database: Database, sharded: Sequence[ReactionSpec], shards: Sequence[str]) -> None:
        """Compare one more database of the app with the databases before it, and keep it for the next comparisons.

        `label` is the database's name in messages. If the database is one of several shards, `sharded` has the reactions on it, and
        `shards` the labels of all shards.

        Raises:
            StoreRefusedError: Another label leads to the same database, or another shard numbers its records alike. The message has the
                cure.
        """
        own = identify_database(database)
        same = next((other for other, one in self._which.items() if one == own and other != label), None)
        if same is not None:
            raise StoreRefusedError(
                f"{label} and {same} are one database: two workers would carry out each row of it twice over. Where it has the tables of"
                " two bases, give both to one store: Store(url, Base, OtherBase)"
            )
        numbers = {} if len(shards) < 2 else self._check_numbering(label, database, sharded, shards)
        self._which[label], self._numbers[label] = own, numbers

    def _check_numbering(
        self, label: str, database: Database, sharded: Sequence[ReactionSpec], shards: Sequence[str]
    ) -> dict[Table, NumberSeries]:
        found: dict[Table, NumberSeries] = {}
        with database.reading() as connection:
            for table, reaction in tables_with_calls(sharded).items():
                numbers = read_numbering(database, connection, table)
                if numbers is None:
                    continue
                found[table] = numbers
                others = [other for other in shards if other != label and table in self._numbers.get(other, {})]
                met = next((other for other in others if self._numbers[other][table].has_common_number(numbers)), None)
                if met is not None or numbers.step < len(shards):
                    raise StoreRefusedError(
                        _refusal_in_words(database, table, reaction, len(shards), f"{label} and {met or 'other shards'}")
                    )
        return found


def tables_with_calls(specs: Sequence[ReactionSpec]) -> dict[Table, str]:
    """Return each table on which a reaction makes calls, with the name of one such reaction: keys of its rows become idempotency keys."""
    found: dict[Table, str] = {}
    for spec in specs:
        table = spec.mapper.base_mapper.local_table
        if spec.call is not None and isinstance(table, Table):
            found.setdefault(table, spec.name)
    return found


def _refusal_in_words(database: Database, table: Table, reaction: str, count: int, who: str) -> str:
    return (
        f"{who} give the same numbers to rows of {table.fullname}, and {reaction}'s calls for two records would go out under one key:"
        f" {_cure_in_words(database, table, count)}"
    )


def _cure_in_words(database: Database, table: Table, count: int) -> str:
    if database.name == "sqlite" or table.autoincrement_column is None:
        return _KEYS_OF_ITS_OWN
    column = table.autoincrement_column.name
    alter = f"ALTER SEQUENCE <that of {table.fullname}.{column}> INCREMENT BY {count} RESTART WITH <n>"
    return (
        f"{_KEYS_OF_ITS_OWN}; or let each shard count by {count} from a number of its own: {alter}, where <n> is above all that were given"
        f" out, and leaves another remainder by {count} on each shard"
    )


# ---- keys that two shards have -------------------------------------------------------------------------------------------------------
def check_shards(shards: Mapping[str, tuple[Database, Sequence[ConditionQuery]]]) -> list[Finding]:
    """Compare the shards, and return findings about tables in which two shards have equal keys, or will give out equal keys later.

    Existing keys are compared only in a sample.
    """
    found: list[Finding] = []
    for table, queries in _queries_by_table(shards).items():
        called = next((one.spec.name for one in queries.values() if one.spec.call is not None), None)
        called = called or tables_with_calls([one.spec for _, some in shards.values() for one in some]).get(table)
        found += _find_duplicate_keys(table, queries, called)
        found += _find_common_numbering(table, queries, called, len(shards))
    return found


def _queries_by_table(shards: Mapping[str, tuple[Database, Sequence[ConditionQuery]]]) -> dict[Table, dict[str, ConditionQuery]]:
    """Return, by table and then by shard label, one condition query on this table."""
    found: dict[Table, dict[str, ConditionQuery]] = {}
    for label, (_, queries) in shards.items():
        for query in queries:
            table = query.mapper.base_mapper.local_table
            if isinstance(table, Table):
                found.setdefault(table, {}).setdefault(label, query)
    return found


def _find_duplicate_keys(table: Table, queries: Mapping[str, ConditionQuery], called: str | None) -> Iterator[Finding]:
    labels = list(queries)
    for number, label in enumerate(labels):
        sample = _read_sample_of_keys(table, queries[label])
        for other in labels[number + 1 :]:
            same = _keys_that_exist(table, queries[other], sample)
            if same:
                shown = queries[label].keys.record_text(same[0])
                words = f"{label} and {other} both have a record {shown}" + (
                    f", and {len(same) - 1:,} more of a sample" if same[1:] else ""
                )
                if called is None:
                    yield Finding(
                        "advice", "shards", table.fullname, f"{words}: a command cannot tell them apart without --store", _KEYS_OF_ITS_OWN
                    )
                else:
                    words += f": {called}'s calls for both go out under one key, and one of the two is given the other's answer"
                    yield Finding("problem", "shards", table.fullname, words, _KEYS_OF_ITS_OWN)


def _read_sample_of_keys(table: Table, query: ConditionQuery) -> list[tuple[Any, ...]]:
    columns = list(table.primary_key.columns)
    ends = ([one.asc() for one in columns], [one.desc() for one in columns])
    with query.database.reading() as connection:
        keys = [tuple(row) for order in ends for row in connection.execute(select(*columns).order_by(*order).limit(SAMPLE))]
    return list(dict.fromkeys(keys))


def _keys_that_exist(table: Table, query: ConditionQuery, sample: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    if not sample:
        return []
    columns = list(table.primary_key.columns)
    among = columns[0].in_([key[0] for key in sample])  # SQL compares only the first column; below, Python compares whole keys
    with query.database.reading() as connection:
        there = {tuple(row) for row in connection.execute(select(*columns).where(among).limit(100 * SAMPLE))}
    return [key for key in sample if key in there]


def _find_common_numbering(table: Table, queries: Mapping[str, ConditionQuery], called: str | None, count: int) -> Iterator[Finding]:
    numbers: dict[str, NumberSeries] = {}
    for label, query in queries.items():
        with query.database.reading() as connection:
            found = read_numbering(query.database, connection, table)
        if found is None:
            continue
        met = next((other for other, one in numbers.items() if one.has_common_number(found)), None)
        numbers[label] = found
        if met is not None:
            words = f"{met} and {label} give the same numbers to their rows"
            words += f", and {called}'s calls for two records would go out under one key" if called else ", so no record can ever move"
            yield Finding("problem" if called else "advice", "shards", table.fullname, words, _cure_in_words(query.database, table, count))
            return
