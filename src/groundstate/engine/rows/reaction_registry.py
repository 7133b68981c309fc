"""Reads and writes which reactions this database has accepted, and under which condition. A new or changed reaction must not start on rows
that exist already before a person accepts it (hazards 49, 50).
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
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.condition_texts import condition_from_text
from groundstate.engine.sql.table_spelling import sql_table_name
from groundstate.rules import blocking
from groundstate.rules.specs import ReactionSpec
from groundstate.store import tables
from groundstate.store.port import Database
from groundstate.store.tables import reaction as table
from groundstate.values import keys

log = logging.getLogger("groundstate")
BASELINE = blocking.BASELINE
MATCHES_NOTHING = (
    "1 = 0"  # stored as the condition of a reaction whose row a restore has removed: it matches nothing, so the reaction counts as new
)
COUNTED_MAX = 100_000  # counting of rows stops at this number; a person then reads 'at least'


@dataclass(frozen=True)
class Known:
    """What this database has stored about one reaction.

    Attributes:
        earlier: The conditions that were accepted before the present one, oldest first.
        seen_at: When the present condition was accepted.
        record: The table and key of the reaction's records; None if an older version of groundstate, which did not store them, wrote the
            row.
    """

    name: str
    key_name: str
    condition: str
    suspect: bool
    earlier: tuple[str, ...] = ()
    seen_at: datetime | None = None
    record: str | None = None

    def is_accepted_as(self, query: ConditionQuery) -> bool:
        """Return whether the condition, table and key of the reaction in this version of the application are the accepted ones."""
        return self.condition == query.texts.condition_text and not self.has_other_records(query)

    def has_other_records(self, query: ConditionQuery) -> bool:
        """Return whether the reaction was accepted with another table or key than it has now. If so, its attempts name the former records:
        they do not show for which of the present records a call was made.
        """
        return self.record is not None and self.record != query.spec.record_kind

    @property
    def has_condition(self) -> bool:
        """Return whether a condition is stored that could match rows."""
        return self.condition not in ("", MATCHES_NOTHING)


@dataclass(frozen=True)
class UnacceptedReaction:
    """A new or changed reaction that matches rows which existed before it. It does not start until a person accepts it.

    Attributes:
        calls: The number of existing rows for which the reaction would make its call, since it has no attempt on them. 0 if it has no call.
        call: The name of this call.
        in_doubt: A text that says what becomes of the existing rows if a person accepts them as in doubt.
        suspect: Whether a backup was put back. Then each row is put in doubt first, whatever the person answers.
        both: Whether the rows that match both the new and the accepted condition are carried out until the person answers.
        older: Whether another condition was accepted after this one, so that this may be an older version.
        moved: A text that says how the table or key of the records changed; empty if neither changed.
        known_before: The number of attempts, including baselines, on records of the old table or key. They must be settled before the
            reaction can be accepted.
    """

    name: str
    rows: int
    changed: bool  # whether the reaction was accepted before, under another condition
    calls: int = 0
    call: str = ""
    in_doubt: str = ""
    suspect: bool = False
    both: bool = False
    older: bool = False
    moved: str = ""
    known_before: int = 0

    @property
    def message(self) -> str:
        if self.moved:
            rows = f", and {_rows_in_words(self.rows, 'row matches', 'rows match')}" if self.rows else ""
            return f"{self.name} is not started: {self.moved}, so nothing here tells which of them were called{rows}. {self.cures}"
        does = "carries out only what the accepted condition matches as well" if self.both else "is not started"
        if self.older:
            rows = _rows_in_words(self.rows, "row matches", "rows match")
            what = f"another condition was accepted after this one, and {rows} only this one"
            return f"{self.name} {does}: {what}. {self.cures}"
        what = "its condition changed and newly matches" if self.changed else "it is new here and matches"
        return f"{self.name} {does}: {what} {_rows_in_words(self.rows, *_BEFORE)}. {self.cures}"

    @property
    def cures(self) -> str:
        """Return a text that lists the answers that a person can give, and what each answer does."""
        if self.known_before:
            stand = attempt_text.count_with_noun(self.known_before, "attempt stands", "attempts stand")
            return (
                f"{stand} of records by the old one: stop the workers of the old code, settle or forget these first (`groundstate held"
                f" --reaction {self.name}`, and with `--baseline` the rows that were left out), then say what is known of the rest"
            )
        leave = f"Leave them and start with new ones: groundstate init --baseline {self.name}"
        if not self.calls:
            what = "Go on with them, each of which is in doubt first" if self.suspect else "Carry them out"
            return f"{what}: groundstate init --accept {self.name}. {leave}"
        return f"{self.question_about_calls} {leave}"

    @property
    def answers_for_deployment(self) -> str:
        """Return a text that lists the answers that a person can give, worded for a deployment plan."""
        if self.moved:
            return f"{self.moved}, so nothing here tells which of them were called. Stop the workers of the old code before. {self.cures}"
        leave = f"or `--baseline {self.name}` to leave them"
        if not self.calls:
            return f"`groundstate init --accept {self.name}` to carry out the {_rows_in_words(self.rows, *_BEFORE)}, {leave}"
        return (
            f"`groundstate init --accept {self.name}=call` to call {self.call} for {_count_in_words(self.calls)} of the"
            f" {_rows_in_words(self.rows, *_BEFORE)},"
            f" `--accept {self.name}=doubt` where that may have been done (each begins as a doubt, so {self.in_doubt}),"
            f" {leave}"
        )

    @property
    def question_about_calls(self) -> str:
        """Return a text: the question about the reaction's calls that a person has to answer, and what each answer does."""
        if self.known_before:
            return f"{self.moved}. {self.cures}."
        return (
            f"{self.call} would be called for {_count_in_words(self.calls)} of them, and nothing here tells whether that was done before."
            f" Surely never: groundstate init --accept {self.name}=call."
            f" Perhaps, as after groundstate's tables were dropped, or where another system called before:"
            f" groundstate init --accept {self.name}=doubt, by which each begins as a doubt, so {self.in_doubt}."
        )


def _count_in_words(count: int) -> str:
    return _at_least_in_words(count, f"{count:,}")


def _rows_in_words(count: int, one: str, many: str) -> str:
    return _at_least_in_words(count, attempt_text.count_with_noun(count, one, many))


def _at_least_in_words(count: int, words: str) -> str:
    return f"at least {words}" if count >= COUNTED_MAX else words


_BEFORE = ("row that was there before", "rows that were there before")


def read_known_reactions(connection: Connection, app: str) -> dict[str, Known]:
    trusted = table.c.suspect.is_(False)  # a value that is neither true nor false, after a person's edit, counts as suspect
    seen_at = cast(table.c.seen_at, Text)
    asked = select(table.c.name, table.c.key_name, table.c.condition, trusted, table.c.earlier, seen_at, table.c.record)
    return {
        str(row[0]): Known(
            str(row[0]),
            str(row[1]),
            str(row[2]),
            suspect=not row[3],
            earlier=_parse_earlier(row[4]),
            seen_at=_parse_time(row[5]),
            record=None if row[6] is None else str(row[6]),
        )
        for row in connection.execute(asked.where(table.c.app == app, table.c.name != ""))
    }


def undeclared_names(seen: Mapping[str, Known], declared: Collection[str]) -> tuple[str, ...]:
    """Return the names of reactions and schedules that this database has accepted but this version of the application does not declare, and
    so does not carry out.
    """
    return tuple(sorted(name for name, one in seen.items() if name not in declared and one.has_condition))


def undeclared_message(names: Sequence[str]) -> str:
    return (
        f"known here, and not declared by this code: {', '.join(names)}. Is the module that declares {'it' if len(names) == 1 else 'them'}"
        " imported? Renamed: `groundstate rename OLD NEW`"
    )


def _parse_earlier(written: object) -> tuple[str, ...]:
    """Return the conditions in the column `earlier`. An invalid array, which a person's edit can leave, counts as empty."""
    try:
        found = json.loads(str(written)) if written else []
    except (ValueError, RecursionError):
        found = []
    return tuple(one for one in found if isinstance(one, str)) if isinstance(found, list) else ()


def _parse_time(written: object) -> datetime | None:
    """Return the time that this value stands for; None if the value is invalid, which a person's edit can cause."""
    try:
        # `parse_value` returns a value of the given type, here a datetime.
        return keys.parse_value(str(written).replace(" ", "T", 1), datetime)  # type: ignore[no-any-return]  # declared as Any
    except (ValueError, OverflowError):
        return None


def split_newcomers(
    connection: Connection,
    queries: Sequence[ConditionQuery],
    seen: dict[str, Known],
    unasked: Callable[[ConditionQuery, Exception, str], None],
) -> tuple[list[ConditionQuery], list[UnacceptedReaction]]:
    """Find the reactions that are new or changed. Return a pair: those that match no existing rows, which can be accepted without a
    question, and those that a person must accept.

    An older version of the application does not take back what a newer version had accepted. So a reaction is in neither list if its
    condition was accepted earlier than the condition that is accepted now, and if all rows that it matches are matched by the latter too.
    After a day, the longest that a deployment is expected to take, this exception ends.

    A reaction whose condition the database cannot evaluate is in neither list. Instead, `unasked` is called with the condition query, the
    error, and the reason as a text.
    """
    silent: list[ConditionQuery] = []
    loud: list[UnacceptedReaction] = []
    for query in queries:
        before = seen.get(query.spec.name)
        if before is not None and before.is_accepted_as(query):
            continue
        ask = partial(find_newcomer, connection, query, before)
        found = raising_rows.ask_excluding_raising_rows(connection, query, ask, partial(unasked, query), known=False)
        if found is None:
            continue
        if found.rows or found.known_before:
            loud.append(found)
        elif not found.older:
            silent.append(query)
    return silent, loud


def find_newcomer(connection: Connection, query: ConditionQuery, before: Known | None) -> UnacceptedReaction:
    """Return what a person is asked about a new or changed reaction. In the result, `rows` is the number of existing rows that newly
    match.

    A row with an attempt of this reaction does not count, since the reaction was begun for this row. A row with a baseline does not count
    either, since a person decided about it.
    """
    spec = query.spec
    if before is not None and before.has_other_records(query):
        return _newcomer_with_other_table_or_key(connection, query, before)
    newly = newly_matching_clauses(connection, query, before)
    both = _can_select_rows_of_both_conditions(before, newly)
    if query.attempts.has_own_attempt is not None:
        newly = (*newly, not_(query.attempts.has_own_attempt))
    rows = count_records(connection, query, query.condition.holds_and_is_due, *newly)
    changed = before is not None and before.condition != MATCHES_NOTHING
    told = UnacceptedReaction(spec.name, rows, changed, both=both, older=is_older(connection, query, before))
    if not rows or spec.call is None:
        return told
    suspect = before is not None and before.suspect
    calls = 0 if suspect else count_records(connection, query, query.condition.holds_and_is_due, query.attempts.has_no_own_attempt, *newly)
    becomes = attempt_text.describe_accepting_in_doubt(spec.terms, _count_in_words(calls))
    return replace(told, calls=calls, call=spec.call.function.name, in_doubt=becomes, suspect=suspect)


def _newcomer_with_other_table_or_key(connection: Connection, query: ConditionQuery, before: Known) -> UnacceptedReaction:
    spec, rows = query.spec, count_records(connection, query, query.condition.holds_and_is_due)
    standing = select(func.count()).where(tables.attempt.c.app == spec.app, tables.attempt.c.reaction == spec.name)
    told = UnacceptedReaction(
        spec.name,
        rows,
        changed=True,
        suspect=before.suspect,
        moved=f"its records were {before.record}, and are {spec.record_kind} now",
        known_before=int(connection.execute(standing).scalar_one()),
    )
    if spec.call is None or before.suspect:
        return told
    return replace(
        told, calls=rows, call=spec.call.function.name, in_doubt=attempt_text.describe_accepting_in_doubt(spec.terms, _count_in_words(rows))
    )


def is_older(connection: Connection, query: ConditionQuery, before: Known | None) -> bool:
    """Return whether this condition was accepted earlier, and another condition replaced it less than a day ago. Then this may be an older
    version of the application, which still runs beside a newer one during a deployment.
    """
    if before is None or query.texts.condition_text not in before.earlier:
        return False
    now: datetime = connection.execute(select(query.database.now())).scalar_one()
    return before.seen_at is None or now - before.seen_at < SIDE_BY_SIDE


def may_start_as_older_code(connection: Connection, query: ConditionQuery, before: Known | None) -> bool:
    """Return whether the reaction may start without a question to a person, since this is probably an older version of the application
    (`is_older`). The database must also be able to tell which rows match both this condition and the accepted one.
    """
    return is_older(connection, query, before) and _can_select_rows_of_both_conditions(
        before, newly_matching_clauses(connection, query, before)
    )


def _can_select_rows_of_both_conditions(before: Known | None, newly: Sequence[object]) -> bool:
    """Return whether the database can tell which records the accepted condition matches too. newly: the result of
    `newly_matching_clauses`.
    """
    return before is not None and before.has_condition and bool(newly)


def newly_matching_clauses(connection: Connection, query: ConditionQuery, before: Known | None) -> tuple[ColumnElement[bool], ...]:
    """Return a tuple with one clause, which holds for rows that the accepted condition does not match. Return an empty tuple if all rows
    count as new: there is no accepted condition, or it cannot be evaluated.
    """
    if before is None:
        return ()
    clause = not_(condition_from_text(before.condition))
    try:
        with connection.begin_nested():
            connection.execute(select(*query.keys.key_attributes).where(query.condition.holds_and_is_due, clause).limit(1))
    except DBAPIError:
        return ()  # the accepted condition is no longer valid SQL on this database
    return (clause,)


def count_records(connection: Connection, query: ConditionQuery, *clauses: ColumnElement[bool]) -> int:
    """Return how many records match all these clauses; counting stops at COUNTED_MAX, so there may be more."""
    some = select(*query.keys.key_attributes).where(reduce(query.condition.short_circuit_and, clauses)).limit(COUNTED_MAX).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


def accept_reactions(incarnation: Incarnation, queries: Sequence[ConditionQuery]) -> None:
    """Record that these reactions are accepted under their present condition."""
    with incarnation.open_transaction() as tx:
        seen = read_known_reactions(tx.connection, incarnation.app)
        for query in queries:
            name = query.spec.name
            if name in seen:
                earlier = None if seen[name].has_other_records(query) else _earlier_conditions_json(seen[name], query.texts.condition_text)
                written = {"condition": query.texts.condition_text, "earlier": earlier, "record": query.spec.record_kind}
                tx.connection.execute(
                    update(table).where(table.c.app == incarnation.app, table.c.name == name).values(**written, seen_at=tx.now)
                )
            else:
                tx.connection.execute(
                    insert(table).values(
                        app=incarnation.app,
                        name=name,
                        key_name=query.spec.key_name or name,
                        condition=query.texts.condition_text,
                        record=query.spec.record_kind,
                        suspect=False,
                        seen_at=tx.now,
                    )
                )


def key_clashes(connection: Connection, specs: Sequence[ReactionSpec]) -> list[str]:
    """Return one text, with the error and its cure, for each of these reactions that would make wrong idempotency keys. A worker refuses to
    start with such a reaction.

    There are two cases. A renamed reaction still makes its keys from its old name (hazard 62), so a new reaction with this old name would
    make the same keys. And if the application declares another key name than the stored one, its keys would differ from the earlier keys.
    """
    rows = select(table.c.app, table.c.name, table.c.key_name).where(table.c.name != "", table.c.mark.is_(None))
    there = {(str(app), str(name)): str(key) for app, name, key in connection.execute(rows)}
    whole = {keys.key_name_with_app(app, key): (app, name) for (app, name), key in there.items()}
    declared = {(spec.app, spec.name) for spec in specs}
    found = []
    for spec in specs:
        if spec.call is None:
            continue
        mine, known_as = (spec.app, spec.name), there.get((spec.app, spec.name))
        if known_as is not None and spec.key_name and spec.key_name != known_as:
            said, here = _key_name_as_code(spec.key_name), _key_name_as_code(known_as)
            found.append(
                f"{spec.name} says key_name={said}, but on this database the keys of its calls are made of {here}: declare key_name={here}"
            )
            continue
        owner = whole.get(keys.key_name_with_app(spec.app, known_as or spec.key_name or spec.name), mine)
        is_its_successor = bool(spec.key_name) and owner[0] == spec.app and owner not in declared
        if owner != mine and not is_its_successor:
            where = "" if owner[0] == spec.app else f" of app {owner[0]!r}"
            found.append(
                f"{spec.name} would make the keys of {owner[1]}{where}, which had that name when its first call was made: choose another"
                " name, or declare key_name= with a name that no reaction had"
            )
    return found


def undeclared_key_names(connection: Connection, app: str, specs: Sequence[ReactionSpec]) -> dict[str, str]:
    """Return a dict from reaction to its stored key name, as Python code. Idempotency keys are made from the key name.

    The dict has only reactions for which the application declares no key name although the stored key name differs from the reaction's
    name.
    """
    seen = read_known_reactions(connection, app)
    return {
        spec.name: _key_name_as_code(seen[spec.name].key_name)
        for spec in specs
        if spec.call is not None and spec.name in seen and not spec.key_name and seen[spec.name].key_name != spec.name
    }


def _key_name_as_code(key_name: str) -> str:
    """Return a key name as Python code for `on(key_name=...)`."""
    parts = keys.key_name_parts(key_name)
    return repr(parts[0] if len(parts) == 1 else parts)


def fill_in_missing_records(incarnation: Incarnation, specs: Sequence[ReactionSpec]) -> None:
    """Write the table and key of these reactions' records into our rows, where an older version of groundstate left them out."""
    with incarnation.open_transaction() as tx:
        for spec in specs:
            mine = (table.c.app == incarnation.app, table.c.name == spec.name, table.c.record.is_(None))
            tx.connection.execute(update(table).where(*mine).values(record=spec.record_kind))


def _earlier_conditions_json(before: Known, now: str) -> str | None:
    """Return the value (a JSON array of conditions) that the column `earlier` gets when the condition `now` is accepted."""
    found = [one for one in before.earlier if one not in (now, before.condition)]
    found += [before.condition] if before.has_condition and before.condition != now else []
    return json.dumps(found[-EARLIER_MOST:], ensure_ascii=False) if found else None


SIDE_BY_SIDE = timedelta(days=1)  # for this long after a condition is accepted, workers with an earlier condition may start
EARLIER_MOST = 8  # the most earlier conditions that are kept; fewer versions of an application than this run at once


def clear_accepted_condition(connection: Connection, app: str, name: str) -> None:
    """Clear a reaction's accepted condition. If a later version of the application declares the reaction again, a person must accept it
    before existing rows are carried out. The reaction's key name is kept.
    """
    mine = (table.c.app == app, table.c.name == name, table.c.condition != "")
    connection.execute(update(table).where(*mine).values(condition=""))


def undeclared_with_open_attempts(
    connection: Connection, app: str, names: Sequence[str], schedules: Sequence[str] = ()
) -> list[tuple[str, int]]:
    """Return pairs (reaction, number of its open attempts) for the reactions that have open attempts and that this version of the
    application does not declare. If there are any, a worker refuses to start, since attempts are never dropped.

    names: the declared reactions.
    schedules: the declared schedules. A schedule's own attempts have no record. So an attempt that has a schedule's name and a record
        belongs to a former reaction of that name.

    Baselines do not count, since there is nothing to settle about them.
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
    """Return whether the record's table has triggers, which may store other values in a row than those that were written."""
    table_ = query.mapper.local_table
    name, schema = getattr(table_, "name", ""), getattr(table_, "schema", None)
    if database.locks_rows:
        where = text(
            "select 1 from pg_trigger where tgrelid = to_regclass(:name) and not tgisinternal"
            " and left(tgname, 16) <> 'groundstate_rows' limit 1"  # groundstate's own triggers (triggers.py) change no values
        )
        return connection.execute(where, {"name": sql_table_name(table_, database)}).first() is not None
    master = lightweight("sqlite_master", column("type"), column("tbl_name"), schema=schema)
    found = select(master.c.tbl_name).where(master.c.type == "trigger", master.c.tbl_name == name).limit(1)
    return connection.execute(found).first() is not None
