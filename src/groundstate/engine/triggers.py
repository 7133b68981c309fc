"""Triggers of PostgreSQL that tell which tables were written, by whatever program: a hint without data, sent by the server at commit.

Optional, and nothing is right because they are there. One function, and one statement-level trigger a table; removed, nothing stays.
What our own transactions write they leave out, since workers tell of that themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Table, inspect, text

from groundstate.engine import plans
from groundstate.engine.question import Question, sql_name
from groundstate.store.port import Database

NAME = "groundstate_rows"  # of the function, of each trigger, and of the channel
State = Literal["installed", "missing", "stale", "needless"]

_BODY = f"""
BEGIN
    IF current_setting('groundstate.ours', true) IS DISTINCT FROM 'on' THEN
        -- With the transaction's number, so that all who hear it throw the same dice; the server sends equal ones once.
        PERFORM pg_notify('{NAME}', TG_ARGV[0] || ' ' || pg_current_xact_id()::text);
    END IF;
    RETURN NULL;
END
"""
_FUNCTION = f"CREATE OR REPLACE FUNCTION {NAME}() RETURNS trigger LANGUAGE plpgsql AS $groundstate${_BODY}$groundstate$"
_THERE = text("""
    SELECT t.tgrelid::bigint AS oid, t.tgrelid::regclass::text AS shown, t.tgname AS name, p.oid::regprocedure::text AS function,
           p.prosrc = :body AND t.tgenabled = 'O' AND t.tgtype = 28 AS fresh, t.tgargs AS given
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE p.proname = :name AND NOT t.tgisinternal ORDER BY shown
""")
_FUNCTIONS = text("SELECT oid::regprocedure::text FROM pg_proc WHERE proname = :name AND prorettype = 'trigger'::regtype")
_OID = text("SELECT to_regclass(:name)::oid::bigint")


@dataclass(frozen=True)
class Found:
    """One table. stale: its trigger is of another version, switched off or edited; needless: no reaction of this app reads the table."""

    table: str
    state: State


def tables_read(questions: Iterable[Question]) -> dict[str, Table]:
    """Those that conditions read, by full name."""
    read: dict[str, Table] = {}
    for question in questions:
        mappers: list[Any] = [inspect(every.child) for every in question.spec.children]
        for table in [*plans.tables_of(question), *(table for mapper in mappers for table in mapper.tables)]:
            read[str(table.fullname)] = table
    return read


def are_there(connection: Connection) -> bool:
    """Whether any may tell something."""
    return connection.dialect.name == "postgresql" and connection.execute(_FUNCTIONS, {"name": NAME}).first() is not None


def found(database: Database, connection: Connection, wanted: Mapping[str, Table]) -> list[Found]:
    """How it stands with each table, and with those that have a trigger and are read by nobody."""
    there = {row.oid: row for row in connection.execute(_THERE, {"body": _BODY, "name": NAME})}
    told: list[Found] = []
    for name, table in sorted(wanted.items()):
        row = there.pop(connection.execute(_OID, {"name": sql_name(table, database)}).scalar_one(), None)
        fresh = row is not None and row.fresh and row.name == NAME and bytes(row.given).rstrip(b"\0") == name.encode()
        told.append(Found(name, "missing" if row is None else "installed" if fresh else "stale"))
    return [*told, *(Found(row.shown, "needless") for row in there.values())]


def to_install(database: Database, wanted: Mapping[str, Table]) -> list[str]:
    """The statements; each may be said again. Each table's in a transaction of its own, since it is locked against writers for a moment."""
    statements = [_FUNCTION]
    for name, table in sorted(wanted.items()):
        literal = "'" + name.replace("'", "''") + "'"
        statements.append(
            f"CREATE OR REPLACE TRIGGER {NAME} AFTER INSERT OR UPDATE OR DELETE ON {sql_name(table, database)}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {NAME}({literal})"
        )
    return statements


def to_remove(connection: Connection) -> list[str]:
    """The statements that leave nothing of them, on tables of other apps neither."""
    quote = connection.dialect.identifier_preparer.quote
    rows = connection.execute(_THERE, {"body": _BODY, "name": NAME}).all()
    drops = [f"DROP TRIGGER IF EXISTS {quote(row.name)} ON {row.shown}" for row in rows]
    functions = connection.execute(_FUNCTIONS, {"name": NAME}).scalars().all()
    return [*drops, *(f"DROP FUNCTION IF EXISTS {function}" for function in functions)]


def carry_out(database: Database, statements: Sequence[str]) -> None:
    """Each in a transaction of its own. Raises DBAPIError: this user may not, or a table is locked for long."""
    for statement in statements:
        with database.writing() as connection:
            connection.exec_driver_sql(statement.replace("%", "%%"))
