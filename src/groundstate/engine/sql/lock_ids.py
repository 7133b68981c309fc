"""Computes the numbers of advisory locks: slots of an external service, and locks that last for one transaction. Only `try_turns` asks the
database.
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


def _hashed(*tenants: Any) -> int:
    """Return a hash of 61 bits. Two names with the same hash would only wait for each other."""
    written = json.dumps(tenants, ensure_ascii=False).encode()
    return int.from_bytes(hashlib.blake2b(written, digest_size=8).digest(), "big") >> 3


@lru_cache(maxsize=4096)
def slot_lock_ids(app: str, service: str, tenant: str, limit: int) -> tuple[int, ...]:
    """Return the lock numbers of the slots of an external service, or of one of its tenants."""
    first = _hashed(app, service, tenant)
    return tuple(SLOTS_FROM + (first + number) % 2**61 for number in range(limit))


def sweep_leader_lock_id(app: str, code: str) -> int:
    """Return the lock number of the sweep leader: the one worker that sweeps for all workers with the same code.

    It lies beside the numbers of slots, since it is released with the worker incarnation as they are.
    """
    return SLOTS_FROM + _hashed("sweeper", app, code)


def transaction_lock_id(*name: str) -> int:
    """Return the number of a lock under which one transaction at a time may decide something."""
    return TURNS_FROM + _hashed(*name)


def try_transaction_locks(tx: Transaction, names: Sequence[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Take those of the named locks that are free, until the transaction ends, and return their names. Never waits.

    On an embedded store the transaction itself is the lock, so all names are returned.
    """
    if not tx.database.locks_rows or not names:
        return set(names)
    by_number: Mapping[int, tuple[str, ...]] = {transaction_lock_id(*name): name for name in names}
    return {by_number[number] for number in tx.connection.execute(_TRY, {"numbers": sorted(by_number)}).scalars()}


_numbers = func.unnest(bindparam("numbers", type_=ARRAY(BigInteger()))).table_valued(column("number", BigInteger()), name="wanted")
_number = _numbers.render_derived().c.number
_TRY = select(_number).where(func.pg_try_advisory_xact_lock(_number))
