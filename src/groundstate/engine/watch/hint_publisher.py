"""Sends hints to other processes about the commits of this process, and receives their hints, over a transport. A hint carries no row data.

After a commit, the committing thread notes which rows the commit touched. The publisher's own thread merges these notes into hints and
sends them, outside of any transaction. If a hint cannot be sent, the next sweep finds its rows.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from groundstate.clock import SYSTEM_CLOCK, SYSTEM_DICE, Clock, Dice
from groundstate.engine.sql import commit_hooks
from groundstate.engine.sql.commit_hooks import TouchedRecords
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.watch.routing import find_concerned_records, register_parent_wakeups
from groundstate.engine.watch.shard_routing import DatabasePart, may_be_same_database
from groundstate.rules import hint_codec as rules
from groundstate.rules.hint_codec import Hint
from groundstate.transport.port import HINT_MOST, Transport
from groundstate.values import log_store

log = logging.getLogger("groundstate")
GAP_S = 0.01  # seconds between two hints about rows that other processes may carry out
GAP_IN_HAND_S = 0.02  # seconds between two hints about rows that this process carries out itself
# Seconds: after another process announced a `wait_for`, this process also sends hints about rows that it carries out itself, for this long.
AWAITED_S = 3.0
LOOK_S = 1.0  # seconds between two checks whether a worker of this process hangs
DICE_BITS = 32
STOP_S = 5.0  # seconds that `stop` waits for the publisher's thread


class HintReceiver(Protocol):
    """A worker of this process, which receives hints."""

    def receive_remote_hint(self, hint: Hint) -> None:
        """Take note of a hint from another process, and return at once."""

    def resign_if_stuck(self) -> None:
        """If the worker hangs, resign as sweep leader. The publisher calls this each second."""


class HintPublisher:
    """Sends and receives the hints of one app in one process, over one transport.

    queries: the condition queries of all reactions; a commit may concern any of these reactions. with_keys: hints contain the keys of
    records. tells: whether hints are sent, and not only received. part: hints are sent about commits to this database, or to all databases.
    store: the name of the database to which the transport belongs.
    """

    def __init__(  # noqa: PLR0913  # identity, scope and options of one publisher
        self,
        app: str,
        transport: Transport,
        queries: Sequence[ConditionQuery],
        *,
        with_keys: bool = False,
        tells: bool = True,
        part: DatabasePart | None = None,
        store: str = "",
        clock: Clock = SYSTEM_CLOCK,
        dice: Dice = SYSTEM_DICE,
    ) -> None:
        self.transport = transport
        self._clock = clock
        self._store = store
        self._app = app
        self._subject = f"groundstate.{subject_of_app(app)}"
        self._queries = queries
        for query in queries:
            register_parent_wakeups(query)
        self._names = {query.spec.name for query in queries}
        self._with_keys = with_keys
        self._tells = tells
        self._part = part or DatabasePart()
        self._sender = dice.randbytes(4).hex()
        self._dice = dice  # makes the random number in each hint, by which the workers agree who queries first
        self._ears: list[tuple[str, HintReceiver]] = []  # the workers of this process, each as (name of its database, worker)
        self._bells: set[Callable[[], None]] = set()
        self._fresh: dict[str, TouchedRecords] = {}  # by database name: touched rows that other processes may carry out
        self._in_hand: dict[str, TouchedRecords] = {}  # by database name: touched rows that this process carries out itself
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
    def is_up(self) -> bool:
        """Return whether hints can be sent and received now."""
        return self._opened.is_set() and self.transport.is_usable

    # ---- start and stop ----------------------------------------------------------------------------------------------------------
    def start(self, *, trusted: bool = False, wait: bool = True) -> None:
        """Start the publisher's thread, which opens the transport.

        trusted: accept a transport that does not show whether it persists messages. wait: return once the transport is open or refused;
        without it, return at once, and `is_up` shows later whether the transport is open.

        Raises:
            TransportRefusedError: the transport persists messages, or does not show whether it does.
        """
        self._trusted = trusted
        self._thread.start()
        if wait:
            self._opened.wait()
            if self._refused is not None:
                raise self._refused

    def request_stop(self) -> None:
        """Let the thread stop sending, without waiting for it. A second call does nothing."""
        commit_hooks.remove_listener(self)
        self._ended = True
        self._something.set()

    def stop(self, within_s: float = STOP_S) -> None:
        """Stop sending, and wait at most `within_s` seconds for the thread to end. A second call does nothing."""
        self.request_stop()
        # Do not wait for a thread that is still connecting: it closes the transport by itself later.
        if self._pid == os.getpid() and self._opened.is_set():
            self._thread.join(max(within_s, 0))

    def add_receiver(self, ear: HintReceiver, store: str = "") -> None:
        """Pass the hints of other processes to this worker from now on. store: the name of the worker's database."""
        self._ears.append((store, ear))

    def add_bell(self, bell: Callable[[], None]) -> None:
        """Call this function from now on whenever another process sends a hint about a table or about one of this app's reactions."""
        self._bells.add(bell)

    def remove_bell(self, bell: Callable[[], None]) -> None:
        self._bells.discard(bell)

    # ---- hints that this process sends ---------------------------------------------------------------------------------------------
    def note_commit(self, touched: TouchedRecords) -> None:
        """Note what a commit of this process touched, so that a hint about it is sent."""
        store = self._part.name_of_database(touched)
        if self._pid != os.getpid() or not self._part.is_concerned_by(store):
            return
        in_hand = touched.ours == self._app or any(may_be_same_database(store, of) for of, _ in self._ears)
        if in_hand and self._clock.monotonic() > self._awaited_until:
            return
        with self._lock:
            (self._in_hand if in_hand else self._fresh).setdefault(store, TouchedRecords()).merge(touched)
        self._something.set()

    def announce_wait(self) -> None:
        """Tell the other processes that a `wait_for` of this process waits for rows that they carry out. Callers repeat this each second or
        two.
        """
        self._waits = True
        self._something.set()

    def send_message(self, hint: Hint) -> None:
        """Send a message of a worker (a hint that is about no commit) to the other workers."""
        with self._lock:
            self._words.append(hint)
        self._something.set()

    # ---- hints of other processes --------------------------------------------------------------------------------------------------
    def _receive_payload(self, words: object) -> None:
        # A message longer than HINT_MOST is not from groundstate, and parsing it could take long.
        if not isinstance(words, bytes) or len(words) > HINT_MOST:
            return
        found = rules.decode_hint(words)
        if found is None or found.sender == self._sender:
            return
        if found.waits:
            self._awaited_until = self._clock.monotonic() + AWAITED_S
            return
        for _, ear in self._ears:
            ear.receive_remote_hint(found)
        if found.table or not self._names.isdisjoint(found.reactions):
            for bell in list(self._bells):
                bell()

    # ---- the publisher's own thread ------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        log_store.label_log_lines(self._store, of_several=self._part.several)
        try:
            self.transport.open(self._subject, self._receive_payload, trusted=self._trusted)
        except BaseException as error:
            self._refused = error
            with suppress(Exception):
                self.transport.close()
            return
        finally:
            self._opened.set()
        if self._tells and not self._ended:
            commit_hooks.add_listener(self)
        try:
            self._run_loop()
        finally:
            with suppress(Exception):
                self.transport.close()

    def _run_loop(self) -> None:
        look_at = self._clock.monotonic() + LOOK_S
        while not self._ended:
            if self._something.wait(LOOK_S):
                self._something.clear()
                self._send_collected()
            if self._clock.monotonic() >= look_at:
                look_at = self._clock.monotonic() + LOOK_S
                for _, ear in self._ears:
                    with suppress(Exception):
                        ear.resign_if_stuck()

    def _send_collected(self) -> None:
        with self._lock:
            fresh, self._fresh = self._fresh, {}
            in_hand, self._in_hand = self._in_hand, {}
            words, self._words = self._words, []
        waits, self._waits = self._waits, False
        try:
            if waits:
                self._send_hint(Hint(waits=True))
            for one in words:
                self._send_hint(one)
            for store, touched in fresh.items():
                self._send_hint(self._build_hint(touched, store))
            for store, touched in in_hand.items():
                self._send_hint(self._build_hint(touched, store, in_hand=True))
        except Exception:  # lost hints do no harm, since the next sweep finds the rows
            log.exception("hints could not be sent, and are lost", extra={"event": "hints_unsent"})
        # Commits during this pause are merged into the next hint.
        self._clock.sleep(GAP_S if fresh or words else GAP_IN_HAND_S)

    def _build_hint(self, touched: TouchedRecords, store: str, *, in_hand: bool = False) -> Hint:
        found = {query.spec.name: find_concerned_records(query, touched) for query in self._queries}
        concerned = {name: one for name, one in found.items() if one}
        rows = max((len(one.keys) for one in concerned.values()), default=0)
        keys = {}
        if self._with_keys and not in_hand:
            texts = {query.spec.name: query.keys.record_text for query in self._queries}
            keys = {name: tuple(map(texts[name], one.keys)) for name, one in concerned.items() if not one.whole}
        return Hint(reactions=tuple(sorted(concerned)), rows=rows, in_hand=in_hand, keys=keys, store=store)

    def _send_hint(self, found: Hint) -> None:
        if not (found.reactions or found.waits or found.leads):
            return
        said = replace(found, sender=self._sender, dice=self._dice.getrandbits(DICE_BITS))
        for piece in rules.encode_hint(said, HINT_MOST):
            self.transport.send(piece)


def subject_of_app(app: str) -> str:
    """Return the app's name in characters that every transport takes; any other character becomes `_`, its code in hex, and `_`."""
    return "".join(one if one.isascii() and (one.isalnum() or one in "_-") else f"_{ord(one):x}_" for one in app)
