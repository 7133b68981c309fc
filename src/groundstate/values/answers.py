"""The values that a user's functions exchange with the framework: answers of calls and lookups, and arguments supplied by annotation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any


class Absent:
    """A lookup returns Absent to say that the service did not act on the call. Return the class itself, or an instance."""


class Unknown:
    """A lookup returns Unknown to say that it cannot tell yet, so that the lookup is asked again later. Return the class itself, or an
    instance.
    """


class IdempotencyKey(str):
    """The idempotency key of a call: a hash of the app's name, the reaction's name, the record's key and the occurrence.

    Each try of the call has the same key, in every worker.
    """

    __slots__ = ()


class Occurrence(tuple[str, ...]):
    """Tells which round of a recurring event an attempt belongs to: the texts of the occurrence columns, in their order."""

    __slots__ = ()


class NotDone(Exception):
    """A call raises NotDone if the service certainly did not act. This counts as a failure, and the call is tried again.

    Args:
        why: the reason.
        retry_after: the shortest wait before the next try. If the `Retry` of the call gives a longer wait, the longer wait is used.
    """

    def __init__(self, why: str = "", *, retry_after: timedelta | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class Throttled(NotDone):
    """A call raises Throttled if the service asks for a pause and certainly did not act. This does not count as a failure, and all calls to
    the service wait.

    Args:
        retry_after: how long to wait from now, as the service asks.
    """

    def __init__(self, retry_after: timedelta) -> None:
        given: Any = retry_after  # a wrong type raises nothing here: an error would hide that the service did not act
        wait = f"{given.total_seconds():g} s" if isinstance(given, timedelta) else repr(given)
        super().__init__(f"the service asks to wait {wait}", retry_after=retry_after)


@dataclass(frozen=True)
class ReactionContext:
    """The time of a transaction, by the database's clock, and facts about the attempt.

    Each transaction has its own context. A call gets the context of the transaction that begins its attempt. A handler gets the context of
    the transaction in which it runs. All times are in UTC.
    """

    now: datetime
    due: datetime  # when the record became due; the same as `now` if the record has no due time
    late_by: timedelta
    call_no: int  # 1 for the first call of this attempt; 0 if no call was begun
    restarted: bool  # whether the attempt was begun by another worker, or by this worker before its restart


@dataclass(frozen=True)
class Failure:
    """The argument of a `gave_up` handler: the last error, how many calls were begun, and when the attempt began."""

    error: str
    calls: int
    since: datetime
