"""An intruder with an SQL shell at the worst moment: it deletes the row of an attempt or moves an occurrence, and reports that to the
judge.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from tools.torture.copies import OURS
from tools.torture.judge import Judge
from tools.torture.place import Place

DELETED_IN_THE_AIR = "attempts deleted while their call was in the air"
LOOKS_FOR_S = 1.0  # seconds of searching for a call in flight
KNOWS_THE_MARK = 0.4  # share of the deletes on PostgreSQL that set groundstate's own mark, and so are permitted
_IN_THE_AIR = (
    "SELECT a.reaction, a.record, a.occurrence, a.call, w.pid FROM groundstate_attempt AS a"
    " JOIN groundstate_worker AS w ON w.id = a.worker WHERE a.state = 'begun' AND a.call_no > 0 AND w.ended_at IS NULL"
)
_DELETE = text(
    "DELETE FROM groundstate_attempt WHERE reaction = :reaction AND record = :record AND occurrence = :occurrence AND call = :call"
    " AND state = 'begun'"
)
_INSURED = "SELECT record, occurrence FROM groundstate_attempt WHERE reaction = 'insured' AND (state = 'begun' OR unsure)"
_MOVE = text("UPDATE orders SET term = term + 1 WHERE id = :id AND term = :term")


class Intruder:
    """The intruder. Each action returns its result as text, for the report."""

    def __init__(self, place: Place, judge: Judge, dice: Random) -> None:
        self._place, self._judge, self._dice = place, judge, dice

    def delete_attempt(self) -> str:
        """Delete the attempt of a call in flight. PostgreSQL must refuse it, unless the transaction sets groundstate's own mark."""
        found = self._find_row(_IN_THE_AIR)
        if found is None:
            return "found no call in the air"
        reaction, record, occurrence, call, pid = found
        postgres = self._place.store == "postgres"
        marked = postgres and self._dice.random() < KNOWS_THE_MARK

        def delete(connection: Connection) -> int:
            if marked:
                connection.execute(text("SELECT set_config(:mark, 'on', true)"), {"mark": OURS})
            row = {"reaction": reaction, "record": record, "occurrence": occurrence, "call": call}
            return connection.execute(_DELETE, row).rowcount

        try:
            deleted = self._run_in_transaction(delete)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) == "55P03" or not postgres:
                return "found the row locked"
            self._judge.checks["Guarded"] += 1
            return "attempts whose DELETE was refused"
        if not deleted:
            return "came too late"
        self._judge.record_deleted_attempt(reaction, record, occurrence, pid)
        if postgres and not marked:
            self._judge.add_fault("Guarded", f"an attempt that is begun could be deleted by plain SQL: {found}")
        return DELETED_IN_THE_AIR

    def move_occurrence(self) -> str:
        """Change the term of an order while its insurance call is in flight or in doubt."""
        found = self._find_row(_INSURED)
        if found is None:
            return "found no insurance under way"
        record, occurrence = found
        self._judge.moved.add(record)
        try:
            moved = self._run_in_transaction(
                lambda connection: connection.execute(_MOVE, {"id": int(record), "term": int(occurrence)}).rowcount
            )
        except DBAPIError:
            return "found the row locked"
        return "occurrences moved while their call was open" if moved else "came too late"

    def _find_row(self, sql: str) -> Any:
        """Search for a row of this query for up to LOOKS_FOR_S seconds; return one of them, or None."""
        end = time.monotonic() + LOOKS_FOR_S
        while True:
            try:
                rows = self._judge.books.query_rows(sql)
            except DBAPIError:  # the database is in trouble at the moment
                rows = []
            if rows:
                return tuple(self._dice.choice(rows))
            if time.monotonic() > end:
                return None
            time.sleep(0.01)

    def _run_in_transaction(self, act: Callable[[Connection], int]) -> int:
        with self._place.engine.begin() as connection:
            if self._place.store == "postgres":
                connection.execute(text("SET LOCAL lock_timeout = '1s'"))
            return act(connection)
