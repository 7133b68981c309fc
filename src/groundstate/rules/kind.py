"""What an attempt was begun with, as its row remembers it, and whether today's code can settle it. Pure.

A call in doubt is settled by asking, or calling, the service that was called. Code that calls another service, or names its rounds by
other columns, would be told Absent of a call that was made, and would make it a second time: such a doubt is held, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

AGAIN = "again"
SAME_KEY = "same_key"
PROMISES_NOTHING = ("ask", "hold")  # of the key: it may be for asking alone, and the provider may act twice under it
ASKING = ("ask", "same_key")  # the policies whose find is asked
HELD_FOR = "in doubt, and begun by other code"  # the beginning of the reason why such a doubt is held


@dataclass(frozen=True, slots=True)
class Kind:
    """What a reaction's calls are begun with. What is None says nothing: it is compared with nothing.

    service: the outside's name. call: the call's name. find: the name of its find; None where it has no find, or that has no name.
    key: whether it is given one. policy: the policy's kind. occurrence: the names of the occurrence's columns, in order.
    """

    service: str | None = None
    call: str | None = None
    find: str | None = None
    key: bool | None = None
    policy: str | None = None
    occurrence: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Baseline:
    """Under what a row was left alone: `conditions`, as SQL, of which each was one that a person left it under; and as for a Kind."""

    conditions: tuple[str, ...]
    occurrence: tuple[str, ...] | None = None


# ---- as text -----------------------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1024)
def text_of(kind: Kind) -> str:
    """The canonical text: equal texts are equal kinds."""
    said = {name: getattr(kind, name) for name in _NAMES}
    return _dump({name: value for name, value in said.items() if value is not None})


_NAMES = ("call", "find", "key", "occurrence", "policy", "service")


def text_of_baseline(conditions: Sequence[str], occurrence: Sequence[str]) -> str:
    """The canonical text of a baseline."""
    return _dump({"conditions": list(dict.fromkeys(conditions)), "occurrence": list(occurrence)})


def ending_of_baseline(occurrence: Sequence[str]) -> str:
    """With what each such text ends that is of these columns: for who asks in SQL."""
    return text_of_baseline((), occurrence).removeprefix('{"conditions":[]')


def _dump(said: dict[str, Any]) -> str:
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


@lru_cache(maxsize=1024)
def is_legible(written: str | None) -> bool:
    """Whether it is what something of ours writes. Names that this release does not know are of a later one, and say nothing here."""
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
    "find": _is_text,
    "key": _is_truth,
    "occurrence": _are_texts,
    "policy": _is_text,
    "service": _is_text,
}


@lru_cache(maxsize=1024)
def _read(written: str | None) -> dict[str, Any]:
    return json.loads(written) if written is not None and is_legible(written) else {}


def kind_in(written: str | None) -> Kind:
    """The kind that a row says; one that says nothing where it is of older code, or a baseline."""
    said = _read(written)
    get = said.get
    return Kind(get("service"), get("call"), get("find"), get("key"), get("policy"), _columns(said))


def baseline_in(written: str | None) -> Baseline | None:
    """The same of a baseline; None where the row does not say under what it was left."""
    said = _read(written)
    return Baseline(tuple(said["conditions"]), _columns(said)) if said.get("conditions") else None


def _columns(said: dict[str, Any]) -> tuple[str, ...] | None:
    return tuple(said["occurrence"]) if "occurrence" in said else None


# ---- compared ----------------------------------------------------------------------------------------------------------------------
def other_call(written: str | None, today: Kind | None) -> str | None:
    """In which way the call that a row was begun with is not the one that is made today, in words; None where nothing says that it is not.

    today: None for what makes no call.
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


def other_find(written: str | None, today: Kind | None) -> str | None:
    """In which way the find that would have been asked for it is not the one that is asked today, in words."""
    if today is None or written is None or written == text_of(today):
        return None
    was = kind_in(written)
    if not _differ(was.find, today.find):
        return None
    return f"its find was {was.find}, and is {today.find} now"


def begun_again(written: str | None, today: str | None) -> str | None:
    """What a row says once a call is begun while an earlier one of it may have been made.

    Where the same call has another find by now, the row names both: neither is known to know of all of its calls, so neither is asked.
    """
    was, now = kind_in(written), kind_in(today)
    if next(_differences(was, now), None) is not None or was.find is None or now.find is None:
        return today
    finds = was.find.split(_AND)
    return today if finds == [now.find] else text_of(replace(now, find=_AND.join(dict.fromkeys([*finds, now.find]))))


_AND = " and "


def not_to_settle(written: str | None, today: Kind | None, answers_for: Collection[str] = ()) -> str | None:
    """Why a doubt that was begun with this is held, whatever the policy of today is; None: the policy settles it.

    answers_for: the services of whose calls the author says that today's find knows them, whatever code began them.
    """
    if today is None or written is None or written == text_of(today):
        return None
    was = kind_in(written)
    if was.policy == AGAIN and today.policy == AGAIN:
        return None  # then as now the author says that a second call does no harm
    reason = other_call(written, today)
    if today.policy == AGAIN and _differ(was.policy, AGAIN):
        promised = f"it was begun under {was.policy}(), which calls nothing twice, and the policy is again() now"
        return promised if reason is None else f"{reason}; {promised}"
    if today.policy == SAME_KEY and was.policy in PROMISES_NOTHING:
        promised = f"it was begun under {was.policy}(), which promises nothing of its key, and same_key() would call again under it"
        reason = promised if reason is None else f"{reason}; {promised}"
    covered = today.policy in ASKING and was.service in answers_for and not _differ(was.occurrence, today.occurrence)
    return None if covered else reason


def needs_its_find(written: str | None, today: Kind | None) -> bool:
    """Whether a doubt that today's find may answer is asked of it alone, whatever the policy is: it was another call, or under another
    promise.
    """
    if today is None or written is None:
        return False
    differs = today.policy == SAME_KEY and kind_in(written).policy in PROMISES_NOTHING
    return today.policy != AGAIN and (differs or other_call(written, today) is not None)


def is_of_other_rounds(written: str | None, occurrence: Sequence[str]) -> bool:
    """Whether a row says that its occurrence is made of other columns than these: its text cannot be compared with today's."""
    was = _columns(_read(written))
    return was is not None and was != tuple(occurrence)


def other_rounds(written: str | None, occurrence: Sequence[str]) -> str:
    """How the columns that a row says that its occurrence is made of differ from these, in words."""
    return _other_rounds(_columns(_read(written)), tuple(occurrence))
