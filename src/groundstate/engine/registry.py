"""Which reactions this database has seen, under which condition: new and changed ones are not started silently (hazards 49, 50)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, column, func, insert, literal_column, not_, or_, select, text, true, update
from sqlalchemy import table as lightweight
from sqlalchemy.exc import DBAPIError

from groundstate.engine import attempts, trouble, wording
from groundstate.engine.life import Life
from groundstate.engine.question import Question, sql_name
from groundstate.rules import blocking
from groundstate.store import tables
from groundstate.store.port import Database
from groundstate.store.tables import reaction as table

log = logging.getLogger("groundstate")
BASELINE = blocking.BASELINE
MATCHES_NOTHING = "1 = 0"  # as what a reaction is written down after a restore that was not known before: it counts as new
COUNTED_MAX = 100_000  # beyond this 'at least so many' is said


@dataclass(frozen=True)
class Known:
    """What this database knows of a reaction."""

    name: str
    key_name: str
    condition: str
    suspect: bool


@dataclass(frozen=True)
class Newcomer:
    """A reaction that would match rows present before it: not started until somebody says so.

    calls: of those rows, how many have no attempt of its own, so that it would make its call for them; 0 where it makes none. call: that
    call's name. in_doubt: what becomes of them if they are accepted as doubts. suspect: since the database went back each row that it takes
    is in doubt first, whatever is said.
    """

    name: str
    rows: int
    changed: bool  # it was known under another condition
    calls: int = 0
    call: str = ""
    in_doubt: str = ""
    suspect: bool = False

    @property
    def words(self) -> str:
        what = "its condition changed and newly matches" if self.changed else "it is new here and matches"
        return f"{self.name} is not started: {what} {_many(self.rows)} rows that were there before. {self.cures}"

    @property
    def cures(self) -> str:
        """What a person can say, and what each of it does."""
        leave = f"Leave them and start with new ones: groundstate init --baseline {self.name}"
        if not self.calls:
            what = "Go on with them, each of which is in doubt first" if self.suspect else "Carry them out"
            return f"{what}: groundstate init --accept {self.name}. {leave}"
        return f"{self.asks} {leave}"

    @property
    def needs(self) -> str:
        """The same for a plan."""
        leave = f"or `--baseline {self.name}` to leave them"
        if not self.calls:
            return f"`groundstate init --accept {self.name}` to carry out the {_many(self.rows)} rows that were there before, {leave}"
        return (
            f"`groundstate init --accept {self.name}=call` to call {self.call} for {_many(self.calls)} of the {_many(self.rows)} rows that"
            f" were there before, `--accept {self.name}=doubt` where that may have been done (each begins as a doubt, so {self.in_doubt}),"
            f" {leave}"
        )

    @property
    def asks(self) -> str:
        """What has to be said of its calls, and what each answer does."""
        return (
            f"{self.call} would be called for {_many(self.calls)} of them, and nothing here tells whether that was done before."
            f" Surely never: groundstate init --accept {self.name}=call."
            f" Perhaps, as after groundstate's tables were dropped, or where another system called before:"
            f" groundstate init --accept {self.name}=doubt, by which each begins as a doubt, so {self.in_doubt}."
        )


def _many(count: int) -> str:
    return f"at least {count:,}" if count >= COUNTED_MAX else f"{count:,}"


def known(connection: Connection, app: str) -> dict[str, Known]:
    trusted = table.c.suspect.is_(False)  # and what is neither true nor false, since somebody edited it, is not trusted
    rows = connection.execute(
        select(table.c.name, table.c.key_name, table.c.condition, trusted).where(table.c.app == app, table.c.name != "")
    )
    return {str(row[0]): Known(str(row[0]), str(row[1]), str(row[2]), suspect=not row[3]) for row in rows}


def newcomers(
    connection: Connection, questions: Sequence[Question], seen: dict[str, Known], *, others_go_on: bool = False
) -> tuple[list[Question], list[Newcomer]]:
    """Reactions to be written down silently, since they match nothing that was there before; and those that must be accepted.

    others_go_on: a condition that cannot be asked is a line in the log, and its reaction in neither list; else it raises.
    """
    silent: list[Question] = []
    loud: list[Newcomer] = []
    for question in questions:
        before = seen.get(question.spec.name)
        if before is not None and before.condition == question.condition_text:
            continue
        try:
            with connection.begin_nested():
                found = newcomer(connection, question, before)
        except DBAPIError as error:
            if trouble.transient(error) or not others_go_on:
                raise
            if not trouble.undefined(error):  # of which unfit.py tells, and looks again
                log.exception(
                    "%s is not started: its condition cannot be asked",
                    question.spec.name,
                    extra={"event": "condition_unaskable", "reaction": question.spec.name},
                )
            continue
        if found.rows == 0:
            silent.append(question)
        else:
            loud.append(found)
    return silent, loud


def newcomer(connection: Connection, question: Question, before: Known | None) -> Newcomer:
    """What is told of a new or changed reaction; its `rows` are 0 where it would start on nothing that was there before.

    A row on which an attempt of it stands, a baseline too, is none that it starts on: it was begun, or a person spoke of it, before.
    """
    spec, newly = question.spec, newly_matching(connection, question, before)
    if question.has_own_attempt is not None:
        newly = (*newly, not_(question.has_own_attempt))
    rows = count(connection, question, question.come, *newly)
    changed = before is not None and before.condition != MATCHES_NOTHING
    if not rows or spec.call is None:
        return Newcomer(spec.name, rows, changed)
    suspect = before is not None and before.suspect
    calls = 0 if suspect else count(connection, question, question.come, question.of_no_own_attempt, *newly)
    becomes = wording.accepted_in_doubt(spec.terms, _many(calls))
    return Newcomer(spec.name, rows, changed, calls, spec.call.function.name, becomes, suspect)


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


def held_under(old: str) -> ColumnElement[bool]:
    """Whether a condition holds that was accepted as this SQL."""
    return func.coalesce(literal_column(f"({old})"), not_(true()))


def count(connection: Connection, question: Question, *clauses: ColumnElement[bool]) -> int:
    """The records for which these hold, as far as they are counted."""
    some = select(*question.key_attributes).where(*clauses).limit(COUNTED_MAX).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


def write(life: Life, questions: Sequence[Question]) -> None:
    """Accepts these reactions under their present condition."""
    with life.transaction() as tx:
        seen = known(tx.connection, life.app)
        for question in questions:
            name = question.spec.name
            if name in seen:
                tx.connection.execute(
                    update(table)
                    .where(table.c.app == life.app, table.c.name == name)
                    .values(condition=question.condition_text, seen_at=tx.now)
                )
            else:
                tx.connection.execute(
                    insert(table).values(
                        app=life.app, name=name, key_name=name, condition=question.condition_text, suspect=False, seen_at=tx.now
                    )
                )


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
            " and tgname <> 'groundstate_rows' limit 1"  # ours (triggers.py) writes nothing
        )
        return connection.execute(where, {"name": sql_name(table_, database)}).first() is not None
    master = lightweight("sqlite_master", column("type"), column("tbl_name"), schema=schema)
    found = select(master.c.tbl_name).where(master.c.type == "trigger", master.c.tbl_name == name).limit(1)
    return connection.execute(found).first() is not None
