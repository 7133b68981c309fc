"""Converts outcomes to JSON and back, as the type that the handler is annotated with (hazard 16). Only held outcomes are stored this way.

Each JSON is loaded again and compared before it is kept. If it does not load as an equal value, texts of both are kept instead, so that no
handler is ever given anything but what the call returned; a person settles such an outcome by hand.
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

from groundstate.engine.sql.exact_equality import exactly_equal, state
from groundstate.engine.sql.safe_text import describe, let_through
from groundstate.values.errors import ConflictError

REPR = "groundstate_repr"  # JSON key of the outcome's repr
JSON = "groundstate_json"  # JSON key of the JSON made of the outcome, if there is any
BASE64 = "groundstate_base64"  # JSON key of a list of one outcome whose bytes are not text, as URL-safe base64
COMES_BACK = "groundstate_comes_back"  # JSON key of the repr of what that JSON loads as, or why it does not load

_NOTHING = {"groundstate": "stands here to see whether anything is read here"}
_PROBED_MOST = 200  # keys of one outcome: at most this many are tested for whether anything reads them


@dataclass(frozen=True)
class Pen:
    """How outcomes are written: `shorten` redacts and bounds texts; `codec` is an encoding whose missing letters are escaped."""

    shorten: Callable[[str], str] = str
    codec: str = "utf-8"

    def array(self, parts: list[Any]) -> str:
        written = json.dumps(parts, ensure_ascii=False)
        try:
            written.encode(self.codec)
        except UnicodeEncodeError:
            return json.dumps(parts)
        return written


PLAIN = Pen()


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # takes 0.1 s to import, and is needed only for an outcome that is held or given by hand

    return TypeAdapter(kind)


@cache
def _adapter_of_bytes(kind: Any) -> Any:
    """Return a pydantic adapter for lists of this type that writes bytes as base64. It is one for lists because a list passes its config on
    to a dataclass inside it, which must not be given one directly.
    """
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(list[kind], config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"))


@cache
def _by_either_name() -> dict[str, bool]:
    """Return the arguments by which pydantic reads a field by its alias and by its own name; none for older versions of pydantic, where
    only the model decides that.
    """
    from pydantic import TypeAdapter

    known = inspect.signature(TypeAdapter.validate_json).parameters
    return {"by_alias": True, "by_name": True} if "by_name" in known else {}


# ---- one outcome -----------------------------------------------------------------------------------------------------------------
def outcome_to_kept_form(kind: Any, value: Any, *, pen: Pen = PLAIN, given: str | None = None) -> Any:
    """Return the form in which one outcome is kept: JSON that loads as an equal value, else a dict with a text of it (`REPR`) and of what
    its JSON loads as.

    `given` is the JSON that the outcome was loaded from, tried last.
    """
    first: dict[str, Any] = {}
    for form in _forms(kind, value, given):
        try:
            back = load(kind, json.dumps(form))
        except ConflictError as refused:
            first = first or {JSON: form, COMES_BACK: pen.shorten(f"not at all: {refused}")}
            continue
        except (ValueError, RecursionError):
            continue  # this form is not JSON
        if not is_text_only(form) and _alike(value, back):
            return form
        first = first or {JSON: form, COMES_BACK: pen.shorten(_words(back))}
    return {REPR: pen.shorten(_words(value)), **first}


def comes_back(kind: Any, value: Any) -> bool:
    """Whether an outcome of this type and value can be kept as JSON."""
    return not is_text_only(outcome_to_kept_form(kind, value))


def _forms(kind: Any, value: Any, given: str | None) -> Iterator[Any]:
    """Yield JSON forms of an outcome, the best first: by aliases, as a model reads it; then by names, for aliases that are only used for
    writing.
    """
    adapter = _adapter(kind)
    ways: list[Callable[[], Any]] = [
        lambda: json.loads(adapter.dump_json(value, by_alias=True, round_trip=True, warnings=False)),
        lambda: json.loads(adapter.dump_json(value, by_alias=False, round_trip=True, warnings=False)),
        # pydantic writes null for NaN and infinity, but can read them from texts.
        lambda: _numbers_as_texts(adapter.dump_python(value, mode="json", by_alias=True, round_trip=True, warnings=False)),
        lambda: _numbers_as_texts(adapter.dump_python(value, mode="json", by_alias=False, round_trip=True, warnings=False)),
        lambda: _with_its_numbers(json.loads(adapter.dump_json(value, warnings=False)), adapter.dump_python(value, warnings=False)),
    ]
    ways.append(lambda: {BASE64: json.loads(_adapter_of_bytes(kind).dump_json([value], by_alias=True, round_trip=True, warnings=False))})
    if given is not None:
        ways.append(lambda: json.loads(given))
    for way in ways:
        try:
            form = way()
        except BaseException as error:  # the user's type may raise anything; another form may still work
            let_through(error)
            continue
        yield form


def _alike(value: Any, back: Any) -> bool:
    try:
        return exactly_equal(value, back)
    except BaseException as error:  # the user's own comparison raised, so it counts as different
        let_through(error)
        return False


def _numbers_as_texts(form: Any) -> Any:
    if isinstance(form, dict):
        return {name: _numbers_as_texts(value) for name, value in form.items()}
    if isinstance(form, list | tuple):
        return [_numbers_as_texts(value) for value in form]
    if isinstance(form, float) and not math.isfinite(form):
        return "NaN" if math.isnan(form) else "Infinity" if form > 0 else "-Infinity"
    return form


def _with_its_numbers(part: Any, plain: Any) -> Any:
    """Return `part` with the NaN and infinities of `plain` put back in place of null, for types such as Any, which would load the text
    'NaN' as a text.

    Raises ValueError for a set with such numbers, since it has no order by which to match them; then the outcome's text is kept.
    """
    if part is None:
        return plain if isinstance(plain, float) else None
    if isinstance(part, dict) and isinstance(plain, dict) and len(part) == len(plain):
        return {name: _with_its_numbers(each, own) for (name, each), own in zip(part.items(), plain.values(), strict=True)}
    if isinstance(plain, AbstractSet) and any(isinstance(one, float) and not math.isfinite(one) for one in plain):
        raise ValueError(f"which null of {part!r} is which number is not known")
    if isinstance(part, list) and isinstance(plain, list | tuple) and len(part) == len(plain):
        return [_with_its_numbers(each, own) for each, own in zip(part, plain, strict=True)]
    return part


def _words(value: Any) -> str:
    """Return the outcome's repr; if its `__repr__` fails, its type with its attributes."""
    try:
        return str.__str__(repr(value))
    except BaseException as error:
        let_through(error)
        if isinstance(value, int):
            return hex(value)  # the int has too many digits for Python's decimal conversion
    try:
        if isinstance(value, list | tuple):
            return f"{type(value).__name__}({', '.join(map(_words, value))})"
        made_of = value if isinstance(value, dict) else state(value)
        return f"{type(value).__qualname__}({', '.join(f'{name}={_words(one)}' for name, one in made_of.items())})"
    except BaseException as error:
        let_through(error)
        return object.__repr__(value)


def load(kind: Any, written: str) -> Any:
    """Load one outcome from JSON. Raises ConflictError, which says what is wrong in it."""
    from pydantic import ValidationError

    try:
        part: Any = json.loads(written) if BASE64 in written else None
        if _is_of_bytes(part):
            (value,) = _adapter_of_bytes(kind).validate_json(json.dumps(part[BASE64]), **_by_either_name())
            return value
        return _adapter(kind).validate_json(written, **_by_either_name())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConflictError(f"this JSON is no outcome of type {_name(kind)}: {first['msg']}{' at ' + where if where else ''}") from None
    except BaseException as error:  # a validator of the user's raised
        let_through(error)
        raise ConflictError(f"this JSON is no outcome of type {_name(kind)}: {describe(error)}") from None


def _is_of_bytes(part: Any) -> bool:
    return isinstance(part, dict) and part.keys() == {BASE64}


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


# ---- keys that nothing reads -----------------------------------------------------------------------------------------------------
def load_all(kind: Any, written: str) -> Any:
    """Load one outcome from JSON of which every key must be read. Raises ConflictError, which says what is wrong in it or which key nothing
    reads.
    """
    value = load(kind, written)
    try:
        part = json.loads(written)
        unread = _unread(kind, part, value)
    except (ValueError, RecursionError):
        unread = []
    if unread:
        names = ", ".join(repr(name) for name in unread)
        raise ConflictError(f"this JSON is no outcome of type {_name(kind)}: nothing there reads {names}, which would be left out")
    return value


def _unread(kind: Any, part: Any, value: Any) -> list[str]:
    """Return the paths of keys that do not affect the loaded value: with something else in their place, it loads as the same."""
    forms = [form for form in _forms(kind, value, None) if _is_of_bytes(form) == _is_of_bytes(part)]
    left_over = [set(_left_over(form, part)) for form in forms] or [set(_left_over(None, part))]
    found: list[str] = []
    for path in sorted(set.intersection(*left_over), key=str)[:_PROBED_MOST]:
        other = copy.deepcopy(part)
        inner = other
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = _NOTHING
        try:
            if exactly_equal(load(kind, json.dumps(other)), value):
                found.append(".".join(map(str, path)))
        except BaseException as error:  # the key is read, since this value in its place does not fit
            let_through(error)
    return found


def _left_over(form: Any, part: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the paths of keys in `part` that are missing in the JSON made of the value that was loaded from it."""
    if isinstance(part, dict):
        for name, value in part.items():
            if isinstance(form, dict) and name in form:
                yield from _left_over(form[name], value, (*path, name))
            elif value is not None:
                yield (*path, name)
    elif isinstance(part, list) and isinstance(form, list) and len(form) == len(part):
        for place, (ours, theirs) in enumerate(zip(form, part, strict=True)):
            yield from _left_over(ours, theirs, (*path, place))


# ---- the outcomes of an attempt --------------------------------------------------------------------------------------------------
def dump(kind: Any, values: list[Any], *, pen: Pen = PLAIN) -> str:
    """Return a JSON array of outcomes. One that would not load as an equal value is kept as a text: an outcome is never dropped."""
    return pen.array([outcome_to_kept_form(kind, value, pen=pen) for value in values])


def _parts(written: str | None) -> list[Any]:
    """Return the outcomes that an attempt keeps. If a person edited the column so that it is no array, the text of it is the
    only outcome.
    """
    if written is None:
        return []
    try:
        parts = json.loads(written)
    except (ValueError, RecursionError):
        parts = None
    return parts if isinstance(parts, list) and parts else [{REPR: written}]


def add(kind: Any, written: str | None, value: Any, *, pen: Pen = PLAIN) -> str:
    """Return the JSON array of an attempt's outcomes with one more appended."""
    return pen.array([*_parts(written), outcome_to_kept_form(kind, value, pen=pen)])


def put_outcome_first(kind: Any, written: str | None, value: Any, *, pen: Pen = PLAIN, given: str | None = None) -> str:
    """Return the JSON array of an attempt's outcomes with this one at the front; an equal one is removed. `given` is the JSON that it was
    loaded from.
    """
    mine = outcome_to_kept_form(kind, value, pen=pen, given=given)
    return pen.array([mine, *(part for part in _parts(written) if _told(part) != _told(mine))])


def first_and_rest(written: str, *, pen: Pen = PLAIN) -> tuple[Any, str | None]:
    """Return the first outcome as plain JSON values, and the array of the others (None if there is only one)."""
    parts = _parts(written)
    return parts[0], pen.array(parts[1:]) if len(parts) > 1 else None


def without(written: str | None, concluded: Any, *, pen: Pen = PLAIN) -> str | None:
    """Return the array without the outcomes that equal this one (under `same_key`, an equal outcome is the same effect reported twice);
    None if none is left.
    """
    parts = [part for part in _parts(written) if _told(part) != _told(concluded)]
    return pen.array(parts) if parts else None


def _told(part: Any) -> str:
    """Return a text that is equal for equal outcomes. JSON text is compared because Python's `==` takes 1 for True and for 1.0."""
    return json.dumps(part, sort_keys=True)


def load_first(kind: Any, written: str) -> Any:
    """Load the first outcome of an attempt. Raises ConflictError if the JSON, or a part of it, can no longer be read as that type."""
    return load_all(kind, json.dumps(_parts(written)[0]))


def not_loaded(kind: Any, written: str) -> str | None:
    """Return why one of an attempt's outcomes cannot be given to a handler of this type; None if all can be.

    Outcomes of which only a text was kept are skipped: no code can load them.
    """
    for part in _parts(written):
        if not is_text_only(part):
            try:
                load_all(kind, json.dumps(part))
            except ConflictError as refused:
                return str(refused)
    return None


def is_text_only(part: Any) -> bool:
    """Whether only a text of this outcome could be kept, so that no handler can be given it."""
    return isinstance(part, dict) and REPR in part and set(part) <= {REPR, JSON, COMES_BACK}


def with_what_was_kept(why: str, written: str, *, last: bool = True) -> str:
    """Return why an attempt is held, with a note if only a text could be kept of its last outcome (of its first, if `last` is False)."""
    part = _parts(written)[-1 if last else 0]
    if not is_text_only(part):
        return why
    says = DIFFERS if COMES_BACK in part else NO_JSON
    return why if says in why else f"{why}; {says}"


DIFFERS = "its outcome does not come back from JSON as it was, so a text of both is kept: settle it with its outcome by hand"
NO_JSON = "its outcome cannot be written as JSON, so a text of it is kept: settle it with its outcome by hand"
