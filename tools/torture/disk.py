"""A disk that can be full: a small tmpfs if the process has the rights, else a limit on the size of the workers' files.

The tmpfs is mounted in a mount namespace of our own, so that it vanishes with the last of our processes, however that ends.
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
LEAST_FILE = 4096  # bytes that a file can still have under the limit
BALLAST = "ballast"  # name of the file that fills the disk
LEFT_FREE = (0, 4096, 65536)  # bytes that a full disk still has: one commit may fit, and the next does not


class Tmpfs:
    """A tmpfs of `size_mb`, which a ballast file can fill."""

    name = "a tmpfs"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / BALLAST

    def fill(self, left: int) -> None:
        """Fill the disk, except for at most `left` bytes."""
        with self._ballast.open("ab") as ballast:
            free = os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize - left
            while free > 4096:
                with suppress(OSError):  # another process took the room first
                    os.posix_fallocate(ballast.fileno(), ballast.tell(), free)
                    return
                free //= 2

    def free(self) -> None:
        """Remove the ballast file."""
        self._ballast.unlink(missing_ok=True)

    def apply_limit(self, workers: Iterable[int]) -> None:
        """Do nothing, since a full tmpfs affects all workers."""


class FileLimit:
    """A limit on the file size of each worker (RLIMIT_FSIZE, by prlimit); a write past it fails, since Python ignores SIGXFSZ."""

    name = "RLIMIT_FSIZE"

    def __init__(self) -> None:
        self._full = False

    def fill(self, left: int) -> None:  # noqa: ARG002  # the limit is for each file, not for all files together
        """Let `limit` set the limit from now on."""
        self._full = True

    def free(self) -> None:
        """Let `limit` lift the limit from now on."""
        self._full = False

    def apply_limit(self, workers: Iterable[int]) -> None:
        """Set or lift the limit of these worker processes, as the disk is full or not."""
        for pid in workers:
            with suppress(ProcessLookupError):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (LEAST_FILE if self._full else hard, hard))


Disk = Tmpfs | FileLimit


def create_disk(folder: Path, size_mb: int, *, by_limit: bool) -> Disk | None:
    """Return a disk that can be full, mounted at `folder` if possible; return None where neither a tmpfs nor a limit is available."""
    if _mount_tmpfs(folder, size_mb):
        return Tmpfs(folder)
    return FileLimit() if by_limit and hasattr(resource, "prlimit") else None


def _mount_tmpfs(folder: Path, size_mb: int) -> bool:
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    system = ctypes.CDLL(None, use_errno=True)
    return bool(
        system.unshare(CLONE_NEWNS) == 0
        and system.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
        and system.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size_mb}m,mode=0755".encode()) == 0
    )


def unmount_tmpfs(folder: Path) -> None:
    """Unmount the tmpfs at `folder`, if there is one; processes that still use it keep it until they end."""
    if folder.is_mount():
        ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(folder), MNT_DETACH)
