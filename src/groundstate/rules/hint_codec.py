"""Encodes and decodes hints between processes: which reactions to check, about how many rows, and a random number. Pure. A hint contains no
data of a row but, where the app says `keys=True`, its key.

Input is not trusted: what is no hint of ours is ignored, and what a hint says causes a query at most (hazard 52).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from groundstate.rules.concurrency_tuning import AdmittedWorkers, Report

EVERYBODY = 1_000_000  # rows: a hint of this many asks all workers to help with a backlog
ROWS_EACH = 200  # rows: for each this many, one more worker is to check
ROWS = b"rows:"  # prefix of what a trigger of the database sends: a table's full name and the number of a transaction
_VERSION = 1
_IDENTIFIER_MOST = 63  # bytes: PostgreSQL's limit for an identifier
_NAMES_MOST = 10_000
_NUMBERS_BELOW = 2**63
_REPORT_ROWS_MOST, _REPORT_S_MOST = 10_000_000, 60.0  # rows, and seconds: more than any worker does between two reports
_REPORT, _WHO_AND_WHOM = 3, 2  # the lengths of an encoded report, and of an encoded LetIn with its sender


@dataclass(frozen=True)
class Hint:
    """A Hint is what one process announces to the others: which work there may be, or who does it.

    Attributes:
        sender: the sending process, so that it ignores its own hints.
        reactions: the names of the reactions to check.
        rows: about how many rows were touched; 0 where they were not counted.
        dice: a random number, the same for all receivers, by which they agree on who checks.
        in_hand: the sender carries out the work itself, and announces it to those who wait for it.
        waits: the sender waits for what others carry out, and wants hints about it for a while.
        keys: record texts by reaction, where the app said `keys=True` (hazard 53).
        table: a table that was written, instead of reactions.
        crew: identifies the workers that run the same code.
        did: what one of them did of a backlog, in which others may help.
        leads: the incarnation that sweeps for this crew, and says that it is there.
        let_in: the worker that decides who goes on with a backlog, and its decision.
        store: the name of the database, in an app with several; "" where it is not known.
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
    leads: int = 0
    let_in: tuple[int, AdmittedWorkers] | None = None
    store: str = ""


def channel_of(subject: str) -> str:
    """Return PostgreSQL's channel for a subject: the subject itself or, where it is too long for an identifier, its start and a hash."""
    if len(subject.encode()) <= _IDENTIFIER_MOST:
        return subject
    return f"{subject[:40]}_{blake2b(subject.encode(), digest_size=8).hexdigest()}"


def encode_hint(hint: Hint, most: int) -> Iterator[bytes]:
    """Yield the hint in as many messages as are needed, each of at most `most` bytes. Keys that do not fit are left out: the reactions'
    names are enough.
    """
    body = _body(hint)
    if len(body) <= most:
        yield body
    elif hint.keys:
        yield from encode_hint(replace(hint, keys={}), most)
    elif len(hint.reactions) > 1:
        half = len(hint.reactions) // 2
        yield from encode_hint(replace(hint, reactions=hint.reactions[:half]), most)
        yield from encode_hint(replace(hint, reactions=hint.reactions[half:]), most)
    # A single name that is too long for any message is left out: the sweep finds its rows.


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
        said["p"] = [hint.did.incarnation, hint.did.rows, round(hint.did.seconds * 1000)]
    if hint.leads:
        said["b"] = hint.leads
    if hint.let_in is not None:
        said["l"] = [hint.let_in[0], None if hint.let_in[1].workers is None else list(hint.let_in[1].workers)]
    if hint.store:
        said["o"] = hint.store
    return json.dumps(said, separators=(",", ":")).encode()


def decode_hint(heard: bytes) -> Hint | None:
    """Return the hint in a received message; None where the message is no hint."""
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
        leads=said["b"] if _numbers([said.get("b")]) else 0,
        let_in=_let_in(said.get("l"), tuple(names)),
        store=str(said.get("o", "")),
    )


def _did(said: Any) -> Report | None:
    if not _numbers(said) or len(said) != _REPORT:
        return None
    incarnation, rows, milliseconds = said
    return Report(incarnation, min(max(rows, 0), _REPORT_ROWS_MOST), min(max(milliseconds, 0) / 1000, _REPORT_S_MOST))


def _let_in(said: Any, reactions: tuple[str, ...]) -> tuple[int, AdmittedWorkers] | None:
    if not isinstance(said, list) or len(said) != _WHO_AND_WHOM or not _numbers(said[:1]):
        return None
    who, workers = said
    if workers is None:
        return who, AdmittedWorkers(None, reactions)
    return (who, AdmittedWorkers(tuple(workers), reactions)) if _numbers(workers) else None


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


def rank_in_worker_ring(incarnation: int, workers: Sequence[int], dice: int) -> int:
    """Return how many workers come before this one in the ring of all known workers, which begins at the position given by the dice."""
    ring = sorted({*workers, incarnation})
    return (ring.index(incarnation) - dice) % len(ring)
