"""How a call in doubt is settled, and when a failed one is tried again: the choices a user declares. Nothing is decided here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from groundstate.values.errors import DeclarationError

MARGIN = timedelta(seconds=5)  # a call's deadline is its begin + timeout + this: room for the begin's own commit
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)  # when a call was made first of which nobody knows: its key is too old


@dataclass(frozen=True)
class InDoubt:
    """What becomes of a call that may have been made. Choose by `again()`, `same_key()`, `ask()` or `hold()`; no default is right."""

    kind: Literal["again", "same_key", "ask", "hold"]
    kept_for: timedelta | None = None
    settle_after: timedelta | None = None


def again() -> InDoubt:
    """Calling twice does no harm: a call in doubt is simply made again, while the condition holds."""
    return InDoubt("again")


def same_key(*, kept_for: timedelta, settle_after: timedelta | None = None) -> InDoubt:
    """Call again under the same `Key`, which the call must take and the provider must keep for `kept_for`.

    Past that the key is too old to call again under it: the call's find settles it if it has one, else it is held.
    settle_after: how long after its deadline a call may still land; the call's timeout where None. With a find it must be given.
    """
    _positive("kept_for", kept_for)
    if settle_after is not None:
        _positive("settle_after", settle_after, zero=True)
    return InDoubt("same_key", kept_for=kept_for, settle_after=settle_after)


def ask(*, settle_after: timedelta) -> InDoubt:
    """By the call's find, which asks the outside what became of it.

    `Absent` is believed only when it was asked later than the call's deadline plus `settle_after`: choose that longer than a request of
    yours can be on its way. A host that is suspended just between our last check and the send, and wakes up later than that, can still
    send: nothing on our side closes this. Then it is done at most twice, and you are told; a key at the provider closes it.
    """
    _positive("settle_after", settle_after, zero=True)
    return InDoubt("ask", settle_after=settle_after)


def hold() -> InDoubt:
    """A person decides: the call is held with its key, and `groundstate settle` says what became of it."""
    return InDoubt("hold")


@dataclass(frozen=True)
class Retry:
    """When what failed is tried again: exponential backoff with jitter, from `first` to `longest`.

    times: tries in all, None for no limit. give_up_after: how long after the first begin no further try is made.
    """

    times: int | None = 10
    first: timedelta = timedelta(seconds=1)
    longest: timedelta = timedelta(hours=1)
    give_up_after: timedelta | None = None

    def __post_init__(self) -> None:
        if self.times is not None and self.times < 1:
            raise DeclarationError(f"Retry(times={self.times}): at least 1 try is made; use None for no limit")
        _positive("first", self.first)
        _positive("longest", self.longest)
        if self.give_up_after is not None:
            _positive("give_up_after", self.give_up_after)


def _positive(name: str, value: timedelta, *, zero: bool = False) -> None:
    if not isinstance(value, timedelta):
        raise DeclarationError(f"{name}={value!r}: give a timedelta, for example timedelta(seconds=30)")
    if value < timedelta() or (not zero and value == timedelta()):
        raise DeclarationError(f"{name}={value!r}: a duration must be {'zero or more' if zero else 'more than zero'}")
