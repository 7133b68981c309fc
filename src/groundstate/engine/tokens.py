"""Tokens: how many calls may be begun in a span of time, counted in `groundstate_rate` inside the begin's own transaction.

A count is of what was begun: it is committed with the attempts, or not at all, so a crash neither loses nor doubles one. Whoever counts for
a place keeps others from it until the transaction ends; they are not made to wait, and ask again some milliseconds later.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, bindparam, delete, select, tuple_

from groundstate.engine import numbers
from groundstate.engine.shift import Shift
from groundstate.engine.slots import WHOLE, Place
from groundstate.engine.transaction import Transaction
from groundstate.rules import rate as rules
from groundstate.rules.rate import Counted, Rate
from groundstate.store.tables import rate as table

AGAIN_S = 0.01  # another worker counts there just now


def rate_of(place: Place) -> Rate | None:
    outside, part = place
    if part is None:
        return None
    return outside.rate if part == WHOLE else outside.rate_per


@dataclass
class Tokens:
    """Of one transaction. `free_at`: of the worker, when the next token of a place is free, in seconds of the monotonic clock."""

    shift: Shift
    tx: Transaction
    free_at: dict[Place, float]
    _opened: float = field(init=False)
    _counts: dict[Place, Counted] = field(default_factory=dict)
    _written: dict[Place, str] = field(default_factory=dict)
    _spent: Counter[Place] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._opened = time.monotonic()

    def left(self, places: Iterable[Place]) -> dict[Place, int]:
        """How many calls may be begun at each of these places that have a rate; none where another worker counts just now."""
        wanted = [place for place in dict.fromkeys(places) if rate_of(place) is not None]
        new = [place for place in wanted if place not in self._counts]
        if new:
            self._read(new)
        return {place: self._left_at(place) for place in wanted}

    def spend(self, places: Mapping[Place, int]) -> None:
        self._spent.update({place: count for place, count in places.items() if rate_of(place) is not None})

    def write(self) -> None:
        """What was spent, by one statement. Before the commit, and once."""
        now, rows = self._now(), []
        for place, found in self._counts.items():
            rate = rate_of(place)
            if rate is None:
                continue
            after = rules.taken(found, rate, now, self._spent[place])
            if rules.said(after) == self._written.get(place, "{}"):
                continue
            until = rules.moment_of(rules.until(after, rate))
            rows.append({"app": self.shift.app, "outside": place[0].name, "part": place[1], "counts": rules.said(after), "until": until})
        if rows:
            new = self.tx.database.insert(table).values(rows)
            changed = {"counts": new.excluded.counts, "until": new.excluded.until}
            self.tx.connection.execute(new.on_conflict_do_update(index_elements=["app", "outside", "part"], set_=changed))

    def _now(self) -> int:
        """The transaction's moment, as its conditions are asked with, and what has passed since, which may be long where it had to wait."""
        return rules.microseconds(self.tx.now) + int((time.monotonic() - self._opened) * 1e6)

    def _left_at(self, place: Place) -> int:
        rate, found = rate_of(place), self._counts.get(place)
        if rate is None or found is None:
            return 0
        return max(rules.left(found, rate) - self._spent[place], 0)

    def _read(self, places: list[Place]) -> None:
        names: dict[tuple[str, ...], Place] = {
            ("rate", self.shift.app, outside.name, part or WHOLE): (outside, part) for outside, part in places
        }
        ours = [names[name] for name in numbers.try_turns(self.tx, list(names))]
        for place in set(places) - set(ours):
            self.free_at[place] = time.monotonic() + AGAIN_S * (0.5 + self.shift.life.dice.random())
        if not ours:
            return
        given: dict[str, Any] = {"app": self.shift.app, "places": [(outside.name, part) for outside, part in ours]}
        there = {(row.outside, row.part): row.counts for row in self.tx.connection.execute(_THERE, given)}
        now = self._now()
        for place in ours:
            rate = rate_of(place)
            if rate is not None:
                written = there.get((place[0].name, place[1]))
                self._counts[place] = rules.counted(written, rate, now)
                if written is not None:
                    self._written[place] = written

    def note(self) -> None:
        """After the transaction: when the next token of each place that has none is free."""
        now, clock = self._now(), time.monotonic()
        for place, before in self._counts.items():
            rate = rate_of(place)
            if rate is not None:
                free = rules.free_at(rules.taken(before, rate, now, self._spent[place]), rate)
                if free is None:
                    self.free_at.pop(place, None)
                else:
                    self.free_at[place] = clock + (free - now) / 1e6


_THERE: Select[Any] = select(table.c.outside, table.c.part, table.c.counts).where(
    table.c.app == bindparam("app"), tuple_(table.c.outside, table.c.part).in_(bindparam("places", expanding=True))
)


def forget_old(shift: Shift) -> None:
    """Deletes counts that say nothing any more, so that at rest nothing of ours is left."""
    with shift.database.reading() as connection:
        past = table.c.until < shift.database.now()
        if connection.execute(select(table.c.app).where(past).limit(1)).first() is None:
            return
    with shift.life.transaction() as tx:
        tx.connection.execute(delete(table).where(table.c.until < tx.now))
