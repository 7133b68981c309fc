"""Encodes and decodes hints: messages between processes that say which reactions to check, and roughly how many rows were written.

A hint contains no data of a row, except the row's key if the app declares `keys=True`. Received bytes are not trusted: a message that is
no hint is ignored, and a hint can cause no more than a query (hazard 52). The functions are pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from groundstate.rules.concurrency_tuning import AdmittedWorkers, Report

EVERYBODY = 1_000_000  # number of rows in a hint that asks all workers to help with a backlog
ROWS_EACH = 200  # one worker checks for a hint about this many rows, two workers check for twice as many rows, and so on
ROWS = b"rows:"  # prefix of a message from a database trigger; after it come a table's full name and the number of a transaction
_VERSION = 1
_IDENTIFIER_MOST = 63  # maximum length of an identifier of PostgreSQL in bytes
_NAMES_MOST = 10_000
_NUMBERS_BELOW = 2**63
_REPORT_ROWS_MOST, _REPORT_S_MOST = 10_000_000, 60.0  # limits for a received Report, in rows and seconds, above any true value
_REPORT, _WHO_AND_WHOM = 3, 2  # lengths of two JSON arrays: an encoded Report, and an encoded AdmittedWorkers with its sender


@dataclass(frozen=True)
class Hint:
    """A Hint is what one process announces to the others: which work there may be, or which workers do the work.

    Attributes:
        sender: identifies the sending process, so that the process ignores its own hints.
        reactions: the names of the reactions to check.
        rows: roughly how many rows were written; 0 where they were not counted.
        dice: a random number, from which all receivers compute which workers check.
        in_hand: whether the sender does the work itself; the hint is then only for processes that wait for the result.
        waits: whether the sender waits for the result of other workers' work, and wants hints about it for a while.
        keys: the texts of record keys, by reaction, if the app declares `keys=True` (hazard 53).
        table: the name of a table that was written; then `reactions` is empty. "" in other hints.
        crew: a number that all workers of one version of the application share; 0 if not given.
        did: what the sender did for a backlog that the crew shares; None if it reports nothing.
        leads: the incarnation of the worker that sweeps for this crew, to announce that it is alive; 0 in other hints.
        let_in: a pair (incarnation of the worker that decides which workers go on with a backlog, its decision), or None.
        store: the name of the database, in an app with several; "" if it is not known.
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


def postgres_channel_name(subject: str) -> str:
    """Return the name of PostgreSQL's channel for a subject: the subject or, if it is too long for an identifier, its start and a hash."""
    if len(subject.encode()) <= _IDENTIFIER_MOST:
        return subject
    return f"{subject[:40]}_{blake2b(subject.encode(), digest_size=8).hexdigest()}"


def encode_hint(hint: Hint, most: int) -> Iterator[bytes]:
    """Yield one or more messages that together say what the hint says, each of at most `most` bytes.

    If the keys do not fit, they are left out, since the names of the reactions are enough.
    """
    body = _encode_in_one_message(hint)
    if len(body) <= most:
        yield body
    elif hint.keys:
        yield from encode_hint(replace(hint, keys={}), most)
    elif len(hint.reactions) > 1:
        half = len(hint.reactions) // 2
        yield from encode_hint(replace(hint, reactions=hint.reactions[:half]), most)
        yield from encode_hint(replace(hint, reactions=hint.reactions[half:]), most)
    # A hint about one reaction whose name is too long for a message is not sent: the sweep (a regular query) finds the rows.


def _encode_in_one_message(hint: Hint) -> bytes:
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


def decode_hint(received: bytes) -> Hint | None:
    """Return the hint in a received message; None where the message is no hint."""
    if received.startswith(ROWS):
        return _decode_trigger_payload(received[len(ROWS) :])
    try:
        said = json.loads(received)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or said.get("v") != _VERSION:
        return None
    names: Any = said.get("r")
    rows, dice = said.get("n"), said.get("d")
    if not _are_texts(names) or not isinstance(rows, int) or not isinstance(dice, int):
        return None
    keys = said.get("k") or {}
    if not isinstance(keys, dict) or not all(_are_texts(some) for some in keys.values()):
        return None
    return Hint(
        sender=str(said.get("s", "")),
        reactions=tuple(names),
        rows=max(rows, 0),
        dice=abs(dice),
        in_hand=bool(said.get("h")),
        waits=bool(said.get("w")),
        keys={name: tuple(some) for name, some in keys.items()},
        crew=said["c"] if _are_numbers([said.get("c")]) else 0,
        did=_decode_report(said.get("p")),
        leads=said["b"] if _are_numbers([said.get("b")]) else 0,
        let_in=_decode_admission(said.get("l"), tuple(names)),
        store=str(said.get("o", "")),
    )


def _decode_report(said: Any) -> Report | None:
    if not _are_numbers(said) or len(said) != _REPORT:
        return None
    incarnation, rows, milliseconds = said
    return Report(incarnation, min(max(rows, 0), _REPORT_ROWS_MOST), min(max(milliseconds, 0) / 1000, _REPORT_S_MOST))


def _decode_admission(said: Any, reactions: tuple[str, ...]) -> tuple[int, AdmittedWorkers] | None:
    if not isinstance(said, list) or len(said) != _WHO_AND_WHOM or not _are_numbers(said[:1]):
        return None
    who, workers = said
    if workers is None:
        return who, AdmittedWorkers(None, reactions)
    return (who, AdmittedWorkers(tuple(workers), reactions)) if _are_numbers(workers) else None


def _are_numbers(given: Any) -> bool:
    return isinstance(given, list) and len(given) <= _NAMES_MOST and all(type(one) is int and abs(one) < _NUMBERS_BELOW for one in given)


def _are_texts(given: Any) -> bool:
    return (
        isinstance(given, Sequence)
        and not isinstance(given, str)
        and len(given) <= _NAMES_MOST
        and all(isinstance(one, str) for one in given)
    )


def _decode_trigger_payload(payload: bytes) -> Hint | None:
    table, _, _number = payload.decode(errors="replace").rpartition(" ")
    return Hint(table=table, dice=int.from_bytes(blake2b(payload, digest_size=4).digest(), "big")) if table else None


def rank_in_worker_ring(incarnation: int, workers: Sequence[int], dice: int) -> int:
    """Return this worker's rank, from 0, in a ring of all known workers. The number `dice` chooses which worker has rank 0."""
    ring = sorted({*workers, incarnation})
    return (ring.index(incarnation) - dice) % len(ring)
