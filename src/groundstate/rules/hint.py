"""A hint as it travels between processes: which reactions to look at, about how many rows, and dice. Pure; never a row's data.

Whatever arrives is read with suspicion: what is no hint of ours is none, and what it says causes a query at most (hazard 52).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from groundstate.rules.crowd import LetIn, Report

EVERYBODY = 1_000_000  # rows, of a backlog that all should help with
ROWS_EACH = 200  # for so many rows one worker more is to look
ROWS = b"rows:"  # begins what a trigger of the database says: the full name of a table, and the number of a transaction
_VERSION = 1
_IDENTIFIER_MOST = 63  # bytes, of PostgreSQL's
_NAMES_MOST = 10_000
_NUMBERS_BELOW = 2**63
_REPORT_ROWS_MOST, _REPORT_S_MOST = 10_000_000, 60.0  # more than any worker does between two that it tells of
_REPORT, _WHO_AND_WHOM = 3, 2  # how many numbers such a thing is


@dataclass(frozen=True)
class Hint:
    """What is told.

    sender: of the process, so that it does not listen to itself. rows: about how many were touched; 0 where nobody counted. dice: the
    same for all who hear it, by which they agree who looks. in_hand: the sender carries it out himself, and tells for who waits for it.
    waits: somebody waits for what others carry out, and wants to be told of it for a while. keys: record texts by reaction, where the app
    said `keys=True` (hazard 53). table: instead of reactions, a table that was written. crew: of workers that run the same code. did: what
    one of them did of a backlog, in which others may help. let_in: who goes on with it, and who says so. store: the name of the database
    where it is, of an app that has several; "" where that is not known.
    """

    sender: str = ""
    reactions: tuple[str, ...] = ()
    rows: int = 0
    dice: int = 0
    in_hand: bool = False
    waits: bool = False
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    table: str = ""
    crew: int = 0
    did: Report | None = None
    let_in: tuple[int, LetIn] | None = None
    store: str = ""


def channel_of(subject: str) -> str:
    """PostgreSQL's channel of a subject: itself, or where an identifier cannot be so long, its beginning and what tells it from others."""
    if len(subject.encode()) <= _IDENTIFIER_MOST:
        return subject
    return f"{subject[:40]}_{blake2b(subject.encode(), digest_size=8).hexdigest()}"


def written(hint: Hint, most: int) -> Iterator[bytes]:
    """The hint in as many pieces as are needed, each of at most so many bytes. Keys that do not fit are left out: the names say enough."""
    body = _body(hint)
    if len(body) <= most:
        yield body
    elif hint.keys:
        yield from written(replace(hint, keys={}), most)
    elif len(hint.reactions) > 1:
        half = len(hint.reactions) // 2
        yield from written(replace(hint, reactions=hint.reactions[:half]), most)
        yield from written(replace(hint, reactions=hint.reactions[half:]), most)
    # One name that is too long for any hint is found by the sweep.


def _body(hint: Hint) -> bytes:
    said: dict[str, Any] = {"v": _VERSION, "s": hint.sender, "r": list(hint.reactions), "n": hint.rows, "d": hint.dice}
    if hint.in_hand:
        said["h"] = 1
    if hint.waits:
        said["w"] = 1
    if hint.keys:
        said["k"] = {name: list(texts) for name, texts in hint.keys.items()}
    if hint.crew:
        said["c"] = hint.crew
    if hint.did is not None:
        said["p"] = [hint.did.life, hint.did.rows, round(hint.did.seconds * 1000)]
    if hint.let_in is not None:
        said["l"] = [hint.let_in[0], None if hint.let_in[1].lives is None else list(hint.let_in[1].lives)]
    if hint.store:
        said["o"] = hint.store
    return json.dumps(said, separators=(",", ":")).encode()


def read(heard: bytes) -> Hint | None:
    """What was meant; None for what is no hint."""
    if heard.startswith(ROWS):
        return _of_a_trigger(heard[len(ROWS) :])
    try:
        said = json.loads(heard)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or said.get("v") != _VERSION:
        return None
    names: Any = said.get("r")
    rows, dice = said.get("n"), said.get("d")
    if not _texts(names) or not isinstance(rows, int) or not isinstance(dice, int):
        return None
    keys = said.get("k") or {}
    if not isinstance(keys, dict) or not all(_texts(some) for some in keys.values()):
        return None
    return Hint(
        sender=str(said.get("s", "")),
        reactions=tuple(names),
        rows=max(rows, 0),
        dice=abs(dice),
        in_hand=bool(said.get("h")),
        waits=bool(said.get("w")),
        keys={name: tuple(some) for name, some in keys.items()},
        crew=said["c"] if _numbers([said.get("c")]) else 0,
        did=_did(said.get("p")),
        let_in=_let_in(said.get("l"), tuple(names)),
        store=str(said.get("o", "")),
    )


def _did(said: Any) -> Report | None:
    if not _numbers(said) or len(said) != _REPORT:
        return None
    life, rows, milliseconds = said
    return Report(life, min(max(rows, 0), _REPORT_ROWS_MOST), min(max(milliseconds, 0) / 1000, _REPORT_S_MOST))


def _let_in(said: Any, reactions: tuple[str, ...]) -> tuple[int, LetIn] | None:
    if not isinstance(said, list) or len(said) != _WHO_AND_WHOM or not _numbers(said[:1]):
        return None
    who, lives = said
    if lives is None:
        return who, LetIn(None, reactions)
    return (who, LetIn(tuple(lives), reactions)) if _numbers(lives) else None


def _numbers(given: Any) -> bool:
    return isinstance(given, list) and len(given) <= _NAMES_MOST and all(type(one) is int and abs(one) < _NUMBERS_BELOW for one in given)


def _texts(given: Any) -> bool:
    return (
        isinstance(given, Sequence)
        and not isinstance(given, str)
        and len(given) <= _NAMES_MOST
        and all(isinstance(one, str) for one in given)
    )


def _of_a_trigger(payload: bytes) -> Hint | None:
    table, _, _number = payload.decode(errors="replace").rpartition(" ")
    return Hint(table=table, dice=int.from_bytes(blake2b(payload, digest_size=4).digest(), "big")) if table else None


def place(life: int, lives: Sequence[int], dice: int) -> int:
    """How many come before this life in the ring of those that are known, beginning where the dice say."""
    ring = sorted({*lives, life})
    return (ring.index(life) - dice) % len(ring)
