"""Reads from an app's databases what metrics report, and caches it for some seconds. Only one reading runs at a time, by SELECTs only.

A reader never waits for a database for longer than `WAIT_S`: a separate thread queries it, and until that is done the reader gets the last
result, or none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from groundstate.app.app import App
from groundstate.app.declared import databases_of, reactions_of, schedules_of
from groundstate.app.store import Store
from groundstate.engine.operate import fleet_status
from groundstate.engine.operate.fleet_status import Overview
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from groundstate.store.port import Database

log = logging.getLogger("groundstate")
FRESH_S = 5.0  # seconds: a result is used for this long before it is queried again
WAIT_S = 2.0  # seconds: a reader waits at most this long for a new result
STALE_S = 60.0  # seconds: an older result is not reported
MOST = 10_000  # rows that are counted at most for each reaction


@dataclass
class Seen:
    """Seen holds the last result from one database. waits: for each reaction the first record that waits, and since when it was seen to be
    first.
    """

    store: Store
    name: str
    answer: Overview | None = None
    at: float = float("-inf")  # never: the monotonic clock of a host that has just started shows little more than 0
    waits: dict[str, tuple[str, float]] = field(default_factory=dict)
    database: Database | None = None
    queries: Sequence[ConditionQuery] = ()

    def waited_s(self, reaction: str, now: float) -> float:
        """Return for how many seconds, at least, the reaction's first record has waited, as far as it was seen from here."""
        first = self.waits.get(reaction)
        return now - first[1] if first else 0.0


class DatabaseStatusCache:
    """Looking caches what the databases of one app report; any thread may call it."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._seen: list[Seen] | None = None
        self._lock = threading.Lock()
        self._asking: threading.Thread | None = None

    def seen(self) -> list[Seen]:
        """Return the last result of each database, a fresh one where the database answers in time. A result that is too old is None."""
        with self._lock:
            if self._seen is None:
                self._seen = [Seen(store, store.label) for store in databases_of(self._app)]
            seen, asking = self._seen, self._asking
            if asking is None and any(time.monotonic() - one.at > FRESH_S for one in seen):
                asking = self._asking = threading.Thread(target=self._ask_all, args=(seen,), name="groundstate-looking", daemon=True)
                asking.start()
        if asking is not None:
            asking.join(WAIT_S)
        return seen

    def close(self) -> None:
        """Close the connections; a later call of `seen` opens new ones."""
        asking = self._asking
        if asking is not None:
            asking.join(WAIT_S)
        with self._lock:
            for one in self._seen or ():
                if one.database is not None:
                    one.database.close()
            self._seen = None

    def _ask_all(self, seen: Sequence[Seen]) -> None:
        try:
            threads = [threading.Thread(target=self._ask, args=(one,), name="groundstate-looking", daemon=True) for one in seen[1:]]
            for thread in threads:
                thread.start()
            self._ask(seen[0])
            for thread in threads:
                thread.join()
        finally:
            self._asking = None

    def _ask(self, one: Seen) -> None:
        """Query one database. An error is kept here, so that a database that is down does not affect the results of the others."""
        try:
            if one.database is None:
                one.database = connect.open_store(one.store.settings())[0]
                one.queries = [ConditionQuery(spec, one.database) for spec in reactions_of(self._app, one.store)]
            if one.database.missing() is not None:
                raise FileNotFoundError(f"there is no database at {one.database.missing()}")  # connecting would create it
            one.database.connect()
            schedules = schedules_of(self._app, one.store)
            answer = fleet_status.overview(self._app.name, one.database, one.queries, schedules, most=MOST)
        except Exception as error:  # noqa: BLE001  # whatever is raised, the metrics show that there is no result
            log.debug("metrics: %s gives no answer: %s", one.name, type(error).__name__, extra={"event": "store_silent", "store": one.name})
            if time.monotonic() - one.at > STALE_S:
                one.answer, one.waits = None, {}
            return
        now = time.monotonic()
        waits = {}
        for reaction in answer.reactions:
            if reaction.first is not None:
                before = one.waits.get(reaction.name)
                waits[reaction.name] = before if before is not None and before[0] == reaction.first else (reaction.first, now)
        one.answer, one.at, one.waits = answer, now, waits
