"""Keeps witness files outside of the database: for each worker incarnation (a worker from taking its lock to losing it) a file of 16 bytes
with the number of calls that the worker has begun.

If the database has a lower number, a backup of the database was restored; other modules compare the numbers. Nothing here calls fsync.
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
    """A FileWitness keeps one witness file (the number of begun calls) for each worker incarnation in `folder`, which it creates if needed.

    database: the database's name, with which each file name begins. Two databases of one name need separate folders: otherwise a file of
    one database would be taken for a file of the other.
    """

    def __init__(self, folder: str, database: str) -> None:
        self.folder = Path(folder)
        self.prefix = f"{quote(database, safe='')}-groundstate-witness-"
        self._open: dict[int, int] = {}
        self._silent = False

    def write(self, worker: int, count: int) -> None:
        """Write how many calls this worker incarnation has begun, without fsync. Never raises; only the first error is logged."""
        try:
            if worker not in self._open:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._open[worker] = os.open(self._path(worker), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._open[worker], _SHAPE.pack(worker, count), 0)
        except OSError as error:
            self._warn_once("written", error)

    def read(self) -> dict[int, int]:
        """Return the number of begun calls in each witness file, by worker incarnation. A truncated file is left out."""
        found: dict[int, int] = {}
        try:
            for path in sorted(self.folder.iterdir()):
                counted = self._read_count(path)
                if counted is not None:
                    found[counted[0]] = counted[1]
        except FileNotFoundError:
            pass
        except OSError as error:
            self._warn_once("read", error)
        return found

    def delete_count_of(self, worker: int) -> None:
        """Delete the witness file of a worker incarnation, if there is one. Never raises; only the first error is logged."""
        descriptor = self._open.pop(worker, None)
        if descriptor is not None:
            os.close(descriptor)
        try:
            self._path(worker).unlink(missing_ok=True)
        except OSError as error:
            self._warn_once("erased", error)

    def path_of(self, worker: int) -> str:
        """Return the path of this worker incarnation's witness file."""
        return str(self._path(worker))

    def close(self) -> None:
        """Close the open witness files, but do not delete them."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _warn_once(self, what: str, error: OSError) -> None:
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

    def _read_count(self, path: Path) -> tuple[int, int] | None:
        if not path.name.startswith(self.prefix) or not path.is_file():
            return None
        with suppress(FileNotFoundError, ValueError):
            with path.open("rb") as file:
                content = file.read(_SHAPE.size + 1)
            if len(content) == _SHAPE.size:
                worker, count = _SHAPE.unpack(content)
                return (worker, count) if worker == int(path.name.removeprefix(self.prefix), 16) else None
        return None
