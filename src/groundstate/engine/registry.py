"""Which reactions this database has seen, under which condition: new and changed ones are not started silently (hazards 49, 50)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial, reduce

from sqlalchemy import ColumnElement, Connection, Text, and_, cast, column, func, insert, not_, or_, select, text, update
from sqlalchemy import table as lightweight
from sqlalchemy.exc import DBAPIError

from groundstate.engine import attempts, raising, wording
from groundstate.engine.life import Life
from groundstate.engine.question import Question, held_under, sql_name
from groundstate.rules import blocking
from groundstate.rules.reaction import ReactionSpec
from groundstate.store import tables
from groundstate.store.port import Database
from groundstate.store.tables import reaction as table
from groundstate.values import keys

log = logging.getLogger("groundstate")
BASELINE = blocking.BASELINE
MATCHES_NOTHING = "1 = 0"  # as what a reaction is written down after a restore that was not known before: it counts as new
COUNTED_MAX = 100_000  # beyond this 'at least so many' is said


@dataclass(frozen=True)
class Known:
    """What this database knows of a reaction.

    earlier: the conditions that were accepted before this one, the latest last. seen_at: when this one was. record: its records' table and
    key; None where older code wrote it, and said nothing of them.
    """

    name: str
    key_name: str
    condition: str
    suspect: bool
    earlier: tuple[str, ...] = ()
    seen_at: datetime | None = None
    record: str | None = None

    def is_as(self, question: Question) -> bool:
        """Whether this is what was accepted: its condition, and what its records are known by."""
        return self.condition == question.condition_text and not self.has_other_records(question)

    def has_other_records(self, question: Question) -> bool:
        """Whether its records were known by another table or key, so that nothing tells which of today's were called."""
        return self.record is not None and self.record != question.spec.records

    @property
    def says_something(self) -> bool:
        """Whether there is a condition that rows matched before."""
        return self.condition not in ("", MATCHES_NOTHING)


@dataclass(frozen=True)
class Newcomer:
    """A reaction that would match rows present before it: not started until somebody says so.

    calls: of those rows, how many have no attempt of its own, so that it would make its call for them; 0 where it makes none. call: that
    call's name. in_doubt: what becomes of them if they are accepted as doubts. suspect: since the database went back each row that it takes
    is in doubt first, whatever is said. both: rows that the accepted condition matches as well are carried out meanwhile. older: another
    condition was accepted after this one. moved: its records' table or key is another one, in words; known_before: attempts that stand of
    records by the old one, baselines too, before the last of which nothing can be said.
    """

    name: str
    rows: int
    changed: bool  # it was known under another condition
    calls: int = 0
    call: str = ""
    in_doubt: str = ""
    suspect: bool = False
    both: bool = False
    older: bool = False
    moved: str = ""
    known_before: int = 0

    @property
    def words(self) -> str:
        if self.moved:
            rows = f", and {_rows(self.rows, 'row matches', 'rows match')}" if self.rows else ""
            return f"{self.name} is not started: {self.moved}, so nothing here tells which of them were called{rows}. {self.cures}"
        does = "carries out only what the accepted condition matches as well" if self.both else "is not started"
        if self.older:
            rows = _rows(self.rows, "row matches", "rows match")
            what = f"another condition was accepted after this one, and {rows} this one alone"
            return f"{self.name} {does}: {what}. {self.cures}"
        what = "its condition changed and newly matches" if self.changed else "it is new here and matches"
        return f"{self.name} {does}: {what} {_rows(self.rows, *_BEFORE)}. {self.cures}"

    @property
    def cures(self) -> str:
        """What a person can say, and what each of it does."""
        if self.known_before:
            stand = wording.counted(self.known_before, "attempt stands", "attempts stand")
            return (
                f"{stand} of records by the old one: stop the workers of the old code, settle or forget these first (`groundstate held"
                f" --reaction {self.name}`, and with `--baseline` the rows that were left out), then say what is known of the rest"
            )
        leave = f"Leave them and start with new ones: groundstate init --baseline {self.name}"
        if not self.calls:
            what = "Go on with them, each of which is in doubt first" if self.suspect else "Carry them out"
            return f"{what}: groundstate init --accept {self.name}. {leave}"
        return f"{self.asks} {leave}"

    @property
    def needs(self) -> str:
        """The same for a plan."""
        if self.moved:
            return f"{self.moved}, so nothing here tells which of them were called. Stop the workers of the old code before. {self.cures}"
        leave = f"or `--baseline {self.name}` to leave them"
        if not self.calls:
            return f"`groundstate init --accept {self.name}` to carry out the {_rows(self.rows, *_BEFORE)}, {leave}"
        return (
            f"`groundstate init --accept {self.name}=call` to call {self.call} for {_many(self.calls)} of the {_rows(self.rows, *_BEFORE)},"
            f" `--accept {self.name}=doubt` where that may have been done (each begins as a doubt, so {self.in_doubt}),"
            f" {leave}"
        )

    @property
    def asks(self) -> str:
        """What has to be said of its calls, and what each answer does."""
        if self.known_before:
            return f"{self.moved}. {self.cures}."
        return (
            f"{self.call} would be called for {_many(self.calls)} of them, and nothing here tells whether that was done before."
            f" Surely never: groundstate init --accept {self.name}=call."
            f" Perhaps, as after groundstate's tables were dropped, or where another system called before:"
            f" groundstate init --accept {self.name}=doubt, by which each begins as a doubt, so {self.in_doubt}."
        )


def _many(count: int) -> str:
    return _at_least(count, f"{count:,}")


def _rows(count: int, one: str, many: str) -> str:
    return _at_least(count, wording.counted(count, one, many))


def _at_least(count: int, words: str) -> str:
    return f"at least {words}" if count >= COUNTED_MAX else words


_BEFORE = ("row that was there before", "rows that were there before")


def known(connection: Connection, app: str) -> dict[str, Known]:
    trusted = table.c.suspect.is_(False)  # and what is neither true nor false, since somebody edited it, is not trusted
    seen_at = cast(table.c.seen_at, Text)
    asked = select(table.c.name, table.c.key_name, table.c.condition, trusted, table.c.earlier, seen_at, table.c.record)
    return {
        str(row[0]): Known(
            str(row[0]),
            str(row[1]),
            str(row[2]),
            suspect=not row[3],
            earlier=_earlier_in(row[4]),
            seen_at=_time_in(row[5]),
            record=None if row[6] is None else str(row[6]),
        )
        for row in connection.execute(asked.where(table.c.app == app, table.c.name != ""))
    }


def gone(seen: Mapping[str, Known], declared: Collection[str]) -> tuple[str, ...]:
    """Reactions and schedules that were accepted here, and that this code does not declare: nobody carries them out by it."""
    return tuple(sorted(name for name, one in seen.items() if name not in declared and one.says_something))


def gone_in_words(names: Sequence[str]) -> str:
    return (
        f"known here, and not declared by this code: {', '.join(names)}. Is the module that declares {'it' if len(names) == 1 else 'them'}"
        " imported? Renamed: `groundstate rename OLD NEW`"
    )


def _earlier_in(written: object) -> tuple[str, ...]:
    """What somebody edited to be no array of texts is none."""
    try:
        found = json.loads(str(written)) if written else []
    except (ValueError, RecursionError):
        found = []
    return tuple(one for one in found if isinstance(one, str)) if isinstance(found, list) else ()


def _time_in(written: object) -> datetime | None:
    """None for what somebody edited to be no time."""
    try:
        return keys.value_of(str(written).replace(" ", "T", 1), datetime)  # type: ignore[no-any-return]  # a time, as it was asked for
    except (ValueError, OverflowError):
        return None


def newcomers(
    connection: Connection, questions: Sequence[Question], seen: dict[str, Known], unasked: Callable[[Question, DBAPIError, str], None]
) -> tuple[list[Question], list[Newcomer]]:
    """Reactions to be written down silently, since they match nothing that was there before; and those that must be accepted.

    Older code, whose condition was accepted before the present one, is in neither list where it matches nothing beside that: it takes
    back nothing by its start, and nothing need be said. That is so for a day. Whoever runs older code for longer has gone back to it, and
    what the present condition matches besides is asked for before it is carried out once more.

    unasked: is told of a condition that cannot be asked, and why; its reaction is in neither list.
    """
    silent: list[Question] = []
    loud: list[Newcomer] = []
    for question in questions:
        before = seen.get(question.spec.name)
        if before is not None and before.is_as(question):
            continue
        ask = partial(newcomer, connection, question, before)
        found = raising.asked_of_the_others(connection, question, ask, partial(unasked, question), known=False)
        if found is None:
            continue
        if found.rows or found.known_before:
            loud.append(found)
        elif not found.older:
            silent.append(question)
    return silent, loud


def newcomer(connection: Connection, question: Question, before: Known | None) -> Newcomer:
    """What is told of a new or changed reaction; its `rows` are 0 where it would start on nothing that was there before.

    A row on which an attempt of it stands, a baseline too, is none that it starts on: it was begun, or a person spoke of it, before.
    """
    spec = question.spec
    if before is not None and before.has_other_records(question):
        return _of_other_records(connection, question, before)
    newly = newly_matching(connection, question, before)
    both = _tells_which_are_both(before, newly)
    if question.has_own_attempt is not None:
        newly = (*newly, not_(question.has_own_attempt))
    rows = count(connection, question, question.come, *newly)
    changed = before is not None and before.condition != MATCHES_NOTHING
    told = Newcomer(spec.name, rows, changed, both=both, older=is_older(connection, question, before))
    if not rows or spec.call is None:
        return told
    suspect = before is not None and before.suspect
    calls = 0 if suspect else count(connection, question, question.come, question.of_no_own_attempt, *newly)
    becomes = wording.accepted_in_doubt(spec.terms, _many(calls))
    return replace(told, calls=calls, call=spec.call.function.name, in_doubt=becomes, suspect=suspect)


def _of_other_records(connection: Connection, question: Question, before: Known) -> Newcomer:
    spec, rows = question.spec, count(connection, question, question.come)
    standing = select(func.count()).where(tables.attempt.c.app == spec.app, tables.attempt.c.reaction == spec.name)
    told = Newcomer(
        spec.name,
        rows,
        changed=True,
        suspect=before.suspect,
        moved=f"its records were {before.record}, and are {spec.records} now",
        known_before=int(connection.execute(standing).scalar_one()),
    )
    if spec.call is None or before.suspect:
        return told
    return replace(told, calls=rows, call=spec.call.function.name, in_doubt=wording.accepted_in_doubt(spec.terms, _many(rows)))


def is_older(connection: Connection, question: Question, before: Known | None) -> bool:
    """Whether another condition was accepted after this code's, and not so long ago that this must be the code that is meant."""
    if before is None or question.condition_text not in before.earlier:
        return False
    now: datetime = connection.execute(select(question.database.now())).scalar_one()
    return before.seen_at is None or now - before.seen_at < SIDE_BY_SIDE


def is_quietly_older(connection: Connection, question: Question, before: Known | None) -> bool:
    """Whether this is older code, of which nothing is to be told, and whose share can be asked."""
    return is_older(connection, question, before) and _tells_which_are_both(before, newly_matching(connection, question, before))


def _tells_which_are_both(before: Known | None, newly: Sequence[object]) -> bool:
    """Whether it can be told which records the accepted condition matches as well. newly: what `newly_matching` gave."""
    return before is not None and before.says_something and bool(newly)


def newly_matching(connection: Connection, question: Question, before: Known | None) -> tuple[ColumnElement[bool], ...]:
    """What tells the rows that match now from those that the condition matched under which it was accepted; nothing where all are new."""
    if before is None:
        return ()
    clause = not_(held_under(before.condition))
    try:
        with connection.begin_nested():
            connection.execute(select(*question.key_attributes).where(question.come, clause).limit(1))
    except DBAPIError:
        return ()  # the old SQL is no longer valid here: as new
    return (clause,)


def count(connection: Connection, question: Question, *clauses: ColumnElement[bool]) -> int:
    """The records for which these hold, as far as they are counted."""
    some = select(*question.key_attributes).where(reduce(question.and_then, clauses)).limit(COUNTED_MAX).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


def write(life: Life, questions: Sequence[Question]) -> None:
    """Accepts these reactions under their present condition."""
    with life.transaction() as tx:
        seen = known(tx.connection, life.app)
        for question in questions:
            name = question.spec.name
            if name in seen:
                earlier = None if seen[name].has_other_records(question) else _earlier(seen[name], question.condition_text)
                written = {"condition": question.condition_text, "earlier": earlier, "record": question.spec.records}
                tx.connection.execute(update(table).where(table.c.app == life.app, table.c.name == name).values(**written, seen_at=tx.now))
            else:
                tx.connection.execute(
                    insert(table).values(
                        app=life.app,
                        name=name,
                        key_name=question.spec.key_name or name,
                        condition=question.condition_text,
                        record=question.spec.records,
                        suspect=False,
                        seen_at=tx.now,
                    )
                )


def key_clashes(connection: Connection, specs: Sequence[ReactionSpec]) -> list[str]:
    """Why calls of these reactions would go out under keys that are not theirs, each with the cure: refused at the start.

    A rename leaves the keys as they were (hazard 62). So another reaction that is given the old name later would make the same ones, and
    code that says another name for its keys than the database would not find its own calls.
    """
    rows = select(table.c.app, table.c.name, table.c.key_name).where(table.c.name != "", table.c.mark.is_(None))
    there = {(str(app), str(name)): str(key) for app, name, key in connection.execute(rows)}
    whole = {keys.key_name_under(app, key): (app, name) for (app, name), key in there.items()}
    declared = {(spec.app, spec.name) for spec in specs}
    found = []
    for spec in specs:
        if spec.call is None:
            continue
        mine, known_as = (spec.app, spec.name), there.get((spec.app, spec.name))
        if known_as is not None and spec.key_name and spec.key_name != known_as:
            said, here = _shown(spec.key_name), _shown(known_as)
            found.append(f"{spec.name} says key_name={said}, and the keys of its calls are made of {here} here: say that")
            continue
        owner = whole.get(keys.key_name_under(spec.app, known_as or spec.key_name or spec.name), mine)
        is_its_successor = bool(spec.key_name) and owner[0] == spec.app and owner not in declared
        if owner != mine and not is_its_successor:
            where = "" if owner[0] == spec.app else f" of app {owner[0]!r}"
            found.append(
                f"{spec.name} would make the keys of {owner[1]}{where}, which had that name when its first call was made: choose another"
                " name, or say key_name= with one that nothing had"
            )
    return found


def unsaid_key_names(connection: Connection, app: str, specs: Sequence[ReactionSpec]) -> dict[str, str]:
    """By reaction: the name that keys are made of, of which this database alone knows, as the code says it."""
    seen = known(connection, app)
    return {
        spec.name: _shown(seen[spec.name].key_name)
        for spec in specs
        if spec.call is not None and spec.name in seen and not spec.key_name and seen[spec.name].key_name != spec.name
    }


def _shown(key_name: str) -> str:
    """As `on` is given it."""
    parts = keys.key_name_parts(key_name)
    return repr(parts[0] if len(parts) == 1 else parts)


def remember_records(life: Life, specs: Sequence[ReactionSpec]) -> None:
    """Writes down what the records of these are known by, where older code did not."""
    with life.transaction() as tx:
        for spec in specs:
            mine = (table.c.app == life.app, table.c.name == spec.name, table.c.record.is_(None))
            tx.connection.execute(update(table).where(*mine).values(record=spec.records))


def _earlier(before: Known, now: str) -> str | None:
    """What is remembered of conditions once this one is accepted."""
    found = [one for one in before.earlier if one not in (now, before.condition)]
    found += [before.condition] if before.says_something and before.condition != now else []
    return json.dumps(found[-EARLIER_MOST:], ensure_ascii=False) if found else None


SIDE_BY_SIDE = timedelta(days=1)  # so long after another condition was accepted a worker of older code may start beside the new ones
EARLIER_MOST = 8  # conditions of older code: more versions than run side by side


def accept_no_more(connection: Connection, app: str, name: str) -> None:
    """Code that declares it (again) asks a person before it starts on rows that are there. Its calls keep their keys."""
    mine = (table.c.app == app, table.c.name == name, table.c.condition != "")
    connection.execute(update(table).where(*mine).values(condition=""))


def removed(connection: Connection, app: str, names: Sequence[str], schedules: Sequence[str] = ()) -> list[tuple[str, int]]:
    """Reactions with open attempts that this code does not declare, and how many: refused at the start, never dropped.

    Baselines are left out: nothing of them is open, and code that declares the reaction finds them as they are.
    schedules: their attempts are on no record. Where a reaction became a schedule of its name, those on records are its own.
    """
    table = tables.attempt
    of_none = and_(table.c.reaction.not_in(list(names)), table.c.reaction.not_in(list(schedules)))
    of_a_record = and_(table.c.reaction.in_(list(schedules)), table.c.record != "")
    rows = connection.execute(
        select(table.c.reaction, func.count())
        .where(table.c.app == app, or_(of_none, of_a_record), not_(attempts.is_baseline))
        .group_by(table.c.reaction)
    )
    return [(row[0], row[1]) for row in rows]


def has_triggers(connection: Connection, database: Database, question: Question) -> bool:
    """Whether the record's table has triggers: then what we wrote is not surely what stands there."""
    table_ = question.mapper.local_table
    name, schema = getattr(table_, "name", ""), getattr(table_, "schema", None)
    if database.locks_rows:
        where = text(
            "select 1 from pg_trigger where tgrelid = to_regclass(:name) and not tgisinternal"
            " and left(tgname, 16) <> 'groundstate_rows' limit 1"  # ours (triggers.py) writes nothing
        )
        return connection.execute(where, {"name": sql_name(table_, database)}).first() is not None
    master = lightweight("sqlite_master", column("type"), column("tbl_name"), schema=schema)
    found = select(master.c.tbl_name).where(master.c.type == "trigger", master.c.tbl_name == name).limit(1)
    return connection.execute(found).first() is not None
