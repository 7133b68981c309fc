"""Detects that the database went back in time, as by a restore from a backup. Then the database may have lost calls that were made: an
attempt in doubt is written for each of them (hazard 46).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from sqlalchemy import ColumnElement, and_, insert, inspect, not_, or_, select, update

from groundstate.engine.rows import attempts, claim, data_restore_check
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql import raising_rows
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.db_errors import Illegible
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.policy import LONG_AGO, MARGIN
from groundstate.store import tables
from groundstate.store.engine_settings import translated_schema
from groundstate.store.port import Database, Witness
from groundstate.store.tables import reaction as reaction_table

log = logging.getLogger("groundstate")
AT_ONCE = 1000
WHY = "the database went back in time: it may have been called in the lost time"
ARRIVES_WITHIN = timedelta(hours=1)  # the assumed time limit for calls of a reaction that is not declared here, whose own limit is unknown


def find_sign_of_restore(incarnation: Incarnation) -> str | None:
    """Return why the database seems to have gone back in time, or None if there is no sign of it."""
    lost = _describe_lost_calls(incarnation) or (
        incarnation.store_begins.sign_of_restore(incarnation.database) if incarnation.store_begins else None
    )
    if lost:
        return lost
    if incarnation.database.settings.failover == "lossless":
        return None
    now, before = incarnation.database.identity(), recorded_identity(incarnation)
    if before is None or now is None or _are_same_identity(before, now):
        return None
    return f"the store's identity changed from {before} to {now}"


def _are_same_identity(before: str, now: str) -> bool:
    """Return whether two identities (JSON objects) agree in each value that both have. The identity of a standby, for example, has no
    timeline.
    """
    try:
        old, new = dict(json.loads(before)), json.loads(now)
    except (ValueError, TypeError):
        return False  # a person edited the recorded identity, so the former one is unknown
    return all(old.get(name) == value for name, value in new.items() if value is not None and old.get(name) is not None)


def recorded_identity(incarnation: Incarnation) -> str | None:
    """Return the store's identity (a JSON text) as it was last recorded; None if it never was."""
    with incarnation.database.reading() as connection:
        return connection.execute(
            select(reaction_table.c.condition).where(reaction_table.c.app == "", reaction_table.c.name == "")
        ).scalar_one_or_none()


def record_identity_if_changed(incarnation: Incarnation) -> None:
    """Record the store's identity if it differs from the recorded one. Call it when there is no sign of a restore."""
    if incarnation.store_begins is not None:
        if not incarnation.store_begins.keep_present_count(incarnation.database):
            record_identity(incarnation)
        return
    if recorded_identity(incarnation) != incarnation.database.identity():
        record_identity(incarnation)
    data_restore_check.enable_restore_sign(incarnation)


def record_identity(incarnation: Incarnation) -> None:
    """Record the store's present identity, so that a restore that was handled is not detected again."""
    if incarnation.store_begins is not None:
        with incarnation.open_transaction() as tx:
            incarnation.store_begins.write_id_and_count(tx)
        return
    identity = incarnation.database.identity()
    if identity is None:
        return
    with incarnation.open_transaction() as tx:
        mine = (reaction_table.c.app == "", reaction_table.c.name == "")
        changed = tx.connection.execute(update(reaction_table).where(*mine).values(condition=identity, seen_at=tx.now)).rowcount
        if not changed:
            tx.connection.execute(
                insert(reaction_table).values(app="", name="", key_name="", condition=identity, suspect=False, seen_at=tx.now)
            )


def record_as_new_store(incarnation: Incarnation) -> None:
    """Record that this store is new, for example a copy of another database. Its present signs of a restore are ignored from now on."""
    if incarnation.store_begins is not None:
        with incarnation.open_transaction() as tx:
            incarnation.store_begins.reset_id_and_count(tx)
        return
    with incarnation.open_transaction() as tx:
        # Clear the sign of a restore: it may have been copied with the rows from another database.
        data_restore_check.record_answer(tx)
    record_identity(incarnation)


def _describe_lost_calls(incarnation: Incarnation) -> str | None:
    """Return a text on begun calls that a witness file counts and the database does not know, or None if there are no such calls. A witness
    file counts the calls of one worker outside of the database.
    """
    for _, count, known in find_lost_incarnations(incarnation.witness, partial(read_begun_counts, incarnation.database)):
        if known is None:
            return f"a worker that began {count} calls is not known to this database"
        return f"a worker began {count} calls, and this database knows of {known}"
    return None


def find_lost_incarnations(witness: Witness | None, begins: Callable[[], dict[int, int]]) -> list[tuple[int, int, int | None]]:
    """Return the workers whose witness file counts more begun calls than the database, each as (worker id, count in the file, count in the
    database). The count in the database is None if the database does not list the worker.

    begins: queries the database, and returns how many calls each worker began, by worker id.
    """
    witnesses = witness.read() if witness else {}
    if not witnesses:
        return []
    counts = begins()
    still = witness.read() if witness else {}  # read again: a worker that ended cleanly meanwhile erased its file, and then its row
    unknown = [(incarnation, count, None) for incarnation, count in witnesses.items() if incarnation not in counts and incarnation in still]
    fewer = [
        (incarnation, count, counts[incarnation]) for incarnation, count in witnesses.items() if counts.get(incarnation, count) < count
    ]
    return [*unknown, *fewer]


def read_begun_counts(database: Database) -> dict[int, int]:
    """Return how many calls each worker began, by worker id. Raise Illegible if a count is no integer."""
    with database.reading() as connection:
        counts = {row.id: row.begins for row in connection.execute(select(tables.worker.c.id, tables.worker.c.begins))}
    if any(type(count) is not int for count in counts.values()):
        raise Illegible("a row of groundstate_worker has no count of begins")
    return counts


def describe_forgotten_calls(incarnation: Incarnation) -> str | None:
    """Compare the number of calls that this worker counted in memory with the number in the database. Return a text if the database knows
    fewer, so that it went back in time; else None. Call it after a lost lock, since the database may have been replaced.
    """
    with incarnation.database.reading() as connection:
        counted = connection.execute(select(tables.worker.c.begins).where(tables.worker.c.id == incarnation.id)).scalar_one_or_none()
    if counted is None or counted >= incarnation.begins:  # None: another worker may have deleted the row while this host was suspended
        return None
    return f"this worker began {incarnation.begins} calls and the database knows of {counted}"


def put_lost_calls_in_doubt(incarnation: Incarnation, queries: Sequence[ConditionQuery], why: str) -> int:
    """Put in doubt each call that may have been made in the period whose commits the database lost. Mark every reaction that makes
    calls as suspect until a person trusts it. Return how many attempts were put in doubt.
    """
    log.error(
        "the database went back in time: %s. Calls are put in doubt; see `groundstate pending`, and say"
        " `groundstate trust` once none of them is in doubt any more",
        why,
        extra={"event": "went_back", "worker": f"{incarnation.id:x}"},
    )
    with_call = [query for query in queries if query.spec.call is not None]
    count = 0
    with incarnation.open_transaction() as tx:
        for query in with_call:
            name = query.spec.name
            mine = (reaction_table.c.app == incarnation.app, reaction_table.c.name == name)
            if not tx.connection.execute(update(reaction_table).where(*mine).values(suspect=True)).rowcount:
                # The backup is older than the reaction's row. Insert a row whose condition matches nothing, so that the reaction counts as
                # new.
                tx.connection.execute(
                    insert(reaction_table).values(
                        app=incarnation.app,
                        name=name,
                        key_name=query.spec.key_name or name,
                        condition="1 = 0",
                        suspect=True,
                        seen_at=tx.now,
                    )
                )
        # Also mark reactions of other versions, which may run again later, and of other apps, since no other worker handles this restore.
        # Schedules make no calls, so they are left out.
        others = or_(reaction_table.c.app != incarnation.app, reaction_table.c.name.not_in(incarnation.declared))
        called = and_(reaction_table.c.name != "", reaction_table.c.mark.is_(None))
        tx.connection.execute(update(reaction_table).where(others, called).values(suspect=True))
    incarnation.suspects |= {query.spec.name for query in with_call}
    table = tables.attempt
    others_attempts = or_(table.c.app != incarnation.app, table.c.reaction.not_in(incarnation.declared))
    count += _put_attempts_in_doubt(incarnation, and_(others_attempts, table.c.call_no > 0), ARRIVES_WITHIN, mine=False)
    for query in with_call:
        those = and_(table.c.app == incarnation.app, table.c.reaction == query.spec.name)
        count += _put_attempts_in_doubt(incarnation, those, query.spec.terms.timeout)
        count += put_matching_records_in_doubt(incarnation, query, WHY)
    _erase_old_witnesses(incarnation)
    with incarnation.open_transaction() as tx:
        data_restore_check.record_answer(tx)
    record_identity(incarnation)
    return count


def mark_known_reactions_suspect(incarnation: Incarnation) -> None:
    """Mark each recorded reaction of the app as suspect, so that each of its new calls begins as an attempt in doubt. If groundstate's
    table of reactions does not exist, do nothing.
    """
    with incarnation.database.reading() as connection:
        if not inspect(connection).has_table(reaction_table.name, schema=translated_schema(connection, reaction_table)):
            return
    with incarnation.database.writing() as connection:
        mine = (reaction_table.c.app == incarnation.app, reaction_table.c.name != "")
        connection.execute(update(reaction_table).where(*mine).values(suspect=True))


def _put_attempts_in_doubt(incarnation: Incarnation, those: ColumnElement[bool], timeout: timedelta, *, mine: bool = True) -> int:
    """Put existing attempts in doubt after a restore, and return how many. The database may have lost a later call of the same attempt.

    those: selects the attempts. timeout: how long their calls may run. mine: True if this worker settles the attempts; False if a worker
    that declares their reactions settles them. Held attempts stay held, but count as unsure. Baselines (rows that a person left out) are
    not changed.
    """
    table = tables.attempt
    count = 0
    order = (table.c.app, table.c.reaction, table.c.record, table.c.occurrence)
    cursor: attempts.Identity = ("", "", "", "")
    while True:
        with incarnation.open_transaction() as tx:
            known = and_(those, not_(attempts.is_baseline), attempts.rows_after_cursor(order, cursor))
            statement = attempts.select_attempts(known).order_by(*order).limit(AT_ONCE)
            some = attempts.fetch_attempts(tx.connection, attempts.lock_selected_rows(tx.database, statement))
            if not some:
                return count
            changed: list[tuple[Attempt, Attempt]] = []
            for one in some:
                held = one.state is State.HELD
                after = replace(one, state=State.HELD if held else State.DOUBT, unsure=True, worker=incarnation.id if mine else one.worker)
                arrived = max(one.deadline, tx.now + timeout + MARGIN)
                next_at = None if held else tx.now
                why = (one.why if held else None) or WHY
                changed.append((one, replace(after, first_at=LONG_AGO, deadline=arrived, next_at=next_at, why=why)))
            attempts.update_attempts(tx.connection, changed)
            count += len(changed)
            cursor = some[-1].identity


def put_matching_records_in_doubt(
    incarnation: Incarnation, query: ConditionQuery, why: str, *only: ColumnElement[bool], tell: Callable[[int], None] | None = None
) -> int:
    """Insert an attempt in doubt for each record, expired or not, that matches the condition and has no attempt; return how many.

    why: the reason that the attempts get. only: further clauses that the record has to meet. tell: called with the count so far.
    """
    count = 0
    for part in filter(None, (query, query.query_for_expired)):
        tell_more = None if tell is None else partial(_report_total_count, tell, count)
        doubt = partial(_insert_doubts_for_matches, incarnation, part, query, why, *only, tell=tell_more)
        count += raising_rows.retry_without_raising_rows(incarnation.database, query, doubt)
    return count


def _report_total_count(tell: Callable[[int], None], before: int, some: int) -> None:
    tell(before + some)


def _insert_doubts_for_matches(
    incarnation: Incarnation,
    query: ConditionQuery,
    called: ConditionQuery,
    why: str = WHY,
    *only: ColumnElement[bool],
    tell: Callable[[int], None] | None = None,
) -> int:
    """Insert an attempt in doubt for each record that matches, and return how many. A call may have been made for each of these records.

    query: the query that finds the records: the reaction's condition query, or its query for expired records.
    called: the reaction's condition query, which tells how the call was made.
    """
    count, cursor, apart = 0, None, list(query.raising_keys)
    while True:
        with incarnation.open_transaction() as tx:
            asked = query.selects.select_cursors_after(cursor, AT_ONCE, crowded=False).where(
                *query.condition.clauses_checked_after_ready(*only)
            )
            places = [tuple(row) for row in tx.connection.execute(asked)]
            wanted = [query.cursors.key_in_cursor(place) for place in places]
            if not wanted:
                wanted, apart = apart, []
            if not wanted:
                return count
            new = []
            records, unreadable = claim.load_ready_records_under_lock(query, tx, wanted)
            found = [
                (query.keys.record_text(query.keys.key_of_record(record)), query.occurrences.occurrence_text(record)) for record in records
            ]
            for text, occurrence in [*found, *((one.text, one.occurrence) for one in unreadable)]:
                fresh = attempts.new_attempt_of_record(query, text, occurrence, incarnation.id, tx.now)
                new.append(replace(
                    fresh, state=State.DOUBT, unsure=True, first_at=LONG_AGO, begun_with=called.attempts.begun_with_text,
                    deadline=tx.now + called.spec.terms.timeout + MARGIN, next_at=tx.now, why=why
                ))  # fmt: skip
            count += len(attempts.insert_attempts(tx, new))
            cursor = places[-1] if places else cursor
        if tell is not None:
            tell(count)


def _erase_old_witnesses(incarnation: Incarnation) -> None:
    """Erase the other workers' witness files that count lost calls. Call it when each of these calls is in doubt."""
    if incarnation.witness is None:
        return
    counts = read_begun_counts(incarnation.database)
    for witnessed, count in incarnation.witness.read().items():
        if counts.get(witnessed, -1) < count and witnessed != incarnation.id:
            incarnation.witness.delete_count_of(witnessed)
