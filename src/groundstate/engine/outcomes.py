"""Outcomes as JSON and back, as the type that the handler is annotated with (hazard 16). Used only for what is held."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from groundstate.values.errors import Conflict


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
        except Exception:  # noqa: BLE001  # any type a user's call may return: keep what can be kept
            parts.append({"groundstate_repr": repr(value)})
    return json.dumps(parts, ensure_ascii=False)


def add(kind: Any, written: str | None, value: Any) -> str:
    """The array with one more."""
    parts = json.loads(written) if written else []
    return json.dumps([*parts, *json.loads(dump(kind, [value]))], ensure_ascii=False)


def load_first(kind: Any, written: str) -> Any:
    """The first outcome. Raises Conflict where what is written cannot be read as that type any more."""
    parts = json.loads(written)
    return load(kind, json.dumps(parts[0]))


def load(kind: Any, written: str) -> Any:
    """One outcome from JSON. Raises Conflict with what is wrong in it."""
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(written)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Conflict(f"this JSON is no outcome of type {kind}: {first['msg']}{' at ' + where if where else ''}") from None
