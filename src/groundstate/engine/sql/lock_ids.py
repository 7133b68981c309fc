"""Computes the numbers of advisory locks: the locks for the slots (the permitted simultaneous calls) of external services, and locks for
one transaction.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import ARRAY, BigInteger, bindparam, column, func, select

from groundstate.engine.sql.transaction import Transaction
from groundstate.store.port import SLOTS_FROM, TURNS_FROM


def _hash_of_names(*tenants: Any) -> int:
    """Return a hash of these names with 61 bits. If two lists of names have the same hash, they share a lock, and the only effect is a
    longer wait.
    """
    written = json.dumps(tenants, ensure_ascii=False).encode()
    return int.from_bytes(hashlib.blake2b(written, digest_size=8).digest(), "big") >> 3


@lru_cache(maxsize=4096)
def slot_lock_ids(app: str, service: str, tenant: str, limit: int) -> tuple[int, ...]:
    """Return the lock numbers of the slots of an external service or of one of its tenants: one number per permitted simultaneous call."""
    first = _hash_of_names(app, service, tenant)
    return tuple(SLOTS_FROM + (first + number) % 2**61 for number in range(limit))


def sweep_leader_lock_id(app: str, code: str) -> int:
    """Return the lock number of the sweep leader: the one worker that searches for records on behalf of all workers with this version of
    the application.

    The number is in the range for slots, since the locks in this range are released when the worker ends.
    """
    return SLOTS_FROM + _hash_of_names("sweeper", app, code)


def transaction_lock_id(*name: str) -> int:
    """Return the number of the advisory lock with this name. A transaction takes it to make a decision that only one transaction may make
    at a time.
    """
    return TURNS_FROM + _hash_of_names(*name)


def try_transaction_locks(tx: Transaction, names: Sequence[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Take each of the named locks that is free, and hold it until the transaction ends. Return the names of the locks taken. Never waits.

    On an embedded store (SQLite) the transaction itself is the lock, so all names are returned.
    """
    if not tx.database.locks_rows or not names:
        return set(names)
    by_number: Mapping[int, tuple[str, ...]] = {transaction_lock_id(*name): name for name in names}
    return {by_number[number] for number in tx.connection.execute(_TRY, {"numbers": sorted(by_number)}).scalars()}


_numbers = func.unnest(bindparam("numbers", type_=ARRAY(BigInteger()))).table_valued(column("number", BigInteger()), name="wanted")
_number = _numbers.render_derived().c.number
_TRY = select(_number).where(func.pg_try_advisory_xact_lock(_number))
