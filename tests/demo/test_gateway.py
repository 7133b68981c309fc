"""The demo's gateway must be as unkind as it says, or a fault of the worker would stay hidden."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from groundstate.demo.gateway import Gateway
from groundstate.demo.ledger import Ledger, read_entries
from groundstate.demo.mischief import Treatment, Trick, choose_treatment, is_card_declined
from tests.patience import HANG_S

PROMPT = Treatment(Trick.PROMPT, before=0.1, after=0.0, hidden=0.0)


class World:
    """A gateway in this process, whose waits are written down and whose clock is moved by hand."""

    def __init__(self, path: Path, *treatments: Treatment, declined: bool = False) -> None:
        self.ledger = Ledger(path)
        self.now = 1000.0
        self.waits: list[float] = []
        self._treatments = treatments
        gateway = Gateway(self.ledger, treat=self._treat, declines=lambda _: declined, pause=self._pause, clock=lambda: self.now)
        self._app = gateway.build_app()

    def _treat(self, _: int, number: int) -> Treatment:
        return self._treatments[min(number, len(self._treatments)) - 1]

    async def _pause(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def post(self, key: str = "k", order: int = 1) -> httpx.Response:
        return self._ask("POST", json={"key": key, "order": order, "amount": 500})

    def find(self, key: str = "k") -> httpx.Response:
        return self._ask("GET", params={"key": key})

    def _ask(self, method: str, **given: object) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url="http://gateway") as client:
                return await client.request(method, "/charges", **given)  # type: ignore[arg-type]  # passed on as they are

        return asyncio.run(ask())

    @property
    def charged(self) -> list[str]:
        return [entry["id"] for entry in read_entries(self.ledger.path) if entry["outcome"] == "charged"]


WorldOf = Callable[..., World]


@pytest.fixture
def world_of(tmp_path: Path) -> Iterator[WorldOf]:
    with ExitStack() as stack:

        def made(*treatments: Treatment, declined: bool = False) -> World:
            world = World(tmp_path / "l", *treatments, declined=declined)
            stack.callback(world.ledger.close)
            return world

        yield made


def test_a_charge_is_in_the_ledger_with_its_key_order_and_amount(world_of: WorldOf) -> None:
    world = world_of(PROMPT)
    answer = world.post()
    assert answer.status_code == 201
    (entry,) = read_entries(world.ledger.path)
    assert (entry["id"], entry["key"], entry["order"], entry["amount"], entry["outcome"]) == ("ch_1", "k", 1, 500, "charged")
    assert answer.json()["id"] == "ch_1"


def test_a_second_post_of_the_same_key_charges_again(world_of: WorldOf) -> None:
    world = world_of(PROMPT)
    world.post()
    world.post()
    assert world.charged == ["ch_1", "ch_2"]
    assert world.find().json()["id"] == "ch_1"


def test_a_find_does_not_show_a_charge_until_it_is_no_longer_hidden(world_of: WorldOf) -> None:
    world = world_of(Treatment(Trick.PROMPT, before=0.0, after=0.0, hidden=1.0))
    assert world.find().status_code == 404
    world.post()
    assert world.find().status_code == 404
    world.now += 0.9
    assert world.find().status_code == 404
    world.now += 0.1
    assert world.find().json()["id"] == "ch_1"


def test_busy_has_surely_done_nothing_and_the_next_try_charges(world_of: WorldOf) -> None:
    world = world_of(Treatment(Trick.BUSY, 0.0, 0.0, 0.0), PROMPT)
    busy = world.post()
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
    assert world.charged == []
    assert world.post().status_code == 201
    assert world.charged == ["ch_1"]


def test_a_declined_card_is_an_answer_that_a_find_gives_again(world_of: WorldOf) -> None:
    world = world_of(PROMPT, declined=True)
    answer = world.post()
    assert (answer.status_code, answer.json()["outcome"]) == (402, "declined")
    assert world.charged == []
    assert world.find().json()["outcome"] == "declined"


def test_a_late_answer_was_charged_before_the_client_gave_up(world_of: WorldOf) -> None:
    world = world_of(Treatment(Trick.LATE_ANSWER, before=0.02, after=3.0, hidden=0.0))
    world.post()
    (entry,) = read_entries(world.ledger.path)
    assert entry["at"] == 1000.02
    assert world.now == pytest.approx(1003.02)


@contextmanager
def gateway_process(ledger: Path, seed: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A real one, on a port of its own; killed at the end."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        command = [sys.executable, "-m", "groundstate.demo.gateway", "--fd", str(door.fileno()), "--ledger", str(ledger)]
        process = subprocess.Popen([*command, "--seed", str(seed)], pass_fds=(door.fileno(),))
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
    try:
        yield url, process
    finally:
        process.kill()
        process.wait()


def order_for(seed: int, trick: Trick) -> int:
    return next(order for order in range(1, 1000) if choose_treatment(seed, order, 1).trick is trick and not is_card_declined(seed, order))


def test_a_dropped_connection_leaves_the_client_in_doubt_and_the_charge_in_the_ledger(tmp_path: Path) -> None:
    order = order_for(3, Trick.DROP)
    with gateway_process(tmp_path / "l", 3) as (url, _), httpx.Client(base_url=url, timeout=HANG_S) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            client.post("/charges", json={"key": "k", "order": order, "amount": 5})
        assert [entry["order"] for entry in read_entries(tmp_path / "l")] == [order]


def test_the_ledger_outlives_a_killed_gateway_and_the_next_one_finds_in_it(tmp_path: Path) -> None:
    order = next(
        order
        for order in range(1, 1000)
        if choose_treatment(3, order, 1).trick is Trick.PROMPT
        and choose_treatment(3, order, 1).hidden == 0
        and not is_card_declined(3, order)
    )
    with gateway_process(tmp_path / "l", 3) as (url, process), httpx.Client(base_url=url, timeout=HANG_S) as client:
        charged = client.post("/charges", json={"key": "k", "order": order, "amount": 5}).json()
        process.send_signal(signal.SIGKILL)
        process.wait()
    with gateway_process(tmp_path / "l", 3) as (url, _), httpx.Client(base_url=url, timeout=HANG_S) as client:
        assert client.get("/charges", params={"key": "k"}).json() == charged
        assert client.post("/charges", json={"key": "k2", "order": order, "amount": 5}).json()["id"] == "ch_2"
