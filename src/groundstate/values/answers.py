"""Defines what passes between the framework and a user's functions: answers of calls and lookups, and what is supplied by annotation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any


class Absent:
    """A lookup returns Absent to say that the service did not act. Return the class itself, or an instance."""


class Unknown:
    """A lookup returns Unknown to say that it cannot tell yet, so that it is asked again later. Return the class itself, or an instance."""


class IdempotencyKey(str):
    """An IdempotencyKey is made of the app, the reaction, the record's key and the occurrence of a call. It is the same in each worker
    incarnation.
    """

    __slots__ = ()


class Occurrence(tuple[str, ...]):
    """An Occurrence says to which occurrence of a recurring event an attempt belongs: it holds the canonical texts of the occurrence
    columns, in their order.
    """

    __slots__ = ()


class NotDone(Exception):
    """A call raises NotDone where the service certainly did not act. It counts as a failure, and the call is tried again.

    Args:
        why: the reason.
        retry_after: the shortest wait before the next try; the reaction's `Retry` decides where this is None or its own wait is longer.
    """

    def __init__(self, why: str = "", *, retry_after: timedelta | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class Throttled(NotDone):
    """A call raises Throttled where the service certainly did not act, because it wants us to wait. It counts as no failure, and all calls
    to the service back off.

    Args:
        retry_after: how long the service asks us to wait, from now.
    """

    def __init__(self, retry_after: timedelta) -> None:
        given: Any = retry_after  # who has no type checker may give anything, and what the call says of itself must arrive
        wait = f"{given.total_seconds():g} s" if isinstance(given, timedelta) else repr(given)
        super().__init__(f"the service asks to wait {wait}", retry_after=retry_after)


@dataclass(frozen=True)
class ReactionContext:
    """A ReactionContext holds the time of a transaction, by the database's clock, and what is known of the attempt.

    Each transaction has its own: the call gets that of the transaction that begins it, the handler that of the one that concludes it. All
    times are in UTC.
    """

    now: datetime
    due: datetime  # when the record became due; `now` where it has no due time
    late_by: timedelta
    call_no: int  # 1 for the first call of this attempt; 0 where no call was begun
    restarted: bool  # whether an earlier worker incarnation began this attempt


@dataclass(frozen=True)
class Failure:
    """A `gave_up` handler receives a Failure: the last error, how many calls were begun, and since when."""

    error: str
    calls: int
    since: datetime
