"""PostgreSQL's trigger on `groundstate_attempt`: nobody else deletes, or makes harmless, the row of a call that was or may have been made.

Without its row such a call would be made once more: one that is begun or in doubt, and one whose outcome is still held. What our own
transactions write is marked by a setting that is local to them, and is looked at no further. Whoever must do it all the same says that word
himself; the trigger's message says how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Connection

NAME = "groundstate_keep"  # of the function, and of the triggers, with what each refuses
_TABLE = "groundstate_attempt"
_TRIGGERS = ("delete", "update", "truncate")

# After each row, not before it: then a row is not locked once more for the trigger's sake, which costs a record of the log for each.
_NOT_OURS = "current_setting('groundstate.ours', true) IS DISTINCT FROM 'on'"
_OPEN = "(OLD.state = 'begun' OR OLD.unsure OR OLD.outcome IS NOT NULL)"
# What says whose row it is, and all by which it is decided whether its record may be called again: whether an Absent is believed
# (deadline), whether its key is too old (first_at), to whom and under which promise it was called (begun_with), whether it was called at
# all (call_no), and whether it is a baseline, which goes with its condition (why).
_COLUMNS = (
    "app", "reaction", "record", "occurrence", "state", "worker", "call", "call_no", "unsure", "outcome", "blocks",
    "deadline", "first_at", "begun_with", "why",
)  # fmt: skip
_OLD, _NEW = (", ".join(f"{row}.{column}" for column in _COLUMNS) for row in ("OLD", "NEW"))

# The columns are named in it too: so it is by its body alone that triggers of an earlier version, which look at fewer, are told.
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
"""  # noqa: S608  # names of our own columns

FUNCTION = f"CREATE OR REPLACE FUNCTION {NAME}() RETURNS trigger LANGUAGE plpgsql AS $groundstate${_BODY}$groundstate$"
_EACH = {
    "delete": f"AFTER DELETE ON {_TABLE} FOR EACH ROW WHEN ({_NOT_OURS} AND {_OPEN})",
    "update": f"AFTER UPDATE ON {_TABLE} FOR EACH ROW WHEN ({_NOT_OURS} AND {_OPEN} AND ROW({_OLD}) IS DISTINCT FROM ROW({_NEW}))",
    "truncate": f"BEFORE TRUNCATE ON {_TABLE} FOR EACH STATEMENT WHEN ({_NOT_OURS})",
}
# Each may be said again, where the table is there.
STATEMENTS = (
    FUNCTION,
    *(f"CREATE OR REPLACE TRIGGER {NAME}_{what} {_EACH[what]} EXECUTE FUNCTION {NAME}()" for what in _TRIGGERS),
)

_THERE = text("""
    SELECT count(*) FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE t.tgrelid = to_regclass(:table) AND t.tgname = ANY(:names) AND p.prosrc = :body AND t.tgenabled IN ('O', 'A')
""")


def create(_table: Any, connection: Connection, **_more: Any) -> None:
    """After our table was made: the listener of `Table`'s event."""
    if connection.dialect.name == "postgresql":
        for statement in STATEMENTS:
            connection.execute(text(statement))


def are_there(connection: Connection) -> bool:
    """Whether all of them are, as this version writes them, and switched on."""
    names = [f"{NAME}_{what}" for what in _TRIGGERS]
    found = connection.execute(_THERE, {"table": _TABLE, "names": names, "body": _BODY}).scalar_one()
    return bool(found == len(names))
