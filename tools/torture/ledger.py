"""The effects at the provider in the order in which they landed, and the requests that it received: it writes both to files.

The judge reads those files.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

BYTES_OF_ONE = 200  # average size of an effect in the file


@dataclass(frozen=True)
class Effect:
    """One effect at the provider.

    at, shown_at: when it landed, and from when a lookup sees it (Unix time).
    late_s: seconds by which its request was sent later than the call's deadline + settle_after (hazard 6: a process that was stopped just
    before it sent); 0 for all others.
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
    """All effects of the provider, written to a file if one is given; only the provider's single thread uses it."""

    def __init__(self, file: Path | None = None) -> None:
        self._file: IO[str] | None = file.open("a", buffering=1) if file is not None else None
        self._count = 0
        self._by_key: dict[str, list[Effect]] = {}

    def close(self) -> None:
        """Close the file; no effect is written after that."""
        if self._file is not None:
            self._file.close()

    def carry_out(self, asked: dict[str, Any], shown_at: float, now: float, *, kept_s: float = 0.0, late_s: float = 0.0) -> Effect:
        """Carry out a call, or return the earlier effect of its key.

        kept_s: seconds for which the provider acts only once under a key; 0 if it ignores keys.
        """
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
            self._file.write(json.dumps(asdict(effect)) + "\n")  # written before the answer goes out
        return effect

    def look_up(self, key: str, now: float) -> Effect | None:
        """Return the first effect under the key once it is visible, or None."""
        return next((effect for effect in self._by_key.get(key, ()) if effect.shown_at <= now), None)


@dataclass
class Reader:
    """Reads a ledger's file as it grows."""

    file: Path
    effects: list[Effect] = field(default_factory=list)  # all effects read so far
    _offset: int = 0

    def has_more_than(self, count: int) -> bool:
        """Return whether at least about `count` effects were written since the last read."""
        return self.file.exists() and self.file.stat().st_size - self._offset >= count * BYTES_OF_ONE

    def read_new(self) -> list[Effect]:
        """Read the effects that were written since the last read; all of them landed before this call."""
        lines, self._offset = _read_lines_after(self.file, self._offset)
        new = [Effect(**json.loads(line)) for line in lines]
        self.effects += new
        return new


@dataclass(frozen=True)
class Request:
    """A call as the provider received it, whatever it did. trick: what the provider did with it."""

    key: str
    call: str
    record: str
    occurrence: str
    pid: int
    sent: float
    trick: str

    @property
    def is_surely_not_done(self) -> bool:
        """Whether the provider answered that it did nothing, so that any worker may call again."""
        return self.trick in ("refused", "busy")


@dataclass
class Requests:
    """Reads the file of requests from the position that `skip` set."""

    file: Path
    _offset: int = 0

    def skip_existing(self) -> None:
        """Ignore all requests received so far."""
        self._offset = self.file.stat().st_size if self.file.exists() else 0

    def read_new_requests(self) -> list[Request]:
        """Return the requests received since `skip`, in their order."""
        return [Request(**json.loads(line)) for line in _read_lines_after(self.file, self._offset)[0]]


def _read_lines_after(file: Path, offset: int) -> tuple[list[bytes], int]:
    """Return the whole lines after the offset, and the offset of their end."""
    if not file.exists():
        return [], offset
    with file.open("rb") as source:
        source.seek(offset)
        written = source.read()
    whole = written[: written.rfind(b"\n") + 1]
    return whole.splitlines(), offset + len(whole)
