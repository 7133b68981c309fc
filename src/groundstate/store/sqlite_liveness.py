"""Shows which workers are alive by operating-system locks on files beside the SQLite database; a lock ends with the process that holds it.

Never touches the database, and never waits for a lock. `ByteLiveness` (Linux) locks one byte per worker incarnation in one file;
`FlockLiveness` locks a file per incarnation, where the system has no byte locks that belong to an open file.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from groundstate.values.after_fork import forsake_in_child, refuse_child
from groundstate.values.errors import StoreRefusedError

_FLOCK = "@hhqqi0q"  # struct flock: type, whence, start, len, pid, padded as C pads it

BYTE_LOCKS = hasattr(fcntl, "F_OFD_SETLK")


def file_lives(database: str) -> ByteLiveness | FlockLiveness:
    """Return liveness locks beside the database file, of the better kind that this system has. database: its path, with links resolved."""
    return ByteLiveness(database) if BYTE_LOCKS else FlockLiveness(database)


class ByteLiveness:
    """Locks the byte of each worker incarnation's number in `<database>-groundstate-lock`, with a lock that belongs to the open file.

    POSIX's own record locks would not do: closing any descriptor of the file anywhere in the process drops them.
    """

    def __init__(self, database: str) -> None:
        self.path = f"{database}-groundstate-lock"
        self.server: str | None = None  # SQLite has no server
        self.server_start: str | None = None
        self._file: int | None = None
        self._incarnation: int | None = None
        self._adopted: set[int] = set()
        self._pid = os.getpid()
        forsake_in_child(self)

    def take(self, worker: int) -> None:
        """Begin a worker incarnation by locking its byte. Raises StoreRefusedError if its number is taken, or the file cannot be locked."""
        refuse_child(self._pid)
        self.release()
        self._file = _opened(self.path)
        if not self._set(fcntl.F_WRLCK, worker):
            self.release()
            raise StoreRefusedError(_taken(worker))
        self._incarnation = worker
        if not self.held():
            self.release()
            message = f"{self.path} was removed while it was being locked: leave it there while workers run, and start again"
            raise StoreRefusedError(message)

    def held(self, *, ask: bool = False) -> bool:  # noqa: ARG002  # the file is checked each time
        """Return False once the lock file was removed or replaced: other workers would lock another file then, and nothing would exclude
        them.
        """
        refuse_child(self._pid)
        return self._incarnation is not None and self._file is not None and _same(self._file, self.path)

    @contextmanager
    def adopting(self, worker: int) -> Iterator[bool]:
        """Take the lock of a dead worker incarnation while the block runs, and yield whether it was free. A worker without its own lock
        adopts none, and no worker adopts itself.
        """
        if not self.held() or worker == self._incarnation or worker in self._adopted or not self._set(fcntl.F_WRLCK, worker):
            yield False
            return
        self._adopted.add(worker)
        try:
            yield True
        finally:
            self._adopted.discard(worker)
            if self._file is not None:
                self._set(fcntl.F_UNLCK, worker)

    def alive(self, workers: Sequence[int]) -> dict[int, bool | None]:
        """Return for each worker incarnation whether its byte is locked. Takes no lock, and needs none of its own."""
        refuse_child(self._pid)
        try:
            asking = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return dict.fromkeys(workers, False)
        try:
            # The query goes through a newly opened file: through ours, a lock of our own would not conflict, and so look free.
            return {worker: _locked(asking, worker) for worker in workers}
        finally:
            os.close(asking)

    def take_slots(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> set[int]:
        """Lock the bytes of free slots through the same open file, as many as are wanted, and return their numbers."""
        return _first_free(wanted, lambda number: self._set(fcntl.F_WRLCK, number)) if self.held() else set()

    def give_slots_back(self, slots: Collection[int]) -> None:
        """Unlock the bytes of these slots."""
        refuse_child(self._pid)
        for number in slots:
            self._set(fcntl.F_UNLCK, number)

    def release(self) -> None:
        """End the incarnation by closing the file; a forked child does nothing. The file stays, since removing it would let two workers
        take one lock.
        """
        if self._pid != os.getpid():
            return
        self._incarnation = None
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def forsake(self) -> None:
        """Close the inherited file, in a forked child. The parent keeps the lock, since the file is still open in the parent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _set(self, kind: int, worker: int) -> bool:
        if self._file is None:
            return False
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, worker, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise StoreRefusedError(_no_locks(self.path, error)) from error
        return True


class FlockLiveness:
    """Locks a file of its own for each worker incarnation, `<database>-groundstate-lock-<number>`, where the system has no byte locks of an
    open file.

    To see who is alive it takes a shared lock for an instant, since such a lock cannot be queried; an adopter that meets it tries again
    later.
    """

    def __init__(self, database: str) -> None:
        self.path = f"{database}-groundstate-lock"
        self.server: str | None = None  # SQLite has no server
        self.server_start: str | None = None
        self._files: dict[int, int] = {}
        self._incarnation: int | None = None
        self._pid = os.getpid()
        forsake_in_child(self)

    def take(self, worker: int) -> None:
        """Begin a worker incarnation by locking its file. Raises StoreRefusedError if its number is taken, or the file cannot be locked."""
        refuse_child(self._pid)
        self.release()
        if not self._lock(worker):
            raise StoreRefusedError(_taken(worker))
        self._incarnation = worker

    def held(self, *, ask: bool = False) -> bool:  # noqa: ARG002  # the file is checked each time
        """Return False once the lock file of this incarnation was removed or replaced."""
        refuse_child(self._pid)
        return self._incarnation is not None and _same(self._files[self._incarnation], self._path(self._incarnation))

    @contextmanager
    def adopting(self, worker: int) -> Iterator[bool]:
        """Take the lock of a dead worker incarnation while the block runs, and yield whether it was free. A worker without its own lock
        adopts none, and no worker adopts itself.
        """
        if not self.held() or worker in self._files or not self._lock(worker):
            yield False
            return
        try:
            yield True
        finally:
            self._unlock(worker)

    def alive(self, workers: Sequence[int]) -> dict[int, bool | None]:
        """Return for each worker incarnation whether its file is locked. Needs no lock of its own."""
        refuse_child(self._pid)
        return {worker: worker in self._files or self._taken(worker) for worker in workers}

    def take_slots(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> set[int]:
        """Lock a file for each free slot, as many as are wanted, and return their numbers."""
        return _first_free(wanted, self._lock) if self.held() else set()

    def give_slots_back(self, slots: Collection[int]) -> None:
        """Free these slots by removing their files."""
        refuse_child(self._pid)
        for number in slots:
            self._unlock(number)

    def release(self) -> None:
        """End the incarnation: remove its file and those of its slots. A forked child does nothing."""
        if self._pid != os.getpid() or self._incarnation is None:
            return
        self._incarnation = None
        for number in list(self._files):
            self._unlock(number)

    def forsake(self) -> None:
        """Close the inherited files, in a forked child. The parent keeps the locks, since the files are still open in the parent."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _path(self, worker: int) -> str:
        return f"{self.path}-{worker:x}"

    def _lock(self, worker: int) -> bool:
        while True:
            file = _opened(self._path(worker))
            if not self._flocked(file, fcntl.LOCK_EX):
                os.close(file)
                return False
            if _same(file, self._path(worker)):
                self._files[worker] = file
                return True
            os.close(file)  # its former holder has removed it meanwhile: lock the file that exists now

    def _unlock(self, worker: int) -> None:
        file = self._files.pop(worker, None)
        if file is not None:
            if _same(file, self._path(worker)):
                Path(self._path(worker)).unlink()
            os.close(file)

    def _taken(self, worker: int) -> bool:
        try:
            asking = os.open(self._path(worker), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not self._flocked(asking, fcntl.LOCK_SH)
        finally:
            os.close(asking)

    def _flocked(self, file: int, kind: int) -> bool:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise StoreRefusedError(_no_locks(self.path, error)) from error
        return True


def _first_free(wanted: Sequence[tuple[int, Sequence[int]]], lock: Callable[[int], bool]) -> set[int]:
    """Lock numbers of each group until as many as wanted are locked, and return all that were."""
    got: set[int] = set()
    for most, numbers in wanted:
        got.update(islice(filter(lock, numbers), most))
    return got


def _opened(path: str) -> int:
    mode = 0o600
    with suppress(OSError):
        # Every user who may write the database must be able to open the lock file.
        mode = Path(path.rpartition("-groundstate-lock")[0]).stat().st_mode & 0o666
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    except OSError as error:
        message = f"the lock file {path} cannot be opened ({error.strerror}): let this user write to its folder and to the file"
        raise StoreRefusedError(message) from error


def _same(file: int, path: str) -> bool:
    try:
        there = Path(path).stat()
    except OSError:
        return False
    here = os.fstat(file)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _locked(file: int, worker: int) -> bool:
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, worker, 1, 0)
    kind = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))[0]
    return bool(kind != fcntl.F_UNLCK)


def _taken(worker: int) -> str:
    return f"worker {worker:x} is taken: numbers are drawn at random, each for one process, so draw another"


def _no_locks(path: str, error: OSError) -> str:
    return f"the file system of {path} cannot lock files ({error.strerror}): move the database to a local disk that can, or use PostgreSQL"
