"""The witness: what each life remembers of its begins, in a file of 16 bytes outside of the database. Never decides what it means that the
database remembers less, and never waits for the disk.
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
    """One file a life in `folder`, which is made where it is missing.

    database: the database's name, which begins each file's name. Two databases of one name need a folder each, or each takes the other's
    lives for lost ones.
    """

    def __init__(self, folder: str, database: str) -> None:
        self.folder = Path(folder)
        self.prefix = f"{quote(database, safe='')}-groundstate-witness-"
        self._open: dict[int, int] = {}
        self._silent = False

    def write(self, life: int, count: int) -> None:
        """Remembers the count; no fsync. Never raises: what goes wrong is said once in the log."""
        try:
            if life not in self._open:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._open[life] = os.open(self._path(life), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._open[life], _SHAPE.pack(life, count), 0)
        except OSError as error:
            self._say("written", error)

    def read(self) -> dict[int, int]:
        """The count of each life that has a witness here. A file that is cut short tells nothing, and is left out."""
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

    def erase(self, life: int) -> None:
        """Forgets a life. Does nothing where it has no witness. Never raises: what goes wrong is said once in the log."""
        descriptor = self._open.pop(life, None)
        if descriptor is not None:
            os.close(descriptor)
        try:
            self._path(life).unlink(missing_ok=True)
        except OSError as error:
            self._say("erased", error)

    def place(self, life: int) -> str:
        """The path of this life's file."""
        return str(self._path(life))

    def close(self) -> None:
        """Closes the files, and leaves them where they are."""
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

    def _path(self, life: int) -> Path:
        return self.folder / f"{self.prefix}{life:x}"

    def _counted(self, path: Path) -> tuple[int, int] | None:
        if not path.name.startswith(self.prefix) or not path.is_file():
            return None
        with suppress(FileNotFoundError, ValueError):
            with path.open("rb") as file:
                content = file.read(_SHAPE.size + 1)
            if len(content) == _SHAPE.size:
                life, count = _SHAPE.unpack(content)
                return (life, count) if life == int(path.name.removeprefix(self.prefix), 16) else None
        return None
