"""Tells other processes what this one committed, and this one what others did: hints over a transport, coalesced. Carries no data.

Told by commits, on whatever thread they happen; everything is sent by a thread of its own, after the commit, and never inside anybody's
transaction. What cannot be sent is lost, and found by the sweep.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from groundstate.engine import hints
from groundstate.engine.concern import concern, wake_parents
from groundstate.engine.hints import Touched
from groundstate.engine.part import Part, may_be_one
from groundstate.engine.question import Question
from groundstate.rules import hint as rules
from groundstate.rules.hint import Hint
from groundstate.transport.port import HINT_MOST, Transport
from groundstate.values import lines

log = logging.getLogger("groundstate")
GAP_S = 0.01  # between two hints of what is fresh
GAP_IN_HAND_S = 0.02  # between two of what this process carries out itself
AWAITED_S = 3.0  # so long that is told after somebody said that he waits for it by `until`: else nobody wants to know
LOOK_S = 1.0  # how often it is seen whether a worker hangs
DICE_BITS = 32
STOP_S = 5.0


class Ear(Protocol):
    """A worker of this process."""

    def hear_afar(self, hint: Hint) -> None:
        """What another process tells. Returns at once."""

    def stand_down(self) -> None:
        """Asked each second."""


class Messenger:
    """Of one process, one app and one transport. questions: reactions that may be concerned. with_keys: hints name records. tells: False
    where it is to hear alone. part: the database whose commits it tells, or all of them. store: the name of the one whose own transport it
    is.
    """

    def __init__(  # noqa: PLR0913  # whose it is, and what of it is told
        self,
        app: str,
        transport: Transport,
        questions: Sequence[Question],
        *,
        with_keys: bool = False,
        tells: bool = True,
        part: Part | None = None,
        store: str = "",
    ) -> None:
        self.transport = transport
        self._store = store
        self._app = app
        self._subject = f"groundstate.{subject_word(app)}"
        self._questions = questions
        for question in questions:
            wake_parents(question)
        self._names = {question.spec.name for question in questions}
        self._with_keys = with_keys
        self._tells = tells
        self._part = part or Part()
        self._sender = secrets.token_hex(4)
        self._dice = random.Random()  # noqa: S311  # who looks first, no secret
        self._ears: list[tuple[str, Ear]] = []  # with the names of their databases
        self._bells: set[Callable[[], None]] = set()
        self._fresh: dict[str, Touched] = {}  # by the names of databases
        self._in_hand: dict[str, Touched] = {}
        self._words: list[Hint] = []
        self._waits = False
        self._awaited_until = 0.0
        self._lock = threading.Lock()
        self._something = threading.Event()
        self._ended = False
        self._pid = os.getpid()
        self._opened = threading.Event()
        self._refused: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"groundstate-hints-{app}", daemon=True)

    @property
    def up(self) -> bool:
        """Whether hints come and go just now."""
        return self._opened.is_set() and self.transport.up

    # ---- its life ----------------------------------------------------------------------------------------------------------------
    def start(self, *, trusted: bool = False, wait: bool = True) -> None:
        """Opens the transport. wait: until it is known whether it may be used; else that is seen later.

        Raises:
            TransportRefused: it persists, or does not let it be seen whether it does.
        """
        self._trusted = trusted
        self._thread.start()
        if wait:
            self._opened.wait()
            if self._refused is not None:
                raise self._refused

    def end(self) -> None:
        """Sends nothing more, from soon on. Idempotent."""
        hints.stop_listening(self)
        self._ended = True
        self._something.set()

    def stop(self, within_s: float = STOP_S) -> None:
        """Sends nothing more, and waits so long for its thread to end. Idempotent."""
        self.end()
        if self._pid == os.getpid() and self._opened.is_set():  # else it is still being connected to, and closed when that is over
            self._thread.join(max(within_s, 0))

    def serves(self, ear: Ear, store: str = "") -> None:
        """From now on this worker, of the database of this name, hears what others tell."""
        self._ears.append((store, ear))

    def rings(self, bell: Callable[[], None]) -> None:
        """From now on this is called with each hint of others."""
        self._bells.add(bell)

    def rings_no_more(self, bell: Callable[[], None]) -> None:
        self._bells.discard(bell)

    # ---- told by this process ------------------------------------------------------------------------------------------------------
    def hear(self, touched: Touched) -> None:
        """A commit of this process."""
        store = self._part.of(touched)
        if self._pid != os.getpid() or not self._part.concerns(store):
            return
        in_hand = touched.ours == self._app or any(may_be_one(store, of) for of, _ in self._ears)
        if in_hand and time.monotonic() > self._awaited_until:
            return
        with self._lock:
            (self._in_hand if in_hand else self._fresh).setdefault(store, Touched()).merge(touched)
        self._something.set()

    def wait(self) -> None:
        """Tells the others that somebody here waits for what they carry out; to be said again each second or two."""
        self._waits = True
        self._something.set()

    def say(self, hint: Hint) -> None:
        """Tells this to the other workers."""
        with self._lock:
            self._words.append(hint)
        self._something.set()

    # ---- told by others ------------------------------------------------------------------------------------------------------------
    def _heard(self, words: object) -> None:
        if not isinstance(words, bytes) or len(words) > HINT_MOST:  # none of ours, and to read it could take long
            return
        found = rules.read(words)
        if found is None or found.sender == self._sender:
            return
        if found.waits:
            self._awaited_until = time.monotonic() + AWAITED_S
            return
        for _, ear in self._ears:
            ear.hear_afar(found)
        if found.table or not self._names.isdisjoint(found.reactions):
            for bell in list(self._bells):
                bell()

    # ---- its thread ----------------------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        lines.are_of(self._store, of_several=self._part.several)
        try:
            self.transport.open(self._subject, self._heard, trusted=self._trusted)
        except BaseException as error:
            self._refused = error
            with suppress(Exception):
                self.transport.close()
            return
        finally:
            self._opened.set()
        if self._tells and not self._ended:
            hints.listen(self)
        try:
            self._go_on()
        finally:
            with suppress(Exception):
                self.transport.close()

    def _go_on(self) -> None:
        look_at = time.monotonic() + LOOK_S
        while not self._ended:
            if self._something.wait(LOOK_S):
                self._something.clear()
                self._send()
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + LOOK_S
                for _, ear in self._ears:
                    with suppress(Exception):
                        ear.stand_down()

    def _send(self) -> None:
        with self._lock:
            fresh, self._fresh = self._fresh, {}
            in_hand, self._in_hand = self._in_hand, {}
            words, self._words = self._words, []
        waits, self._waits = self._waits, False
        try:
            if waits:
                self._tell(Hint(waits=True))
            for one in words:
                self._tell(one)
            for store, touched in fresh.items():
                self._tell(self._of(touched, store))
            for store, touched in in_hand.items():
                self._tell(self._of(touched, store, in_hand=True))
        except Exception:  # the next sweep finds what this was about
            log.exception("hints could not be sent, and are lost", extra={"event": "hints_unsent"})
        # What is committed meanwhile goes into the next one.
        time.sleep(GAP_S if fresh or words else GAP_IN_HAND_S)

    def _of(self, touched: Touched, store: str, *, in_hand: bool = False) -> Hint:
        found = {question.spec.name: concern(question, touched) for question in self._questions}
        concerned = {name: one for name, one in found.items() if one}
        rows = max((len(one.keys) for one in concerned.values()), default=0)
        keys = {}
        if self._with_keys and not in_hand:
            texts = {question.spec.name: question.record_text for question in self._questions}
            keys = {name: tuple(map(texts[name], one.keys)) for name, one in concerned.items() if not one.whole}
        return Hint(reactions=tuple(sorted(concerned)), rows=rows, in_hand=in_hand, keys=keys, store=store)

    def _tell(self, found: Hint) -> None:
        if not found.reactions and not found.waits:
            return
        said = replace(found, sender=self._sender, dice=self._dice.getrandbits(DICE_BITS))
        for piece in rules.written(said, HINT_MOST):
            self.transport.send(piece)


def subject_word(app: str) -> str:
    """The app's name in letters that every transport takes; others are written as their numbers."""
    return "".join(one if one.isascii() and (one.isalnum() or one in "_-") else f"_{ord(one):x}_" for one in app)
