"""Holds what a user declares about failed calls: how a call in doubt is settled, and when a failed call is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from groundstate.values.errors import DeclarationError

MARGIN = timedelta(seconds=5)  # a call's deadline is its begin plus its timeout plus this margin, which covers the commit before the call
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)  # stands for an unknown time of the first call, so that its key counts as too old


@dataclass(frozen=True)
class InDoubt:
    """An InDoubt policy says what becomes of a call that may have been made, and whose outcome is not known.

    Choose `InDoubt.lookup()`, `InDoubt.same_key()`, `InDoubt.repeat()` or `InDoubt.hold()`. There is no default, because no policy is
    right for every call.
    """

    kind: Literal["repeat", "same_key", "lookup", "hold"]
    kept_for: timedelta | None = None
    settle_after: timedelta | None = None

    @classmethod
    def lookup(cls, *, settle_after: timedelta) -> InDoubt:
        """Settle a call in doubt by its lookup, which asks the service whether the call was carried out.

        The answer `Absent` is believed only if the lookup began later than the call's deadline plus `settle_after`. A host that is
        suspended just before it sends the request, and resumes after that time, still sends it: groundstate cannot prevent that. Then the
        call is carried out at most twice, and the log says so. A key that the provider keeps prevents the second call
        (`InDoubt.same_key`).

        Args:
            settle_after: a time longer than any request can be on its way to the service.

        Raises:
            DeclarationError: `settle_after` is no timedelta, or is negative.
        """
        _check_duration("settle_after", settle_after, zero=True)
        return cls("lookup", settle_after=settle_after)

    @classmethod
    def same_key(cls, *, kept_for: timedelta, settle_after: timedelta | None = None) -> InDoubt:
        """Settle a call in doubt by making it again under the same `IdempotencyKey`. The call must send the key.

        After `kept_for` the key is too old for another call. Then the call's lookup settles the call; without a lookup the attempt is held
        for a person.

        Args:
            kept_for: for how long the provider keeps the key.
            settle_after: for how long after its deadline a call may still be carried out; None means the call's timeout. It must be given
                for a call with a lookup.

        Raises:
            DeclarationError: `kept_for` or `settle_after` is no timedelta, or is too short.
        """
        _check_duration("kept_for", kept_for)
        if settle_after is not None:
            _check_duration("settle_after", settle_after, zero=True)
        return cls("same_key", kept_for=kept_for, settle_after=settle_after)

    @classmethod
    def repeat(cls) -> InDoubt:
        """Settle a call in doubt by making it again while its condition holds. This is for calls that do no harm if made twice."""
        return cls("repeat")

    @classmethod
    def hold(cls) -> InDoubt:
        """Hold a call in doubt for a person, who asks the service what became of the call and enters it with `groundstate settle`."""
        return cls("hold")


@dataclass(frozen=True)
class Retry:
    """A Retry says when a failed call or handler is tried again: after an exponential backoff with jitter, from `first` to `longest`.

    Args:
        times: the number of tries in all; None for no limit.
        first: the wait after the first failure.
        longest: the longest wait.
        give_up_after: the time after the first try from which on no further try is made; None for no limit.

    Raises:
        DeclarationError: `times` is less than 1, or a duration is no timedelta, is zero or is negative.
    """

    times: int | None = 10
    first: timedelta = timedelta(seconds=1)
    longest: timedelta = timedelta(hours=1)
    give_up_after: timedelta | None = None

    def __post_init__(self) -> None:
        if self.times is not None and self.times < 1:
            raise DeclarationError(f"Retry(times={self.times}): at least 1 try is made; use None for no limit")
        _check_duration("first", self.first)
        _check_duration("longest", self.longest)
        if self.give_up_after is not None:
            _check_duration("give_up_after", self.give_up_after)


def _check_duration(name: str, value: timedelta, *, zero: bool = False) -> None:
    if not isinstance(value, timedelta):
        raise DeclarationError(f"{name}={value!r}: give a timedelta, for example timedelta(seconds=30)")
    if value < timedelta() or (not zero and value == timedelta()):
        raise DeclarationError(f"{name}={value!r}: a duration must be {'zero or more' if zero else 'more than zero'}")
