"""Checks an app on its database for problems and risks: indexes, keys, models, column types, groundstate's own tables. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal

from sqlalchemy import Connection, DateTime, DefaultClause, Integer, MetaData, Table, Text, func, select, text, type_coerce
from sqlalchemy.exc import CompileError, DBAPIError

from groundstate.engine.operate import triggers
from groundstate.engine.operate.source_constants import counted_beside
from groundstate.engine.operate.state_circles import Steps
from groundstate.engine.rows import reaction_registry
from groundstate.engine.sql import db_errors, key_columns, mapping_check, raising_rows, rights, row_security, schema, stored_values
from groundstate.engine.sql.condition_query import ConditionQuery, sql_name
from groundstate.engine.sql.findings import Finding, find_hidden_rows, find_missing_indexes, find_odd_due_times
from groundstate.engine.sql.savepoint_query import ask_in_savepoint, why_unasked
from groundstate.rules import condition_lint
from groundstate.rules import sql_inspect as look
from groundstate.rules.column_demands import OTHER
from groundstate.rules.cron import Cron
from groundstate.rules.cron_silence import silent_from
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store import delete_guard
from groundstate.store.port import Database
from groundstate.store.tables import UtcDateTime
from groundstate.store.tables import metadata as our_tables
from groundstate.values.errors import NotInitialisedError, StoreRefusedError


def check(
    database: Database, queries: Sequence[ConditionQuery], metadatas: Sequence[MetaData], schedules: Sequence[ScheduleSpec] = ()
) -> list[Finding]:
    """Return all findings on one database, problems first."""
    try:
        database.connect()
        schema.check(database)
    except (NotInitialisedError, StoreRefusedError) as error:
        return [Finding("problem", "tables", "groundstate", str(error))]
    except DBAPIError as error:
        if not db_errors.denied(error):
            raise
        return [Finding("problem", "rights", "groundstate", db_errors.error_in_one_line(error))]  # without this right no other query works
    found: list[Finding] = []
    with database.reading() as connection:
        lacks = mapping_check.missing(connection, queries)
        found += [Finding("problem", "columns", name, words, mapping_check.CURE) for name, words in lacks.items()]
        unmade = mapping_check.unmade(connection, queries)
        found += [Finding("problem", "condition", name, words) for name, words in unmade.items()]
        raised = [(query.spec.name, query.filter_raised) for query in queries if query.filter_raised is not None]
        found += [Finding("problem", "filter", name, str(error)) for name, error in raised]
        silent = {*lacks, *unmade, *(name for name, _ in raised)}  # the others cannot be queried
        queries = [one for one in queries if one.spec.name not in silent]
        denied = rights.missing(
            database,
            connection,
            [table for one in queries for table in one.tables_loaded if isinstance(table, Table)],
            our_tables.sorted_tables,
        )
        found += _rights(connection, denied)
        unread = {name for name, some in denied.items() if "SELECT" in some}
        queries = [
            one
            for one in queries
            if not any(sql_name(table, database) in unread for table in one.tables_loaded if isinstance(table, Table))
        ]
        found += _keys(connection, queries)
        for query in queries:
            unasked = list(_unasked(connection, query))
            found += unasked or find_missing_indexes(database, connection, query)  # an index cannot be built if its expression raises
        found += find_hidden_rows(database, connection, queries)
        found += _stored(connection, queries)
        found += _local_defaults(database, connection, queries)
        found += _same_keys_again(queries)
        found += _key_names(connection, queries)
        found += _unnamed_finds(queries)
        found += _unheard(database)
        found += _rings(queries)
        found += _kept_out(queries)
        found += _clocks(queries)
        found += _writers(queries)
        found += _datetimes(database, queries, metadatas)
        found += _silent_hours(database, connection, schedules)
        found += _triggers(database, connection, queries)
        if database.name == "postgresql":
            found += _kept_rows(connection)
            found += _counted_beside(queries)
        if database.name == "sqlite":
            found += _reused_keys(connection, queries)
            found += find_odd_due_times(connection, queries)
    return sorted(found, key=lambda one: one.level != "problem")


def _rights(connection: Connection, denied: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Yield a problem for each table on which the database role lacks a privilege that a worker needs.

    `denied` is empty for a role that may not write groundstate's own tables: workers don't run under such a role.
    """
    for name, some in denied.items():
        role, words = row_security.role(connection), ", ".join(some)
        yield Finding(
            "problem",
            "rights",
            name,
            f"{role} has no {words} on {name}, which a worker needs: the reactions that meet it are not carried out",
            f"GRANT {words} ON {name} TO {role}",
        )


def _keys(connection: Connection, queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield a problem for each table whose keys the database does not find again by the text that groundstate stores."""
    refused = {query.spec.table_name: key_columns.refused(connection, query) for query in queries}
    yield from (Finding("problem", "keys", name, why.words, key_columns.CURE) for name, why in refused.items() if why is not None)


def _counted_beside(queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    for query in queries:
        handler = query.spec.handler
        session = next((name for name, what in handler.wants.items() if what == "session"), None)
        counted = counted_beside(handler.call, session)
        if counted is not None:
            yield Finding(
                "advice",
                "shared rows",
                query.spec.name,
                f"its handler reads {counted}, of a row beside its record, and writes it back: where another worker does so meanwhile,"
                " nothing is lost, but the whole batch is done again",
                f"let the database compute it ({counted} = TheClass.{counted.rpartition('.')[2]} + ...), or lock the row as you read it:"
                " session.get(TheClass, key, with_for_update=True)",
            )


# ---- conditions ----------------------------------------------------------------------------------------------------------------
def _unasked(connection: Connection, query: ConditionQuery) -> Iterator[Finding]:
    """Yield a problem if the condition raises an error, for some rows or for all."""
    errors: list[Exception] = []
    count = ask_in_savepoint(connection, partial(reaction_registry.count, connection, query, query.ready), errors.append)
    if count is not None:
        return
    words, cure = why_unasked(errors[0]), None
    if db_errors.of_a_value(errors[0]):
        cure = (
            "mend the record; or let the condition be asked of none such, by a clause before it (func.json_valid(column) == 1 on SQLite,"
            " column.regexp_match('^[0-9]+$') before a cast) or func.nullif(column, 0) under a division"
        )
        looked = raising_rows.search(connection, query)
        words = looked.in_words(query) if looked.culprits else words
    yield Finding("problem", "condition", query.spec.name, words, cure)


# ---- schedules -----------------------------------------------------------------------------------------------------------------
def _silent_hours(database: Database, connection: Connection, schedules: Sequence[ScheduleSpec]) -> Iterator[Finding]:
    """Yield advice for schedules that fire at least hourly and that pause for an hour when the clock is set back."""
    now = connection.execute(select(database.now())).scalar_one()
    for spec in schedules:
        cron = spec.timing
        if isinstance(cron, Cron) and (silent := silent_from(cron, now)) is not None:
            words = (
                f"it does not fire at {silent.isoformat(sep=' ', timespec='minutes')}, when the clock shows that hour twice and"
                f" fold={cron.fold!r} takes one of the two: an hour of silence"
            )
            yield Finding("advice", "fold", spec.name, words, "fold='both', or a timedelta instead of a cron expression")


# ---- rows of groundstate's own -------------------------------------------------------------------------------------------------
def _kept_rows(connection: Connection) -> Iterator[Finding]:
    """Yield advice if the trigger that protects the rows of calls is missing or older.

    That happens if the tables of groundstate were made by migrations or by older code.
    """
    if not delete_guard.are_there(connection):
        words = (
            "the trigger groundstate_keep, which refuses to delete or change by hand the row of a call that may have been made, is missing,"
            " edited, switched off or of an earlier version: without its row such a call is made once more"
        )
        cure = ";\n".join(delete_guard.STATEMENTS) + ";"
        yield Finding("advice", "kept rows", "groundstate_attempt", words, cure)


# ---- triggers ------------------------------------------------------------------------------------------------------------------
def _triggers(database: Database, connection: Connection, queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield advice on triggers that are stale, or that watch a table which no reaction of the app reads.

    Results stay right, but rows of a table with a stale trigger may be found only by the sweep, and needless triggers slow down writers.
    """
    if not queries or not triggers.are_there(connection):
        return
    for one in triggers.found(queries[0].spec.app, database, connection, triggers.tables_read(queries)):
        if one.state == "stale":
            words = "its trigger groundstate_rows is of another version, edited or switched off, so that its writers may not be heard"
            yield Finding("advice", "triggers", one.table, words, "groundstate triggers install")
        elif one.state == "needless":
            words = "its trigger groundstate_rows tells of a table that no reaction of this app reads, and each who writes it pays for that"
            yield Finding("advice", "triggers", one.table, words, "groundstate triggers remove, then install")


# ---- keys ----------------------------------------------------------------------------------------------------------------------
def _same_keys_again(queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield advice for reactions whose condition can hold again on the same record, with the same idempotency key for the second call.

    That is so if handlers of other reactions make the condition hold again.
    """
    steps = Steps([query.spec for query in queries])
    for spec in steps.specs:
        call, kind = spec.call, spec.kind
        if call is None or kind is None or spec.occurrence or spec.occurrence_said:
            continue
        if not kind.key and call.in_doubt.kind not in ("same_key", "lookup"):
            continue
        way = steps.comes_again(spec)
        if way is None:
            continue
        through = f", by way of {', '.join(way.reactions[:-1])}" if way.reactions[:-1] else ""
        to = "" if way.value is OTHER else f" to {way.value!r}"
        words = (
            f"{way.reactions[-1]} sets {way.column}{to} again{through}, so that {spec.name} comes a second time on one record, and its call"
            f" {call.function.name} goes out under the same key as the first: the provider gives the first answer again, or its lookup"
            " finds"
            " the first"
        )
        cure = "give `occurrence=[column]` a column that each round changes, or `occurrence=()` where all of them are one round"
        yield Finding("advice", "key", spec.name, words, cure)


def _key_names(connection: Connection, queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield advice for renamed reactions whose idempotency keys only this database can compute, since the code lacks the old name."""
    specs = [query.spec for query in queries]
    for app in dict.fromkeys(spec.app for spec in specs):
        unsaid = reaction_registry.unsaid_key_names(connection, app, [spec for spec in specs if spec.app == app])
        for name, key_name in unsaid.items():
            words = f"{name} was renamed, and this database alone knows of which name the keys of its calls are made"
            yield Finding("advice", "key name", name, words, f"key_name={key_name} in App.on")


def _unheard(database: Database) -> Iterator[Finding]:
    """Yield advice for listeners of the user's engine that set up transactions and that groundstate's own engine does not call."""
    for name in database.settings.carried.unheard:
        words = (
            f"the engine's listener {name} is not called for transactions of groundstate, so that what it sets up is not there for handlers"
        )
        yield Finding("advice", "listener", "engine", words, "do it in a listener for 'connect', or in the handler by its session")


def _unnamed_finds(queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield advice for lookups without a name.

    An attempt remembers the name of its lookup, so that a later deploy with another lookup can be noticed; without a name it cannot.
    """
    by_call = {id(query.spec.call): query.spec for query in reversed(queries)}
    for spec in reversed(by_call.values()):
        call, kind = spec.call, spec.kind
        if call is not None and kind is not None and call.asks_its_lookup and kind.lookup is None:
            words = (
                f"the lookup of its call {call.function.name} has no name, by which attempts would remember it: a deploy whose lookup asks"
                " elsewhere is told Absent of calls that were made before it, and makes them again"
            )
            shown = f"def find_{call.name or call.function.plain_name}(...)"
            cure = f"name the function, as in `{shown}`, and give one that asks elsewhere another name"
            yield Finding("advice", "lookup", spec.name, words, cure)


def _rings(queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield a problem for reactions that undo each other for ever without an error."""
    for names in Steps([query.spec for query in queries]).endless():
        words = (
            f"{', '.join(names)} undo each other: each makes the next one's condition hold, and the last the first one's, so that a record"
            " that comes to one of them goes round for ever"
        )
        yield Finding("problem", "ring", names[0], words, "let one of them leave a state that no other of them undoes, or give it `due=`")


def _kept_out(queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield advice for reactions whose calls in doubt wait for a person, if other reactions are on the same table.

    While such an attempt waits, it keeps the other reactions from its record.
    """
    for query in queries:
        spec = query.spec
        if spec.done_column is not None or spec.terms.policy is None or spec.terms.policy.kind != "hold":
            continue
        base = query.mapper.base_mapper
        others = [
            one.spec.name
            for one in queries
            if one.mapper.base_mapper is base and one.spec.done_column is None and one.spec.name != spec.name
        ]
        if others:
            words = (
                f"a call of it in doubt waits for a person (InDoubt.hold()), and keeps {', '.join(others)} from the same record until"
                " somebody has"
                " settled it"
            )
            cure = "where they need not wait for it, give it `done_column=column`, a column that its handler alone writes"
            yield Finding("advice", "held record", spec.name, words, cure)


def _reused_keys(connection: Connection, queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield advice for SQLite tables that reuse the highest id after it was deleted.

    A new record would then have the idempotency keys of the deleted one (hazard 46).
    """
    tables: dict[Any, str] = {}
    for query in queries:
        if query.spec.call is not None:
            tables.setdefault(query.mapper.base_mapper.local_table, query.spec.name)
    for table, reaction in tables.items():
        columns = list(table.primary_key.columns)
        if len(columns) != 1 or not isinstance(columns[0].type, Integer) or columns[0].foreign_keys:
            continue
        master = f'"{table.schema}".sqlite_master' if table.schema else "sqlite_master"
        made = connection.execute(
            text(f"SELECT sql FROM {master} WHERE type = 'table' AND name = :name"),  # noqa: S608 - the schema is the user's own
            {"name": table.name},
        ).scalar_one_or_none()
        if made is not None and "AUTOINCREMENT" not in made.upper():
            words = (
                f"SQLite gives the highest {columns[0].name} of {table.name} to a new row after it was deleted, and {reaction}'s calls for"
                " both would go out under one key"
            )
            cure = '__table_args__ = {"sqlite_autoincrement": True}, in a table that is made anew'
            yield Finding("advice", "autoincrement", table.fullname, words, cure)


# ---- times -----------------------------------------------------------------------------------------------------------------------
def _clocks(queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield advice for clauses that become true as time passes: no write tells when, so that only the sweep finds the rows."""
    for query in queries:
        if any(condition_lint.tells_time(clause) for clause in query.spec.clauses):
            words = (
                f"a clause of {query.spec.name} asks the clock, so that what becomes true by it is found by a sweep, and not at its time"
            )
            yield Finding("advice", "time", query.spec.name, words, "due=after(column, timedelta(...)), which is slept upon")


def _stored(connection: Connection, queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield a problem for stored values that no condition matches although SQLAlchemy can load them.

    They were written without SQLAlchemy, or come from a server default that SQLite stored as text.
    """
    for one in stored_values.odd(connection, queries):
        words = (
            f"at least {one.rows} rows hold {one.shown}: no clause of type {one.kind} matches that, so that {', '.join(one.reactions)} does"
            " not find them"
        )
        cure = "UPDATE them to what SQLAlchemy writes; as a server default for Boolean give sqlalchemy.true(), for Enum its name"
        yield Finding("problem", "stored", f"{one.table}.{one.column}", words, cure)


def _local_defaults(database: Database, connection: Connection, queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield a problem for due columns without a zone whose default is local time, since they are read as UTC and so are hours off."""
    now = connection.execute(select(database.now())).scalar_one()
    for query in queries:
        due = query.spec.due
        if due is None or due.attribute is None:
            continue
        column = look.base_column(look.element(due.attribute))
        if not isinstance(column.type, DateTime) or column.type.timezone:
            continue
        zone = _zone_of_its_default(database, connection, column)
        if zone is not None:
            words = (
                f"the default of {due.attribute} is the clock of the session that writes, whose zone is {zone} here, and a due time without"
                " a zone is in UTC"
            )
            yield Finding("problem", "time", query.spec.name, words, "mapped_column(groundstate.UtcDateTime, server_default=func.now())")
        for given in (_from_python(column), _from_sqlite(database, connection, column)):
            off = None if given is None else given - now.replace(tzinfo=None)
            if off is not None and abs(off) > _A_MOMENT and abs(off - (now.astimezone().utcoffset() or timedelta())) < _A_MOMENT:
                hours = f"{round(off / timedelta(minutes=1)) / 60:+g} h"
                words = (
                    f"the default of {due.attribute} is {hours} off the database's clock, which is this host's zone, and a due time"
                    " without a zone is in UTC"
                )
                cure = (
                    "mapped_column(groundstate.UtcDateTime, default=lambda: datetime.now(UTC)); for local times that stand there already,"
                    " due=func.timezone('Europe/Berlin', column) on PostgreSQL"
                )
                yield Finding("problem", "time", query.spec.name, words, cure)


_CLOCKS = ("now(", "current_timestamp", "localtimestamp", "clock_timestamp(", "statement_timestamp(", "transaction_timestamp(")
_A_MOMENT = timedelta(minutes=2)  # difference that is allowed between the clocks of the database and of this host


def _from_python(column: Any) -> datetime | None:
    """Return the datetime that the column's Python default gives, without a zone; None if it has no such default."""
    default = column.default
    if default is None or not default.is_callable:
        return None
    try:
        value = default.arg(None)
    except Exception:  # the default needs the context of a statement, or fails outside of one
        return None
    return value.replace(tzinfo=None) if isinstance(value, datetime) else None


def _zone_of_its_default(database: Database, connection: Connection, column: Any) -> str | None:
    """Return the time zone in which PostgreSQL writes the column's default; None if that is UTC, or the default reads no clock."""
    default = column.server_default
    if database.name != "postgresql" or not isinstance(default, DefaultClause):
        return None
    said = str(default.arg).lower()
    if not any(clock in said for clock in _CLOCKS) or "zone" in said:
        return None
    zone = str(connection.execute(text("SELECT reset_val FROM pg_settings WHERE name = 'TimeZone'")).scalar_one())
    off = connection.execute(select(func.timezone(zone, func.now()) - func.timezone("UTC", func.now()))).scalar_one()
    return zone if off else None


def _from_sqlite(database: Database, connection: Connection, column: Any) -> datetime | None:
    """Return the datetime that the column's server default gives on SQLite; None on PostgreSQL, where it depends on the session that
    writes.
    """
    default = column.server_default
    if database.name != "sqlite" or not isinstance(default, DefaultClause) or isinstance(default.arg, str):
        return None
    try:
        return datetime.fromisoformat(str(connection.execute(select(type_coerce(default.arg, Text()))).scalar_one()))
    except (ValueError, CompileError):
        return None


# ---- models --------------------------------------------------------------------------------------------------------------------
def _writers(queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield advice for tables that several reactions write and that have no version column.

    An object in the user's own session may be stale, and would overwrite what a reaction changed (hazard 23).
    """
    by_model: dict[Any, list[str]] = {}
    for query in queries:
        by_model.setdefault(query.mapper.base_mapper, []).append(query.spec.name)
    for mapper, names in by_model.items():
        if len(names) > 1 and mapper.version_id_col is None:
            words = (
                f"{', '.join(sorted(names))} write {mapper.local_table.fullname}, and a session of yours that loaded a row before writes"
                " its changed columns over theirs without a word"
            )
            cure = 'version: Mapped[int], and __mapper_args__ = {"version_id_col": version}; or change rows by UPDATE ... WHERE ...'
            yield Finding("advice", "version", mapper.class_.__name__, words, cure)


def _datetimes(database: Database, queries: Sequence[ConditionQuery], metadatas: Sequence[MetaData]) -> Iterator[Finding]:
    """Yield findings for columns that load naive datetimes. To compare one with the aware `ReactionContext.now` raises at conclude (hazard
    64).
    """
    ours = {table for query in queries for table in query.mapper.tables}
    for metadata in metadatas:
        for table in metadata.sorted_tables:
            for column in table.columns:
                kind = column.type
                if isinstance(kind, UtcDateTime) or not isinstance(kind, DateTime):
                    continue
                if kind.timezone and database.name != "sqlite":
                    continue
                level: Literal["problem", "advice"] = "problem" if kind.timezone and table in ours else "advice"
                words = (
                    f"{table.fullname}.{column.name} gives naive datetimes"
                    f"{' on SQLite, though timezone=True' if kind.timezone else ''}, taken for UTC; comparing one with ReactionContext.now"
                    " raises"
                )
                yield Finding(level, "datetime", f"{table.fullname}.{column.name}", words, "mapped_column(groundstate.UtcDateTime)")
