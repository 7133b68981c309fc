"""What was done to the outside, in the order in which it landed, and what it was asked to do: the provider writes both to files, the judge
reads those. No verdict.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

BYTES_OF_ONE = 200  # an effect in the file, about


@dataclass(frozen=True)
class Effect:
    """What was done to the outside, once.

    at, shown_at: when, and from when a find sees it. late_s: by how much its request was sent later than the call's deadline +
    settle_after (hazard 6: a process that was stopped just before it sent); 0 for all others.
    """

    id: str
    call: str
    record: str
    occurrence: str
    key: str
    at: float
    shown_at: float
    pid: int
    late_s: float = 0.0


class Ledger:
    """All effects, written to a file where one is given. Used from the provider's one thread.

    kept_s: for so long the outside acts once under a key; 0 where it does not look at keys.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file: IO[str] | None = file.open("a", buffering=1) if file is not None else None
        self._count = 0
        self._by_key: dict[str, list[Effect]] = {}

    def close(self) -> None:
        """Nothing is written any more."""
        if self._file is not None:
            self._file.close()

    def land(self, asked: dict[str, Any], shown_at: float, now: float, *, kept_s: float = 0.0, late_s: float = 0.0) -> Effect:
        """Acts on a call, or, under a key that is still kept, answers with what it did before."""
        before = self._by_key.setdefault(asked["key"], [])
        if kept_s and before and now - before[-1].at < kept_s:
            return before[-1]
        self._count += 1
        effect = Effect(
            id=f"{asked['call']}-{self._count}",
            call=asked["call"],
            record=asked["record"],
            occurrence=asked["occurrence"],
            key=asked["key"],
            at=now,
            shown_at=shown_at,
            pid=asked["pid"],
            late_s=late_s,
        )
        before.append(effect)
        if self._file is not None:
            self._file.write(json.dumps(asdict(effect)) + "\n")  # before the answer goes out
        return effect

    def find(self, key: str, now: float) -> Effect | None:
        """The first effect under a key, once it is shown."""
        return next((effect for effect in self._by_key.get(key, ()) if effect.shown_at <= now), None)


@dataclass
class Reader:
    """Reads a ledger's file as it grows."""

    file: Path
    effects: list[Effect] = field(default_factory=list)  # all that were read
    _offset: int = 0

    def more_than(self, count: int) -> bool:
        """Whether about so many effects were written since the last look."""
        return self.file.exists() and self.file.stat().st_size - self._offset >= count * BYTES_OF_ONE

    def new(self) -> list[Effect]:
        """The effects that were written since the last look, all of which landed before this call."""
        lines, self._offset = _lines_after(self.file, self._offset)
        new = [Effect(**json.loads(line)) for line in lines]
        self.effects += new
        return new


@dataclass(frozen=True)
class Request:
    """A call as the outside heard it, whatever came of it. trick: what the provider did with it."""

    key: str
    call: str
    record: str
    occurrence: str
    pid: int
    sent: float
    trick: str

    @property
    def surely_not_done(self) -> bool:
        """Whether its worker was told so, and may let anybody call again."""
        return self.trick in ("refused", "busy")


@dataclass
class Requests:
    """Reads the file of requests: what was heard since `skip`."""

    file: Path
    _offset: int = 0

    def skip(self) -> None:
        """From now on."""
        self._offset = self.file.stat().st_size if self.file.exists() else 0

    def heard(self) -> list[Request]:
        """Those since then, in the order in which they were heard."""
        return [Request(**json.loads(line)) for line in _lines_after(self.file, self._offset)[0]]


def _lines_after(file: Path, offset: int) -> tuple[list[bytes], int]:
    """Whole lines, and where they end."""
    if not file.exists():
        return [], offset
    with file.open("rb") as source:
        source.seek(offset)
        written = source.read()
    whole = written[: written.rfind(b"\n") + 1]
    return whole.splitlines(), offset + len(whole)
