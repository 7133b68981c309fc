"""What every transport with a server has in common: a thread that listens and connects again, one that sends, and hints that get lost.

What is said into one's own ear must come back: a server that is frozen closes no connection, and who waits for it waits for ever. A
driver says how one connects, asks, subscribes and publishes; nothing here knows which server it is.
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

from groundstate.transport.port import Finding, Hear
from groundstate.transport.pulse import Pulse, is_probe
from groundstate.values import lines
from groundstate.values.errors import TransportDown, TransportRefused

log = logging.getLogger("groundstate")
OPENS_WITHIN_S = 6.0  # so long `open` waits until it is subscribed
FIRST_S, LONGEST_S = 0.05, 5.0  # between two tries to connect, doubling
WAITS_S = 0.2  # how often a listener looks whether it is to end
GOODBYE_S = 1.0  # so long a server may take to say goodbye
CLOSES_WITHIN_S = 1.5  # so long `close` waits for a thread that waits for a server, before that connection is cut, and after
UNSENT_MOST = 1_000  # hints that wait for the server; beyond this the oldest are lost


class Listening(Protocol):
    """A connection that is subscribed."""

    def heard(self, wait_s: float) -> Sequence[bytes]:
        """What came, at once or within that time. Raises whatever the driver raises once the connection is lost."""

    def cut(self) -> None:
        """Makes whoever waits in it raise, at once and for ever. Called by another thread, at any time; does not wait itself."""

    def close(self) -> None:
        """Ends it."""


class Speaking(Protocol):
    """A connection to publish by."""

    def say(self, hints: Sequence[bytes]) -> None:
        """Publishes them; returns when the server has them. Raises once the connection is lost."""

    def cut(self) -> None:
        """As above."""

    def close(self) -> None:
        """Ends it."""


class Driver(Protocol):
    """One kind of server."""

    def findings(self, subject: str) -> list[Finding]:
        """Whether it persists, by a connection that ends with the question. Raises where it cannot be reached."""

    def listen(self, subject: str) -> Listening:
        """Connects and subscribes. Raises where it cannot."""

    def speak(self, subject: str) -> Speaking:
        """Connects. Raises where it cannot."""


class Connecting:
    """A transport by the promises of `port.Transport`, over a driver."""

    def __init__(self, name: str, driver: Driver) -> None:
        self.name = name
        self._driver = driver
        self._unsent: deque[bytes] = deque(maxlen=UNSENT_MOST)
        self._renew()
        self._subscribed = 0  # how often
        self._listens = self._speaks = 0  # for which of these subscriptions; 0: not at all
        self._pulse: Pulse | None = None  # while the other speaks
        self._open: dict[str, Listening | Speaking] = {}  # what there is of both
        self._refused: TransportRefused | None = None
        self._said = ""
        self._threads: list[threading.Thread] = []
        self._subject, self._trusted = "", False
        self._hear: Hear = _nobody
        self._pid = os.getpid()
        self._dice = random.Random()  # noqa: S311  # jitter, no secret

    def open(self, subject: str, hear: Hear, *, trusted: bool = False) -> None:
        """Begins to connect, and waits until it is subscribed, refused, or seen not to be there."""
        self.close()
        for thread in self._threads:  # one that still waited for its server: no two may run at once
            thread.join()
        self._pid = os.getpid()
        self._renew()
        self._refused = None
        self._subject, self._hear, self._trusted = subject, hear, trusted
        self._threads = [
            threading.Thread(target=lines.as_here(run), name=f"groundstate-{self.name}-{what}", daemon=True)
            for run, what in ((self._keep_listening, "hears"), (self._keep_speaking, "tells"))
        ]
        for thread in self._threads:
            thread.start()
        self._settled.wait(OPENS_WITHIN_S)
        refused = self._why_not()
        if refused is not None:
            self.close()
            raise refused

    def _why_not(self) -> TransportRefused | None:
        return self._refused

    def send(self, hint: bytes) -> None:
        """Puts the hint with those that wait, where anybody listens to it."""
        if self.up:
            self._unsent.append(hint)
            self._something.set()

    @property
    def up(self) -> bool:
        """Whether both connections stand, and what is said by one was heard by the other, as far as is known."""
        pulse = self._pulse
        return self._listens == self._speaks != 0 and pulse is not None and pulse.beats and self._pid == os.getpid()

    def findings(self) -> list[Finding]:
        """What speaks against this server."""
        try:
            return self._driver.findings(self._subject or "groundstate")
        except Exception as error:
            raise TransportDown(f"the {self.name} transport cannot be reached: {_words(error)}") from error

    def close(self) -> None:
        """Ends both threads; each looks several times a second whether it is to. One that waits for a server is cut off, but for one that
        just connects: that ends by itself when its time to connect is over.
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
        # New ones each time: those that a forked child inherits may be locked for ever.
        self._something = threading.Event()
        self._settled = threading.Event()  # it is subscribed, refused, or was not to be reached
        self._ended = threading.Event()

    # ---- the two threads -----------------------------------------------------------------------------------------------------------
    def _keep_listening(self) -> None:
        wait = FIRST_S
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                if self._may_be_used():
                    self._listen()
            except Exception as error:  # noqa: BLE001  # whatever its driver raises
                self._tell(f"hints are lost until the {self.name} transport can be reached again: {_words(error)}")
            self._listens = 0
            self._something.set()
            self._settled.set()
            wait = self._wait_after(wait, time.monotonic() - began)

    def _wait_after(self, wait: float, stood_s: float) -> float:
        """Waits until the next try. Returns how long to wait after that one."""
        wait = FIRST_S if stood_s > LONGEST_S else wait  # who is cut off at once, again and again, waits longer
        self._ended.wait(wait * (0.5 + self._dice.random()))
        return min(wait * 2, LONGEST_S)

    def _may_be_used(self) -> bool:
        """Asked at each connection: what forgot yesterday may have been set up anew."""
        against = [one for one in self._driver.findings(self._subject) if one.surely or not self._trusted]
        if not against:
            return True
        words = "; ".join(f"{one.found}. Cure: {one.cure}" for one in against)
        refused = TransportRefused(f"the {self.name} transport is not used: {words}")
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
                pulse = self._pulse
                if pulse is not None:
                    pulse.refuse_silence(began)
                if self.up:
                    self._settled.set()
                    self._say_up()
        except Exception:
            self._listens = 0
            self._cut("speaking")  # it leads nowhere as well, and may wait there
            raise
        finally:
            self._close("listening")

    def _take(self, said: bytes) -> None:
        pulse = self._pulse
        if pulse is not None:
            pulse.hear(said, time.monotonic())
        if not is_probe(said):
            with suppress(Exception):  # it is not to raise; and if it does, others are to hear the next
                self._hear(said)

    def _cut(self, *which: str) -> None:
        for one in which:
            with suppress(Exception):  # it may have ended meanwhile
                self._open[one].cut()

    def _close(self, which: str) -> None:
        ending = self._open[which]
        with suppress(Exception), limited(GOODBYE_S, ending.cut):
            ending.close()
        del self._open[which]

    def _keep_speaking(self) -> None:
        wait = FIRST_S
        while not self._ended.is_set():
            if not self._listens:  # who is not subscribed may not be allowed to be
                self._ended.wait(FIRST_S / 10 if not self._settled.is_set() else FIRST_S)
                continue
            began = time.monotonic()
            try:
                self._speak()
            except Exception as error:  # noqa: BLE001  # as above
                self._tell(f"hints are lost until the {self.name} transport can be reached again: {_words(error)}")
                self._settled.set()
            self._speaks = 0
            self._unsent.clear()  # what was committed before is found by the sweep, and need not arrive late
            wait = self._wait_after(wait, time.monotonic() - began)

    def _speak(self) -> None:
        beside = self._listens  # when that connection is lost, this one leads nowhere as well, and may not have noticed
        speaking = self._open["speaking"] = self._driver.speak(self._subject)
        try:
            self._unsent.clear()
            self._pulse = pulse = Pulse(self._dice.random)
            self._speaks = beside
            while self._listens == beside and not self._ended.is_set():
                now = time.monotonic()
                some = [*pulse.due(now), *dict.fromkeys(self._unsent.popleft() for _ in range(len(self._unsent)))]
                if some:
                    pulse.saying_since = now
                    speaking.say(some)
                    pulse.saying_since = None
                self._something.wait(WAITS_S)
                self._something.clear()
        finally:
            self._pulse = None
            self._close("speaking")

    def _tell(self, words: str) -> None:
        if self._is_news(words):
            log.warning("%s", words, extra={"event": "transport_down", "transport": self.name})

    def _say_up(self) -> None:
        if self._said:
            self._said = ""
            log.info("hints come and go by %s again", self.name, extra={"event": "transport_up", "transport": self.name})

    def _is_news(self, words: str) -> bool:
        """Once, until hints come and go again."""
        what = words.partition(":")[0]
        is_news = what != self._said and not self._ended.is_set()
        if is_news:
            self._said = what
        return is_news


@contextmanager
def limited(seconds: float, cut: Callable[[], None]) -> Iterator[None]:
    """Cuts what the block waits for, where that takes longer."""
    timer = threading.Timer(seconds, cut)
    timer.name, timer.daemon = "groundstate-limit", True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _nobody(_hint: bytes) -> None:
    """Hears, before it was opened."""


def _words(error: BaseException) -> str:
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
