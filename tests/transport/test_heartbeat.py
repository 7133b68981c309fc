"""When a process asks whether what it says comes back, and what it takes for an answer. Without a server."""

from __future__ import annotations

import pytest

from groundstate.clock import SeededDice, SystemDice
from groundstate.rules import hint_codec
from groundstate.transport.heartbeat import OWN_S, SILENT_S, UNHEARD_S, Heartbeat, is_probe


class Even(SystemDice):
    """Dice that spread nothing."""

    def random(self) -> float:
        return 0.5


def made() -> Heartbeat:
    return Heartbeat(Even())


def test_it_asks_at_once_and_beats_when_it_hears_itself() -> None:
    pulse = made()
    (probe,) = pulse.probes_due(0)
    beats = []
    for said in (b"of others", made().probes_due(0)[0], probe):
        pulse.record_message(said, 0.1)
        beats.append(pulse.has_probe_returned)
    assert beats == [False, False, True]
    assert pulse.probes_due(0.2) == []


def test_it_asks_when_nobody_said_anything_and_seldom_where_others_do() -> None:
    pulse = made()
    pulse.record_message(pulse.probes_due(0)[0], 0)
    now, asked = 0.0, 0
    while now < OWN_S * 10:
        now += 1
        pulse.record_message(b"of others", now)
        for one in pulse.probes_due(now):
            asked += 1
            pulse.record_message(one, now)
    assert asked == 10
    assert pulse.probes_due(now + SILENT_S)


def test_of_sixteen_that_hear_each_other_few_ask() -> None:
    dice = SeededDice(1)
    fleet = [Heartbeat(dice) for _ in range(16)]
    asked = 0
    for step in range(6000):  # ten minutes
        for one in fleet:
            for probe in one.probes_due(step / 10):
                asked += 1
                for other in fleet:
                    other.record_message(probe, step / 10)
    assert asked / 600 < 0.5


def test_one_that_is_not_answered_asks_again_and_gives_up_where_it_hears_nothing() -> None:
    pulse = made()
    assert pulse.probes_due(0)
    assert pulse.probes_due(SILENT_S)
    pulse.raise_if_server_silent(UNHEARD_S)
    with pytest.raises(ConnectionError, match="the server has not returned a probe for 11 s"):
        pulse.raise_if_server_silent(UNHEARD_S + 1)


def test_where_others_are_heard_its_own_may_be_lost_in_a_flood_but_not_for_ever() -> None:
    pulse = made()
    assert pulse.probes_due(0)
    pulse.record_message(b"of others", 1)
    pulse.raise_if_server_silent(UNHEARD_S + 1)
    assert pulse.probes_due(UNHEARD_S + 1)
    with pytest.raises(ConnectionError):
        pulse.raise_if_server_silent(3 * UNHEARD_S + 1)


def test_a_server_that_takes_nothing_is_not_waited_for() -> None:
    pulse = made()
    pulse.record_message(pulse.probes_due(0)[0], 0)
    pulse.sending_since = 1.0
    pulse.record_message(b"of others", 5)
    with pytest.raises(ConnectionError, match="has not accepted a message for 11 s"):
        pulse.raise_if_server_silent(1 + UNHEARD_S + 1)


def test_a_process_that_was_stopped_hears_first_what_came_meanwhile() -> None:
    pulse = made()
    (probe,) = pulse.probes_due(0)
    pulse.raise_if_server_silent(0.2)  # it listened before it was stopped, and looks an hour later
    pulse.record_message(probe, 3600)
    pulse.raise_if_server_silent(3600)


def test_versions_that_know_no_probes_take_them_for_no_hint() -> None:
    (probe,) = made().probes_due(0)
    assert is_probe(probe)
    assert not is_probe(b'{"v":1,"r":["paid"]}')
    assert hint_codec.decode_hint(probe) is None
