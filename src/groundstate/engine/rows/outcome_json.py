"""Converts outcomes (what calls returned) to JSON and back, by the type with which the handler annotates its outcome (hazard 16). Only
outcomes of held attempts are stored.

Before JSON is kept, it is loaded again and compared with the outcome. If the loaded value is not equal, only texts of the two values are
kept, and a person settles the outcome by hand. So a handler never gets another value than the call returned.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache
from typing import Any

from groundstate.engine.sql.exact_equality import attributes_of, exactly_equal
from groundstate.engine.sql.safe_text import describe_exception, reraise_keyboard_interrupt
from groundstate.values.errors import ConflictError

REPR = "groundstate_repr"  # JSON key of the outcome's repr
JSON = "groundstate_json"  # the key under which the outcome as JSON is kept; missing if no JSON could be made of the outcome
BASE64 = "groundstate_base64"  # JSON key of a list that holds one outcome, whose bytes are written as URL-safe base64
# JSON key whose value is a text: the repr of what loading the JSON gave, or the error if it could not be loaded
COMES_BACK = "groundstate_comes_back"

_NOTHING = {"groundstate": "stands here to see whether anything is read here"}
_PROBED_MOST = 200  # the most JSON keys of one outcome for which it is tested whether the outcome's type reads them


@dataclass(frozen=True)
class Pen:
    """Says how outcomes are written as JSON.

    Attributes:
        shorten: Redacts a text and cuts it to a limit.
        codec: The database's encoding; characters that the encoding lacks are escaped.
    """

    shorten: Callable[[str], str] = str
    codec: str = "utf-8"

    def write_array(self, parts: list[Any]) -> str:
        written = json.dumps(parts, ensure_ascii=False)
        try:
            written.encode(self.codec)
        except UnicodeEncodeError:
            return json.dumps(parts)
        return written


PLAIN = Pen()


@cache
def _pydantic_adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # imported only here, since the import takes 0.1 s and most runs never need pydantic

    return TypeAdapter(kind)


@cache
def _base64_adapter(kind: Any) -> Any:
    """Return a pydantic adapter that writes a list of values of this type, with bytes as base64. A list is used because pydantic accepts no
    config for a dataclass itself, but passes the list's config on to it.
    """
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(list[kind], config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"))


@cache
def _alias_arguments() -> dict[str, bool]:
    """Return the arguments that make pydantic read fields by alias and by name. Return an empty dict for an older pydantic, which does not
    know these arguments: there the model alone decides.
    """
    from pydantic import TypeAdapter

    known = inspect.signature(TypeAdapter.validate_json).parameters
    return {"by_alias": True, "by_name": True} if "by_name" in known else {}


# ---- one outcome -----------------------------------------------------------------------------------------------------------------
def outcome_to_kept_form(kind: Any, value: Any, *, pen: Pen = PLAIN, given: str | None = None) -> Any:
    """Return what is kept of one outcome: JSON values that load as an equal outcome.

    If no JSON loads as an equal outcome, return a dict with the outcome's repr (`REPR`). If the outcome can be written as JSON at all, the
    dict also has this JSON (`JSON`), and the repr of the value that it loads as (`COMES_BACK`).

    given: the JSON from which the outcome was loaded; None if it was not loaded from JSON. This JSON is tried last.
    """
    first: dict[str, Any] = {}
    for form in _ways_to_write_as_json(kind, value, given):
        try:
            back = load_outcome(kind, json.dumps(form))
        except ConflictError as refused:
            first = first or {JSON: form, COMES_BACK: pen.shorten(f"not at all: {refused}")}
            continue
        except (ValueError, RecursionError):
            continue  # this form is not JSON
        if not is_text_only(form) and _are_equal(value, back):
            return form
        first = first or {JSON: form, COMES_BACK: pen.shorten(_repr_or_attributes(back))}
    return {REPR: pen.shorten(_repr_or_attributes(value)), **first}


def can_be_kept_as_json(kind: Any, value: Any) -> bool:
    """Return whether an outcome of this type and value can be kept as JSON."""
    return not is_text_only(outcome_to_kept_form(kind, value))


def _ways_to_write_as_json(kind: Any, value: Any, given: str | None) -> Iterator[Any]:
    """Yield the outcome as JSON values in several forms, the best form first.

    The forms are: with aliases, by which a model reads its fields; with field names, for models that use aliases only when they write; with
    NaN and infinities; with bytes as base64; and finally the JSON `given`.
    """
    adapter = _pydantic_adapter(kind)
    ways: list[Callable[[], Any]] = [
        lambda: json.loads(adapter.dump_json(value, by_alias=True, round_trip=True, warnings=False)),
        lambda: json.loads(adapter.dump_json(value, by_alias=False, round_trip=True, warnings=False)),
        # pydantic writes NaN and infinity as null, but can read texts such as 'NaN'.
        lambda: _write_special_numbers_as_texts(adapter.dump_python(value, mode="json", by_alias=True, round_trip=True, warnings=False)),
        lambda: _write_special_numbers_as_texts(adapter.dump_python(value, mode="json", by_alias=False, round_trip=True, warnings=False)),
        lambda: _restore_special_numbers(json.loads(adapter.dump_json(value, warnings=False)), adapter.dump_python(value, warnings=False)),
    ]
    ways.append(lambda: {BASE64: json.loads(_base64_adapter(kind).dump_json([value], by_alias=True, round_trip=True, warnings=False))})
    if given is not None:
        ways.append(lambda: json.loads(given))
    for way in ways:
        try:
            form = way()
        except BaseException as error:  # the user's type may raise anything; another way of writing may still work
            reraise_keyboard_interrupt(error)
            continue
        yield form


def _are_equal(value: Any, back: Any) -> bool:
    try:
        return exactly_equal(value, back)
    except BaseException as error:  # comparing values of the user's type raised: they count as different
        reraise_keyboard_interrupt(error)
        return False


def _write_special_numbers_as_texts(form: Any) -> Any:
    if isinstance(form, dict):
        return {name: _write_special_numbers_as_texts(value) for name, value in form.items()}
    if isinstance(form, list | tuple):
        return [_write_special_numbers_as_texts(value) for value in form]
    if isinstance(form, float) and not math.isfinite(form):
        return "NaN" if math.isnan(form) else "Infinity" if form > 0 else "-Infinity"
    return form


def _restore_special_numbers(part: Any, plain: Any) -> Any:
    """Return `part` with each null replaced by the NaN or infinity that `plain` has in the same place. Types such as Any need this, since
    they would load the text 'NaN' as a text.

    Raises ValueError for a set that contains such numbers: its items have no order, so the place of each number is unknown.
    """
    if part is None:
        return plain if isinstance(plain, float) else None
    if isinstance(part, dict) and isinstance(plain, dict) and len(part) == len(plain):
        return {name: _restore_special_numbers(each, own) for (name, each), own in zip(part.items(), plain.values(), strict=True)}
    if isinstance(plain, AbstractSet) and any(isinstance(one, float) and not math.isfinite(one) for one in plain):
        raise ValueError(f"which null of {part!r} is which number is not known")
    if isinstance(part, list) and isinstance(plain, list | tuple) and len(part) == len(plain):
        return [_restore_special_numbers(each, own) for each, own in zip(part, plain, strict=True)]
    return part


def _repr_or_attributes(value: Any) -> str:
    """Return the repr of an outcome; if its `__repr__` raises, the name of its type with its attributes."""
    try:
        return str.__str__(repr(value))
    except BaseException as error:
        reraise_keyboard_interrupt(error)
        if isinstance(value, int):
            return hex(value)  # the int has too many digits for Python's decimal conversion
    try:
        if isinstance(value, list | tuple):
            return f"{type(value).__name__}({', '.join(map(_repr_or_attributes, value))})"
        made_of = value if isinstance(value, dict) else attributes_of(value)
        return f"{type(value).__qualname__}({', '.join(f'{name}={_repr_or_attributes(one)}' for name, one in made_of.items())})"
    except BaseException as error:
        reraise_keyboard_interrupt(error)
        return object.__repr__(value)


def load_outcome(kind: Any, written: str) -> Any:
    """Return the outcome that this JSON loads as. Raises ConflictError, whose text says what is wrong in the JSON."""
    from pydantic import ValidationError

    try:
        part: Any = json.loads(written) if BASE64 in written else None
        if _is_bytes_form(part):
            (value,) = _base64_adapter(kind).validate_json(json.dumps(part[BASE64]), **_alias_arguments())
            return value
        return _pydantic_adapter(kind).validate_json(written, **_alias_arguments())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConflictError(
            f"this JSON is no outcome of type {_type_name(kind)}: {first['msg']}{' at ' + where if where else ''}"
        ) from None
    except BaseException as error:  # raised by a validator of the user's type
        reraise_keyboard_interrupt(error)
        raise ConflictError(f"this JSON is no outcome of type {_type_name(kind)}: {describe_exception(error)}") from None


def _is_bytes_form(part: Any) -> bool:
    return isinstance(part, dict) and part.keys() == {BASE64}


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


# ---- keys that nothing reads -----------------------------------------------------------------------------------------------------
def load_if_all_keys_are_read(kind: Any, written: str) -> Any:
    """Return the outcome that this JSON loads as, if its type reads every key in it. Raises ConflictError, whose text says what is wrong in
    the JSON, or names a key that the type does not read.
    """
    value = load_outcome(kind, written)
    try:
        part = json.loads(written)
        unread = _unread_keys(kind, part, value)
    except (ValueError, RecursionError):
        unread = []
    if unread:
        names = ", ".join(repr(name) for name in unread)
        raise ConflictError(f"this JSON is no outcome of type {_type_name(kind)}: nothing there reads {names}, which would be left out")
    return value


def _unread_keys(kind: Any, part: Any, value: Any) -> list[str]:
    """Return the paths of those keys that the type does not read: the JSON loads as an equal outcome even with another value under such a
    key.
    """
    forms = [form for form in _ways_to_write_as_json(kind, value, None) if _is_bytes_form(form) == _is_bytes_form(part)]
    left_over = [set(_keys_missing_in_form(form, part)) for form in forms] or [set(_keys_missing_in_form(None, part))]
    found: list[str] = []
    for path in sorted(set.intersection(*left_over), key=str)[:_PROBED_MOST]:
        other = copy.deepcopy(part)
        inner = other
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = _NOTHING
        try:
            if exactly_equal(load_outcome(kind, json.dumps(other)), value):
                found.append(".".join(map(str, path)))
        except BaseException as error:  # the type reads the key, since it refuses another value under it
            reraise_keyboard_interrupt(error)
    return found


def _keys_missing_in_form(form: Any, part: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of each key that the original JSON (`part`) has and the new JSON (`form`) lacks. A key whose value is null is ignored.

    The new JSON was made from the value that was loaded from the original JSON.
    """
    if isinstance(part, dict):
        for name, value in part.items():
            if isinstance(form, dict) and name in form:
                yield from _keys_missing_in_form(form[name], value, (*path, name))
            elif value is not None:
                yield (*path, name)
    elif isinstance(part, list) and isinstance(form, list) and len(form) == len(part):
        for place, (ours, theirs) in enumerate(zip(form, part, strict=True)):
            yield from _keys_missing_in_form(ours, theirs, (*path, place))


# ---- the outcomes of an attempt --------------------------------------------------------------------------------------------------
def dump_outcomes(kind: Any, values: list[Any], *, pen: Pen = PLAIN) -> str:
    """Return a JSON array of these outcomes. If an outcome's JSON would load as another value, a text of the outcome is in its place; no
    outcome is left out.
    """
    return pen.write_array([outcome_to_kept_form(kind, value, pen=pen) for value in values])


def _parse_outcomes(written: str | None) -> list[Any]:
    """Return the outcomes that an attempt keeps, as JSON values. If the column is no JSON array, since a person edited it, return its text
    as the only outcome.
    """
    if written is None:
        return []
    try:
        parts = json.loads(written)
    except (ValueError, RecursionError):
        parts = None
    return parts if isinstance(parts, list) and parts else [{REPR: written}]


def append_outcome(kind: Any, written: str | None, value: Any, *, pen: Pen = PLAIN) -> str:
    """Return the JSON array of an attempt's outcomes with `value` appended."""
    return pen.write_array([*_parse_outcomes(written), outcome_to_kept_form(kind, value, pen=pen)])


def put_outcome_first(kind: Any, written: str | None, value: Any, *, pen: Pen = PLAIN, given: str | None = None) -> str:
    """Return the JSON array of an attempt's outcomes with `value` at the front, and without other outcomes equal to it. given: the JSON
    from which `value` was loaded; None if it was not loaded from JSON.
    """
    mine = outcome_to_kept_form(kind, value, pen=pen, given=given)
    return pen.write_array([mine, *(part for part in _parse_outcomes(written) if _comparison_text(part) != _comparison_text(mine))])


def first_and_rest(written: str, *, pen: Pen = PLAIN) -> tuple[Any, str | None]:
    """Return a pair: the first outcome as plain JSON values, and the JSON array of the other outcomes (None if there are none)."""
    parts = _parse_outcomes(written)
    return parts[0], pen.write_array(parts[1:]) if len(parts) > 1 else None


def without_outcome(written: str | None, concluded: Any, *, pen: Pen = PLAIN) -> str | None:
    """Return the JSON array without the outcomes equal to `concluded`; None if no outcome is left. Under the policy `same_key`, an equal
    outcome reports the same effect once more.
    """
    parts = [part for part in _parse_outcomes(written) if _comparison_text(part) != _comparison_text(concluded)]
    return pen.write_array(parts) if parts else None


def _comparison_text(part: Any) -> str:
    """Return a text of JSON values; the texts of two outcomes are equal exactly if the outcomes are. Comparing the values themselves is
    not exact enough: in Python, 1, True and 1.0 are equal.
    """
    return json.dumps(part, sort_keys=True)


def load_first_outcome(kind: Any, written: str) -> Any:
    """Return the first outcome of an attempt as a value of this type. Raises ConflictError if the JSON, or a part of it, can no longer be
    loaded as that type.
    """
    return load_if_all_keys_are_read(kind, json.dumps(_parse_outcomes(written)[0]))


def why_not_loadable(kind: Any, written: str) -> str | None:
    """Return why one of an attempt's outcomes cannot be loaded as this type; None if all of them can be loaded.

    Outcomes of which only a text was kept are skipped, since no code can load them.
    """
    for part in _parse_outcomes(written):
        if not is_text_only(part):
            try:
                load_if_all_keys_are_read(kind, json.dumps(part))
            except ConflictError as refused:
                return str(refused)
    return None


def is_text_only(part: Any) -> bool:
    """Return whether only a text of this outcome was kept. No handler can get such an outcome."""
    return isinstance(part, dict) and REPR in part and set(part) <= {REPR, JSON, COMES_BACK}


def note_if_only_text_was_kept(why: str, written: str, *, last: bool = True) -> str:
    """Return `why` (the reason why an attempt is held), with a note if only a text was kept of the attempt's outcome.

    The outcome is the last one of the attempt, or the first one if `last` is False.
    """
    part = _parse_outcomes(written)[-1 if last else 0]
    if not is_text_only(part):
        return why
    says = DIFFERS if COMES_BACK in part else NO_JSON
    return why if says in why else f"{why}; {says}"


DIFFERS = "its outcome does not come back from JSON as it was, so a text of both is kept: settle it with its outcome by hand"
NO_JSON = "its outcome cannot be written as JSON, so a text of it is kept: settle it with its outcome by hand"
