"""A fault on purpose, in the workers of a torture run: what a dead worker had begun is forgotten, and not adopted."""

from __future__ import annotations

from sqlalchemy import delete

from groundstate.engine.recover import adopt
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.store import tables


def _forget(life: Incarnation, dead: int) -> int:
    with life.open_transaction() as tx:
        return tx.connection.execute(delete(tables.attempt).where(tables.attempt.c.worker == dead)).rowcount


setattr(adopt, "_adopt_attempts_of", _forget)  # noqa: B010  # a name that is not public, and is meant to be replaced here alone
