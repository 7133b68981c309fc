"""What the databases of an app say to those who watch it, remembered for some seconds. One question at a time, whoever asks; SELECTs alone.

Who asks never waits for a database for longer than `WAIT_S`: it is asked in a thread of its own, and until that answers the last answer
stands, or none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from groundstate.app.app import App
from groundstate.app.store import Store
from groundstate.engine import overview
from groundstate.engine.overview import Overview
from groundstate.engine.question import Question
from groundstate.store import opening
from groundstate.store.port import Database

log = logging.getLogger("groundstate")
FRESH_S = 5.0  # so long an answer is good
WAIT_S = 2.0  # and so long somebody waits for a new one
STALE_S = 60.0  # an older one is told to nobody
MOST = 10_000  # rows counted of each reaction


@dataclass
class Seen:
    """What one store said last. waits: of each reaction the first record that waits, and since when it was seen to be that."""

    store: Store
    name: str
    answer: Overview | None = None
    at: float = float("-inf")  # never: the monotonic clock of a host that has just come up shows little more than 0
    waits: dict[str, tuple[str, float]] = field(default_factory=dict)
    database: Database | None = None
    questions: Sequence[Question] = ()

    def waited_s(self, reaction: str, now: float) -> float:
        """For how long, at least, its first record has waited, as far as it was seen from here."""
        first = self.waits.get(reaction)
        return now - first[1] if first else 0.0


class Looking:
    """Of one app, for any thread."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._seen: list[Seen] | None = None
        self._lock = threading.Lock()
        self._asking: threading.Thread | None = None

    def seen(self) -> list[Seen]:
        """Each store's last answer: fresh, where its database answers in time. None where it is too old to be told."""
        with self._lock:
            if self._seen is None:
                self._seen = [Seen(store, store.label) for store in self._app.parts]
            seen, asking = self._seen, self._asking
            if asking is None and any(time.monotonic() - one.at > FRESH_S for one in seen):
                asking = self._asking = threading.Thread(target=self._ask_all, args=(seen,), name="groundstate-looking", daemon=True)
                asking.start()
        if asking is not None:
            asking.join(WAIT_S)
        return seen

    def close(self) -> None:
        """Closes its connections; asked again, it opens others."""
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
        """A store that is down does not keep the others from being told."""
        try:
            if one.database is None:
                one.database = opening.open_store(one.store.settings())[0]
                one.questions = [Question(spec, one.database) for spec in self._app.reactions_of(one.store)]
            if one.database.missing() is not None:
                raise FileNotFoundError(f"there is no database at {one.database.missing()}")  # looking makes none
            one.database.connect()
            schedules = self._app.schedules_of(one.store)
            answer = overview.overview(self._app.name, one.database, one.questions, schedules, most=MOST)
        except Exception as error:  # noqa: BLE001  # whatever it is: who scrapes sees that there is no answer
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
