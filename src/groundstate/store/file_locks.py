"""Lives on files: locks of the operating system beside the SQLite database, which die with the process that holds them.

Never touches the database, and never waits for a lock. Two kinds: `ByteLives` locks one byte a life in one file (Linux); `FlockLives`
locks a file a life, where the system cannot lock bytes for an open file.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from groundstate.values.errors import StoreRefused
from groundstate.values.forks import forsake_in_child, refuse_child

_FLOCK = "@hhqqi0q"  # struct flock: type, whence, start, len, pid, padded as C pads it

BYTE_LOCKS = hasattr(fcntl, "F_OFD_SETLK")


def file_lives(database: str) -> ByteLives | FlockLives:
    """Lives beside the database file, of the better kind that this system has. database: its path, with links resolved."""
    return ByteLives(database) if BYTE_LOCKS else FlockLives(database)


class ByteLives:
    """Each life locks the byte of its number in `<database>-groundstate-lock`, with a lock that belongs to the open file.

    POSIX's own record locks would not do: closing any descriptor of the file anywhere in the process drops them.
    """

    def __init__(self, database: str) -> None:
        self.path = f"{database}-groundstate-lock"
        self.server: str | None = None  # there is none
        self.incarnation: str | None = None
        self._file: int | None = None
        self._life: int | None = None
        self._adopted: set[int] = set()
        self._pid = os.getpid()
        forsake_in_child(self)

    def take(self, life: int) -> None:
        """Begins a life. Raises StoreRefused where the number is taken, or the file cannot be locked."""
        refuse_child(self._pid)
        self.release()
        self._file = _opened(self.path)
        if not self._set(fcntl.F_WRLCK, life):
            self.release()
            raise StoreRefused(_taken(life))
        self._life = life
        if not self.held():
            self.release()
            message = f"{self.path} was removed while it was being locked: leave it there while workers run, and start again"
            raise StoreRefused(message)

    def held(self, *, ask: bool = False) -> bool:  # noqa: ARG002  # the file is looked at each time
        """False once the lock file was removed or replaced: others would lock another file then, and nothing would exclude them."""
        refuse_child(self._pid)
        return self._life is not None and self._file is not None and _same(self._file, self.path)

    @contextmanager
    def adopting(self, life: int) -> Iterator[bool]:
        """Takes the lock of a dead life while the block runs; yields whether it got it. Nobody adopts who is not alive, nor himself."""
        if not self.held() or life == self._life or life in self._adopted or not self._set(fcntl.F_WRLCK, life):
            yield False
            return
        self._adopted.add(life)
        try:
            yield True
        finally:
            self._adopted.discard(life)
            if self._file is not None:
                self._set(fcntl.F_UNLCK, life)

    def alive(self, lives: Sequence[int]) -> dict[int, bool | None]:
        """Whether each life's byte is locked. Works without a life of one's own, and takes nothing."""
        refuse_child(self._pid)
        try:
            asking = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return dict.fromkeys(lives, False)
        try:
            # Asked through a file opened anew: a lock of one's own does not stand in one's own way, and would look free.
            return {life: _locked(asking, life) for life in lives}
        finally:
            os.close(asking)

    def take_slots(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> set[int]:
        """The bytes of these numbers, by the same open file."""
        return _first_free(wanted, lambda number: self._set(fcntl.F_WRLCK, number)) if self.held() else set()

    def give_slots_back(self, slots: Collection[int]) -> None:
        """Unlocks their bytes."""
        refuse_child(self._pid)
        for number in slots:
            self._set(fcntl.F_UNLCK, number)

    def release(self) -> None:
        """Ends the life; in a forked child it does nothing. The file stays: removing it would let two take one lock."""
        if self._pid != os.getpid():
            return
        self._life = None
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def forsake(self) -> None:
        """In a forked child: closes the inherited file. The parent keeps the lock, since the open file is still the parent's."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _set(self, kind: int, life: int) -> bool:
        if self._file is None:
            return False
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, life, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise StoreRefused(_no_locks(self.path, error)) from error
        return True


class FlockLives:
    """Each life locks a file of its own, `<database>-groundstate-lock-<life>`, as a whole. For systems without byte locks of an open file.

    Asking who is alive takes a shared lock for an instant, since such a lock cannot be asked for otherwise; an adopter that meets it comes
    again later.
    """

    def __init__(self, database: str) -> None:
        self.path = f"{database}-groundstate-lock"
        self.server: str | None = None  # there is none
        self.incarnation: str | None = None
        self._files: dict[int, int] = {}
        self._life: int | None = None
        self._pid = os.getpid()
        forsake_in_child(self)

    def take(self, life: int) -> None:
        """Begins a life. Raises StoreRefused where the number is taken, or the file cannot be locked."""
        refuse_child(self._pid)
        self.release()
        if not self._lock(life):
            raise StoreRefused(_taken(life))
        self._life = life

    def held(self, *, ask: bool = False) -> bool:  # noqa: ARG002  # the file is looked at each time
        """False once the lock file was removed or replaced."""
        refuse_child(self._pid)
        return self._life is not None and _same(self._files[self._life], self._path(self._life))

    @contextmanager
    def adopting(self, life: int) -> Iterator[bool]:
        """Takes the lock of a dead life while the block runs; yields whether it got it. Nobody adopts who is not alive, nor himself."""
        if not self.held() or life in self._files or not self._lock(life):
            yield False
            return
        try:
            yield True
        finally:
            self._unlock(life)

    def alive(self, lives: Sequence[int]) -> dict[int, bool | None]:
        """Whether each life's file is locked. Works without a life of one's own."""
        refuse_child(self._pid)
        return {life: life in self._files or self._taken(life) for life in lives}

    def take_slots(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> set[int]:
        """A file for each of these numbers."""
        return _first_free(wanted, self._lock) if self.held() else set()

    def give_slots_back(self, slots: Collection[int]) -> None:
        """Removes their files."""
        refuse_child(self._pid)
        for number in slots:
            self._unlock(number)

    def release(self) -> None:
        """Ends the life and removes its file, and those of its slots; in a forked child it does nothing."""
        if self._pid != os.getpid() or self._life is None:
            return
        self._life = None
        for number in list(self._files):
            self._unlock(number)

    def forsake(self) -> None:
        """In a forked child: closes the inherited files. The parent keeps the locks, since the open files are still the parent's."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _path(self, life: int) -> str:
        return f"{self.path}-{life:x}"

    def _lock(self, life: int) -> bool:
        while True:
            file = _opened(self._path(life))
            if not self._flocked(file, fcntl.LOCK_EX):
                os.close(file)
                return False
            if _same(file, self._path(life)):
                self._files[life] = file
                return True
            os.close(file)  # who held it before has removed it meanwhile: lock the one that is there now

    def _unlock(self, life: int) -> None:
        file = self._files.pop(life, None)
        if file is not None:
            if _same(file, self._path(life)):
                Path(self._path(life)).unlink()
            os.close(file)

    def _taken(self, life: int) -> bool:
        try:
            asking = os.open(self._path(life), os.O_RDWR | os.O_CLOEXEC)
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
            raise StoreRefused(_no_locks(self.path, error)) from error
        return True


def _first_free(wanted: Sequence[tuple[int, Sequence[int]]], lock: Callable[[int], bool]) -> set[int]:
    """Of each group so many of its numbers as are wanted and can be locked."""
    got: set[int] = set()
    for most, numbers in wanted:
        got.update(islice(filter(lock, numbers), most))
    return got


def _opened(path: str) -> int:
    mode = 0o600
    with suppress(OSError):
        # Whoever may write the database must be able to lock beside it.
        mode = Path(path.rpartition("-groundstate-lock")[0]).stat().st_mode & 0o666
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    except OSError as error:
        message = f"the lock file {path} cannot be opened ({error.strerror}): let this user write to its folder and to the file"
        raise StoreRefused(message) from error


def _same(file: int, path: str) -> bool:
    try:
        there = Path(path).stat()
    except OSError:
        return False
    here = os.fstat(file)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _locked(file: int, life: int) -> bool:
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, life, 1, 0)
    kind = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))[0]
    return bool(kind != fcntl.F_UNLCK)


def _taken(life: int) -> str:
    return f"life {life:x} is taken: a life is drawn by chance and is one process's alone, so draw another"


def _no_locks(path: str, error: OSError) -> str:
    return f"the file system of {path} cannot lock files ({error.strerror}): move the database to a local disk that can, or use PostgreSQL"
