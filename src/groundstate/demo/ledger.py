"""A ledger: a file with one JSON line for each entry. An entry is on disk before `write` returns. Each party of the demo keeps its own
ledger and reads no other.

An entry is never rewritten or removed. Only a last line that a power cut left half written is removed, since no answer was sent for it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


def read_entries(path: Path) -> list[Entry]:
    """Return the entries of a ledger, oldest first, without a half-written last line; if the file is missing, an empty list."""
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]


class Ledger:
    """A ledger that is opened for appending. Its file may hold entries that an earlier process wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._remove_half_written_line()

    def _remove_half_written_line(self) -> None:
        written = self.path.read_bytes()
        whole = written.rfind(b"\n") + 1
        if whole < len(written):
            self._file.truncate(whole)

    def write(self, entry: Entry) -> None:
        """Append the entry; return when it is on disk."""
        self._file.write(json.dumps(entry, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file. No entry can be written after that."""
        self._file.close()
