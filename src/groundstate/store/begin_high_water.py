"""Keeps the high-water mark: the highest count of begun calls seen of a SQLite store at its path, in a file outside of the store's folder.

Putting back a snapshot of that folder takes back the database and its witness file together, but not this file, which a clean shutdown
keeps. What a lower count in the database means is not decided here, and nothing here waits for the disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import struct
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from groundstate.store.network_file_systems import MOUNTINFO, refuse_network
from groundstate.values.errors import StoreRefusedError

_log = logging.getLogger("groundstate.store")
_SHAPE = struct.Struct("<q8s")  # the count and 8 bytes of a digest, so that other content is not taken for a count
_SUFFIX = ".begins"
LOCK_WAITS_S = 0.02  # seconds: the longest wait for the file's lock; then this count is left to the next begin
FILES_MOST = 1000  # from this number of files on, the oldest ones of databases that are gone are removed
FILES_LEFT = 500  # the newest files, which are never removed


def state_folder(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path | None:
    """Return the user's folder for such state: $GROUNDSTATE_STATE, else $XDG_STATE_HOME/groundstate, else the platform's usual folder in
    the home directory.

    Returns None where no home directory is known. A relative $XDG_STATE_HOME is ignored, as the XDG Base Directory Specification demands.
    """
    if environment.get("GROUNDSTATE_STATE"):
        return Path(environment["GROUNDSTATE_STATE"]).absolute()
    if Path(environment.get("XDG_STATE_HOME") or "").is_absolute():
        return Path(environment["XDG_STATE_HOME"]) / "groundstate"
    home = Path(environment.get("HOME") or os.path.expanduser("~"))  # noqa: PTH111  # it leaves '~' as it is where no home is known
    if not home.is_absolute():
        return None
    return home / ("Library/Application Support/groundstate" if platform == "darwin" else ".local/state/groundstate")


class HighWaterFile:
    """Keeps the highest counts for one database file: one file in `folder` for each store id that was met at the database's path.

    folder: created where it is missing; None: nothing is kept, which is logged once. database: its path, with links resolved.
    """

    def __init__(self, folder: Path | None, database: str, *, mountinfo: Path = MOUNTINFO) -> None:
        self.folder = folder
        self._database = os.fsencode(database)
        self._mountinfo = mountinfo
        self._open: dict[str, int] = {}
        self._silent = False
        self._usable: bool | None = None  # whether the folder is on a local file system; None: not checked yet

    def highest(self, store: str) -> int | None:
        """Return the highest count that was kept of this store at this path; None where none was, or it cannot be read. Never raises."""
        try:
            file = self._known(store) if self._is_usable() else None
            return None if file is None else self._count(file, store)
        except OSError as error:
            self._say("read", error)
            return None

    def keep(self, store: str, count: int) -> None:
        """Keep the count if it is higher than the one that is kept; without fsync. Never raises: an error is logged once.

        Several processes may do so at once: a lower count never replaces a higher one.
        """
        try:
            if not self._is_usable():
                return
            file = self._known(store)
            if file is None:
                file = self._made(store)
            if _locked(file):
                try:
                    if count > (self._count(file, store) or 0):
                        os.pwrite(file, _SHAPE.pack(count, self._digest(store)[:8]), 0)
                finally:
                    fcntl.flock(file, fcntl.LOCK_UN)
        except OSError as error:
            self._say("written", error)

    def close(self) -> None:
        """Close the files, and leave them on the disk."""
        while self._open:
            os.close(self._open.popitem()[1])

    # ---- one file ----------------------------------------------------------------------------------------------------------------
    def _digest(self, store: str) -> bytes:
        return hashlib.sha256(store.encode(errors="replace") + b"\0" + self._database).digest()

    def _path(self, store: str) -> Path:
        """Return the path of the store's file. Its name shows neither the store id nor the database's path."""
        return (self.folder or Path()) / f"{self._digest(store).hex()[:32]}{_SUFFIX}"

    def _known(self, store: str) -> int | None:
        """Return the open file of the store; None where there is no such file yet."""
        file = self._open.get(store)
        if file is not None:
            if os.fstat(file).st_nlink:
                return file
            os.close(self._open.pop(store))  # the file was removed
        with suppress(FileNotFoundError):
            self._open[store] = os.open(self._path(store), os.O_RDWR | os.O_CLOEXEC)
        return self._open.get(store)

    def _made(self, store: str) -> int:
        path = self._path(store)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_old(path.parent)
        file = self._open[store] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.pwrite(file, self._database, _SHAPE.size)  # by this path, `_is_gone` checks whether the database still exists
        return file

    def _count(self, file: int, store: str) -> int | None:
        content = os.pread(file, _SHAPE.size, 0)
        if len(content) < _SHAPE.size:
            return None
        count, stamp = _SHAPE.unpack(content)
        return count if stamp == self._digest(store)[:8] and count > 0 else None

    def _is_usable(self) -> bool:
        """Return whether the folder is on a local file system, checked once; raise OSError if the check finds that it is not. A network
        server that does not answer would keep calls from being begun.
        """
        if self._usable is None:
            self._usable = False
            if self.folder is None:
                raise OSError("no home folder is known")
            try:
                refuse_network(os.path.realpath(self.folder / "file"), self._mountinfo)
            except StoreRefusedError:
                raise OSError("it lies on a network file system") from None
            self._usable = True
        return self._usable

    def _say(self, what: str, error: OSError) -> None:
        if not self._silent:
            self._silent = True
            _log.warning(
                "the count of begun calls cannot be %s in %s (%s): a snapshot of the database's folder that is put back may go unnoticed."
                " Give a folder that this user can write, on a local disk: $GROUNDSTATE_STATE, or Store(..., state=...)",
                what,
                self.folder,
                error.strerror or error,
                extra={"event": "high_water_failed", "folder": str(self.folder)},
            )


def _remove_old(folder: Path) -> None:
    """Remove the oldest files of databases that are gone, once there are very many files (each run of a test suite may make some).

    The newest files are never removed: a database is also gone for a while just before its backup is put back.
    """
    files = [file for file in folder.iterdir() if file.name.endswith(_SUFFIX)]
    if len(files) < FILES_MOST:
        return
    with suppress(OSError):  # another process may be removing the same files
        files.sort(key=lambda file: file.stat().st_mtime_ns)
        for file in files[: len(files) - FILES_LEFT]:
            if _is_gone(file):
                file.unlink(missing_ok=True)


def _is_gone(file: Path) -> bool:
    """Return whether the database of this file does not exist at its path any more. One that cannot be checked counts as existing."""
    database = file.read_bytes()[_SHAPE.size :]
    try:
        os.stat(database or b"/")  # noqa: PTH116  # the path is bytes
    except (FileNotFoundError, NotADirectoryError):
        return True
    return False


def _locked(file: int) -> bool:
    end = time.monotonic() + LOCK_WAITS_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.001)
        else:
            return True
