"""What passes between the framework and the user's functions: answers of calls and finds, and what is supplied by annotation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta


class Absent:
    """A find's answer: the outside was not acted on. Return the class itself, or an instance."""


class Unknown:
    """A find's answer: it cannot be told yet; ask again later. Return the class itself, or an instance."""


class Key(str):
    """The idempotency key of this call: of the app, the reaction, the record's key and the occurrence. The same in each life."""

    __slots__ = ()


class Occurrence(tuple[str, ...]):
    """Which round of a recurring event an attempt belongs to: the canonical texts of the occurrence columns, in their order."""

    __slots__ = ()


class NotDone(Exception):
    """Raised by a call: the outside was surely not acted on. Counts as a failure, and is tried again.

    retry_after: not before so long from now; the reaction's `Retry` decides where it is None or longer.
    """

    def __init__(self, why: str = "", *, retry_after: timedelta | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class Busy(Exception):
    """Raised by a call: surely not done, and it is the endpoint that wants us to wait. No failure is counted; the outside pauses."""

    def __init__(self, retry_after: timedelta) -> None:
        super().__init__(f"the endpoint asks to wait {retry_after.total_seconds():g} s")
        self.retry_after = retry_after


@dataclass(frozen=True)
class Moment:
    """The time of a transaction, by the database's clock, and what is known of this carrying out.

    One value a transaction: the call sees its begin's, the handler its conclude's. All in UTC.
    """

    now: datetime
    due: datetime  # when it became due; `now` where nothing was due
    late_by: timedelta
    call_no: int  # 1 for the first call of this attempt; 0 where no call was begun
    restarted: bool  # an earlier life began this attempt


@dataclass(frozen=True)
class Failure:
    """What a `gave_up` handler is told: the last error, how many calls were begun, and since when."""

    error: str
    calls: int
    since: datetime
