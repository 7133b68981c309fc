"""The numbers by which things are locked: slots of an outside, and turns that last for one transaction. Computes; only `try_turns` asks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import ARRAY, BigInteger, bindparam, column, func, select

from groundstate.engine.transaction import Transaction
from groundstate.store.port import SLOTS_FROM, TURNS_FROM


def _hashed(*parts: Any) -> int:
    """61 bits: two names that share one would only wait for each other."""
    written = json.dumps(parts, ensure_ascii=False).encode()
    return int.from_bytes(hashlib.blake2b(written, digest_size=8).digest(), "big") >> 3


@lru_cache(maxsize=4096)
def slots(app: str, outside: str, part: str, limit: int) -> tuple[int, ...]:
    """Of an outside, or of a part of it."""
    first = _hashed(app, outside, part)
    return tuple(SLOTS_FROM + (first + number) % 2**61 for number in range(limit))


def sweeper(app: str, code: str) -> int:
    """Of the one worker that sweeps for all which run the same code: a lock beside those of slots, since it dies with a life as they do."""
    return SLOTS_FROM + _hashed("sweeper", app, code)


def turn(*name: str) -> int:
    """Of whatever one transaction at a time may decide about."""
    return TURNS_FROM + _hashed(*name)


def try_turns(tx: Transaction, names: Sequence[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Those of these that are ours until the transaction ends. Never waits. On an embedded store the transaction itself is the lock."""
    if not tx.database.locks_rows or not names:
        return set(names)
    by_number: Mapping[int, tuple[str, ...]] = {turn(*name): name for name in names}
    return {by_number[number] for number in tx.connection.execute(_TRY, {"numbers": sorted(by_number)}).scalars()}


_numbers = func.unnest(bindparam("numbers", type_=ARRAY(BigInteger()))).table_valued(column("number", BigInteger()), name="wanted")
_number = _numbers.render_derived().c.number
_TRY = select(_number).where(func.pg_try_advisory_xact_lock(_number))
