"""Chooses the transport that carries hints for each database of an app: the one that the app names, or PostgreSQL's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, cast

from sqlalchemy.exc import DBAPIError

from groundstate.app.store import Store
from groundstate.clock import SYSTEM_CLOCK, Clock
from groundstate.engine.operate import triggers
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.safe_text import describe_exception
from groundstate.engine.watch.hint_publisher import STOP_S, HintPublisher
from groundstate.engine.watch.shard_routing import DatabasePart
from groundstate.engine.worker.worker import Worker
from groundstate.rules.specs import ReactionSpec
from groundstate.store import connect as stores
from groundstate.transport import from_url as transports
from groundstate.transport.port import Transport
from groundstate.values.errors import DeclarationError

Chosen = str | Callable[[], str] | None


def check_transport_option(app: str, chosen: Any, keys: Any) -> Chosen:
    """Return the given `transport=` of an App unchanged. Raises DeclarationError if it, or `keys=`, is of a wrong type."""
    if chosen is not None and not isinstance(chosen, str) and not callable(chosen):
        raise DeclarationError(
            f"App({app!r}, transport={type(chosen).__name__}): give a URL, such as 'nats://localhost', or a function that returns one"
        )
    if not isinstance(keys, bool):
        raise DeclarationError(
            f"App({app!r}, keys={keys!r}): give True if hints may contain primary keys of records, or False (the default) if not"
        )
    return None if chosen is None else cast("Chosen", chosen)


def make_transport(chosen: Chosen) -> Transport | None:
    """Return the transport that `App(transport=...)` names, not opened yet. Returns None if the option was not given: hints about a
    PostgreSQL store then travel through that store.

    Raises:
        DeclarationError: the URL of the transport cannot be used.
    """
    url = chosen() if callable(chosen) else chosen
    return None if url is None else transports.make_transport(url)


def describe_hints(chosen: Chosen, *, postgres: bool) -> str:
    """Return a sentence that says how hints about a store travel. Opens no connection, and raises nothing.

    postgres: whether the store's database is PostgreSQL.
    """
    try:
        transport = make_transport(chosen)
    except Exception as error:  # noqa: BLE001  # the URL may come from a function of the user's
        return f"Hints: it is not known here by which transport ({describe_exception(error)})"
    if transport is not None:
        return f"Hints: by {transport.name}"
    return "Hints: by PostgreSQL's NOTIFY" if postgres else "Hints: within each process; what another process writes is found by the sweep"


class HintPublishers:
    """The hint publishers of one running app: they send hints for its databases, and receive hints for its workers."""

    def __init__(
        self,
        app: str,
        reactions: Mapping[Store, Sequence[ReactionSpec]],
        names: Mapping[str, str],
        chosen: Chosen,
        *,
        with_keys: bool,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._clock = clock
        self._publishers: dict[Store, HintPublisher] = {}
        # By PostgreSQL store: an extra listener for hints that database triggers send by NOTIFY. It is needed only if the app's own hints
        # use another transport, such as Redis.
        self._publishers_of_triggers: dict[Store, HintPublisher] = {}
        self._app, self._reactions = app, reactions
        self._lock = threading.Lock()
        self._ended = False
        self._chosen = make_transport(chosen)
        if self._chosen is not None:
            every = [query for store, specs in reactions.items() for query in _make_queries(store, specs)]
            publisher = HintPublisher(app, self._chosen, every, with_keys=with_keys, part=DatabasePart("", names), clock=clock)
            self._publishers = dict.fromkeys(reactions, publisher)
            return
        for store, specs in reactions.items():
            own = _make_postgres_transport(app, store)
            if own is not None:
                part = DatabasePart(store.name or "", names, several=len(reactions) > 1)
                self._publishers[store] = HintPublisher(
                    app, own, _make_queries(store, specs), with_keys=with_keys, part=part, store=store.label, clock=clock
                )

    @property
    def _sending_publishers(self) -> list[HintPublisher]:
        """The hint publishers that send hints, without duplicates: all stores share one publisher if the app's author chose a transport."""
        return list(dict.fromkeys(self._publishers.values()))

    def publisher_of(self, store: Store) -> HintPublisher | None:
        """Return the hint publisher of this store. Returns None if no transport is used for the store."""
        return self._publishers.get(store)

    def start(self, *, trusted: bool) -> None:
        """Open the transports.

        For a transport that the app's author chose, this waits for the check that the transport does not persist messages. PostgreSQL's
        NOTIFY persists none, so it needs no check.

        Raises:
            TransportRefusedError: the chosen transport persists messages, or does not show whether it does.
        """
        for one in self._sending_publishers:
            one.start(trusted=trusted, wait=self._chosen is not None)

    def stop(self) -> None:
        """Close all transports at the same time. This takes at most STOP_S seconds."""
        with self._lock:
            self._ended = True
            every = [*self._sending_publishers, *self._publishers_of_triggers.values()]
        end = self._clock.monotonic() + STOP_S
        for one in every:
            one.request_stop()
        for one in every:
            one.stop(end - self._clock.monotonic())

    def pass_hints_to(self, store: Store, worker: Worker) -> None:
        """From now on pass hints about this store to this worker, including hints from triggers in the store's database. The worker must be
        up.
        """
        if store in self._publishers:
            self._publishers[store].add_receiver(worker, store.name or "")
        known = self._publishers_of_triggers.get(store)
        if known is not None:  # opened already, for an earlier worker of this store
            known.add_receiver(worker)
            return
        own = None if self._chosen is None else _make_postgres_transport(self._app, store)
        if own is not None and _has_triggers(store):
            queries = _make_queries(store, self._reactions[store])
            told = HintPublisher(self._app, own, queries, tells=False, store=store.label, clock=self._clock)
            told.add_receiver(worker)
            with self._lock:
                if not self._ended:
                    self._publishers_of_triggers[store] = told
                    told.start(wait=False)

    @property
    def find_usable_transports(self) -> dict[str, bool]:
        """Return, by the name of each transport, whether hints can be sent and received now."""
        found: dict[str, bool] = {}
        for one in self._sending_publishers:
            found[one.transport.name] = found.get(one.transport.name, True) and one.is_up
        return found

    def add_hint_listener(self, bell: Callable[[], None]) -> None:
        """Call `bell` at each hint from another process, from now on."""
        for one in self._sending_publishers:
            one.add_bell(bell)

    def request_hints(self) -> None:
        """Ask other processes to send hints about the rows that their reactions handle.

        The request expires: repeat it every second or two.
        """
        for one in self._sending_publishers:
            one.announce_wait()

    def remove_hint_listener(self, bell: Callable[[], None]) -> None:
        """No longer call `bell` at hints from other processes."""
        for one in self._sending_publishers:
            one.remove_bell(bell)


def _make_postgres_transport(app: str, store: Store) -> Transport | None:
    """Return a transport by PostgreSQL's NOTIFY for this store, not opened yet. It also receives hints of triggers. Returns None for
    SQLite.
    """
    way = stores.hint_connection_arguments(store.settings())
    if way is None:
        return None
    arguments, connect = way
    made: Transport = import_module("groundstate.transport.postgres").PostgresTransport(arguments, (triggers.channel_name(app),), connect)
    return made


def _has_triggers(store: Store) -> bool:
    """Whether the store's database has triggers of groundstate that send hints. Returns False if the database cannot be queried now."""
    database = stores.open_store(store.settings())[0]
    try:
        with database.reading() as connection:
            return triggers.has_triggers(connection)
    except DBAPIError:
        return False
    finally:
        database.close()


def _make_queries(store: Store, specs: Sequence[ReactionSpec]) -> list[ConditionQuery]:
    database = stores.open_store(store.settings())[0]
    queries = [ConditionQuery(spec, database) for spec in specs]
    for query in queries:
        query.triggers_may_change_row = True  # a trigger may change rows, so a clause cannot be evaluated from the committed values
    return queries
