"""The real PgBouncer, where its program is there: a process of its own before one server, in the mode that a test wants."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.patience import HANG_S

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


def _version() -> tuple[int, ...]:
    if PROGRAM is None:
        return ()
    said = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(number) for number in said.split()[1].split("."))


# From 1.21 on it can carry prepared statements from one session to another.
KINDS = ["pgbouncer-transaction", "pgbouncer-session"] if PROGRAM else []
KINDS += ["pgbouncer-transaction-100"] if _version() >= (1, 21) else []


@contextmanager
def bouncing(port: int, kind: str) -> Iterator[int]:
    """PgBouncer before 127.0.0.1:port, for any database on it; its port. kind: one of KINDS."""
    mode, _, statements = kind.removeprefix("pgbouncer-").partition("-")
    with tempfile.TemporaryDirectory(prefix="groundstate-pgbouncer-") as folder:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            own = probe.getsockname()[1]
        lines = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(own),
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": mode,
            "default_pool_size": "5",
            "server_round_robin": "1",
            **({"max_prepared_statements": statements} if statements else {}),
        }
        file = Path(folder) / "pgbouncer.ini"
        said = "\n".join(f"{name} = {value}" for name, value in lines.items())
        file.write_text(f"[databases]\n* = host=127.0.0.1 port={port} user=postgres\n[pgbouncer]\n{said}\n")
        user = _account()
        if user is not None:
            os.chown(folder, user, -1)
            os.chown(file, user, -1)
        assert PROGRAM is not None
        process = subprocess.Popen([PROGRAM, "-q", str(file)], user=user)
        try:
            _wait_for(own, process)
            yield own
        finally:
            process.kill()
            process.wait()


def _account() -> int | None:
    """PgBouncer refuses to run as root."""
    return next(one.pw_uid for one in pwd.getpwall() if one.pw_name == "nobody") if os.geteuid() == 0 else None


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + HANG_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), HANG_S).close()
        except OSError:
            assert process.poll() is None, "PgBouncer ended instead of starting"
            assert time.monotonic() < end, "PgBouncer does not answer"
            time.sleep(0.01)
        else:
            return
