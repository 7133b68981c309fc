"""The common part of all transports with a server: a thread that receives and reconnects, and a thread that publishes.

A server that hangs closes no connection, so probes are sent that must come back (heartbeat.py). A Driver for the kind of server connects,
checks the server, subscribes and publishes; this module is the same for all kinds.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from groundstate.clock import SYSTEM_CLOCK, SYSTEM_DICE, Clock, Dice
from groundstate.transport.heartbeat import Heartbeat, is_probe
from groundstate.transport.port import Finding, HintCallback
from groundstate.values import log_store
from groundstate.values.errors import TransportDownError, TransportRefusedError

log = logging.getLogger("groundstate")
OPENS_WITHIN_S = 6.0  # longest time, in seconds, that `open` waits for the subscription
FIRST_S, LONGEST_S = 0.05, 5.0  # first and longest wait between two attempts to connect, in seconds; each attempt doubles the wait
WAITS_S = 0.2  # seconds that a thread waits for messages before it checks whether it must end
GOODBYE_S = 1.0  # seconds that closing a connection may take before its socket is shut down
CLOSES_WITHIN_S = 1.5  # seconds that `close` waits for its threads; if one still runs, `close` aborts its connection and waits again
UNSENT_MOST = 1_000  # maximum number of hints that wait to be sent; each further hint replaces the oldest


class SubscribedConnection(Protocol):
    """A connection that is subscribed to the subject."""

    def receive(self, wait_s: float) -> Sequence[bytes]:
        """Return the messages that have arrived; if there are none, wait up to `wait_s` seconds for some. Raises if the connection is
        lost.
        """

    def abort(self) -> None:
        """Break the connection, so that each method that waits on it, or is called later, raises at once.

        Another thread may call it at any time. It does not wait.
        """

    def close(self) -> None:
        """Close the connection."""


class PublishingConnection(Protocol):
    """A connection that publishes hints."""

    def publish(self, hints: Sequence[bytes]) -> None:
        """Publish the hints, and return once the server has received them. Raises if the connection is lost."""

    def abort(self) -> None:
        """Break the connection, so that each method that waits on it, or is called later, raises at once.

        Another thread may call it at any time. It does not wait.
        """

    def close(self) -> None:
        """Close the connection."""


class Driver(Protocol):
    """A Driver does what depends on the kind of server, for `ReconnectingTransport`."""

    def findings(self, subject: str) -> list[Finding]:
        """Return one Finding for each reason why the server stores, or may store, messages of the subject; an empty list if there is none.

        It connects for the check, and closes the connection. Raises if the server cannot be reached.
        """

    def connect_subscriber(self, subject: str) -> SubscribedConnection:
        """Connect, and subscribe to the subject. Raises if either fails."""

    def connect_publisher(self, subject: str) -> PublishingConnection:
        """Connect for publishing hints to the subject. Raises if connecting fails."""


class ReconnectingTransport:
    """A `port.Transport` for any kind of server: it keeps two connections of its Driver open, and reconnects after errors."""

    def __init__(self, name: str, driver: Driver, clock: Clock = SYSTEM_CLOCK, dice: Dice = SYSTEM_DICE) -> None:
        self.name = name
        self._clock, self._dice = clock, dice
        self._driver = driver
        self._unsent: deque[bytes] = deque(maxlen=UNSENT_MOST)
        self._reset_events()
        self._subscribed = 0  # number of subscriptions so far
        # Number of the subscription to which each of the two connections (receiving, sending) belongs; 0 while the connection is not open.
        self._listens = self._speaks = 0
        self._heartbeat: Heartbeat | None = None  # None while the sending connection is not open
        self._open: dict[str, SubscribedConnection | PublishingConnection] = {}  # open connections, by "listening" and "speaking"
        self._refused: TransportRefusedError | None = None
        self._said = ""
        self._threads: list[threading.Thread] = []
        self._subject, self._trusted = "", False
        self._hear: HintCallback = _ignore_hint
        self._pid = os.getpid()

    def open(self, subject: str, hear: HintCallback, *, trusted: bool = False) -> None:
        """Start both threads, and wait, up to OPENS_WITHIN_S, until the transport is subscribed, is refused, or failed to connect."""
        self.close()
        for thread in self._threads:  # a thread of an earlier `open` may still wait for its server, and must not run beside a new thread
            thread.join()
        self._pid = os.getpid()
        self._reset_events()
        self._refused = None
        self._subject, self._hear, self._trusted = subject, hear, trusted
        self._threads = [
            threading.Thread(target=log_store.keep_log_label(run), name=f"groundstate-{self.name}-{what}", daemon=True)
            for run, what in ((self._keep_listening, "hears"), (self._keep_publishing, "tells"))
        ]
        for thread in self._threads:
            thread.start()
        self._settled.wait(OPENS_WITHIN_S)
        refused = self._refusal()
        if refused is not None:
            self.close()
            raise refused

    def _refusal(self) -> TransportRefusedError | None:
        return self._refused

    def send(self, hint: bytes) -> None:
        """Queue the hint for the sending thread, or drop it while `is_usable` is False."""
        if self.is_usable:
            self._unsent.append(hint)
            self._something.set()

    @property
    def is_usable(self) -> bool:
        """Return whether both connections are open, and a probe that the sending connection sent has come back on the receiving one."""
        beat = self._heartbeat
        return self._listens == self._speaks != 0 and beat is not None and beat.has_probe_returned and self._pid == os.getpid()

    def findings(self) -> list[Finding]:
        """Return one Finding for each reason why the server stores hints, or may store hints.

        Raises TransportDownError if the server cannot be reached.
        """
        try:
            return self._driver.findings(self._subject or "groundstate")
        except Exception as error:
            raise TransportDownError(f"the {self.name} transport cannot be reached: {_first_line(error)}") from error

    def close(self) -> None:
        """End both threads. If a thread waits for the server, its connection is aborted.

        A thread that is just connecting cannot be interrupted; it ends when the time limit for connecting has passed.
        """
        if self._pid != os.getpid():
            return
        self._ended.set()
        self._something.set()
        self._join_threads()
        if self._threads:
            self._abort_connections("listening", "speaking")
            self._join_threads()
        self._listens = self._speaks = 0
        self._unsent.clear()

    def _join_threads(self) -> None:
        end = self._clock.monotonic() + CLOSES_WITHIN_S
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(end - self._clock.monotonic(), 0))
        self._threads = [thread for thread in self._threads if thread.is_alive()]

    def _reset_events(self) -> None:
        # `open` makes new events each time, since in a forked child the lock within an inherited event may stay locked for ever.
        self._something = threading.Event()
        self._settled = threading.Event()  # set once the transport is subscribed, is refused, or failed to connect
        self._ended = threading.Event()

    # ---- the two threads -----------------------------------------------------------------------------------------------------------
    def _keep_listening(self) -> None:
        wait = FIRST_S
        while not self._ended.is_set():
            began = self._clock.monotonic()
            try:
                if self._may_server_be_used():
                    self._listen_until_lost()
            except Exception as error:  # noqa: BLE001  # each Driver raises the exceptions of its own library
                self._warn_once(f"hints are lost until the {self.name} transport can be reached again: {_first_line(error)}")
            self._listens = 0
            self._something.set()
            self._settled.set()
            wait = self._wait_before_reconnecting(wait, self._clock.monotonic() - began)

    def _wait_before_reconnecting(self, wait: float, connected_s: float) -> float:
        """Wait before the next attempt to connect, and return the seconds to wait before the attempt after it.

        wait: the seconds to wait, to which jitter is added. connected_s: how many seconds the last connection lasted.
        """
        wait = FIRST_S if connected_s > LONGEST_S else wait  # after a connection that lasted long, start with FIRST_S again
        self._ended.wait(wait * (0.5 + self._dice.random()))
        return min(wait * 2, LONGEST_S)

    def _may_server_be_used(self) -> bool:
        """Check the server, and return whether it may be used. If not, keep the refusal for `open` to raise, or log it.

        Call it before each new connection, since a server may have been reconfigured to store messages.
        """
        against = [one for one in self._driver.findings(self._subject) if one.surely or not self._trusted]
        if not against:
            return True
        words = "; ".join(f"{one.found}. Cure: {one.cure}" for one in against)
        refused = TransportRefusedError(f"the {self.name} transport is not used: {words}")
        if not self._settled.is_set():
            self._refused = refused  # `open`, which still waits, raises this error
        elif self._is_new_trouble(str(refused)):
            log.error("%s", refused, extra={"event": "transport_refused", "transport": self.name})
        return False

    def _listen_until_lost(self) -> None:
        listening = self._open["listening"] = self._driver.connect_subscriber(self._subject)
        try:
            self._subscribed += 1
            self._listens = self._subscribed
            while not self._ended.is_set():
                began = self._clock.monotonic()
                for said in listening.receive(WAITS_S):
                    self._handle_message(said)
                beat = self._heartbeat
                if beat is not None:
                    beat.raise_if_server_silent(began)
                if self.is_usable:
                    self._settled.set()
                    self._log_restored()
        except Exception:
            self._listens = 0
            self._abort_connections("speaking")  # the sending connection is probably lost too, and its thread may be waiting on it
            raise
        finally:
            self._close_connection("listening")

    def _handle_message(self, said: bytes) -> None:
        beat = self._heartbeat
        if beat is not None:
            beat.record_message(said, self._clock.monotonic())
        if not is_probe(said):
            with suppress(Exception):  # an exception of the callback must not end the connection
                self._hear(said)

    def _abort_connections(self, *which: str) -> None:
        for one in which:
            with suppress(Exception):  # the connection may be closed already
                self._open[one].abort()

    def _close_connection(self, which: str) -> None:
        ending = self._open[which]
        with suppress(Exception), abort_if_slower_than(GOODBYE_S, ending.abort):
            ending.close()
        del self._open[which]

    def _keep_publishing(self) -> None:
        wait = FIRST_S
        while not self._ended.is_set():
            if not self._listens:  # only `_keep_listening` checks whether this server may be used
                self._ended.wait(FIRST_S / 10 if not self._settled.is_set() else FIRST_S)
                continue
            began = self._clock.monotonic()
            try:
                self._publish_until_lost()
            except Exception as error:  # noqa: BLE001  # each Driver raises the exceptions of its own library
                self._warn_once(f"hints are lost until the {self.name} transport can be reached again: {_first_line(error)}")
                self._settled.set()
            self._speaks = 0
            self._unsent.clear()  # old hints are not sent later, since the sweep (a regular query) finds their rows
            wait = self._wait_before_reconnecting(wait, self._clock.monotonic() - began)

    def _publish_until_lost(self) -> None:
        # The number of the subscription. If it changes, the receiving connection was lost, so this connection is probably lost too.
        beside = self._listens
        speaking = self._open["speaking"] = self._driver.connect_publisher(self._subject)
        try:
            self._unsent.clear()
            self._heartbeat = beat = Heartbeat(self._dice)
            self._speaks = beside
            while self._listens == beside and not self._ended.is_set():
                now = self._clock.monotonic()
                some = [*beat.probes_due(now), *dict.fromkeys(self._unsent.popleft() for _ in range(len(self._unsent)))]
                if some:
                    beat.sending_since = now
                    speaking.publish(some)
                    beat.sending_since = None
                self._something.wait(WAITS_S)
                self._something.clear()
        finally:
            self._heartbeat = None
            self._close_connection("speaking")

    def _warn_once(self, words: str) -> None:
        if self._is_new_trouble(words):
            log.warning("%s", words, extra={"event": "transport_down", "transport": self.name})

    def _log_restored(self) -> None:
        if self._said:
            self._said = ""
            log.info("hints are sent and received over %s again", self.name, extra={"event": "transport_up", "transport": self.name})

    def _is_new_trouble(self, words: str) -> bool:
        """Return whether a message must be logged, and remember the message if so.

        A message is not logged if the last logged message had the same text before its first colon, and the transport has not worked since.
        No message is logged after `close` was called.
        """
        what = words.partition(":")[0]
        is_news = what != self._said and not self._ended.is_set()
        if is_news:
            self._said = what
        return is_news


@contextmanager
def abort_if_slower_than(seconds: float, abort: Callable[[], None]) -> Iterator[None]:
    """Run the block, and call `abort` from another thread if the block takes longer than `seconds` seconds."""
    timer = threading.Timer(seconds, abort)
    timer.name, timer.daemon = "groundstate-limit", True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _ignore_hint(_hint: bytes) -> None:
    """Do nothing with a hint. It is the callback for hints until `open` is given another callback."""


def _first_line(error: BaseException) -> str:
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
