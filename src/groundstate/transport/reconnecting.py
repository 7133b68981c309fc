"""What all transports with a server share: a thread that listens and reconnects, and a thread that sends. Hints may get lost.

A server that hangs closes no connection, so probes that are sent must come back (heartbeat.py). A driver implements how to connect, check,
subscribe and publish; this module does not know which kind of server it is.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from groundstate.transport.heartbeat import Heartbeat, is_probe
from groundstate.transport.port import Finding, HintCallback
from groundstate.values import log_store
from groundstate.values.errors import TransportDownError, TransportRefusedError

log = logging.getLogger("groundstate")
OPENS_WITHIN_S = 6.0  # seconds that `open` waits for the subscription at most
FIRST_S, LONGEST_S = 0.05, 5.0  # seconds between two attempts to connect: the first wait, which doubles up to the longest
WAITS_S = 0.2  # seconds that a thread waits for messages before it checks whether it must end
GOODBYE_S = 1.0  # seconds that closing a connection may take before it is cut
CLOSES_WITHIN_S = 1.5  # seconds that `close` waits for the threads, once before it cuts their connections and once after
UNSENT_MOST = 1_000  # hints that may wait to be sent; beyond this the oldest are lost


class SubscribedConnection(Protocol):
    """A connection that is subscribed to the subject."""

    def heard(self, wait_s: float) -> Sequence[bytes]:
        """Return the messages that have arrived, or that arrive within `wait_s` seconds. Raises the driver's own error once the connection
        is lost.
        """

    def cut(self) -> None:
        """Make whatever waits on this connection raise at once, now and later. Called from another thread at any time; it does not wait
        itself.
        """

    def close(self) -> None:
        """Close the connection."""


class PublishingConnection(Protocol):
    """A connection that publishes hints."""

    def say(self, hints: Sequence[bytes]) -> None:
        """Publish the hints, and return once the server has received them. Raises once the connection is lost."""

    def cut(self) -> None:
        """Make whatever waits on this connection raise at once, now and later. Called from another thread at any time; it does not wait
        itself.
        """

    def close(self) -> None:
        """Close the connection."""


class Driver(Protocol):
    """The operations of one kind of server that `Connecting` needs."""

    def findings(self, subject: str) -> list[Finding]:
        """Check whether the server stores messages of the subject, on a connection that is closed afterwards. Raises if it cannot be
        reached.
        """

    def listen(self, subject: str) -> SubscribedConnection:
        """Connect and subscribe to the subject. Raises if that fails."""

    def speak(self, subject: str) -> PublishingConnection:
        """Connect for publishing to the subject. Raises if that fails."""


class ReconnectingTransport:
    """A `port.Transport` that uses one driver, keeps two connections open, and reconnects after errors."""

    def __init__(self, name: str, driver: Driver) -> None:
        self.name = name
        self._driver = driver
        self._unsent: deque[bytes] = deque(maxlen=UNSENT_MOST)
        self._renew()
        self._subscribed = 0  # the number of subscriptions so far
        self._listens = self._speaks = 0  # the number of the subscription that each connection belongs to; 0 while it is not open
        self._heartbeat: Heartbeat | None = None  # set while the sending connection is open
        self._open: dict[str, SubscribedConnection | PublishingConnection] = {}  # the open connections, under "listening" and "speaking"
        self._refused: TransportRefusedError | None = None
        self._said = ""
        self._threads: list[threading.Thread] = []
        self._subject, self._trusted = "", False
        self._hear: HintCallback = _nobody
        self._pid = os.getpid()
        self._dice = random.Random()  # noqa: S311  # jitter, no secret

    def open(self, subject: str, hear: HintCallback, *, trusted: bool = False) -> None:
        """Start both threads, and wait until the transport is subscribed, is refused, or could not reach its server."""
        self.close()
        for thread in self._threads:  # a thread of an earlier `open` may still wait for its server, and must not run beside the new one
            thread.join()
        self._pid = os.getpid()
        self._renew()
        self._refused = None
        self._subject, self._hear, self._trusted = subject, hear, trusted
        self._threads = [
            threading.Thread(target=log_store.keep_log_label(run), name=f"groundstate-{self.name}-{what}", daemon=True)
            for run, what in ((self._keep_listening, "hears"), (self._keep_speaking, "tells"))
        ]
        for thread in self._threads:
            thread.start()
        self._settled.wait(OPENS_WITHIN_S)
        refused = self._why_not()
        if refused is not None:
            self.close()
            raise refused

    def _why_not(self) -> TransportRefusedError | None:
        return self._refused

    def send(self, hint: bytes) -> None:
        """Queue the hint for the sending thread, or drop it while the transport is not `up`."""
        if self.up:
            self._unsent.append(hint)
            self._something.set()

    @property
    def up(self) -> bool:
        """Whether both connections are open, and the listening one has received a probe of the sending one, as far as is known."""
        beat = self._heartbeat
        return self._listens == self._speaks != 0 and beat is not None and beat.beats and self._pid == os.getpid()

    def findings(self) -> list[Finding]:
        """Return the findings on this server. Raises TransportDownError if it cannot be reached."""
        try:
            return self._driver.findings(self._subject or "groundstate")
        except Exception as error:
            raise TransportDownError(f"the {self.name} transport cannot be reached: {_words(error)}") from error

    def close(self) -> None:
        """End both threads. A thread that waits for the server has its connection cut.

        A thread that is just connecting cannot be cut; it ends when the time limit for connecting has passed.
        """
        if self._pid != os.getpid():
            return
        self._ended.set()
        self._something.set()
        self._join()
        if self._threads:
            self._cut("listening", "speaking")
            self._join()
        self._listens = self._speaks = 0
        self._unsent.clear()

    def _join(self) -> None:
        end = time.monotonic() + CLOSES_WITHIN_S
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(end - time.monotonic(), 0))
        self._threads = [thread for thread in self._threads if thread.is_alive()]

    def _renew(self) -> None:
        # Each `open` makes new events: a forked child may have inherited locked ones, which nothing would unlock.
        self._something = threading.Event()
        self._settled = threading.Event()  # set once the transport is subscribed or refused, or an attempt to connect failed
        self._ended = threading.Event()

    # ---- the two threads -----------------------------------------------------------------------------------------------------------
    def _keep_listening(self) -> None:
        wait = FIRST_S
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                if self._may_be_used():
                    self._listen()
            except Exception as error:  # noqa: BLE001  # each driver raises errors of its own library
                self._tell(f"hints are lost until the {self.name} transport can be reached again: {_words(error)}")
            self._listens = 0
            self._something.set()
            self._settled.set()
            wait = self._wait_after(wait, time.monotonic() - began)

    def _wait_after(self, wait: float, stood_s: float) -> float:
        """Wait `wait` seconds, with jitter, before the next attempt to connect, and return the wait for the attempt after that one."""
        wait = FIRST_S if stood_s > LONGEST_S else wait  # the wait grows only if connections are lost soon after they were made
        self._ended.wait(wait * (0.5 + self._dice.random()))
        return min(wait * 2, LONGEST_S)

    def _may_be_used(self) -> bool:
        """Whether the server may be used.

        It is checked on each connection, since a server may have been reconfigured to store messages.
        """
        against = [one for one in self._driver.findings(self._subject) if one.surely or not self._trusted]
        if not against:
            return True
        words = "; ".join(f"{one.found}. Cure: {one.cure}" for one in against)
        refused = TransportRefusedError(f"the {self.name} transport is not used: {words}")
        if not self._settled.is_set():
            self._refused = refused  # `open` raises it
        elif self._is_news(str(refused)):
            log.error("%s", refused, extra={"event": "transport_refused", "transport": self.name})
        return False

    def _listen(self) -> None:
        listening = self._open["listening"] = self._driver.listen(self._subject)
        try:
            self._subscribed += 1
            self._listens = self._subscribed
            while not self._ended.is_set():
                began = time.monotonic()
                for said in listening.heard(WAITS_S):
                    self._take(said)
                beat = self._heartbeat
                if beat is not None:
                    beat.raise_if_server_silent(began)
                if self.up:
                    self._settled.set()
                    self._log_connection_restored()
        except Exception:
            self._listens = 0
            self._cut("speaking")  # the sending connection is probably lost as well, and its thread may be waiting on it
            raise
        finally:
            self._close("listening")

    def _take(self, said: bytes) -> None:
        beat = self._heartbeat
        if beat is not None:
            beat.hear(said, time.monotonic())
        if not is_probe(said):
            with suppress(Exception):  # an error of the subscriber must not end the connection
                self._hear(said)

    def _cut(self, *which: str) -> None:
        for one in which:
            with suppress(Exception):  # the connection may have been closed meanwhile
                self._open[one].cut()

    def _close(self, which: str) -> None:
        ending = self._open[which]
        with suppress(Exception), cut_if_slower_than(GOODBYE_S, ending.cut):
            ending.close()
        del self._open[which]

    def _keep_speaking(self) -> None:
        wait = FIRST_S
        while not self._ended.is_set():
            if not self._listens:  # before the subscription it is not known whether this server may be used
                self._ended.wait(FIRST_S / 10 if not self._settled.is_set() else FIRST_S)
                continue
            began = time.monotonic()
            try:
                self._speak()
            except Exception as error:  # noqa: BLE001  # as in _keep_listening: errors of the driver's library
                self._tell(f"hints are lost until the {self.name} transport can be reached again: {_words(error)}")
                self._settled.set()
            self._speaks = 0
            self._unsent.clear()  # the sweep finds the rows of these hints; sent late they would be of no use
            wait = self._wait_after(wait, time.monotonic() - began)

    def _speak(self) -> None:
        beside = self._listens  # when the listening connection is lost, this one is probably lost too, and may not raise
        speaking = self._open["speaking"] = self._driver.speak(self._subject)
        try:
            self._unsent.clear()
            self._heartbeat = beat = Heartbeat(self._dice.random)
            self._speaks = beside
            while self._listens == beside and not self._ended.is_set():
                now = time.monotonic()
                some = [*beat.due(now), *dict.fromkeys(self._unsent.popleft() for _ in range(len(self._unsent)))]
                if some:
                    beat.saying_since = now
                    speaking.say(some)
                    beat.saying_since = None
                self._something.wait(WAITS_S)
                self._something.clear()
        finally:
            self._heartbeat = None
            self._close("speaking")

    def _tell(self, words: str) -> None:
        if self._is_news(words):
            log.warning("%s", words, extra={"event": "transport_down", "transport": self.name})

    def _log_connection_restored(self) -> None:
        if self._said:
            self._said = ""
            log.info("hints come and go by %s again", self.name, extra={"event": "transport_up", "transport": self.name})

    def _is_news(self, words: str) -> bool:
        """Whether this kind of trouble was not logged yet since hints last got through. It then counts as logged."""
        what = words.partition(":")[0]
        is_news = what != self._said and not self._ended.is_set()
        if is_news:
            self._said = what
        return is_news


@contextmanager
def cut_if_slower_than(seconds: float, cut: Callable[[], None]) -> Iterator[None]:
    """Call `cut` from another thread if the block takes longer than this number of seconds."""
    timer = threading.Timer(seconds, cut)
    timer.name, timer.daemon = "groundstate-limit", True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _nobody(_hint: bytes) -> None:
    """Ignore a hint: the value of `_hear` before `open`."""


def _words(error: BaseException) -> str:
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
