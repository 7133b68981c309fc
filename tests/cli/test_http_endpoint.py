"""Probes over HTTP: of a real `groundstate run`, and of an app in this process whose workers are made to hang."""

from __future__ import annotations

import json
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from groundstate import App
from groundstate.cli import http_endpoint
from groundstate.cli.common import CommandFailed
from groundstate.cli.health import Health, StuckLog
from groundstate.cli.http_endpoint import Endpoint
from tests.cli.conftest import Shop
from tests.cli.test_run import said, slow, until, worker
from tests.patience import HANG_S
from tests.telemetry.conftest import Shop as Watched
from tests.telemetry.conftest import ended, made

STUCK_S = 3.0  # a busy machine may take a second to come round


def get(address: str, page: str, method: str = "GET") -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://{address}{page}", method=method), timeout=HANG_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def content(address: str, page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(get(address, page)[1])
    return found


def test_a_worker_is_alive_and_ready_until_a_signal_comes_and_then_ready_no_more(sqlite_shop: Shop) -> None:
    slow(sqlite_shop)
    sqlite_shop.order("placed")
    with worker(sqlite_shop, "--http", "127.0.0.1:0", "--drain", "600") as process:
        until(lambda: "is carried out by process" in said("err.txt"))
        found = re.search(r"http://(\S+) serves", said("err.txt"))
        assert found is not None
        address = found[1]
        assert get(address, "/livez") == (200, '{"alive": true, "stuck": []}\n')
        assert get(address, "/readyz")[0] == 200
        until(lambda: sqlite_shop.report()["counts"]["in the air"] == 1)
        status, page = get(address, "/metrics")
        names = {family.name for family in text_string_to_metric_families(page)}
        assert (status, {"groundstate_worker_up", "groundstate_calls_in_the_air"} <= names) == (200, True)
        process.send_signal(signal.SIGTERM)
        until(lambda: get(address, "/readyz")[0] == 503)
        assert content(address, "/readyz")["stores"][0]["why"] == "the process drains"
        assert get(address, "/livez")[0] == 200  # it drains, and must not be killed for that
        assert process.poll() is None


class Served:
    """An endpoint in this process, for an app that the test starts."""

    def __init__(self, app: App, stuck_s: float) -> None:
        self.health = Health(app)
        self.endpoint = Endpoint(app, self.health, "127.0.0.1:0", stuck_s)
        self.address = self.endpoint.address

    def stuck(self) -> list[str]:
        return list(content(self.address, "/livez")["stuck"])

    def unready(self) -> list[str]:
        return [one["why"] for one in content(self.address, "/readyz")["stores"] if not one["ready"]]


@pytest.fixture
def watched(sqlite_url: str) -> Iterator[Watched]:
    found = made(sqlite_url)
    yield found
    ended(found)


@pytest.fixture
def served(watched: Watched) -> Iterator[Served]:
    """Nobody is taken for stuck, however late a busy machine lets him turn."""
    found = Served(watched.app, stuck_s=3600)
    yield found
    found.endpoint.close()


@pytest.fixture
def impatient(watched: Watched) -> Iterator[Served]:
    """Who has not turned for so long is stuck."""
    found = Served(watched.app, stuck_s=STUCK_S)
    yield found
    found.endpoint.close()


def test_while_it_comes_up_it_is_alive_and_not_ready(served: Served) -> None:
    assert served.stuck() == []
    assert served.unready() == ["the process comes up"]


def test_a_handler_that_hangs_is_told_by_both_and_by_the_log_once_each_time(
    watched: Watched, impatient: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served = impatient
    log = StuckLog(watched.app, served.health, STUCK_S)
    caplog.set_level("INFO", "groundstate")
    watched.app.start()
    served.health.started = True
    until(lambda: served.unready() == [])
    log.log_changes()
    watched.order("mailed", "block")
    assert watched.handled.wait(HANG_S)
    until(lambda: served.stuck() != [])
    for told in (served.stuck(), served.unready()):
        assert re.fullmatch(r"the worker of sqlite:///\S+ has been stuck for \d+ s", told[0])
    for times in (1, 2):
        log.log_changes()
        log.log_changes()
        events = [vars(one)["event"] for one in caplog.records]
        assert [event for event in events if event in ("worker_stuck", "worker_comes_round")] == [
            "worker_stuck",
            "worker_comes_round",
            "worker_stuck",
        ][: 2 * times - 1]
        if times == 1:
            watched.gate.set()
            until(lambda: served.stuck() == [])
            log.log_changes()
            watched.gate.clear()
            watched.handled.clear()
            watched.order("mailed", "block")
            assert watched.handled.wait(HANG_S)
            until(lambda: served.stuck() != [])
    assert "gate.wait" in caplog.text
    assert re.search(r"a handler of \w+ runs on \d+, and waits for something\. The stack of its thread", caplog.text)
    served.health.draining = True
    watched.gate.set()


def test_an_async_call_that_blocks_its_loop_is_told_by_both(watched: Watched, impatient: Served) -> None:
    served = impatient
    watched.bank = "block"
    watched.app.start()
    served.health.started = True
    watched.order()
    until(lambda: any("the loop of async calls" in one for one in served.stuck()))
    until(lambda: any("the loop of async calls" in one for one in served.unready()))
    watched.gate.set()
    until(lambda: served.stuck() == [])


def test_a_life_whose_lock_is_lost_is_alive_and_not_ready(watched: Watched, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.app.start()
    served.health.started = True
    until(lambda: served.unready() == [])
    # From now on no life can be begun: as where the database has gone.
    monkeypatch.setattr(
        "groundstate.engine.rows.incarnation.Incarnation.take_lock_and_insert_row", lambda _life: (_ for _ in ()).throw(OSError("gone"))
    )
    for worker_ in watched.app._workers or ():
        worker_.incarnation.liveness.release()
    until(lambda: served.unready() == ["the lock of its worker is lost, or its database cannot be reached"])
    assert served.stuck() == []


def test_a_held_worker_is_alive_and_not_ready(watched: Watched, served: Served) -> None:
    watched.app.start(wait=True)
    served.health.started = True
    until(lambda: served.unready() == ["it waits for a go (--wait-for-go)"])
    assert served.stuck() == []
    watched.app.go()
    until(lambda: served.unready() == [])


def test_other_pages_are_not_there_and_head_is_answered(served: Served) -> None:
    assert get(served.address, "/")[0] == 404
    assert get(served.address, "/readyz?verbose", "HEAD") == (503, "")


def test_an_address_that_is_none_or_is_taken_is_refused(watched: Watched) -> None:
    health = Health(watched.app)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        for where in (":8080", "8080", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:99999", f"127.0.0.1:{other.getsockname()[1]}"):
            with pytest.raises(CommandFailed, match="--http"):
                Endpoint(watched.app, health, where, 1.0)


def test_an_address_of_ip_version_6_is_written_in_brackets() -> None:
    assert http_endpoint._parse_address("[::1]:8080") == ("::1", 8080)


def test_a_stuck_that_is_no_number_is_refused(sqlite_shop: Shop) -> None:
    assert sqlite_shop.run("run", "--stuck", "nan").code == 2
    assert sqlite_shop.run("run", "--stuck", "0").code == 2


def test_run_refuses_an_address_before_it_starts(sqlite_shop: Shop) -> None:
    ended_ = sqlite_shop.run("run", "--http", "8080")
    assert ended_.code == 2
    assert "write HOST:PORT" in ended_.err
    assert not Path("out.txt").exists()


def test_a_reaction_that_waits_for_a_migration_is_told_and_the_worker_is_ready_for_the_others(watched: Watched, served: Served) -> None:
    watched.sql("ALTER TABLE orders RENAME COLUMN receipt TO gone")
    watched.app.start()
    served.health.started = True
    until(lambda: "paid" in content(served.address, "/readyz")["stores"][0]["waiting"])
    until(lambda: served.unready() == [])
    assert "run your migrations" in content(served.address, "/readyz")["stores"][0]["waiting"]["paid"]
    assert "paid is not: " in served.health.describe(5.0)
    assert 'groundstate_reaction_unfit{app="' in get(served.address, "/metrics")[1]
    watched.sql("ALTER TABLE orders RENAME COLUMN gone TO receipt")
    until(lambda: content(served.address, "/readyz")["stores"][0]["waiting"] == {})


def test_a_reaction_that_waits_for_a_person_is_told_and_the_worker_is_ready_for_the_others(watched: Watched, served: Served) -> None:
    watched.sql("DELETE FROM groundstate_reaction WHERE name = 'paid'")
    watched.order()
    watched.app.start()
    served.health.started = True
    until(lambda: served.unready() == [])
    assert "matches 1 row" in content(served.address, "/readyz")["stores"][0]["waiting"]["paid"]
    assert "paid is not: " in served.health.describe(5.0)
