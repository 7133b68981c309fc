"""Reads, inserts, updates and deletes rows of `groundstate_attempt` in batches. An update or delete takes effect only if the row still has
the call number (a random number, new for each call) that was read. rules/attempt.py decides what an attempt becomes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any, Protocol

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    delete,
    func,
    or_,
    select,
    true,
    tuple_,
    update,
)

from groundstate.clock import Dice
from groundstate.engine.sql import in_list
from groundstate.engine.sql.attempt_filters import is_blocking
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.db_errors import Illegible, reading_own_rows
from groundstate.engine.sql.raw_cells import LATEST, LIFE_MOST, NUMBER_MOST
from groundstate.rules import begun_kind
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.blocking import BASELINE
from groundstate.store.port import Database
from groundstate.store.tables import attempt as table

_NAMES = tuple(field.name for field in fields(Attempt))
_COLUMNS = [table.c[name] for name in _NAMES]
Identity = tuple[str, str, str, str]


def new_call_number(dice: Dice) -> int:
    """Return a new random number of 63 bits, which identifies one call. For speed, 256 numbers are drawn by one system call."""
    while True:
        try:
            return dice.drawn.pop()
        except IndexError:
            dice.drawn.extend(number & _63_BITS for number in memoryview(dice.randbytes(8 * _AT_ONCE)).cast("q"))


_63_BITS = 2**63 - 1
_AT_ONCE = 256


def attempt_from_row(row: Any) -> Attempt:
    """Return the Attempt that is stored in one row of `groundstate_attempt`. Raises Illegible if a column holds a value that groundstate
    never writes.
    """
    (app, reaction, record, occurrence, state, worker, call, call_no, _unsure, since, first_at, deadline, failures, _next_at,
     error, why, outcome, blocks, together, begun_with) = row  # fmt: skip
    if not (
        app.__class__ is reaction.__class__ is record.__class__ is occurrence.__class__ is str
        and worker.__class__ is call.__class__ is call_no.__class__ is failures.__class__ is together.__class__ is int
        and 0 <= worker <= LIFE_MOST
        and 0 <= call_no <= NUMBER_MOST
        and 0 <= failures <= NUMBER_MOST
        and 0 <= together <= NUMBER_MOST
        and since <= LATEST >= first_at
        and deadline <= LATEST
        and (error is None or error.__class__ is str)
        and (why is None or why.__class__ is str)
        and (outcome is None or outcome.__class__ is str)
        and (blocks is None or blocks.__class__ is str)
        and (begun_with is None or (begun_with.__class__ is str and begun_kind.is_known_begun_with(begun_with)))
    ):
        raise Illegible(f"the attempt of {reaction!r} on {record!r} cannot be read")
    if state not in _STATES:
        return replace(Attempt(app, reaction, record, occurrence, State.HELD, *row[5:]), **fields_as_held(state))
    return Attempt(app, reaction, record, occurrence, _STATES[state], *row[5:])


_STATES = {state.value: state for state in State}


def fields_as_held(state: object) -> dict[str, Any]:
    """Return the field values to use for an attempt whose stored state is unknown, as a dict from field name to value. In memory the
    attempt counts as held and unsure, since its call may have been made. In the database the row keeps its unknown state.
    `update_attempts` never updates this row, since the row's state differs from the state of the Attempt that was read.
    """
    return {"state": State.HELD, "unsure": True, "next_at": None, "why": unknown_state_message(state)}


def unknown_state_message(state: object) -> str:
    """Return the reason (`why`) for holding an attempt whose state this version of groundstate does not know."""
    shown = state[:80] if isinstance(state, str) else state
    return (
        f"its state is {shown!r}, which this version does not know: newer code wrote it, or somebody edited it. It is left"
        " as it is, and its record alone, until that code or a person has settled it (settle, retry or forget take it as held)"
    )


def fetch_attempts(connection: Connection, statement: Select[Any], given: Mapping[str, Any] | None = None) -> list[Attempt]:
    """Run a statement made by `select_attempts` and return its attempts. Raises Illegible if one of them cannot be read."""
    with reading_own_rows():
        return [attempt_from_row(row) for row in connection.execute(statement, given)]


def parse_state(written: object) -> State:
    """Return the State for a text of the column `state`. Return State.HELD for an unknown text, since only a person can say what it
    means.
    """
    return _STATES.get(str(written), State.HELD)


# A row whose state is unknown (a newer version wrote it, or a person edited it) counts as held.
is_held: ColumnElement[bool] = or_(table.c.state == State.HELD.value, table.c.state.not_in(list(_STATES)))
# Selects baselines: held attempts for rows that a person left out when accepting the reaction. There is nothing to settle about them.
is_baseline: ColumnElement[bool] = and_(is_held, func.coalesce(table.c.why, "") == BASELINE)


def column_values(attempt: Attempt) -> dict[str, Any]:
    return {name: getattr(attempt, name) for name in _NAMES}


def new_attempt(identity: Identity, worker: int, now: datetime, blocks: str | None = None, *, dice: Dice) -> Attempt:
    """Return a new Attempt with a new call number. The caller must insert it into the table."""
    app, reaction, record, occurrence = identity
    return Attempt(
        app=app, reaction=reaction, record=record, occurrence=occurrence, state=State.FAILED, worker=worker,
        call=new_call_number(dice), call_no=0, unsure=False, since=now, first_at=now, deadline=now, blocks=blocks,
    )  # fmt: skip


def new_attempt_of_record(query: ConditionQuery, record: str, occurrence: str, worker: int, now: datetime) -> Attempt:
    """Return a new Attempt on a record of this reaction. Unless the reaction has a done column, the attempt blocks the record for the other
    reactions on the same table.
    """
    spec = query.spec
    blocks = None if spec.done_column else spec.table_name
    return new_attempt((spec.app, spec.name, record, occurrence), worker, now, blocks, dice=query.database.dice)


ANY: Select[Any] = select(table.c.app).limit(1)  # selects one row if the table has any attempt


def select_attempts(*where: ColumnElement[bool]) -> Select[Any]:
    return select(*_COLUMNS).where(*where)


def attempts_deciding_claim(
    tx: Reader, query: ConditionQuery, records: Sequence[str], *, lock: bool = False, own: bool = False
) -> dict[str, list[Attempt]]:
    """Return the attempts that decide whether the reaction may claim these records, as a dict from record key to list.

    These are the reaction's own attempts, and the attempts of other reactions that block a record. If `own` is True, or if the reaction has
    a done column, return only the reaction's own attempts. If `lock` is True, lock the rows of the attempts that are returned.
    """
    if not records:
        return {}
    spec = query.spec
    alone = own or spec.done_column is not None
    same_call = () if alone else spec.same_call
    statement, parameter = _select_deciding_attempts(tx.database, not alone, lock, bool(same_call))
    given: dict[str, Any] = {"app": spec.app, "reaction": spec.name, "records": parameter(records)}
    if not alone:
        given["blocks"] = query.attempts.table_name_spellings
    if same_call:
        given["same_call"] = list(same_call)
    by_record: dict[str, list[Attempt]] = {}
    for one in fetch_attempts(tx.connection, statement, given):
        by_record.setdefault(one.record, []).append(one)
    return by_record


@lru_cache(maxsize=128)
def _select_deciding_attempts(
    database: Database, blocks: bool, lock: bool, same_call: bool
) -> tuple[Select[Any], Callable[[Sequence[Any]], Any]]:
    records = in_list.is_one_of(database, table.c.record, "records")
    wanted = and_(table.c.app == bindparam("app"), table.c.reaction == bindparam("reaction"), records.expression)
    if blocks:
        # Each side of this OR has an index: the primary key for the reaction's own attempts, and the partial index for blocking attempts.
        wanted = or_(wanted, and_(table.c.blocks.in_(bindparam("blocks", expanding=True)), records.expression, is_blocking))
        if same_call:
            names = table.c.reaction.in_(bindparam("same_call", expanding=True))
            made = and_(table.c.state == "held", table.c.outcome.is_not(None), table.c.blocks.is_not(None))
            wanted = or_(wanted, and_(table.c.app == bindparam("app"), names, records.expression, made))
    statement = select_attempts(wanted)
    return (lock_selected_rows(database, statement) if lock else statement), records.parameter


class Reader(Protocol):
    """The attributes of a transaction that a function needs to read attempts."""

    database: Database
    connection: Connection


def lock_selected_rows(database: Database, statement: Select[Any]) -> Select[Any]:
    return statement.with_for_update() if database.locks_rows else statement


class Writer(Reader, Protocol):
    """The attributes of a transaction that a function needs to insert attempts."""

    some_attempts: bool  # set to True by `insert`, so that later claims in the same transaction read attempts


def insert_attempts(tx: Writer, new: Sequence[Attempt]) -> set[int]:
    """Insert new attempts. If a row with the primary key of a new attempt exists already, that row is left as it is. Returns the call
    numbers of the inserted attempts.
    """
    if not new:
        return set()
    tx.some_attempts = True
    alike: dict[tuple[Any, ...], list[Attempt]] = {}
    for one in new:
        alike.setdefault(_shared_by(one), []).append(one)
    statement, parameter = _insert_statement(tx.database)
    written = 0
    for shared, some in alike.items():
        given = dict(zip(_SHARED, shared, strict=True)) | parameter([(one.record, one.occurrence, one.call) for one in some])
        written += tx.connection.execute(statement, given).rowcount
    calls = {one.call for one in new}
    if written == len(new):
        return calls
    there = tx.connection.execute(select(table.c.call).where(table.c.worker == new[0].worker, table.c.call.in_(calls)))
    return set(there.scalars())


_OWN = ("record", "occurrence", "call")  # the columns in which the attempts of one batch may differ
_SHARED = tuple(name for name in _NAMES if name not in _OWN)
_shared_by = attrgetter(*_SHARED)


@lru_cache(maxsize=128)
def _insert_statement(database: Database) -> tuple[Any, Callable[[Sequence[tuple[str, str, int]]], dict[str, Any]]]:
    """Return a pair: an INSERT statement for any number of attempts that differ only in record, occurrence and call, and a function that
    makes the statement's parameters from these three values of each attempt.
    """
    if database.locks_rows:
        source: Any = in_list.rows_from_arrays("own", {name: table.c[name].type for name in _OWN})
        values: list[Any] = [source.c[name] for name in _OWN]
    else:
        source = func.json_each(bindparam("own", type_=Text())).table_valued("value", name="own")
        values = [func.json_extract(source.c.value, f"$[{number}]") for number in range(len(_OWN))]
    shared = [bindparam(name, type_=table.c[name].type) for name in _SHARED]
    # Without a WHERE, SQLite would parse the ON of ON CONFLICT as the constraint of a join.
    rows_of = select(*shared, *values).select_from(source).where(true())
    statement = database.insert_function(table).from_select([*_SHARED, *_OWN], rows_of)
    once = statement.on_conflict_do_nothing(index_elements=["app", "reaction", "record", "occurrence"])
    return once, _parameters_as_arrays if database.locks_rows else _parameters_as_json


def _parameters_as_arrays(own: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
    return {name: [one[number] for one in own] for number, name in enumerate(_OWN)}


def _parameters_as_json(own: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
    return {"own": json.dumps(own, ensure_ascii=False)}


def update_attempts(connection: Connection, changed: Sequence[tuple[Attempt, Attempt]]) -> set[int]:
    """Update attempts, given as pairs (attempt before, attempt after). A row is updated only if its state, call and worker are still those
    of the attempt before.

    Returns the call numbers of the rows that were updated.
    """
    parameters = []
    for before, after in changed:
        values = {f"new_{name}": getattr(after, name) for name in _CHANGING}
        parameters.append(
            {"k_app": before.app, "k_reaction": before.reaction, "k_record": before.record, "k_occurrence": before.occurrence,
             "k_call": before.call, "k_state": before.state, "k_worker": before.worker} | values
        )  # fmt: skip
    if not parameters:
        return set()
    written = _execute_updates(connection, parameters)
    calls = {after.call for _, after in changed}
    if written == len(parameters):
        return calls
    return set(connection.execute(select(table.c.call).where(table.c.call.in_(calls))).scalars())


def _execute_updates(connection: Connection, parameters: Sequence[Mapping[str, Any]]) -> int:
    if connection.dialect.name != "postgresql" or len(parameters) < _AS_ONE:
        return connection.execute(_SAVE, parameters).rowcount
    return connection.execute(_bulk_update_statement(), {name: [one[name] for one in parameters] for name in parameters[0]}).rowcount


# On PostgreSQL, at least this many attempts are saved by one UPDATE statement. Fewer attempts are saved by one UPDATE each.
_AS_ONE = 8
_FENCE = ("app", "reaction", "record", "occurrence", "call", "state", "worker")
_CHANGING = [name for name in _NAMES if name not in ("app", "reaction", "record", "occurrence")]
_SAVE = (
    update(table)
    .where(*[table.c[name] == bindparam(f"k_{name}") for name in _FENCE])
    .values({table.c[name]: bindparam(f"new_{name}") for name in _CHANGING})
)


@lru_cache(maxsize=1)
def _bulk_update_statement() -> Update:
    """Return the PostgreSQL UPDATE that saves many attempts in one statement, from arrays of their old and new values."""
    columns = {f"k_{name}": table.c[name].type for name in _FENCE} | {f"new_{name}": table.c[name].type for name in _CHANGING}
    new = in_list.rows_from_arrays("new", columns)
    fence = [table.c[name] == new.c[f"k_{name}"] for name in _FENCE]
    return update(table).where(*fence).values({table.c[name]: new.c[f"new_{name}"] for name in _CHANGING})


def delete_attempts(database: Database, connection: Connection, gone: Sequence[Attempt]) -> int:
    """Delete the rows of these attempts, except rows whose call number has changed, and return how many rows were deleted."""
    count = 0
    by_reaction: dict[tuple[str, str], list[Attempt]] = {}
    for one in gone:
        by_reaction.setdefault((one.app, one.reaction), []).append(one)
    for (app, reaction), some in by_reaction.items():
        statement, records, calls = _delete_statement(database)
        given = {
            "app": app,
            "reaction": reaction,
            "records": records([one.record for one in some]),
            "calls": calls([one.call for one in some]),
        }
        count += connection.execute(statement, given).rowcount
    return count


@lru_cache(maxsize=128)
def _delete_statement(database: Database) -> tuple[Delete, Callable[[Sequence[Any]], Any], Callable[[Sequence[Any]], Any]]:
    records = in_list.is_one_of(database, table.c.record, "records")
    calls = in_list.is_one_of(database, table.c.call, "calls")
    mine = (table.c.app == bindparam("app"), table.c.reaction == bindparam("reaction"))
    return delete(table).where(*mine, records.expression, calls.expression), records.parameter, calls.parameter


def find_by_identity(found: Mapping[str, Sequence[Attempt]], identity: Identity) -> Attempt | None:
    """Return the attempt with this identity among attempts grouped by record; None if there is none."""
    for one in found.get(identity[2], ()):
        if one.identity == identity:
            return one
    return None


def rows_after_cursor(order: Sequence[ColumnElement[Any]], cursor: Sequence[Any]) -> ColumnElement[bool]:
    """Return the SQL condition that selects the rows after the cursor, if rows are sorted by `order`. The cursor has the sort values of the
    last row that was read.
    """
    values = [bindparam(None, value, type_=column.type) for column, value in zip(order, cursor, strict=True)]
    return tuple_(*order) > tuple_(*values)
