"""A disk that can be full: a small tmpfs where rights allow, else a limit on the size of the workers' files. Nothing here is judged.

The tmpfs is mounted in a mount namespace of our own, so that it is gone with the last of our processes, however that ends.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

CLONE_NEWNS, MS_REC, MS_PRIVATE, MNT_DETACH = 0x20000, 0x4000, 0x40000, 2
LEAST_FILE = 4096  # bytes of a file that still fit under the limit
BALLAST = "ballast"  # the file that takes what room there is
LEFT_FREE = (0, 4096, 65536)  # bytes that a full disk still has: one commit may fit, and the next does not


class Tmpfs:
    """A folder of `size_mb` that a ballast fills."""

    name = "a tmpfs"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / BALLAST

    def fill(self, left: int) -> None:
        """No room for more than `left` bytes."""
        with self._ballast.open("ab") as ballast:
            free = os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize - left
            while free > 4096:
                with suppress(OSError):  # somebody else was quicker
                    os.posix_fallocate(ballast.fileno(), ballast.tell(), free)
                    return
                free //= 2

    def free(self) -> None:
        """Room again."""
        self._ballast.unlink(missing_ok=True)

    def limit(self, workers: Iterable[int]) -> None:
        """Nothing to be done for one worker."""


class FileLimit:
    """RLIMIT_FSIZE of each worker, by prlimit: a write past it fails, since Python ignores SIGXFSZ."""

    name = "RLIMIT_FSIZE"

    def __init__(self) -> None:
        self._full = False

    def fill(self, left: int) -> None:  # noqa: ARG002  # the limit is on each file, not on what they take together
        """From now on `limit` limits."""
        self._full = True

    def free(self) -> None:
        """From now on `limit` lifts."""
        self._full = False

    def limit(self, workers: Iterable[int]) -> None:
        """As it is now, for these processes."""
        for pid in workers:
            with suppress(ProcessLookupError):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (LEAST_FILE if self._full else hard, hard))


Disk = Tmpfs | FileLimit


def disk_in(folder: Path, size_mb: int, *, by_limit: bool) -> Disk | None:
    """A disk that can be full, mounted at `folder` where that is possible; None where neither way is open to us."""
    if _mounted(folder, size_mb):
        return Tmpfs(folder)
    return FileLimit() if by_limit and hasattr(resource, "prlimit") else None


def _mounted(folder: Path, size_mb: int) -> bool:
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    system = ctypes.CDLL(None, use_errno=True)
    return bool(
        system.unshare(CLONE_NEWNS) == 0
        and system.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
        and system.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size_mb}m,mode=0755".encode()) == 0
    )


def unmount(folder: Path) -> None:
    """Takes the tmpfs away from `folder`, if one is mounted there; what still uses it keeps it until it ends."""
    if folder.is_mount():
        ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(folder), MNT_DETACH)
