"""Queries an app's databases for the metrics, and caches the results for some seconds. Runs only SELECTs.

The queries run in separate threads, so a caller never waits longer than `WAIT_S` seconds. If the queries take longer, the caller gets the
last result, if there is one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from groundstate.app.app import App
from groundstate.app.declared import databases_of, reactions_of, schedules_of
from groundstate.app.store import Store
from groundstate.clock import SYSTEM_CLOCK, Clock
from groundstate.engine.operate import fleet_status
from groundstate.engine.operate.fleet_status import Overview
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from groundstate.store.port import Database

log = logging.getLogger("groundstate")
FRESH_S = 5.0  # seconds for which a result is used before the database is queried again
WAIT_S = 2.0  # the longest time in seconds for which a caller waits for a new result
STALE_S = 60.0  # age in seconds after which a result is dropped
MOST = 10_000  # the largest number of rows that are counted for each reaction


@dataclass
class CachedStatus:
    """The last result from one database.

    waits: by reaction, a pair: the key of the record that has waited longest, and the monotonic time in seconds at which this process first
    saw that this record waits longest.
    """

    store: Store
    name: str
    answer: Overview | None = None
    at: float = float("-inf")  # monotonic time of the last answer; -inf before the first one
    waits: dict[str, tuple[str, float]] = field(default_factory=dict)
    database: Database | None = None
    queries: Sequence[ConditionQuery] = ()

    def first_record_waited_s(self, reaction: str, now: float) -> float:
        """Return how long the record that now waits longest for the reaction has been in that position.

        The result is in seconds, and begins when this process first saw the record in that position. Returns 0.0 if no record waits.
        """
        first = self.waits.get(reaction)
        return now - first[1] if first else 0.0


class DatabaseStatusCache:
    """A cache of the status of each database of an app. May be used from any thread."""

    def __init__(self, app: App, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._app = app
        self._statuses: list[CachedStatus] | None = None
        self._lock = threading.Lock()
        self._query_thread: threading.Thread | None = None

    def current_statuses(self) -> list[CachedStatus]:
        """Return the latest result of each database. If a result is older than `FRESH_S` seconds, query the databases first.

        If a database does not answer within `WAIT_S` seconds, its old result is returned. The `answer` of a result is None if the database
        has not answered for `STALE_S` seconds.
        """
        with self._lock:
            if self._statuses is None:
                self._statuses = [CachedStatus(store, store.label) for store in databases_of(self._app)]
            seen, asking = self._statuses, self._query_thread
            if asking is None and any(self._clock.monotonic() - one.at > FRESH_S for one in seen):
                asking = self._query_thread = threading.Thread(
                    target=self._query_all_databases, args=(seen,), name="groundstate-looking", daemon=True
                )
                asking.start()
        if asking is not None:
            asking.join(WAIT_S)
        return seen

    def close(self) -> None:
        """Close the connections; a later call of `current_statuses` opens new ones."""
        asking = self._query_thread
        if asking is not None:
            asking.join(WAIT_S)
        with self._lock:
            for one in self._statuses or ():
                if one.database is not None:
                    one.database.close()
            self._statuses = None

    def _query_all_databases(self, seen: Sequence[CachedStatus]) -> None:
        try:
            threads = [
                threading.Thread(target=self._query_database, args=(one,), name="groundstate-looking", daemon=True) for one in seen[1:]
            ]
            for thread in threads:
                thread.start()
            self._query_database(seen[0])
            for thread in threads:
                thread.join()
        finally:
            self._query_thread = None

    def _query_database(self, one: CachedStatus) -> None:
        """Query one database. Raises no error, so that the other databases are still queried if this database is down."""
        try:
            if one.database is None:
                one.database = connect.open_store(one.store.settings())[0]
                one.queries = [ConditionQuery(spec, one.database) for spec in reactions_of(self._app, one.store)]
            if one.database.missing_file() is not None:
                raise FileNotFoundError(f"there is no database at {one.database.missing_file()}")  # connecting would create it
            one.database.connect()
            schedules = schedules_of(self._app, one.store)
            answer = fleet_status.build_overview(self._app.name, one.database, one.queries, schedules, most=MOST)
        except Exception as error:  # noqa: BLE001  # whatever is raised, the metrics show that there is no result
            log.debug("metrics: %s gives no answer: %s", one.name, type(error).__name__, extra={"event": "store_silent", "store": one.name})
            if self._clock.monotonic() - one.at > STALE_S:
                one.answer, one.waits = None, {}
            return
        now = self._clock.monotonic()
        waits = {}
        for reaction in answer.reactions:
            if reaction.first is not None:
                before = one.waits.get(reaction.name)
                waits[reaction.name] = before if before is not None and before[0] == reaction.first else (reaction.first, now)
        one.answer, one.at, one.waits = answer, now, waits
