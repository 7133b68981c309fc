"""A ledger: one JSON line an entry, on the disk before `write` returns. Each party of the demo keeps its own; none reads another's.

Never rewrites or removes an entry, but for a last line that a power cut left half written, which was never answered for.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


def read(path: Path) -> list[Entry]:
    """The entries of a ledger, oldest first; none where the file is not there. A half-written last line is no entry."""
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]


class Ledger:
    """A ledger open for writing; it goes on where an earlier life of its process stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._cut_half_a_line()

    def _cut_half_a_line(self) -> None:
        written = self.path.read_bytes()
        whole = written.rfind(b"\n") + 1
        if whole < len(written):
            self._file.truncate(whole)

    def write(self, entry: Entry) -> None:
        """Returns when the entry is on the disk."""
        self._file.write(json.dumps(entry, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Nothing is written after this."""
        self._file.close()
