"""What a worker runs on: its clock, its random numbers and its threads, and the events by which threads wait for each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from groundstate.clock import SYSTEM_CLOCK, SYSTEM_DICE, Clock, Dice
from groundstate.engine.call.call_turn import MakeCaller
from groundstate.engine.call.executor import CallExecutor
from groundstate.engine.sql import commit_hooks
from groundstate.engine.sql.commit_hooks import Listener
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database


class Threads(Protocol):
    """The part of the module `threading` that a worker uses. A worker runs in its own thread, and other threads wait for its events."""

    @property
    def Event(self) -> Callable[[], Any]: ...  # noqa: N802  # named as in the module

    @property
    def Thread(self) -> Callable[..., Any]: ...  # noqa: N802  # named as in the module

    @property
    def current_thread(self) -> Callable[[], object]: ...


@dataclass(frozen=True)
class Runtime:
    """What a worker runs on. The defaults are used in production; the crash lab (groundstate's test kit) passes substitutes.

    caller: makes the object that runs the worker's calls. query: makes the condition query of a reaction on a database. listen: registers
    the worker as a listener to the commits of its process.
    """

    clock: Clock = SYSTEM_CLOCK
    dice: Dice = SYSTEM_DICE
    threads: Threads = threading
    caller: MakeCaller = CallExecutor
    query: Callable[[ReactionSpec, Database], ConditionQuery] = ConditionQuery
    listen: Callable[[Listener], None] = commit_hooks.add_listener


PRODUCTION = Runtime()


class Signals:
    """The events of one worker, by which other threads wake the worker's own thread or wait for it.

    wait_for_go: the worker carries out nothing until `go` is set.
    """

    def __init__(self, threads: Threads, *, wait_for_go: bool) -> None:
        self.wait_for_go = wait_for_go
        self.wake = threads.Event()  # set to make the loop's next iteration begin at once
        self.started = threads.Event()  # set once the start has succeeded, or an error or a stop prevents that
        self.go = threads.Event()  # set once the worker may carry out reactions, or has to stop
        self.idle = threads.Event()  # set once the threads in `wait_until_idle` may return
        self.registered = threads.Event()  # set once it is known which reactions run here, or an error or a stop prevents that

    @property
    def is_waiting_for_go(self) -> bool:
        return self.wait_for_go and not self.go.is_set()
