"""Compares what an attempt was begun with, as its row records it, with today's code, and decides whether that code can settle it. Pure.

A call in doubt is settled by asking, or calling, the service that was called. Code that calls another service, or names its occurrences by
other columns, would get Absent for a call that was made, and would make it a second time: such an attempt is held, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

AGAIN = "repeat"
SAME_KEY = "same_key"
PROMISES_NOTHING = ("lookup", "hold")  # under these the key may be for lookups only, and the provider may act twice under it
ASKING = ("lookup", "same_key")  # the policies that ask the call's lookup
HELD_FOR = "in doubt, and begun by other code"  # the reason for which such an attempt is held begins with this


@dataclass(frozen=True, slots=True)
class Kind:
    """A Kind says what a reaction's calls are begun with. A field that is None is unknown, and is compared with nothing.

    Attributes:
        service: the name of the external service.
        call: the name of the call.
        lookup: the name of its lookup; None where it has no lookup, or one without a name.
        key: whether the call is given an idempotency key.
        policy: the kind of its in-doubt policy.
        occurrence: the names of the occurrence's columns, in order.
    """

    service: str | None = None
    call: str | None = None
    lookup: str | None = None
    key: bool | None = None
    policy: str | None = None
    occurrence: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Baseline:
    """A Baseline says under what a row was left alone: `conditions` holds the SQL of each condition under which a person left it, and
    `occurrence` the names of the occurrence's columns.
    """

    conditions: tuple[str, ...]
    occurrence: tuple[str, ...] | None = None


# ---- conversion to text and back ---------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1024)
def text_of(kind: Kind) -> str:
    """Return the canonical text of a Kind. Two kinds are equal if, and only if, their texts are."""
    said = {name: getattr(kind, name) for name in _NAMES}
    return _dump({name: value for name, value in said.items() if value is not None})


_NAMES = ("call", "key", "lookup", "occurrence", "policy", "service")


def text_of_baseline(conditions: Sequence[str], occurrence: Sequence[str]) -> str:
    """Return the canonical text of a baseline with these conditions and occurrence columns."""
    return _dump({"conditions": list(dict.fromkeys(conditions)), "occurrence": list(occurrence)})


def ending_of_baseline(occurrence: Sequence[str]) -> str:
    """Return the ending of each baseline's text that has these occurrence columns, for comparisons in SQL."""
    return text_of_baseline((), occurrence).removeprefix('{"conditions":[]')


def _dump(said: dict[str, Any]) -> str:
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


@lru_cache(maxsize=1024)
def is_legible(written: str | None) -> bool:
    """Return whether groundstate writes such a text. Names that this release does not know come from a later one, and are ignored."""
    if written is None:
        return True
    try:
        said = json.loads(written)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and all(name not in said or fits(said[name]) for name, fits in _FITS.items())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


_FITS = {
    "call": _is_text,
    "conditions": _are_texts,
    "lookup": _is_text,
    "key": _is_truth,
    "occurrence": _are_texts,
    "policy": _is_text,
    "service": _is_text,
}


@lru_cache(maxsize=1024)
def _read(written: str | None) -> dict[str, Any]:
    return json.loads(written) if written is not None and is_legible(written) else {}


def kind_in(written: str | None) -> Kind:
    """Return the Kind that a row records. What it does not record is None, as in a row of older code or of a baseline."""
    said = _read(written)
    get = said.get
    return Kind(get("service"), get("call"), get("lookup"), get("key"), get("policy"), _columns(said))


def baseline_in(written: str | None) -> Baseline | None:
    """Return the Baseline that a row records; None where the row does not say under what it was left alone."""
    said = _read(written)
    return Baseline(tuple(said["conditions"]), _columns(said)) if said.get("conditions") else None


def _columns(said: dict[str, Any]) -> tuple[str, ...] | None:
    return tuple(said["occurrence"]) if "occurrence" in said else None


# ---- comparison with the code of today ---------------------------------------------------------------------------------------------
def other_call(written: str | None, today: Kind | None) -> str | None:
    """Describe how the call that a row was begun with differs from the call that is made today; return None where no difference is known.

    today: None for a reaction that makes no call.
    """
    if today is None or written is None or written == text_of(today):
        return None
    return "; ".join(_differences(kind_in(written), today)) or None


def _differences(was: Kind, today: Kind) -> Iterator[str]:
    if _differ(was.service, today.service):
        yield f"it was a call to {was.service}, and the reaction calls {today.service} now"
    elif _differ(was.call, today.call):
        yield f"it was the call {was.call} of {was.service or today.service}, and the reaction makes the call {today.call} now"
    if _differ(was.key, today.key):
        yield "it was given a key, and the call takes none now" if was.key else "it was given no key, and the call takes one now"
    if _differ(was.occurrence, today.occurrence):
        yield _other_rounds(was.occurrence, today.occurrence)


def _other_rounds(was: tuple[str, ...] | None, today: tuple[str, ...] | None) -> str:
    return f"its occurrence was {_named(was)}, and is {_named(today)} now"


def _differ(was: Any, today: Any) -> bool:
    return was is not None and today is not None and was != today


def _named(columns: tuple[str, ...] | None) -> str:
    return f"made of {', '.join(columns)}" if columns else "none"


def other_lookup(written: str | None, today: Kind | None) -> str | None:
    """Describe how the lookup of the call that a row was begun with differs from today's; return None where no difference is known."""
    if today is None or written is None or written == text_of(today):
        return None
    was = kind_in(written)
    if not _differ(was.lookup, today.lookup):
        return None
    return f"its lookup was {was.lookup}, and is {today.lookup} now"


def kind_text_of_repeated_begin(written: str | None, today: str | None) -> str | None:
    """Return what a row records when a call is begun while an earlier call of the attempt may have been made.

    Where the same call has another lookup by now, the row names both: neither is known to know all of its calls, so neither is asked.
    """
    was, now = kind_in(written), kind_in(today)
    if next(_differences(was, now), None) is not None or was.lookup is None or now.lookup is None:
        return today
    finds = was.lookup.split(_AND)
    return today if finds == [now.lookup] else text_of(replace(now, lookup=_AND.join(dict.fromkeys([*finds, now.lookup]))))


_AND = " and "


def reason_not_to_settle(written: str | None, today: Kind | None, answers_for: Collection[str] = ()) -> str | None:
    """Return why an attempt in doubt that was begun with this is held, whatever today's policy is; None where that policy settles it.

    answers_for: the services of whose calls the author says that today's lookup knows them, whatever code began them.
    """
    if today is None or written is None or written == text_of(today):
        return None
    was = kind_in(written)
    if was.policy == AGAIN and today.policy == AGAIN:
        return None  # under both policies the author says that a second call does no harm
    reason = other_call(written, today)
    if today.policy == AGAIN and _differ(was.policy, AGAIN):
        promised = f"it was begun under InDoubt.{was.policy}(), which calls nothing twice, and the policy is InDoubt.repeat() now"
        return promised if reason is None else f"{reason}; {promised}"
    if today.policy == SAME_KEY and was.policy in PROMISES_NOTHING:
        promised = (
            f"it was begun under InDoubt.{was.policy}(), which promises nothing of its key, and InDoubt.same_key() would call again"
            " under it"
        )
        reason = promised if reason is None else f"{reason}; {promised}"
    covered = today.policy in ASKING and was.service in answers_for and not _differ(was.occurrence, today.occurrence)
    return None if covered else reason


def needs_lookup_only(written: str | None, today: Kind | None) -> bool:
    """Return whether only today's lookup may settle the attempt in doubt, whatever the policy is: its call was another one, or was begun
    under another promise.
    """
    if today is None or written is None:
        return False
    differs = today.policy == SAME_KEY and kind_in(written).policy in PROMISES_NOTHING
    return today.policy != AGAIN and (differs or other_call(written, today) is not None)


def is_of_other_rounds(written: str | None, occurrence: Sequence[str]) -> bool:
    """Return whether a row's occurrence is made of other columns than these, so that its text cannot be compared with today's."""
    was = _columns(_read(written))
    return was is not None and was != tuple(occurrence)


def other_rounds(written: str | None, occurrence: Sequence[str]) -> str:
    """Describe how the columns of a row's occurrence differ from these."""
    return _other_rounds(_columns(_read(written)), tuple(occurrence))
