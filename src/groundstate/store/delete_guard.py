"""Defines PostgreSQL triggers that protect the rows of `groundstate_attempt` against other programs.

The row of a call that was made, or may have been, must not be deleted or changed: without the row the call would be made once more. Such a
row is begun or in doubt, or has a held outcome. The triggers ignore transactions with a local setting, which groundstate sets in its own
transactions. A person who must change such a row can use the setting too; the error of the triggers explains how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Connection

NAME = "groundstate_keep"  # name of the triggers' function; a trigger has this name too, followed by the operation that it refuses
_TABLE = "groundstate_attempt"
_TRIGGERS = ("delete", "update", "truncate")

# The triggers on rows are AFTER triggers, since a BEFORE trigger would lock each row once more, which costs a WAL record for each row.
_NOT_OURS = "current_setting('groundstate.ours', true) IS DISTINCT FROM 'on'"
_OPEN = "(OLD.state = 'begun' OR OLD.unsure OR OLD.outcome IS NOT NULL)"
# The columns that other programs must not change. Some identify the row. The others decide whether a call may be made again. For example,
# they say whether a lookup's answer Absent is believed (deadline), whether the key is too old (first_at), which service was called under
# which policy (begun_with), whether a call was made at all (call_no), and whether the row marks a record to be left alone (why).
_COLUMNS = (
    "app", "reaction", "record", "occurrence", "state", "worker", "call", "call_no", "unsure", "outcome", "blocks",
    "deadline", "first_at", "begun_with", "why",
)  # fmt: skip
_OLD, _NEW = (", ".join(f"{row}.{column}" for column in _COLUMNS) for row in ("OLD", "NEW"))

# The body of the function names the columns, so that it differs from the body of an older version whose triggers check fewer columns.
_BODY = f"""
-- An UPDATE is looked at where it changes one of {", ".join(_COLUMNS)}.
DECLARE
    stands boolean := true;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE state = ''begun'' OR unsure OR outcome IS NOT NULL)', TG_RELID::regclass)
            INTO stands;
    END IF;
    IF stands THEN
        RAISE EXCEPTION 'groundstate: % of the row of a call that was made, or may have been: without it the call would be made once more',
            TG_OP
            USING ERRCODE = 'restrict_violation', HINT =
                'Settle it: `groundstate held`, then `groundstate settle`, `retry` or `forget`. To put a backup in its place, stop all'
                ' workers, say SET LOCAL groundstate.ours = ''on'' in that transaction (for pg_restore set the environment to'
                ' PGOPTIONS="-c groundstate.ours=on"), and start with `groundstate run --after-restore`.';
    END IF;
    RETURN NULL;
END
"""  # noqa: S608  # safe, since only constants of this module are inserted

FUNCTION = f"CREATE OR REPLACE FUNCTION {NAME}() RETURNS trigger LANGUAGE plpgsql AS $groundstate${_BODY}$groundstate$"
_EACH = {
    "delete": f"AFTER DELETE ON {_TABLE} FOR EACH ROW WHEN ({_NOT_OURS} AND {_OPEN})",
    "update": f"AFTER UPDATE ON {_TABLE} FOR EACH ROW WHEN ({_NOT_OURS} AND {_OPEN} AND ROW({_OLD}) IS DISTINCT FROM ROW({_NEW}))",
    "truncate": f"BEFORE TRUNCATE ON {_TABLE} FOR EACH STATEMENT WHEN ({_NOT_OURS})",
}
# SQL statements that create the function and the triggers, or replace them if they exist.
STATEMENTS = (
    FUNCTION,
    *(f"CREATE OR REPLACE TRIGGER {NAME}_{what} {_EACH[what]} EXECUTE FUNCTION {NAME}()" for what in _TRIGGERS),
)

_THERE = text("""
    SELECT count(*) FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE t.tgrelid = to_regclass(:table) AND t.tgname = ANY(:names) AND p.prosrc = :body AND t.tgenabled IN ('O', 'A')
""")


def create_triggers(_table: Any, connection: Connection, **_more: Any) -> None:
    """Create the function and the triggers on PostgreSQL. It is a listener of the `after_create` event of the table of attempts."""
    if connection.dialect.name == "postgresql":
        for statement in STATEMENTS:
            connection.execute(text(statement))


def triggers_exist(connection: Connection) -> bool:
    """Return whether all three triggers exist, are enabled, and call the function with the body that this version writes."""
    names = [f"{NAME}_{what}" for what in _TRIGGERS]
    found = connection.execute(_THERE, {"table": _TABLE, "names": names, "body": _BODY}).scalar_one()
    return bool(found == len(names))
