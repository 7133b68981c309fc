"""Limits how many calls are begun in a span of time. Each call spends a token; the tokens are counted in `groundstate_rate`, in the
transaction that begins the calls.

A count is committed together with the attempts or not at all, so that a crash neither loses nor doubles a count. While one worker counts
for a service or tenant, other workers cannot count for it; they do not wait, and try again some milliseconds later.
"""

from __future__ import annotations

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

AGAIN_S = 0.01  # seconds until this worker tries again, if another worker is counting tokens


def rate_of(place: LimitedScope) -> Rate | None:
    service, tenant = place
    if tenant is None:
        return None
    return service.rate if tenant == WHOLE else service.rate_per


@dataclass
class Tokens:
    """Counts the tokens of services and tenants in one transaction.

    free_at: for each service or tenant without a token, the monotonic seconds at which its next token is free. `note_next_free_times`
    fills in this dict.
    """

    worker_state: WorkerState
    tx: Transaction
    free_at: dict[LimitedScope, float]
    _opened: float = field(init=False)
    _counts: dict[LimitedScope, Counted] = field(default_factory=dict)
    _written: dict[LimitedScope, str] = field(default_factory=dict)
    _spent: Counter[LimitedScope] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._opened = self.worker_state.clock.monotonic()

    def calls_left(self, places: Iterable[LimitedScope]) -> dict[LimitedScope, int]:
        """Return, for each of these services and tenants that has a rate, how many calls may be begun now. The number is 0 for a service or
        tenant whose tokens another worker is counting.
        """
        wanted = [place for place in dict.fromkeys(places) if rate_of(place) is not None]
        new = [place for place in wanted if place not in self._counts]
        if new:
            self._read_counts(new)
        return {place: self._calls_left_in_scope(place) for place in wanted}

    def spend_tokens(self, places: Mapping[LimitedScope, int]) -> None:
        self._spent.update({place: count for place, count in places.items() if rate_of(place) is not None})

    def write_counts(self) -> None:
        """Write to the database, in one statement, how many tokens were spent. Call it once, before the commit."""
        now, rows = self._now_microseconds(), []
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
            new = self.tx.database.insert_function(table).values(rows)
            changed = {"counts": new.excluded.counts, "until": new.excluded.until}
            self.tx.connection.execute(new.on_conflict_do_update(index_elements=["app", "service", "tenant"], set_=changed))

    def _now_microseconds(self) -> int:
        """Return the present time of the database's clock, in microseconds. It is later than the transaction's own time, which may be long
        past if the transaction waited for a lock.
        """
        return rules.microseconds_since_epoch(self.tx.now) + int((self.worker_state.clock.monotonic() - self._opened) * 1e6)

    def _calls_left_in_scope(self, place: LimitedScope) -> int:
        rate, found = rate_of(place), self._counts.get(place)
        if rate is None or found is None:
            return 0
        return max(rules.calls_left(found, rate) - self._spent[place], 0)

    def _read_counts(self, places: list[LimitedScope]) -> None:
        names: dict[tuple[str, ...], LimitedScope] = {
            ("rate", self.worker_state.app, service.name, tenant or WHOLE): (service, tenant) for service, tenant in places
        }
        ours = [names[name] for name in lock_ids.try_transaction_locks(self.tx, list(names))]
        for place in set(places) - set(ours):
            self.free_at[place] = self.worker_state.clock.monotonic() + AGAIN_S * (0.5 + self.worker_state.incarnation.dice.random())
        if not ours:
            return
        given: dict[str, Any] = {"app": self.worker_state.app, "places": [(service.name, tenant) for service, tenant in ours]}
        there = {(row.service, row.tenant): row.counts for row in self.tx.connection.execute(_THERE, given)}
        now = self._now_microseconds()
        for place in ours:
            rate = rate_of(place)
            if rate is not None:
                written = there.get((place[0].name, place[1]))
                self._counts[place] = rules.read_call_count(written, rate, now)
                if written is not None:
                    self._written[place] = written

    def note_next_free_times(self) -> None:
        """Write into `free_at` when the next token of each service or tenant without a token is free. Call it after the transaction."""
        now, clock = self._now_microseconds(), self.worker_state.clock.monotonic()
        for place, before in self._counts.items():
            rate = rate_of(place)
            if rate is not None:
                free = rules.next_call_allowed_at(rules.count_with_more_calls(before, rate, now, self._spent[place]), rate)
                if free is None:
                    self.free_at.pop(place, None)
                else:
                    self.free_at[place] = clock + (free - now) / 1e6


_THERE: Select[Any] = select(table.c.service, table.c.tenant, table.c.counts).where(
    table.c.app == bindparam("app"), tuple_(table.c.service, table.c.tenant).in_(bindparam("places", expanding=True))
)


def delete_expired_counts(worker_state: WorkerState) -> None:
    """Delete the counts that no longer limit anything, so that the table `groundstate_rate` is empty when no calls are made."""
    with worker_state.database.reading() as connection:
        past = table.c.until < worker_state.database.now()
        if connection.execute(select(table.c.app).where(past).limit(1)).first() is None:
            return
    with worker_state.incarnation.open_transaction() as tx:
        tx.connection.execute(delete(table).where(table.c.until < tx.now))
