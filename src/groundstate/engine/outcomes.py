"""Outcomes as JSON and back, as the type that the handler is annotated with (hazard 16). Used only for what is held."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from groundstate.values.errors import Conflict

REPR = "groundstate_repr"


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # a tenth of a second, and needed only where an outcome is held or given by hand

    return TypeAdapter(kind)


def dump(kind: Any, values: list[Any]) -> str:
    """A JSON array of outcomes. What the type cannot say is kept as its text: an outcome is never dropped."""
    parts = []
    for value in values:
        try:
            parts.append(json.loads(_adapter(kind).dump_json(value, warnings=False)))
        except Exception:  # any type a user's call may return: keep what can be kept
            parts.append({REPR: repr(value)})
    return json.dumps(parts, ensure_ascii=False)


def _parts(written: str | None) -> list[Any]:
    """The outcomes that an attempt keeps. Where somebody edited them so that they are no array, they are one, of which the text is left."""
    if written is None:
        return []
    try:
        parts = json.loads(written)
    except (ValueError, RecursionError):
        parts = None
    return parts if isinstance(parts, list) and parts else [{REPR: written}]


def add(kind: Any, written: str | None, value: Any) -> str:
    """The array with one more."""
    parts = _parts(written)
    return json.dumps([*parts, *json.loads(dump(kind, [value]))], ensure_ascii=False)


def load_first(kind: Any, written: str) -> Any:
    """The first outcome. Raises Conflict where what is written cannot be read as that type any more."""
    return load(kind, json.dumps(_parts(written)[0]))


def load(kind: Any, written: str) -> Any:
    """One outcome from JSON. Raises Conflict with what is wrong in it."""
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(written)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Conflict(f"this JSON is no outcome of type {_name(kind)}: {first['msg']}{' at ' + where if where else ''}") from None
    except Exception as error:  # what a validator of the user's own raises
        raise Conflict(f"this JSON is no outcome of type {_name(kind)}: {type(error).__name__}: {error}") from None


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def first_and_rest(written: str) -> tuple[Any, str | None]:
    """The first outcome as plain JSON values, and the array of the others (None where there is no other)."""
    parts = _parts(written)
    return parts[0], json.dumps(parts[1:], ensure_ascii=False) if len(parts) > 1 else None


def without(written: str | None, concluded: Any) -> str | None:
    """The array without those that equal this one (under `same_key` an equal outcome is the same effect told twice)."""
    parts = [part for part in _parts(written) if part != concluded]
    return json.dumps(parts, ensure_ascii=False) if parts else None


def before(kind: Any, written: str | None, value: Any) -> str:
    """The array with this one as its first, once."""
    mine = json.loads(dump(kind, [value]))
    parts = _parts(written)
    return json.dumps([*mine, *(part for part in parts if part not in mine)], ensure_ascii=False)


def is_text_only(part: Any) -> bool:
    """Whether only the text of this outcome could be kept: no handler can be given it."""
    return isinstance(part, dict) and set(part) == {REPR}
