"""Rows of `groundstate_attempt`: read, written and deleted in batches, each write fenced. Decides nothing: see rules/attempt.py."""

from __future__ import annotations

import json
import os
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

from groundstate.engine import listed
from groundstate.engine.cells import LATEST, LIFE_MOST, NUMBER_MOST
from groundstate.engine.question import Question, blocking
from groundstate.engine.trouble import Illegible, reading_ours
from groundstate.rules import kind
from groundstate.rules.attempt import Attempt, State
from groundstate.rules.blocking import BASELINE
from groundstate.store.port import Database
from groundstate.store.tables import attempt as table

_NAMES = tuple(field.name for field in fields(Attempt))
_COLUMNS = [table.c[name] for name in _NAMES]
Identity = tuple[str, str, str, str]


def new_call() -> int:
    """63 random bits, for a BIGINT: the fence of one call. Drawn many at once, since each draw is a system call that gives the GIL away."""
    while True:
        try:
            return _drawn.pop()
        except IndexError:
            _drawn.extend(number & _63_BITS for number in memoryview(os.urandom(8 * _AT_ONCE)).cast("q"))


_63_BITS = 2**63 - 1
_AT_ONCE = 256
_drawn: list[int] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drawn.clear)  # or parent and child would draw the same fences


def from_row(row: Any) -> Attempt:
    """Raises Illegible where something stands in it that nothing of ours writes."""
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
        and (begun_with is None or (begun_with.__class__ is str and kind.is_legible(begun_with)))
    ):
        raise Illegible(f"the attempt of {reaction!r} on {record!r} cannot be read")
    if state not in _STATES:
        return replace(Attempt(app, reaction, record, occurrence, State.HELD, *row[5:]), **as_held(state))
    return Attempt(app, reaction, record, occurrence, _STATES[state], *row[5:])


_STATES = {state.value: state for state in State}


def as_held(state: object) -> dict[str, Any]:
    """As what an attempt in a state that is none is read: its call may have been made. It is never written by who only read it: the fence
    of each write asks for the state that was read.
    """
    return {"state": State.HELD, "unsure": True, "next_at": None, "why": unknown_state(state)}


def unknown_state(state: object) -> str:
    """Why such an attempt waits for a person, in words."""
    shown = state[:80] if isinstance(state, str) else state
    return (
        f"its state is {shown!r}, which this version does not know: newer code wrote it, or somebody edited it. It is left"
        " as it is, and its record alone, until that code or a person has settled it (settle, retry or forget take it as held)"
    )


def fetch(connection: Connection, statement: Select[Any], given: Mapping[str, Any] | None = None) -> list[Attempt]:
    """The attempts of a statement made by `rows`. Raises Illegible where one of them cannot be read."""
    with reading_ours():
        return [from_row(row) for row in connection.execute(statement, given)]


def state_of(written: object) -> State:
    """The state that a column says; what is none of them is held: a person must say what it was."""
    return _STATES.get(str(written), State.HELD)


# In a state that none of our rows is in somebody edited it: it is held as well.
is_held: ColumnElement[bool] = or_(table.c.state == State.HELD.value, table.c.state.not_in(list(_STATES)))
# A row that was there before its reaction and is left alone: nothing of it is open, whatever code declares its reaction.
is_baseline: ColumnElement[bool] = and_(is_held, func.coalesce(table.c.why, "") == BASELINE)


def values_of(attempt: Attempt) -> dict[str, Any]:
    return {name: getattr(attempt, name) for name in _NAMES}


def new(identity: Identity, worker: int, now: datetime, blocks: str | None = None) -> Attempt:
    """An attempt that was not there yet, before anything happened to it."""
    app, reaction, record, occurrence = identity
    return Attempt(
        app=app, reaction=reaction, record=record, occurrence=occurrence, state=State.FAILED, worker=worker, call=new_call(), call_no=0,
        unsure=False, since=now, first_at=now, deadline=now, blocks=blocks,
    )  # fmt: skip


ANY: Select[Any] = select(table.c.app).limit(1)  # whether any attempt stands


def rows(*where: ColumnElement[bool]) -> Select[Any]:
    return select(*_COLUMNS).where(*where)


def concerning(
    tx: Reader, question: Question, records: Sequence[str], *, lock: bool = False, own: bool = False
) -> dict[str, list[Attempt]]:
    """Attempts that matter for taking these records: those of the reaction itself, and, unless own or where it has a fact, what blocks."""
    if not records:
        return {}
    spec = question.spec
    alone = own or spec.fact is not None
    same_call = () if alone else spec.same_call
    statement, parameter = _concerning(tx.database, not alone, lock, bool(same_call))
    given: dict[str, Any] = {"app": spec.app, "reaction": spec.name, "records": parameter(records)}
    if not alone:
        given["blocks"] = question.spellings
    if same_call:
        given["same_call"] = list(same_call)
    by_record: dict[str, list[Attempt]] = {}
    for one in fetch(tx.connection, statement, given):
        by_record.setdefault(one.record, []).append(one)
    return by_record


@lru_cache(maxsize=128)
def _concerning(database: Database, blocks: bool, lock: bool, same_call: bool) -> tuple[Select[Any], Callable[[Sequence[Any]], Any]]:
    records = listed.one_of(database, table.c.record, "records")
    wanted = and_(table.c.app == bindparam("app"), table.c.reaction == bindparam("reaction"), records.expression)
    if blocks:
        # Two conditions, each with an index of its own: what is ours by the primary key, and what blocks by the partial one.
        wanted = or_(wanted, and_(table.c.blocks.in_(bindparam("blocks", expanding=True)), records.expression, blocking))
        if same_call:
            names = table.c.reaction.in_(bindparam("same_call", expanding=True))
            made = and_(table.c.state == "held", table.c.outcome.is_not(None), table.c.blocks.is_not(None))
            wanted = or_(wanted, and_(table.c.app == bindparam("app"), names, records.expression, made))
    statement = rows(wanted)
    return (locked(database, statement) if lock else statement), records.parameter


class Reader(Protocol):
    """What reading attempts needs of a transaction."""

    database: Database
    connection: Connection


def locked(database: Database, statement: Select[Any]) -> Select[Any]:
    return statement.with_for_update() if database.locks_rows else statement


class Writer(Reader, Protocol):
    """What inserting them needs as well."""

    some_attempts: bool  # set: who takes records later in this transaction must look for attempts


def insert(tx: Writer, new: Sequence[Attempt]) -> set[int]:
    """Inserts; where one of that identity is there already it is left as it is. Returns the calls that were written."""
    if not new:
        return set()
    tx.some_attempts = True
    alike: dict[tuple[Any, ...], list[Attempt]] = {}
    for one in new:
        alike.setdefault(_shared_by(one), []).append(one)
    statement, parameter = _insert_alike(tx.database)
    written = 0
    for shared, some in alike.items():
        given = dict(zip(_SHARED, shared, strict=True)) | parameter([(one.record, one.occurrence, one.call) for one in some])
        written += tx.connection.execute(statement, given).rowcount
    calls = {one.call for one in new}
    if written == len(new):
        return calls
    there = tx.connection.execute(select(table.c.call).where(table.c.worker == new[0].worker, table.c.call.in_(calls)))
    return set(there.scalars())


_OWN = ("record", "occurrence", "call")  # what differs within a batch
_SHARED = tuple(name for name in _NAMES if name not in _OWN)
_shared_by = attrgetter(*_SHARED)


@lru_cache(maxsize=128)
def _insert_alike(database: Database) -> tuple[Any, Callable[[Sequence[tuple[str, str, int]]], dict[str, Any]]]:
    """One statement for any number of attempts that differ in record, occurrence and call alone: a begin writes one for each call."""
    if database.locks_rows:
        source: Any = listed.unnested("own", {name: table.c[name].type for name in _OWN})
        values: list[Any] = [source.c[name] for name in _OWN]
    else:
        source = func.json_each(bindparam("own", type_=Text())).table_valued("value", name="own")
        values = [func.json_extract(source.c.value, f"$[{number}]") for number in range(len(_OWN))]
    shared = [bindparam(name, type_=table.c[name].type) for name in _SHARED]
    rows_of = select(*shared, *values).select_from(source).where(true())  # SQLite cannot tell ON CONFLICT from a join without a WHERE
    statement = database.insert(table).from_select([*_SHARED, *_OWN], rows_of)
    once = statement.on_conflict_do_nothing(index_elements=["app", "reaction", "record", "occurrence"])
    return once, _as_arrays if database.locks_rows else _as_json


def _as_arrays(own: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
    return {name: [one[number] for one in own] for number, name in enumerate(_OWN)}


def _as_json(own: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
    return {"own": json.dumps(own, ensure_ascii=False)}


def save(connection: Connection, changed: Sequence[tuple[Attempt, Attempt]]) -> set[int]:
    """Writes (before, after) pairs, each only where state, call and worker are still those of before.

    Returns the calls that were written.
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
    written = _written(connection, parameters)
    calls = {after.call for _, after in changed}
    if written == len(parameters):
        return calls
    return set(connection.execute(select(table.c.call).where(table.c.call.in_(calls))).scalars())


def _written(connection: Connection, parameters: Sequence[Mapping[str, Any]]) -> int:
    if connection.dialect.name != "postgresql" or len(parameters) < _AS_ONE:
        return connection.execute(_SAVE, parameters).rowcount
    return connection.execute(_save_all(), {name: [one[name] for one in parameters] for name in parameters[0]}).rowcount


_AS_ONE = 8  # so many attempts are saved by one statement
_FENCE = ("app", "reaction", "record", "occurrence", "call", "state", "worker")
_CHANGING = [name for name in _NAMES if name not in ("app", "reaction", "record", "occurrence")]
_SAVE = (
    update(table)
    .where(*[table.c[name] == bindparam(f"k_{name}") for name in _FENCE])
    .values({table.c[name]: bindparam(f"new_{name}") for name in _CHANGING})
)


@lru_cache(maxsize=1)
def _save_all() -> Update:
    """The same for all of them at once, PostgreSQL's."""
    columns = {f"k_{name}": table.c[name].type for name in _FENCE} | {f"new_{name}": table.c[name].type for name in _CHANGING}
    new = listed.unnested("new", columns)
    fence = [table.c[name] == new.c[f"k_{name}"] for name in _FENCE]
    return update(table).where(*fence).values({table.c[name]: new.c[f"new_{name}"] for name in _CHANGING})


def remove(database: Database, connection: Connection, gone: Sequence[Attempt]) -> int:
    """Deletes these, each only while its call is still the same; returns how many were."""
    count = 0
    by_reaction: dict[tuple[str, str], list[Attempt]] = {}
    for one in gone:
        by_reaction.setdefault((one.app, one.reaction), []).append(one)
    for (app, reaction), some in by_reaction.items():
        statement, records, calls = _remove(database)
        given = {
            "app": app,
            "reaction": reaction,
            "records": records([one.record for one in some]),
            "calls": calls([one.call for one in some]),
        }
        count += connection.execute(statement, given).rowcount
    return count


@lru_cache(maxsize=128)
def _remove(database: Database) -> tuple[Delete, Callable[[Sequence[Any]], Any], Callable[[Sequence[Any]], Any]]:
    records = listed.one_of(database, table.c.record, "records")
    calls = listed.one_of(database, table.c.call, "calls")
    mine = (table.c.app == bindparam("app"), table.c.reaction == bindparam("reaction"))
    return delete(table).where(*mine, records.expression, calls.expression), records.parameter, calls.parameter


def by_identity(found: Mapping[str, Sequence[Attempt]], identity: Identity) -> Attempt | None:
    """The attempt of that identity among those found by record."""
    for one in found.get(identity[2], ()):
        if one.identity == identity:
            return one
    return None


def after(order: Sequence[ColumnElement[Any]], cursor: Sequence[Any]) -> ColumnElement[bool]:
    """Rows later than the cursor in this order."""
    values = [bindparam(None, value, type_=column.type) for column, value in zip(order, cursor, strict=True)]
    return tuple_(*order) > tuple_(*values)
