"""Defines PostgreSQL's triggers on `groundstate_attempt`: only we may delete, or make harmless, the row of a call that was or may have been
made.

Without its row such a call would be made once more: one that is begun or in doubt, and one whose outcome is still held. Our own
transactions have a local setting by which the triggers let them pass. A person who must change such a row all the same uses that setting;
the triggers' message says how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Connection

NAME = "groundstate_keep"  # the function's name; each trigger's name adds what it refuses
_TABLE = "groundstate_attempt"
_TRIGGERS = ("delete", "update", "truncate")

# AFTER triggers: a BEFORE trigger would lock each row once more, which costs a WAL record for each.
_NOT_OURS = "current_setting('groundstate.ours', true) IS DISTINCT FROM 'on'"
_OPEN = "(OLD.state = 'begun' OR OLD.unsure OR OLD.outcome IS NOT NULL)"
# The columns that identify the row, and those that decide whether its record may be called again: whether an Absent is believed
# (deadline), whether its key is too old (first_at), which service was called and under which promise (begun_with), whether it was called
# at all (call_no), and whether it is a baseline, which goes with its condition (why).
_COLUMNS = (
    "app", "reaction", "record", "occurrence", "state", "worker", "call", "call_no", "unsure", "outcome", "blocks",
    "deadline", "first_at", "begun_with", "why",
)  # fmt: skip
_OLD, _NEW = (", ".join(f"{row}.{column}" for column in _COLUMNS) for row in ("OLD", "NEW"))

# The body names the columns too, so that it differs from the body of an earlier version, whose triggers check fewer columns.
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
"""  # noqa: S608  # only names of our own columns

FUNCTION = f"CREATE OR REPLACE FUNCTION {NAME}() RETURNS trigger LANGUAGE plpgsql AS $groundstate${_BODY}$groundstate$"
_EACH = {
    "delete": f"AFTER DELETE ON {_TABLE} FOR EACH ROW WHEN ({_NOT_OURS} AND {_OPEN})",
    "update": f"AFTER UPDATE ON {_TABLE} FOR EACH ROW WHEN ({_NOT_OURS} AND {_OPEN} AND ROW({_OLD}) IS DISTINCT FROM ROW({_NEW}))",
    "truncate": f"BEFORE TRUNCATE ON {_TABLE} FOR EACH STATEMENT WHEN ({_NOT_OURS})",
}
# Each statement may be run again while the table exists.
STATEMENTS = (
    FUNCTION,
    *(f"CREATE OR REPLACE TRIGGER {NAME}_{what} {_EACH[what]} EXECUTE FUNCTION {NAME}()" for what in _TRIGGERS),
)

_THERE = text("""
    SELECT count(*) FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE t.tgrelid = to_regclass(:table) AND t.tgname = ANY(:names) AND p.prosrc = :body AND t.tgenabled IN ('O', 'A')
""")


def create(_table: Any, connection: Connection, **_more: Any) -> None:
    """Create the function and the triggers after our table was created: a listener of the table's `after_create` event."""
    if connection.dialect.name == "postgresql":
        for statement in STATEMENTS:
            connection.execute(text(statement))


def are_there(connection: Connection) -> bool:
    """Return whether all of our triggers exist as this version writes them, and are enabled."""
    names = [f"{NAME}_{what}" for what in _TRIGGERS]
    found = connection.execute(_THERE, {"table": _TABLE, "names": names, "body": _BODY}).scalar_one()
    return bool(found == len(names))
