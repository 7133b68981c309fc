"""What every transport promises, on a real server of each."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import tracemalloc

import pika
import pytest

from groundstate.transport import heartbeat, reconnecting
from groundstate.transport.from_url import make_transport
from groundstate.transport.port import HINT_MOST
from groundstate.transport.reconnecting import FIRST_S, LONGEST_S, ReconnectingTransport
from tests.patience import HANG_S, until
from tests.transport.conftest import Heard, Place
from tests.transport.rabbitmq import AmqpServer

HINT = b'{"v":1,"r":["paid"]}'


def test_a_hint_reaches_all_who_are_subscribed_and_its_sender(place: Place) -> None:
    first, heard_first = place.open()
    _, heard_second = place.open()
    assert first.is_usable
    first.send(HINT)
    heard_first.wait_for(HINT)
    heard_second.wait_for(HINT)


def test_who_listens_to_something_else_hears_nothing(place: Place) -> None:
    mine, heard = place.open("groundstate.mine")
    other, other_heard = place.open("groundstate.other")
    other.send(b"for the other")
    other_heard.wait_for(b"for the other")
    mine.send(HINT)
    heard.wait_for(HINT)
    assert heard.all == [HINT]


def test_a_long_subject_and_a_long_hint_go_through(place: Place) -> None:
    transport, heard = place.open("groundstate." + "long-name_" * 12)
    longest = b"x" * HINT_MOST
    transport.send(longest)
    heard.wait_for(longest)


@pytest.mark.parametrize("odd", [b"\x00\xff\xfe" * 100, b"=a", b"~b", b"probe", "größer ☃".encode(), b"with\nlines\r\n"], ids=range(6))
def test_odd_bytes_come_as_they_went(place: Place, odd: bytes) -> None:
    transport, heard = place.open()
    transport.send(odd)
    heard.wait_for(odd)


def test_after_its_server_was_killed_and_came_back_hints_flow_again_and_the_log_says_so(
    served: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "groundstate")
    transport, heard = served.open()
    served.stop()
    until(lambda: not transport.is_usable)
    transport.send(b"lost")
    assert served.start is not None
    served.start()
    until(lambda: transport.is_usable)
    transport.send(HINT)
    heard.wait_for(HINT)
    assert b"lost" not in heard.all
    until(lambda: [vars(one)["event"] for one in caplog.records if one.name == "groundstate"] == ["transport_down", "transport_up"])


def test_opened_while_its_server_is_down_it_is_up_later(served: Place) -> None:
    served.stop()
    transport, heard = served.open()  # which waits for no server
    assert not transport.is_usable
    transport.send(b"lost")
    assert served.start is not None
    served.start()
    until(lambda: transport.is_usable)
    transport.send(HINT)
    heard.wait_for(HINT)
    assert heard.all == [HINT]


def test_a_connection_that_is_cut_while_it_idles_is_made_anew(served: Place) -> None:
    if served.cut is None:
        served.stop()
        assert served.start is not None
        served.start()
    transport, heard = served.open()
    if served.cut is not None:
        served.cut()
    until(lambda: _comes_through(transport, heard))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a server is done with that at once."""
    monkeypatch.setattr(heartbeat, "SILENT_S", 0.2)
    monkeypatch.setattr(heartbeat, "UNHEARD_S", 1.0)
    monkeypatch.setattr(reconnecting, "GOODBYE_S", 0.2)
    monkeypatch.setattr(reconnecting, "CLOSES_WITHIN_S", 0.3)


@pytest.mark.parametrize("says", [False, True], ids=["idle", "while it says something"])
def test_a_server_that_freezes_is_missed_and_used_again_when_it_goes_on(served: Place, hasty: None, *, says: bool) -> None:
    transport, heard = served.open()
    with served.frozen():
        if says:
            transport.send(b"lost")
        until(lambda: not transport.is_usable)
    until(lambda: _comes_through(transport, heard))


@pytest.mark.parametrize("says", [False, True], ids=["idle", "while it says something"])
def test_closed_while_its_server_is_frozen_it_leaves_no_thread(served: Place, hasty: None, *, says: bool) -> None:
    before = set(threading.enumerate())
    transport, _ = served.open()
    with served.frozen():
        if says:
            transport.send(b"lost")
            until(lambda: not transport._unsent)
        transport.close()
        until(lambda: not [one for one in set(threading.enumerate()) - before if one.name.startswith("groundstate")])


def test_what_is_asked_meanwhile_is_heard_by_nobody(served: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SILENT_S", 0.2)
    transport, heard = served.open()
    _, others = served.open()
    for _ in range(2):
        asked = transport._heartbeat._said_at
        until(lambda: transport._heartbeat._said_at > asked)  # noqa: B023  # called within its round
    transport.send(HINT)
    heard.wait_for(HINT)
    others.wait_for(HINT)
    assert heard.all == others.all == [HINT]


def _comes_through(transport: object, heard: Heard) -> bool:
    transport.send(HINT)  # type: ignore[attr-defined]  # a transport
    return heard.any.wait(0.05)


def test_it_can_be_closed_while_it_waits_twice_and_opened_again(place: Place) -> None:
    transport, heard = place.open()
    transport.close()
    transport.close()
    assert not transport.is_usable
    transport.send(b"after the end")
    transport.open("groundstate.test", heard)
    transport.send(HINT)
    heard.wait_for(HINT)
    assert heard.all == [HINT]


def test_closed_while_it_connects_again_it_leaves_no_thread(served: Place) -> None:
    before = set(threading.enumerate())
    transport, _ = served.open()
    served.stop()
    until(lambda: not transport.is_usable)
    transport.close()
    until(lambda: not [one for one in set(threading.enumerate()) - before if one.name.startswith("groundstate")])
    assert served.start is not None
    served.start()


def test_what_is_said_before_it_is_open_is_lost(place: Place) -> None:
    made = make_transport(place.url)
    made.send(HINT)
    assert not made.is_usable
    made.close()


def test_who_hears_slowly_or_raises_stops_nobody(place: Place) -> None:
    gate = threading.Event()
    slow, raised = threading.Event(), threading.Event()

    def hears_slowly(_hint: bytes) -> None:
        slow.set()
        assert gate.wait(HANG_S)

    def raises(_hint: bytes) -> None:
        raised.set()
        raise RuntimeError("by the test")

    if place.has_server:  # inside a process whoever is told is called
        place.open(hear=hears_slowly)
    place.open(hear=raises)
    transport, heard = place.open()
    transport.send(HINT)
    heard.wait_for(HINT)
    assert raised.wait(HANG_S)
    gate.set()


def test_a_flood_blocks_nobody_and_a_hint_after_it_arrives(place: Place) -> None:
    transport, heard = place.open(hear=None)
    tracemalloc.start()
    count = 100_000 if place.has_server else 1_000
    for number in range(count):
        transport.send(b"%d" % number)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 60_000_000
    until(lambda: _last(transport, heard))


def _last(transport: object, heard: Heard) -> bool:
    transport.send(HINT)  # type: ignore[attr-defined]  # a transport
    return HINT in heard.all


def test_a_forked_child_uses_nothing_of_it_and_harms_nothing(served: Place) -> None:
    transport, heard = served.open()
    child = os.fork()
    if child == 0:
        code = 0
        try:
            if transport.is_usable:
                code = 1
            transport.send(b"of the child")
            transport.close()
            del transport
        except BaseException:  # noqa: BLE001  # told by the exit code
            code = 2
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    transport.send(HINT)
    heard.wait_for(HINT)
    assert b"of the child" not in heard.all


def test_a_forked_child_of_who_uses_memory_hears_nothing_of_its_own_copy() -> None:
    transport, heard = make_transport("memory:forks"), Heard()
    transport.open("groundstate.test", heard)
    child = os.fork()
    if child == 0:
        transport.send(HINT)
        os._exit(int(transport.is_usable or bool(heard.all)))
    assert os.waitpid(child, 0)[1] == 0
    transport.send(HINT)
    assert heard.all == [HINT]
    transport.close()


def test_who_stood_for_long_tries_again_at_once_and_who_is_cut_off_at_once_waits_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = make_transport("redis://127.0.0.1:1")
    assert isinstance(transport, ReconnectingTransport)
    waits: list[float] = []
    monkeypatch.setattr(transport._ended, "wait", waits.append)
    wait = transport._wait_before_reconnecting(4.0, LONGEST_S + 1)
    assert waits[-1] < 2 * FIRST_S
    for _ in range(20):
        wait = transport._wait_before_reconnecting(wait, 0.1)
    assert wait == LONGEST_S
    assert LONGEST_S / 2 <= waits[-1] <= LONGEST_S * 1.5


def test_opened_again_while_it_still_connects_it_runs_once(served: Place) -> None:
    transport, heard = served.open()
    for _ in range(3):
        transport.open("groundstate.test", heard)
    transport.send(HINT)
    heard.wait_for(HINT)
    transport.send(b"last")
    heard.wait_for(b"last")
    assert heard.all == [HINT, b"last"]


def test_an_exchange_or_queue_that_somebody_deletes_is_made_again(amqp_server: AmqpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundstate.transport.amqp.LOOK_S", 0.1)
    transport, heard = make_transport(amqp_server.url), Heard()
    transport.open("groundstate.deleted", heard)
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(amqp_server.url.partition("?")[0]))) as connection:
        connection.channel().exchange_delete("groundstate.deleted")
    until(lambda: _comes_through(transport, heard))
    transport.close()


def test_it_forgets_and_says_so(place: Place) -> None:
    assert make_transport(place.url).findings() == []
