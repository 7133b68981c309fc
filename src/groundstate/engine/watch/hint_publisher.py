"""Sends hints to other processes about what this process committed, and receives theirs, over a transport. A hint carries no row data.

Commits report to it on the thread on which they happen. A thread of its own merges and sends the hints, after the commit and outside of any
transaction. A hint that cannot be sent is lost, and the next sweep finds its work.
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

from groundstate.engine.sql import commit_hooks
from groundstate.engine.sql.commit_hooks import Touched
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch.routing import concern, wake_parents
from groundstate.engine.watch.shard_routing import Part, may_be_one
from groundstate.rules import hint_codec as rules
from groundstate.rules.hint_codec import Hint
from groundstate.transport.port import HINT_MOST, Transport
from groundstate.values import log_store

log = logging.getLogger("groundstate")
GAP_S = 0.01  # seconds between two hints about rows that other processes may carry out
GAP_IN_HAND_S = 0.02  # seconds between two hints about rows that this process carries out itself
AWAITED_S = 3.0  # seconds that hints about its own rows are sent after another process announced a `wait_for`, which alone needs them
LOOK_S = 1.0  # seconds between two checks whether a worker hangs
DICE_BITS = 32
STOP_S = 5.0


class Ear(Protocol):
    """A worker of this process, which receives hints."""

    def hear_afar(self, hint: Hint) -> None:
        """Receive a hint from another process, and return at once."""

    def stand_down(self) -> None:
        """Resign as sweep leader if the worker hangs. The publisher calls this each second."""


class HintPublisher:
    """The hint publisher of one process, one app and one transport.

    queries: condition queries of the reactions that a commit may concern. with_keys: hints name records. tells: False if it only receives.
    part: the database whose commits it publishes, or all of them. store: the name of the database to which the transport belongs.
    """

    def __init__(  # noqa: PLR0913  # identity, scope and options of one publisher
        self,
        app: str,
        transport: Transport,
        queries: Sequence[ConditionQuery],
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
        self._queries = queries
        for query in queries:
            wake_parents(query)
        self._names = {query.spec.name for query in queries}
        self._with_keys = with_keys
        self._tells = tells
        self._part = part or Part()
        self._sender = secrets.token_hex(4)
        self._dice = random.Random()  # noqa: S311  # decides which worker looks first; no secret
        self._ears: list[tuple[str, Ear]] = []  # each with the name of its database
        self._bells: set[Callable[[], None]] = set()
        self._fresh: dict[str, Touched] = {}  # by database name
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
        """Return whether hints are sent and received now."""
        return self._opened.is_set() and self.transport.up

    # ---- start and stop ----------------------------------------------------------------------------------------------------------
    def start(self, *, trusted: bool = False, wait: bool = True) -> None:
        """Open the transport. wait: return only when it is known whether the transport may be used; otherwise `up` shows it later.

        Raises:
            TransportRefusedError: the transport persists messages, or does not show whether it does.
        """
        self._trusted = trusted
        self._thread.start()
        if wait:
            self._opened.wait()
            if self._refused is not None:
                raise self._refused

    def end(self) -> None:
        """Stop sending soon, without waiting for the thread. A second call does nothing."""
        commit_hooks.stop_listening(self)
        self._ended = True
        self._something.set()

    def stop(self, within_s: float = STOP_S) -> None:
        """Stop sending, and wait at most `within_s` seconds for the thread to end. A second call does nothing."""
        self.end()
        if self._pid == os.getpid() and self._opened.is_set():  # else the thread is still connecting, and closes the transport after that
            self._thread.join(max(within_s, 0))

    def serves(self, ear: Ear, store: str = "") -> None:
        """Pass the hints of other processes to this worker from now on. store: the name of the worker's database."""
        self._ears.append((store, ear))

    def rings(self, bell: Callable[[], None]) -> None:
        """Call this function from now on whenever a hint of another process concerns this app's reactions or a table."""
        self._bells.add(bell)

    def rings_no_more(self, bell: Callable[[], None]) -> None:
        self._bells.discard(bell)

    # ---- hints that this process sends ---------------------------------------------------------------------------------------------
    def hear(self, touched: Touched) -> None:
        """Receive what a commit of this process touched, so that a hint about it is sent."""
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
        """Tell other processes that a `wait_for` here waits for rows they carry out. Callers repeat this each second or two."""
        self._waits = True
        self._something.set()

    def say(self, hint: Hint) -> None:
        """Send this message to the other workers."""
        with self._lock:
            self._words.append(hint)
        self._something.set()

    # ---- hints of other processes --------------------------------------------------------------------------------------------------
    def _heard(self, words: object) -> None:
        if not isinstance(words, bytes) or len(words) > HINT_MOST:  # groundstate sends no such message, and parsing it could take long
            return
        found = rules.decode_hint(words)
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

    # ---- the publisher's own thread ------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        log_store.label_log_lines(self._store, of_several=self._part.several)
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
            commit_hooks.listen(self)
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
        except Exception:  # lost hints do no harm, since the next sweep finds the rows
            log.exception("hints could not be sent, and are lost", extra={"event": "hints_unsent"})
        # Commits during this pause are merged into the next hint.
        time.sleep(GAP_S if fresh or words else GAP_IN_HAND_S)

    def _of(self, touched: Touched, store: str, *, in_hand: bool = False) -> Hint:
        found = {query.spec.name: concern(query, touched) for query in self._queries}
        concerned = {name: one for name, one in found.items() if one}
        rows = max((len(one.keys) for one in concerned.values()), default=0)
        keys = {}
        if self._with_keys and not in_hand:
            texts = {query.spec.name: query.record_text for query in self._queries}
            keys = {name: tuple(map(texts[name], one.keys)) for name, one in concerned.items() if not one.whole}
        return Hint(reactions=tuple(sorted(concerned)), rows=rows, in_hand=in_hand, keys=keys, store=store)

    def _tell(self, found: Hint) -> None:
        if not (found.reactions or found.waits or found.leads):
            return
        said = replace(found, sender=self._sender, dice=self._dice.getrandbits(DICE_BITS))
        for piece in rules.encode_hint(said, HINT_MOST):
            self.transport.send(piece)


def subject_word(app: str) -> str:
    """Return the app's name in characters that every transport takes; any other character becomes `_`, its code in hex, and `_`."""
    return "".join(one if one.isascii() and (one.isalnum() or one in "_-") else f"_{ord(one):x}_" for one in app)
