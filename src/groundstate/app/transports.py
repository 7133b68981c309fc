"""Chooses the transport that carries hints for each database of an app: the one that the app names, or PostgreSQL's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, cast

from sqlalchemy.exc import DBAPIError

from groundstate.app.store import Store
from groundstate.engine.operate import triggers
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.safe_text import describe
from groundstate.engine.watch.hint_publisher import STOP_S, HintPublisher
from groundstate.engine.watch.shard_routing import Part
from groundstate.engine.worker import Worker
from groundstate.rules.specs import ReactionSpec
from groundstate.store import connect as stores
from groundstate.transport import from_url as transports
from groundstate.transport.port import Transport
from groundstate.values.errors import DeclarationError

Chosen = str | Callable[[], str] | None


def checked(app: str, chosen: Any, keys: Any) -> Chosen:
    """Return the `transport` option of an App as it was given. Raises DeclarationError if it, or `keys`, is of a wrong type."""
    if chosen is not None and not isinstance(chosen, str) and not callable(chosen):
        raise DeclarationError(
            f"App({app!r}, transport={type(chosen).__name__}): give a URL, such as 'nats://localhost', or a function that returns one"
        )
    if not isinstance(keys, bool):
        raise DeclarationError(
            f"App({app!r}, keys={keys!r}): True lets hints carry the primary keys of records, False (as it is) their reactions alone"
        )
    return None if chosen is None else cast("Chosen", chosen)


def transport_of(chosen: Chosen) -> Transport | None:
    """Return the transport that the app's author chose, not opened yet. Raises DeclarationError if its URL cannot be used.

    Returns None if none was chosen: then each PostgreSQL carries its own hints.
    """
    url = chosen() if callable(chosen) else chosen
    return None if url is None else transports.transport_of(url)


def hints_in_words(chosen: Chosen, *, postgres: bool) -> str:
    """Return a sentence that says how hints about a store travel. Opens no connection, and raises nothing.

    postgres: whether the store's database is PostgreSQL.
    """
    try:
        transport = transport_of(chosen)
    except Exception as error:  # noqa: BLE001  # the URL may come from a function of the user's
        return f"Hints: by nothing that can be told here ({describe(error)})"
    if transport is not None:
        return f"Hints: by {transport.name}"
    return "Hints: by PostgreSQL's NOTIFY" if postgres else "Hints: within each process; what another one writes is found by looking"


class HintPublishers:
    """The hint publishers of one running app: they send hints for its databases, and receive hints for its workers."""

    def __init__(
        self, app: str, reactions: Mapping[Store, Sequence[ReactionSpec]], names: Mapping[str, str], chosen: Chosen, *, with_keys: bool
    ) -> None:
        self._of: dict[Store, HintPublisher] = {}
        self._of_rows: dict[Store, HintPublisher] = {}  # for hints of triggers, if the app's own hints use a chosen transport
        self._app, self._reactions = app, reactions
        self._lock = threading.Lock()
        self._ended = False
        self._chosen = transport_of(chosen)
        if self._chosen is not None:
            every = [query for store, specs in reactions.items() for query in _queries(store, specs)]
            self._of = dict.fromkeys(reactions, HintPublisher(app, self._chosen, every, with_keys=with_keys, part=Part("", names)))
            return
        for store, specs in reactions.items():
            own = _own_transport(app, store)
            if own is not None:
                part = Part(store.name or "", names, several=len(reactions) > 1)
                self._of[store] = HintPublisher(app, own, _queries(store, specs), with_keys=with_keys, part=part, store=store.label)

    @property
    def _all(self) -> list[HintPublisher]:
        """The hint publishers that send, each once."""
        return list(dict.fromkeys(self._of.values()))

    def of(self, store: Store) -> HintPublisher | None:
        """Return the hint publisher that sends and receives for this store. Returns None if no transport is used for it."""
        return self._of.get(store)

    def start(self, *, trusted: bool) -> None:
        """Open the transports.

        A transport that the author chose is first checked for whether it persists messages. PostgreSQL's own does not persist them, so its
        start is not waited for.

        Raises:
            TransportRefusedError: the chosen transport persists messages, or does not show whether it does.
        """
        for one in self._all:
            one.start(trusted=trusted, wait=self._chosen is not None)

    def stop(self) -> None:
        """Close all transports together, within STOP_S seconds in all."""
        with self._lock:
            self._ended = True
            every = [*self._all, *self._of_rows.values()]
        end = time.monotonic() + STOP_S
        for one in every:
            one.end()
        for one in every:
            one.stop(end - time.monotonic())

    def serve(self, store: Store, worker: Worker) -> None:
        """Pass hints on to the worker of this store from now on, also those that triggers in its database send. The worker must be up."""
        if store in self._of:
            self._of[store].serves(worker, store.name or "")
        known = self._of_rows.get(store)
        if known is not None:  # it was opened for an earlier worker of this store
            known.serves(worker)
            return
        own = None if self._chosen is None else _own_transport(self._app, store)
        if own is not None and _has_triggers(store):
            told = HintPublisher(self._app, own, _queries(store, self._reactions[store]), tells=False, store=store.label)
            told.serves(worker)
            with self._lock:
                if not self._ended:
                    self._of_rows[store] = told
                    told.start(wait=False)

    @property
    def up(self) -> dict[str, bool]:
        """Whether hints can be sent and received now, by the name of each transport."""
        found: dict[str, bool] = {}
        for one in self._all:
            found[one.transport.name] = found.get(one.transport.name, True) and one.up
        return found

    def ring(self, bell: Callable[[], None]) -> None:
        """Call `bell` with each hint from another process, from now on."""
        for one in self._all:
            one.rings(bell)

    def wait(self) -> None:
        """Ask the other processes for hints about what they carry out. The request expires, so it must be repeated every second or two."""
        for one in self._all:
            one.wait()

    def ring_no_more(self, bell: Callable[[], None]) -> None:
        """Stop calling `bell` with hints from other processes."""
        for one in self._all:
            one.rings_no_more(bell)


def _own_transport(app: str, store: Store) -> Transport | None:
    """Return PostgreSQL's own transport for this store, not opened yet. It also receives hints of triggers. Returns None for SQLite."""
    way = stores.listening(store.settings())
    if way is None:
        return None
    arguments, connect = way
    made: Transport = import_module("groundstate.transport.postgres").PostgresTransport(arguments, (triggers.channel(app),), connect)
    return made


def _has_triggers(store: Store) -> bool:
    """Whether the store's database has triggers of groundstate that send hints. Returns False if this cannot be seen now."""
    database = stores.open_store(store.settings())[0]
    try:
        with database.reading() as connection:
            return triggers.are_there(connection)
    except DBAPIError:
        return False
    finally:
        database.close()


def _queries(store: Store, specs: Sequence[ReactionSpec]) -> list[ConditionQuery]:
    database = stores.open_store(store.settings())[0]
    queries = [ConditionQuery(spec, database) for spec in specs]
    for query in queries:
        query.has_triggers = True  # a trigger may change rows, so that no clause is taken as known after a commit
    return queries
