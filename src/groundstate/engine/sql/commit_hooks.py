"""Notes which records each commit of any SQLAlchemy session in this process touched, and passes a hint to the listeners in this process.

A hint says which records were touched, and nothing else. It may be lost, doubled or wrong: nothing relies on its arrival.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from sqlalchemy import Engine, event, inspect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapper, ORMExecuteState, Session, UOWTransaction
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.base import NO_VALUE

from groundstate.store.safe_name import label_of_url

log = logging.getLogger("groundstate")
PrimaryKey = tuple[Any, ...]
KEYS_MAX = 10_000  # records: if a commit touched more records of one class than this, it reports the class as a whole


@dataclass
class TouchedRecords:
    """The records that one commit touched.

    `keys` has, for each class, a dict from primary key to the record's new values, or to None if the new values are not known. By the new
    values, a worker can tell without a query that a reaction's condition does not hold.
    """

    keys: dict[type, dict[PrimaryKey, Mapping[str, Any] | None]] = field(default_factory=dict)
    whole: set[type] = field(default_factory=set)  # classes with touched records that are unknown or too many to list
    place: str = ""  # the database's name, from its URL; empty if it is unknown, or if there are several databases
    # name of the app whose worker made this commit; empty if user code made it. Workers of that app in this process take up the records
    # at once.
    ours: str = ""
    of_a_backlog: bool = False  # whether the records came from a backlog; then the work that they cause belongs to a backlog too

    def add(self, record: type, keys: Sequence[PrimaryKey], new: Sequence[Mapping[str, Any]] | None) -> None:
        """Add records of one class by their keys. new: one dict of new values per key; None if they are not known."""
        if record in self.whole:
            return
        known = self.keys.setdefault(record, {})
        known.update(zip(keys, new if new is not None else [None] * len(keys), strict=True))
        if len(known) > KEYS_MAX:
            self.add_class(record)

    def add_class(self, record: type) -> None:
        """Add all records of this class."""
        self.whole.add(record)
        self.keys.pop(record, None)

    def set_database_name(self, place: str) -> None:
        """Set the database of the records that are added next. If records of another database were added before, the name becomes empty."""
        self.place = place if not self or self.place == place else ""

    def merge(self, other: TouchedRecords) -> None:
        """Add all that another commit or transaction has touched."""
        if other:
            self.set_database_name(other.place)
        for record in other.whole:
            self.add_class(record)
        for record, keys in other.keys.items():
            self.add(record, list(keys), [value or {} for value in keys.values()] if all(keys.values()) else None)

    def __bool__(self) -> bool:
        return bool(self.keys or self.whole)


class Listener(Protocol):
    """An object that is told of the commits of this process."""

    def note_commit(self, touched: TouchedRecords) -> None:
        """Receive the hint of one commit, on the thread that committed. Must return at once and never raise."""


# Maps id(listener) to the listener. A dict is used because `list` copies its values atomically, whatever other threads and the garbage
# collector do. No lock is used: a finaliser that calls remove_listener, or a forked child process, could wait for the lock for ever.
_listeners: dict[int, weakref.ref[Any]] = {}
_TOUCHED = "groundstate_touched"


def add_listener(listener: Listener) -> None:
    """Pass the hints of all later commits to this listener, for as long as the listener exists."""
    _install_session_listeners()
    key = id(listener)
    _listeners[key] = weakref.ref(listener, lambda _: _listeners.pop(key, None))


def remove_listener(listener: Listener) -> None:
    """Pass no more hints to this listener."""
    _listeners.pop(id(listener), None)


def publish_hint(touched: TouchedRecords) -> None:
    """Pass a hint to all listeners in this process."""
    for known in list(_listeners.values()):
        listener = known()
        try:
            if listener is not None:
                listener.note_commit(touched)
        except Exception:  # the code that committed must not get the listener's error; the next sweep finds the records all the same
            log.exception("a hint was lost", extra={"event": "hint_lost"})


def _install_session_listeners() -> None:
    for name, function in (("after_flush", _note_flush), ("do_orm_execute", _note_statement), ("after_commit", _publish_touched),
                           ("after_soft_rollback", _forget_touched)):  # fmt: skip
        if not event.contains(Session, name, function):
            event.listen(Session, name, function)


_parents: dict[type, list[tuple[type, tuple[str, ...]]]] = {}


def wake_parent_with_child(child: type, parent: type, names: tuple[str, ...]) -> None:
    """From now on, report the parent whenever a child is touched (hazard 63). names: the attributes of the child that hold the parent's
    key.
    """
    known = _parents.get(child, [])
    if (parent, names) not in known:
        _parents[child] = [*known, (parent, names)]


def add_parents_of(touched: TouchedRecords, record: Any) -> None:
    """Add the parents of a touched record, found by the record's foreign keys. If the record was moved to another parent, add both the old
    and the new parent.
    """
    for child, parents in list(_parents.items()) if _parents else ():
        if isinstance(record, child):
            for parent, names in parents:
                for key in _present_and_previous_values(record, names):
                    if _NOT_LOADED in key:
                        touched.add_class(parent)
                    elif None not in key:
                        touched.add(parent, [key], None)


_NOT_LOADED = object()


def _present_and_previous_values(record: Any, names: tuple[str, ...]) -> set[tuple[Any, ...]]:
    """Return the present values and the previous values of these attributes, as a set of one or two tuples.

    Call it in `after_flush`, or if nothing was flushed: otherwise the previous values are not known any more.
    """
    state: Any = instance_state(record)
    if state.key is None:  # the record is new, so an attribute that was never set is NULL
        return {tuple(state.dict.get(name) for name in names)}
    now = tuple(state.dict.get(name, _NOT_LOADED) for name in names)
    before = (state.committed_state.get(name, value) for name, value in zip(names, now, strict=True))
    return {now, tuple(_NOT_LOADED if value is NO_VALUE else value for value in before)}


def touched_in_session(session: Session) -> TouchedRecords:
    """Return the records that this session has touched since its last commit."""
    touched: TouchedRecords = session.info.setdefault(_TOUCHED, TouchedRecords())
    return touched


def _note_flush(session: Session, _context: UOWTransaction) -> None:
    touched, places = touched_in_session(session), dict[Any, str]()
    for record in [*session.new, *session.dirty, *session.deleted]:
        state: Any = inspect(record)
        mapper: Mapper[Any] = state.mapper
        if mapper not in places:
            places[mapper] = _database_name(session, mapper)
        touched.set_database_name(places[mapper])
        key = tuple(mapper.primary_key_from_instance(record))
        if None in key:
            touched.add_class(mapper.class_)
        else:
            touched.add(mapper.class_, [key], None)
        add_parents_of(touched, record)


def _note_statement(state: ORMExecuteState) -> None:
    if state.is_insert or state.is_update or state.is_delete:
        mapper = state.bind_mapper
        if mapper is not None:
            touched = touched_in_session(state.session)
            touched.set_database_name(_database_name(state.session, mapper, state.bind_arguments.get("bind")))
            touched.add_class(mapper.class_)


def _database_name(session: Session, mapper: Mapper[Any], bind: Any = None) -> str:
    """Return the name of the database to which the session writes records of this mapper. Return an empty string if it is unknown, as with
    the user's own `get_bind`.
    """
    if type(session).get_bind is not Session.get_bind:
        return ""
    try:
        engine: Engine = (session.get_bind(mapper) if bind is None else bind).engine
    except SQLAlchemyError:
        return ""
    return _database_name_of_url(engine.url)


_database_name_of_url = lru_cache(maxsize=256)(label_of_url)


def _publish_touched(session: Session) -> None:
    if session.in_nested_transaction():
        return  # only a savepoint was released, so other transactions cannot see its changes yet
    touched = session.info.pop(_TOUCHED, None)
    if touched:
        publish_hint(touched)


def _forget_touched(session: Session, _previous: Any) -> None:
    if not session.in_transaction():
        session.info.pop(_TOUCHED, None)
