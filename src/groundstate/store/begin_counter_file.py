"""Keeps witness files: the number of calls that each worker incarnation has begun, in 16 bytes outside of the database.

What a lower count in the database means is not decided here, and nothing here waits for the disk.
"""

from __future__ import annotations

import logging
import os
import struct
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

_log = logging.getLogger("groundstate.store")
_SHAPE = struct.Struct("<qq")


class FileWitness:
    """Keeps one witness file for each worker incarnation in `folder`, which is created where it is missing.

    database: the database's name, with which each file name begins. Two databases of one name need a folder each, or each takes the other's
    workers for lost ones.
    """

    def __init__(self, folder: str, database: str) -> None:
        self.folder = Path(folder)
        self.prefix = f"{quote(database, safe='')}-groundstate-witness-"
        self._open: dict[int, int] = {}
        self._silent = False

    def write(self, worker: int, count: int) -> None:
        """Write the count of begun calls; without fsync. Never raises: an error is logged once."""
        try:
            if worker not in self._open:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._open[worker] = os.open(self._path(worker), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._open[worker], _SHAPE.pack(worker, count), 0)
        except OSError as error:
            self._say("written", error)

    def read(self) -> dict[int, int]:
        """Return the count of each worker incarnation that has a witness file here. A truncated file is left out."""
        found: dict[int, int] = {}
        try:
            for path in sorted(self.folder.iterdir()):
                counted = self._counted(path)
                if counted is not None:
                    found[counted[0]] = counted[1]
        except FileNotFoundError:
            pass
        except OSError as error:
            self._say("read", error)
        return found

    def erase(self, worker: int) -> None:
        """Delete the witness file of a worker incarnation, if there is one. Never raises: an error is logged once."""
        descriptor = self._open.pop(worker, None)
        if descriptor is not None:
            os.close(descriptor)
        try:
            self._path(worker).unlink(missing_ok=True)
        except OSError as error:
            self._say("erased", error)

    def place(self, worker: int) -> str:
        """Return the path of this worker incarnation's witness file."""
        return str(self._path(worker))

    def close(self) -> None:
        """Close the files, and leave them on the disk."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _say(self, what: str, error: OSError) -> None:
        if not self._silent:
            self._silent = True
            _log.warning(
                "no witness of begun calls can be %s in %s (%s): a backup put back may go unnoticed",
                what,
                self.folder,
                error,
                extra={"event": "witness_failed", "folder": str(self.folder)},
            )

    def _path(self, worker: int) -> Path:
        return self.folder / f"{self.prefix}{worker:x}"

    def _counted(self, path: Path) -> tuple[int, int] | None:
        if not path.name.startswith(self.prefix) or not path.is_file():
            return None
        with suppress(FileNotFoundError, ValueError):
            with path.open("rb") as file:
                content = file.read(_SHAPE.size + 1)
            if len(content) == _SHAPE.size:
                worker, count = _SHAPE.unpack(content)
                return (worker, count) if worker == int(path.name.removeprefix(self.prefix), 16) else None
        return None
