"""Notices, by signs, a database that went back in time, and puts each call of the lost time in doubt (hazard 46)."""

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
from groundstate.store.engine_settings import schema_of
from groundstate.store.port import Database, Witness
from groundstate.store.tables import reaction as reaction_table

log = logging.getLogger("groundstate")
AT_ONCE = 1000
WHY = "the database went back in time: it may have been called in the lost time"
ARRIVES_WITHIN = timedelta(hours=1)  # longest time for which a call may run if this code does not know its time limit


def sign(incarnation: Incarnation) -> str | None:
    """Return why the database seems to have gone back in time, or None if no sign shows it."""
    lost = _lost_count(incarnation) or (incarnation.store_begins.sign(incarnation.database) if incarnation.store_begins else None)
    if lost:
        return lost
    if incarnation.database.settings.failover == "lossless":
        return None
    now, before = incarnation.database.identity(), remembered(incarnation)
    if before is None or now is None or _same(before, now):
        return None
    return f"the store's identity changed from {before} to {now}"


def _same(before: str, now: str) -> bool:
    """Return whether two identities are equal, except for values that one side cannot see (the timeline, during recovery)."""
    try:
        old, new = dict(json.loads(before)), json.loads(now)
    except (ValueError, TypeError):
        return False  # a person edited it, so the former identity is unknown
    return all(old.get(name) == value for name, value in new.items() if value is not None and old.get(name) is not None)


def remembered(incarnation: Incarnation) -> str | None:
    """Return the store's identity as it was last recorded."""
    with incarnation.database.reading() as connection:
        return connection.execute(
            select(reaction_table.c.condition).where(reaction_table.c.app == "", reaction_table.c.name == "")
        ).scalar_one_or_none()


def keep_identity(incarnation: Incarnation) -> None:
    """Record the store's identity, unless it is recorded already, after no sign of a restore was seen."""
    if incarnation.store_begins is not None:
        if not incarnation.store_begins.confirm(incarnation.database):
            remember(incarnation)
        return
    if remembered(incarnation) != incarnation.database.identity():
        remember(incarnation)
    data_restore_check.sign_from_now_on(incarnation)


def remember(incarnation: Incarnation) -> None:
    """Record the store's identity, so that no sign of a restore is left."""
    if incarnation.store_begins is not None:
        with incarnation.transaction() as tx:
            incarnation.store_begins.write_down(tx)
        return
    identity = incarnation.database.identity()
    if identity is None:
        return
    with incarnation.transaction() as tx:
        mine = (reaction_table.c.app == "", reaction_table.c.name == "")
        changed = tx.connection.execute(update(reaction_table).where(*mine).values(condition=identity, seen_at=tx.now)).rowcount
        if not changed:
            tx.connection.execute(
                insert(reaction_table).values(app="", name="", key_name="", condition=identity, suspect=False, seen_at=tx.now)
            )


def remember_as_new(incarnation: Incarnation) -> None:
    """Record that this store is another one than any met here before, as for a copy that becomes a database of its own."""
    if incarnation.store_begins is not None:
        with incarnation.transaction() as tx:
            incarnation.store_begins.begin_anew(tx)
        return
    with incarnation.transaction() as tx:
        data_restore_check.answer(tx)  # clears the sign of a restore from rows that a template database brought along
    remember(incarnation)


def _lost_count(incarnation: Incarnation) -> str | None:
    """Return a text on begun calls that a witness file counts and the database does not know, or None if there are none."""
    for _, count, known in lost_lives(incarnation.witness, partial(begins_in, incarnation.database)):
        if known is None:
            return f"a worker that began {count} calls is not known to this database"
        return f"a worker began {count} calls, and this database knows of {known}"
    return None


def lost_lives(witness: Witness | None, begins: Callable[[], dict[int, int]]) -> list[tuple[int, int, int | None]]:
    """Return the incarnations whose witness file counts begun calls that the database does not: its id, the count in the file, and the
    count in the database (None if the database does not know the incarnation).

    begins: queries how many calls each incarnation began.
    """
    witnesses = witness.read() if witness else {}
    if not witnesses:
        return []
    counts = begins()
    still = witness.read() if witness else {}  # an incarnation that ended cleanly meanwhile erased its witness file before its row
    unknown = [(incarnation, count, None) for incarnation, count in witnesses.items() if incarnation not in counts and incarnation in still]
    fewer = [
        (incarnation, count, counts[incarnation]) for incarnation, count in witnesses.items() if counts.get(incarnation, count) < count
    ]
    return [*unknown, *fewer]


def begins_in(database: Database) -> dict[int, int]:
    """Return how many calls each incarnation began, by its id. Raises Illegible if a count is no integer."""
    with database.reading() as connection:
        counts = {row.id: row.begins for row in connection.execute(select(tables.worker.c.id, tables.worker.c.begins))}
    if any(type(count) is not int for count in counts.values()):
        raise Illegible("a row of groundstate_worker has no count of begins")
    return counts


def forgotten(incarnation: Incarnation) -> str | None:
    """Return why the database went back, by the calls that this incarnation counted in memory, or None. The worker checks this when its
    lock was lost, perhaps together with the database.
    """
    with incarnation.database.reading() as connection:
        counted = connection.execute(select(tables.worker.c.begins).where(tables.worker.c.id == incarnation.id)).scalar_one_or_none()
    if counted is None or counted >= incarnation.begins:  # no row: perhaps it was adopted and deleted while this host was suspended
        return None
    return f"this worker began {incarnation.begins} calls and the database knows of {counted}"


def went_back(incarnation: Incarnation, queries: Sequence[ConditionQuery], why: str) -> int:
    """Put each pending call in doubt, and mark every reaction that makes calls as suspect until a person trusts it. Return how many
    attempts this put in doubt.
    """
    log.error(
        "the database went back in time: %s. Calls are put in doubt; see `groundstate pending`, and say"
        " `groundstate trust` once none of them is in doubt any more",
        why,
        extra={"event": "went_back", "worker": f"{incarnation.id:x}"},
    )
    with_call = [query for query in queries if query.spec.call is not None]
    count = 0
    with incarnation.transaction() as tx:
        for query in with_call:
            name = query.spec.name
            mine = (reaction_table.c.app == incarnation.app, reaction_table.c.name == name)
            if not tx.connection.execute(update(reaction_table).where(*mine).values(suspect=True)).rowcount:
                # The backup is older than the reaction's row. The new row's condition matches nothing, so that the reaction counts as new.
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
        # Also reactions of other code, which may return after a rollback, and of other apps, since the restore is settled here for all.
        # Schedules are left out, since they make no calls.
        others = or_(reaction_table.c.app != incarnation.app, reaction_table.c.name.not_in(incarnation.declared))
        called = and_(reaction_table.c.name != "", reaction_table.c.mark.is_(None))
        tx.connection.execute(update(reaction_table).where(others, called).values(suspect=True))
    incarnation.suspects |= {query.spec.name for query in with_call}
    table = tables.attempt
    others_attempts = or_(table.c.app != incarnation.app, table.c.reaction.not_in(incarnation.declared))
    count += _doubt_attempts(incarnation, and_(others_attempts, table.c.call_no > 0), ARRIVES_WITHIN, mine=False)
    for query in with_call:
        those = and_(table.c.app == incarnation.app, table.c.reaction == query.spec.name)
        count += _doubt_attempts(incarnation, those, query.spec.terms.timeout)
        count += doubt_each(incarnation, query, WHY)
    _forget_old_witnesses(incarnation)
    with incarnation.transaction() as tx:
        data_restore_check.answer(tx)
    remember(incarnation)
    return count


def suspect_known(incarnation: Incarnation) -> None:
    """Mark each recorded reaction of the app as suspect, if groundstate's table of reactions exists: the records it takes start in
    doubt.
    """
    with incarnation.database.reading() as connection:
        if not inspect(connection).has_table(reaction_table.name, schema=schema_of(connection, reaction_table)):
            return
    with incarnation.database.writing() as connection:
        mine = (reaction_table.c.app == incarnation.app, reaction_table.c.name != "")
        connection.execute(update(reaction_table).where(*mine).values(suspect=True))


def _doubt_attempts(incarnation: Incarnation, those: ColumnElement[bool], timeout: timedelta, *, mine: bool = True) -> int:
    """Put in doubt the attempts that came back with the backup, which know nothing of the lost time either; return how many. mine: this
    incarnation settles them, and else a worker whose code declares them.

    Baselines stay as they are: a person excluded these rows, and one that matches again later is taken in doubt until `trust`.
    """
    table = tables.attempt
    count = 0
    order = (table.c.app, table.c.reaction, table.c.record, table.c.occurrence)
    cursor: attempts.Identity = ("", "", "", "")
    while True:
        with incarnation.transaction() as tx:
            known = and_(those, not_(attempts.is_baseline), attempts.rows_after_cursor(order, cursor))
            statement = attempts.select_attempts(known).order_by(*order).limit(AT_ONCE)
            some = attempts.fetch(tx.connection, attempts.locked(tx.database, statement))
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
            attempts.save(tx.connection, changed)
            count += len(changed)
            cursor = some[-1].identity


def doubt_each(
    incarnation: Incarnation, query: ConditionQuery, why: str, *only: ColumnElement[bool], tell: Callable[[int], None] | None = None
) -> int:
    """Insert an attempt in doubt for each record that matches and has no attempt, expired records included; return how many.

    only: further clauses that hold for the record. tell: called with the count so far.
    """
    count = 0
    for part in filter(None, (query, query.late)):
        tell_more = None if tell is None else partial(_tell_more, tell, count)
        doubt = partial(_doubt_matching, incarnation, part, query, why, *only, tell=tell_more)
        count += raising_rows.retry_without_raising_rows(incarnation.database, query, doubt)
    return count


def _tell_more(tell: Callable[[int], None], before: int, some: int) -> None:
    tell(before + some)


def _doubt_matching(
    incarnation: Incarnation,
    query: ConditionQuery,
    called: ConditionQuery,
    why: str = WHY,
    *only: ColumnElement[bool],
    tell: Callable[[int], None] | None = None,
) -> int:
    """Insert an attempt in doubt for each record that matches: it may have been called before.

    query: the reaction's condition query, or the one of its expired records. called: the condition query of the reaction that may have made
    the call.
    """
    count, cursor, apart = 0, None, list(query.apart)
    while True:
        with incarnation.transaction() as tx:
            asked = query.places_after(cursor, AT_ONCE, crowded=False).where(*query.beside_ready(*only))
            places = [tuple(row) for row in tx.connection.execute(asked)]
            wanted = [query.key_in(place) for place in places]
            if not wanted:
                wanted, apart = apart, []
            if not wanted:
                return count
            new = []
            records, unreadable = claim.readable_under_lock(query, tx, wanted)
            found = [(query.record_text(query.key_of(record)), query.occurrence_text(record)) for record in records]
            for text, occurrence in [*found, *((one.text, one.occurrence) for one in unreadable)]:
                fresh = attempts.new_attempt_of_record(query, text, occurrence, incarnation.id, tx.now)
                new.append(replace(
                    fresh, state=State.DOUBT, unsure=True, first_at=LONG_AGO, begun_with=called.begun_with,
                    deadline=tx.now + called.spec.terms.timeout + MARGIN, next_at=tx.now, why=why
                ))  # fmt: skip
            count += len(attempts.insert(tx, new))
            cursor = places[-1] if places else cursor
        if tell is not None:
            tell(count)


def _forget_old_witnesses(incarnation: Incarnation) -> None:
    """Erase the witness files that count calls of the lost time: each of these calls is in doubt now."""
    if incarnation.witness is None:
        return
    counts = begins_in(incarnation.database)
    for witnessed, count in incarnation.witness.read().items():
        if counts.get(witnessed, -1) < count and witnessed != incarnation.id:
            incarnation.witness.erase(witnessed)
