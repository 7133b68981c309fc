"""Manages PostgreSQL triggers that announce, by NOTIFY at commit, which tables any program has written. The messages carry no row data.

The triggers are optional, and correctness never depends on them. There is one trigger function, and for each app and table one
statement-level trigger. Nothing else is installed in the database. Each app has triggers and a channel of its own, so that no app removes
another app's triggers. A write of a worker is announced only to the other apps of the database, since workers of one app send each other
hints anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Table, inspect, select, text

from groundstate.engine.sql import explain
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.table_spelling import sql_table_name
from groundstate.engine.watch.hint_publisher import subject_of_app
from groundstate.rules.hint_codec import postgres_channel_name
from groundstate.store import tables
from groundstate.store.port import Database

NAME = "groundstate_rows"  # the function's name, and the prefix of the names of triggers and channels
State = Literal["installed", "missing", "stale", "needless"]

_BODY = """
BEGIN
    IF current_setting('groundstate.app', true) IS DISTINCT FROM TG_ARGV[1] THEN
        -- With the transaction's number, so that all who hear it throw the same dice; the server sends equal ones once.
        PERFORM pg_notify(TG_NAME, TG_ARGV[0] || ' ' || pg_current_xact_id()::text);
    END IF;
    RETURN NULL;
END
"""
_FUNCTION = f"CREATE OR REPLACE FUNCTION {NAME}() RETURNS trigger LANGUAGE plpgsql AS $groundstate${_BODY}$groundstate$"
_THERE = text("""
    SELECT t.tgrelid::bigint AS oid, t.tgrelid::regclass::text AS shown, t.tgname AS name, p.oid::regprocedure::text AS function,
           p.prosrc = :body AND t.tgenabled IN ('O', 'A') AND t.tgtype = 28 AS fresh, t.tgenabled = 'A' AS always,
           t.tgargs AS given
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE p.proname = :name AND NOT t.tgisinternal ORDER BY shown
""")
_FUNCTIONS = text("SELECT oid::regprocedure::text FROM pg_proc WHERE proname = :name AND prorettype = 'trigger'::regtype")
_OID = text("SELECT to_regclass(:name)::oid::bigint")
# The subscriptions (logical replication) to a table: their writes fire no statement-level trigger. The next query finds the roles whose
# writes fire only triggers that are enabled as ALWAYS.
_SUBSCRIPTIONS = text(
    "SELECT s.subname FROM pg_subscription_rel r JOIN pg_subscription s ON s.oid = r.srsubid WHERE r.srrelid = :oid ORDER BY 1"
)
_ROLES = text("""
    SELECT DISTINCT CASE setrole WHEN 0 THEN 'every role' ELSE 'role ' || setrole::regrole::text END
    FROM pg_db_role_setting
    WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
        AND 'session_replication_role=replica' = ANY (setconfig) ORDER BY 1
""")


@dataclass(frozen=True)
class TableTrigger:
    """The state of the trigger of one table.

    `state` is 'stale' if the trigger is of another version, switched off or edited. It is 'needless' in two cases: the trigger belongs to
    this app, but no reaction of this app reads the table; or the trigger's app has no reactions in this database. `unheard` has one text
    for each subscription or role whose writes an installed trigger does not announce, with the cure if there is one.
    """

    table: str
    state: State
    unheard: tuple[str, ...] = ()


@dataclass(frozen=True)
class _ExistingTrigger:
    """A trigger in the database that calls groundstate's trigger function. `app` is the app to which the trigger belongs; None if it is of
    an older version or made by hand.
    """

    row: Any
    app: str | None
    given: list[str]


def channel_name(app: str) -> str:
    """Return the name of the channel on which the app's triggers notify; the triggers have this name too."""
    return postgres_channel_name(f"{NAME}_{subject_of_app(app)}")


def tables_read(queries: Iterable[ConditionQuery]) -> dict[str, Table]:
    """Return the tables that these conditions read, as a dict from full name to table."""
    read: dict[str, Table] = {}
    for query in queries:
        mappers: list[Any] = [inspect(every.child) for every in query.spec.children]
        for table in [*explain.tables_in_condition(query), *(table for mapper in mappers for table in mapper.tables)]:
            read[str(table.fullname)] = table
    return read


def has_triggers(connection: Connection) -> bool:
    """Return whether groundstate's triggers are installed in the database for any app, which means that their function exists."""
    return connection.dialect.name == "postgresql" and connection.execute(_FUNCTIONS, {"name": NAME}).first() is not None


def read_triggers(app: str, database: Database, connection: Connection, wanted: Mapping[str, Table]) -> list[TableTrigger]:
    """Return one item for each wanted table with the state of the app's trigger, and one 'needless' item for each trigger that serves no
    app.
    """
    there = [one for one in _read_existing_triggers(connection) if not _is_of_other_app(connection, app, one)]
    roles = connection.execute(_ROLES).scalars().all()
    told: list[TableTrigger] = []
    for name, table in sorted(wanted.items()):
        oid = connection.execute(_OID, {"name": sql_table_name(table, database)}).scalar_one()
        row = next((one for one in there if one.row.oid == oid and one.row.name == channel_name(app)), None)
        state: State = "missing" if row is None else "installed" if row.row.fresh and row.given == [name, app] else "stale"
        told.append(
            TableTrigger(
                name,
                state,
                _describe_unannounced_writes(connection, app, row.row, roles) if state == "installed" and row is not None else (),
            )
        )
        there = [one for one in there if one is not row]
    return [*told, *(TableTrigger(one.row.shown, "needless") for one in there)]


def _describe_unannounced_writes(connection: Connection, app: str, row: Any, roles: Sequence[str]) -> tuple[str, ...]:
    found = [
        f"PostgreSQL fires no trigger of statements for what subscription {name} writes: the sweep finds that"
        for name in connection.execute(_SUBSCRIPTIONS, {"oid": row.oid}).scalars()
    ]
    silent = () if row.always else roles
    trigger = connection.dialect.identifier_preparer.quote(channel_name(app))
    cure = f"ALTER TABLE {row.shown} ENABLE ALWAYS TRIGGER {trigger}"
    return (*found, *(f"what {role} writes, as session_replication_role = replica, fires it only after {cure}" for role in silent))


def _read_existing_triggers(connection: Connection) -> list[_ExistingTrigger]:
    rows = connection.execute(_THERE, {"body": _BODY, "name": NAME})
    found = []
    for row in rows:
        given = bytes(row.given).decode(errors="replace").split("\0")[:-1]
        found.append(_ExistingTrigger(row, given[1] if len(given) > 1 else None, given))
    return found


def _is_of_other_app(connection: Connection, app: str, one: _ExistingTrigger) -> bool:
    """Return whether the trigger belongs to another app, and this other app has reactions in this database."""
    row = tables.reaction.c
    return one.app not in (None, app) and connection.execute(select(row.app).where(row.app == one.app).limit(1)).first() is not None


def install_statements(app: str, database: Database, wanted: Mapping[str, Table]) -> list[str]:
    """Return the statements that install the triggers of the wanted tables. Each statement may be run again.

    Run each statement in a transaction of its own, since it locks its table against writers for a moment.
    """
    statements = [_FUNCTION]
    trigger = database.engine.dialect.identifier_preparer.quote(channel_name(app))
    for name, table in sorted(wanted.items()):
        given = ", ".join("'" + one.replace("'", "''") + "'" for one in (name, app))
        statements.append(
            f"CREATE OR REPLACE TRIGGER {trigger} AFTER INSERT OR UPDATE OR DELETE ON {sql_table_name(table, database)}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {NAME}({given})"
        )
    return statements


def removal_statements(app: str, connection: Connection) -> list[str]:
    """Return the statements that remove this app's triggers, and the triggers that serve no app.

    They remove the trigger function too, unless triggers of other apps still call it.
    """
    quote = connection.dialect.identifier_preparer.quote
    there = _read_existing_triggers(connection)
    others = [one for one in there if _is_of_other_app(connection, app, one)]
    drops = [f"DROP TRIGGER IF EXISTS {quote(one.row.name)} ON {one.row.shown}" for one in there if one not in others]
    functions = [] if others else connection.execute(_FUNCTIONS, {"name": NAME}).scalars().all()
    return [*drops, *(f"DROP FUNCTION IF EXISTS {function}" for function in functions)]


def run_statements(database: Database, statements: Sequence[str]) -> None:
    """Run each statement in a transaction of its own. Raise DBAPIError if the role lacks a privilege, or a table is locked for long."""
    for statement in statements:
        with database.writing() as connection:
            connection.exec_driver_sql(statement.replace("%", "%%"))
