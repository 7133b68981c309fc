"""What a user's session may not do to records: refused in its flush, before it reaches the database. Reads attempts, writes nothing.

A record that is deleted, or gets another key, while an attempt stands on it cannot be concluded any more (hazard 14). What a call writes
is refused by `inside_call`, which is asked here for each flush.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, event, inspect, select
from sqlalchemy.orm import Mapper, Session, UOWTransaction

from groundstate.engine import inside_call
from groundstate.engine.question import Question, blocking, keeps_own_reaction
from groundstate.store.tables import attempt
from groundstate.values import keys
from groundstate.values.errors import GroundstateError, StateRefused

_guarded: dict[str, frozenset[str]] = {}  # full name of a table with reactions -> the same, as attempts block by it


def guard(question: Question) -> None:
    """From now on sessions of this process are watched for the records of this reaction."""
    name = question.spec.table_name
    _guarded[name] = _guarded.get(name, frozenset()).union(question.spellings)
    if not event.contains(Session, "before_flush", _before_flush):
        event.listen(Session, "before_flush", _before_flush)


def _before_flush(session: Session, _context: UOWTransaction, _instances: Any) -> None:
    inside_call.refuse_flush(session)
    for record in session.deleted:
        _refuse_under_attempt(session, record, "deleted", blocking)
    for record in session.dirty:
        if _key_changed(record):  # under another key it would be called for anew, whatever is held under the old one
            _refuse_under_attempt(session, record, "given another primary key", keeps_own_reaction)


def _key_changed(record: Any) -> bool:
    state: Any = inspect(record)
    mapper: Mapper[Any] = state.mapper
    names = {mapper.get_property_by_column(column).key for column in mapper.primary_key}
    return bool(state.identity) and any(
        name in state.committed_state and state.dict.get(name) != state.committed_state[name]
        for name in names & state.committed_state.keys()
    )


def _refuse_under_attempt(session: Session, record: Any, what: str, standing: ColumnElement[bool]) -> None:
    state: Any = inspect(record)
    table_name = str(state.mapper.base_mapper.local_table.fullname)
    if table_name not in _guarded or not state.identity:
        return
    try:
        text = keys.record_text(state.identity)
    except GroundstateError:
        return
    with session.no_autoflush:
        on_it = (attempt.c.blocks.in_(_guarded[table_name]), attempt.c.record == text)
        found = session.connection(bind_arguments={"mapper": state.mapper}).execute(
            select(attempt.c.reaction, attempt.c.state).where(*on_it, standing).limit(1)
        )
        row = found.first()
    if row is not None:
        raise StateRefused(
            f"{table_name} {text} cannot be {what} now: {row.reaction} is {row.state} on it, and what became of its call must be written "
            "to it. Wait until it is concluded or settled (groundstate why), or mark the record as gone by a column"
        )
