"""Refuses SQLite databases on network file systems, where a file lock does not stop other machines. It reads the kernel's mount table."""

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
    """A Mount is one line of the kernel's mount table: the mount point, and the type of file system."""

    point: str
    type: str


def read_mounts(table: Path = MOUNTINFO) -> list[Mount]:
    """Return the mounts that this process sees, the latest last; an empty list where the system has no mount table (macOS)."""
    try:
        lines = table.read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        place, separator, kind = line.partition(" - ")
        words = place.split()
        if separator and len(words) > 4 and kind:
            found.append(Mount(_unescape(words[4]), kind.split()[0]))
    return found


def refuse_network_file_system(path: str, table: Path = MOUNTINFO) -> None:
    """Raise StoreRefusedError if the file lies on a network file system, or is mounted as a single file, without its folder.

    path: the path of the file, with links resolved; the file need not exist.
    """
    holding = [mount for mount in read_mounts(table) if mount.point == path or path.startswith(mount.point.rstrip("/") + "/")]
    if not holding:
        return
    # The file lies on the mount with the longest mount point; of two mounts on one point the later hides the earlier.
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


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
