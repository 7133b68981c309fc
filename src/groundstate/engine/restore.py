"""A database that went back in time: noticed by signs, and each call of the lost time put in doubt (hazard 46)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from sqlalchemy import ColumnElement, and_, insert, inspect, not_, or_, select, update

from groundstate.engine import attempts, claim, put_back, raising
from groundstate.engine.life import Life
from groundstate.engine.plain import new_attempt
from groundstate.engine.question import Question
from groundstate.engine.trouble import Illegible
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.policy import LONG_AGO, MARGIN
from groundstate.store import tables
from groundstate.store.carried import schema_of
from groundstate.store.port import Database, Witness
from groundstate.store.tables import reaction as reaction_table

log = logging.getLogger("groundstate")
AT_ONCE = 1000
WHY = "the database went back in time: it may have been called in the lost time"
ARRIVES_WITHIN = timedelta(hours=1)  # a call of a reaction whose time limit this code does not know


def sign(life: Life) -> str | None:
    """Why the database seems to have gone back in time; None where no sign shows it."""
    lost = _lost_count(life) or (life.store_begins.sign(life.database) if life.store_begins else None)
    if lost:
        return lost
    if life.database.settings.failover == "lossless":
        return None
    now, before = life.database.identity(), remembered(life)
    if before is None or now is None or _same(before, now):
        return None
    return f"the store's identity changed from {before} to {now}"


def _same(before: str, now: str) -> bool:
    """Equal but for what cannot be seen on one side (the timeline, while in recovery)."""
    try:
        old, new = dict(json.loads(before)), json.loads(now)
    except (ValueError, TypeError):
        return False  # somebody edited it: what it was is not known
    return all(old.get(name) == value for name, value in new.items() if value is not None and old.get(name) is not None)


def remembered(life: Life) -> str | None:
    """The store's identity as it was written down."""
    with life.database.reading() as connection:
        return connection.execute(
            select(reaction_table.c.condition).where(reaction_table.c.app == "", reaction_table.c.name == "")
        ).scalar_one_or_none()


def keep_identity(life: Life) -> None:
    """Where no sign was seen: writes the identity down unless it stands already."""
    if life.store_begins is not None:
        if not life.store_begins.confirm(life.database):
            remember(life)
        return
    if remembered(life) != life.database.identity():
        remember(life)
    put_back.sign_from_now_on(life)


def remember(life: Life) -> None:
    """Writes the store's identity down: whatever was a sign is answered."""
    if life.store_begins is not None:
        with life.transaction() as tx:
            life.store_begins.write_down(tx)
        return
    identity = life.database.identity()
    if identity is None:
        return
    with life.transaction() as tx:
        mine = (reaction_table.c.app == "", reaction_table.c.name == "")
        changed = tx.connection.execute(update(reaction_table).where(*mine).values(condition=identity, seen_at=tx.now)).rowcount
        if not changed:
            tx.connection.execute(
                insert(reaction_table).values(app="", name="", key_name="", condition=identity, suspect=False, seen_at=tx.now)
            )


def remember_as_new(life: Life) -> None:
    """Writes down that this is another store than any that was met here before, as for a copy that is to be a database of its own."""
    if life.store_begins is not None:
        with life.transaction() as tx:
            life.store_begins.begin_anew(tx)
        return
    with life.transaction() as tx:
        put_back.answer(tx)  # as of rows that a template's data brought along
    remember(life)


def _lost_count(life: Life) -> str | None:
    """A witness that remembers more begun calls of a life than the database does, or a life that it does not know."""
    for _, count, known in lost_lives(life.witness, partial(begins_in, life.database)):
        if known is None:
            return f"a life that began {count} calls is not known to this database"
        return f"a life began {count} calls, and this database knows of {known}"
    return None


def lost_lives(witness: Witness | None, begins: Callable[[], dict[int, int]]) -> list[tuple[int, int, int | None]]:
    """Lives whose witness remembers begun calls that the database does not: the life, how many it began, and how many the database knows
    of; None where it does not know the life.

    begins: asks the database how many calls each life began.
    """
    witnesses = witness.read() if witness else {}
    if not witnesses:
        return []
    counts = begins()
    still = witness.read() if witness else {}  # a life that ended cleanly meanwhile erased its witness before its row
    unknown = [(life, count, None) for life, count in witnesses.items() if life not in counts and life in still]
    fewer = [(life, count, counts[life]) for life, count in witnesses.items() if counts.get(life, count) < count]
    return [*unknown, *fewer]


def begins_in(database: Database) -> dict[int, int]:
    """How many calls each life began. Raises Illegible."""
    with database.reading() as connection:
        counts = {row.life: row.begins for row in connection.execute(select(tables.worker.c.life, tables.worker.c.begins))}
    if any(type(count) is not int for count in counts.values()):
        raise Illegible("a row of groundstate_worker has no count of begins")
    return counts


def forgotten(life: Life) -> str | None:
    """Why the database went back, by what this life counted in memory: asked when its lock was lost, perhaps with the database itself."""
    with life.database.reading() as connection:
        counted = connection.execute(select(tables.worker.c.begins).where(tables.worker.c.life == life.id)).scalar_one_or_none()
    if counted is None or counted >= life.begins:  # no row: perhaps adopted and forgotten while this host was suspended
        return None
    return f"this life began {life.begins} calls and the database knows of {counted}"


def went_back(life: Life, questions: Sequence[Question], why: str) -> int:
    """Puts each pending call in doubt, and makes its reactions suspect until a person trusts them; returns how many doubts there are."""
    log.error(
        "the database went back in time: %s. Calls are put in doubt; see `groundstate pending`, and say"
        " `groundstate trust` once none of them is in doubt any more",
        why,
        extra={"event": "went_back", "life": f"{life.id:x}"},
    )
    with_call = [question for question in questions if question.spec.call is not None]
    count = 0
    with life.transaction() as tx:
        for question in with_call:
            name = question.spec.name
            mine = (reaction_table.c.app == life.app, reaction_table.c.name == name)
            if not tx.connection.execute(update(reaction_table).where(*mine).values(suspect=True)).rowcount:
                # The backup is from before it was written down: under a condition that matched nothing, so that it counts as new.
                tx.connection.execute(
                    insert(reaction_table).values(
                        app=life.app,
                        name=name,
                        key_name=question.spec.key_name or name,
                        condition="1 = 0",
                        suspect=True,
                        seen_at=tx.now,
                    )
                )
        # Those of other code, which may come back after a rollback; and of other apps on this database, since the sign is answered by this
        # one. Not their schedules, which call nobody.
        others = or_(reaction_table.c.app != life.app, reaction_table.c.name.not_in(life.declared))
        called = and_(reaction_table.c.name != "", reaction_table.c.mark.is_(None))
        tx.connection.execute(update(reaction_table).where(others, called).values(suspect=True))
    life.suspects |= {question.spec.name for question in with_call}
    table = tables.attempt
    others_attempts = or_(table.c.app != life.app, table.c.reaction.not_in(life.declared))
    count += _doubt_attempts(life, and_(others_attempts, table.c.call_no > 0), ARRIVES_WITHIN, mine=False)
    for question in with_call:
        those = and_(table.c.app == life.app, table.c.reaction == question.spec.name)
        count += _doubt_attempts(life, those, question.spec.terms.timeout)
        count += doubt_each(life, question, WHY)
    _forget_old_witnesses(life)
    with life.transaction() as tx:
        put_back.answer(tx)
    remember(life)
    return count


def suspect_known(life: Life) -> None:
    """Makes each reaction of the app suspect that is written down, if our table of them is there: what is taken starts as a doubt."""
    with life.database.reading() as connection:
        if not inspect(connection).has_table(reaction_table.name, schema=schema_of(connection, reaction_table)):
            return
    with life.database.writing() as connection:
        mine = (reaction_table.c.app == life.app, reaction_table.c.name != "")
        connection.execute(update(reaction_table).where(*mine).values(suspect=True))


def _doubt_attempts(life: Life, those: ColumnElement[bool], timeout: timedelta, *, mine: bool = True) -> int:
    """Attempts that came back with the backup know nothing of the lost time either. mine: for this life to settle, and else for one of the
    code that declares them.

    Baselines stay as they are: a person left these rows alone, and one that matches again later is taken as a doubt until `trust`.
    """
    table = tables.attempt
    count = 0
    order = (table.c.app, table.c.reaction, table.c.record, table.c.occurrence)
    cursor: attempts.Identity = ("", "", "", "")
    while True:
        with life.transaction() as tx:
            known = and_(those, not_(attempts.is_baseline), attempts.after(order, cursor))
            statement = attempts.rows(known).order_by(*order).limit(AT_ONCE)
            some = attempts.fetch(tx.connection, attempts.locked(tx.database, statement))
            if not some:
                return count
            changed: list[tuple[Attempt, Attempt]] = []
            for one in some:
                held = one.state is State.HELD
                after = replace(one, state=State.HELD if held else State.DOUBT, unsure=True, worker=life.id if mine else one.worker)
                arrived = max(one.deadline, tx.now + timeout + MARGIN)
                next_at = None if held else tx.now
                why = (one.why if held else None) or WHY
                changed.append((one, replace(after, first_at=LONG_AGO, deadline=arrived, next_at=next_at, why=why)))
            attempts.save(tx.connection, changed)
            count += len(changed)
            cursor = some[-1].identity


def doubt_each(life: Life, question: Question, why: str, *only: ColumnElement[bool], tell: Callable[[int], None] | None = None) -> int:
    """A doubt for each record that matches and has no attempt, those that are too late among them; returns how many.

    only: of the records for which these hold as well. tell: is told how many so far.
    """
    count = 0
    for part in filter(None, (question, question.late)):
        tell_more = None if tell is None else partial(_tell_more, tell, count)
        doubt = partial(_doubt_matching, life, part, question, why, *only, tell=tell_more)
        count += raising.beside_them(life.database, question, doubt)
    return count


def _tell_more(tell: Callable[[int], None], before: int, some: int) -> None:
    tell(before + some)


def _doubt_matching(
    life: Life,
    question: Question,
    called: Question,
    why: str = WHY,
    *only: ColumnElement[bool],
    tell: Callable[[int], None] | None = None,
) -> int:
    """A doubt for each record that matches: it may have been called before. Those that are too late now, too.

    called: the reaction whose call that was; by code like this, for all that is known.
    """
    count, cursor, apart = 0, None, list(question.apart)
    while True:
        with life.transaction() as tx:
            asked = question.places_after(cursor, AT_ONCE, crowded=False).where(*question.beside_ready(*only))
            places = [tuple(row) for row in tx.connection.execute(asked)]
            wanted = [question.key_in(place) for place in places]
            if not wanted:
                wanted, apart = apart, []
            if not wanted:
                return count
            new = []
            records, unreadable = claim.readable_under_lock(question, tx, wanted)
            found = [(question.record_text(question.key_of(record)), question.occurrence_text(record)) for record in records]
            for text, occurrence in [*found, *((one.text, one.occurrence) for one in unreadable)]:
                fresh = new_attempt(life, question, text, occurrence, tx.now)
                new.append(replace(
                    fresh, state=State.DOUBT, unsure=True, first_at=LONG_AGO, begun_with=called.begun_with,
                    deadline=tx.now + called.spec.terms.timeout + MARGIN, next_at=tx.now, why=why
                ))  # fmt: skip
            count += len(attempts.insert(tx, new))
            cursor = places[-1] if places else cursor
        if tell is not None:
            tell(count)


def _forget_old_witnesses(life: Life) -> None:
    """What they said is answered now: each call of the lost time is in doubt."""
    if life.witness is None:
        return
    counts = begins_in(life.database)
    for witnessed, count in life.witness.read().items():
        if counts.get(witnessed, -1) < count and witnessed != life.id:
            life.witness.erase(witnessed)
