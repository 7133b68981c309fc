"""Reads and writes which reactions this database has accepted, and under which condition. New and changed reactions are not started
silently (hazards 49, 50).
"""

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

from groundstate.engine.rows import attempt_text, attempts
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql import raising_rows
from groundstate.engine.sql.condition_query import ConditionQuery, held_under, sql_name
from groundstate.rules import blocking
from groundstate.rules.specs import ReactionSpec
from groundstate.store import tables
from groundstate.store.port import Database
from groundstate.store.tables import reaction as table
from groundstate.values import keys

log = logging.getLogger("groundstate")
BASELINE = blocking.BASELINE
MATCHES_NOTHING = "1 = 0"  # the condition stored for a reaction that a restore lost: it matches nothing, so that the reaction counts as new
COUNTED_MAX = 100_000  # rows: beyond this, 'at least so many' is shown


@dataclass(frozen=True)
class Known:
    """What this database knows of one reaction.

    Attributes:
        earlier: The conditions accepted before the present one, the latest last.
        seen_at: When the present condition was accepted.
        record: The table and key of its records; None if older code wrote the row, which did not store that.
    """

    name: str
    key_name: str
    condition: str
    suspect: bool
    earlier: tuple[str, ...] = ()
    seen_at: datetime | None = None
    record: str | None = None

    def is_as(self, query: ConditionQuery) -> bool:
        """Whether this code's condition, table and key are the accepted ones."""
        return self.condition == query.condition_text and not self.has_other_records(query)

    def has_other_records(self, query: ConditionQuery) -> bool:
        """Whether the accepted reaction had another table or key, so that nothing shows which of today's records were called."""
        return self.record is not None and self.record != query.spec.records

    @property
    def says_something(self) -> bool:
        """Whether a condition was accepted here that could match rows."""
        return self.condition not in ("", MATCHES_NOTHING)


@dataclass(frozen=True)
class Newcomer:
    """A new or changed reaction that would match rows that existed before it; it is not started until a person accepts it.

    Attributes:
        calls: How many of those rows have no attempt of this reaction, so that it would make its call for them; 0 if it makes none.
        call: The name of that call.
        in_doubt: What becomes of those rows if they are accepted as in doubt.
        suspect: The database was put back, so each row it takes is in doubt first, whatever the person answers.
        both: Rows that the accepted condition matches as well are carried out meanwhile.
        older: Another condition was accepted after this one.
        moved: In words, how its records' table or key changed; empty if they did not.
        known_before: How many attempts, baselines included, exist for records of the old table or key. None of the reaction's rows can be
            accepted before these are settled.
    """

    name: str
    rows: int
    changed: bool  # it was accepted under another condition
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
        """The answers that a person can give, and what each of them does."""
        if self.known_before:
            stand = attempt_text.counted(self.known_before, "attempt stands", "attempts stand")
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
        """The answers that a person can give, worded for a deployment plan."""
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
        """The question about its calls that a person has to answer, and what each answer does."""
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
    return _at_least(count, attempt_text.counted(count, one, many))


def _at_least(count: int, words: str) -> str:
    return f"at least {words}" if count >= COUNTED_MAX else words


_BEFORE = ("row that was there before", "rows that were there before")


def known(connection: Connection, app: str) -> dict[str, Known]:
    trusted = table.c.suspect.is_(False)  # an edited value that is neither true nor false counts as not trusted
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
    """Return the reactions and schedules that were accepted here and that this code does not declare, so that it does not
    carry them out.
    """
    return tuple(sorted(name for name, one in seen.items() if name not in declared and one.says_something))


def gone_in_words(names: Sequence[str]) -> str:
    return (
        f"known here, and not declared by this code: {', '.join(names)}. Is the module that declares {'it' if len(names) == 1 else 'them'}"
        " imported? Renamed: `groundstate rename OLD NEW`"
    )


def _earlier_in(written: object) -> tuple[str, ...]:
    """Parse the column `earlier`; an invalid array (edited by hand) counts as empty."""
    try:
        found = json.loads(str(written)) if written else []
    except (ValueError, RecursionError):
        found = []
    return tuple(one for one in found if isinstance(one, str)) if isinstance(found, list) else ()


def _time_in(written: object) -> datetime | None:
    """Parse a time; None for an invalid one (edited by hand)."""
    try:
        return keys.value_of(str(written).replace(" ", "T", 1), datetime)  # type: ignore[no-any-return]  # a datetime, as was asked for
    except (ValueError, OverflowError):
        return None


def newcomers(
    connection: Connection,
    queries: Sequence[ConditionQuery],
    seen: dict[str, Known],
    unasked: Callable[[ConditionQuery, Exception, str], None],
) -> tuple[list[ConditionQuery], list[Newcomer]]:
    """Split reactions that are new or changed into those that match no rows from before, to be accepted silently, and those that a person
    must accept.

    Older code, whose condition was accepted before the present one, is in neither list if it matches nothing more than that one: its start
    must not take anything back. This holds for a day. Whoever runs older code for longer has gone back to it, and what the present
    condition matches beyond it is asked about before it is carried out again.

    `unasked` is called for a condition that the database cannot evaluate, with the reason; its reaction is in neither list.
    """
    silent: list[ConditionQuery] = []
    loud: list[Newcomer] = []
    for query in queries:
        before = seen.get(query.spec.name)
        if before is not None and before.is_as(query):
            continue
        ask = partial(newcomer, connection, query, before)
        found = raising_rows.ask_excluding_raising_rows(connection, query, ask, partial(unasked, query), known=False)
        if found is None:
            continue
        if found.rows or found.known_before:
            loud.append(found)
        elif not found.older:
            silent.append(query)
    return silent, loud


def newcomer(connection: Connection, query: ConditionQuery, before: Known | None) -> Newcomer:
    """Return what a person is asked about a new or changed reaction; `rows` is 0 if it would start on nothing that was there before.

    A row that has an attempt of this reaction (or a baseline) does not count: it was begun, or a person decided about it, before.
    """
    spec = query.spec
    if before is not None and before.has_other_records(query):
        return _of_other_records(connection, query, before)
    newly = newly_matching(connection, query, before)
    both = _tells_which_are_both(before, newly)
    if query.has_own_attempt is not None:
        newly = (*newly, not_(query.has_own_attempt))
    rows = count(connection, query, query.come, *newly)
    changed = before is not None and before.condition != MATCHES_NOTHING
    told = Newcomer(spec.name, rows, changed, both=both, older=is_older(connection, query, before))
    if not rows or spec.call is None:
        return told
    suspect = before is not None and before.suspect
    calls = 0 if suspect else count(connection, query, query.come, query.of_no_own_attempt, *newly)
    becomes = attempt_text.accepted_in_doubt(spec.terms, _many(calls))
    return replace(told, calls=calls, call=spec.call.function.name, in_doubt=becomes, suspect=suspect)


def _of_other_records(connection: Connection, query: ConditionQuery, before: Known) -> Newcomer:
    spec, rows = query.spec, count(connection, query, query.come)
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
    return replace(told, calls=rows, call=spec.call.function.name, in_doubt=attempt_text.accepted_in_doubt(spec.terms, _many(rows)))


def is_older(connection: Connection, query: ConditionQuery, before: Known | None) -> bool:
    """Whether another condition was accepted after this code's, less than a day ago, so that this may be older code still running beside
    the new.
    """
    if before is None or query.condition_text not in before.earlier:
        return False
    now: datetime = connection.execute(select(query.database.now())).scalar_one()
    return before.seen_at is None or now - before.seen_at < SIDE_BY_SIDE


def is_quietly_older(connection: Connection, query: ConditionQuery, before: Known | None) -> bool:
    """Whether this is older code that may start without a question to a person, and the database can tell which rows both
    conditions match.
    """
    return is_older(connection, query, before) and _tells_which_are_both(before, newly_matching(connection, query, before))


def _tells_which_are_both(before: Known | None, newly: Sequence[object]) -> bool:
    """Whether the database can tell which records the accepted condition matches as well. `newly` is the result of `newly_matching`."""
    return before is not None and before.says_something and bool(newly)


def newly_matching(connection: Connection, query: ConditionQuery, before: Known | None) -> tuple[ColumnElement[bool], ...]:
    """Return the clause that separates rows that match only now from those that the accepted condition matched; empty if all of them are
    new.
    """
    if before is None:
        return ()
    clause = not_(held_under(before.condition))
    try:
        with connection.begin_nested():
            connection.execute(select(*query.key_attributes).where(query.come, clause).limit(1))
    except DBAPIError:
        return ()  # the old SQL is no longer valid here, so all rows count as new
    return (clause,)


def count(connection: Connection, query: ConditionQuery, *clauses: ColumnElement[bool]) -> int:
    """Return how many records match these clauses, counted up to COUNTED_MAX."""
    some = select(*query.key_attributes).where(reduce(query.and_then, clauses)).limit(COUNTED_MAX).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


def write(incarnation: Incarnation, queries: Sequence[ConditionQuery]) -> None:
    """Accept these reactions under their present condition."""
    with incarnation.transaction() as tx:
        seen = known(tx.connection, incarnation.app)
        for query in queries:
            name = query.spec.name
            if name in seen:
                earlier = None if seen[name].has_other_records(query) else _earlier(seen[name], query.condition_text)
                written = {"condition": query.condition_text, "earlier": earlier, "record": query.spec.records}
                tx.connection.execute(
                    update(table).where(table.c.app == incarnation.app, table.c.name == name).values(**written, seen_at=tx.now)
                )
            else:
                tx.connection.execute(
                    insert(table).values(
                        app=incarnation.app,
                        name=name,
                        key_name=query.spec.key_name or name,
                        condition=query.condition_text,
                        record=query.spec.records,
                        suspect=False,
                        seen_at=tx.now,
                    )
                )


def key_clashes(connection: Connection, specs: Sequence[ReactionSpec]) -> list[str]:
    """Return why calls of these reactions would be sent under wrong idempotency keys, each with the cure. A start refuses such reactions.

    A rename leaves the keys as they were (hazard 62). So another reaction that later gets the old name would make the same keys, and code
    that declares another key name than the database knows would not find its own calls.
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
    """Return, by reaction, the key names that only this database knows and the code does not declare, as the code would write them."""
    seen = known(connection, app)
    return {
        spec.name: _shown(seen[spec.name].key_name)
        for spec in specs
        if spec.call is not None and spec.name in seen and not spec.key_name and seen[spec.name].key_name != spec.name
    }


def _shown(key_name: str) -> str:
    """Return a key name as `on(key_name=...)` is given it."""
    parts = keys.key_name_parts(key_name)
    return repr(parts[0] if len(parts) == 1 else parts)


def remember_records(incarnation: Incarnation, specs: Sequence[ReactionSpec]) -> None:
    """Write down the table and key of these reactions' records in rows where older code left them out."""
    with incarnation.transaction() as tx:
        for spec in specs:
            mine = (table.c.app == incarnation.app, table.c.name == spec.name, table.c.record.is_(None))
            tx.connection.execute(update(table).where(*mine).values(record=spec.records))


def _earlier(before: Known, now: str) -> str | None:
    """Return the column `earlier` (a JSON array of conditions) as it is once the condition `now` is accepted."""
    found = [one for one in before.earlier if one not in (now, before.condition)]
    found += [before.condition] if before.says_something and before.condition != now else []
    return json.dumps(found[-EARLIER_MOST:], ensure_ascii=False) if found else None


SIDE_BY_SIDE = timedelta(days=1)  # how long after another condition was accepted a worker with older code may start beside new ones
EARLIER_MOST = 8  # conditions remembered: more versions of the code than run side by side


def accept_no_more(connection: Connection, app: str, name: str) -> None:
    """Clear a reaction's accepted condition, so that code which declares it again asks a person before it starts on existing rows. The keys
    of its calls stay.
    """
    mine = (table.c.app == app, table.c.name == name, table.c.condition != "")
    connection.execute(update(table).where(*mine).values(condition=""))


def removed(connection: Connection, app: str, names: Sequence[str], schedules: Sequence[str] = ()) -> list[tuple[str, int]]:
    """Return reactions with open attempts that this code does not declare, with their number. A start refuses; they are never dropped.

    Baselines do not count: nothing of them is open, and code that declares the reaction finds them as they are. `schedules` are names of
    schedules, whose attempts have no record: attempts on a record under such a name are of a reaction that became a schedule.
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


def has_triggers(connection: Connection, database: Database, query: ConditionQuery) -> bool:
    """Whether the record's table has triggers, so that the row may hold something other than what we wrote."""
    table_ = query.mapper.local_table
    name, schema = getattr(table_, "name", ""), getattr(table_, "schema", None)
    if database.locks_rows:
        where = text(
            "select 1 from pg_trigger where tgrelid = to_regclass(:name) and not tgisinternal"
            " and left(tgname, 16) <> 'groundstate_rows' limit 1"  # our own triggers (triggers.py) write nothing
        )
        return connection.execute(where, {"name": sql_name(table_, database)}).first() is not None
    master = lightweight("sqlite_master", column("type"), column("tbl_name"), schema=schema)
    found = select(master.c.tbl_name).where(master.c.type == "trigger", master.c.tbl_name == name).limit(1)
    return connection.execute(found).first() is not None
