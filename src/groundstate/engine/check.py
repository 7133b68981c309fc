"""What is wrong, or might be, with an app on its database: indexes, keys, models, column types, our own tables. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal

from sqlalchemy import Connection, DateTime, DefaultClause, Integer, MetaData, Table, Text, func, select, text, type_coerce
from sqlalchemy.exc import CompileError, DBAPIError

from groundstate.engine import fitting, hidden, key_columns, odd_times, plans, raising, registry, rights, schema, stored, triggers, trouble
from groundstate.engine.asked_apart import asked_apart, why_unasked
from groundstate.engine.circles import Steps
from groundstate.engine.handwriting import counted_beside
from groundstate.engine.question import Question, sql_name
from groundstate.rules import clause as look
from groundstate.rules import suspicion
from groundstate.rules.cron import Cron
from groundstate.rules.demands import OTHER
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.silence import silent_from
from groundstate.store import kept_rows
from groundstate.store.port import Database
from groundstate.store.tables import Instant
from groundstate.store.tables import metadata as our_tables
from groundstate.values.errors import NotInitialised, StoreRefused

LARGE = 10_000  # rows: from here on a scan in each sweep is a problem, and advice below


@dataclass(frozen=True)
class Finding:
    """One thing found. level: 'problem' makes `groundstate check` end with 1, 'advice' does not."""

    level: Literal["problem", "advice"]
    kind: str
    subject: str
    words: str
    cure: str | None = None


def check(
    database: Database, questions: Sequence[Question], metadatas: Sequence[MetaData], schedules: Sequence[ScheduleSpec] = ()
) -> list[Finding]:
    """All findings on one store, problems first."""
    try:
        database.connect()
        schema.check(database)
    except (NotInitialised, StoreRefused) as error:
        return [Finding("problem", "tables", "groundstate", str(error))]
    except DBAPIError as error:
        if not trouble.denied(error):
            raise
        return [Finding("problem", "rights", "groundstate", trouble.told(error))]  # nothing else can be asked
    found: list[Finding] = []
    with database.reading() as connection:
        lacks = fitting.missing(connection, questions)
        found += [Finding("problem", "columns", name, words, fitting.CURE) for name, words in lacks.items()]
        raised = [(question.spec.name, question.filter_raised) for question in questions if question.filter_raised is not None]
        found += [Finding("problem", "filter", name, str(error)) for name, error in raised]
        questions = [one for one in questions if one.spec.name not in lacks and one.filter_raised is None]  # nothing else can be asked
        denied = rights.missing(
            database,
            connection,
            [table for one in questions for table in one.tables_loaded if isinstance(table, Table)],
            our_tables.sorted_tables,
        )
        found += _rights(connection, denied)
        unread = {name for name, some in denied.items() if "SELECT" in some}
        questions = [
            one
            for one in questions
            if not any(sql_name(table, database) in unread for table in one.tables_loaded if isinstance(table, Table))
        ]
        found += _keys(connection, questions)
        for question in questions:
            unasked = list(_unasked(connection, question))
            found += unasked or _indexes(database, connection, question)  # no index is made over an expression that raises
        found += hidden_rows(database, connection, questions)
        found += _stored(connection, questions)
        found += _local_defaults(database, connection, questions)
        found += _same_keys_again(questions)
        found += _key_names(connection, questions)
        found += _unnamed_finds(questions)
        found += _unheard(database)
        found += _rings(questions)
        found += _kept_out(questions)
        found += _clocks(questions)
        found += _writers(questions)
        found += _datetimes(database, questions, metadatas)
        found += _silent_hours(database, connection, schedules)
        found += _triggers(database, connection, questions)
        if database.name == "postgresql":
            found += _kept_rows(connection)
            found += _counted_beside(questions)
        if database.name == "sqlite":
            found += _reused_keys(connection, questions)
            found += other_times(connection, questions)
    return sorted(found, key=lambda one: one.level != "problem")


def large_scans(database: Database, connection: Connection, questions: Sequence[Question]) -> list[Finding]:
    """Conditions that make each sweep read a whole large table."""
    return [found for question in questions for found in _indexes(database, connection, question) if found.level == "problem"]


def hidden_rows(database: Database, connection: Connection, questions: Sequence[Question]) -> list[Finding]:
    """Tables of which row-level security may keep rows from the role that asks: what it does not see it does not carry out."""
    asked = [table for question in questions for table in sorted(plans.tables_of(question), key=lambda table: str(table.fullname))]
    return [
        Finding(
            "problem",
            "row security",
            name,
            f"policies may hide rows of {name} from {(role := hidden.role(connection))}: what it does not see it does not carry out, and"
            " `pending` of the table's owner shows it as left to do for ever",
            f"CREATE POLICY groundstate ON {name} TO {role} USING (true) WITH CHECK (true), and no RESTRICTIVE policy for it;"
            f" or ALTER ROLE {role} BYPASSRLS",
        )
        for name in hidden.hidden(database, connection, [*asked, *our_tables.sorted_tables])
    ]


def _rights(connection: Connection, denied: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """What a worker does and this role may not do; of a role that may write our tables, as a worker's may."""
    for name, some in denied.items():
        role, words = hidden.role(connection), ", ".join(some)
        yield Finding(
            "problem",
            "rights",
            name,
            f"{role} has no {words} on {name}, which a worker needs: the reactions that meet it are not carried out",
            f"GRANT {words} ON {name} TO {role}",
        )


def _keys(connection: Connection, questions: Sequence[Question]) -> Iterator[Finding]:
    """Keys by whose text the database does not find their record again."""
    refused = {question.spec.table_name: key_columns.refused(connection, question) for question in questions}
    yield from (Finding("problem", "keys", name, why.words, key_columns.CURE) for name, why in refused.items() if why is not None)


def _counted_beside(questions: Sequence[Question]) -> Iterator[Finding]:
    for question in questions:
        handler = question.spec.handler
        session = next((name for name, what in handler.wants.items() if what == "session"), None)
        counted = counted_beside(handler.call, session)
        if counted is not None:
            yield Finding(
                "advice",
                "shared rows",
                question.spec.name,
                f"its handler reads {counted}, of a row beside its record, and writes it back: where another worker does so meanwhile,"
                " nothing is lost, but the whole batch is done again",
                f"let the database compute it ({counted} = TheClass.{counted.rpartition('.')[2]} + ...), or lock the row as you read it:"
                " session.get(TheClass, key, with_for_update=True)",
            )


# ---- conditions ----------------------------------------------------------------------------------------------------------------
def _unasked(connection: Connection, question: Question) -> Iterator[Finding]:
    """Conditions that raise, for some rows or for all."""
    errors: list[DBAPIError] = []
    count = asked_apart(connection, partial(registry.count, connection, question, question.ready), errors.append)
    if count is not None:
        return
    words, cure = why_unasked(errors[0]), None
    if trouble.of_a_value(errors[0]):
        cure = (
            "mend the record; or let the condition be asked of none such, by a clause before it (func.json_valid(column) == 1 on SQLite,"
            " column.regexp_match('^[0-9]+$') before a cast) or func.nullif(column, 0) under a division"
        )
        looked = raising.search(connection, question)
        words = looked.in_words(question) if looked.culprits else words
    yield Finding("problem", "condition", question.spec.name, words, cure)


# ---- indexes -------------------------------------------------------------------------------------------------------------------
def _indexes(database: Database, connection: Connection, question: Question) -> Iterator[Finding]:
    name = question.spec.name
    try:
        found = plans.scans(database, connection, question)
        sorted_ = plans.unsorted(database, connection, question)
        grouped = plans.ungrouped(database, connection, question)
    except CompileError as error:
        yield Finding("advice", "index", name, f"its condition cannot be explained: {error}")
        return
    if grouped is not None:
        words = f"each look for the rows of {name}, value by value, sorts all rows of {grouped.table} of which its condition holds"
        yield Finding("problem" if grouped.rows >= LARGE else "advice", "index", name, words, grouped.ddl)
    if sorted_ is not None:
        words = f"what is due next of {name} is found by sorting all rows of {sorted_.table} of which its condition holds"
        yield Finding("problem" if sorted_.rows >= LARGE else "advice", "index", name, words, sorted_.ddl)
    if sorted_ is not None or grouped is not None:
        return
    for scan in found:
        many = f"at least {scan.rows:,}" if scan.rows >= plans.COUNTED_MOST else f"{scan.rows:,}"
        words = f"each sweep of {name} reads the whole table {scan.table} ({many} rows)"
        if scan.ddl is None:
            words += ": no index serves its condition; add one on the columns that it compares, or a clause that an index can answer"
        yield Finding("problem" if scan.rows >= LARGE else "advice", "index", name, words, scan.ddl)


# ---- schedules -----------------------------------------------------------------------------------------------------------------
def _silent_hours(database: Database, connection: Connection, schedules: Sequence[ScheduleSpec]) -> Iterator[Finding]:
    """What fires each hour or oftener pauses for an hour when the clock goes back."""
    now = connection.execute(select(database.now())).scalar_one()
    for spec in schedules:
        cron = spec.timing
        if isinstance(cron, Cron) and (silent := silent_from(cron, now)) is not None:
            words = (
                f"it does not fire at {silent.isoformat(sep=' ', timespec='minutes')}, when the clock shows that hour twice and"
                f" overlap={cron.overlap!r} takes one of the two: an hour of silence"
            )
            yield Finding("advice", "overlap", spec.name, words, "overlap='both', or a timedelta instead of a cron expression")


# ---- our own rows --------------------------------------------------------------------------------------------------------------
def _kept_rows(connection: Connection) -> Iterator[Finding]:
    """The trigger that keeps rows of calls: missing or older where our tables were made by migrations, or by older code."""
    if not kept_rows.are_there(connection):
        words = (
            "the trigger groundstate_keep, which refuses to delete or change by hand the row of a call that may have been made, is missing,"
            " edited, switched off or of an earlier version: without its row such a call is made once more"
        )
        cure = ";\n".join(kept_rows.STATEMENTS) + ";"
        yield Finding("advice", "kept rows", "groundstate_attempt", words, cure)


# ---- triggers ------------------------------------------------------------------------------------------------------------------
def _triggers(database: Database, connection: Connection, questions: Sequence[Question]) -> Iterator[Finding]:
    """Triggers that tell nobody, or tell what nobody asks: nothing is wrong by it, but writers pay for it, or rows wait for a sweep."""
    if not questions or not triggers.are_there(connection):
        return
    for one in triggers.found(questions[0].spec.app, database, connection, triggers.tables_read(questions)):
        if one.state == "stale":
            words = "its trigger groundstate_rows is of another version, edited or switched off, so that its writers may not be heard"
            yield Finding("advice", "triggers", one.table, words, "groundstate triggers install")
        elif one.state == "needless":
            words = "its trigger groundstate_rows tells of a table that no reaction of this app reads, and each who writes it pays for that"
            yield Finding("advice", "triggers", one.table, words, "groundstate triggers remove, then install")


# ---- keys ----------------------------------------------------------------------------------------------------------------------
def _same_keys_again(questions: Sequence[Question]) -> Iterator[Finding]:
    """A call whose event comes again on the same record under the same key: other reactions lead back to its condition."""
    steps = Steps([question.spec for question in questions])
    for spec in steps.specs:
        call, kind = spec.call, spec.kind
        if call is None or kind is None or spec.occurrence or spec.occurrence_said:
            continue
        if not kind.key and call.in_doubt.kind not in ("same_key", "ask"):
            continue
        way = steps.comes_again(spec)
        if way is None:
            continue
        through = f", by way of {', '.join(way.reactions[:-1])}" if way.reactions[:-1] else ""
        to = "" if way.value is OTHER else f" to {way.value!r}"
        words = (
            f"{way.reactions[-1]} sets {way.column}{to} again{through}, so that {spec.name} comes a second time on one record, and its call"
            f" {call.function.name} goes out under the same key as the first: the provider gives the first answer again, or its find finds"
            " the first"
        )
        cure = "give `occurrence=[column]` a column that each round changes, or `occurrence=()` where all of them are one round"
        yield Finding("advice", "key", spec.name, words, cure)


def _key_names(connection: Connection, questions: Sequence[Question]) -> Iterator[Finding]:
    """Keys that this database alone knows how to make."""
    specs = [question.spec for question in questions]
    for app in dict.fromkeys(spec.app for spec in specs):
        unsaid = registry.unsaid_key_names(connection, app, [spec for spec in specs if spec.app == app])
        for name, key_name in unsaid.items():
            words = f"{name} was renamed, and this database alone knows of which name the keys of its calls are made"
            yield Finding("advice", "key name", name, words, f"key_name={key_name} in App.on")


def _unheard(database: Database) -> Iterator[Finding]:
    """Listeners that prepare the transactions of the user's engine, and not ours."""
    for name in database.settings.carried.unheard:
        words = (
            f"the engine's listener {name} is not called for transactions of groundstate, so that what it sets up is not there for handlers"
        )
        yield Finding("advice", "listener", "engine", words, "do it in a listener for 'connect', or in the handler by its session")


def _unnamed_finds(questions: Sequence[Question]) -> Iterator[Finding]:
    """Finds of which no attempt can remember that it was this one that would have been asked."""
    by_call = {id(question.spec.call): question.spec for question in reversed(questions)}
    for spec in reversed(by_call.values()):
        call, kind = spec.call, spec.kind
        if call is not None and kind is not None and call.asks_its_find and kind.find is None:
            words = (
                f"the find of its call {call.function.name} has no name, by which attempts would remember it: a deploy whose find asks"
                " elsewhere is told Absent of calls that were made before it, and makes them again"
            )
            shown = f"def find_{call.name or call.function.plain_name}(...)"
            cure = f"name the function, as in `{shown}`, and give one that asks elsewhere another name"
            yield Finding("advice", "find", spec.name, words, cure)


def _rings(questions: Sequence[Question]) -> Iterator[Finding]:
    """Reactions that undo each other for ever, and nothing fails."""
    for names in Steps([question.spec for question in questions]).endless():
        words = (
            f"{', '.join(names)} undo each other: each makes the next one's condition hold, and the last the first one's, so that a record"
            " that comes to one of them goes round for ever"
        )
        yield Finding("problem", "ring", names[0], words, "let one of them leave a state that no other of them undoes, or give it `due=`")


def _kept_out(questions: Sequence[Question]) -> Iterator[Finding]:
    """Reactions whose doubts wait for a person, and keep the others of their record waiting meanwhile."""
    for question in questions:
        spec = question.spec
        if spec.fact is not None or spec.terms.policy is None or spec.terms.policy.kind != "hold":
            continue
        base = question.mapper.base_mapper
        others = [
            one.spec.name for one in questions if one.mapper.base_mapper is base and one.spec.fact is None and one.spec.name != spec.name
        ]
        if others:
            words = (
                f"a call of it in doubt waits for a person (hold()), and keeps {', '.join(others)} from the same record until somebody has"
                " settled it"
            )
            cure = "where they need not wait for it, give it `fact=column`, a column that its handler alone writes"
            yield Finding("advice", "held record", spec.name, words, cure)


def _reused_keys(connection: Connection, questions: Sequence[Question]) -> Iterator[Finding]:
    """SQLite gives the highest id again after a delete: a new record would have the keys of the deleted one (hazard 46)."""
    tables: dict[Any, str] = {}
    for question in questions:
        if question.spec.call is not None:
            tables.setdefault(question.mapper.base_mapper.local_table, question.spec.name)
    for table, reaction in tables.items():
        columns = list(table.primary_key.columns)
        if len(columns) != 1 or not isinstance(columns[0].type, Integer) or columns[0].foreign_keys:
            continue
        master = f'"{table.schema}".sqlite_master' if table.schema else "sqlite_master"
        made = connection.execute(
            text(f"SELECT sql FROM {master} WHERE type = 'table' AND name = :name"),  # noqa: S608 - a name of the user's own metadata
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
def _clocks(questions: Sequence[Question]) -> Iterator[Finding]:
    """A clause that the clock makes true: nobody knows when, so the sweep alone finds it."""
    for question in questions:
        if any(suspicion.tells_time(clause) for clause in question.spec.clauses):
            words = (
                f"a clause of {question.spec.name} asks the clock, so that what becomes true by it is found by a sweep, and not at its time"
            )
            yield Finding("advice", "time", question.spec.name, words, "due=after(column, timedelta(...)), which is slept upon")


def other_times(connection: Connection, questions: Sequence[Question]) -> Iterator[Finding]:
    """Due times in SQLite that others wrote in another way: as text they do not sort among ours."""
    for question in questions:
        words = odd_times.first(connection, question)
        if words is not None:
            yield Finding("problem", "time", question.spec.name, words, odd_times.CURE)


def _stored(connection: Connection, questions: Sequence[Question]) -> Iterator[Finding]:
    """What was written past SQLAlchemy, or by a default that SQLite took as text: it is loaded, and no condition finds it."""
    for one in stored.odd(connection, questions):
        words = (
            f"at least {one.rows} rows hold {one.shown}: no clause of type {one.kind} matches that, so that {', '.join(one.reactions)} does"
            " not find them"
        )
        cure = "UPDATE them to what SQLAlchemy writes; as a server default for Boolean give sqlalchemy.true(), for Enum its name"
        yield Finding("problem", "stored", f"{one.table}.{one.column}", words, cure)


def _local_defaults(database: Database, connection: Connection, questions: Sequence[Question]) -> Iterator[Finding]:
    """A due column without a zone whose default is the host's wall clock: taken for UTC, so that it is due hours off."""
    now = connection.execute(select(database.now())).scalar_one()
    for question in questions:
        due = question.spec.due
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
            yield Finding("problem", "time", question.spec.name, words, "mapped_column(groundstate.Instant, server_default=func.now())")
        for given in (_from_python(column), _from_sqlite(database, connection, column)):
            off = None if given is None else given - now.replace(tzinfo=None)
            if off is not None and abs(off) > _A_MOMENT and abs(off - (now.astimezone().utcoffset() or timedelta())) < _A_MOMENT:
                hours = f"{round(off / timedelta(minutes=1)) / 60:+g} h"
                words = (
                    f"the default of {due.attribute} is {hours} off the database's clock, which is this host's zone, and a due time"
                    " without a zone is in UTC"
                )
                cure = (
                    "mapped_column(groundstate.Instant, default=lambda: datetime.now(UTC)); for local times that stand there already,"
                    " due=func.timezone('Europe/Berlin', column) on PostgreSQL"
                )
                yield Finding("problem", "time", question.spec.name, words, cure)


_CLOCKS = ("now(", "current_timestamp", "localtimestamp", "clock_timestamp(", "statement_timestamp(", "transaction_timestamp(")
_A_MOMENT = timedelta(minutes=2)  # between the database's clock and this host's


def _from_python(column: Any) -> datetime | None:
    """What its default gives, without a zone."""
    default = column.default
    if default is None or not default.is_callable:
        return None
    try:
        value = default.arg(None)
    except Exception:  # it wants a statement's context, or is not ours to call
        return None
    return value.replace(tzinfo=None) if isinstance(value, datetime) else None


def _zone_of_its_default(database: Database, connection: Connection, column: Any) -> str | None:
    """The zone in which a session of PostgreSQL writes the column's default; None where that is UTC, or the default asks no clock."""
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
    """The same of a default of the database; on PostgreSQL that depends on the session that writes."""
    default = column.server_default
    if database.name != "sqlite" or not isinstance(default, DefaultClause) or isinstance(default.arg, str):
        return None
    try:
        return datetime.fromisoformat(str(connection.execute(select(type_coerce(default.arg, Text()))).scalar_one()))
    except (ValueError, CompileError):
        return None


# ---- models --------------------------------------------------------------------------------------------------------------------
def _writers(questions: Sequence[Question]) -> Iterator[Finding]:
    """Two reactions write one table, beside the user's own code: a stale object there would write over what they did (hazard 23)."""
    by_model: dict[Any, list[str]] = {}
    for question in questions:
        by_model.setdefault(question.mapper.base_mapper, []).append(question.spec.name)
    for mapper, names in by_model.items():
        if len(names) > 1 and mapper.version_id_col is None:
            words = (
                f"{', '.join(sorted(names))} write {mapper.local_table.fullname}, and a session of yours that loaded a row before writes"
                " its changed columns over theirs without a word"
            )
            cure = 'version: Mapped[int], and __mapper_args__ = {"version_id_col": version}; or change rows by UPDATE ... WHERE ...'
            yield Finding("advice", "version", mapper.class_.__name__, words, cure)


def _datetimes(database: Database, questions: Sequence[Question], metadatas: Sequence[MetaData]) -> Iterator[Finding]:
    """Datetimes that come back naive where `Moment.now` is aware: comparing the two raises at conclude (hazard 64)."""
    ours = {table for question in questions for table in question.mapper.tables}
    for metadata in metadatas:
        for table in metadata.sorted_tables:
            for column in table.columns:
                kind = column.type
                if isinstance(kind, Instant) or not isinstance(kind, DateTime):
                    continue
                if kind.timezone and database.name != "sqlite":
                    continue
                level: Literal["problem", "advice"] = "problem" if kind.timezone and table in ours else "advice"
                words = (
                    f"{table.fullname}.{column.name} gives naive datetimes"
                    f"{' on SQLite, though timezone=True' if kind.timezone else ''}, taken for UTC; comparing one with Moment.now raises"
                )
                yield Finding(level, "datetime", f"{table.fullname}.{column.name}", words, "mapped_column(groundstate.Instant)")
