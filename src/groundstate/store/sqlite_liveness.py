"""Shows which workers are alive on SQLite, by operating-system locks on files beside the database. A lock ends with its process.

It never uses the database, and never waits for a lock. `ByteLiveness` (Linux) locks one byte of one file for each worker incarnation (a
worker from its start to its end). `FlockLiveness` locks one file for each incarnation, on systems without such byte locks.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from groundstate.values.after_fork import abandon_in_child, refuse_use_in_child
from groundstate.values.errors import StoreRefusedError

_FLOCK = "@hhqqi0q"  # format of C's struct flock: type, whence, start, len, pid, and the padding that C adds

BYTE_LOCKS = hasattr(fcntl, "F_OFD_SETLK")


def make_file_liveness(database: str) -> ByteLiveness | FlockLiveness:
    """Return a ByteLiveness if the system has byte locks that belong to an open file, else a FlockLiveness.

    database: the path of the database file, with links resolved.
    """
    return ByteLiveness(database) if BYTE_LOCKS else FlockLiveness(database)


class ByteLiveness:
    """A ByteLiveness locks the byte of `<database>-groundstate-lock` whose offset is the number of the worker incarnation.

    The lock belongs to the open file. A POSIX record lock would be unsafe: it ends when the process closes any descriptor of the file.
    """

    def __init__(self, database: str) -> None:
        self.path = f"{database}-groundstate-lock"
        self.server: str | None = None  # SQLite has no server
        self.server_start: str | None = None
        self._file: int | None = None
        self._incarnation: int | None = None
        self._adopted: set[int] = set()
        self._pid = os.getpid()
        abandon_in_child(self)

    def take_lock(self, worker: int) -> None:
        """Begin a worker incarnation: lock the byte of its number. Raises StoreRefusedError if the byte is locked, or cannot be locked."""
        refuse_use_in_child(self._pid)
        self.release()
        self._file = _open_lock_file(self.path)
        if not self._set_byte_lock(fcntl.F_WRLCK, worker):
            self.release()
            raise StoreRefusedError(_taken_message(worker))
        self._incarnation = worker
        if not self.has_lock():
            self.release()
            message = f"{self.path} was removed while it was being locked: leave it there while workers run, and start again"
            raise StoreRefusedError(message)

    def has_lock(self, *, ask: bool = False) -> bool:  # noqa: ARG002  # `ask` is unused, since each call checks the file
        """Return whether this worker incarnation has its lock, and the lock file was not removed or replaced.

        After a removal or replacement, other workers would lock another file, and would not notice this worker's lock.
        """
        refuse_use_in_child(self._pid)
        return self._incarnation is not None and self._file is not None and _is_same_file(self._file, self.path)

    @contextmanager
    def try_to_adopt(self, worker: int) -> Iterator[bool]:
        """Try to hold the lock of another worker incarnation while the block runs. Yield True if the lock was free: that worker is dead.
        Yield False if that worker holds it, if this process holds it already, if `worker` is this worker, or if this worker has lost its
        own lock.
        """
        if not self.has_lock() or worker == self._incarnation or worker in self._adopted or not self._set_byte_lock(fcntl.F_WRLCK, worker):
            yield False
            return
        self._adopted.add(worker)
        try:
            yield True
        finally:
            self._adopted.discard(worker)
            if self._file is not None:
                self._set_byte_lock(fcntl.F_UNLCK, worker)

    def alive_by_worker(self, workers: Sequence[int]) -> dict[int, bool | None]:
        """Return for each worker incarnation whether its byte is locked. It takes no lock, and may be called before `take_lock`."""
        refuse_use_in_child(self._pid)
        try:
            asking = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return dict.fromkeys(workers, False)
        try:
            # The file is opened a second time, since on the first descriptor the locks of this process would look free.
            return {worker: _is_byte_locked(asking, worker) for worker in workers}
        finally:
            os.close(asking)

    def take_slots(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> set[int]:
        """Lock the bytes of free slots (numbers that each allow one call), and return the locked numbers.

        wanted: for each group of slots a pair (largest number of slots to lock, numbers to choose from).
        """
        return _lock_first_free(wanted, lambda number: self._set_byte_lock(fcntl.F_WRLCK, number)) if self.has_lock() else set()

    def give_slots_back(self, slots: Collection[int]) -> None:
        """Unlock the bytes of these slots (numbers that each allow one call)."""
        refuse_use_in_child(self._pid)
        for number in slots:
            self._set_byte_lock(fcntl.F_UNLCK, number)

    def release(self) -> None:
        """End the worker incarnation: close the lock file, which frees its locks. In a forked child it does nothing.

        The file is not removed. If it were, two workers could lock the byte of the same number, one in the old file and one in a new file.
        """
        if self._pid != os.getpid():
            return
        self._incarnation = None
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def abandon_after_fork(self) -> None:
        """Close the inherited file in a forked child. The parent keeps its locks, since the file is still open in the parent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _set_byte_lock(self, kind: int, worker: int) -> bool:
        if self._file is None:
            return False
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, worker, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise StoreRefusedError(_no_locks_message(self.path, error)) from error
        return True


class FlockLiveness:
    """A FlockLiveness locks a separate file for each worker incarnation, `<database>-groundstate-lock-<number>`.

    Whether a file is locked cannot be queried, so `alive_by_worker` takes a shared lock for an instant. If another worker calls
    `try_to_adopt` in that instant, the lock does not look free, and that worker must try again later.
    """

    def __init__(self, database: str) -> None:
        self.path = f"{database}-groundstate-lock"
        self.server: str | None = None  # SQLite has no server
        self.server_start: str | None = None
        self._files: dict[int, int] = {}
        self._incarnation: int | None = None
        self._pid = os.getpid()
        abandon_in_child(self)

    def take_lock(self, worker: int) -> None:
        """Begin a worker incarnation: lock the file of its number. Raises StoreRefusedError if the file is locked, or cannot be locked."""
        refuse_use_in_child(self._pid)
        self.release()
        if not self._lock(worker):
            raise StoreRefusedError(_taken_message(worker))
        self._incarnation = worker

    def has_lock(self, *, ask: bool = False) -> bool:  # noqa: ARG002  # `ask` is unused, since each call checks the file
        """Return whether this worker incarnation has its lock, and its lock file was not removed or replaced."""
        refuse_use_in_child(self._pid)
        return self._incarnation is not None and _is_same_file(self._files[self._incarnation], self._path(self._incarnation))

    @contextmanager
    def try_to_adopt(self, worker: int) -> Iterator[bool]:
        """Try to hold the lock of another worker incarnation while the block runs. Yield True if the lock was free: that worker is dead.

        Yield False if this worker has lost its own lock, if `worker` is this worker, or if its lock is taken here already.
        """
        if not self.has_lock() or worker in self._files or not self._lock(worker):
            yield False
            return
        try:
            yield True
        finally:
            self._unlock_and_remove_file(worker)

    def alive_by_worker(self, workers: Sequence[int]) -> dict[int, bool | None]:
        """Return for each worker incarnation whether its file is locked. It may be called before `take_lock`."""
        refuse_use_in_child(self._pid)
        return {worker: worker in self._files or self._is_file_locked(worker) for worker in workers}

    def take_slots(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> set[int]:
        """Lock the files of free slots (numbers that each allow one call), and return the locked numbers.

        wanted: for each group of slots a pair (largest number of slots to lock, numbers to choose from).
        """
        return _lock_first_free(wanted, self._lock) if self.has_lock() else set()

    def give_slots_back(self, slots: Collection[int]) -> None:
        """Free these slots (numbers that each allow one call): remove and close their lock files."""
        refuse_use_in_child(self._pid)
        for number in slots:
            self._unlock_and_remove_file(number)

    def release(self) -> None:
        """End the worker incarnation: remove its lock file and the lock files of its slots. In a forked child it does nothing."""
        if self._pid != os.getpid() or self._incarnation is None:
            return
        self._incarnation = None
        for number in list(self._files):
            self._unlock_and_remove_file(number)

    def abandon_after_fork(self) -> None:
        """Close the inherited files in a forked child. The parent keeps its locks, since the files are still open in the parent."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _path(self, worker: int) -> str:
        return f"{self.path}-{worker:x}"

    def _lock(self, worker: int) -> bool:
        while True:
            file = _open_lock_file(self._path(worker))
            if not self._try_flock(file, fcntl.LOCK_EX):
                os.close(file)
                return False
            if _is_same_file(file, self._path(worker)):
                self._files[worker] = file
                return True
            os.close(file)  # the process that had locked this file has removed it, so lock the new file at this path

    def _unlock_and_remove_file(self, worker: int) -> None:
        file = self._files.pop(worker, None)
        if file is not None:
            if _is_same_file(file, self._path(worker)):
                Path(self._path(worker)).unlink()
            os.close(file)

    def _is_file_locked(self, worker: int) -> bool:
        try:
            asking = os.open(self._path(worker), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not self._try_flock(asking, fcntl.LOCK_SH)
        finally:
            os.close(asking)

    def _try_flock(self, file: int, kind: int) -> bool:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise StoreRefusedError(_no_locks_message(self.path, error)) from error
        return True


def _lock_first_free(wanted: Sequence[tuple[int, Sequence[int]]], lock: Callable[[int], bool]) -> set[int]:
    """Lock numbers that are free, up to the wanted count in each group. Return the numbers that were locked.

    wanted: for each group a pair (largest number of locks, numbers to choose from).
    lock: a function that locks a number if it is free, and returns whether it was free.
    """
    got: set[int] = set()
    for most, numbers in wanted:
        got.update(islice(filter(lock, numbers), most))
    return got


def _open_lock_file(path: str) -> int:
    mode = 0o600
    with suppress(OSError):
        # The lock file gets the permissions of the database, so that every user who may write the database can open the lock file.
        mode = Path(path.rpartition("-groundstate-lock")[0]).stat().st_mode & 0o666
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    except OSError as error:
        message = f"the lock file {path} cannot be opened ({error.strerror}): let this user write to its folder and to the file"
        raise StoreRefusedError(message) from error


def _is_same_file(file: int, path: str) -> bool:
    try:
        there, here = Path(path).stat(), os.fstat(file)
    except OSError:  # the path leads nowhere, or another thread has just released the lock and closed the file
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _is_byte_locked(file: int, worker: int) -> bool:
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, worker, 1, 0)
    kind = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))[0]
    return bool(kind != fcntl.F_UNLCK)


def _taken_message(worker: int) -> str:
    return f"the worker number {worker:x} is in use by another process: numbers are random, so draw another one"


def _no_locks_message(path: str, error: OSError) -> str:
    return f"the file system of {path} cannot lock files ({error.strerror}): move the database to a local disk that can, or use PostgreSQL"
