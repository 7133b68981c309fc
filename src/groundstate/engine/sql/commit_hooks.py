"""Notes which tables and records each commit of any SQLAlchemy session of this process touched, and passes that to the listeners here.

A hint says 'look here' and nothing else. It may be lost, doubled or wrong: nothing relies on its arrival.
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

from groundstate.store.safe_name import name_of

log = logging.getLogger("groundstate")
PrimaryKey = tuple[Any, ...]
KEYS_MAX = 10_000  # keys: a commit that touched more records of one class than this reports the whole class


@dataclass
class Touched:
    """The records that one commit touched.

    Keys have the new values beside them where these are known, so that a reaction can see that its condition does not hold.
    """

    keys: dict[type, dict[PrimaryKey, Mapping[str, Any] | None]] = field(default_factory=dict)
    whole: set[type] = field(default_factory=set)  # classes of which records with unknown keys were touched
    place: str = ""  # the database's name, from its URL; "" where it is unknown, or where there are several
    ours: str = ""  # the app, where its own transaction wrote: its workers of this process continue with it; otherwise ""
    of_a_backlog: bool = False  # whether the records came from a pass over a backlog, so that what follows them is a backlog as well

    def add(self, record: type, keys: Sequence[PrimaryKey], new: Sequence[Mapping[str, Any]] | None) -> None:
        if record in self.whole:
            return
        known = self.keys.setdefault(record, {})
        known.update(zip(keys, new if new is not None else [None] * len(keys), strict=True))
        if len(known) > KEYS_MAX:
            self.add_whole(record)

    def add_whole(self, record: type) -> None:
        self.whole.add(record)
        self.keys.pop(record, None)

    def set_database_name(self, place: str) -> None:
        """Note that the records which are added next lie in this database."""
        self.place = place if not self or self.place == place else ""

    def merge(self, other: Touched) -> None:
        if other:
            self.set_database_name(other.place)
        for record in other.whole:
            self.add_whole(record)
        for record, keys in other.keys.items():
            self.add(record, list(keys), [value or {} for value in keys.values()] if all(keys.values()) else None)

    def __bool__(self) -> bool:
        return bool(self.keys or self.whole)


class Listener(Protocol):
    """A listener to the commits of this process."""

    def hear(self, touched: Touched) -> None:
        """Receive a hint after a commit, on the thread that committed. Must return at once and never raise."""


# By their ids. A dict, since `list` copies its values at once, whatever other threads and the garbage collector do meanwhile; and without
# a lock, since a finaliser that calls stop_listening, or a forked child process, could wait for it for ever.
_listeners: dict[int, weakref.ref[Any]] = {}
_TOUCHED = "groundstate_touched"


def listen(listener: Listener) -> None:
    """Pass each commit from now on to the listener, for as long as the listener exists."""
    _install()
    key = id(listener)
    _listeners[key] = weakref.ref(listener, lambda _: _listeners.pop(key, None))


def stop_listening(listener: Listener) -> None:
    """Pass no more commits to the listener."""
    _listeners.pop(id(listener), None)


def publish_hint(touched: Touched) -> None:
    """Pass a hint to all listeners in this process."""
    for known in list(_listeners.values()):
        listener = known()
        try:
            if listener is not None:
                listener.hear(touched)
        except Exception:  # the committing code must not see the error: the next sweep finds what this hint was about
            log.exception("a hint was lost", extra={"event": "hint_lost"})


def _install() -> None:
    for name, function in (("after_flush", _after_flush), ("do_orm_execute", _on_execute), ("after_commit", _after_commit),
                           ("after_soft_rollback", _after_rollback)):  # fmt: skip
        if not event.contains(Session, name, function):
            event.listen(Session, name, function)


_parents: dict[type, list[tuple[type, tuple[str, ...]]]] = {}


def wakes_parent(child: type, parent: type, names: tuple[str, ...]) -> None:
    """Let each touched child wake its one parent from now on. names: the child's attributes that hold the parent's key (hazard 63)."""
    known = _parents.get(child, [])
    if (parent, names) not in known:
        _parents[child] = [*known, (parent, names)]


def add_parents(touched: Touched, record: Any) -> None:
    """Add the parents of a touched child, by the child's foreign key: both parents where it changed its parent."""
    for child, parents in list(_parents.items()) if _parents else ():
        if isinstance(record, child):
            for parent, names in parents:
                for key in _keys_in(record, names):
                    if _NOT_LOADED in key:
                        touched.add_whole(parent)
                    elif None not in key:
                        touched.add(parent, [key], None)


_NOT_LOADED = object()


def _keys_in(record: Any, names: tuple[str, ...]) -> set[tuple[Any, ...]]:
    """Return the present and the previous values of these attributes. For use in after_flush, or where nothing was flushed."""
    state: Any = instance_state(record)
    if state.key is None:  # a new record: an attribute that was never set is NULL
        return {tuple(state.dict.get(name) for name in names)}
    now = tuple(state.dict.get(name, _NOT_LOADED) for name in names)
    before = (state.committed_state.get(name, value) for name, value in zip(names, now, strict=True))
    return {now, tuple(_NOT_LOADED if value is NO_VALUE else value for value in before)}


def collected(session: Session) -> Touched:
    touched: Touched = session.info.setdefault(_TOUCHED, Touched())
    return touched


def _after_flush(session: Session, _context: UOWTransaction) -> None:
    touched, places = collected(session), dict[Any, str]()
    for record in [*session.new, *session.dirty, *session.deleted]:
        state: Any = inspect(record)
        mapper: Mapper[Any] = state.mapper
        if mapper not in places:
            places[mapper] = _place(session, mapper)
        touched.set_database_name(places[mapper])
        key = tuple(mapper.primary_key_from_instance(record))
        if None in key:
            touched.add_whole(mapper.class_)
        else:
            touched.add(mapper.class_, [key], None)
        add_parents(touched, record)


def _on_execute(state: ORMExecuteState) -> None:
    if state.is_insert or state.is_update or state.is_delete:
        mapper = state.bind_mapper
        if mapper is not None:
            touched = collected(state.session)
            touched.set_database_name(_place(state.session, mapper, state.bind_arguments.get("bind")))
            touched.add_whole(mapper.class_)


def _place(session: Session, mapper: Mapper[Any], bind: Any = None) -> str:
    """Return the name of the database that the session writes this mapper's records to; "" where it is unknown, as with a `get_bind` of the
    user's.
    """
    if type(session).get_bind is not Session.get_bind:
        return ""
    try:
        engine: Engine = (session.get_bind(mapper) if bind is None else bind).engine
    except SQLAlchemyError:
        return ""
    return _name_of(engine.url)


_name_of = lru_cache(maxsize=256)(name_of)


def _after_commit(session: Session) -> None:
    if session.in_nested_transaction():
        return  # a savepoint was released: other transactions cannot see its changes yet
    touched = session.info.pop(_TOUCHED, None)
    if touched:
        publish_hint(touched)


def _after_rollback(session: Session, _previous: Any) -> None:
    if not session.in_transaction():
        session.info.pop(_TOUCHED, None)
