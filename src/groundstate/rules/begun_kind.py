"""Compares the call that an attempt's row records with the call that this version of the application would make, and decides whether this
version can settle the attempt.

A call in doubt is settled by asking, or calling, the service that was called. A version that calls another service, or names its
occurrences by other columns, would get the answer Absent for a call that was made, and would make the call a second time. So such an
attempt is held, with the reason. The functions are pure. A parameter `written` is the JSON in the row, and `today` is this version's Kind.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

AGAIN = "repeat"
SAME_KEY = "same_key"
# Policies that promise nothing about the key: the provider may act twice although the key is the same.
PROMISES_NOTHING = ("lookup", "hold")
ASKING = ("lookup", "same_key")  # policies under which a call in doubt may be settled by its lookup
HELD_FOR = "in doubt, and begun by other code"  # first words of the reason why an attempt that another version began is held


@dataclass(frozen=True, slots=True)
class Kind:
    """A Kind says how one version of the application makes a reaction's calls. A field that is None is unknown, and is not compared.

    Attributes:
        service: the name of the external service.
        call: the name of the call.
        lookup: the name of the call's lookup; None where the call has no lookup, or one without a name.
        key: whether the call is given an idempotency key.
        policy: the name of the call's in-doubt policy, such as 'same_key'.
        occurrence: the names of the columns whose texts make up the occurrence, in order.
    """

    service: str | None = None
    call: str | None = None
    lookup: str | None = None
    key: bool | None = None
    policy: str | None = None
    occurrence: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Baseline:
    """A Baseline marks a row that existed before its reaction, and that a person chose to leave alone.

    conditions: the SQL of each condition that the row matched then. occurrence: the names of the columns of the occurrence (the values
    that tell one round of a record from the next); None where they are not known.
    """

    conditions: tuple[str, ...]
    occurrence: tuple[str, ...] | None = None


# ---- conversion to text and back ---------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1024)
def kind_as_json(kind: Kind) -> str:
    """Return the JSON of a Kind. Two Kinds are equal exactly if their JSON texts are equal."""
    fields = {name: getattr(kind, name) for name in _NAMES}
    return _canonical_json({name: value for name, value in fields.items() if value is not None})


_NAMES = ("call", "key", "lookup", "occurrence", "policy", "service")


def baseline_as_json(conditions: Sequence[str], occurrence: Sequence[str]) -> str:
    """Return the JSON of a Baseline with these conditions, in the order given, and these occurrence columns."""
    return _canonical_json({"conditions": list(dict.fromkeys(conditions)), "occurrence": list(occurrence)})


def json_suffix_of_baselines(occurrence: Sequence[str]) -> str:
    """Return the last part of the JSON text of every Baseline with these occurrence columns, for LIKE in SQL."""
    return baseline_as_json((), occurrence).removeprefix('{"conditions":[]')


def _canonical_json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


@lru_cache(maxsize=1024)
def is_known_begun_with(written: str | None) -> bool:
    """Return whether this text of `begun_with` is readable: it is None, or JSON that groundstate can have written.

    Unknown names in the JSON are ignored, since a later release may have written them.
    """
    if written is None:
        return True
    try:
        fields = json.loads(written)
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and all(name not in fields or fits(fields[name]) for name, fits in _FITS.items())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


_FITS = {
    "call": _is_text,
    "conditions": _are_texts,
    "lookup": _is_text,
    "key": _is_bool,
    "occurrence": _are_texts,
    "policy": _is_text,
    "service": _is_text,
}


@lru_cache(maxsize=1024)
def _parse_json_or_empty(written: str | None) -> dict[str, Any]:
    return json.loads(written) if written is not None and is_known_begun_with(written) else {}


def parse_kind(written: str | None) -> Kind:
    """Return the Kind that a row records. Fields that the row lacks are None. The rows of older versions lack some fields, and so do the
    rows of Baselines.
    """
    fields = _parse_json_or_empty(written)
    get = fields.get
    return Kind(get("service"), get("call"), get("lookup"), get("key"), get("policy"), _occurrence_columns(fields))


def parse_baseline(written: str | None) -> Baseline | None:
    """Return the Baseline that a row records; None where the row records no conditions, and so no Baseline."""
    fields = _parse_json_or_empty(written)
    return Baseline(tuple(fields["conditions"]), _occurrence_columns(fields)) if fields.get("conditions") else None


def _occurrence_columns(fields: dict[str, Any]) -> tuple[str, ...] | None:
    return tuple(fields["occurrence"]) if "occurrence" in fields else None


# ---- comparison with the code of today ---------------------------------------------------------------------------------------------
def describe_call_difference(written: str | None, today: Kind | None) -> str | None:
    """Return a text that says how the call that a row records differs from this version's call; None where no difference is known.

    today: the Kind of this version's call; None for a reaction that makes no call.
    """
    if today is None or written is None or written == kind_as_json(today):
        return None
    return "; ".join(_call_differences(parse_kind(written), today)) or None


def _call_differences(was: Kind, today: Kind) -> Iterator[str]:
    if _are_known_to_differ(was.service, today.service):
        yield f"it was a call to {was.service}, and the reaction calls {today.service} now"
    elif _are_known_to_differ(was.call, today.call):
        yield f"it was the call {was.call} of {was.service or today.service}, and the reaction makes the call {today.call} now"
    if _are_known_to_differ(was.key, today.key):
        yield "it was given a key, and the call takes none now" if was.key else "it was given no key, and the call takes one now"
    if _are_known_to_differ(was.occurrence, today.occurrence):
        yield _describe_column_difference(was.occurrence, today.occurrence)


def _describe_column_difference(was: tuple[str, ...] | None, today: tuple[str, ...] | None) -> str:
    return f"its occurrence was {_describe_columns(was)}, and is {_describe_columns(today)} now"


def _are_known_to_differ(was: Any, today: Any) -> bool:
    return was is not None and today is not None and was != today


def _describe_columns(columns: tuple[str, ...] | None) -> str:
    return f"made of {', '.join(columns)}" if columns else "none"


def describe_lookup_difference(written: str | None, today: Kind | None) -> str | None:
    """Return a text that says how the lookup that a row records differs from this version's lookup; None where no difference is known."""
    if today is None or written is None or written == kind_as_json(today):
        return None
    was = parse_kind(written)
    if not _are_known_to_differ(was.lookup, today.lookup):
        return None
    return f"its lookup was {was.lookup}, and is {today.lookup} now"


def kind_json_of_repeated_begin(written: str | None, today: str | None) -> str | None:
    """Return the JSON to record when a call is begun while an earlier call of the same attempt may have been made.

    written: the JSON of the earlier call. today: the JSON of the new call. If the two calls have different lookups, the result names both
    lookups. Then no version asks either lookup, since each may know only some of the attempt's calls.
    """
    was, now = parse_kind(written), parse_kind(today)
    if next(_call_differences(was, now), None) is not None or was.lookup is None or now.lookup is None:
        return today
    finds = was.lookup.split(_AND)
    return today if finds == [now.lookup] else kind_as_json(replace(now, lookup=_AND.join(dict.fromkeys([*finds, now.lookup]))))


_AND = " and "


def why_not_settled_here(written: str | None, today: Kind | None, answers_for: Collection[str] = ()) -> str | None:
    """Return why this version must hold an attempt in doubt instead of settling it; None if this version may settle it.

    written: the JSON in the attempt's row. today: the Kind of this version's call. answers_for: names of services; the author declared that
    this version's lookup knows the calls to these services, whichever version made the calls.
    """
    if today is None or written is None or written == kind_as_json(today):
        return None
    was = parse_kind(written)
    if was.policy == AGAIN and today.policy == AGAIN:
        return None  # both versions declare that a second call does no harm
    reason = describe_call_difference(written, today)
    if today.policy == AGAIN and _are_known_to_differ(was.policy, AGAIN):
        promised = f"it was begun under InDoubt.{was.policy}(), which calls nothing twice, and the policy is InDoubt.repeat() now"
        return promised if reason is None else f"{reason}; {promised}"
    if today.policy == SAME_KEY and was.policy in PROMISES_NOTHING:
        promised = (
            f"it was begun under InDoubt.{was.policy}(), which promises nothing of its key, and InDoubt.same_key() would call again"
            " under it"
        )
        reason = promised if reason is None else f"{reason}; {promised}"
    covered = today.policy in ASKING and was.service in answers_for and not _are_known_to_differ(was.occurrence, today.occurrence)
    return None if covered else reason


def may_be_settled_by_lookup_only(written: str | None, today: Kind | None) -> bool:
    """Return whether an attempt in doubt may be settled only by a lookup, and not by a second call.

    This is the case if the attempt's call differs from this version's call. It is also the case if this version's policy is
    InDoubt.same_key(), and the attempt was begun under a policy that promises nothing about the key (PROMISES_NOTHING). If this version's
    policy is InDoubt.repeat(), the result is False.
    """
    if today is None or written is None:
        return False
    differs = today.policy == SAME_KEY and parse_kind(written).policy in PROMISES_NOTHING
    return today.policy != AGAIN and (differs or describe_call_difference(written, today) is not None)


def has_other_occurrence_columns(written: str | None, occurrence: Sequence[str]) -> bool:
    """Return whether a row's occurrence is made of columns other than those in `occurrence`, so that the texts cannot be compared."""
    was = _occurrence_columns(_parse_json_or_empty(written))
    return was is not None and was != tuple(occurrence)


def describe_occurrence_difference(written: str | None, occurrence: Sequence[str]) -> str:
    """Return a text that names the occurrence columns that a row records, and this version's occurrence columns, given as `occurrence`."""
    return _describe_column_difference(_occurrence_columns(_parse_json_or_empty(written)), tuple(occurrence))
