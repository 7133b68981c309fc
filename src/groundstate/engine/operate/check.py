"""Checks an app and its database for problems and risks: indexes, keys, models, column types, groundstate's own tables. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal

from sqlalchemy import Connection, DateTime, DefaultClause, Integer, MetaData, Table, Text, func, select, text, type_coerce
from sqlalchemy.exc import CompileError, DBAPIError

from groundstate.engine.operate import triggers
from groundstate.engine.operate.source_constants import find_shared_row_update
from groundstate.engine.operate.state_circles import StateSteps
from groundstate.engine.rows import reaction_registry
from groundstate.engine.sql import db_errors, key_refusal, mapping_check, raising_rows, rights, row_security, schema, stored_values
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.findings import Finding, find_hidden_rows, find_missing_indexes, find_odd_due_times
from groundstate.engine.sql.savepoint_query import query_in_savepoint, why_condition_not_evaluable
from groundstate.engine.sql.table_spelling import sql_table_name
from groundstate.rules import condition_lint
from groundstate.rules import sql_inspect as look
from groundstate.rules.column_demands import OTHER
from groundstate.rules.cron import Cron
from groundstate.rules.cron_silence import first_silent_tick
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store import delete_guard
from groundstate.store.port import Database
from groundstate.store.tables import UtcDateTime
from groundstate.store.tables import metadata as our_tables
from groundstate.values.errors import NotInitialisedError, StoreRefusedError


def check_database(
    database: Database, queries: Sequence[ConditionQuery], metadatas: Sequence[MetaData], schedules: Sequence[ScheduleSpec] = ()
) -> list[Finding]:
    """Check an app on one database, and return all findings, problems first."""
    try:
        database.connect()
        schema.check_tables(database)
    except (NotInitialisedError, StoreRefusedError) as error:
        return [Finding("problem", "tables", "groundstate", str(error))]
    except DBAPIError as error:
        if not db_errors.is_permission_denied(error):
            raise
        return [Finding("problem", "rights", "groundstate", db_errors.error_in_one_line(error))]  # without this right no other query works
    found: list[Finding] = []
    with database.reading() as connection:
        lacks = mapping_check.describe_missing_names(connection, queries)
        found += [Finding("problem", "columns", name, words, mapping_check.CURE) for name, words in lacks.items()]
        unmade = mapping_check.describe_unbuildable_statements(connection, queries)
        found += [Finding("problem", "condition", name, words) for name, words in unmade.items()]
        raised = [(query.spec.name, query.filter_raised) for query in queries if query.filter_raised is not None]
        found += [Finding("problem", "filter", name, str(error)) for name, error in raised]
        silent = {*lacks, *unmade, *(name for name, _ in raised)}  # reactions whose condition cannot be queried
        queries = [one for one in queries if one.spec.name not in silent]
        denied = rights.missing_rights(
            database,
            connection,
            [table for one in queries for table in one.loading.tables_loaded if isinstance(table, Table)],
            our_tables.sorted_tables,
        )
        found += _find_missing_rights(connection, denied)
        unread = {name for name, some in denied.items() if "SELECT" in some}
        queries = [
            one
            for one in queries
            if not any(sql_table_name(table, database) in unread for table in one.loading.tables_loaded if isinstance(table, Table))
        ]
        found += _find_unusable_keys(connection, queries)
        for query in queries:
            unasked = list(_find_raising_condition(connection, query))
            found += unasked or find_missing_indexes(database, connection, query)  # an index cannot be built if its expression raises
        found += find_hidden_rows(database, connection, queries)
        found += _find_unmatched_values(connection, queries)
        found += _find_local_time_defaults(database, connection, queries)
        found += _find_repeated_keys(queries)
        found += _find_unsaid_key_names(connection, queries)
        found += _find_unnamed_lookups(queries)
        found += _find_uncalled_listeners(database)
        found += _find_endless_cycles(queries)
        found += _find_reactions_that_block_others(queries)
        found += _find_clock_clauses(queries)
        found += _find_tables_without_version(queries)
        found += _find_naive_datetimes(database, queries, metadatas)
        found += _find_silent_hours(database, connection, schedules)
        found += _find_useless_triggers(database, connection, queries)
        if database.name == "postgresql":
            found += _find_missing_delete_guard(connection)
            found += _find_shared_row_updates(queries)
        if database.name == "sqlite":
            found += _find_reused_keys(connection, queries)
            found += find_odd_due_times(connection, queries)
    return sorted(found, key=lambda one: one.level != "problem")


def _find_missing_rights(connection: Connection, denied: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Yield a problem for each table on which the current database role lacks a privilege that a worker needs.

    `denied` has the lacking privileges by table name. It is empty for a role that may not write groundstate's own tables, since no worker
    runs under such a role.
    """
    for name, some in denied.items():
        role, words = row_security.current_role_name(connection), ", ".join(some)
        yield Finding(
            "problem",
            "rights",
            name,
            f"{role} has no {words} on {name}, which a worker needs: the reactions that meet it are not carried out",
            f"GRANT {words} ON {name} TO {role}",
        )


def _find_unusable_keys(connection: Connection, queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield a problem for each table whose rows the database does not find again by the key text that groundstate stores."""
    refused = {query.spec.table_name: key_refusal.find_key_refusal(connection, query) for query in queries}
    yield from (Finding("problem", "keys", name, why.words, key_refusal.CURE) for name, why in refused.items() if why is not None)


def _find_shared_row_updates(queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    for query in queries:
        handler = query.spec.handler
        session = next((name for name, what in handler.wants.items() if what == "session"), None)
        counted = find_shared_row_update(handler.call, session)
        if counted is not None:
            yield Finding(
                "advice",
                "shared rows",
                query.spec.name,
                f"its handler reads {counted}, of a row beside its record, and writes it back: if another worker does so at the same time,"
                " nothing is lost, but the whole batch is repeated",
                f"let the database compute it ({counted} = TheClass.{counted.rpartition('.')[2]} + ...), or lock the row as you read it:"
                " session.get(TheClass, key, with_for_update=True)",
            )


# ---- conditions ----------------------------------------------------------------------------------------------------------------
def _find_raising_condition(connection: Connection, query: ConditionQuery) -> Iterator[Finding]:
    """Yield a problem if the condition raises an error, for some rows or for all."""
    errors: list[Exception] = []
    count = query_in_savepoint(
        connection, partial(reaction_registry.count_records, connection, query, query.condition.is_ready), errors.append
    )
    if count is not None:
        return
    words, cure = why_condition_not_evaluable(errors[0]), None
    if db_errors.is_caused_by_value(errors[0]):
        cure = (
            "mend the record; or exclude such values by a clause before the one that raises (func.json_valid(column) == 1 on SQLite,"
            " column.regexp_match('^[0-9]+$') before a cast), or by func.nullif(column, 0) as a divisor"
        )
        looked = raising_rows.search_raising_rows(connection, query)
        words = looked.describe_culprits(query) if looked.culprits else words
    yield Finding("problem", "condition", query.spec.name, words, cure)


# ---- schedules -----------------------------------------------------------------------------------------------------------------
def _find_silent_hours(database: Database, connection: Connection, schedules: Sequence[ScheduleSpec]) -> Iterator[Finding]:
    """Yield advice for each schedule that fires at least hourly, but skips an hour when the clock is set back in autumn."""
    now = connection.execute(select(database.now())).scalar_one()
    for spec in schedules:
        cron = spec.timing
        if isinstance(cron, Cron) and (silent := first_silent_tick(cron, now)) is not None:
            words = (
                f"it does not fire at {silent.isoformat(sep=' ', timespec='minutes')}, when the clock shows that hour twice and"
                f" fold={cron.fold!r} takes one of the two: an hour of silence"
            )
            yield Finding("advice", "fold", spec.name, words, "fold='both', or a timedelta instead of a cron expression")


# ---- rows of groundstate's own -------------------------------------------------------------------------------------------------
def _find_missing_delete_guard(connection: Connection) -> Iterator[Finding]:
    """Yield advice if the trigger that protects the rows of calls is missing or of an older version.

    This happens if groundstate's tables were made by migrations or by an older version of groundstate.
    """
    if not delete_guard.triggers_exist(connection):
        words = (
            "the trigger groundstate_keep, which refuses to delete or change by hand the row of a call that may have been made, is missing,"
            " edited, switched off or of an earlier version: if such a row is deleted, its call is made once more"
        )
        cure = ";\n".join(delete_guard.STATEMENTS) + ";"
        yield Finding("advice", "kept rows", "groundstate_attempt", words, cure)


# ---- triggers ------------------------------------------------------------------------------------------------------------------
def _find_useless_triggers(database: Database, connection: Connection, queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield advice on triggers that are stale (of another version, edited or switched off), or that watch a table which no reaction reads.

    Nothing goes wrong with such triggers, but rows of a table with a stale trigger may be found late, and needless triggers slow down
    writes.
    """
    if not queries or not triggers.has_triggers(connection):
        return
    for one in triggers.read_triggers(queries[0].spec.app, database, connection, triggers.tables_read(queries)):
        if one.state == "stale":
            words = "its trigger groundstate_rows is of another version, edited or switched off, so that it may not announce all writes"
            yield Finding("advice", "triggers", one.table, words, "groundstate triggers install")
        elif one.state == "needless":
            words = "its trigger groundstate_rows announces writes of a table that no reaction of this app reads, and slows the writers"
            yield Finding("advice", "triggers", one.table, words, "groundstate triggers remove, then install")


# ---- keys ----------------------------------------------------------------------------------------------------------------------
def _find_repeated_keys(queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield advice for each reaction whose condition can hold a second time on a record, because handlers of other reactions change the
    record. The second call would have the idempotency key of the first call.
    """
    steps = StateSteps([query.spec for query in queries])
    for spec in steps.specs:
        call, kind = spec.call, spec.kind
        if call is None or kind is None or spec.occurrence or spec.occurrence_said:
            continue
        if not kind.key and call.in_doubt.kind not in ("same_key", "lookup"):
            continue
        way = steps.find_way_back(spec)
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


def _find_unsaid_key_names(connection: Connection, queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield advice for each renamed reaction whose old name is stored in this database and is not in the source. The old name matters,
    since it is part of idempotency keys.
    """
    specs = [query.spec for query in queries]
    for app in dict.fromkeys(spec.app for spec in specs):
        unsaid = reaction_registry.undeclared_key_names(connection, app, [spec for spec in specs if spec.app == app])
        for name, key_name in unsaid.items():
            words = f"{name} was renamed, and only this database knows from which name the keys of its calls are made"
            yield Finding("advice", "key name", name, words, f"key_name={key_name} in App.on")


def _find_uncalled_listeners(database: Database) -> Iterator[Finding]:
    """Yield advice for each listener that the application registered on its engine, and that prepares transactions: groundstate's own
    engine does not call this listener.
    """
    for name in database.settings.carried.unheard:
        words = f"the engine's listener {name} is not called for transactions of groundstate, so that handlers run without what it sets up"
        yield Finding("advice", "listener", "engine", words, "do it in a listener for 'connect', or in the handler by its session")


def _find_unnamed_lookups(queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield advice for lookups without a name, such as lambdas.

    An attempt remembers the name of its lookup. So groundstate notices if a later version has another lookup. It cannot notice this if the
    lookup has no name.
    """
    by_call = {id(query.spec.call): query.spec for query in reversed(queries)}
    for spec in reversed(by_call.values()):
        call, kind = spec.call, spec.kind
        if call is not None and kind is not None and call.uses_lookup and kind.lookup is None:
            words = (
                f"the lookup of its call {call.function.name} has no name, by which attempts would remember it: a deploy whose lookup asks"
                " elsewhere is told Absent of calls that were made before it, and makes them again"
            )
            shown = f"def find_{call.name or call.function.plain_name}(...)"
            cure = f"name the function, as in `{shown}`, and give one that asks elsewhere another name"
            yield Finding("advice", "lookup", spec.name, words, cure)


def _find_endless_cycles(queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield a problem for each cycle of reactions that undo each other's changes for ever, without an error."""
    for names in StateSteps([query.spec for query in queries]).find_endless_cycles():
        words = (
            f"{', '.join(names)} undo each other: each makes the next one's condition hold, and the last the first one's, so that a record"
            " that meets one of these conditions goes round for ever"
        )
        yield Finding("problem", "ring", names[0], words, "let one of them leave a state that no other of them undoes, or give it `due=`")


def _find_reactions_that_block_others(queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield advice for reactions whose calls in doubt wait for a person, if there are other reactions on the same table.

    While a call in doubt waits, no other reaction is carried out on its record.
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


def _find_reused_keys(connection: Connection, queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield advice for each SQLite table in which two rows can get the same id: if the row with the highest id is deleted, the next new row
    gets this id.

    Calls for the new record would have the idempotency keys of the deleted record (hazard 46).
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
def _find_clock_clauses(queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield advice for clauses that read the clock: such a clause becomes true without a write, so no hint tells workers of the row."""
    for query in queries:
        if any(condition_lint.depends_on_clock(clause) for clause in query.spec.clauses):
            words = f"a clause of {query.spec.name} reads the clock: when it becomes true, only a sweep finds the record, some time later"
            yield Finding("advice", "time", query.spec.name, words, "due=after(column, timedelta(...)), which is slept upon")


def _find_unmatched_values(connection: Connection, queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield a problem for stored values that SQLAlchemy can load, but that no comparison in a condition matches.

    Such values were written without SQLAlchemy, or come from a server default that SQLite stored as text.
    """
    for one in stored_values.find_unmatchable_values(connection, queries):
        words = (
            f"at least {one.rows} rows hold {one.shown}: no clause of type {one.kind} matches that, so that {', '.join(one.reactions)} does"
            " not find them"
        )
        cure = "UPDATE them to what SQLAlchemy writes; as a server default for Boolean give sqlalchemy.true(), for Enum its name"
        yield Finding("problem", "stored", f"{one.table}.{one.column}", words, cure)


def _find_local_time_defaults(database: Database, connection: Connection, queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield a problem for each due column without a time zone whose default is local time: groundstate reads the column as UTC."""
    now = connection.execute(select(database.now())).scalar_one()
    for query in queries:
        due = query.spec.due
        if due is None or due.attribute is None:
            continue
        column = look.base_column(look.sql_element(due.attribute))
        if not isinstance(column.type, DateTime) or column.type.timezone:
            continue
        zone = _time_zone_of_default(database, connection, column)
        if zone is not None:
            words = (
                f"the default of {due.attribute} is local time of the writing session, whose zone is {zone} here, but a due time without"
                " a zone is read as UTC"
            )
            yield Finding("problem", "time", query.spec.name, words, "mapped_column(groundstate.UtcDateTime, server_default=func.now())")
        for given in (_value_of_python_default(column), _value_of_sqlite_default(database, connection, column)):
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
_A_MOMENT = timedelta(minutes=2)  # a smaller difference between the clocks of the database and of this host is ignored


def _value_of_python_default(column: Any) -> datetime | None:
    """Return the datetime, without a zone, that the column's Python default function gives now; None if it gives no datetime."""
    default = column.default
    if default is None or not default.is_callable:
        return None
    try:
        value = default.arg(None)
    except Exception:  # the default needs the context of a statement, or fails outside of one
        return None
    return value.replace(tzinfo=None) if isinstance(value, datetime) else None


def _time_zone_of_default(database: Database, connection: Connection, column: Any) -> str | None:
    """Return the name of the time zone in which PostgreSQL computes the column's default; None if the zone is UTC, or the default reads no
    clock.
    """
    default = column.server_default
    if database.name != "postgresql" or not isinstance(default, DefaultClause):
        return None
    said = str(default.arg).lower()
    if not any(clock in said for clock in _CLOCKS) or "zone" in said:
        return None
    zone = str(connection.execute(text("SELECT reset_val FROM pg_settings WHERE name = 'TimeZone'")).scalar_one())
    off = connection.execute(select(func.timezone(zone, func.now()) - func.timezone("UTC", func.now()))).scalar_one()
    return zone if off else None


def _value_of_sqlite_default(database: Database, connection: Connection, column: Any) -> datetime | None:
    """Return the datetime that the column's server default gives on SQLite now; None if it gives no datetime, and on other databases."""
    default = column.server_default
    if database.name != "sqlite" or not isinstance(default, DefaultClause) or isinstance(default.arg, str):
        return None
    try:
        return datetime.fromisoformat(str(connection.execute(select(type_coerce(default.arg, Text()))).scalar_one()))
    except (ValueError, CompileError):
        return None


# ---- models --------------------------------------------------------------------------------------------------------------------
def _find_tables_without_version(queries: Sequence[ConditionQuery]) -> Iterator[Finding]:
    """Yield advice for each table that several reactions write, and that has no version column.

    An object that the application loaded before may be stale, and would overwrite what a reaction changed (hazard 23).
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


def _find_naive_datetimes(database: Database, queries: Sequence[ConditionQuery], metadatas: Sequence[MetaData]) -> Iterator[Finding]:
    """Yield a finding for each column that loads datetimes without a time zone. A handler that compares such a datetime with
    `ReactionContext.now`, which has a zone, raises (hazard 64).
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
