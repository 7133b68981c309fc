"""Which transports an app uses, and who is told by which: one that its author chose, or each PostgreSQL's own. Sends nothing itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, cast

from sqlalchemy.exc import DBAPIError

from groundstate.app.store import Store
from groundstate.engine import triggers
from groundstate.engine.guarded import describe
from groundstate.engine.messenger import STOP_S, Messenger
from groundstate.engine.part import Part
from groundstate.engine.question import Question
from groundstate.engine.worker import Worker
from groundstate.rules.reaction import ReactionSpec
from groundstate.store import opening as stores
from groundstate.transport import opening as transports
from groundstate.transport.port import Transport
from groundstate.values.errors import DeclarationError

Chosen = str | Callable[[], str] | None


def checked(app: str, chosen: Any, keys: Any) -> Chosen:
    """What an App was given. Raises DeclarationError."""
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
    """The transport that was chosen, not opened; None where each PostgreSQL carries its own hints. Raises DeclarationError."""
    url = chosen() if callable(chosen) else chosen
    return None if url is None else transports.transport_of(url)


def hints_in_words(chosen: Chosen, *, postgres: bool) -> str:
    """By what hints about a store go, whose database is PostgreSQL or not. Connects to nothing, and raises nothing."""
    try:
        transport = transport_of(chosen)
    except Exception as error:  # noqa: BLE001  # a function of the user gives the URL
        return f"Hints: by nothing that can be told here ({describe(error)})"
    if transport is not None:
        return f"Hints: by {transport.name}"
    return "Hints: by PostgreSQL's NOTIFY" if postgres else "Hints: within each process; what another one writes is found by looking"


class Messengers:
    """Of one running app."""

    def __init__(
        self, app: str, reactions: Mapping[Store, Sequence[ReactionSpec]], names: Mapping[str, str], chosen: Chosen, *, with_keys: bool
    ) -> None:
        self._of: dict[Store, Messenger] = {}
        self._of_rows: dict[Store, Messenger] = {}  # of triggers, where what is told otherwise goes another way
        self._app, self._reactions = app, reactions
        self._lock = threading.Lock()
        self._ended = False
        self._chosen = transport_of(chosen)
        if self._chosen is not None:
            every = [question for store, specs in reactions.items() for question in _questions(store, specs)]
            self._of = dict.fromkeys(reactions, Messenger(app, self._chosen, every, with_keys=with_keys, part=Part("", names)))
            return
        for store, specs in reactions.items():
            own = _own_transport(app, store)
            if own is not None:
                part = Part(store.name or "", names, several=len(reactions) > 1)
                self._of[store] = Messenger(app, own, _questions(store, specs), with_keys=with_keys, part=part, store=store.label)

    @property
    def _all(self) -> list[Messenger]:
        """Those that tell."""
        return list(dict.fromkeys(self._of.values()))

    def of(self, store: Store) -> Messenger | None:
        """Who tells of this store, and is told."""
        return self._of.get(store)

    def start(self, *, trusted: bool) -> None:
        """Opens them. One that was chosen is asked first whether it persists; a PostgreSQL's own does not, and need not be waited for.

        Raises:
            TransportRefused: it persists, or does not let it be seen whether it does.
        """
        for one in self._all:
            one.start(trusted=trusted, wait=self._chosen is not None)

    def stop(self) -> None:
        """Closes them, all at once."""
        with self._lock:
            self._ended = True
            every = [*self._all, *self._of_rows.values()]
        end = time.monotonic() + STOP_S
        for one in every:
            one.end()
        for one in every:
            one.stop(end - time.monotonic())

    def serve(self, store: Store, worker: Worker) -> None:
        """From now on this store's worker, which is up, hears what is told of it, and what triggers tell that are there."""
        if store in self._of:
            self._of[store].serves(worker, store.name or "")
        known = self._of_rows.get(store)
        if known is not None:  # of a worker that was there before this one
            known.serves(worker)
            return
        own = None if self._chosen is None else _own_transport(self._app, store)
        if own is not None and _has_triggers(store):
            told = Messenger(self._app, own, _questions(store, self._reactions[store]), tells=False, store=store.label)
            told.serves(worker)
            with self._lock:
                if not self._ended:
                    self._of_rows[store] = told
                    told.start(wait=False)

    @property
    def up(self) -> dict[str, bool]:
        """Of each transport, by name, whether hints come and go just now."""
        found: dict[str, bool] = {}
        for one in self._all:
            found[one.transport.name] = found.get(one.transport.name, True) and one.up
        return found

    def ring(self, bell: Callable[[], None]) -> None:
        """The bell rings with each hint of others from now on."""
        for one in self._all:
            one.rings(bell)

    def wait(self) -> None:
        """Somebody waits, and wants to be told of what others carry out; to be said again each second or two."""
        for one in self._all:
            one.wait()

    def ring_no_more(self, bell: Callable[[], None]) -> None:
        """The bell is silent."""
        for one in self._all:
            one.rings_no_more(bell)


def _own_transport(app: str, store: Store) -> Transport | None:
    """A PostgreSQL's own, not opened, which hears triggers as well; None for SQLite."""
    way = stores.listening(store.settings())
    if way is None:
        return None
    arguments, connect = way
    made: Transport = import_module("groundstate.transport.postgres").PostgresTransport(arguments, (triggers.channel(app),), connect)
    return made


def _has_triggers(store: Store) -> bool:
    """Whether there are any in this store's database that tell who wrote; no, where that cannot be seen now."""
    database = stores.open_store(store.settings())[0]
    try:
        with database.reading() as connection:
            return triggers.are_there(connection)
    except DBAPIError:
        return False
    finally:
        database.close()


def _questions(store: Store, specs: Sequence[ReactionSpec]) -> list[Question]:
    database = stores.open_store(store.settings())[0]
    questions = [Question(spec, database) for spec in specs]
    for question in questions:
        question.has_triggers = True  # what a row is after a commit is not guessed from here
    return questions
