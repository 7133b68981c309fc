"""Outcomes as JSON and back, as the type that the handler is annotated with (hazard 16). Used only for what is held.

Each is loaded again before it is kept, and compared. What does not come back as it was is kept as a text of both, so that no handler is
ever given something else than the call returned; a person settles it by hand.
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

from groundstate.engine.alike import alike, state
from groundstate.engine.guarded import describe, let_through
from groundstate.values.errors import Conflict

REPR = "groundstate_repr"  # what it was, as a text
JSON = "groundstate_json"  # what became of it as JSON, where anything did
BASE64 = "groundstate_base64"  # a list of one outcome, whose bytes are no text: in base64, with the letters that are safe in URLs
COMES_BACK = "groundstate_comes_back"  # what that JSON comes back as, as a text, or why it does not

_NOTHING = {"groundstate": "stands here to see whether anything is read here"}
_PROBED_MOST = 200  # keys of one outcome of which it is tried whether they are read


@dataclass(frozen=True)
class Pen:
    """How it is written down: texts shortened and redacted, and no letter that the database's encoding lacks."""

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
    from pydantic import TypeAdapter  # a tenth of a second, and needed only where an outcome is held or given by hand

    return TypeAdapter(kind)


@cache
def _adapter_of_bytes(kind: Any) -> Any:
    """Of lists of this type. A list hands its config on to a dataclass in it, which may not be given one itself."""
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(list[kind], config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"))


@cache
def _by_either_name() -> dict[str, bool]:
    """A field is read by its alias and by its own name, where this pydantic can be told so: older ones are told by the model alone."""
    from pydantic import TypeAdapter

    known = inspect.signature(TypeAdapter.validate_json).parameters
    return {"by_alias": True, "by_name": True} if "by_name" in known else {}


# ---- one outcome -----------------------------------------------------------------------------------------------------------------
def part_of(kind: Any, value: Any, *, pen: Pen = PLAIN, given: str | None = None) -> Any:
    """What is kept of it: the JSON that comes back as it is; where there is none, a text of both.

    given: JSON that it was loaded from. It is taken where no JSON of ours comes back.
    """
    first: dict[str, Any] = {}
    for form in _forms(kind, value, given):
        try:
            back = load(kind, json.dumps(form))
        except Conflict as refused:
            first = first or {JSON: form, COMES_BACK: pen.shorten(f"not at all: {refused}")}
            continue
        except (ValueError, RecursionError):
            continue  # no JSON
        if not is_text_only(form) and _alike(value, back):
            return form
        first = first or {JSON: form, COMES_BACK: pen.shorten(_words(back))}
    return {REPR: pen.shorten(_words(value)), **first}


def comes_back(kind: Any, value: Any) -> bool:
    """Whether this value of that type can be kept as JSON."""
    return not is_text_only(part_of(kind, value))


def _forms(kind: Any, value: Any, given: str | None) -> Iterator[Any]:
    """JSON that it may be kept as, the best first. By aliases, as a model reads it; and by names, for aliases that are only written."""
    adapter = _adapter(kind)
    ways: list[Callable[[], Any]] = [
        lambda: json.loads(adapter.dump_json(value, by_alias=True, round_trip=True, warnings=False)),
        lambda: json.loads(adapter.dump_json(value, by_alias=False, round_trip=True, warnings=False)),
        # pydantic writes null for NaN and infinity, and reads them from texts.
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
        except BaseException as error:  # any type a user's call may return: what can be kept is kept
            let_through(error)
            continue
        yield form


def _alike(value: Any, back: Any) -> bool:
    try:
        return alike(value, back)
    except BaseException as error:  # compared by a method of the user's own, which cannot tell
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
    """The same with NaN and the infinities of `plain`, as Python's JSON has them: to a type that says nothing, as Any, a text is a text.

    Raises ValueError for a set with such numbers, which has no order: its text is kept.
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
    """What it shows itself as; where its `__repr__` fails, what it is made of."""
    try:
        return str.__str__(repr(value))
    except BaseException as error:
        let_through(error)
        if isinstance(value, int):
            return hex(value)  # too long for a decimal text
    try:
        if isinstance(value, list | tuple):
            return f"{type(value).__name__}({', '.join(map(_words, value))})"
        made_of = value if isinstance(value, dict) else state(value)
        return f"{type(value).__qualname__}({', '.join(f'{name}={_words(one)}' for name, one in made_of.items())})"
    except BaseException as error:
        let_through(error)
        return object.__repr__(value)


def load(kind: Any, written: str) -> Any:
    """One outcome from JSON. Raises Conflict with what is wrong in it."""
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
        raise Conflict(f"this JSON is no outcome of type {_name(kind)}: {first['msg']}{' at ' + where if where else ''}") from None
    except BaseException as error:  # what a validator of the user's own raises
        let_through(error)
        raise Conflict(f"this JSON is no outcome of type {_name(kind)}: {describe(error)}") from None


def _is_of_bytes(part: Any) -> bool:
    return isinstance(part, dict) and part.keys() == {BASE64}


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


# ---- what is said in JSON, and nobody reads --------------------------------------------------------------------------------------
def load_all(kind: Any, written: str) -> Any:
    """One outcome from JSON, of which nothing is left out. Raises Conflict with what is wrong in it, or is not read."""
    value = load(kind, written)
    try:
        part = json.loads(written)
        unread = _unread(kind, part, value)
    except (ValueError, RecursionError):
        unread = []
    if unread:
        names = ", ".join(repr(name) for name in unread)
        raise Conflict(f"this JSON is no outcome of type {_name(kind)}: nothing there reads {names}, which would be left out")
    return value


def _unread(kind: Any, part: Any, value: Any) -> list[str]:
    """Paths of keys that have no say in what it is loaded as: with another thing in their place it is loaded as the same."""
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
            if alike(load(kind, json.dumps(other)), value):
                found.append(".".join(map(str, path)))
        except BaseException as error:  # it is read, and this does not fit
            let_through(error)
    return found


def _left_over(form: Any, part: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of what is said in `part`, and not in the JSON that is made of what was loaded from it."""
    if isinstance(part, dict):
        for name, value in part.items():
            if isinstance(form, dict) and name in form:
                yield from _left_over(form[name], value, (*path, name))
            elif value is not None:
                yield (*path, name)
    elif isinstance(part, list) and isinstance(form, list) and len(form) == len(part):
        for place, (ours, theirs) in enumerate(zip(form, part, strict=True)):
            yield from _left_over(ours, theirs, (*path, place))


# ---- what an attempt keeps -------------------------------------------------------------------------------------------------------
def dump(kind: Any, values: list[Any], *, pen: Pen = PLAIN) -> str:
    """A JSON array of outcomes. What would not come back as it is, is kept as a text: an outcome is never dropped."""
    return pen.array([part_of(kind, value, pen=pen) for value in values])


def _parts(written: str | None) -> list[Any]:
    """The outcomes that an attempt keeps. Where somebody edited them so that they are no array, they are one, of which the text is left."""
    if written is None:
        return []
    try:
        parts = json.loads(written)
    except (ValueError, RecursionError):
        parts = None
    return parts if isinstance(parts, list) and parts else [{REPR: written}]


def add(kind: Any, written: str | None, value: Any, *, pen: Pen = PLAIN) -> str:
    """The array with one more."""
    return pen.array([*_parts(written), part_of(kind, value, pen=pen)])


def before(kind: Any, written: str | None, value: Any, *, pen: Pen = PLAIN, given: str | None = None) -> str:
    """The array with this one as its first, once. given: the JSON that it was loaded from."""
    mine = part_of(kind, value, pen=pen, given=given)
    return pen.array([mine, *(part for part in _parts(written) if _told(part) != _told(mine))])


def first_and_rest(written: str, *, pen: Pen = PLAIN) -> tuple[Any, str | None]:
    """The first outcome as plain JSON values, and the array of the others (None where there is no other)."""
    parts = _parts(written)
    return parts[0], pen.array(parts[1:]) if len(parts) > 1 else None


def without(written: str | None, concluded: Any, *, pen: Pen = PLAIN) -> str | None:
    """The array without those that equal this one (under `same_key` an equal outcome is the same effect told twice)."""
    parts = [part for part in _parts(written) if _told(part) != _told(concluded)]
    return pen.array(parts) if parts else None


def _told(part: Any) -> str:
    """The same for outcomes that are one. To Python 1 is True and 1.0 as well."""
    return json.dumps(part, sort_keys=True)


def load_first(kind: Any, written: str) -> Any:
    """The first outcome. Raises Conflict where what is written cannot be read as that type any more, or not all of it."""
    return load_all(kind, json.dumps(_parts(written)[0]))


def not_loaded(kind: Any, written: str) -> str | None:
    """Why one of the outcomes cannot be given to a handler of this type; None where all can be.

    Those of which a text alone is kept are left aside: no code can load them.
    """
    for part in _parts(written):
        if not is_text_only(part):
            try:
                load_all(kind, json.dumps(part))
            except Conflict as refused:
                return str(refused)
    return None


def is_text_only(part: Any) -> bool:
    """Whether only a text of this outcome could be kept: no handler can be given it."""
    return isinstance(part, dict) and REPR in part and set(part) <= {REPR, JSON, COMES_BACK}


def with_what_was_kept(why: str, written: str, *, last: bool = True) -> str:
    """Why it is held, and, where a text alone could be kept of its last outcome (or its first), that too."""
    part = _parts(written)[-1 if last else 0]
    if not is_text_only(part):
        return why
    says = DIFFERS if COMES_BACK in part else NO_JSON
    return why if says in why else f"{why}; {says}"


DIFFERS = "its outcome does not come back from JSON as it was, so a text of both is kept: settle it with its outcome by hand"
NO_JSON = "its outcome cannot be written as JSON, so a text of it is kept: settle it with its outcome by hand"
