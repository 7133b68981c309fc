"""A process of a run: a worker for each store, its threads, connections and locks; and what is left of it when it dies."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from groundstate.engine.sql import commit_hooks
from groundstate.engine.worker import Worker
from groundstate.store import driver_guard
from groundstate.testing.simulate.cooperative_threads import Actor
from groundstate.testing.simulate.db_intercept import Wired


@dataclass(eq=False)
class Process:
    """One process of a run. `wired` holds its databases, one for each worker."""

    number: int
    workers: list[Worker] = field(default_factory=list)
    wired: list[Wired] = field(default_factory=list)
    actors: list[Actor] = field(default_factory=list)
    connections: list[Any] = field(default_factory=list)
    dead: bool = False
    killed: bool = False
    started: bool = False
    frozen_until_s: float = 0.0  # `now_s` until which it stands still, as a process on a paused host does

    @property
    def name(self) -> str:
        return f"worker {self.number}"

    def left(self) -> tuple[object, ...]:
        """Return what a killed process leaves outside of the database: the ids, begins and soundness of its worker incarnations."""
        return tuple((worker.incarnation.id, worker.incarnation.begins, worker.incarnation.sound) for worker in self.workers)

    def drivers(self) -> list[Any]:
        """Return the driver connections of the process, including those that hold its locks."""
        locks = [getattr(worker.incarnation.liveness, "_connection", None) for worker in self.workers]
        return [*self.connections, *(one for one in locks if one is not None)]

    def let_go(self) -> None:
        """Do what the operating system does when a process ends: close its connections and files, and so free its locks."""
        self.dead = True
        for worker in self.workers:
            commit_hooks.stop_listening(worker)
            with suppress(Exception):
                worker.incarnation.liveness.release()
            watching = getattr(worker.database, "_watching", None)
            if watching is not None:
                watching.close()
            witness = worker._witness  # noqa: SLF001  # the operating system would close its descriptors
            if witness is not None and hasattr(witness, "close"):
                witness.close()
        for connection in self.connections:
            with suppress(Exception):
                driver_guard.close(connection)


@dataclass(eq=False)
class Task:
    """One future step of a call in flight."""

    process: Process
    run: Callable[[], None]
    at_s: float
    outlives: bool = False  # a request that has left its process arrives even if the process dies
