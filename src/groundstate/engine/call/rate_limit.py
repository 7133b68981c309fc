"""Limits how many calls are begun in a span of time, by tokens counted in `groundstate_rate` in the same transaction as the begin.

A count is committed together with the attempts or not at all, so that a crash neither loses nor doubles one. A worker that counts for a
service or tenant excludes others until its transaction ends; they do not wait, and try again some milliseconds later.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, bindparam, delete, select, tuple_

from groundstate.engine.call.semaphore import WHOLE, LimitedScope
from groundstate.engine.sql import lock_ids
from groundstate.engine.sql.transaction import Transaction
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.rules import rate as rules
from groundstate.rules.rate import Counted, Rate
from groundstate.store.tables import rate as table

AGAIN_S = 0.01  # seconds until the next try where another worker is counting tokens


def rate_of(place: LimitedScope) -> Rate | None:
    service, tenant = place
    if tenant is None:
        return None
    return service.rate if tenant == WHOLE else service.rate_per


@dataclass
class Tokens:
    """Counts the tokens of services and tenants in one transaction. free_at: the worker's record of when each has a token again, in
    monotonic seconds.
    """

    worker_state: WorkerState
    tx: Transaction
    free_at: dict[LimitedScope, float]
    _opened: float = field(init=False)
    _counts: dict[LimitedScope, Counted] = field(default_factory=dict)
    _written: dict[LimitedScope, str] = field(default_factory=dict)
    _spent: Counter[LimitedScope] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._opened = time.monotonic()

    def left(self, places: Iterable[LimitedScope]) -> dict[LimitedScope, int]:
        """Return how many calls may be begun for each of these services and tenants that has a rate; 0 where another worker is counting
        just now.
        """
        wanted = [place for place in dict.fromkeys(places) if rate_of(place) is not None]
        new = [place for place in wanted if place not in self._counts]
        if new:
            self._read(new)
        return {place: self._left_at(place) for place in wanted}

    def spend(self, places: Mapping[LimitedScope, int]) -> None:
        self._spent.update({place: count for place, count in places.items() if rate_of(place) is not None})

    def write(self) -> None:
        """Write what was spent, in one statement. To be called once, before the commit."""
        now, rows = self._now(), []
        for place, found in self._counts.items():
            rate = rate_of(place)
            if rate is None:
                continue
            after = rules.count_with_more_calls(found, rate, now, self._spent[place])
            if rules.count_as_json(after) == self._written.get(place, "{}"):
                continue
            until = rules.datetime_from_microseconds(rules.all_expired_at(after, rate))
            rows.append(
                {
                    "app": self.worker_state.app,
                    "service": place[0].name,
                    "tenant": place[1],
                    "counts": rules.count_as_json(after),
                    "until": until,
                }
            )
        if rows:
            new = self.tx.database.insert(table).values(rows)
            changed = {"counts": new.excluded.counts, "until": new.excluded.until}
            self.tx.connection.execute(new.on_conflict_do_update(index_elements=["app", "service", "tenant"], set_=changed))

    def _now(self) -> int:
        """Return the transaction's time in microseconds, plus the time that has passed since, which may be
        long where it waited for a lock.
        """
        return rules.microseconds(self.tx.now) + int((time.monotonic() - self._opened) * 1e6)

    def _left_at(self, place: LimitedScope) -> int:
        rate, found = rate_of(place), self._counts.get(place)
        if rate is None or found is None:
            return 0
        return max(rules.calls_left(found, rate) - self._spent[place], 0)

    def _read(self, places: list[LimitedScope]) -> None:
        names: dict[tuple[str, ...], LimitedScope] = {
            ("rate", self.worker_state.app, service.name, tenant or WHOLE): (service, tenant) for service, tenant in places
        }
        ours = [names[name] for name in lock_ids.try_transaction_locks(self.tx, list(names))]
        for place in set(places) - set(ours):
            self.free_at[place] = time.monotonic() + AGAIN_S * (0.5 + self.worker_state.incarnation.dice.random())
        if not ours:
            return
        given: dict[str, Any] = {"app": self.worker_state.app, "places": [(service.name, tenant) for service, tenant in ours]}
        there = {(row.service, row.tenant): row.counts for row in self.tx.connection.execute(_THERE, given)}
        now = self._now()
        for place in ours:
            rate = rate_of(place)
            if rate is not None:
                written = there.get((place[0].name, place[1]))
                self._counts[place] = rules.read_call_count(written, rate, now)
                if written is not None:
                    self._written[place] = written

    def note(self) -> None:
        """Note, after the transaction, when each service or tenant without a token has one again."""
        now, clock = self._now(), time.monotonic()
        for place, before in self._counts.items():
            rate = rate_of(place)
            if rate is not None:
                free = rules.free_at(rules.count_with_more_calls(before, rate, now, self._spent[place]), rate)
                if free is None:
                    self.free_at.pop(place, None)
                else:
                    self.free_at[place] = clock + (free - now) / 1e6


_THERE: Select[Any] = select(table.c.service, table.c.tenant, table.c.counts).where(
    table.c.app == bindparam("app"), tuple_(table.c.service, table.c.tenant).in_(bindparam("places", expanding=True))
)


def forget_old(worker_state: WorkerState) -> None:
    """Delete counts that have no effect any more, so that a store at rest has no rows of ours in this table."""
    with worker_state.database.reading() as connection:
        past = table.c.until < worker_state.database.now()
        if connection.execute(select(table.c.app).where(past).limit(1)).first() is None:
            return
    with worker_state.incarnation.transaction() as tx:
        tx.connection.execute(delete(table).where(table.c.until < tx.now))
