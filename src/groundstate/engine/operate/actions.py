"""What a person can do to one attempt, or to all held attempts of a reaction: retry, settle, forget. It prints nothing and asks no
questions.

Each action follows the rules of rules/attempt.py, runs under the record's lock (see action.py), and is logged with the person's name.
"""

from __future__ import annotations

import getpass
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from sqlalchemy import ColumnElement, func, select

from groundstate.engine.operate import action
from groundstate.engine.operate.action import ActionResult, Deed, Person
from groundstate.engine.rows import attempts, corrupt_rows, reaction_registry
from groundstate.engine.rows.attempt_log import name_record
from groundstate.engine.rows.attempts import Identity
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql import schema
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.transaction import watch_statements
from groundstate.rules.attempt import State
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database, Liveness
from groundstate.store.tables import attempt as table
from groundstate.values import keys
from groundstate.values.errors import ConflictError, NotFoundError

__all__ = [
    "ActionResult",
    "Person",
    "build_person",
    "count_attempts",
    "forget",
    "forget_all",
    "require_attempt_exists",
    "retry",
    "retry_all",
    "settle",
    "settle_absent",
    "user_name",
]

log = logging.getLogger("groundstate")
AT_ONCE = 100  # the most attempts that `retry_all` and `forget_all` change in one transaction


def user_name() -> str:
    """Return the operating system's user name, for the log."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # the user has no passwd entry, as in some containers
        return f"uid {os.getuid()}"


def build_person(
    app: str,
    specs: Sequence[ReactionSpec | ScheduleSpec],
    database: Database,
    liveness: Liveness,
    *,
    by: str | None = None,
    redact: Callable[[str], str] | None = None,
) -> Person:
    """Connect to one database of an app, and return the Person who acts on it.

    `by` is the person's name in the log; None takes the operating system's user. Raises StoreRefusedError, NotInitialisedError.
    """
    database.connect()
    watch_statements(database)
    schema.check_tables(database)
    incarnation = Incarnation(app, database, liveness, None, redact or (lambda words: words))
    incarnation.tables_of = {spec.name: spec.table_name for spec in specs if isinstance(spec, ReactionSpec)}
    queries = {spec.name: ConditionQuery(spec, database) for spec in specs if isinstance(spec, ReactionSpec)}
    schedules = {spec.name: spec for spec in specs if isinstance(spec, ScheduleSpec)}
    with database.reading() as connection:
        incarnation.key_names = {known.name: known.key_name for known in reaction_registry.read_known_reactions(connection, app).values()}
        for query in queries.values():
            query.triggers_may_change_row = reaction_registry.has_triggers(connection, database, query)
    return Person(incarnation, queries, by or user_name(), schedules)


# ---- one attempt ---------------------------------------------------------------------------------------------------------------


def retry(person: Person, reaction: str, record: str, occurrence: str | None = None) -> ActionResult:
    """Retry one attempt that is held or failed.

    If a held attempt has an outcome, the handler runs with the outcome again, at once and in this process; without an outcome, the attempt
    is given back to the workers. A failed attempt becomes due at once.

    Raises:
        NotFoundError: The attempt does not exist.
        ConflictError: The attempt cannot be retried now. The message says why, and what is possible.
    """
    return _run_on_one(person, (reaction, record, occurrence), partial(action.decide_retry, person), f"retried by {person.by}")


def settle_absent(person: Person, reaction: str, record: str, occurrence: str | None = None) -> ActionResult:
    """Settle an attempt: the person says that the external service did not act on the call. Raises NotFoundError, ConflictError."""
    return _run_on_one(person, (reaction, record, occurrence), action.decide_absent, f"settled as absent by {person.by}")


def settle(person: Person, reaction: str, record: str, occurrence: str | None = None, *, outcome: str) -> ActionResult:
    """Settle an attempt with an outcome (JSON): the person says that the external service acted on the call, with this result.

    The attempt goes on as if a lookup had found this outcome. Raises NotFoundError, ConflictError.
    """
    return _run_on_one(
        person, (reaction, record, occurrence), partial(action.decide_outcome, person, outcome), f"settled with an outcome by {person.by}"
    )


def forget(person: Person, reaction: str, record: str, occurrence: str | None = None) -> ActionResult:
    """Delete a held attempt. Raise ConflictError if that would lead to a new call, NotFoundError if there is no such attempt."""
    return _run_on_one(person, (reaction, record, occurrence), partial(action.decide_forget, person), f"forgotten by {person.by}")


def require_attempt_exists(person: Person, reaction: str, record: str, occurrence: str | None = None) -> None:
    """Check that the reaction has an attempt on the record, without changing the attempt.

    Raise NotFoundError if it has none, or ConflictError if it has several and `occurrence` is not given.
    """
    _find_identity(person, reaction, record, occurrence)


# ---- all attempts of a reaction ------------------------------------------------------------------------------------------------
def count_attempts(person: Person, reaction: str, *, failed: bool = False, baseline: bool = False) -> int:
    """Return the number of attempts that `retry_all` or `forget_all` would change. Raise NotFoundError if the reaction is not known."""
    _require_known_reaction(person, reaction)
    statement = select(func.count()).select_from(table).where(*_clauses_for_bulk(person, reaction, failed=failed, baseline=baseline))
    with person.database.reading() as connection:
        return int(connection.execute(statement).scalar_one())


def retry_all(person: Person, reaction: str, *, failed: bool = False, baseline: bool = False) -> Iterator[ActionResult]:
    """Retry each held attempt of a reaction, and yield the result of each attempt as soon as it is known.

    If an attempt cannot be retried now, its result is 'refused'. With `failed`, failed attempts that wait for their retry time are retried
    too. With `baseline`, only the rows that were left out when the reaction was new are retried.
    """
    where = _clauses_for_bulk(person, reaction, failed=failed, baseline=baseline)
    return _run_on_all(person, reaction, where, partial(action.decide_retry, person), f"retried by {person.by}")


def forget_all(person: Person, reaction: str, *, baseline: bool = False) -> Iterator[ActionResult]:
    """Delete each held attempt of a reaction where that is allowed, and yield the result of each attempt as soon as it is known.

    With `baseline`, only the attempts for rows that were left out when the reaction was new are deleted.
    """
    return _run_on_all(
        person,
        reaction,
        _clauses_for_bulk(person, reaction, baseline=baseline),
        partial(action.decide_forget, person),
        f"forgotten by {person.by}",
    )


def _clauses_for_bulk(person: Person, reaction: str, *, failed: bool = False, baseline: bool = False) -> list[ColumnElement[bool]]:
    states = [State.HELD.value, State.FAILED.value] if failed else [State.HELD.value]
    left_out = table.c.why == reaction_registry.BASELINE
    return [
        table.c.app == person.app,
        table.c.reaction == reaction,
        table.c.state.in_(states),
        left_out if baseline else func.coalesce(table.c.why, "") != reaction_registry.BASELINE,
    ]


def _run_on_all(person: Person, reaction: str, where: list[ColumnElement[bool]], deed: Deed, said: str) -> Iterator[ActionResult]:
    _require_known_reaction(person, reaction)
    return _run_page_by_page(person, reaction, where, deed, said)


def _run_page_by_page(person: Person, reaction: str, where: list[ColumnElement[bool]], deed: Deed, said: str) -> Iterator[ActionResult]:
    order = (table.c.record, table.c.occurrence)
    statement = select(*order).where(*where).order_by(*order).limit(AT_ONCE)
    cursor: tuple[str, str] | None = None
    count = 0
    try:
        while True:
            with person.database.reading() as connection:
                some = connection.execute(statement if cursor is None else statement.where(attempts.rows_after_cursor(order, cursor))).all()
            if not some:
                return
            if any(type(part) is not str for row in some for part in row) and corrupt_rows.mend_unreadable_rows(person.incarnation):
                continue  # SQLite can store bytes in a text column. Such rows have just been repaired, so this page is read again.
            cursor = (some[-1][0], some[-1][1])
            for did in action.run_action_on_attempts(person, reaction, [(person.app, reaction, row[0], row[1]) for row in some], deed):
                count += did.done
                yield did
    finally:
        log.warning(
            "%s: %d attempts %s",
            reaction,
            count,
            said,
            extra={"event": "person_acted_on_all", "reaction": reaction, "count": count, "by": person.by},
        )


def _run_on_one(person: Person, wanted: tuple[str, str, str | None], deed: Deed, said: str) -> ActionResult:
    identity = _find_identity(person, *wanted)
    did = action.run_action_on_attempts(person, identity[1], [identity], deed)[0]
    if did.became == "refused":
        raise ConflictError(f"{did.reaction} on {did.record}: {did.words}")
    log.warning(
        "%s %s: %s",
        name_record(person.incarnation, did.reaction, did.record or did.occurrence),
        said,
        did.words,
        extra={"event": "person_acted", "reaction": did.reaction, "record": did.record, "by": person.by},
    )
    return did


# ---- which attempt is meant ------------------------------------------------------------------------------------------------------
def _find_identity(person: Person, reaction: str, record: str, occurrence: str | None) -> Identity:
    """Return the identity of the one attempt that these arguments name. Raise NotFoundError if there is none, ConflictError if several."""
    if reaction in person.schedules and record:  # a tick of a schedule has no record, so `record` names the tick
        record, occurrence = "", keys.canonical_tick(record) if occurrence is None else occurrence
    written = _canonical_record_text(person, reaction, record)
    where = [table.c.app == person.app, table.c.reaction == reaction, table.c.record == written]
    if occurrence is not None:
        where.append(table.c.occurrence == occurrence)
    with person.database.reading() as connection:
        found = list(connection.execute(select(table.c.occurrence).where(*where).order_by(table.c.occurrence).limit(21)).scalars())
    if not found:
        _require_known_reaction(person, reaction)
        of = f" for occurrence {occurrence!r}" if occurrence is not None else ""
        what = "it was carried out, or not begun yet. `groundstate held` lists what is held"
        raise NotFoundError(f"no attempt of {reaction} stands{f' on {written}' if written else ''}{of}: {what}")
    if len(found) > 1:
        on = f" on {written}" if written else ""
        raise ConflictError(f"{reaction} has several attempts{on}: say which, with --occurrence, of {', '.join(map(repr, found))}")
    return (person.app, reaction, written, found[0])


def _canonical_record_text(person: Person, reaction: str, record: str) -> str:
    """Return the text by which attempts name this record.

    An older version may have written the key in another form. So the given text is returned unchanged if an attempt has exactly this text.
    """
    query = person.queries.get(reaction)
    if query is None or _has_attempt(person, reaction, record):
        return record
    try:
        return query.keys.record_text(query.keys.key_from_text(record))
    except ValueError as error:
        raise NotFoundError(f"{record!r} is no primary key of {query.spec.record.__name__}: {error}") from None


def _has_attempt(person: Person, reaction: str, record: str) -> bool:
    statement = select(table.c.record).where(table.c.app == person.app, table.c.reaction == reaction, table.c.record == record)
    with person.database.reading() as connection:
        return connection.execute(statement.limit(1)).first() is not None


def _require_known_reaction(person: Person, reaction: str) -> None:
    if reaction in person.queries or reaction in person.schedules:
        return
    with person.database.reading() as connection:
        names = {*person.queries, *person.schedules, *reaction_registry.read_known_reactions(connection, person.app)}
        there = select(table.c.reaction).where(table.c.app == person.app, table.c.reaction == reaction).limit(1)
        if reaction not in names and connection.execute(there).first() is None:
            raise NotFoundError(f"app {person.app!r} has no reaction {reaction!r} here: there are {', '.join(sorted(names)) or 'none'}")
