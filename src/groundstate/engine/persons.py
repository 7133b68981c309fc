"""What a person can do to one attempt, or to all held ones of a reaction: retry, settle, forget. Prints nothing and asks nobody.

Each act goes by rules/attempt.py, under the record's lock (see deeds.py), and is said in the log with who it was.
"""

from __future__ import annotations

import getpass
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from sqlalchemy import ColumnElement, func, select

from groundstate.engine import attempts, deeds, illegible, registry, schema
from groundstate.engine.attempt_log import named
from groundstate.engine.attempts import Identity
from groundstate.engine.deeds import Deed, Did, Person
from groundstate.engine.life import Life
from groundstate.engine.question import Question
from groundstate.engine.transaction import watch
from groundstate.rules.attempt import State
from groundstate.rules.reaction import ReactionSpec
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database, Lives
from groundstate.store.tables import attempt as table
from groundstate.values import keys
from groundstate.values.errors import Conflict, NotFound

__all__ = ["Did", "Person", "forget", "forget_all", "how_many", "look", "person", "retry", "retry_all", "settle", "settle_absent", "user"]

log = logging.getLogger("groundstate")
AT_ONCE = 100  # attempts in one transaction of a bulk act


def user() -> str:
    """The operating system's user, for the log."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such entry, as in some containers
        return f"uid {os.getuid()}"


def person(  # what an app, a store and a human are
    app: str,
    specs: Sequence[ReactionSpec | ScheduleSpec],
    database: Database,
    lives: Lives,
    *,
    by: str | None = None,
    redact: Callable[[str], str] | None = None,
) -> Person:
    """Who acts at one store of an app; `by` is the operating system's user where it is not given. Raises StoreRefused, NotInitialised."""
    database.connect()
    watch(database)
    schema.check(database)
    life = Life(app, database, lives, None, redact or (lambda words: words))
    life.tables_of = {spec.name: spec.table_name for spec in specs if isinstance(spec, ReactionSpec)}
    questions = {spec.name: Question(spec, database) for spec in specs if isinstance(spec, ReactionSpec)}
    schedules = {spec.name: spec for spec in specs if isinstance(spec, ScheduleSpec)}
    with database.reading() as connection:
        life.key_names = {known.name: known.key_name for known in registry.known(connection, app).values()}
        for question in questions.values():
            question.has_triggers = registry.has_triggers(connection, database, question)
    return Person(life, questions, by or user(), schedules)


# ---- one attempt ---------------------------------------------------------------------------------------------------------------


def retry(person: Person, reaction: str, record: str, occurrence: str | None = None) -> Did:
    """Held: its outcome is concluded again, here and now, or it is given back to the workers. Failed: tried at once.

    Raises:
        NotFound: no attempt stands. Conflict: not possible now; why, and what is.
    """
    return _one(person, (reaction, record, occurrence), partial(deeds.retry, person), f"retried by {person.by}")


def settle_absent(person: Person, reaction: str, record: str, occurrence: str | None = None) -> Did:
    """A person says that the outside was not acted on. Raises NotFound, Conflict."""
    return _one(person, (reaction, record, occurrence), deeds.absent, f"settled as absent by {person.by}")


def settle(person: Person, reaction: str, record: str, occurrence: str | None = None, *, outcome: str) -> Did:
    """A person says with which outcome (JSON) the outside was acted on: goes on as found. Raises NotFound, Conflict."""
    return _one(person, (reaction, record, occurrence), partial(deeds.outcome, person, outcome), f"settled with an outcome by {person.by}")


def forget(person: Person, reaction: str, record: str, occurrence: str | None = None) -> Did:
    """Deletes a held attempt, where that is no new call. Raises NotFound, Conflict."""
    return _one(person, (reaction, record, occurrence), partial(deeds.forget, person), f"forgotten by {person.by}")


def look(person: Person, reaction: str, record: str, occurrence: str | None = None) -> None:
    """Whether such an attempt stands here, without touching it. Raises NotFound, Conflict where the record has several."""
    _identity(person, reaction, record, occurrence)


# ---- all of a reaction ---------------------------------------------------------------------------------------------------------
def how_many(person: Person, reaction: str, *, failed: bool = False, baseline: bool = False) -> int:
    """How many attempts `retry_all` or `forget_all` would look at. Raises NotFound."""
    _known_reaction(person, reaction)
    statement = select(func.count()).select_from(table).where(*_bulk(person, reaction, failed=failed, baseline=baseline))
    with person.database.reading() as connection:
        return int(connection.execute(statement).scalar_one())


def retry_all(person: Person, reaction: str, *, failed: bool = False, baseline: bool = False) -> Iterator[Did]:
    """`retry` for each held attempt of a reaction, as it is done; what is not possible is among them as refused.

    failed: those that failed and wait for their time too. baseline: rows that were left out when the reaction was new, and nothing else.
    """
    where = _bulk(person, reaction, failed=failed, baseline=baseline)
    return _all(person, reaction, where, partial(deeds.retry, person), f"retried by {person.by}")


def forget_all(person: Person, reaction: str, *, baseline: bool = False) -> Iterator[Did]:
    """`forget` for each held attempt of a reaction, as it is done. baseline: rows that were left out when it was new, and nothing else."""
    return _all(person, reaction, _bulk(person, reaction, baseline=baseline), partial(deeds.forget, person), f"forgotten by {person.by}")


def _bulk(person: Person, reaction: str, *, failed: bool = False, baseline: bool = False) -> list[ColumnElement[bool]]:
    states = [State.HELD.value, State.FAILED.value] if failed else [State.HELD.value]
    left_out = table.c.why == registry.BASELINE
    return [
        table.c.app == person.app,
        table.c.reaction == reaction,
        table.c.state.in_(states),
        left_out if baseline else func.coalesce(table.c.why, "") != registry.BASELINE,
    ]


def _all(person: Person, reaction: str, where: list[ColumnElement[bool]], deed: Deed, said: str) -> Iterator[Did]:
    _known_reaction(person, reaction)
    return _in_turn(person, reaction, where, deed, said)


def _in_turn(person: Person, reaction: str, where: list[ColumnElement[bool]], deed: Deed, said: str) -> Iterator[Did]:
    order = (table.c.record, table.c.occurrence)
    statement = select(*order).where(*where).order_by(*order).limit(AT_ONCE)
    cursor: tuple[str, str] | None = None
    count = 0
    try:
        while True:
            with person.database.reading() as connection:
                some = connection.execute(statement if cursor is None else statement.where(attempts.after(order, cursor))).all()
            if not some:
                return
            if any(type(part) is not str for row in some for part in row) and illegible.mend(person.life):
                continue  # SQLite has kept bytes where text belongs
            cursor = (some[-1][0], some[-1][1])
            for did in deeds.act(person, reaction, [(person.app, reaction, row[0], row[1]) for row in some], deed):
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


def _one(person: Person, wanted: tuple[str, str, str | None], deed: Deed, said: str) -> Did:
    identity = _identity(person, *wanted)
    did = deeds.act(person, identity[1], [identity], deed)[0]
    if did.became == "refused":
        raise Conflict(f"{did.reaction} on {did.record}: {did.words}")
    log.warning(
        "%s %s: %s",
        named(person.life, did.reaction, did.record or did.occurrence),
        said,
        did.words,
        extra={"event": "person_acted", "reaction": did.reaction, "record": did.record, "by": person.by},
    )
    return did


# ---- which attempt is meant ------------------------------------------------------------------------------------------------------
def _identity(person: Person, reaction: str, record: str, occurrence: str | None) -> Identity:
    """The one attempt that is meant. Raises NotFound, Conflict where the record has several."""
    if reaction in person.schedules and record:  # its ticks are on no record: what is said is which tick
        record, occurrence = "", keys.tick_text(record) if occurrence is None else occurrence
    written = _canonical(person, reaction, record)
    where = [table.c.app == person.app, table.c.reaction == reaction, table.c.record == written]
    if occurrence is not None:
        where.append(table.c.occurrence == occurrence)
    with person.database.reading() as connection:
        found = list(connection.execute(select(table.c.occurrence).where(*where).order_by(table.c.occurrence).limit(21)).scalars())
    if not found:
        _known_reaction(person, reaction)
        of = f" for occurrence {occurrence!r}" if occurrence is not None else ""
        what = "it was carried out, or not begun yet. `groundstate held` lists what is held"
        raise NotFound(f"no attempt of {reaction} stands{f' on {written}' if written else ''}{of}: {what}")
    if len(found) > 1:
        on = f" on {written}" if written else ""
        raise Conflict(f"{reaction} has several attempts{on}: say which, with --occurrence, of {', '.join(map(repr, found))}")
    return (person.app, reaction, written, found[0])


def _canonical(person: Person, reaction: str, record: str) -> str:
    """The text by which the attempt names its record: that which was given, where one has it, as where its key stands in another form."""
    question = person.questions.get(reaction)
    if question is None or _stands(person, reaction, record):
        return record
    try:
        return question.record_text(question.key_from_text(record))
    except ValueError as error:
        raise NotFound(f"{record!r} is no primary key of {question.spec.record.__name__}: {error}") from None


def _stands(person: Person, reaction: str, record: str) -> bool:
    statement = select(table.c.record).where(table.c.app == person.app, table.c.reaction == reaction, table.c.record == record)
    with person.database.reading() as connection:
        return connection.execute(statement.limit(1)).first() is not None


def _known_reaction(person: Person, reaction: str) -> None:
    if reaction in person.questions or reaction in person.schedules:
        return
    with person.database.reading() as connection:
        names = {*person.questions, *person.schedules, *registry.known(connection, person.app)}
        there = select(table.c.reaction).where(table.c.app == person.app, table.c.reaction == reaction).limit(1)
        if reaction not in names and connection.execute(there).first() is None:
            raise NotFound(f"app {person.app!r} has no reaction {reaction!r} here: there are {', '.join(sorted(names)) or 'none'}")
