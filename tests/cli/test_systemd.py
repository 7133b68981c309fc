"""A real `groundstate run` under a service manager that is a socket of ours: what it says, and when it falls silent."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from groundstate.cli.health import Health
from groundstate.cli.systemd import Notifier
from tests.cli.conftest import Shop
from tests.cli.test_run import statuses, worker
from tests.patience import HANG_S

WATCHDOG_S = 0.8


class Manager:
    """systemd's end of the line."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        self.socket.settimeout(0.1)
        self.heard: list[tuple[float, str]] = []

    def listen(self) -> None:
        """Takes what has come."""
        try:
            while True:
                text = self.socket.recv(4096).decode()
                self.heard += [(time.monotonic(), line) for line in text.splitlines()]
        except TimeoutError:
            pass

    def until(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + HANG_S
        while not what():
            assert time.monotonic() < end, (self.heard, Path("err.txt").read_text())
            self.listen()

    def count(self, line: str) -> int:
        return sum(1 for _, one in self.heard if one == line)

    def said(self, words: str) -> bool:
        return any(words in one for _, one in self.heard)

    def silent_s(self) -> float:
        """Since the watchdog was last answered."""
        return time.monotonic() - max(at for at, one in self.heard if one == "WATCHDOG=1")


@pytest.fixture(params=["path"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@groundstate-test-{os.getpid()}"
    found = Manager(name)
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    yield found
    found.socket.close()


def test_it_says_that_it_is_ready_answers_the_watchdog_and_says_that_it_stops(sqlite_shop: Shop, manager: Manager) -> None:
    with worker(sqlite_shop) as process:
        manager.until(lambda: manager.count("READY=1") == 1 and manager.count("WATCHDOG=1") >= 3)
        assert manager.said(f"STATUS={sqlite_shop.name} is carried out")
        process.send_signal(signal.SIGTERM)
        manager.until(lambda: manager.count("STOPPING=1") == 1)
        assert process.wait(HANG_S) == 0
    order = [one for _, one in manager.heard]
    assert order.index("READY=1") < order.index("WATCHDOG=1") < order.index("STOPPING=1")
    assert manager.said("STATUS=draining")


def test_a_worker_whose_handler_hangs_leaves_the_watchdog_unanswered(sqlite_shop: Shop, manager: Manager) -> None:
    module = Path(f"{sqlite_shop.module}.py")
    module.write_text(module.read_text().replace('    order.status = "packed"', '    __import__("time").sleep(600)'))
    with worker(sqlite_shop) as process:
        manager.until(lambda: manager.count("WATCHDOG=1") >= 2)
        sqlite_shop.order("paid")
        manager.until(lambda: manager.said("has been stuck for") and manager.silent_s() > 2 * WATCHDOG_S)
        # By now systemd would have killed it.
        assert "The stack of its thread:" in Path("err.txt").read_text(), "and the log tells before that where"
        assert process.poll() is None
        process.send_signal(signal.SIGABRT)  # as systemd does then
        assert process.wait(HANG_S) == -signal.SIGABRT
    assert statuses(sqlite_shop) == ["paid"]  # the next one will find it


def test_a_held_worker_is_ready_and_answers_the_watchdog(sqlite_shop: Shop, manager: Manager) -> None:
    with worker(sqlite_shop, "--wait-for-go"):
        manager.until(lambda: manager.count("READY=1") == 1 and manager.count("WATCHDOG=1") >= 4)
    assert manager.said("it waits for a go (--wait-for-go)")


@pytest.mark.parametrize("manager", ["path", "abstract"], indirect=True)
def test_the_watchdog_of_another_process_is_not_answered(sqlite_shop: Shop, manager: Manager) -> None:
    health = Health(sqlite_shop.load())
    environment = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": str(os.getpid() + 1)}
    notifier = Notifier(health, environment)
    notifier.notify_ready()
    manager.until(lambda: manager.count("READY=1") == 1)
    notifier.end()
    manager.listen()
    assert manager.count("WATCHDOG=1") == 0


def test_without_a_service_manager_and_without_its_socket_nothing_is_said(sqlite_shop: Shop, tmp_path: Path) -> None:
    for named in ("", "relative/path", str(tmp_path / "nobody")):
        notifier = Notifier(Health(sqlite_shop.load()), {"NOTIFY_SOCKET": named, "WATCHDOG_USEC": "nonsense"})
        notifier.notify_ready()
        notifier.notify_stopping()
        notifier.end()
