"""Finds the file system of a SQLite database, and refuses one whose locks do not exclude other machines. Reads one table of the kernel, and
nothing on the disk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from groundstate.values.errors import StoreRefusedError

MOUNTINFO = Path("/proc/self/mountinfo")

_KERNEL = ("9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "smb3", "smbfs")
_FUSE = ("ceph", "curlftpfs", "davfs", "gcsfuse", "glusterfs", "goofys", "juicefs", "mfs", "rclone", "s3fs", "sshfs")
NETWORKS = frozenset(_KERNEL) | {f"fuse.{name}" for name in _FUSE}


@dataclass(frozen=True)
class Mount:
    """Represents one line of the kernel's mount table: the mount point, and the type of file system."""

    point: str
    type: str


def mounts(table: Path = MOUNTINFO) -> list[Mount]:
    """Return the mounts of this process, the latest last; none where the system has no such table (macOS)."""
    try:
        lines = table.read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        place, separator, kind = line.partition(" - ")
        words = place.split()
        if separator and len(words) > 4 and kind:
            found.append(Mount(_plain(words[4]), kind.split()[0]))
    return found


def refuse_network(path: str, table: Path = MOUNTINFO) -> None:
    """Raise StoreRefusedError if the file lies on a network file system, or is mounted by itself, without the folder it lies in.

    path: with links resolved; the file itself need not exist.
    """
    holding = [mount for mount in mounts(table) if mount.point == path or path.startswith(mount.point.rstrip("/") + "/")]
    if not holding:
        return
    # The longest mount point is the nearest one; of two mounts on the same point the later hides the earlier.
    nearest = max(enumerate(holding), key=lambda numbered: (len(numbered[1].point), numbered[0]))[1]
    if nearest.type in NETWORKS:
        message = (
            f"{path} lies on a network file system ({nearest.type}, mounted at {nearest.point}), where SQLite's locks and ours do not"
            " exclude other machines: move the database to a local disk, or use PostgreSQL"
        )
        raise StoreRefusedError(message)
    if nearest.point == path:
        message = (
            f"{path} is mounted as a single file, so that its write-ahead log and our lock would lie in a folder that others do not see:"
            f" mount the folder {Path(path).parent} instead"
        )
        raise StoreRefusedError(message)


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
