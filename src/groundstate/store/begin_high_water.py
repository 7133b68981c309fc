"""Keeps the highest count of begun calls of an SQLite store (a database), in a file outside of the database's folder.

Restoring a snapshot of that folder sets back the database and its witness file together, but not this file. If the count in the database is
lower than the count in this file, a snapshot was restored; other modules compare the counts. A clean shutdown keeps the file. Nothing here
calls fsync.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from groundstate.clock import SYSTEM_CLOCK, Clock
from groundstate.store.network_file_systems import MOUNTINFO, refuse_network_file_system
from groundstate.values.errors import StoreRefusedError

_log = logging.getLogger("groundstate.store")
_SHAPE = struct.Struct("<q8s")  # content of a file: the count, and 8 bytes of a digest, so that other content is not taken for a count
_SUFFIX = ".begins"
# The longest wait for the lock of a file, in seconds. If the lock is not free by then, this count is not written; a later count can still
# be written.
LOCK_WAITS_S = 0.02
FILES_MOST = 1000  # number of files in the folder at which old files of deleted databases are removed
FILES_LEFT = 500  # number of newest files that are never removed


def state_folder(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path | None:
    """Return the folder for files with counts: $GROUNDSTATE_STATE, else $XDG_STATE_HOME/groundstate, else the platform's usual folder in
    the user's home directory.

    Return None where no home directory is known. A relative $XDG_STATE_HOME is ignored, as the XDG Base Directory Specification demands.
    """
    if environment.get("GROUNDSTATE_STATE"):
        return Path(environment["GROUNDSTATE_STATE"]).absolute()
    if Path(environment.get("XDG_STATE_HOME") or "").is_absolute():
        return Path(environment["XDG_STATE_HOME"]) / "groundstate"
    home = Path(environment.get("HOME") or os.path.expanduser("~"))  # noqa: PTH111  # returns '~' if no home is known, where pathlib raises
    if not home.is_absolute():
        return None
    return home / ("Library/Application Support/groundstate" if platform == "darwin" else ".local/state/groundstate")


class HighWaterFile:
    """A HighWaterFile keeps the highest count of begun calls for one database path.

    Each database contains a store id. For each store id that was ever found in the database at this path, there is one file in `folder`.
    folder: created if it is missing; if None, nothing is kept, which is logged once. database: the path of the database, with links
    resolved.
    """

    def __init__(self, folder: Path | None, database: str, *, mountinfo: Path = MOUNTINFO) -> None:
        self.folder = folder
        self._database = os.fsencode(database)
        self._mountinfo = mountinfo
        self._open: dict[str, int] = {}
        self._silent = False
        self._usable: bool | None = None  # whether the folder is on a local file system; None until that was checked

    def highest_count(self, store: str) -> int | None:
        """Return the highest count that was kept for this store id; None if none was kept, or it cannot be read. Never raises."""
        try:
            file = self._open_existing(store) if self._is_folder_usable() else None
            return None if file is None else self._read_count(file, store)
        except OSError as error:
            self._warn_once("read", error)
            return None

    def keep_if_higher(self, store: str, count: int) -> None:
        """Write the count to the store's file if it is higher than the count there, without fsync. Several processes may do so at once.

        Never raises; only the first error is logged.
        """
        try:
            if not self._is_folder_usable():
                return
            file = self._open_existing(store)
            if file is None:
                file = self._create_file(store)
            if _try_to_lock_file(file):
                try:
                    if count > (self._read_count(file, store) or 0):
                        os.pwrite(file, _SHAPE.pack(count, self._digest_of_store(store)[:8]), 0)
                finally:
                    fcntl.flock(file, fcntl.LOCK_UN)
        except OSError as error:
            self._warn_once("written", error)

    def close(self) -> None:
        """Close the open files, but do not delete them."""
        while self._open:
            os.close(self._open.popitem()[1])

    # ---- one file ----------------------------------------------------------------------------------------------------------------
    def _digest_of_store(self, store: str) -> bytes:
        return hashlib.sha256(store.encode(errors="replace") + b"\0" + self._database).digest()

    def _path(self, store: str) -> Path:
        """Return the path of the store's file. The file's name is a hash, and shows neither the store id nor the database's path."""
        return (self.folder or Path()) / f"{self._digest_of_store(store).hex()[:32]}{_SUFFIX}"

    def _open_existing(self, store: str) -> int | None:
        """Return the descriptor of the store's file, and open it if needed; None where the store has no file yet."""
        file = self._open.get(store)
        if file is not None:
            if os.fstat(file).st_nlink:
                return file
            os.close(self._open.pop(store))  # somebody removed the file, so a new one must be opened
        with suppress(FileNotFoundError):
            self._open[store] = os.open(self._path(store), os.O_RDWR | os.O_CLOEXEC)
        return self._open.get(store)

    def _create_file(self, store: str) -> int:
        path = self._path(store)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_old_files(path.parent)
        file = self._open[store] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.pwrite(file, self._database, _SHAPE.size)  # the database's path, with which `_is_database_gone` looks for the database
        return file

    def _read_count(self, file: int, store: str) -> int | None:
        content = os.pread(file, _SHAPE.size, 0)
        if len(content) < _SHAPE.size:
            return None
        count, stamp = _SHAPE.unpack(content)
        return count if stamp == self._digest_of_store(store)[:8] and count > 0 else None

    def _is_folder_usable(self) -> bool:
        """Return whether the folder is on a local file system. If it is not, the first call raises OSError instead of returning False.

        On a network file system, a server that does not answer would delay every call that is begun.
        """
        if self._usable is None:
            self._usable = False
            if self.folder is None:
                raise OSError("no home folder is known")
            try:
                refuse_network_file_system(os.path.realpath(self.folder / "file"), self._mountinfo)
            except StoreRefusedError:
                raise OSError("it lies on a network file system") from None
            self._usable = True
        return self._usable

    def _warn_once(self, what: str, error: OSError) -> None:
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


def _remove_old_files(folder: Path) -> None:
    """Remove old files of databases that no longer exist, once there are FILES_MOST files, since runs of a test suite may leave many.

    The newest files are never removed, since a database may be missing only until its backup is restored.
    """
    files = [file for file in folder.iterdir() if file.name.endswith(_SUFFIX)]
    if len(files) < FILES_MOST:
        return
    with suppress(OSError):  # another process may be removing the same files
        files.sort(key=lambda file: file.stat().st_mtime_ns)
        for file in files[: len(files) - FILES_LEFT]:
            if _is_database_gone(file):
                file.unlink(missing_ok=True)


def _is_database_gone(file: Path) -> bool:
    """Return whether the database to which this file belongs was deleted. If that cannot be checked, the database counts as existing."""
    database = file.read_bytes()[_SHAPE.size :]
    try:
        os.stat(database or b"/")  # noqa: PTH116  # not Path.stat, since the path is bytes
    except (FileNotFoundError, NotADirectoryError):
        return True
    return False


def _try_to_lock_file(file: int, clock: Clock = SYSTEM_CLOCK) -> bool:
    end = clock.monotonic() + LOCK_WAITS_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if clock.monotonic() > end:
                return False
            clock.sleep(0.001)
        else:
            return True
